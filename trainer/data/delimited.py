"""Tables of rows of cells: CSV and its kin, by whatever separates their cells.

The header names the columns; where the caller knows its fields by the first row, there may be none.
"""

from __future__ import annotations

import csv
import io
import itertools
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from trainer.data.raw_table import SHOWN_NAMES, Finder, RawTable, brief, finds, place_of, table_of_cells
from trainer.errors import InputError

SEPARATORS = (",", ";", "\t", "|")
SPOKEN = {"\t": "tab", " ": "space"}
# Excel's own way to name the separator: the first line of the file.
SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\r?\n', re.IGNORECASE)
TITLE_ROWS = 20  # below the first, in which a header is looked for
Rows = Iterator[tuple[int, Sequence[Any]]]
"""The line that a row starts on, from 1, and its cells."""


def read_delimited(text: str, source: str, finder: Finder, separator: str, usual: str) -> RawTable:
    """A table of delimited text.

    Args:
        separator: between cells; "" is told by the text: a first line `sep=;`, else the one that makes sense of the
            first row.
        usual: the separator that goes without saying.

    Raises InputError: a row is broken or has more or fewer cells than the first, a column is missing, no rows.
    """
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # global to the process, so it only ever grows
    said = SEPARATOR_LINE.match(text)
    text, skipped = (text[said.end() :], 1) if said else (text, 0)
    separator = _named(separator, source) or (said and said.group(1)) or _choose(text, source, finder, usual)
    notes = () if separator == usual else (f"separator {SPOKEN.get(separator, separator)}",)
    fix = f"put cells that hold {separator!r} in double quotes"

    def read(quoted: bool) -> RawTable:
        said = notes if quoted else (*notes, "quotes as they are")
        return read_rows(records(text, source, separator, skipped, quoted), source, finder, said, fix)

    return _with_or_without_quotes(read, text.count("\n")) if separator == "\t" else read(True)


def _with_or_without_quotes(read: Callable[[bool], RawTable], lines: int) -> RawTable:
    """A table with tabs as it is where quotes enclose cells, or as it is where they mean nothing, if that alone fits.

    Such tables are written both ways, and a lone quote would swallow rows up to the next one. A quoted cell of several
    lines, on the other hand, has lines without the tabs of a row.
    """
    try:
        table = read(True)
    except InputError as error:
        try:
            return read(False)
        except InputError:
            raise error from None
    try:
        plain = read(False) if len(table) + 1 < lines else table
    except InputError:
        return table
    return plain if len(plain) > len(table) else table


def read_rows(rows: Rows, source: str, finder: Finder, notes: tuple[str, ...], fix: str) -> RawTable:
    """A table of rows, the first of which is the header unless `finder` knows better. Raises InputError.

    Args:
        fix: what to do about a row of another length than the first; "" where cells beside the table are no fault.
    """
    head = next(rows, (0, ()))
    first = [str(cell).strip() for cell in head[1]]
    bare = finder.without_header(first)
    names = bare or first
    try:
        found = finder.find(names, source)
    except InputError as error:
        raise _of_title(error, first, itertools.islice(rows, TITLE_ROWS), source, finder) from None
    columns: dict[int, list[Any]] = {position: [] for positions in found.values() for position in positions}
    lines = array("q")
    ragged: list[tuple[int, int]] = []  # row, cells
    for line, cells in itertools.chain([head] if bare else [], rows):
        if len(cells) > len(first) and not (fix and any(cells[len(first) :])):
            cells = cells[: len(first)]  # empty cells at the end, as spreadsheets write them
        if len(cells) != len(first):
            ragged.append((len(lines), len(cells)))
            cells = [""] * len(first)
        for position, column in columns.items():
            column.append(cells[position])
        lines.append(line)
    if ragged:
        row, count = ragged[0]
        place, others = place_of([row + 1 for row, _ in ragged], lines[row]), ", ..." * (len(ragged) > 1)
        raise InputError(f"{source}: {place}: {count}{others} cell(s) where the first row has {len(first)}: {fix}")
    return table_of_cells(source, found, names, columns, lines, notes)


def _of_title(error: InputError, first: Sequence[str], below: Rows, source: str, finder: Finder) -> InputError:
    """The error for a first row that names no field, where it may be a title: the header is then one of those below."""
    filled, most = sum(map(bool, first)), 0
    try:
        for line, cells in below:
            names = [str(cell).strip() for cell in cells]
            if finds(finder, names, source):
                shown = ", ".join(map(brief, names[:SHOWN_NAMES]))
                return InputError(f"{source}: line {line} looks like the header ({shown}): remove the lines above it")
            most = max(most, sum(map(bool, names)))
    except InputError:  # of a row that is broken
        return error
    return InputError(f"{error}; or, where the first row is a title, remove it") if filled == 1 < most else error


def _named(separator: str, source: str) -> str:
    """A separator that a person gave. Raises InputError."""
    named = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "space": " "}.get(separator, separator)
    if len(named) > 1 or named in ('"', "\r", "\n", "\0"):
        raise InputError(
            f"{source}: separator {separator!r}: set data.separator to one character, such as ;, or to tab"
        )
    return named


def _choose(text: str, source: str, finder: Finder, usual: str) -> str:
    """The separator with which the first row names or holds the fields, else the one that makes the most cells."""
    cells: dict[str, int] = {}
    for separator in sorted(SEPARATORS, key=lambda separator: separator != usual):
        try:
            first = [cell.strip() for cell in next(records(text, source, separator), (0, []))[1]]
            cells[separator] = len(first)
            if finder.find(finder.without_header(first) or first, source):
                return separator
        except InputError:  # of this separator; the caller meets it again if it is chosen
            continue
    if cells.get("\t", 0) > 1:
        return "\t"  # texts hold commas, tabs they hardly do
    most = max(cells, key=cells.__getitem__, default=usual)
    return most if cells.get(most, 0) > 1 else usual


def records(
    text: str, source: str, separator: str, skipped: int = 0, quoted: bool = True
) -> Iterator[tuple[int, list[str]]]:
    """The line it starts on and the cells of each record but blank lines, after `skipped` lines. Raises InputError."""
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, delimiter=separator, quotechar='"' if quoted else None, strict=True)
    while True:
        line = reader.line_num + 1 + skipped
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            # csv's own words would put the separator, a tab, into the message
            fault = "a quote is never closed" if "end of data" in str(error) else "text follows a closing quote"
            fix = "quote the whole cell and double each quote inside it"
            raise InputError(f"{source}: line {line} is broken ({fault}): {fix}") from None
        if cells:
            yield line, cells
