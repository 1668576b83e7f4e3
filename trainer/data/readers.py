"""Files of records, read whole: columnar JSON, JSON Lines, CSV and TSV, also gzipped, in UTF-8 with or without BOM.

Whatever the bytes, the result is a `RawTable` or an `InputError`, in time linear in the (expanded) size of the file.
Only the shape is judged here: every row has every required field. What a field may hold is for the caller to say.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from array import array
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from trainer.data.text_files import read_text, require_file
from trainer.errors import InputError

# Python refuses to parse integers of more than 4300 digits (its quadratic cost); no field needs a tenth of that.
MAX_INT_DIGITS = 400


@dataclass(frozen=True)
class Field:
    """A field of a record: its name in row formats and in messages, its name as a column of columnar JSON."""

    name: str
    plural: str
    required: bool = True


@dataclass(frozen=True)
class RawTable:
    """Columns of unchecked cells, all of one length >= 1, by the row-format name of their field.

    `names` gives the name each field has in the file, `lines` the 1-based line each row starts on (None: one record
    holds the whole file), `text_cells` whether cells are always strings (CSV, TSV) rather than JSON values.
    """

    source: str
    columns: dict[str, list[Any]]
    names: dict[str, str]
    lines: Sequence[int] | None = None
    text_cells: bool = False

    def error(self, row: int, field: str, problem: str) -> InputError:
        """The error to raise for a cell; `row` is 0-based here and 1-based in the message."""
        place = _place(row, self.lines[row] if self.lines else None)
        return InputError(f"{self.source}: {place}, {self.names[field]}: {problem}")


def brief(value: object, width: int = 40) -> str:
    """A value for a one-line message: short, printable, without what it might contain; no cost for huge values."""
    if isinstance(value, str):
        return repr(value if len(value) <= width else value[: width - 1] + "…")
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, int):
        return str(value) if value.bit_length() <= 64 else "a huge integer"
    if isinstance(value, float):
        return repr(value)
    kinds: dict[type, str] = {dict: "an object", list: "a list"}
    return kinds.get(type(value), f"a {type(value).__name__}")


def parse_number(cell: str) -> float | None:
    """The number a text cell holds, NaN and infinity included; None where it is none, as in "1_0"."""
    try:
        return None if "_" in cell else float(cell)
    except ValueError:
        return None


def read_table(path: str | Path, fields: Sequence[Field], headerless: Sequence[str] = ()) -> RawTable:
    """Read `fields` of the file at `path`, the format told by its name; other columns and keys are ignored.

    `headerless`: field names by position for a CSV or TSV without header, recognised by having exactly that many
    columns and a number as the last cell of its first row.

    Raises InputError naming the file, the row or line, and the field: file missing, not regular, empty, not UTF-8 or
    not of a known format; a damaged or over-expanding gzip; broken JSON or CSV; duplicate, missing or ragged columns.
    """
    path = Path(path)
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    require_file(path)
    if suffix not in FORMATS:
        raise InputError(f"{path}: unknown format {brief(suffix)}: use {', '.join(FORMATS)}, or one of these with .gz")
    return FORMATS[suffix](read_text(path), str(path), fields, headerless)


def table_from_columns(columns: dict[str, Any], source: str, fields: Sequence[Field]) -> RawTable:
    """The fields of `columns`, keyed as columnar JSON. Raises InputError: missing, not lists, ragged, no rows."""
    for field in fields:
        if field.required and field.plural not in columns:
            raise _missing_column(source, field.plural, columns)
    chosen = [field for field in fields if field.plural in columns]
    for field in chosen:
        if not isinstance(columns[field.plural], list):
            raise InputError(
                f"{source}: {field.plural} is {brief(columns[field.plural])}: make it a list, one value a row"
            )
    lengths = {field.plural: len(columns[field.plural]) for field in chosen}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise InputError(f"{source}: the columns differ in length ({counts}): give each one value a row")
    if not any(lengths.values()):
        raise InputError(f"{source}: has columns but no rows: add rows")
    return RawTable(source, {f.name: columns[f.plural] for f in chosen}, {f.name: f.plural for f in chosen})


def _place(row: int, line: int | None) -> str:
    return f"row {row + 1}" if line is None or line == row + 1 else f"row {row + 1} (line {line})"


def _missing_column(source: str, name: str, present: Collection[str]) -> InputError:
    more = f" and {len(present) - 12} more" if len(present) > 12 else ""
    listed = ", ".join(map(brief, itertools.islice(present, 12))) + more
    return InputError(f"{source}: column {name} is missing (found: {listed or 'none'}): add it or rename one")


def _parse_int(digits: str) -> int | float:
    return int(digits) if len(digits) <= MAX_INT_DIGITS else float(digits)


def _parse_json(decoder: json.JSONDecoder, text: str, source: str, line: int | None = None) -> Any:
    """One JSON value; `line` is where `text` stands in the file when it is a line of it."""
    try:
        return decoder.decode(text)
    except json.JSONDecodeError as error:
        place = f"line {line or error.lineno}, column {error.colno}"
        hint = "" if line or error.msg != "Extra data" else ", or name the file .jsonl if each line is a record"
        raise InputError(f"{source}: bad JSON at {place} ({error.msg}): mend it there{hint}") from None
    except RecursionError:
        place = f" on line {line}" if line else ""
        raise InputError(f"{source}: JSON nested too deeply{place}: flatten it") from None
    except _DuplicateKey as error:
        place = f" on line {line}" if line else ""
        raise InputError(
            f"{source}: the key {brief(error.args[0])} stands twice in one object{place}: remove one"
        ) from None


class _DuplicateKey(Exception):
    """The key that stands twice; `json` would keep the last value without a word."""


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _DuplicateKey(key)
            seen.add(key)
    return result


def _json_decoder() -> json.JSONDecoder:
    return json.JSONDecoder(object_pairs_hook=_unique_keys, parse_int=_parse_int)


def _read_json(text: str, source: str, fields: Sequence[Field], headerless: Sequence[str]) -> RawTable:
    value = _parse_json(_json_decoder(), text, source)
    if not isinstance(value, dict):
        wanted = ", ".join(f'"{field.plural}": [...]' for field in fields if field.required)
        raise InputError(f"{source}: the top level is {brief(value)}: make it an object of columns {{{wanted}}}")
    return table_from_columns(value, source, fields)


def _read_json_lines(text: str, source: str, fields: Sequence[Field], headerless: Sequence[str]) -> RawTable:
    decoder = _json_decoder()
    columns: dict[str, list[Any]] = {field.name: [] for field in fields}
    lines = array("q")
    present: set[str] = set()
    for line, record in enumerate(text.split("\n"), start=1):  # not splitlines: U+2028 may stand inside a JSON string
        if not record.strip():
            continue
        value = _parse_json(decoder, record, source, line)
        place = _place(len(lines), line)
        if not isinstance(value, dict):
            raise InputError(f"{source}: {place} is {brief(value)}: make it an object with {fields[0].name}, ...")
        for field in fields:
            if field.name in value:
                present.add(field.name)
            elif field.required:
                raise InputError(f"{source}: {place}, {field.name}: is missing: add the key")
            columns[field.name].append(value.get(field.name))
        lines.append(line)
    columns = {name: column for name, column in columns.items() if name in present}
    return RawTable(source, columns, {name: name for name in columns}, lines)


def _read_delimited(
    text: str, source: str, fields: Sequence[Field], headerless: Sequence[str], delimiter: str
) -> RawTable:
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # global to the process, so it only ever grows
    first = next(_records(text, source, delimiter, headers=1))[1]
    bare = len(first) == len(headerless) and parse_number(first[-1]) is not None
    names = list(headerless) if bare else _header([cell.strip() for cell in first], source, fields)
    headers = 0 if bare else 1
    positions = {field.name: names.index(field.name) for field in fields if field.name in names}
    columns: dict[str, list[Any]] = {name: [] for name in positions}
    lines = array("q")
    for line, cells in itertools.islice(_records(text, source, delimiter, headers), headers, None):
        if len(cells) != len(first):
            place, count = _place(len(lines), line), f"{len(cells)} cell(s) where the first line has {len(first)}"
            raise InputError(f"{source}: {place} has {count}: put cells that hold {delimiter!r} in double quotes")
        for name, position in positions.items():
            columns[name].append(cells[position])
        lines.append(line)
    if not lines:
        raise InputError(f"{source}: has a header but no rows: add rows")
    return RawTable(source, columns, {name: name for name in columns}, lines, text_cells=True)


def _header(names: list[str], source: str, fields: Sequence[Field]) -> list[str]:
    """The names, once they are known to hold each required field, and no field twice."""
    for field in fields:
        if names.count(field.name) > 1:
            raise InputError(f"{source}: the column {field.name} stands twice in the header: remove one")
        if field.required and field.name not in names:
            raise _missing_column(source, field.name, names)
    return names


def _records(text: str, source: str, delimiter: str, headers: int) -> Iterator[tuple[int, list[str]]]:
    """The line it starts on and the cells of each record but blank lines; `headers` of them come before row 1."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    row = -headers
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            place = _place(row, line) if row >= 0 else f"the header (line {line})"
            # csv's own words would put the delimiter, a tab, into the message
            fault = "a quote is never closed" if "end of data" in str(error) else "text follows a closing quote"
            fix = "quote the whole cell and double each quote inside it"
            raise InputError(f"{source}: {place} is broken ({fault}): {fix}") from None
        if cells:
            yield line, cells
            row += 1


FORMATS: dict[str, Callable[[str, str, Sequence[Field], Sequence[str]], RawTable]] = {
    ".json": _read_json,
    ".jsonl": _read_json_lines,
    ".csv": partial(_read_delimited, delimiter=","),
    ".tsv": partial(_read_delimited, delimiter="\t"),
}
"""Ending of a file's name -> what makes a table of its text. A text format is added here; a binary one, such as
Parquet, would need a reader of bytes beside `read_text`."""
