"""How well texts find the texts they belong to, among all texts of a set: pure functions on arrays.

Every text with a text labelled positive for it is a query, those are relevant to it, and all texts but itself are its
candidates, by the cosine of the embeddings cut to each Matryoshka dim. Measures as in Manning, Raghavan and Schuetze
2008, "Introduction to Information Retrieval", chapter 8; nDCG with the discount 1 / log2(1 + rank) of Jarvelin and
Kekalainen 2002.

Legend: U texts, E embedding width, M dims, Q queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

CUTOFF = 10
RECALL_AT = (1, 5, 10)
NAMES = (*(f"recall@{k}" for k in RECALL_AT), f"mrr@{CUTOFF}", f"ndcg@{CUTOFF}")
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
        The queries, [Q] rows of `embeddings`, and [M, Q] values by name. recall@k is the share of all that is relevant
        found among the first k. A candidate that ties with a relevant one counts as before it: embeddings that cannot
        tell texts apart find nothing.

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
    norms = _prefix_norms(candidates, widths)
    for start in range(0, len(queries), step):
        block = queries[start : start + step]
        dot = np.zeros((len(block), size), dtype=np.float32)
        for k, (low, high) in enumerate(pairwise([0, *widths])):
            dot += embeddings[block, low:high] @ candidates[:, low:high].T  # prefixes nest: each column is used once
            measured = _measure(dot / norms[k], block, links)
            for m in (m for m, dim in enumerate(dims) if dim == high):
                values[:, m, start : start + step] = measured
    return queries, dict(zip(NAMES, values, strict=True))


def _prefix_norms(embeddings: np.ndarray, widths: Sequence[int]) -> NDArray[np.float32]:
    """[M, U] lengths of all prefixes, infinite where 0. A query's own length would not change an order."""
    squares = [
        np.einsum("ue,ue->u", embeddings[:, low:high], embeddings[:, low:high], dtype=np.float64)
        for low, high in pairwise([0, *widths])
    ]
    norms = np.sqrt(np.cumsum(squares, axis=0))
    return np.where(norms > 0, norms, np.inf).astype(np.float32)


def _measure(similar: np.ndarray, block: NDArray[np.int64], links: csr_matrix) -> Float:
    """[5, q] the measures of a block of queries, from similarities [q, U], which are spent."""
    rows, columns = links[block].nonzero()
    scores = similar[rows, columns]
    count = np.bincount(rows, minlength=len(block))
    similar[rows, columns] = -np.inf
    similar[np.arange(len(block)), block] = -np.inf
    best_first = np.lexsort((-scores, rows))
    rows, scores = rows[best_first], scores[best_first]
    place = np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count)  # among the query's relevant ones, from 0
    hits = np.zeros((len(RECALL_AT), len(block)))
    gain, reciprocal = np.zeros(len(block)), np.zeros(len(block))
    for k in range(min(CUTOFF, int(count.max()))):  # the k-th best cannot be found before place k
        query, score = rows[place == k], scores[place == k]
        rank = k + 1 + np.count_nonzero(similar[query] >= score[:, None], axis=1)
        hits[:, query] += rank <= np.array(RECALL_AT)[:, None]
        gain[query] += (rank <= CUTOFF) / np.log2(1 + rank)
        if k == 0:
            reciprocal[query] = (rank <= CUTOFF) / rank
    ideal = np.cumsum(1 / np.log2(1 + np.arange(1, CUTOFF + 1)))[np.minimum(count, CUTOFF) - 1]
    return np.stack([*(hits / count), reciprocal, gain / ideal])
