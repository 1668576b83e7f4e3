"""A corpus to search: texts, those that have known others of their kind, and who is a candidate for whom.

Legend: U texts, Q queries.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from trainer.data.pairs import PairTable, negatives_of, positives_of
from trainer.data.split import connect
from trainer.data.ticket_table import join_cells
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


def corpus_of_pairs(
    table: PairTable, others: Sequence[str] = (), source: str = "", trained: Collection[str] = ()
) -> SearchCorpus:
    """A corpus of a table's texts and of `others`; copies of a text count as one.

    Of `others` also those that begin with the same words, or end as early, as a text of the table: they are that ticket
    once more, cut or joined in another way, and would stand above the right answers. Texts that positive pairs connect,
    directly or through others, are of one kind, but for two that a pair labels as not alike.

    Args:
        trained: as in `ticket_corpus.corpus_of_tickets`.

    Raises:
        InputError: no positive pair, or none that was not trained on.
    """
    texts: dict[str, str] = {}
    of_pairs = {_head(text) for text in table.texts} - {""}
    for text in (*table.texts, *(text for text in others if _head(text) not in of_pairs)):
        texts.setdefault(canonical_form(text), text)
    first, second = (table.canonical[side[table.label]] for side in (table.text1, table.text2))
    clusters = connect(first, second, len(texts)).astype(np.int64)  # the table's texts come first, in its order
    facts = {"pairs": len(table), "positives": int(table.label.sum()), "other_texts": len(others)}
    name = f"{table.source} among {source}" if source else table.source
    leaks = met_in_training(clusters, [[text] for text in texts.values()], trained)
    apart = negatives_of(table) > positives_of(table)
    apart.resize(len(texts), len(texts))
    asking = np.ones(len(texts), dtype=np.bool_)
    return build_corpus(name, list(texts.values()), clusters, asking, leaks, None, facts, apart=apart)


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


def _head(text: str) -> str:
    """The first letters and digits of a text, whatever stands between them."""
    return "".join(filter(str.isalnum, canonical_form(text)))[:HEAD]


def met_in_training(clusters: Int, cells: Sequence[Sequence[str]], trained: Collection[str]) -> Mask:
    """[R] whether a text of a row's cluster, or one of its cells, is a training text."""
    linked = np.flatnonzero(np.bincount(clusters)[clusters] > 1) if trained else np.empty(0, dtype=np.int64)
    trained_rows = rows_with_text(linked.tolist(), cells, trained)
    touched: Mask = np.isin(clusters, clusters[trained_rows])
    return touched


def rows_with_text(rows: Sequence[int], cells: Sequence[Sequence[str]], texts: Collection[str]) -> list[int]:
    """Those of the rows of which one of some texts is a cell, or all cells.

    Pairs are often made of texts that were cleaned, cut, or joined in another way.
    """
    known = {_head(text) for text in texts} - {""}

    def is_known(row: int) -> bool:
        for parts in (cells[row], [strip_mail(cell) for cell in cells[row]]):
            if any(_head(text) in known for text in (join_cells(parts)[0], " ".join(parts), *parts)):
                return True
        return False

    return [row for row in rows if is_known(row)]


def build_corpus(
    source: str,
    texts: list[str],
    clusters: Int,
    asking: Mask,
    leaks: Mask,
    dates: NDArray[np.float64] | None,
    facts: dict[str, int],
    cause: Mapping[str, str] | None = None,
    apart: csr_matrix | None = None,
) -> SearchCorpus:
    """A corpus of texts [U] in the order of their dates.

    Args:
        clusters: [U] of known duplicates.
        asking: [U] whether a text may be a query.
        leaks: [U] whether training has met a text's cluster: it is then no query.
        cause: "links", "date": what to check where none has a right answer.
        apart: [U, U] True where two texts are labelled as not alike: neither is a right answer of the other.

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
    if apart is not None:
        right &= ~np.asarray(apart[candidates[same.row], same.col]).ravel()
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
