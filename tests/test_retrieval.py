"""Retrieval against a slow obvious version and scikit-learn's nDCG."""

from __future__ import annotations

import itertools
import math
import tracemalloc

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from trainer.evaluation import retrieval as module
from trainer.evaluation.retrieval import NAMES, retrieval


def draw(size: int, width: int, share: float, seed: int) -> tuple[np.ndarray, csr_matrix]:
    """Embeddings of texts in groups, and a symmetric relevance that leaves some texts without any."""
    rng = np.random.default_rng(seed)
    group = rng.integers(max(size // 4, 1), size=size)
    rows = rng.normal(size=(size, width)) + 1.5 * rng.normal(size=(size, width))[group]
    linked = (group[:, None] == group) & (rng.random((size, size)) < share)
    linked |= linked.T  # the diagonal too: it must not count
    return rows.astype(np.float32), csr_matrix(linked)


def slow(rows: np.ndarray, relevant: csr_matrix, dim: int) -> dict[int, dict[str, float]]:
    """One query at a time, every candidate sorted; nothing may be tied."""
    unit = rows[:, :dim].astype(np.float64)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-30)
    wanted, measured = relevant.toarray(), {}
    for query in range(len(rows)):
        own = [text for text in np.flatnonzero(wanted[query]) if text != query]
        if not own:
            continue
        scores = (unit @ unit[query]).astype(np.float32)
        others = [text for text in range(len(rows)) if text != query]
        measured[query] = of_order(sorted(others, key=lambda text: -scores[text]), own)
    return measured


def of_order(ranked: list[int], own: list[int]) -> dict[str, float]:
    """The measures of one query by their definitions: candidates in order, and those that are relevant."""
    ranks = [ranked.index(text) + 1 for text in own]
    gain = sum(1 / math.log2(rank + 1) for rank in ranks if rank <= 10)
    ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(len(own), 10) + 1))
    return {
        **{f"success@{k}": float(min(ranks) <= k) for k in (1, 5, 10)},
        **{f"recall@{k}": sum(rank <= k for rank in ranks) / len(own) for k in (1, 5, 10)},
        "mrr@10": 1 / min(ranks) if min(ranks) <= 10 else 0.0,
        "ndcg@10": gain / ideal,
    }


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [1, 1000, 2**22])
@pytest.mark.parametrize(("size", "share"), [(2, 1.0), (40, 0.4), (200, 0.6), (120, 1.0)])
def test_it_is_the_slow_version(size: int, share: float, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SIMILARITIES_AT_ONCE", at_once)
    rows, relevant = draw(size, 12, share, seed=size)
    if size == 120:  # more relevant texts than places
        relevant = csr_matrix(np.ones((120, 120)) * (np.arange(120)[:, None] % 8 == np.arange(120) % 8))
    dims = (12, 3, 7, 3)
    queries, found = retrieval(rows, relevant, dims)
    assert tuple(found) == NAMES
    for m, dim in enumerate(dims):
        expected = slow(rows, relevant, dim)
        assert queries.tolist() == list(expected)
        for q, query in enumerate(queries.tolist()):
            assert {name: values[m, q] for name, values in found.items()} == pytest.approx(expected[query], abs=1e-9)


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


@pytest.mark.parametrize("seed", range(6))
def test_where_candidates_tie_the_measures_are_means_over_all_orders(seed: int) -> None:
    """Seven texts, few directions: every order of the tied ones is written out."""
    rng = np.random.default_rng(seed)
    rows = np.eye(4, dtype=np.float32)[rng.integers(3, size=7)] + np.eye(4, dtype=np.float32)[rng.integers(4, size=7)]
    linked = np.triu(rng.random((7, 7)) < 0.4, 1)
    queries, found = retrieval(rows, csr_matrix(linked | linked.T), (4,))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    assert len(queries) > 2
    for q, query in enumerate(queries.tolist()):
        scores, own = np.round(unit @ unit[query], 5), np.flatnonzero((linked | linked.T)[query]).tolist()
        orders = itertools.permutations([text for text in range(7) if text != query])
        fitting = [order for order in orders if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))]
        each = [of_order(list(order), own) for order in fitting]
        expected = {name: np.mean([measures[name] for measures in each]) for name in NAMES}
        assert {name: values[0, q] for name, values in found.items()} == pytest.approx(expected, abs=1e-9)


