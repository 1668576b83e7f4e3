"""Tables in XLSX and Parquet: formats that a library reads, where it is installed (the extra `data`).

Both are compressed, so both are bounded before and while they expand. No formula of a workbook is computed and no macro
is run: cells say what the program that saved them last showed.
"""

from __future__ import annotations

import datetime
import io
import itertools
import zipfile
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from trainer.data.delimited import read_rows
from trainer.data.raw_table import Finder, RawTable, table_of_cells
from trainer.data.text_files import check_expansion
from trainer.errors import InputError, first_line

CELL_BYTES = 8  # the least that a cell takes in memory
MAX_COLUMNS = 2000  # read of a sheet
BATCH_ROWS = 1024  # of Parquet at a time, between two looks at what it has become


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
                return read_rows(itertools.chain([first], rows), source, finder, notes, "mend it")
    except InputError:
        raise
    except Exception as error:  # a damaged workbook raises whatever the library stumbled over
        fix = "save it again, or as CSV"
        raise InputError(f"{source}: cannot be read as XLSX ({first_line(error)}): {fix}") from None
    raise InputError(f"{source}: is empty: add rows")


def _rows_of_sheet(sheet: Any, source: str, size: int) -> Iterator[tuple[int, list[str]]]:
    """Number and cells, as text, of the rows that are not blank; all as long as the first."""
    width = cells_read = 0
    for number, row in enumerate(sheet.iter_rows(max_col=MAX_COLUMNS, values_only=True), start=1):
        cells = list(map(_cell_text, row))
        if any(cells):
            width = width or max(position for position, cell in enumerate(cells, start=1) if cell)
            yield number, cells + [""] * (width - len(cells))
        cells_read += len(row)
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


def read_parquet(data: bytes, source: str, finder: Finder) -> RawTable:
    """A table of a Parquet file; no more of it is read than the columns that are wanted. Raises InputError."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise _missing_library(source, "Parquet", "pyarrow") from None
    try:
        file = parquet.ParquetFile(io.BytesIO(data))
        names = list(file.schema_arrow.names)
        found = finder.find(names, source)
        cells: dict[int, list[Any]] = {position: [] for positions in found.values() for position in positions}
        check_expansion(source, file.metadata.num_rows * CELL_BYTES * len(cells), len(data))
        expanded = 0
        for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=[names[position] for position in cells]):
            expanded += batch.nbytes
            check_expansion(source, expanded, len(data))
            for position, column in cells.items():
                values = batch.column(names[position]).to_pylist()
                column += [float(value) if isinstance(value, Decimal) else value for value in values]
    except InputError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError, NotImplementedError) as error:
        raise InputError(f"{source}: cannot be read as Parquet ({first_line(error)}): write it again") from None
    return table_of_cells(source, found, names, cells)


def _missing_library(source: str, what: str, library: str) -> InputError:
    return InputError(f"{source}: is {what}, which {library} reads: pip install {library}, or save it as CSV")
