"""Tables in JSON: a record a line, a list of records (also inside an object, as REST interfaces answer), or columns."""

from __future__ import annotations

import functools
import itertools
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from trainer.data.raw_table import Finder, RawTable, brief, finds, place_of, table_of_cells
from trainer.errors import InputError

# Python refuses to parse integers of more than 4300 digits (its quadratic cost); no field needs a tenth of that.
MAX_INT_DIGITS = 400
ENVELOPES = 6  # objects around a list of records
NESTED = 3  # levels of objects in a record whose keys have dotted names

Record = dict[str, Any]
T = TypeVar("T")


def read_json(text: str, source: str, finder: Finder, by_lines: bool) -> RawTable:
    """A table of a JSON value, or of an object a line: where more follows a first line that is a whole value, or where
    the file's name says so (`by_lines`) and its one line is an object. Raises InputError."""
    decoder = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_int=_parse_int)
    start = len(text) - len(text.lstrip())
    value, end = _parse(lambda: decoder.raw_decode(text, start), source)
    more = bool(text[end:].strip())
    if text.find("\n", start, end) < 0 and (more or (by_lines and isinstance(value, dict))):
        return _table_of_lines(text, source, finder, decoder)
    if more:
        _parse(lambda: decoder.decode(text), source)  # which says where the rest begins
    if isinstance(value, list):
        return _table_of_records(value, source, finder)
    if not isinstance(value, dict):
        raise InputError(f"{source}: the top level is {brief(value)}: make it a list of objects, or an object of lists")
    names = list(value)
    found = set(itertools.chain.from_iterable(finds(finder, names, source).values()))
    if found and all(isinstance(value[names[position]], list | dict) for position in found):
        return table_of_columns(value, source, finder)
    if lists := dict(_lists_of_objects(value)):
        name = _choose(lists, source, finder)
        table = _table_of_records(lists[name], source, finder)
        return replace(table, notes=(f'the list "{name}"', *table.notes))
    if value and all(isinstance(record, dict) for record in value.values()):  # records by the names of rows
        return _table_of_records(list(value.values()), source, finder)
    return table_of_columns(value, source, finder)


def _table_of_lines(text: str, source: str, finder: Finder, decoder: json.JSONDecoder) -> RawTable:
    lines = array("q")
    records = []
    for line, record in enumerate(text.split("\n"), start=1):  # not splitlines: U+2028 may stand inside a JSON string
        if record.strip():
            value = _parse(functools.partial(decoder.decode, record), source, line)
            lines.append(line)
            records.append(value)
    return _table_of_records(records, source, finder, lines)


def _table_of_records(records: list[Any], source: str, finder: Finder, lines: Sequence[int] | None = None) -> RawTable:
    """A table of objects; a key that a record lacks is None there. Raises InputError: no records, no such column."""
    for row, record in enumerate(records):
        if not isinstance(record, dict):
            place = place_of([row + 1], lines[row] if lines else None)
            raise InputError(f"{source}: {place} is {brief(record)}: make it an object, one key a column")
    if not records:
        raise InputError(f"{source}: holds no records: add rows")
    names = names_in(records)
    found = finder.find(names, source)
    positions = set(itertools.chain.from_iterable(found.values()))
    cells = {position: [inside(record, names[position]) for record in records] for position in positions}
    notes = _misspelt(records, [names[position] for position in cells])
    return table_of_cells(source, found, names, cells, lines, tuple(notes))


def _misspelt(records: list[Any], read: list[str]) -> Iterator[str]:
    """In words, how many records lack a key that is read, and have one that no record with it has and nobody reads."""
    shapes = Counter(map(frozenset, records))  # many records, few of these
    known = {*read, *(name.split(".", 1)[0] for name in read)}
    for name in read:
        if beside := [keys for keys in shapes if name in keys]:
            usual = known.union(*beside)
            strange = {keys: keys - usual for keys in shapes if name not in keys and not keys <= usual}
            if rows := sum(shapes[keys] for keys in strange):
                key = min(itertools.chain.from_iterable(strange.values()))
                yield f"{rows} row{'s' * (rows > 1)} without {brief(name)} ({brief(key)} there is not read)"


