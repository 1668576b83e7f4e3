"""Dates of a column, in whichever of the usual ways it writes them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from trainer.data.raw_table import RawTable, brief, parse_number
from trainer.data.ticket_table import texts_of_column

# Day first and month first can be told apart only where one of them does not fit some row.
DATE_FORMATS = tuple(
    day + time
    for day in (
        *("%d.%m.%Y", "%Y/%m/%d", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y", "%d %b %Y", "%b %d, %Y"),
        *("%d/%b/%y", "%d/%b/%Y", "%d-%b-%y", "%d-%b-%Y"),  # Jira; Oracle
    )
    for time in ("", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p")
)
SPREADSHEET_1970 = 25569  # the day of a spreadsheet that 1970 begins with
YEAR_1980, YEAR_2100 = 315532800.0, 4102444800.0  # in seconds since 1970
ZONE = re.compile(r" ?(?:UTC|GMT|Z|(?P<offset>[+-]\d\d:?\d\d))$")
"""A time zone behind a moment, also as "2024-12-31 13:45:00 UTC" and "2024-12-31 13:45:00 +0100" have it."""


def parse_dates(raw: RawTable, column: str, may_lack: bool = False) -> NDArray[np.float64]:
    """[R] seconds since 1970 of a column of dates: ISO 8601, numbers (`_seconds_of_numbers`), or the one usual way of
    writing that fits all.

    Args:
        may_lack: whether some cells may be empty, which gives NaN.

    Raises InputError for a cell that is no date, and where a date could be day first or month first.
    """
    cells = texts_of_column(raw, column)
    rows = np.flatnonzero([bool(cell) for cell in cells])
    if len(rows) < len(cells) and not (may_lack and len(rows)):
        raise raw.error(cells.index(""), column, "has no date: fill it in, or leave the row out")
    seconds = np.full(len(cells), np.nan)
    seconds[rows] = _parse([cells[row] for row in rows], raw, column, rows)
    return seconds


def _parse(cells: Sequence[str], raw: RawTable, column: str, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """[C] seconds of cells, none of them empty, of these rows [C]."""
    if None not in (numbers := [parse_number(cell) for cell in cells]) and np.isfinite(np.array(numbers, float)).all():
        found = _seconds_of_numbers(np.array(numbers, dtype=np.float64))
        if found is None:
            wrong = f"{brief(cells[0])} may be no date: write 2024-12-31 13:45, or seconds since 1970"
            raise raw.error(int(rows[0]), column, wrong)
        return found
    if None not in (seconds := [_iso_seconds(cell) for cell in cells]):
        return np.array(seconds, dtype=np.float64)
    fitting = {form: parsed for form in DATE_FORMATS if (parsed := _parse_all(cells, form)) is not None}
    if len({tuple(parsed) for parsed in fitting.values()}) > 1:
        raise raw.error(int(rows[0]), column, f"{brief(cells[0])} may be day first or month first: write 2024-12-31")
    if not fitting:
        known = [
            _iso_seconds(cell) is not None or any(_parse_all([cell], form) for form in DATE_FORMATS) for cell in cells
        ]
        bad = known.index(False) if False in known else 0
        wrong = f"{brief(cells[bad])} is no date like those of other rows: write 2024-12-31 13:45"
        raise raw.error(int(rows[bad]), column, wrong)
    return np.array(next(iter(fitting.values())), dtype=np.float64)


def _seconds_of_numbers(numbers: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """[C] seconds of numbers that are all seconds or milliseconds since 1970, days as spreadsheets count them, or
    20241231; None where they are none of these in the years 1980 to 2099.

    >>> _seconds_of_numbers(np.array([1735603200000.0])), _seconds_of_numbers(np.array([45657.0]))
    (array([1.7356032e+09]), array([1.7356032e+09]))
    """
    candidates = [numbers, numbers / 1000, (numbers - SPREADSHEET_1970) * 86400]
    if (numbers == numbers.round()).all() and (numbers < 1e8).all():
        candidates.append(np.array(_parse_all([f"{number:.0f}" for number in numbers], "%Y%m%d") or np.nan))
    return next((seconds for seconds in candidates if ((seconds >= YEAR_1980) & (seconds < YEAR_2100)).all()), None)


def _iso_seconds(cell: str) -> float | None:
    zone = ZONE.search(cell)
    moment = cell if zone is None else cell[: zone.start()] + (zone["offset"] or "Z")
    try:
        return _seconds(datetime.fromisoformat(moment))
    except ValueError:
        return None


def _parse_all(cells: Sequence[str], form: str) -> list[float] | None:
    try:
        return [_seconds(datetime.strptime(cell, form)) for cell in cells]
    except ValueError:
        return None


def _seconds(moment: datetime) -> float:
    """Seconds since 1970; a moment without a time zone is taken as UTC."""
    zero = datetime(1970, 1, 1, tzinfo=moment.tzinfo)
    return (moment - zero).total_seconds() - (offset.total_seconds() if (offset := moment.utcoffset()) else 0.0)
