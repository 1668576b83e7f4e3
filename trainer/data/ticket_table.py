"""A ticket file as a table: which of its columns hold what, the texts of their cells, and which rows name each other.

Legend: R rows of the file.
"""

from __future__ import annotations

import datetime
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from trainer.data.field_names import (
    OPTIONS,
    free_columns,
    holds_pairs,
    missing_ticket_text,
    name_key,
    not_tickets,
    positions_of,
)
from trainer.data.identifiers import MOST_MISS, Links, clean_id, is_rounded, link_rows
from trainer.data.pair_cells import UNUSABLE
from trainer.data.raw_table import RawTable, brief, fix_of_object, missing_column
from trainer.data.readers import Reading, read_table
from trainer.data.ticket_names import ALL_OF, USUAL_TICKET_NAMES
from trainer.errors import InputError

SOUGHT = ("duplicate_of", "cluster", "resolution", "notes", "date")  # fields that most files lack
SOUGHT_AS = {"duplicate_of": "links", "resolution": "resolutions", "notes": "notes", "date": "dates"}
OWN_NAMES = ("number", "shortdescription", "description", "assignmentgroup")  # of columns that go without saying
# What an object in a cell says, by the first of these keys that it has: references, people, labels, rich text.
SAYING = (
    "display_value", "displayValue", "value", "name", "displayName", "title", "text", "content", "login", "key",
    "nodes",
)  # fmt: skip


@dataclass(frozen=True)
class Columns:
    """What a ticket file calls its fields, and the finder of its columns: "" for the usual names, None for a field that
    is of no use and not looked for."""

    number: str = ""
    texts: tuple[str, ...] = ()
    category: str | None = ""
    duplicate_of: str | None = None  # the number of the ticket that this one duplicates, or of a problem they share
    cluster: str | None = None  # any name that tickets about one problem share; has no usual name
    resolution: str | None = None  # how it was resolved
    notes: str | None = None  # what was noted while it was worked on
    date: str | None = None  # when it was opened
    part: str | None = None  # any name that tells some tickets from the others
    options: ClassVar[Mapping[str, str]] = OPTIONS  # how a person names each of them

    def _given(self) -> list[tuple[str, str, str]]:
        """(field, column, the option that names it) of all that a person names."""
        texts = [(f"text{place}", name, self.options["texts"]) for place, name in enumerate(self.texts, start=1)]
        others = ((field, getattr(self, field), option) for field, option in self.options.items() if field != "texts")
        return texts + [each for each in others if each[1]]

    def check(self) -> None:
        """Raises InputError where a column is named for two purposes; to tell tickets apart any may serve."""
        names = Counter(name for field, name, _ in self._given() if field != "part")
        if twice := [name for name, count in names.items() if count > 1]:
            raise InputError(f"column {twice[0]} is named for two purposes: give each column one")

    def find(self, names: Sequence[str], source: str) -> dict[str, tuple[int, ...]]:
        """Field -> positions of its columns, of texts text1, text2, ...; number and category may be missing.

        Raises InputError for a column that was named and is not there, or no text.
        """
        found: dict[str, tuple[int, ...]] = {}
        for field, column, option in self._given():
            found[field] = _with_repeats(positions_of(column, names), names)
            if not found[field] and holds_pairs(names):
                raise not_tickets(source, self.category is None)
            if not found[field]:
                raise missing_column(source, [column], names, f"name one of these with {option}")
        free = free_columns(names, found)
        for field, keys in USUAL_TICKET_NAMES.items():
            is_text = field in ("text1", "text2")
            if field in found or (self.texts if is_text else getattr(self, field) is None):
                continue
            present = [key for key in keys if key in free]
            for key in present if field in ALL_OF else present[:1]:
                columns = positions_of(names[free[key][0]], names)
                found[field] = found.get(field, ()) + _with_repeats(columns, names)
        if not found.keys() & {"text1", "text2"}:
            raise missing_ticket_text(source, names, self.options["texts"], self.category is None)
        return found

    def without_header(self, cells: Sequence[str]) -> list[str]:
        """[]: a ticket file has a header."""
        return []

    def describe(self, names: Mapping[str, str]) -> tuple[list[str], list[str]]:
        """The columns that no option names and that are not called as ours are; and those that are missing."""
        texts, notes, missing = _texts(names), [], []
        if not self.texts and any(name_key(name) not in OWN_NAMES for name in texts):
            notes.append(f"texts {' + '.join(texts)}")
        for field, instead in (("number", ": rows are numbered"), ("category", "")):
            if field not in names and getattr(self, field) is None:
                continue
            if field not in names:
                missing.append(f"no {field} column{instead}")
            elif not getattr(self, field) and name_key(names[field]) not in OWN_NAMES:
                notes.append(f"{field} {names[field]}")
        notes += [
            f"{word} {names[field]}" for field, word in SOUGHT_AS.items() if field in names and not getattr(self, field)
        ]
        return notes, missing


def read_ticket_table(path: str | Path, columns: Columns, reading: Reading | None) -> tuple[RawTable, Columns]:
    """The table, and what it calls its fields, "" where it has no number or category, None where it lacks another; its
    columns go by these names."""
    columns.check()
    raw = read_table(path, columns, reading)
    named: dict[str, Any] = {field: None for field in SOUGHT if not getattr(columns, field)}
    named |= {field: name for field, name in raw.names.items() if not field.startswith("text")}
    cells = {raw.names[field]: column for field, column in raw.columns.items()}
    return replace(raw, columns=cells, names={name: name for name in cells}), replace(
        columns, texts=_texts(raw.names), **named
    )


