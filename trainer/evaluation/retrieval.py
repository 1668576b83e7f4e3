"""How well the texts of a set find the texts they belong to: a search in which every text with a known partner asks.

Every text with a text labelled positive for it is a query, those are relevant to it, and all texts but itself are its
candidates, by the cosine of the embeddings cut to each Matryoshka dim. `search.py` measures it.

Legend: U texts, E embedding width, M dims, Q queries.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, eye_array

from trainer.evaluation.search import SearchTask, search
from trainer.evaluation.search_metrics import Float
from trainer.evaluation.search_scores import EmbeddingScores


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
        The queries, [Q] rows of `embeddings`, and [M, Q] values by the names of `search_metrics.NAMES`.

    Raises ValueError where the shapes do not fit or a dim is outside 1 .. E.
    """
    size = len(embeddings)
    candidates = embeddings if candidates is None else candidates
    if candidates.shape != embeddings.shape or relevant.shape != (size, size):
        raise ValueError(f"embeddings {embeddings.shape} and relevance {relevant.shape} do not fit")
    pairs = relevant.tocoo()
    away = (pairs.row != pairs.col) & pairs.data.astype(bool)
    links = csr_matrix((np.ones(away.sum(), dtype=np.bool_), (pairs.row[away], pairs.col[away])), shape=relevant.shape)
    queries = np.flatnonzero(np.diff(links.indptr))
    widths = sorted(set(dims))
    task = SearchTask(links[queries], csr_matrix(eye_array(size, dtype=np.bool_, format="csr"))[queries])
    values = search(EmbeddingScores(embeddings[queries], candidates, widths), task)
    places = [widths.index(dim) for dim in dims]
    return queries, {name: each[places] for name, each in values.items()}
