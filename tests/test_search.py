"""Search against slow obvious versions, all orders of ties, and sentence-transformers' evaluator."""

from __future__ import annotations

import itertools
import math
import sys
import tracemalloc
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from trainer.errors import InputError, NumericError
from trainer.evaluation import search_scores
from trainer.evaluation.search import Block, Opened, SearchTask, Tile, search
from trainer.evaluation.search_metrics import NAMES, TieGroups, expected_measures
from trainer.evaluation.search_scores import BM25Scores, EmbeddingScores, FusedScores, reciprocal_ranks

Measures = dict[str, float]


def of_order(ranked: Sequence[int], right: set[int]) -> Measures:
    """The measures of one query by their definitions, of all its candidates in order."""
    ranks = [rank for rank, text in enumerate(ranked, start=1) if text in right]
    gain = sum(1 / math.log2(rank + 1) for rank in ranks if rank <= 10)
    ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(len(right), 10) + 1))
    precisions = [found / rank for found, rank in enumerate(ranks, start=1) if rank <= 100]
    return {
        **{f"success@{k}": float(min(ranks) <= k) for k in (1, 5, 10)},
        **{f"recall@{k}": sum(rank <= k for rank in ranks) / len(right) for k in (1, 5, 10)},
        "mrr@10": 1 / min(ranks) if min(ranks) <= 10 else 0.0,
        "ndcg@10": gain / ideal,
        "map@100": sum(precisions) / min(len(right), 100),
    }


def cosines(queries: np.ndarray, corpus: np.ndarray, dim: int) -> np.ndarray:
    """[Q, U] in float64, 0 for a zero prefix."""
    left, right = (rows[:, :dim].astype(np.float64) for rows in (queries, corpus))
    lengths = np.linalg.norm(left, axis=1)[:, None] * np.linalg.norm(right, axis=1)
    return left @ right.T / np.where(lengths > 0, lengths, 1)


