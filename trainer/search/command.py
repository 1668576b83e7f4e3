"""The commands of an index: `trainer index`, `trainer search`, `trainer duplicates`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from trainer.data.readers import READING_OPTIONS, add_reading_options, reading_from, require_folder_name
from trainer.data.ticket_table import Columns
from trainer.errors import InputError, Stopped
from trainer.system.arguments import Parser, parse_names

TYPES = ("float32", "float16", "int8", "binary")  # `embedding_types.TYPES`, which comes with torch


def index_parser() -> argparse.ArgumentParser:
    """Options of `trainer index`."""
    text = """Embed the tickets of a file into an index for `trainer search` and `trainer duplicates`. Run again, it
embeds only new and changed texts; a run that was stopped goes on where it was."""
    parser = Parser(prog="trainer index", description=text, allow_abbrev=False)
    parser.add_argument("--model", required=True, metavar="DIR|NAME", help="the encoder; an index is of one model")
    parser.add_argument(
        "--tickets", required=True, metavar="FILE", help="CSV, TSV, JSON, XLSX or Parquet, also gzipped"
    )
    parser.add_argument("--output", required=True, type=Path, metavar="INDEX", help="its folder, new or to be updated")
    text = "cut embeddings to so many (default: as the index has them, else the model's width)"
    parser.add_argument("--dims", type=int, metavar="N", help=text)
    text = "how embeddings are kept: 4, 2 or 1 bytes a dim, or a bit (default: as the index has them, else float32)"
    parser.add_argument("--type", choices=TYPES, help=text)
    _add_column_options(parser)
    text = "clean: without markup, mail headers, greetings and signatures (default: as the index has them, else clean)"
    parser.add_argument("--texts", choices=("clean", "raw"), help=text)
    text = "hide e-mail addresses, phone numbers, ids, hosts and names behind a label, also in queries"
    parser.add_argument("--mask", action="store_true", default=None, help=text)
    text = "tickets that are not in the file leave the index (for files that hold all tickets)"
    parser.add_argument("--remove-missing", action="store_true", help=text)
    text = "tickets with one of these values, as in state=Cancelled, leave the index or do not enter it"
    parser.add_argument("--remove", default="", metavar="COLUMN=VALUE,...", help=text)
    return parser


def search_parser() -> Parser:
    """Options of `trainer search`."""
    text = """Find the tickets of an index that are most like a text, or like each ticket of a file (but not that ticket
itself)."""
    parser = Parser(prog="trainer search", description=text, allow_abbrev=False)
    parser.add_argument("--index", required=True, type=Path, metavar="INDEX")
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--text", action="append", metavar="TEXT", help="may be given more than once")
    asked.add_argument("--tickets", metavar="FILE", help="as for trainer index")
    parser.add_argument("--top", type=int, default=5, metavar="K", help="tickets to find (default 5)")
    text = "where the model stands now (default: where it stood when the index was written)"
    parser.add_argument("--model", default="", metavar="DIR|NAME", help=text)
    parser.add_argument("--without-bm25", action="store_true", help="rank by embeddings alone")
    text = "compare all tickets at the full width, not those alone that a prefix finds"
    parser.add_argument("--exact", action="store_true", help=text)
    _add_column_options(parser)
    _add_format(parser)
    return parser


def duplicates_parser() -> argparse.ArgumentParser:
    """Options of `trainer duplicates`."""
    text = """Group the tickets of an index that tell of the same problem: every two of a group reach the threshold."""
    parser = Parser(prog="trainer duplicates", description=text, allow_abbrev=False)
    parser.add_argument("--index", required=True, type=Path, metavar="INDEX")
    threshold = parser.add_mutually_exclusive_group(required=True)
    text = "the lowest threshold that a ticket reaches with at most A others on average"
    threshold.add_argument("--alerts-per-ticket", type=float, metavar="A", help=text)
    threshold.add_argument("--threshold", type=float, metavar="T", help="the lowest cosine of duplicates")
    _add_format(parser)
    return parser


def _add_column_options(parser: argparse.ArgumentParser) -> None:
    text = "the ticket's id (default: number, or another usual name)"
    parser.add_argument("--number-column", default="", metavar="NAME", help=text)
    text = "what it says, title first (default: short_description,description, or other usual names)"
    parser.add_argument("--text-columns", default="", metavar="NAME,...", help=text)
    add_reading_options(parser, columns=False)


def _add_format(parser: argparse.ArgumentParser) -> None:
    text = "a table for people, or a JSON object a line (default: table on a terminal, else jsonl)"
    parser.add_argument(
        "--format", choices=("table", "jsonl"), default="table" if sys.stdout.isatty() else "jsonl", help=text
    )


def _columns(options: argparse.Namespace) -> Columns:
    return Columns(number=options.number_column, texts=parse_names(options.text_columns))


def run_index(options: argparse.Namespace) -> None:
    """Make an index, or bring it up to date."""
    from trainer.search.show import print_update
    from trainer.search.update import IndexRequest, update_index
    from trainer.system.signals import Signals

    require_folder_name(options.output, "--output", "name a folder, as in tickets.index")
    if options.dims is not None and options.dims < 1:
        raise InputError(f"--dims {options.dims}: use 1 or more")
    request = IndexRequest(
        model=options.model,
        tickets=options.tickets,
        folder=options.output,
        columns=_columns(options),
        reading=reading_from(options),
        dims=options.dims,
        type=options.type,
        clean=None if options.texts is None else options.texts == "clean",
        mask=options.mask,
        remove=options.remove,
        remove_missing=options.remove_missing,
    )
    with Signals():
        try:
            update = update_index(request)
        except Stopped:
            raise Stopped("stopped by a signal; the same command goes on with what is not embedded yet") from None
    print_update(update, options.output)


def run_search(options: argparse.Namespace) -> None:
    """Search for texts, or for the tickets of a file."""
    from trainer.search.index import Index
    from trainer.search.show import exactness, print_hits, print_left_out
    from trainer.search.ticket_texts import read_ticket_texts
    from trainer.system.console import console

    if options.text:
        search_parser().refuse(options, ("number_column", "text_columns", *READING_OPTIONS), "for --text")
    index = Index.open(options.index, options.model)
    texts, ids = options.text or [], []
    asked = [{"query": text} for text in texts]
    if options.tickets:
        preparation = index.contents.preparation
        tickets = read_ticket_texts(options.tickets, _columns(options), preparation, reading_from(options))
        texts, ids = tickets.texts, tickets.ids
        asked = [{"ticket": name or f"row {row}"} for name, row in zip(ids, tickets.rows, strict=True)]
        print_left_out(tickets.facts)
    how = {"words": not options.without_bm25, "exact": options.exact, "prepared": bool(options.tickets)}
    print_hits(asked, index.search(texts, options.top, ids=ids, **how), options.format)
    console.print("Search: exact, as asked for" if options.exact else exactness(index.contents), markup=False)


def run_duplicates(options: argparse.Namespace) -> None:
    """Group the duplicates of an index."""
    from trainer.search.duplicates import find_duplicates
    from trainer.search.show import print_duplicates

    found = find_duplicates(options.index, threshold=options.threshold, alerts_per_ticket=options.alerts_per_ticket)
    print_duplicates(found, options.format)
