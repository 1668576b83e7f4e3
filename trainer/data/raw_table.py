"""What a reader makes of a file: columns of unchecked cells, and errors that name their place."""

from __future__ import annotations

import difflib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from trainer.errors import InputError

SHOWN_ROWS = 5  # of the rows with one fault
SHOWN_NAMES = 12
SHOWN_CHARACTERS = 40  # of a text
# A likeness costs the product of two lengths: names are compared up to so many, of so many characters.
COMPARED_NAMES, COMPARED_CHARACTERS = 200, 80
LABEL_WORDS = {"true": True, "yes": True, "y": True, "false": False, "no": False, "n": False}  # that labels may be
T = TypeVar("T")


@dataclass(frozen=True)
class RawTable:
    """Columns of unchecked cells, all of one length >= 1, by field."""

    source: str
    columns: dict[str, list[Any]]
    """Field -> cells; a cell is a list where the file has several columns for the field, or a list in one."""
    names: dict[str, str]
    """Field -> what the file calls it."""
    lines: Sequence[int] | None = None
    """The line of the file that each row starts on, from 1; None where lines mean nothing."""
    rows: Sequence[int] | None = None
    """Numbers of the rows in the file, from 1; None: 1, 2, 3, ..."""
    notes: tuple[str, ...] = ()
    """How it was read, where that is not the plain case."""

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def error(self, row: int, field: str, problem: str) -> InputError:
        """The error to raise for a cell; `row` is 0-based here, and the file's own number in the message."""
        return self.errors([row], field, problem)

    def errors(self, rows: Sequence[int], field: str, problem: str) -> InputError:
        """One error for cells of one field with one problem."""
        numbers = [row + 1 if self.rows is None else self.rows[row] for row in rows]
        place = place_of(list(dict.fromkeys(numbers)), self.lines[rows[0]] if self.lines else None)
        name = self.names[field]  # a number where the file has no header
        return InputError(f"{self.source}: {place}, {'column ' * name.isdecimal()}{name}: {problem}")


class BadCell(Exception):
    """What is wrong with a cell, and the fix, which is the same for all cells with this fault."""


class Faults:
    """Bad cells of a table, gathered so that all with one fault are told at once."""

    def __init__(self, raw: RawTable) -> None:
        self.raw = raw
        self.rows: dict[tuple[str, str], list[int]] = {}  # by field and fix
        self.first: dict[tuple[str, str], str] = {}  # what is wrong with the first of them

    def read(self, field: str, read: Callable[[Any], T]) -> list[T]:
        """The cells of a field, read; those for which that raises BadCell are noted and left out."""
        values = []
        for row, cell in enumerate(self.raw.columns[field]):
            try:
                values.append(read(cell))
            except BadCell as fault:
                what, fix = fault.args
                self.first.setdefault((field, fix), what)
                self.rows.setdefault((field, fix), []).append(row)
        return values

    def check(self) -> None:
        """Raises InputError for the fault that comes first in the file."""
        if self.rows:
            field, fix = min(self.rows, key=lambda fault: self.rows[fault][0])
            raise self.raw.errors(self.rows[field, fix], field, f"{self.first[field, fix]}: {fix}")


class Finder(Protocol):
    """Tells which columns of a file hold which field."""

    def find(self, names: Sequence[str], source: str) -> dict[str, tuple[int, ...]]:
        """Field -> positions of its columns among a file's names. Raises InputError where one is missing."""

    def without_header(self, cells: Sequence[str]) -> list[str]:
        """What to call the columns of a file by its first row, where that is no header; [] where it is one."""

    def describe(self, names: Mapping[str, str]) -> tuple[list[str], list[str]]:
        """In words, of the names of fields: those that need saying; and what the file lacks, and what stands in."""


def finds(finder: Finder, names: Sequence[str], source: str) -> dict[str, tuple[int, ...]]:
    """What a finder finds; {} where something is missing or could be one of several."""
    try:
        return finder.find(names, source)
    except InputError:
        return {}


