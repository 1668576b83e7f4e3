"""Dates of a column, in whichever of the usual ways it writes them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from trainer.data.raw_table import RawTable, brief, parse_number
from trainer.data.ticket_table import text_of_cell

# Day first and month first can be told apart only where one of them does not fit some row.
DATE_FORMATS = tuple(
    day + time
    for day in ("%d.%m.%Y", "%Y/%m/%d", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y", "%d %b %Y", "%b %d, %Y")
    for time in ("", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p")
)


def parse_dates(raw: RawTable, column: str) -> NDArray[np.float64]:
    """[R] seconds of a column of dates: ISO 8601, seconds since 1970, or the one usual way of writing that fits all.

    Raises InputError for a cell that is no date, and where a date could be day first or month first.
    """
    cells = [text_of_cell(raw, column, row) for row in range(len(raw))]
    if None not in (numbers := [parse_number(cell) for cell in cells]) and np.isfinite(np.array(numbers, float)).all():
        return np.array(numbers, dtype=np.float64)
    if None not in (seconds := [_iso_seconds(cell) for cell in cells]):
        return np.array(seconds, dtype=np.float64)
    fitting = {form: parsed for form in DATE_FORMATS if (parsed := _parse_all(cells, form)) is not None}
    if len({tuple(parsed) for parsed in fitting.values()}) > 1:
        raise raw.error(0, column, f"{brief(cells[0])} may be day first or month first: write 2024-12-31")
    if not fitting:
        known = [
            _iso_seconds(cell) is not None or any(_parse_all([cell], form) for form in DATE_FORMATS) for cell in cells
        ]
        row = known.index(False) if False in known else 0
        raise raw.error(row, column, f"{brief(cells[row])} is no date like those of other rows: write 2024-12-31 13:45")
    return np.array(next(iter(fitting.values())), dtype=np.float64)


def _iso_seconds(cell: str) -> float | None:
    try:
        return _seconds(datetime.fromisoformat(cell))
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
