"""Tables in JSON: a record a line, a list of records (also inside an object, as REST interfaces answer), or columns."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trainer.data.raw_table import Finder, RawTable, brief, gather, name_fields, place_of
from trainer.errors import InputError

# Python refuses to parse integers of more than 4300 digits (its quadratic cost); no field needs a tenth of that.
MAX_INT_DIGITS = 400
ENVELOPES = 6  # objects around a list of records
NESTED = 3  # levels of objects in a record whose keys have dotted names

Record = dict[str, Any]


def read_json(text: str, source: str, finder: Finder, lines: bool) -> RawTable:
    """A table of JSON, or of a JSON value a line where `lines`. Raises InputError."""
    if lines:
        numbers = array("q")
        records = []
        for line, record in _records_of_lines(text, source):
            numbers.append(line)
            records.append(record)
        return table_of_records(records, source, finder, numbers)
    value = _parse(_decoder(), text, source)
    if isinstance(value, list):
        return table_of_records(_objects(value, source), source, finder, None)
    if not isinstance(value, dict):
        raise InputError(f"{source}: the top level is {brief(value)}: make it a list of objects, or an object of lists")
    lists = {} if _is_columns(value, source, finder) else dict(_lists_of_objects(value))
    if not lists and _is_rows_by_name(value) and not _is_columns(value, source, finder):
        return table_of_records(list(value.values()), source, finder, None)
    if not lists:
        return table_of_columns(value, source, finder)
    name = _choose(lists, source, finder)
    table = table_of_records(_objects(lists[name], source), source, finder, None)
    return RawTable(source, table.columns, table.names, notes=(f'the list "{name}"',))


def table_of_records(
    records: Sequence[Record], source: str, finder: Finder, lines: Sequence[int] | None, notes: tuple[str, ...] = ()
) -> RawTable:
    """A table of objects; a key that a record lacks is None there. Raises InputError: no records, no such column."""
    if not records:
        raise InputError(f"{source}: holds no records: add rows")
    names = _names(records)
    found = finder.find(names, source)
    columns = {
        field: [gather(_Cells(record, names), positions) for record in records] for field, positions in found.items()
    }
    return RawTable(source, columns, name_fields(found, names), lines, notes=notes)


def table_of_columns(value: Mapping[str, Any], source: str, finder: Finder) -> RawTable:
    """A table of columns by name, each a list, or (as pandas writes them) all objects with the same row names.

    Raises InputError: a column is missing or no list, they differ in length, no rows.
    """
    names = list(map(str, value))
    found = finder.find(names, source)
    chosen = {names[position]: value[names[position]] for positions in found.values() for position in positions}
    if all(isinstance(column, dict) for column in chosen.values()) and len(set(map(tuple, chosen.values()))) == 1:
        chosen = {name: list(column.values()) for name, column in chosen.items()}
    for name, column in chosen.items():
        if not isinstance(column, list):
            raise InputError(f"{source}: {name} is {brief(column)}: make it a list, one value a row")
    lengths = {name: len(column) for name, column in chosen.items()}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise InputError(f"{source}: the columns differ in length ({counts}): give each one value a row")
    if not any(lengths.values()):
        raise InputError(f"{source}: has columns but no rows: add rows")
    rows = range(next(iter(lengths.values())))
    columns = {
        field: chosen[names[positions[0]]]
        if len(positions) == 1
        else [gather([chosen[names[position]][row] for position in positions], range(len(positions))) for row in rows]
        for field, positions in found.items()
    }
    return RawTable(source, columns, name_fields(found, names))


def _is_rows_by_name(value: Record) -> bool:
    return bool(value) and all(isinstance(record, dict) for record in value.values())


def _is_columns(value: Record, source: str, finder: Finder) -> bool:
    """Whether an object has the fields as columns."""
    names = list(value)
    try:
        found = finder.find(names, source)
    except InputError:  # then they are in a list inside, or the caller meets it again
        return False
    return all(isinstance(value[names[position]], list | dict) for chosen in found.values() for position in chosen)


class _Cells(Sequence[Any]):
    """A record as a row of cells: those of its own keys, and of keys of objects in it by their dotted names."""

    def __init__(self, record: Record, names: Sequence[str]) -> None:
        self.record, self.names = record, names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, position: Any) -> Any:
        return _inside(self.record, self.names[position])


def _inside(value: Any, name: str) -> Any:
    """What a dotted name says of a value: of an object its key, which may hold dots itself ("System.Title"), of a list
    what its objects say; None where there is nothing of the name."""
    if isinstance(value, list):
        said = [_inside(inner, name) for inner in value]
        return [cell for one in said for cell in (one if isinstance(one, list) else [one]) if cell is not None] or None
    if not isinstance(value, dict):
        return None
    if name in value:
        return value[name]
    inside = (_inside(value[key], name[len(key) + 1 :]) for key in value if name.startswith(f"{key}."))
    return next((said for said in inside if said is not None), None)


def _names(records: Sequence[Record]) -> list[str]:
    """All keys, in order of appearance; those of objects in a record, or in its lists, come last, as outer.inner, the
    outermost first."""
    plain: dict[str, None] = {}
    nested: dict[str, None] = {}
    for record in records:
        plain.update(dict.fromkeys(record))
        for key, value in record.items():
            nested.update(dict.fromkeys(_dotted(key, value, NESTED)))
    return [*plain, *sorted((name for name in nested if name not in plain), key=lambda name: name.count("."))]


def _dotted(outer: str, value: Any, levels: int) -> Iterator[str]:
    if isinstance(value, list):
        for inner in value:
            if isinstance(inner, dict):
                yield from _dotted(outer, inner, levels)
    elif isinstance(value, dict) and levels:
        for key, inner in value.items():
            yield f"{outer}.{key}"
            yield from _dotted(f"{outer}.{key}", inner, levels - 1)


def _lists_of_objects(value: Record, outer: str = "", levels: int = ENVELOPES) -> Iterator[tuple[str, list[Any]]]:
    """The lists of objects in an object, by their dotted names; not those inside of such lists."""
    for key, inner in value.items():
        name = f"{outer}{key}"
        if isinstance(inner, list) and inner and isinstance(inner[0], dict):
            yield name, inner
        elif isinstance(inner, dict) and levels > 1:
            yield from _lists_of_objects(inner, f"{name}.", levels - 1)


def _choose(lists: Mapping[str, list[Any]], source: str, finder: Finder) -> str:
    """The name of the list that has the fields, of one at least."""
    if len(lists) == 1:
        return next(iter(lists))
    fitting = []
    for name, value in lists.items():
        try:
            finder.find(_names(_objects(value, source)), source)
            fitting.append(name)
        except InputError:  # of a list that is not meant: users beside tickets
            continue
    if len(fitting) != 1:
        named = ", ".join(map(brief, list(lists)[:12]))
        which = "several of them have" if fitting else "none of them has"
        raise InputError(f"{source}: holds several lists ({named}), and {which} the columns: keep one of them")
    return fitting[0]


def _objects(value: list[Any], source: str) -> list[Record]:
    for row, record in enumerate(value):
        if not isinstance(record, dict):
            raise InputError(f"{source}: row {row + 1} is {brief(record)}: make it an object, one key a column")
    return value


def _records_of_lines(text: str, source: str) -> Iterator[tuple[int, Record]]:
    decoder = _decoder()
    row = 0
    for line, record in enumerate(text.split("\n"), start=1):  # not splitlines: U+2028 may stand inside a JSON string
        if record.strip():
            value = _parse(decoder, record, source, line)
            row += 1
            if not isinstance(value, dict):
                place = place_of([row], line)
                raise InputError(f"{source}: {place} is {brief(value)}: make it an object, one key a column")
            yield line, value


def has_lines(text: str) -> bool:
    """Whether the first line that is not blank is a whole JSON object or list, and more follows."""
    start = len(text) - len(text.lstrip())
    end = text.find("\n", start)
    if end < 0 or not text[start:end].rstrip().endswith(("}", "]")) or text[end:].isspace():
        return False
    try:
        return isinstance(_decoder().decode(text[start:end]), dict | list)
    except (ValueError, RecursionError, _DuplicateKey):
        return False


def _parse_int(digits: str) -> int | float:
    return int(digits) if len(digits) <= MAX_INT_DIGITS else float(digits)


def _parse(decoder: json.JSONDecoder, text: str, source: str, line: int | None = None) -> Any:
    """One JSON value; `line` is where `text` stands in the file when it is a line of it."""
    on_line = f" on line {line}" if line else ""
    try:
        return decoder.decode(text)
    except json.JSONDecodeError as error:
        place = f"line {line or error.lineno}, column {error.colno}"
        raise InputError(f"{source}: bad JSON at {place} ({error.msg}): mend it there") from None
    except RecursionError:
        raise InputError(f"{source}: JSON nested too deeply{on_line}: flatten it") from None
    except _DuplicateKey as error:
        key = brief(error.args[0])
        raise InputError(f"{source}: the key {key} stands twice in one object{on_line}: remove one") from None


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


def _decoder() -> json.JSONDecoder:
    return json.JSONDecoder(object_pairs_hook=_unique_keys, parse_int=_parse_int)
