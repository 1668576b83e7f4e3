"""How well texts find the texts they belong to, among all texts of a set: pure functions on arrays.

Every text with a text labelled positive for it is a query, those are relevant to it, and all texts but itself are its
candidates, by the cosine of the embeddings cut to each Matryoshka dim. Measures as in Manning, Raghavan and Schuetze
2008, "Introduction to Information Retrieval", chapter 8; nDCG with the discount 1 / log2(1 + rank) of Jarvelin and
Kekalainen 2002. Where candidates tie, a measure is its mean over all their orders, in closed form (McSherry and Najork
2008, "Computing information retrieval performance measures efficiently in the presence of tied scores"), so that
neither the order of the file nor a model that cannot tell texts apart gains by it.

Legend: U texts, E embedding width, M dims, Q queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

CUTOFF = 10
PLACES = (1, 5, 10)
NAMES = (
    *(f"success@{k}" for k in PLACES),
    *(f"recall@{k}" for k in PLACES),
    f"mrr@{CUTOFF}",
    f"ndcg@{CUTOFF}",
)
DISCOUNTED = np.append(0.0, np.cumsum(1 / np.log2(1 + np.arange(1, CUTOFF + 1))))  # gain of the first so many places
# Cosines this near are called equal: products in float32 moved those of one and the same embedding by up to 1.4e-6.
TIE = 2e-6
SIMILARITIES_AT_ONCE = 2**22  # [q, U] that are in memory at a time


Float = NDArray[np.float64]


def retrieval(
    embeddings: np.ndarray, relevant: csr_matrix, dims: Sequence[int], candidates: np.ndarray | None = None
) -> tuple[NDArray[np.int64], dict[str, Float]]:
    """Measure every query at every dim.

    Args:
        embeddings: [U, E], finite, of any length; an all-zero prefix has cosine 0 with everything.
        relevant: [U, U] True where a text (column) is relevant to a query (row). The diagonal does not count.
        dims: any of 1 .. E, in any order.
        candidates: [U, E] the same texts as what is found, where they are embedded otherwise than as queries.

    Returns:
        The queries, [Q] rows of `embeddings`, and [M, Q] values by name. success@k is whether anything relevant is
        among the first k, recall@k the share of all that is relevant found there, mrr@k one over the first one's rank.

    Raises ValueError where the shapes do not fit or a dim is outside 1 .. E.
    """
    size, width = embeddings.shape
    candidates = embeddings if candidates is None else candidates
    if (
        candidates.shape != embeddings.shape
        or relevant.shape != (size, size)
        or not dims
        or min(dims) < 1
        or max(dims) > width
    ):
        raise ValueError(f"embeddings {embeddings.shape}, relevance {relevant.shape} and dims {list(dims)} do not fit")
    pairs = relevant.tocoo()
    away = (pairs.row != pairs.col) & pairs.data.astype(bool)
    links = csr_matrix((np.ones(away.sum(), dtype=np.bool_), (pairs.row[away], pairs.col[away])), shape=relevant.shape)
    queries = np.flatnonzero(np.diff(links.indptr))
    values = np.empty((len(NAMES), len(dims), len(queries)))
    step = max(1, SIMILARITIES_AT_ONCE // size)
    widths = sorted(set(dims))
    norms, query_norms = (_prefix_norms(rows, widths) for rows in (candidates, embeddings))
    for start in range(0, len(queries), step):
        block = queries[start : start + step]
        dot = np.zeros((len(block), size), dtype=np.float32)
        for k, (low, high) in enumerate(pairwise([0, *widths])):
            dot += embeddings[block, low:high] @ candidates[:, low:high].T  # prefixes nest: each column is used once
            measured = _measure(dot / norms[k] / query_norms[k, block, None], block, links)
            for m in (m for m, dim in enumerate(dims) if dim == high):
                values[:, m, start : start + step] = measured
    return queries, dict(zip(NAMES, values, strict=True))


def _prefix_norms(embeddings: np.ndarray, widths: Sequence[int]) -> NDArray[np.float32]:
    """[M, U] lengths of all prefixes, infinite where 0."""
    squares = [
        np.einsum("ue,ue->u", embeddings[:, low:high], embeddings[:, low:high], dtype=np.float64)
        for low, high in pairwise([0, *widths])
    ]
    norms = np.sqrt(np.cumsum(squares, axis=0))
    return np.where(norms > 0, norms, np.inf).astype(np.float32)


def _measure(similar: np.ndarray, block: NDArray[np.int64], links: csr_matrix) -> Float:
    """[8, q] the measures of a block of queries, from cosines [q, U], which are spent."""
    rows, columns = links[block].nonzero()
    scores = similar[rows, columns]
    count = np.bincount(rows, minlength=len(block))
    similar[rows, columns] = -np.inf
    similar[np.arange(len(block)), block] = -np.inf
    best_first = np.lexsort((-scores, rows))
    rows, scores = rows[best_first], scores[best_first]
    place = np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count)  # among the query's relevant ones, from 0
    first = np.flatnonzero(
        np.append(True, (np.diff(rows) != 0) | (np.diff(scores) < -TIE))
    )  # of those with equal scores
    equal = np.diff(np.append(first, len(rows)))  # how many of them
    success, reciprocal = np.zeros((len(PLACES), len(block))), np.zeros(len(block))
    hits, gain = np.zeros((len(PLACES), len(block))), np.zeros(len(block))
    for k in range(min(CUTOFF, int(count.max()))):  # what comes after k relevant ones cannot be found before place k
        here = place[first] == k
        at, relevant = first[here], equal[here]
        query, highest, lowest = rows[at], scores[at][:, None], scores[at + relevant - 1][:, None]
        others = similar[query]
        before = np.count_nonzero(others > highest + TIE, axis=1)
        above, tied = k + before, relevant + np.count_nonzero(others >= lowest - TIE, axis=1) - before
        hits[:, query] += relevant * np.clip(np.array(PLACES)[:, None] - above, 0, tied) / tied
        discounts = DISCOUNTED[np.minimum(above + tied, CUTOFF)] - DISCOUNTED[np.minimum(above, CUTOFF)]
        gain[query] += relevant / tied * discounts
        if k == 0:
            success[:, query], reciprocal[query] = _first_found(above, tied, relevant)
    return np.stack([*success, *(hits / count), reciprocal, gain / DISCOUNTED[np.minimum(count, CUTOFF)]])


def _first_found(above: NDArray[Any], tied: NDArray[Any], relevant: NDArray[Any]) -> tuple[Float, Float]:
    """Expected success [places, q] and reciprocal rank [q] where `relevant` of `tied` follow `above` others [q]."""
    success, reciprocal = np.zeros((len(PLACES), len(above))), np.zeros(len(above))
    none_yet = np.ones(len(above))  # chance that the first so many of the tied ones hold nothing relevant
    for place in range(CUTOFF):
        none_here = none_yet * np.maximum(tied - relevant - place, 0) / np.maximum(tied - place, 1)
        rank, chance = above + place + 1, none_yet - none_here
        success += chance * (rank <= np.array(PLACES)[:, None])
        reciprocal += chance * (rank <= CUTOFF) / rank
        none_yet = none_here
    return success, reciprocal
