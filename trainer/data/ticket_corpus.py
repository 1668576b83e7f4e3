"""A corpus to search from a file of raw tickets: which of them are known duplicates, and which may search."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from trainer.data.dates import parse_dates
from trainer.data.identifiers import clean_id, id_key
from trainer.data.raw_table import RawTable
from trainer.data.readers import Reading
from trainer.data.search_corpus import SearchCorpus, build_corpus, met_in_training
from trainer.data.ticket_table import (
    Columns,
    LinkedTickets,
    column_and_value,
    join_cells,
    read_linked_tickets,
    read_ticket_table,
    rows_of_value,
    text_cells,
)
from trainer.errors import InputError


def corpus_of_tickets(
    path: str | Path,
    columns: Columns,
    queries: str = "",
    reading: Reading | None = None,
    trained: Collection[str] = (),
) -> SearchCorpus:
    """Read a corpus of tickets, of any format that `trainer/data/README.md` lists, and its known duplicates.

    Rows without any text, and further rows of a ticket number, are left out; otherwise all stay, as they are.

    Args:
        columns: a duplicate or a cluster column is needed. With a date column only earlier tickets are candidates.
        queries: "COLUMN=VALUE": only tickets with this value search, among all; "": all that have a right answer.
        trained: texts of training pairs; tickets that have one of them, or a duplicate that has, do not search.

    Raises:
        InputError: bad file or cells, a column that is not there, links that tie nothing, no query with an answer, or
            none that was not trained on.
    """
    part, value = column_and_value(queries, "--queries")
    if not (columns.duplicate_of or columns.cluster):
        raise InputError(
            f"{path}: which tickets are the same problem? Name the column that says it: "
            f"{columns.options['duplicate_of']} (the number of the ticket that a ticket duplicates) or "
            f"{columns.options['cluster']} (a name that such tickets share)"
        )
    read = read_linked_tickets(path, replace(columns, part=part, category=None), reading, most_miss=1.0)
    raw, columns, links = read.raw, read.columns, read.links
    cells = text_cells(raw, columns.texts)
    texts = [join_cells(each)[0] for each in cells]
    repeated = _repeated(read.numbers)
    kept = np.array([row for row, text in enumerate(texts) if text and not repeated[row]], dtype=np.int64)
    if not len(kept):
        raise _without_text(raw, columns)
    dates = None
    if columns.date:
        dates = parse_dates(raw, columns.date)[kept]
        by_time = np.argsort(dates, kind="stable")
        kept, dates = kept[by_time], dates[by_time]
    asking = np.ones(len(kept), dtype=np.bool_)
    if columns.part:
        asking = rows_of_value(raw, columns.part, value)[kept]
    facts = {"read": len(raw), "repeated_numbers": sum(repeated), "without_text": sum(not text for text in texts)}
    facts |= links.facts
    leaks = met_in_training(links.clusters, cells, trained)[kept]
    kept_texts, clusters = [texts[row] for row in kept], links.clusters[kept]
    return build_corpus(raw.source, kept_texts, clusters, asking, leaks, dates, facts, _nothing_tied(read))


def read_texts(path: str | Path, columns: Columns, reading: Reading | None = None) -> list[str]:
    """The texts of a file of tickets, its text columns joined; rows without any are left out.

    Raises InputError as `corpus_of_tickets` does.
    """
    raw, columns = read_ticket_table(path, replace(columns, category=None), reading)
    if texts := [text for text in (join_cells(each)[0] for each in text_cells(raw, columns.texts)) if text]:
        return texts
    raise _without_text(raw, columns)


def _repeated(numbers: Sequence[str]) -> list[bool]:
    """[R] whether an earlier row has the same ticket number."""
    keys = [id_key(number) for number in numbers]
    first = {key: row for row, key in reversed(list(enumerate(keys)))}
    return [bool(key) and first[key] != row for row, key in enumerate(keys)]


def _nothing_tied(tickets: LinkedTickets) -> dict[str, str]:
    """What to say of the columns where no ticket has a right answer: "links", and "date"."""
    columns, facts = tickets.columns, tickets.links.facts
    filled = [
        f"{column} ({sum(bool(clean_id(cell)) for cell in cells)} of {len(cells)} cells filled)"
        for column, cells in tickets.link_cells.items()
    ]
    itself = facts["links_to_themselves"]
    own = f"; {itself} of {facts['links']} links name the ticket itself" if itself else ""
    return {
        "links": f"check {' and '.join(filled)}{own}",
        "date": f"check the column of dates, {columns.date}, or leave it out ({columns.options['date']})",
    }


def _without_text(raw: RawTable, columns: Columns) -> InputError:
    return InputError(f"{raw.source}: no row has a text: name the columns with {columns.options['texts']}")
