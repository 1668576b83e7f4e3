"""A corpus to search: texts, those that have known others of their kind, and who is a candidate for whom.

Legend: U texts, Q queries.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from trainer.data.dates import parse_dates
from trainer.data.identifiers import clean_id, id_key, link_rows
from trainer.data.pairs import PairTable
from trainer.data.raw_table import RawTable, brief
from trainer.data.readers import Reading
from trainer.data.split import connect
from trainer.data.ticket_table import Columns, ids_of_column, join_cells, read_ticket_table, text_of_cell, texts_of_cell
from trainer.errors import InputError
from trainer.text.canonical import canonical_form
from trainer.text.cleaning import strip_mail

Int = NDArray[np.int64]
Mask = NDArray[np.bool_]

HEAD = 200  # letters and digits, by which a text is known again where it was cut


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

    def fingerprint(self) -> str:
        """SHA-256 (hex) of texts and links; not of format or path."""
        digest = hashlib.sha256(json.dumps(self.texts).encode())
        links = [part for matrix in (self.relevant, self.excluded) for part in (matrix.indptr, matrix.indices)]
        limits = [] if self.limits is None else [self.limits]
        for numbers in (self.queries, self.clusters, *links, *limits):
            digest.update(np.ascontiguousarray(numbers, dtype="<i8").tobytes())
        return digest.hexdigest()


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
    part, equals, value = queries.partition("=")
    if queries and not (part and equals):
        raise InputError(f"--queries {queries}: write COLUMN=VALUE")
    if not (columns.duplicate_of or columns.cluster):
        raise InputError(
            f"{path}: which tickets are the same problem? Name the column that says it: "
            f"{columns.options['duplicate_of']} (the number of the ticket that a ticket duplicates) or "
            f"{columns.options['cluster']} (a name that such tickets share)"
        )
    raw, columns = read_ticket_table(path, replace(columns, part=part or None, category=None), reading)
    rows = range(len(raw))
    numbers = [clean_id(cell) for cell in ids_of_column(raw, columns.number or None) or [""] * len(raw)]
    duplicates, names = (ids_of_column(raw, column) for column in (columns.duplicate_of, columns.cluster))
    links = link_rows(raw.source, numbers, duplicates, names, columns.options, most_miss=1.0)
    cells = _cells(raw, columns)
    texts = [join_cells(each)[0] for each in cells]
    keys = [id_key(number) for number in numbers]
    first = {key: row for row, key in reversed(list(enumerate(keys)))}
    repeated = [bool(keys[row]) and first[keys[row]] != row for row in rows]
    kept = np.array([row for row in rows if texts[row] and not repeated[row]], dtype=np.int64)
    if not len(kept):
        raise _without_text(raw, columns)
    dates = None
    if columns.date:
        dates = parse_dates(raw, columns.date)[kept]
        by_time = np.argsort(dates, kind="stable")
        kept, dates = kept[by_time], dates[by_time]
    asking = np.ones(len(kept), dtype=np.bool_)
    if part and columns.part:
        asking = _have(raw, columns.part, value.strip(), kept)
    facts = {"read": len(raw), "repeated_numbers": sum(repeated), "without_text": sum(not text for text in texts)}
    facts |= links.facts
    leaks = _touch(links.clusters, cells, trained)[kept]
    cause = _nothing_tied(columns, duplicates, names, links.facts)
    return _corpus(raw.source, [texts[row] for row in kept], links.clusters[kept], asking, leaks, dates, facts, cause)


def corpus_of_pairs(
    table: PairTable, others: Sequence[str] = (), source: str = "", trained: Collection[str] = ()
) -> SearchCorpus:
    """A corpus of a table's texts and of `others`; copies of a text count as one.

    Of `others` also those that begin with the same words, or end as early, as a text of the table: they are that ticket
    once more, cut or joined in another way, and would stand above the right answers. Texts that positive pairs connect,
    directly or through others, are of one kind.

    Args:
        trained: as in `corpus_of_tickets`.

    Raises:
        InputError: no positive pair, or none that was not trained on.
    """
    texts: dict[str, str] = {}
    of_pairs = {_head(text) for text in table.texts} - {""}
    for text in (*table.texts, *(text for text in others if _head(text) not in of_pairs)):
        texts.setdefault(canonical_form(text), text)
    place = {form: row for row, form in enumerate(texts)}
    of_text = np.array([place[canonical_form(text)] for text in table.texts], dtype=np.int64)
    positive = table.label
    clusters = connect(of_text[table.text1[positive]], of_text[table.text2[positive]], len(texts)).astype(np.int64)
    facts = {"pairs": len(table), "positives": int(positive.sum()), "other_texts": len(others)}
    name = f"{table.source} among {source}" if source else table.source
    leaks = _touch(clusters, [[text] for text in texts.values()], trained)
    return _corpus(name, list(texts.values()), clusters, np.ones(len(texts), dtype=np.bool_), leaks, None, facts)


def read_texts(path: str | Path, columns: Columns, reading: Reading | None = None) -> list[str]:
    """The texts of a file of tickets, its text columns joined; rows without any are left out.

    Raises InputError as `corpus_of_tickets` does.
    """
    raw, columns = read_ticket_table(path, replace(columns, category=None), reading)
    if texts := [text for text in (join_cells(each)[0] for each in _cells(raw, columns)) if text]:
        return texts
    raise _without_text(raw, columns)


def remarks(facts: Mapping[str, int]) -> list[str]:
    """What a person should know of the counts of a corpus: links that miss, what was left out, who does not search."""
    said = []
    if unknown := facts.get("links_to_unknown_tickets"):
        said.append(f"{unknown} of {facts['links']} links name tickets that are not in the file")
    if itself := facts.get("links_to_themselves"):
        said.append(f"{itself} of {facts['links']} links name the ticket itself")
    for name, why in (("repeated_numbers", "their ticket number again"), ("without_text", "no text")):
        if facts.get(name):
            said.append(f"{facts[name]} rows left out: {why}")
    if trained := facts.get("trained"):
        said.append(
            f"{trained} texts with known duplicates do not search but are still found: they or duplicates of theirs "
            "are in the training pairs"
        )
    return said


def _cells(raw: RawTable, columns: Columns) -> list[list[str]]:
    """[R] the texts of each row, one a column."""
    return [["\n".join(texts_of_cell(raw, name, row)) for name in columns.texts] for row in range(len(raw))]


def _have(raw: RawTable, column: str, value: str, rows: Int) -> Mask:
    """[N] which of the rows have a value. Raises InputError, naming some that are there, where none has."""
    cells = [text_of_cell(raw, column, row) for row in rows.tolist()]
    if value not in cells:
        listed = ", ".join(brief(name) for name, _ in Counter(cells).most_common(5))
        raise InputError(f"{raw.source}: no row has {column} = {brief(value)}; it has {listed}")
    return np.array([cell == value for cell in cells])


def _nothing_tied(
    columns: Columns, duplicates: Sequence[str] | None, names: Sequence[str] | None, facts: Mapping[str, int]
) -> dict[str, str]:
    """What to say of the columns where no ticket has a right answer: "links", and "date"."""
    filled = [
        f"{column} ({sum(bool(clean_id(cell)) for cell in cells)} of {len(cells)} cells filled)"
        for column, cells in ((columns.duplicate_of, duplicates), (columns.cluster, names))
        if cells is not None
    ]
    itself = facts["links_to_themselves"]
    own = f"; {itself} of {facts['links']} links name the ticket itself" if itself else ""
    return {
        "links": f"check {' and '.join(filled)}{own}",
        "date": f"check the column of dates, {columns.date}, or leave it out ({columns.options['date']})",
    }


def _without_text(raw: RawTable, columns: Columns) -> InputError:
    return InputError(f"{raw.source}: no row has a text: name the columns with {columns.options['texts']}")


def _head(text: str) -> str:
    """The first letters and digits of a text, whatever stands between them."""
    return "".join(filter(str.isalnum, canonical_form(text)))[:HEAD]


def _touch(clusters: Int, cells: Sequence[Sequence[str]], trained: Collection[str]) -> Mask:
    """[R] whether a text of a row's cluster, or one of its cells, is a training text.

    Pairs are often made of texts that were cleaned, cut, or joined in another way.
    """
    known = {_head(text) for text in trained} - {""}

    def is_trained(row: int) -> bool:
        for parts in (cells[row], [strip_mail(cell) for cell in cells[row]]):
            if any(_head(text) in known for text in (join_cells(parts)[0], " ".join(parts), *parts)):
                return True
        return False

    linked = np.flatnonzero(np.bincount(clusters)[clusters] > 1) if known else np.empty(0, dtype=np.int64)
    trained_rows = [row for row in linked.tolist() if is_trained(row)]
    touched: Mask = np.isin(clusters, clusters[trained_rows])
    return touched


def _corpus(
    source: str,
    texts: list[str],
    clusters: Int,
    asking: Mask,
    leaks: Mask,
    dates: NDArray[np.float64] | None,
    facts: dict[str, int],
    cause: Mapping[str, str] | None = None,
) -> SearchCorpus:
    """A corpus of texts [U] in the order of their dates.

    Args:
        clusters: [U] of known duplicates.
        asking: [U] whether a text may be a query.
        leaks: [U] whether training has met a text's cluster: it is then no query.
        cause: "links", "date": what to check where none has a right answer.

    Raises:
        InputError: none of them has a right answer, or none that was not trained on.
    """
    size = len(texts)
    forms = np.unique([canonical_form(text) for text in texts], return_inverse=True)[1]
    earlier = np.searchsorted(dates, dates, side="left") if dates is not None else np.full(size, size)
    candidates = np.flatnonzero(asking & (np.bincount(clusters)[clusters] > 1))
    same = _members(clusters)[clusters[candidates]].tocoo()
    other = forms[candidates[same.row]] != forms[same.col]
    right = other & (same.col < earlier[candidates[same.row]])
    relevant = csr_matrix((same.data[right], (same.row[right], same.col[right])), shape=(len(candidates), size))
    answered = np.diff(relevant.indptr) > 0
    queries = candidates[answered]
    if not len(queries):
        why, by_date = "no ticket has a known duplicate that is another text", dates is not None and other.any()
        why += " and earlier" if by_date else ""
        fix = cause["date" if by_date else "links"] if cause else "check the pairs that are labelled as duplicates"
        raise InputError(f"{source}: {why}, so nothing can be searched for: {fix}")
    leaks = leaks[queries]
    if leaks.all():
        raise InputError(
            f"{source}: all {len(queries)} texts with known duplicates, or duplicates of theirs, are in the training "
            "pairs, so a search would be judged by what was trained on: keep some groups of duplicates out of "
            "data.train, or name other tickets as data.corpus"
        )
    relevant, queries = relevant[answered][~leaks], queries[~leaks]
    counts = {"texts": size, "queries": len(queries), "linked_texts": len(candidates), "trained": int(leaks.sum())}
    return SearchCorpus(
        source=source,
        texts=texts,
        queries=queries,
        clusters=clusters[queries],
        relevant=relevant,
        excluded=_members(forms)[forms[queries]],
        limits=earlier[queries].astype(np.int64) if dates is not None else None,
        facts=facts | counts,
    )


def _members(groups: Int) -> csr_matrix:
    """[groups, U] True where a text is in a group, of the group of each text [U]."""
    ones = np.ones(len(groups), dtype=np.bool_)
    return csr_matrix((ones, (groups, np.arange(len(groups)))), shape=(int(groups.max()) + 1, len(groups)))
