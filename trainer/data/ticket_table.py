"""A ticket file as a table: which of its columns hold what, and the texts of their cells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from trainer.data.field_names import OPTIONS, TicketFinder, name_key
from trainer.data.identifiers import is_rounded
from trainer.data.pair_cells import UNUSABLE
from trainer.data.raw_table import RawTable, brief, fix_of_object
from trainer.data.readers import Reading, read_table, say_reading
from trainer.errors import InputError

OWN_NAMES = ("number", "shortdescription", "description", "assignmentgroup")  # of columns that go without saying
# What an object in a cell says, by the first of these keys that it has: references, people, labels, rich text.
SAYING = (
    "display_value",
    "displayValue",
    "value",
    "name",
    "displayName",
    "title",
    "text",
    "content",
    "login",
    "key",
    "nodes",
)


@dataclass(frozen=True)
class Columns:
    """What the file calls its fields; where nothing is said, the usual names are looked for."""

    number: str = ""
    texts: tuple[str, ...] = ()
    category: str = ""
    duplicate_of: str | None = None  # the number of the ticket that this one duplicates
    cluster: str | None = None  # any name that tickets about one problem share
    date: str | None = None  # when it was opened
    part: str | None = None  # any name that tells some tickets from the others
    options: ClassVar[Mapping[str, str]] = OPTIONS  # how a person names each of them


def read_ticket_table(path: str | Path, columns: Columns, reading: Reading | None) -> tuple[RawTable, Columns]:
    """The table, and what it calls its fields, "" where it has no number or category; its columns go by these names."""
    optional = [name for name in (columns.duplicate_of, columns.cluster, columns.date) if name]
    given = [name for name in (columns.number, *columns.texts, columns.category, *optional) if name]
    if twice := [name for name, count in Counter(given).items() if count > 1]:
        raise InputError(f"column {twice[0]} is named for two purposes: give each column one")
    finder = TicketFinder(
        columns.number,
        columns.texts,
        columns.category,
        columns.duplicate_of or "",
        columns.cluster or "",
        columns.date or "",
        columns.part or "",
        columns.options,
    )
    raw = read_table(path, finder, reading)
    names = raw.names
    texts = sorted((field for field in names if field.startswith("text")), key=lambda field: int(field[4:]))
    say_reading(raw, *_describe(names, texts, columns))
    named = replace(
        columns,
        number=names.get("number", ""),
        texts=tuple(names[field] for field in texts),
        category=names.get("category", ""),
        duplicate_of=names.get("duplicate_of"),
        cluster=names.get("cluster"),
        date=names.get("date"),
        part=names.get("part"),
    )
    return replace(
        raw,
        columns={names[field]: column for field, column in raw.columns.items()},
        names={name: name for name in names.values()},
    ), named


def _describe(names: Mapping[str, str], texts: Sequence[str], columns: Columns) -> tuple[list[str], list[str]]:
    """In words, the columns that no option names and that are not called as ours are; and those that are missing."""
    notes, missing = [], []
    if not columns.texts and any(name_key(names[field]) not in OWN_NAMES for field in texts):
        notes.append(f"texts {' + '.join(names[field] for field in texts)}")
    for field, given, instead in (
        ("number", columns.number, ": rows are numbered"),
        ("category", columns.category, ""),
    ):
        if field not in names:
            missing.append(f"no {field} column{instead}")
        elif not given and name_key(names[field]) not in OWN_NAMES:
            notes.append(f"{field} {names[field]}")
    return notes, missing


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
        elif isinstance(value, int | float) and not isinstance(value, bool):
            texts.append(str(value))
        elif value is not None:
            fix = fix_of_object(value, column, "write a string")
            raise raw.error(row, column, f"{brief(value)} is not a text: {fix}")
    return list(dict.fromkeys(filter(None, texts)))


def text_of_cell(raw: RawTable, column: str, row: int) -> str:
    """A cell as one text; that of a column without a name is empty."""
    return ", ".join(texts_of_cell(raw, column, row))


def ids_of_column(raw: RawTable, column: str | None) -> list[str] | None:
    """[R] cells of a column of ids; None where no column is named. Raises InputError for one that lost digits."""
    if column is None:
        return None
    cells = [text_of_cell(raw, column, row) for row in range(len(raw))]
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
