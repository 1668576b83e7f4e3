"""Files of records, read whole, by what they are: JSON, CSV and their kin, XLSX and Parquet, also gzipped; and folders
of datasets.

Whatever the bytes, the result is a `RawTable` or an `InputError`, in time linear in the (expanded) size of the file.
Only the shape is judged here: every row has every required field. What a field may hold is for the caller to say.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trainer.data.binary_files import PARQUET, read_columnar, read_workbook
from trainer.data.dataset_folders import shards_of
from trainer.data.delimited import read_delimited
from trainer.data.json_files import read_json
from trainer.data.raw_table import Finder, RawTable, brief
from trainer.data.text_files import decode, read_bytes
from trainer.errors import InputError
from trainer.system.console import console

LABEL_OPTIONS = ("label_scale", "positive_threshold")
READING_OPTIONS = ("encoding", "separator")
PAIR_OPTIONS = (*LABEL_OPTIONS, "columns")  # that say nothing of any file but pairs
LINES = (".jsonl", ".ndjson")
JSON = (".json", *LINES)
BINARY = (".xlsx", ".parquet")  # which are told by their bytes
SEPARATORS = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".txt": ","}  # that go without saying
SAID_CHARACTERS = 400  # of how a file was read; names of columns may be of any length
# How files begin that are not what their name says, and what to do about them.
FOREIGN: tuple[tuple[bytes | tuple[bytes, ...], str], ...] = (
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "is an old Excel workbook: save it as .xlsx or CSV"),
    (b"<?xml", "is XML: export it as CSV or JSON"),
    ((b"<!doctype", b"<html", b"<table"), "is a web page: export the table as CSV"),
    (b"%pdf", "is a PDF: export the table as CSV"),
    (b"sqlite format 3\0", "is an SQLite database: export the table as CSV"),
)
# What no CSV begins with, whatever its name says.
JSON_START = re.compile(r'\s*(\{\s*"|\[\s*\{)')


@dataclass(frozen=True)
class Reading:
    """How to read a file where that is not to be told by the file itself."""

    encoding: str = ""
    """Of text files without a mark, as Python names it ("cp1252"); "" is told by the bytes, as is JSON in UTF-8."""
    separator: str = ""
    """Between the cells of a delimited file, one character or "tab"; "" is told by the first row."""
    columns: tuple[str, ...] = ()
    """What a pair file calls its fields, as in ("text1=Title", "label=same"); () goes by the usual names."""


def add_reading_options(parser: argparse._ActionsContainer, columns: bool = True) -> None:
    """Add the options that make a `Reading`: --encoding, --separator and, for pairs, --columns."""
    text = "of text files, but those with a mark and JSON in UTF-8 (default: told by the bytes)"
    parser.add_argument("--encoding", default="", metavar="NAME", help=text)
    text = "between the cells of text files: a character, or tab (default: told by the first row)"
    parser.add_argument("--separator", default="", metavar="CHARACTER", help=text)
    if columns:
        text = "what pair files call their fields, as in text1=Title label=same (default: the usual names)"
        parser.add_argument("--columns", nargs="+", action="extend", default=[], metavar="FIELD=COLUMN", help=text)


def add_label_options(parser: argparse._ActionsContainer) -> None:
    """Add the options that say what the labels of pair files mean: --label-scale and --positive-threshold."""
    text = "labels of pairs run from 0 to this (default 1)"
    parser.add_argument("--label-scale", type=float, default=1.0, metavar="S", help=text)
    text = "labels of pairs from here on are positive (default: half of the scale)"
    parser.add_argument("--positive-threshold", type=float, metavar="T", help=text)


def reading_from(options: argparse.Namespace) -> Reading:
    """The `Reading` of parsed options."""
    return Reading(options.encoding, options.separator, tuple(getattr(options, "columns", ())))


def require_folder_name(folder: Path, option: str, fix: str) -> None:
    """Raise InputError where a folder that is to be made is called as a file of rows is: such a file is then looked
    for there."""
    if folder.suffix.lower() in (*JSON, *SEPARATORS, *BINARY, ".gz") and not folder.is_dir():
        raise InputError(f"{option} {folder}: would be a folder, called as a file is: {fix}")


def read_table(path: str | Path, finder: Finder, reading: Reading | None = None) -> RawTable:
    """Read the fields that `finder` finds in the file at `path`; other columns and keys are ignored. How it was read is
    said in one line, where that is not the plain case.

    Raises InputError naming the file, the row or line, and the field: file missing, not regular, empty, in no encoding
    or format that can be told; damaged or expanding beyond bounds; broken JSON or CSV; missing or ragged columns.
    """
    path, reading = Path(path), reading or Reading()
    source, ending = str(path), Path(path.name.lower().removesuffix(".gz")).suffix
    shards = [read_bytes(shard) for shard in shards_of(path) or [path]]
    data = shards[0]
    if len(shards) > 1 or path.is_dir() or data.startswith(PARQUET):
        table = read_columnar(shards, source, finder)
    elif data.startswith(b"PK\x03\x04"):
        table = read_workbook(data, source, finder)
    else:
        table = _read_text(data, source, ending, finder, reading)
    _say_reading(table, *finder.describe(table.names))
    return table


def _read_text(data: bytes, source: str, ending: str, finder: Finder, reading: Reading) -> RawTable:
    beginning = data[:64].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for start, problem in FOREIGN:
        if beginning.startswith(start):
            raise InputError(f"{source}: {problem}")
    is_json = ending in JSON or JSON_START.match(beginning.decode("latin-1")) is not None
    text, encoding = decode(data, source, reading.encoding, is_json)
    if is_json or JSON_START.match(text):
        table = read_json(text, source, finder, by_lines=ending in LINES)
    elif ending in SEPARATORS:
        table = read_delimited(text, source, finder, reading.separator, SEPARATORS[ending])
    elif ending in BINARY:
        raise InputError(f"{source}: is named {ending} and holds something else: save it anew, or rename it")
    else:
        known = ", ".join((*JSON, *SEPARATORS, *BINARY))
        raise InputError(f"{source}: unknown format {brief(ending)}: use {known}, or one of these with .gz")
    return replace(table, notes=(encoding, *table.notes)) if encoding != "utf-8" or table.notes else table


def _say_reading(table: RawTable, columns: Sequence[str], remarks: Sequence[str]) -> None:
    """Say in one line how a file was read, where that is not the plain case."""
    notes = (*table.notes, *columns)
    if said := [*([f"read as {', '.join(notes)}"] if notes else []), *remarks]:
        line = f"{table.source}: {'; '.join(said)}"[: len(table.source) + SAID_CHARACTERS]
        # Names of columns come from the file: none may command the terminal.
        console.print("".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in line), markup=False)