def table_of_columns(value: Mapping[str, Any], source: str, finder: Finder) -> RawTable:
    """A table of columns by name, each a list, or (as pandas writes them) all objects with the same row names.

    Raises InputError: a column is missing or no list, they differ in length, no rows.
    """
    names = list(value)
    found = finder.find(names, source)
    cells = {position: value[names[position]] for positions in found.values() for position in positions}
    if all(isinstance(column, dict) for column in cells.values()) and len(set(map(tuple, cells.values()))) == 1:
        cells = {position: list(column.values()) for position, column in cells.items()}
    for position, column in cells.items():
        if not isinstance(column, list):
            raise InputError(f"{source}: {names[position]} is {brief(column)}: make it a list, one value a row")
    if len(set(map(len, cells.values()))) > 1:
        counts = ", ".join(f"{names[position]} {len(column)}" for position, column in cells.items())
        raise InputError(f"{source}: the columns differ in length ({counts}): give each one value a row")
    return table_of_cells(source, found, names, cells)


def inside(value: Any, name: str) -> Any:
    """What a dotted name says of a value: of an object its key, which may hold dots itself ("System.Title"), of a list
    what its objects say; None where there is nothing of the name."""
    if isinstance(value, list):
        said = [inside(inner, name) for inner in value]
        return [cell for one in said for cell in (one if isinstance(one, list) else [one]) if cell is not None] or None
    if not isinstance(value, dict):
        return None
    if name in value:
        return value[name]
    parts = (inside(value[key], name[len(key) + 1 :]) for key in value if name.startswith(f"{key}."))
    return next((said for said in parts if said is not None), None)


def names_in(records: list[Any]) -> list[str]:
    """All keys, in order of appearance; those of objects in a record, or in its lists, come last, as outer.inner, the
    outermost first."""
    depths: dict[str, int] = {}

    def add(value: Any, outer: str, depth: int) -> None:
        for inner in value if isinstance(value, list) else [value]:
            for key, cell in inner.items() if isinstance(inner, dict) else ():
                name = outer + key
                depths[name] = min(depth, depths.get(name, depth))
                if depth < NESTED and isinstance(cell, list | dict):
                    add(cell, f"{name}.", depth + 1)

    add(records, "", 0)
    return sorted(depths, key=depths.__getitem__)


def _lists_of_objects(value: Record, outer: str = "", levels: int = ENVELOPES) -> Iterator[tuple[str, list[Any]]]:
    """The lists of objects in an object, by their dotted names; not those inside of such lists."""
    for key, inner in value.items():
        name = f"{outer}{key}"
        if isinstance(inner, list) and inner and isinstance(inner[0], dict):
            yield name, inner
        elif isinstance(inner, dict) and levels > 1:
            yield from _lists_of_objects(inner, f"{name}.", levels - 1)


def _choose(lists: Mapping[str, list[Any]], source: str, finder: Finder) -> str:
    """The name of the only list, else of the only one that has the fields (tickets beside users)."""
    fitting = [name for name, value in lists.items() if len(lists) == 1 or finds(finder, names_in(value), source)]
    if len(fitting) != 1:
        named = ", ".join(map(brief, list(lists)[:12]))
        which = "several of them have" if fitting else "none of them has"
        raise InputError(f"{source}: holds several lists ({named}), and {which} the columns: keep one of them")
    return fitting[0]


def _parse(parse: Callable[[], T], source: str, line: int | None = None) -> T:
    """What `parse` makes of JSON; `line`: where that stands in the file when it is a line of it. Raises InputError."""
    on_line = f" on line {line}" if line else ""
    try:
        return parse()
    except json.JSONDecodeError as error:
        place = f"line {line or error.lineno}, column {error.colno}"
        raise InputError(f"{source}: bad JSON at {place} ({error.msg}): mend it there") from None
    except RecursionError:
        raise InputError(f"{source}: JSON nested too deeply{on_line}: flatten it") from None
    except KeyError as error:  # of `_unique_keys`
        key = brief(error.args[0])
        raise InputError(f"{source}: the key {key} stands twice in one object{on_line}: remove one") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object. Raises KeyError for a key that stands twice, of which `json` would keep the last without a word."""
    result = dict(pairs)
    if len(result) < len(pairs):
        raise KeyError(Counter(key for key, _ in pairs).most_common(1)[0][0])
    return result


def _parse_int(digits: str) -> int | float:
    return int(digits) if len(digits) <= MAX_INT_DIGITS else float(digits)
