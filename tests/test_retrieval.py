"""Search among the texts of pairs: who asks for what, and scikit-learn's nDCG. How it is measured: test_search.py."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.data.pairs import PairTable, pairs_from_columns
from trainer.errors import NumericError
from trainer.evaluation.search import SearchTask, search
from trainer.evaluation.search_metrics import NAMES
from trainer.evaluation.search_scores import EmbeddingScores
from trainer.evaluation.search_set import SearchedTexts


def draw(size: int, width: int, seed: int) -> tuple[PairTable, np.ndarray, np.ndarray]:
    """Pairs of texts in groups, some of which copies; embeddings of its texts; the group of each text."""
    rng = np.random.default_rng(seed)
    group = rng.integers(size // 3, size=size)
    first, second = rng.integers(size, size=(2, size))
    names = [f"text {i}" if i % 3 else f"TEXT  {i + 1}" for i in range(size)]
    table = pairs_from_columns(
        {
            "texts1": [names[i] for i in first] + [f"one of {g}" for g in range(size // 3)],
            "texts2": [names[i] for i in second] + [f"two of {g}" for g in range(size // 3)],
            "labels": (group[first] == group[second]).astype(int).tolist() + [1] * (size // 3),
        },
        "pairs.json",
    )
    rows = rng.normal(size=(len(table.texts), width)).astype(np.float32)
    return table, rows, table.canonical


@pytest.mark.parametrize("dims", [(12, 3, 7, 3), (5,)])
def test_texts_that_positives_connect_search_for_each_other(dims: tuple[int, ...]) -> None:
    """Also through others; copies are one text. Dims in any order, what is found embedded otherwise than queries."""
    table, rows, canonical = draw(60, 12, seed=1)
    documents = (rows + np.random.default_rng(2).normal(size=rows.shape)).astype(np.float32)
    size = int(canonical.max()) + 1
    linked = np.eye(size, dtype=bool)
    positive = table.label
    linked[canonical[table.text1[positive]], canonical[table.text2[positive]]] = True
    linked |= linked.T
    for _ in range(size):
        linked = linked @ linked
    partners = linked & ~np.eye(size, dtype=bool)
    asking = np.flatnonzero(partners.any(axis=1))
    assert 0 < len(asking) < size < len(table.texts)
    one = np.array([int(np.flatnonzero(canonical == form)[0]) for form in range(size)])
    searched = SearchedTexts.of_pairs(table)
    task = SearchTask(*map(searched.corpus.relevant.__class__, (partners[asking], np.eye(size)[asking])))
    for sides in (rows, np.concatenate([rows, documents])):
        found = searched.search("model", sides, dims)["model"]
        assert searched.corpus.queries.tolist() == asking.tolist() and tuple(found) == NAMES
        for m, dim in enumerate(dims):
            scores = EmbeddingScores(rows[one[asking]], sides[-len(rows) :][one], (dim,))
            for name, values in search(scores, task).items():
                assert found[name][m] == pytest.approx(values[0], abs=1e-12)


def test_ndcg_is_that_of_scikit_learn() -> None:
    from sklearn import metrics as peer

    table, rows, canonical = draw(150, 16, seed=5)
    searched = SearchedTexts.of_pairs(table)
    corpus, found = searched.corpus, searched.search("model", rows, (16, 8))["model"]
    one = np.unique(canonical, return_index=True)[1]
    wanted = corpus.relevant.toarray()
    for m, dim in enumerate((16, 8)):
        unit = rows[one][:, :dim] / np.linalg.norm(rows[one][:, :dim], axis=1, keepdims=True)
        for q, query in enumerate(corpus.queries):
            others = np.arange(len(one)) != query
            expected = peer.ndcg_score(wanted[q, others][None], (unit @ unit[query])[others][None], k=10)
            assert found["ndcg@10"][m, q] == pytest.approx(expected, abs=1e-9)


def test_a_collapsed_model_finds_by_chance_and_a_perfect_one_everything() -> None:
    pairs = {"texts1": [f"a{i}" for i in range(30)], "texts2": [f"b{i}" for i in range(30)], "labels": [1] * 30}
    searched = SearchedTexts.of_pairs(table := pairs_from_columns(pairs, "x"))
    for same in (np.ones((60, 4), dtype=np.float32), np.zeros((60, 4), dtype=np.float32)):
        found = searched.search("model", same, (4,))["model"]
        assert found["recall@10"] == pytest.approx(np.full((1, 60), 10 / 59))
    perfect = np.eye(30, dtype=np.float32)[[int(text[1:]) for text in table.texts]]
    assert all(values.min() == 1 for values in searched.search("model", perfect, (30,))["model"].values())


def test_what_is_not_finite_is_an_error() -> None:
    table, rows, _ = draw(30, 4, seed=0)
    with pytest.raises(NumericError, match="not finite"):
        SearchedTexts.of_pairs(table).search("model", np.full_like(rows, np.nan), (4,))
