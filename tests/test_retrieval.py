"""Search among the texts of a set: who asks for what, and scikit-learn's nDCG. How it is measured: test_search.py."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from trainer.evaluation.retrieval import retrieval
from trainer.evaluation.search import SearchTask, search
from trainer.evaluation.search_metrics import NAMES
from trainer.evaluation.search_scores import EmbeddingScores


def draw(size: int, width: int, share: float, seed: int) -> tuple[np.ndarray, csr_matrix]:
    """Embeddings of texts in groups, and a symmetric relevance that leaves some texts without any."""
    rng = np.random.default_rng(seed)
    group = rng.integers(max(size // 4, 1), size=size)
    rows = rng.normal(size=(size, width)) + 1.5 * rng.normal(size=(size, width))[group]
    linked = (group[:, None] == group) & (rng.random((size, size)) < share)
    linked |= linked.T  # the diagonal too: it must not count
    return rows.astype(np.float32), csr_matrix(linked)


@pytest.mark.parametrize("dims", [(12, 3, 7, 3), (5,)])
def test_every_text_with_a_partner_searches_for_all_of_them_but_itself(dims: tuple[int, ...]) -> None:
    """Dims in any order, candidates that are embedded otherwise than queries."""
    rows, relevant = draw(60, 12, 0.5, seed=1)
    documents = (rows + np.random.default_rng(2).normal(size=rows.shape)).astype(np.float32)
    partners = relevant.toarray() & ~np.eye(60, dtype=bool)
    asking = np.flatnonzero(partners.any(axis=1))
    assert 0 < len(asking) < 60
    task = SearchTask(csr_matrix(partners[asking]), csr_matrix(np.eye(60)[asking]))
    for candidates in (None, documents):
        queries, found = retrieval(rows, relevant, dims, candidates)
        assert queries.tolist() == asking.tolist() and tuple(found) == NAMES
        for m, dim in enumerate(dims):
            scores = EmbeddingScores(rows[asking], rows if candidates is None else candidates, (dim,))
            for name, values in search(scores, task).items():
                assert found[name][m] == pytest.approx(values[0], abs=1e-12)


def test_ndcg_is_that_of_scikit_learn() -> None:
    from sklearn import metrics as peer

    rows, relevant = draw(150, 16, 0.5, seed=5)
    queries, found = retrieval(rows, relevant, (16, 8))
    wanted = relevant.toarray()
    for m, dim in enumerate((16, 8)):
        unit = rows[:, :dim] / np.linalg.norm(rows[:, :dim], axis=1, keepdims=True)
        for q, query in enumerate(queries):
            others = np.arange(150) != query
            expected = peer.ndcg_score(wanted[query, others][None], (unit @ unit[query])[others][None], k=10)
            assert found["ndcg@10"][m, q] == pytest.approx(expected, abs=1e-9)


def test_a_collapsed_model_finds_by_chance_and_a_perfect_one_everything() -> None:
    _, relevant = draw(60, 4, 0.5, seed=1)
    for same in (np.ones((60, 4), dtype=np.float32), np.zeros((60, 4), dtype=np.float32)):
        queries, found = retrieval(same, relevant, (4,))
        assert len(queries) > 20 and found["recall@10"] == pytest.approx(np.full((1, len(queries)), 10 / 59))
    twins = csr_matrix(np.eye(60)[np.arange(60) ^ 1])
    _, found = retrieval(np.repeat(np.eye(30, dtype=np.float32), 2, axis=0), twins, (30,))
    assert all(values.min() == 1 for values in found.values())


def test_without_queries_there_are_no_values() -> None:
    queries, found = retrieval(np.ones((5, 4), dtype=np.float32), csr_matrix(np.eye(5)), (4, 2))
    assert not len(queries) and all(values.shape == (2, 0) for values in found.values())


def test_what_does_not_fit_is_refused() -> None:
    rows, relevant = draw(20, 4, 0.5, seed=0)
    for wrong in ((rows, relevant, (5,)), (rows, relevant, (0,)), (rows, relevant, ()), (rows[:-1], relevant, (4,))):
        with pytest.raises(ValueError, match="do not fit"):
            retrieval(*wrong)