def table_of_cells(
    source: str,
    found: Mapping[str, Sequence[int]],
    names: Sequence[str],
    cells: Mapping[int, list[Any]],
    lines: Sequence[int] | None = None,
    notes: tuple[str, ...] = (),
) -> RawTable:
    """A table of the columns that a finder found; of several for a field, a list of what is not blank.

    Args:
        names: of columns, by position.
        cells: position -> cells of that column, for all that were found.

    Raises InputError: no rows.
    """
    if not any(map(len, cells.values())):
        raise InputError(f"{source}: has columns but no rows: add rows")
    columns = {
        field: cells[positions[0]]
        if len(positions) == 1
        else [
            [cell for cell in row if cell not in ("", None)]
            for row in zip(*(cells[position] for position in positions), strict=True)
        ]
        for field, positions in found.items()
    }
    # Several go by the first and the last of them: "negative_1 ... negative_4".
    ends = {field: dict.fromkeys([names[at[0]], names[at[-1]]]) for field, at in found.items()}
    return RawTable(source, columns, {field: " ... ".join(of) for field, of in ends.items()}, lines, notes=notes)


def place_of(numbers: Sequence[int], line: int | None = None) -> str:
    """Rows by their numbers, from 1, for a message; `line` is where the first of them starts."""
    shown, more = numbers[:SHOWN_ROWS], len(numbers) - SHOWN_ROWS
    text = f"row{'s' * (len(numbers) > 1)} {', '.join(map(str, shown))}" + (f" and {more:,} more" if more > 0 else "")
    if line is None or line == numbers[0]:
        return text
    return f"{text} ({'the first on ' * (len(numbers) > 1)}line {line})"


def brief(value: object) -> str:
    """A value for a one-line message: short, printable, without what it might contain; no cost for huge values."""
    if isinstance(value, str):
        return repr(value if len(value) <= SHOWN_CHARACTERS else value[: SHOWN_CHARACTERS - 1] + "…")
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, int):
        return str(value) if value.bit_length() <= 64 else "a huge integer"
    if isinstance(value, float):
        return repr(value)
    kinds: dict[type, str] = {dict: "an object", list: "a list"}
    return kinds.get(type(value), f"a {type(value).__name__}")


def fix_of_object(cell: object, column: str, fix: str) -> str:
    """What to do about a cell that should be a text: an object has keys to name instead."""
    keys = list(itertools.islice(cell, 3)) if isinstance(cell, dict) else []
    return f"name a key inside it, such as {', '.join(f'{column}.{key}' for key in keys)}" if keys else fix


def parse_number(cell: str) -> float | None:
    """The number a text cell holds, NaN and infinity included, also with a decimal comma; None where it is none, as in
    "1_0"."""
    try:
        return None if "_" in cell else float(cell.replace(",", ".") if cell.count(",") == 1 else cell)
    except ValueError:
        return None


def missing_column(source: str, missing: Sequence[str], present: Sequence[str], fix: str) -> InputError:
    """The error for columns that are not there: those that are, the nearest of them to the first, and the fix."""
    more = f" and {len(present) - SHOWN_NAMES} more" if len(present) > SHOWN_NAMES else ""
    listed = ", ".join(map(brief, itertools.islice(present, SHOWN_NAMES))) + more
    known = {other.casefold(): other for other in present[:COMPARED_NAMES] if len(other) <= COMPARED_CHARACTERS}
    alike = difflib.get_close_matches(missing[0].casefold()[:COMPARED_CHARACTERS], known, n=1)
    nearest = f"; nearest: {brief(known[alike[0]])}" if alike else ""
    which = f"column {missing[0]} is" if len(missing) == 1 else f"columns {', '.join(missing)} are"
    return InputError(f"{source}: {which} missing (found: {listed or 'none'}{nearest}): {fix}")
