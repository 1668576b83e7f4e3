"""A corpus to search: texts, those that have known others of their kind, and who is a candidate for whom.

Legend: U texts, Q queries.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from trainer.data.identifiers import clean_id, id_key, link_rows
from trainer.data.pairs import PairTable
from trainer.data.raw_table import RawTable, brief, parse_number
from trainer.data.readers import Reading
from trainer.data.split import connect
from trainer.data.ticket_table import Columns, ids_of_column, join_cells, read_ticket_table, text_of_cell, texts_of_cell
from trainer.errors import InputError
from trainer.text.canonical import canonical_form

Int = NDArray[np.int64]

# Day first and month first can be told apart only where one of them does not fit some row.
DATE_FORMATS = tuple(
    day + time
    for day in ("%d.%m.%Y", "%Y/%m/%d", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y", "%d %b %Y", "%b %d, %Y")
    for time in ("", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p")
)


@dataclass(frozen=True, eq=False)
class SearchCorpus:
    """Who searches for what among whom."""

    source: str
    texts: list[str]
    """[U] ordered by time where dates are known."""
    queries: Int
    """[Q] which of the texts search: those with a right answer."""
    clusters: Int
    """[Q] number of the cluster of known duplicates of each query."""
    relevant: csr_matrix
    """[Q, U] True for the right answers: others of the cluster, no copies, earlier where dates are known."""
    excluded: csr_matrix
    """[Q, U] True for the query itself and its copies."""
    limits: Int | None
    """[Q] so many texts from the first on are earlier than the query; None without dates."""
    facts: dict[str, int]
    """Counts: what was read, left out, linked."""


def corpus_of_tickets(
    path: str | Path, columns: Columns, queries: str = "", reading: Reading | None = None
) -> SearchCorpus:
    """Read a corpus of tickets, of any format that `trainer/data/README.md` lists, and its known duplicates.

    Rows without any text, and further rows of a ticket number, are left out; otherwise all stay, as they are.

    Args:
        columns: a duplicate or a cluster column is needed. With a date column only earlier tickets are candidates.
        queries: "COLUMN=VALUE": only tickets with this value search, among all; "": all that have a right answer.

    Raises:
        InputError: bad file or cells, a column that is not there, links that tie nothing, no query with an answer.
    """
    part, equals, value = queries.partition("=")
    if queries and not (part and equals):
        raise InputError(f"--queries {queries}: write COLUMN=VALUE")
    if not (columns.duplicate_of or columns.cluster):
        raise InputError(
            f"{path}: which tickets are the same problem? Name the column that says it: --duplicate-column (the number "
            "of the ticket that a ticket duplicates) or --cluster-column (a name that such tickets share)"
        )
    raw, columns = read_ticket_table(path, Columns(**{**vars(columns), "part": part or None}), reading)
    rows = range(len(raw))
    numbers = [clean_id(cell) for cell in ids_of_column(raw, columns.number or None) or [""] * len(raw)]
    links = link_rows(
        raw.source, numbers, ids_of_column(raw, columns.duplicate_of), ids_of_column(raw, columns.cluster)
    )
    texts = [join_cells(["\n".join(texts_of_cell(raw, name, row)) for name in columns.texts])[0] for row in rows]
    keys = [id_key(number) for number in numbers]
    first = {key: row for row, key in reversed(list(enumerate(keys)))}
    repeated = [bool(keys[row]) and first[keys[row]] != row for row in rows]
    kept = np.array([row for row in rows if texts[row] and not repeated[row]], dtype=np.int64)
    if not len(kept):
        raise InputError(f"{raw.source}: no row has a text: name the columns with --text-columns")
    dates = None
    if columns.date:
        dates = parse_dates(raw, columns.date)[kept]
        by_time = np.argsort(dates, kind="stable")
        kept, dates = kept[by_time], dates[by_time]
    asking = np.ones(len(kept), dtype=np.bool_)
    if part and columns.part:
        asking = np.array([text_of_cell(raw, columns.part, row) == value.strip() for row in kept.tolist()])
        if not asking.any():
            seen = Counter(text_of_cell(raw, columns.part, row) for row in kept.tolist()).most_common(5)
            listed = ", ".join(brief(name) for name, _ in seen)
            raise InputError(f"{raw.source}: no row has {columns.part} = {brief(value)}; it has {listed}")
    facts = {"read": len(raw), "repeated_numbers": sum(repeated), "without_text": sum(not text for text in texts)}
    return _corpus(raw.source, [texts[row] for row in kept], links.clusters[kept], asking, dates, facts | links.facts)


def corpus_of_pairs(table: PairTable, others: Sequence[str] = (), source: str = "") -> SearchCorpus:
    """A corpus of a table's texts and of `others`; copies of a text count as one.

    Texts that positive pairs connect, directly or through others, are of one kind.

    Raises:
        InputError: no positive pair.
    """
    texts: dict[str, str] = {}
    for text in (*table.texts, *others):
        texts.setdefault(canonical_form(text), text)
    place = {form: row for row, form in enumerate(texts)}
    of_text = np.array([place[canonical_form(text)] for text in table.texts], dtype=np.int64)
    positive = table.label
    clusters = connect(of_text[table.text1[positive]], of_text[table.text2[positive]], len(texts)).astype(np.int64)
    facts = {"pairs": len(table), "positives": int(positive.sum()), "other_texts": len(others)}
    name = f"{table.source} among {source}" if source else table.source
    return _corpus(name, list(texts.values()), clusters, np.ones(len(texts), dtype=np.bool_), None, facts)


def read_texts(path: str | Path, columns: Columns, reading: Reading | None = None) -> list[str]:
    """The texts of a file of tickets, its text columns joined; rows without any are left out.

    Raises InputError as `corpus_of_tickets` does.
    """
    raw, columns = read_ticket_table(path, columns, reading)
    cells = (["\n".join(texts_of_cell(raw, name, row)) for name in columns.texts] for row in range(len(raw)))
    if texts := [text for text in (join_cells(each)[0] for each in cells) if text]:
        return texts
    raise InputError(f"{raw.source}: no row has a text: name the columns with --text-columns")


def _corpus(
    source: str,
    texts: list[str],
    clusters: Int,
    asking: NDArray[np.bool_],
    dates: NDArray[np.float64] | None,
    facts: dict[str, int],
) -> SearchCorpus:
    """A corpus of texts [U] in the order of their dates.

    Args:
        clusters: [U] of known duplicates.
        asking: [U] whether a text may be a query.

    Raises:
        InputError: none of them has a right answer.
    """
    size = len(texts)
    forms = np.unique([canonical_form(text) for text in texts], return_inverse=True)[1]
    earlier = np.searchsorted(dates, dates, side="left") if dates is not None else np.full(size, size)
    candidates = np.flatnonzero(asking & (np.bincount(clusters)[clusters] > 1))
    same = _members(clusters)[clusters[candidates]].tocoo()
    right = (forms[candidates[same.row]] != forms[same.col]) & (same.col < earlier[candidates[same.row]])
    relevant = csr_matrix((same.data[right], (same.row[right], same.col[right])), shape=(len(candidates), size))
    answered = np.diff(relevant.indptr) > 0
    queries = candidates[answered]
    if not len(queries):
        why = "no ticket has a known duplicate that is another text"
        if dates is not None:
            why += " and earlier"
        raise InputError(f"{source}: {why}, so nothing can be searched for: check the columns that link tickets")
    return SearchCorpus(
        source=source,
        texts=texts,
        queries=queries,
        clusters=clusters[queries],
        relevant=relevant[answered],
        excluded=_members(forms)[forms[queries]],
        limits=earlier[queries].astype(np.int64) if dates is not None else None,
        facts=facts | {"texts": size, "queries": len(queries), "linked_texts": len(candidates)},
    )


def _members(groups: Int) -> csr_matrix:
    """[groups, U] True where a text is in a group, of the group of each text [U]."""
    ones = np.ones(len(groups), dtype=np.bool_)
    return csr_matrix((ones, (groups, np.arange(len(groups)))), shape=(int(groups.max()) + 1, len(groups)))


def parse_dates(raw: RawTable, column: str) -> NDArray[np.float64]:
    """[R] seconds of a column of dates: ISO 8601, seconds since 1970, or the one usual way of writing that fits all.

    Raises InputError for a cell that is no date, and where a date could be day first or month first.
    """
    cells = [text_of_cell(raw, column, row) for row in range(len(raw))]
    if None not in (numbers := [parse_number(cell) for cell in cells]) and np.isfinite(np.array(numbers, float)).all():
        return np.array(numbers, dtype=np.float64)
    if None not in (seconds := [_iso_seconds(cell) for cell in cells]):
        return np.array(seconds, dtype=np.float64)
    fitting = {form: parsed for form in DATE_FORMATS if (parsed := _parse_all(cells, form)) is not None}
    if len({tuple(parsed) for parsed in fitting.values()}) > 1:
        raise raw.error(0, column, f"{brief(cells[0])} may be day first or month first: write 2024-12-31")
    if not fitting:
        known = [
            _iso_seconds(cell) is not None or any(_parse_all([cell], form) for form in DATE_FORMATS) for cell in cells
        ]
        row = known.index(False) if False in known else 0
        raise raw.error(row, column, f"{brief(cells[row])} is no date like those of other rows: write 2024-12-31 13:45")
    return np.array(next(iter(fitting.values())), dtype=np.float64)


def _iso_seconds(cell: str) -> float | None:
    try:
        return _seconds(datetime.fromisoformat(cell))
    except ValueError:
        return None


def _parse_all(cells: Sequence[str], form: str) -> list[float] | None:
    try:
        return [_seconds(datetime.strptime(cell, form)) for cell in cells]
    except ValueError:
        return None


def _seconds(moment: datetime) -> float:
    """Seconds since 1970; a moment without a time zone is taken as UTC."""
    zero = datetime(1970, 1, 1, tzinfo=moment.tzinfo)
    return (moment - zero).total_seconds() - (offset.total_seconds() if (offset := moment.utcoffset()) else 0.0)
