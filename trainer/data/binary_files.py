"""Tables in XLSX, Parquet and Arrow: formats that a library reads, where it is installed (the extra `data`).

They may be compressed, so they are bounded before and while they expand. No formula of a workbook is computed and no
macro is run: cells say what the program that saved them last showed.
"""

from __future__ import annotations

import datetime
import io
import itertools
import json
import re
import zipfile
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any

from trainer.data.delimited import read_rows
from trainer.data.field_names import name_key
from trainer.data.json_files import NESTED, Record, inside, names_in
from trainer.data.raw_table import LABEL_WORDS, Finder, RawTable, brief, parse_number, table_of_cells
from trainer.data.text_files import check_expansion
from trainer.errors import InputError, first_line

CELL_BYTES = 8  # the least that a cell takes in memory
MAX_COLUMNS = 2000  # read of a sheet
PARQUET = b"PAR1"  # how such a file begins
BATCH_ROWS = 1024  # of Parquet or Arrow at a time, between two looks at what it has become
# What a class of pairs that are not alike is called; or it negates the name of the other class.
UNLIKE = re.compile(
    r"(not|non|no)[\W_].*|(is[\W_]*)?(different|distinct|dissimilar|unlike|unrelated|unequal|irrelevant|negative|other"
    r"|mismatch|contradiction)s?"
)
NEGATIONS = ("not", "non", "no", "un", "dis", "mis", "ir")


def read_workbook(data: bytes, source: str, finder: Finder) -> RawTable:
    """The first sheet with rows of an XLSX workbook. Raises InputError."""
    if b"xl/" not in data:
        raise InputError(f"{source}: is a zip archive and no XLSX workbook: unpack it")
    try:
        import openpyxl
    except ImportError:
        raise _missing_library(source, "XLSX", "openpyxl") from None
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            check_expansion(source, sum(member.file_size for member in archive.infolist()), len(data))
        book = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True, keep_links=False)
        for sheet in book.worksheets:
            sheet.reset_dimensions()  # what the file claims; a claim of a million columns would be filled up
            rows = _rows_of_sheet(sheet, source, len(data))
            if (first := next(rows, None)) is not None:
                notes = (f'the sheet "{sheet.title}"',) if len(book.worksheets) > 1 else ()
                return read_rows(itertools.chain([first], rows), source, finder, notes, fix="")
    except InputError:
        raise
    except Exception as error:  # a damaged workbook raises whatever the library stumbled over
        fix = "save it again, or as CSV"
        raise InputError(f"{source}: cannot be read as XLSX ({first_line(error)}): {fix}") from None
    raise InputError(f"{source}: is empty: add rows")


def _rows_of_sheet(sheet: Any, source: str, size: int) -> Iterator[tuple[int, list[str]]]:
    """Number and cells, as text, of the rows that are not blank; none shorter than the first."""
    width = cells_read = 0
    for number, row in enumerate(sheet.iter_rows(max_col=MAX_COLUMNS, values_only=True), start=1):
        end = max((end for end, value in enumerate(row, start=1) if value is not None), default=0)
        cells = list(map(_cell_text, row[:end]))  # the library fills all rows up to the most columns
        if any(cells):
            width = width or max(position for position, cell in enumerate(cells, start=1) if cell)
            yield number, cells + [""] * (width - len(cells))
            cells_read += width
            check_expansion(source, cells_read * CELL_BYTES, size)