def test_ties_beyond_the_cutoff_are_chance() -> None:
    """Forty equal texts, three of them relevant to the first: what drawing ten of 39 without looking finds."""
    links = np.zeros((40, 40))
    links[0, 1:4] = 1
    _, found = retrieval(np.ones((40, 3), dtype=np.float32), csr_matrix(links), (3,))
    nothing = [math.comb(36, k) / math.comb(39, k) for k in range(11)]
    assert [found[f"success@{k}"][0, 0] for k in (1, 5, 10)] == pytest.approx([1 - nothing[k] for k in (1, 5, 10)])
    assert [found[f"recall@{k}"][0, 0] for k in (1, 5, 10)] == pytest.approx([k / 39 for k in (1, 5, 10)])
    assert found["mrr@10"][0, 0] == pytest.approx(sum((nothing[k - 1] - nothing[k]) / k for k in range(1, 11)))


@pytest.mark.parametrize(("size", "width"), [(37, 100), (301, 384), (1003, 768)])
def test_rounding_breaks_no_tie(size: int, width: int) -> None:
    """Copies of one embedding, and of nearly one: products in float32 differ by where in the matrix they stand."""
    rng = np.random.default_rng(size)
    rows = np.repeat(rng.normal(size=(1, width)), size, axis=0) * rng.uniform(0.5, 2, size=(size, 1))
    rows *= 1 + 1e-7 * rng.normal(size=rows.shape)
    links = csr_matrix((np.ones(30), (np.arange(30), np.arange(30) ^ 1)), shape=(size, size))
    _, found = retrieval(rows.astype(np.float32), links, (width, width // 3))
    assert found["success@10"] == pytest.approx(np.full((2, 30), 10 / (size - 1)))


def test_a_collapsed_model_finds_by_chance_and_a_perfect_one_everything() -> None:
    _, relevant = draw(60, 4, 0.5, seed=1)
    for same in (np.ones((60, 4), dtype=np.float32), np.zeros((60, 4), dtype=np.float32)):
        queries, found = retrieval(same, relevant, (4,))
        assert len(queries) > 20 and found["recall@10"] == pytest.approx(np.full((1, len(queries)), 10 / 59))
    twins = csr_matrix(np.eye(60)[np.arange(60) ^ 1])
    _, found = retrieval(np.repeat(np.eye(30, dtype=np.float32), 2, axis=0), twins, (30,))
    assert all(values.min() == 1 for values in found.values())


def test_length_is_no_advantage_and_input_is_left_alone() -> None:
    rows, relevant = draw(80, 8, 0.5, seed=2)
    stretched = rows * np.random.default_rng(0).choice([0.5, 1.0, 4.0], size=(80, 1)).astype(np.float32)
    before, kept = stretched.copy(), relevant.copy()
    found, again = (retrieval(some, relevant, (8, 2))[1] for some in (rows, stretched))
    assert all(np.array_equal(found[name], again[name]) for name in NAMES)
    assert np.array_equal(stretched, before) and (relevant != kept).nnz == 0


def test_without_queries_there_are_no_values() -> None:
    queries, found = retrieval(np.ones((5, 4), dtype=np.float32), csr_matrix(np.eye(5)), (4, 2))
    assert not len(queries) and all(values.shape == (2, 0) for values in found.values())


def test_what_does_not_fit_is_refused() -> None:
    rows, relevant = draw(20, 4, 0.5, seed=0)
    for wrong in ((rows, relevant, (5,)), (rows, relevant, (0,)), (rows, relevant, ()), (rows[:-1], relevant, (4,))):
        with pytest.raises(ValueError, match="do not fit"):
            retrieval(*wrong)


@pytest.mark.slow
def test_memory_stays_far_below_all_similarities() -> None:
    rows, relevant = draw(200, 8, 0.5, seed=3)
    many = np.random.default_rng(0).normal(size=(12_000, 8)).astype(np.float32)
    links = csr_matrix((np.ones(12_000), (np.arange(12_000), np.arange(12_000) ^ 1)), shape=(12_000, 12_000))
    retrieval(rows, relevant, (8,))
    tracemalloc.start()
    retrieval(many, links, (8, 4))
    assert tracemalloc.get_traced_memory()[1] < 12_000**2 * 4 / 5  # bytes of one matrix of all
    tracemalloc.stop()