def draw(size: int, width: int, groups: int, seed: int) -> tuple[np.ndarray, np.ndarray, SearchTask]:
    """Embeddings of texts in groups, those that search, and what they search: the others of their group."""
    rng = np.random.default_rng(seed)
    group = rng.integers(groups, size=size)
    rows = rng.normal(size=(size, width)) + 1.2 * rng.normal(size=(groups, width))[group]
    same = (group[:, None] == group) & ~np.eye(size, dtype=bool)
    queries = rng.permutation(np.flatnonzero(same.any(axis=1)))[: size // 3 + 1]
    return rows.astype(np.float32), queries, SearchTask(csr_matrix(same[queries]), csr_matrix(np.eye(size)[queries]))


def slow(scores: np.ndarray, task: SearchTask) -> dict[str, list[float]]:
    """Every candidate sorted, one query at a time; nothing may be tied."""
    relevant, candidates = task.relevant.toarray() != 0, task.excluded.toarray() == 0
    if task.limits is not None:
        candidates &= np.arange(scores.shape[1]) < task.limits[:, None]
    measured = []
    for row, right, found in zip(scores, relevant, candidates, strict=True):
        ranked = np.flatnonzero(found)[np.argsort(-row[found])]
        measured.append(of_order(ranked.tolist(), set(np.flatnonzero(right).tolist())))
    return {name: [each[name] for each in measured] for name in NAMES}


def untied(scores: np.ndarray, task: SearchTask) -> np.ndarray:
    """[Q] whether no candidate is within 3 ties of a right answer, so that the order is beyond doubt; most must be."""
    clear = []
    for row, right in zip(scores, task.relevant.toarray().astype(bool), strict=True):
        ranked = np.sort(row)
        place = np.searchsorted(ranked, row[right])
        around = np.stack([ranked[np.clip(place + step, 0, len(row) - 1)] for step in (-1, 1)])
        gaps = np.abs(around - row[right])
        clear.append(len(row) < 3 or (gaps[gaps > 0] > 3e-6).all())
    assert np.mean(clear) > 0.5
    return np.array(clear)


@pytest.mark.numbers
@pytest.mark.parametrize(
    ("size", "groups"),
    [(2, 1), (37, 9), (300, 60), *(pytest.param(*each, marks=pytest.mark.slow) for each in ((350, 2), (4500, 1500)))],
)
def test_it_is_the_slow_version(size: int, groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with more right answers than places, and in blocks of any shape."""
    rows, queries, task = draw(size, 24, groups, seed=size)
    if size > 1000:  # what many candidates are for: several tiles
        queries, task = queries[:90], SearchTask(task.relevant[:90], task.excluded[:90])
    dims = (7, 11, 24)
    exact = [cosines(rows[queries], rows, dim) for dim in dims]
    expected, clear = [slow(scores, task) for scores in exact], [untied(scores, task) for scores in exact]
    for queries_at_once, candidates_at_once in ((256, 4096), (7, 130)):
        monkeypatch.setattr(EmbeddingScores, "queries_at_once", queries_at_once)
        monkeypatch.setattr(search_scores, "CANDIDATES_AT_ONCE", candidates_at_once)
        found = search(EmbeddingScores(rows[queries], rows, dims), task)
        assert tuple(found) == NAMES
        for m, name in itertools.product(range(len(dims)), NAMES):
            wanted = np.array(expected[m][name])[clear[m]]
            assert found[name][m][clear[m]] == pytest.approx(wanted, abs=1e-9), (name, dims[m])


@pytest.mark.slow
def test_it_is_the_evaluator_of_sentence_transformers() -> None:
    """Separate queries and corpus, where nothing is tied."""
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
    from sentence_transformers.util import cos_sim

    rng = np.random.default_rng(3)
    queries, corpus = (rng.normal(size=(count, 16)).astype(np.float32) for count in (40, 300))
    right = rng.random((40, 300)) < 0.02
    right[np.arange(40), np.argsort(-cosines(queries, corpus, 8))[np.arange(40), rng.integers(20, size=40)]] = True
    found = search(EmbeddingScores(queries, corpus, (8,)), SearchTask(csr_matrix(right), csr_matrix(right.shape)))

    class Embedded:
        """Stands for a model: a text is the number of its embedding."""

        similarity_fn_name, model_card_data, similarity = "cosine", None, staticmethod(cos_sim)

        def encode_query(self, texts: list[str], **_: object) -> torch.Tensor:
            return torch.from_numpy(queries[[int(text) for text in texts], :8])

        def encode_document(self, texts: list[str], **_: object) -> torch.Tensor:
            return torch.from_numpy(corpus[[int(text) for text in texts], :8])

    peer = InformationRetrievalEvaluator(
        {str(i): str(i) for i in range(40)},
        {str(i): str(i) for i in range(300)},
        {str(i): {str(j) for j in np.flatnonzero(row)} for i, row in enumerate(right)},
        accuracy_at_k=[1, 5, 10],
        precision_recall_at_k=[1, 5, 10],
        score_functions={"cosine": cos_sim},
    ).compute_metrices(Embedded())["cosine"]
    for k in (1, 5, 10):
        assert found[f"success@{k}"].mean() == pytest.approx(peer["accuracy@k"][k], abs=1e-12)
        assert found[f"recall@{k}"].mean() == pytest.approx(peer["recall@k"][k], abs=1e-12)
    for name, kind in (("mrr@10", "mrr@k"), ("ndcg@10", "ndcg@k")):
        assert found[name].mean() == pytest.approx(peer[kind][10], abs=1e-12)
    assert found["map@100"].mean() == pytest.approx(peer["map@k"][100], abs=1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_where_candidates_tie_the_measures_are_means_over_all_orders(seed: int) -> None:
    """Eight texts of few directions: every order of the tied ones is written out."""
    rng = np.random.default_rng(seed)
    rows = np.eye(4, dtype=np.float32)[rng.integers(3, size=8)] + np.eye(4, dtype=np.float32)[rng.integers(4, size=8)]
    linked = np.triu(rng.random((8, 8)) < 0.4, 1)
    linked |= linked.T
    queries = np.flatnonzero(linked.any(axis=1))
    task = SearchTask(csr_matrix(linked[queries]), csr_matrix(np.eye(8)[queries]))
    found = search(EmbeddingScores(rows[queries], rows, (4,)), task)
    scores = np.round(cosines(rows, rows, 4), 6)
    for q, query in enumerate(queries.tolist()):
        right = set(np.flatnonzero(linked[query]).tolist())
        levels = itertools.groupby(
            sorted(set(range(8)) - {query}, key=lambda text: -scores[query, text]), key=scores[query].__getitem__
        )
        orders = itertools.product(*(itertools.permutations(texts) for _, texts in levels))
        each = [of_order(list(itertools.chain(*order)), right) for order in orders]
        expected = {name: np.mean([measures[name] for measures in each]) for name in NAMES}
        assert {name: values[0, q] for name, values in found.items()} == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_closed_forms_are_means_of_drawn_orders_deep_in_a_ranking(seed: int) -> None:
    """Tie groups across places 1, 5, 10 and 100, which no enumeration reaches: 4,000 drawn orders, to 5 errors."""
    rng = np.random.default_rng(seed)
    relevant, tied, apart = rng.integers(1, 4, size=3), rng.integers(4, 60, size=3), rng.integers(0, 9, size=3)
    before = np.cumsum(apart + np.append(0, tied[:-1]))
    place = np.cumsum(relevant) - relevant
    zero = np.zeros(3, dtype=np.int64)
    found = expected_measures(TieGroups(zero, place, before, relevant, tied), np.array([relevant.sum()]))[:, 0]
    drawn = []
    for _ in range(4000):
        order: list[int] = []
        for right, size, gap in zip(relevant, tied, apart, strict=True):
            order += [0] * gap + rng.permutation([1] * right + [0] * (size - right)).tolist()
        ranked = [place if right else -place - 1 for place, right in enumerate(order)]
        drawn.append(list(of_order(ranked, {text for text in ranked if text > 0 or (order[0] and text == 0)}).values()))
    error = np.std(drawn, axis=0) / math.sqrt(len(drawn)) + 1e-9
    assert (np.abs(found - np.mean(drawn, axis=0)) < 5 * error).all()


def test_ties_are_chance() -> None:
    """Forty equal texts, three of them right for the first: what drawing ten of 39 without looking finds."""
    links, own = np.zeros((1, 40)), np.zeros((1, 40))
    links[0, 1:4], own[0, 0] = 1, 1
    for same in (np.ones((40, 3), dtype=np.float32), np.zeros((40, 3), dtype=np.float32)):
        found = search(EmbeddingScores(same[:1], same, (2, 3)), SearchTask(csr_matrix(links), csr_matrix(own)))
        nothing = [math.comb(36, k) / math.comb(39, k) for k in range(11)]
        assert [found[f"success@{k}"][1, 0] for k in (1, 5, 10)] == pytest.approx([1 - nothing[k] for k in (1, 5, 10)])
        assert [found[f"recall@{k}"][1, 0] for k in (1, 5, 10)] == pytest.approx([k / 39 for k in (1, 5, 10)])


@pytest.mark.numbers
@pytest.mark.parametrize(("size", "width"), [(37, 100), (301, 384), (1003, 768)])
def test_rounding_breaks_no_tie(size: int, width: int) -> None:
    """Copies of one embedding, and of nearly one: products in float32 differ by where in the matrix they stand."""
    rng = np.random.default_rng(size)
    rows = np.repeat(rng.normal(size=(1, width)), size, axis=0) * rng.uniform(0.5, 2, size=(size, 1))
    rows = (rows * (1 + 1e-7 * rng.normal(size=rows.shape))).astype(np.float32)
    near = np.arange(30)
    task = SearchTask(
        csr_matrix((np.ones(30), (near, near ^ 1)), shape=(30, size)),
        csr_matrix((np.ones(30), (near, near)), shape=(30, size)),
    )
    found = search(EmbeddingScores(rows[:30], rows, (width // 3, width)), task)
    assert found["success@10"] == pytest.approx(np.full((2, 30), 10 / (size - 1)))


@pytest.mark.numbers
def test_what_float32_cannot_tell_apart_float64_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """A right answer ahead of 300 others by 3e-6 at most, less than float32 products keep; and the control."""
    rng = np.random.default_rng(0)
    query = rng.normal(size=512)
    aside = rng.normal(size=(301, 512))
    aside -= np.outer(aside @ query, query) / (query @ query)
    aside /= np.linalg.norm(aside, axis=1, keepdims=True)
    lean = 0.9 + np.linspace(0, -9e-4, 301)[:, None]  # cosines 3e-6 apart, as float32 rounds the embeddings
    rows = (lean * query / np.linalg.norm(query) + np.sqrt(1 - lean**2) * aside).astype(np.float32)
    queries = query.astype(np.float32)[None]
    exact = np.argsort(-cosines(queries, rows, 512)[0])
    assert np.diff(-np.sort(-cosines(queries, rows, 512)[0])).max() < -2e-6

    def reciprocal_rank_sum() -> list[float]:
        found = []
        for place in range(10):
            task = SearchTask(csr_matrix(np.eye(301)[exact[[place]]]), csr_matrix((1, 301)))
            found.append(float(search(EmbeddingScores(queries, rows, (512,)), task)["mrr@10"][0, 0]))
        return found

    wanted = [1 / rank for rank in range(1, 11)]
    assert reciprocal_rank_sum() == pytest.approx(wanted, abs=1e-12)
    noise, plain = EmbeddingScores(queries, rows, (512,)).slack[0], EmbeddingScores.open

    def open_noisy(scores: EmbeddingScores, block: Block) -> Opened:  # as far off as the bound allows
        opened = plain(scores, block)

        def disturb() -> Iterator[Tile]:
            for tile in opened.tiles:
                yield tile._replace(scores=tile.scores + noise * torch.empty_like(tile.scores).uniform_(-0.9, 0.9))

        return opened._replace(tiles=disturb())

    monkeypatch.setattr(EmbeddingScores, "open", open_noisy)
    assert reciprocal_rank_sum() == pytest.approx(wanted, abs=1e-12)
    monkeypatch.setattr(search_scores, "UNIT_ROUNDOFF", 0.0)
    assert reciprocal_rank_sum() != pytest.approx(wanted, abs=1e-3)  # trusting such products is not enough


def test_only_earlier_texts_are_candidates_and_copies_are_none() -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(200, 6)).astype(np.float32)
    queries = np.arange(60, 200)
    relevant, excluded = np.zeros((140, 200), dtype=bool), np.zeros((140, 200), dtype=bool)
    for q, query in enumerate(queries):
        relevant[q, rng.choice(query, size=2, replace=False)] = True
        excluded[q, rng.choice(200, size=5)] = True
    excluded &= ~relevant
    task = SearchTask(csr_matrix(relevant), csr_matrix(excluded), queries)
    found = search(EmbeddingScores(rows[queries], rows, (6,)), task)
    expected = slow(cosines(rows[queries], rows, 6), task)
    assert all(found[name][0] == pytest.approx(expected[name], abs=1e-9) for name in NAMES)
    everything = search(EmbeddingScores(rows[queries], rows, (6,)), SearchTask(task.relevant, csr_matrix((140, 200))))
    assert found["mrr@10"].mean() > everything["mrr@10"].mean()  # more candidates, harder to find


def test_length_is_no_advantage_and_input_is_left_alone() -> None:
    rows, queries, task = draw(80, 8, 20, seed=2)
    stretched = rows * np.random.default_rng(0).choice([1e-15, 0.5, 4.0, 1e15], size=(80, 1)).astype(np.float32)
    before = stretched.copy()
    found, again = (search(EmbeddingScores(some[queries], some, (2, 8)), task) for some in (rows, stretched))
    assert all(found[name] == pytest.approx(again[name], abs=1e-9) for name in NAMES)
    assert np.array_equal(stretched, before)


def test_what_does_not_fit_is_refused() -> None:
    rows, queries, task = draw(20, 4, 5, seed=0)
    for dims in ((), (5,), (0,), (4, 2), (2, 2)):
        with pytest.raises(ValueError, match="do not fit"):
            EmbeddingScores(rows[queries], rows, dims)
    broken = rows.copy()
    broken[3, 2] = np.nan
    with pytest.raises(NumericError, match="corpus: embeddings are not finite"):
        EmbeddingScores(rows[queries], broken, (4,))
    with pytest.raises(ValueError, match="needs a right answer"):
        SearchTask(csr_matrix(task.relevant.shape), task.excluded)
    with pytest.raises(ValueError, match="is excluded"):
        SearchTask(task.relevant, task.relevant)
    with pytest.raises(ValueError, match="is excluded"):
        SearchTask(task.relevant, task.excluded, np.zeros(len(queries), dtype=np.int64))
    with pytest.raises(ValueError, match="do not fit"):
        SearchTask(task.relevant, task.excluded[1:])


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus() -> None:
    """Beyond what each text has anyway: its lengths."""
    peaks = []
    for size in (10_000, 40_000):
        rows = np.random.default_rng(0).normal(size=(size, 16)).astype(np.float32)
        near = np.arange(600)
        links = csr_matrix((np.ones(600), (near, near ^ 1)), shape=(600, size))
        task = SearchTask(links, csr_matrix((600, size)))
        tracemalloc.start()
        search(EmbeddingScores(rows[:600], rows, (8, 16)), task)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 30_000 * 256


# ---- BM25 and the fusion


def okapi(query: list[str], texts: list[list[str]]) -> list[float]:
    """BM25 of texts for a query, from its definition: k1 = 1.5, b = 0.75."""
    length = sum(map(len, texts)) / len(texts)
    scores = [0.0] * len(texts)
    for word in query:
        holding = sum(word in text for text in texts)
        idf = math.log(1 + (len(texts) - holding + 0.5) / (holding + 0.5))
        for i, text in enumerate(texts):
            often = text.count(word)
            scores[i] += idf * often / (often + 1.5 * (0.25 + 0.75 * len(text) / length))
    return scores


WORDS = ["disk", "full", "printer", "queue", "login", "fails", "mail", "slow", "vpn", "drops", "again", "today"]


def sentences(count: int, seed: int) -> list[str]:
    """Texts of four to nine of a few words, so that many tie."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=rng.integers(4, 10))) for _ in range(count)]


def words_task(texts: list[str], seed: int) -> SearchTask:
    """Every text searches for two others."""
    rng, size = np.random.default_rng(seed), len(texts)
    relevant = np.zeros((size, size), dtype=bool)
    for query in range(size):
        relevant[query, rng.choice(np.delete(np.arange(size), query), size=2, replace=False)] = True
    return SearchTask(csr_matrix(relevant), csr_matrix(np.eye(size)))


@pytest.mark.slow
def test_bm25_is_its_definition() -> None:
    texts = sentences(24, seed=4)
    task = words_task(texts, seed=5)
    scores = np.array([okapi(text.split(), [other.split() for other in texts]) for text in texts])
    assert np.concatenate([BM25Scores(texts, texts).rows(task.block(0, 24))]) == pytest.approx(scores, rel=1e-5)
    found = search(BM25Scores([text.upper() for text in texts], texts), task)
    for name, (mean, error) in of_drawn_orders(scores.round(5), task, 1e-7).items():
        assert (np.abs(found[name][0] - mean) <= error).all() and error.min() < 1e-8, name


def test_a_text_without_a_known_word_finds_by_chance() -> None:
    links = csr_matrix(np.eye(40)[[1, 2]])
    found = search(
        BM25Scores(["", "?!"], [f"word{i} again" for i in range(40)]), SearchTask(links, csr_matrix((2, 40)))
    )
    assert found["success@10"] == pytest.approx(np.full((1, 2), 10 / 40))


def test_without_the_library_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(InputError, match="install the extra `mine`"):
        BM25Scores(["a"], ["b"])


def test_reciprocal_ranks_share_ties_and_end_where_a_tie_reaches_too_deep(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.array([[0.1, 0.9, 0.5, 0.5, -np.inf], [0.3, 0.3, 0.3, 0.3, 0.9]])
    wanted = [[1 / 64, 1 / 61, 1 / 62.5, 1 / 62.5, 0], [*[1 / 63.5] * 4, 1 / 61]]
    assert reciprocal_ranks(scores, 1e-6) == pytest.approx(np.array(wanted))
    monkeypatch.setattr(search_scores, "FUSED_DEPTH", 3)
    wanted = [[0, 1 / 61, 1 / 62.5, 1 / 62.5, 0], [0, 0, 0, 0, 1 / 61]]
    assert reciprocal_ranks(scores, 1e-6) == pytest.approx(np.array(wanted))


@pytest.mark.slow
def test_the_fusion_is_that_of_both_rankings() -> None:
    """Where fused scores tie, as 1/61 + 1/62 and 1/62 + 1/61 do, by the mean over drawn orders."""
    from scipy.stats import rankdata

    texts = sentences(24, seed=6)
    task = words_task(texts, seed=7)
    rows = np.random.default_rng(8).normal(size=(24, 8)).astype(np.float32)
    found = search(FusedScores(BM25Scores(texts, texts), EmbeddingScores(rows, rows, (3, 8))), task)
    words = np.array([okapi(text.split(), [other.split() for other in texts]) for text in texts]).round(4)
    for m, dim in enumerate((3, 8)):
        both, by_cosine = np.zeros((24, 24)), cosines(rows, rows, dim)
        for query in range(24):
            others = np.delete(np.arange(24), query)
            shared = others[words[query, others] > 0]
            both[query, shared] += 1 / (60 + rankdata(-words[query, shared]))
            both[query, others] += 1 / (60 + rankdata(-by_cosine[query, others]))
        for name, (mean, error) in of_drawn_orders(both, task, 1e-10).items():
            assert (np.abs(found[name][m] - mean) <= error).all() and error.min() < 1e-8, name


def of_drawn_orders(scores: np.ndarray, task: SearchTask, jitter: float) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Measure -> mean over 100 orders of what ties, and how far off it may be, [Q] each: not at all where nothing does.

    Elsewhere five standard errors, and what an order of few makes that 100 draws meet by luck.
    """
    draws = [slow(scores + np.random.default_rng(n).uniform(0, jitter, size=scores.shape), task) for n in range(100)]
    means = {}
    for name in NAMES:
        drawn = np.array([each[name] for each in draws])
        certain = np.ptp(drawn, axis=0) == 0
        means[name] = drawn.mean(axis=0), np.where(certain, 1e-9, 0.5 * drawn.std(axis=0) + 0.02)
    return means