def _cell_text(value: Any) -> str:
    """A cell of a sheet as CSV would have it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    return str(value)


def read_columnar(shards: Sequence[bytes], source: str, finder: Finder) -> RawTable:
    """A table of Parquet files, or of streams of Arrow, one after the other; no more of them is read than the columns
    that are wanted. What stands in objects has a dotted name, as in JSON. Classes are read as their names, but two
    classes of a label as 0 and 1. Raises InputError."""
    is_parquet = all(shard.startswith(PARQUET) for shard in shards)
    notes: tuple[str, ...] = ()
    try:
        import pyarrow
        from pyarrow import ipc, parquet
    except ImportError:
        raise _missing_library(source, "Parquet" if is_parquet else "Arrow", "pyarrow") from None
    size, expanded, rows = sum(map(len, shards)), 0, 0
    names: list[str] = []
    top: list[str] = []  # those of columns; the others stand inside of these
    cells: dict[int, list[Any]] = {}
    try:
        for shard in shards:
            file: Any = parquet.ParquetFile(io.BytesIO(shard)) if is_parquet else ipc.open_stream(shard)
            schema = file.schema_arrow if is_parquet else file.schema
            if not cells:
                top, known = list(schema.names), set(schema.names)
                names = top + [name for name in names_in([_keys_in(schema)]) if name not in known]
                found = finder.find(names, source)
                cells = {position: [] for positions in found.values() for position in positions}
                homes = {position: _home(names[position], top) for position in cells}
                classes, notes = _classes(schema, names, found.get("label", ()), source)
            if list(schema.names) != top:
                raise InputError(f"{source}: its files differ in their columns: save it again")
            if is_parquet:
                check_expansion(source, file.metadata.num_rows * CELL_BYTES * len(cells), size)
            wanted = list(dict.fromkeys(homes.values()))
            batches = file.iter_batches(batch_size=BATCH_ROWS, columns=wanted) if is_parquet else _slices(file, wanted)
            for batch in batches:
                rows += batch.num_rows
                expanded += batch.nbytes
                check_expansion(source, max(expanded, rows * CELL_BYTES * len(cells)), size)
                for position, column in cells.items():
                    name, home = names[position], homes[position]
                    values = batch.column(home).to_pylist()
                    if name != home:
                        values = [inside({home: value}, name) for value in values]
                    column += [_python_value(value, classes.get(position)) for value in values]
    except InputError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, NotImplementedError) as error:
        what = "Parquet" if is_parquet else "Arrow"
        raise InputError(f"{source}: cannot be read as {what} ({first_line(error)}): write it again") from None
    return table_of_cells(source, found, names, cells, notes=notes)


def _keys_in(kind: Any, levels: int = NESTED) -> Record | None:
    """The keys of what a schema, or a type in it, holds as objects, alone or in lists; None where these are none."""
    import pyarrow

    kind = getattr(kind, "value_type", kind)  # of a list
    if levels < 0 or not isinstance(kind, pyarrow.Schema | pyarrow.StructType):
        return None
    return {field.name: _keys_in(field.type, levels - 1) for field in kind}


def _home(name: str, top: Sequence[str]) -> str:
    """The column that holds what a name says: itself, or the one around it."""
    return name if name in top else next(home for home in top if name.startswith(f"{home}."))


def _slices(stream: Any, wanted: list[str]) -> Iterator[Any]:
    """Some columns of a stream of Arrow, a few rows at a time. Raises ValueError where they are not what they say, or
    are of a type that may stand for far more than it holds."""
    import pyarrow

    def is_plain(kind: Any) -> bool:
        is_encoded = pyarrow.types.is_dictionary(kind) or pyarrow.types.is_run_end_encoded(kind) or "view" in str(kind)
        return not is_encoded and all(is_plain(kind.field(i).type) for i in range(kind.num_fields))

    for batch in stream:
        batch = batch.select(wanted)
        for field in batch.schema:
            if not is_plain(field.type):
                raise ValueError(f"{field.name} is of the type {str(field.type)[:40]}")
        batch.validate(full=True)  # offsets that point elsewhere would be followed
        for start in range(0, batch.num_rows, BATCH_ROWS):
            yield batch.slice(start, BATCH_ROWS)


def _classes(
    schema: Any, names: Sequence[str], label: Sequence[int], source: str
) -> tuple[dict[int, list[str]], tuple[str, ...]]:
    """Position of a column of classes -> their names, as the library `datasets` notes them in a schema; and in words
    what is left out: a label of two classes that are no words for yes and no, which are 0 and 1.

    Raises InputError for a label of more, and where 1 is by its name the class of those that are not alike.
    """
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        noted = {
            name: list(map(str, feature["names"]))
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}, ()
    classes, notes = {}, []
    for position, name in enumerate(names):
        if name not in noted:
            continue
        words = noted[name]
        shown = list(map(brief, words[:5]))
        if position not in label or all(map(_is_label, words)):
            classes[position] = words
        elif len(words) != 2:
            fix = "write 1 for pairs that are alike and 0 for others, or a score"
            raise InputError(f"{source}: {name} has {len(words)} classes ({', '.join(shown)}): {fix}")
        elif _is_inverted(*words):
            fix = f"write the labels anew, 1 for {shown[0]} and 0 for {shown[1]}"
            raise InputError(
                f"{source}: {name} has {shown[0]} as class 0, {shown[1]} as class 1, but 1 is alike: {fix}"
            )
        else:
            notes.append(f"{name}: {shown[0]} is 0, {shown[1]} is 1")
    return classes, tuple(notes)


def _is_inverted(zero: str, one: str) -> bool:
    """Whether of two classes the second is by its name that of pairs that are not alike, and the first is not."""
    zero, one = zero.strip().lower(), one.strip().lower()
    negated = {negation + name_key(zero) for negation in NEGATIONS}
    return not UNLIKE.fullmatch(zero) and (UNLIKE.fullmatch(one) is not None or name_key(one) in negated)


def _is_label(word: str) -> bool:
    """Whether a class is called yes or no or the like, or by a number."""
    return word.strip().lower() in LABEL_WORDS or parse_number(word) is not None


def _python_value(value: Any, classes: Sequence[str] | None) -> Any:
    """A cell: of classes the name, None where it has none; decimals as floats."""
    if classes is not None:
        return classes[value] if isinstance(value, int) and 0 <= value < len(classes) else None
    return float(value) if isinstance(value, Decimal) else value


def _missing_library(source: str, what: str, library: str) -> InputError:
    return InputError(f"{source}: is {what}, which {library} reads: pip install {library}, or save it as CSV")