@dataclass(frozen=True, eq=False)
class LinkedTickets:
    """The table of a ticket file, and what the links between its rows come to."""

    raw: RawTable
    columns: Columns
    """As `read_ticket_table` gives them."""
    numbers: list[str]
    """[R] clean ids of the tickets, empty where a row has none."""
    link_cells: dict[str, list[str]]
    """Column of links or clusters -> its cells [R]."""
    links: Links


def read_linked_tickets(
    path: str | Path, columns: Columns, reading: Reading | None, most_miss: float = MOST_MISS
) -> LinkedTickets:
    """Read a ticket file and follow the links of its rows. Raises InputError; for `most_miss` see `link_rows`.

    Of columns that no one named as links only cells with a digit count, and they may tie nothing.
    """
    named_by_person = columns.duplicate_of != ""
    raw, columns = read_ticket_table(path, columns, reading)
    numbers = [clean_id(cell) for cell in ids_of_column(raw, columns.number) or []]
    duplicates, clusters = (ids_of_column(raw, column) for column in (columns.duplicate_of, columns.cluster))
    if duplicates and not named_by_person:
        duplicates = [cell if any(map(str.isdigit, cell)) else "" for cell in duplicates]
        most_miss = math.inf
    links = link_rows(raw.source, numbers, duplicates, clusters, columns.options, most_miss)
    named = {columns.duplicate_of: duplicates, columns.cluster: clusters}
    link_cells = {column: cells for column, cells in named.items() if column is not None and cells is not None}
    return LinkedTickets(raw, columns, numbers, link_cells, links)


def _texts(names: Mapping[str, str]) -> tuple[str, ...]:
    """The names of text1, text2, ..."""
    fields = sorted((field for field in names if field.startswith("text")), key=lambda field: int(field[4:]))
    return tuple(names[field] for field in fields)


def _with_repeats(positions: tuple[int, ...], names: Sequence[str]) -> tuple[int, ...]:
    """With the columns that pandas named after it: Comment.1, Comment.2."""
    if not positions:
        return ()
    again = re.compile(re.escape(names[positions[0]]) + r"\.\d+")
    return positions + tuple(position for position, other in enumerate(names) if again.fullmatch(other))


def texts_of_cell(raw: RawTable, column: str, row: int) -> list[str]:
    """The texts of a cell, stripped and not blank: several where the file has several columns of that name, or a list.

    A missing value is none; of an object it is what it says (`SAYING`). Raises InputError for another object.
    """
    texts: list[str] = []
    left = [raw.columns[column][row]] if column else []
    while left:
        value = left.pop()
        if isinstance(value, list):
            left += reversed(value)
        elif isinstance(value, dict) and (value.keys() & SAYING or not value):
            left += [next((value[key] for key in SAYING if value.get(key) is not None), None)]
        elif isinstance(value, str):
            texts.append(UNUSABLE.sub(" ", value).strip())
        elif isinstance(value, bool):
            texts.append(str(value).lower())
        elif isinstance(value, datetime.date | datetime.time):  # as Parquet has them
            texts.append(value.isoformat())
        elif isinstance(value, int | float):
            texts += [str(value)] if value == value else []  # NaN is how data frames write a missing one
        elif value is not None:
            fix = fix_of_object(value, column, "write a string")
            raise raw.error(row, column, f"{brief(value)} is not a text: {fix}")
    return list(dict.fromkeys(filter(None, texts)))


def text_cells(raw: RawTable, names: Sequence[str]) -> list[list[str]]:
    """[R] the text of each row in each of these columns; one that holds several texts has them a line each."""
    return [["\n".join(texts_of_cell(raw, name, row)) for name in names] for row in range(len(raw))]


def texts_of_column(raw: RawTable, column: str) -> list[str]:
    """[R] the cells of a column, each as one text; those of a column without a name are empty."""
    return [", ".join(texts_of_cell(raw, column, row)) for row in range(len(raw))]


def column_and_value(equation: str, option: str) -> tuple[str | None, str]:
    """ "COLUMN=VALUE" in two; (None, "") for nothing. Raises InputError, naming the option that it was given for."""
    column, equals, value = equation.partition("=")
    if equation and not (column and equals):
        raise InputError(f"{option} {equation}: write COLUMN=VALUE")
    return column or None, value.strip()


def rows_of_value(raw: RawTable, column: str, value: str) -> NDArray[np.bool_]:
    """[R] which rows have a value in a column. Raises InputError, naming some that are there, where none has."""
    cells = texts_of_column(raw, column)
    if value not in cells:
        raise InputError(no_row_has(raw, column, value, cells))
    return np.array([cell == value for cell in cells])


def no_row_has(raw: RawTable, column: str, value: str, cells: Sequence[str]) -> str:
    """What to say of a value that a column does not have: some that are among its cells [R]."""
    listed = ", ".join(brief(name) for name, _ in Counter(cells).most_common(5))
    return f"{raw.source}: no row has {column} = {brief(value)}; it has {listed}"


def ids_of_column(raw: RawTable, column: str | None) -> list[str] | None:
    """[R] cells of a column of ids; None where no column is named. Raises InputError for one that lost digits."""
    if column is None:
        return None
    cells = texts_of_column(raw, column)
    for row, cell in enumerate(cells):
        if is_rounded(cell):
            raise raw.error(row, column, f"{brief(cell)} has lost digits in a spreadsheet: export the column as text")
    return cells


def join_cells(cells: Sequence[str]) -> tuple[str, int]:
    """The cells a line each, and the length of the first; one that the next begins with is not said twice."""
    text, title = cells[0], len(cells[0])
    for cell in cells[1:]:
        if cell.casefold().startswith(text.casefold()):
            text = cell
        elif cell.casefold() not in text.casefold():
            text = f"{text}\n{cell}"
    return text, title
