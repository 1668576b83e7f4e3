"""The metrics against scikit-learn and slow obvious versions, with ties, imbalance and both precisions."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.evaluation.pair_metrics import (
    JUDGING,
    METRICS,
    average_precision,
    best_f1,
    classify_at,
    length_similarity,
    pair_metrics,
    pearson,
    prefix_cosines,
    roc_auc,
    same_category,
    separability,
    spearman,
    spearman_ceiling,
)

# What the case stresses: (number of pairs, distinct scores or 0 for no ties, share of positives).
CASES = [(400, 0, 0.5), (400, 5, 0.5), (1000, 40, 0.02), (1000, 0, 0.97), (60, 1, 0.3), (3, 0, 0.5), (2, 0, 0.5)]


def draw(n: int, levels: int, share: float, dtype: Any, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores that know something of the labels, labels of both classes, and a graded target with ties."""
    rng = np.random.default_rng(seed)
    labels = rng.random(n) < share
    labels[rng.permutation(n)[:2]] = [True, False]
    scores = rng.normal(size=n) * 0.2 + 0.15 * labels
    if levels:
        scores = np.round(np.clip(scores + 0.5, 0, 1) * (levels - 1)) / max(levels - 1, 1)
    graded = np.round(4 * rng.random(n) + labels)
    return scores.astype(dtype), labels, graded


over_cases = pytest.mark.parametrize("case", CASES, ids=str)
over_dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
over_seeds = pytest.mark.parametrize("seed", range(3))


def slow_pearson(x: list[float], y: list[float]) -> float:
    """The definition, in exactly rounded sums."""
    means = math.fsum(x) / len(x), math.fsum(y) / len(y)
    a, b = [value - means[0] for value in x], [value - means[1] for value in y]
    squares = math.fsum(value**2 for value in a) * math.fsum(value**2 for value in b)
    return math.fsum(p * q for p, q in zip(a, b, strict=True)) / math.sqrt(squares) if squares > 1e-20 else math.nan


def slow_ranks(values: list[float]) -> list[float]:
    """How many are lower, and half of the others that are equal."""
    return [sum(other < value for other in values) + (values.count(value) + 1) / 2 for value in values]


@pytest.mark.slow
@over_dtypes
@over_cases
def test_correlations_are_the_definitions(case: tuple[int, int, float], dtype: Any) -> None:
    scores, labels, graded = draw(*case, dtype, seed=1)
    x = scores.astype(np.float64).tolist()
    for target in (graded, labels):
        y = target.astype(float).tolist()
        assert pearson(scores, target) == pytest.approx(slow_pearson(x, y), abs=1e-12, nan_ok=True)
        expected = slow_pearson(slow_ranks(x), slow_ranks(y))
        assert spearman(scores, target) == pytest.approx(expected, abs=1e-12, nan_ok=True)


@over_seeds
@over_dtypes
@over_cases
def test_rankings_agree_with_scikit_learn(case: tuple[int, int, float], dtype: Any, seed: int) -> None:
    from sklearn import metrics as peer

    scores, labels, _ = draw(*case, dtype, seed)
    assert roc_auc(scores, labels) == pytest.approx(peer.roc_auc_score(labels, scores), abs=1e-12)
    assert average_precision(scores, labels) == pytest.approx(peer.average_precision_score(labels, scores), abs=1e-12)
    for threshold in (best_f1(scores, labels)[1], 0.1, float(scores.max()) + 1):
        called = scores.astype(np.float64) >= threshold
        precision, recall, f1, _ = peer.precision_recall_fscore_support(
            labels, called, average="binary", zero_division=np.nan
        )
        rate = np.mean(called[~labels])
        expected = {"precision": precision, "recall": recall, "f1": f1, "false_positive_rate": rate}
        assert classify_at(scores, labels, threshold) == pytest.approx(expected, abs=1e-12, nan_ok=True)


@over_dtypes
@over_cases
def test_roc_auc_is_the_share_of_pairs_in_order(case: tuple[int, int, float], dtype: Any) -> None:
    scores, labels, _ = draw(*case, dtype, seed=9)
    difference = scores[labels][:, None] - scores[~labels][None, :]
    assert roc_auc(scores, labels) == pytest.approx(np.mean((difference > 0) + (difference == 0) / 2), abs=1e-12)


def slow_best_f1(scores: np.ndarray, labels: np.ndarray) -> tuple[float, list[float]]:
    """Every cut tried: the best F1 and, ascending, the scores that are the last to be called positive for it."""
    tried = {}
    for cut in sorted(set(scores.tolist())):
        called = scores >= scores.dtype.type(cut)
        hits = int((called & labels).sum())
        tried[cut] = 2 * hits / (int(called.sum()) + int(labels.sum()))
    best = max(tried.values())
    return best, [cut for cut, f1 in tried.items() if f1 == best]


def check_best_f1(scores: np.ndarray, labels: np.ndarray) -> None:
    f1, threshold = best_f1(scores, labels)
    expected, cuts = slow_best_f1(scores, labels)
    assert f1 == expected
    below = scores[scores < cuts[0]]
    assert threshold <= cuts[0]
    assert not below.size or threshold > below.max()
    # Whatever precision the comparison runs in, the threshold gives the F1 that was promised.
    assert classify_at(scores, labels, threshold)["f1"] == f1
    called = scores >= scores.dtype.type(threshold)
    assert 2 * int((called & labels).sum()) / (int(called.sum()) + int(labels.sum())) == f1


@over_seeds
@over_dtypes
@over_cases
def test_best_f1_tries_every_cut(case: tuple[int, int, float], dtype: Any, seed: int) -> None:
    scores, labels, _ = draw(*case, dtype, seed)
    check_best_f1(scores, labels)


@pytest.mark.slow
@settings(deadline=None)
@given(data=st.data(), width=st.sampled_from([16, 32, 64]))
def test_best_f1_holds_for_any_floats(data: st.DataObject, width: Any) -> None:
    n = data.draw(st.integers(2, 12))
    values = st.floats(width=width, allow_nan=False, allow_infinity=False)
    scores = np.array(data.draw(st.lists(values, min_size=n, max_size=n)), dtype=f"float{width}")
    labels = np.array([True, False, *data.draw(st.lists(st.booleans(), min_size=n - 2, max_size=n - 2))])
    check_best_f1(scores, labels)


@over_dtypes
@pytest.mark.parametrize("start", [0.5, 0.7, 0.75, 1.0, -0.7])
def test_threshold_between_adjacent_floats(start: float, dtype: Any) -> None:
    upper = lower = dtype(start)
    roundings = set()
    for _ in range(4):  # the midpoint of two neighbours rounds down for every other pair of them
        lower, upper = upper, np.nextafter(upper, dtype(2))
        roundings.add(bool((lower + upper) / 2 == lower))
        assert best_f1(np.array([lower, upper]), np.array([False, True])) == (1.0, float(upper))
    assert roundings == {True, False}


def test_threshold_is_halfway_and_the_lowest_of_equals() -> None:
    assert best_f1(np.array([0.9, 0.5, 0.1]), np.array([1, 1, 0])) == (1.0, 0.3)
    # One positive on top (P 1, R 1/2) and everything (P 1/2, R 1) both give F1 2/3.
    assert best_f1(np.array([0.9, 0.5, 0.3, 0.1]), np.array([1, 0, 0, 1])) == (2 / 3, 0.1)
    assert best_f1(np.array([0.2, 0.2, 0.2]), np.array([1, 0, 0])) == (0.5, 0.2)
    smallest = np.float16(6e-8)  # half of which is 0
    assert best_f1(np.array([-smallest, 0], dtype=np.float16), np.array([1, 0])) == (2 / 3, float(-smallest))


@over_dtypes
@over_cases
def test_separability_is_the_definition(case: tuple[int, int, float], dtype: Any) -> None:
    scores, labels, _ = draw(*case, dtype, seed=5)
    difference, cohens_d = separability(scores, labels)
    positive, negative = scores[labels].astype(float).tolist(), scores[~labels].astype(float).tolist()
    means = math.fsum(positive) / len(positive), math.fsum(negative) / len(negative)
    squares = math.fsum((x - means[0]) ** 2 for x in positive) + math.fsum((x - means[1]) ** 2 for x in negative)
    assert difference == pytest.approx(means[0] - means[1], abs=1e-12)
    if squares < 1e-20:
        assert math.isnan(cohens_d)
    else:
        pooled = math.sqrt(squares / (len(scores) - 2))
        assert cohens_d == pytest.approx((means[0] - means[1]) / pooled, rel=1e-9)


def test_undefined_values_are_nan() -> None:
    labels = np.array([True, False, False, True])
    constant = np.full(4, 0.1)  # its mean is not exactly 0.1 in floats
    assert math.isnan(pearson(constant, labels))
    assert math.isnan(spearman(constant, labels))
    assert math.isnan(pearson(labels, constant))
    assert separability(np.where(labels, 0.3, 0.1), labels)[0] == pytest.approx(0.2)
    assert math.isnan(separability(np.where(labels, 0.3, 0.1), labels)[1])
    assert math.isnan(classify_at(constant, labels, 0.2)["precision"])
    assert classify_at(constant, labels, 0.2)["f1"] == 0.0
    assert roc_auc(constant, labels) == 0.5


def test_a_hair_of_variance_is_not_constant() -> None:
    scores = np.array([1.0, np.nextafter(1.0, 2.0)] * 3)
    assert pearson(scores, np.array([0, 1] * 3)) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.slow
@settings(deadline=None)
@given(
    scores=st.lists(st.integers(-50, 50), min_size=2, max_size=40),
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([2.0**-8, 1.0, 2.0**8]),
)
def test_rankings_ignore_monotone_changes_and_order(scores: list[int], seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    x, labels = np.array(scores, dtype=np.float64), rng.random(len(scores)) < 0.5
    labels[:2] = [True, False]
    order, other = rng.permutation(len(x)), scale * x**3 + 1
    for metric in (spearman, roc_auc, average_precision):
        value = metric(x, labels)
        assert metric(other, labels) == pytest.approx(value, abs=1e-12, nan_ok=True)
        assert metric(x[order], labels[order]) == pytest.approx(value, abs=1e-12, nan_ok=True)
    assert best_f1(other, labels)[0] == best_f1(x, labels)[0]
    assert roc_auc(-x, labels) == pytest.approx(1 - roc_auc(x, labels), abs=1e-12)
    assert roc_auc(x, ~labels) == pytest.approx(1 - roc_auc(x, labels), abs=1e-12)


@over_dtypes
def test_pair_metrics_collects_the_others(dtype: Any) -> None:
    scores, labels, graded = draw(300, 50, 0.3, dtype, seed=1)
    found = pair_metrics(scores, graded, labels)
    f1, threshold = best_f1(scores, labels)
    difference, cohens_d = separability(scores, labels)
    assert found == {
        "spearman": spearman(scores, graded),
        "pearson": pearson(scores, graded),
        "roc_auc": roc_auc(scores, labels),
        "average_precision": average_precision(scores, labels),
        "f1": f1,
        "threshold": threshold,
        **classify_at(scores, labels, threshold),
        "separability": difference,
        "separability_d": cohens_d,
    }
    assert len(found) == 11
    assert {type(value) for value in found.values()} == {float}
    assert found["spearman"] != spearman(scores, labels)


def test_a_frozen_threshold_is_applied() -> None:
    scores, labels, graded = draw(300, 50, 0.3, np.float64, seed=2)
    frozen = pair_metrics(scores, graded, labels, 0.6)
    assert frozen["threshold"] == 0.6 and frozen.items() >= classify_at(scores, labels, 0.6).items()
    assert frozen["f1"] < pair_metrics(scores, graded, labels)["f1"]


def test_every_metric_that_judges_is_higher_for_better_scores_and_for_no_threshold_alone() -> None:
    labels = np.arange(200) % 2 == 0
    noise = np.random.default_rng(0).normal(size=200)
    weak, strong = (pair_metrics(gap * labels + noise, labels, labels, gap / 2) for gap in (0.5, 3.0))
    assert all(strong[name] > weak[name] for name in JUDGING)
    scores = labels + noise
    ends = [pair_metrics(scores, labels, labels, threshold) for threshold in (-9.0, 0.0, 1.5)]
    best = pair_metrics(scores, labels, labels)
    raised = {name for name in METRICS if any(each[name] > best[name] for each in ends)}
    assert raised == METRICS.keys() - set(JUDGING)


def test_shortcut_scores_are_what_they_say() -> None:
    assert length_similarity(np.array([1, 3, 9]), np.array([4, 3, 1])).tolist() == [-3, 0, -8]
    first, second = np.array(["x", "x", "", ""], dtype=object), np.array(["x", "y", "", "x"], dtype=object)
    assert same_category(first, second, "").tolist() == [1, 0, 0, 0]  # two unknown ones are no match
    assert same_category(np.array([2, -1]), np.array([2, -1]), -1).tolist() == [1, 0]


@pytest.mark.slow
@pytest.mark.parametrize("positives", [1, 3, 6, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 4, 5))])
def test_spearman_ceiling_by_brute_force(positives: int) -> None:
    for n in range(positives + 1, 7):
        labels = np.arange(n) < positives
        highest = max(spearman(np.array(order), labels) for order in permutations(range(n)))
        assert spearman_ceiling(labels) == pytest.approx(highest, abs=1e-12)


def test_spearman_ceiling_is_0866_at_one_half() -> None:
    labels = np.arange(10_000) % 2
    assert spearman_ceiling(labels) == pytest.approx(math.sqrt(3) / 2, abs=1e-7)
    assert spearman_ceiling(labels) == pytest.approx(spearman(labels + np.linspace(0, 0.5, 10_000), labels), abs=1e-12)
    assert spearman(labels, labels) == pytest.approx(1.0)  # ties within the classes are outside its promise


def slow_cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norms if norms else 0.0


@pytest.mark.slow
@over_seeds
@over_dtypes
@pytest.mark.parametrize("dims", [(24, 16, 8, 3), (3, 8, 24), (16,), (1, 24, 1)], ids=str)
@pytest.mark.parametrize("n", [0, 1, 513, 1500])
def test_prefix_cosines_are_the_cosines_of_the_prefixes(n: int, dims: tuple[int, ...], dtype: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=(2, n, 24)).astype(dtype)
    first[: n // 2, : rng.integers(1, 25)] = 0
    second[n // 3 : n // 2] = first[n // 3 : n // 2]
    before = first.copy()
    found = prefix_cosines(first, second, dims)
    expected = [[slow_cosine(a[:d], b[:d]) for a, b in zip(first, second, strict=True)] for d in dims]
    assert found.shape == (len(dims), n)
    np.testing.assert_allclose(found, np.array(expected).reshape(len(dims), n), atol=1e-13)
    assert np.array_equal(first, before)


def test_prefix_cosines_stay_in_range_and_zero_prefixes_give_zero() -> None:
    rows = np.random.default_rng(3).normal(size=(500, 32)).astype(np.float32)
    same = prefix_cosines(rows, 3 * rows, [8, 32])
    assert same.max() <= 1.0
    np.testing.assert_allclose(same, 1.0, atol=1e-6)
    rows[:, :8] = 0
    assert (prefix_cosines(rows, rows, [8]) == 0).all()
    np.testing.assert_allclose(prefix_cosines(rows, rows, [32]), 1.0, atol=1e-12)


NAN, INF = float("nan"), float("inf")
ON_LABELS: list[Callable[..., Any]] = [
    roc_auc,
    average_precision,
    best_f1,
    separability,
    lambda scores, labels: classify_at(scores, labels, 0.5),
    lambda scores, labels: pair_metrics(scores, np.arange(len(scores)), labels),
]
ON_LABELS_NAMES = ["roc_auc", "average_precision", "best_f1", "separability", "classify_at", "pair_metrics"]


@pytest.mark.parametrize("metric", ON_LABELS, ids=ON_LABELS_NAMES)
@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([0.1, NAN, 0.3], [0, 1, 1], "scores must be finite: value 1"),
        ([0.1, 0.2, INF], [0, 1, 1], "scores must be finite: value 2"),
        ([0.1, 0.2, 0.3], [0, 1, NAN], "labels must be finite: value 2"),
        ([0.1, 0.2, 0.3], [1, 1, 1], "all 3 labels are 1"),
        ([0.1, 0.2, 0.3], [0, 0, 0], "all 3 labels are 0"),
        ([0.1, 0.2, 0.3], [0, 1, 0.5], "labels must be 0 or 1"),
        ([0.1, 0.2], [0, 1, 1], "2 scores for 3 labels"),
        ([], [], "non-empty"),
        ([[0.1], [0.2]], [0, 1], "of one dimension"),
    ],
)
def test_wrong_pairs_are_refused(metric: Callable[..., Any], scores: Any, labels: Any, message: str) -> None:
    metric(np.array([0.1, 0.2, 0.3]), np.array([0, 1, 1]))  # the control
    with pytest.raises(ValueError, match=message):
        metric(np.array(scores), np.array(labels))


@pytest.mark.parametrize("metric", [spearman, pearson])
@pytest.mark.parametrize(
    ("scores", "target", "message"),
    [
        ([0.1, NAN], [0, 1], "scores must be finite: value 1"),
        ([0.1, 0.2], [NAN, 1], "target must be finite: value 0"),
        ([0.1, 0.2], [0, 1, 2], "2 scores for 3 targets"),
        ([], [], "non-empty"),
    ],
)
def test_wrong_targets_are_refused(metric: Callable[..., float], scores: Any, target: Any, message: str) -> None:
    assert metric(np.array([0.1, 0.2]), np.array([0.0, 5.0])) == pytest.approx(1.0)  # the control
    with pytest.raises(ValueError, match=message):
        metric(np.array(scores), np.array(target))


def test_other_wrong_arguments_are_refused() -> None:
    rows = np.ones((4, 8))
    for dims in ([], [0], [-1, 4], [4, 9]):
        with pytest.raises(ValueError, match=r"dims must lie in 1 \.\. 8"):
            prefix_cosines(rows, rows, dims)
    for other in (np.ones((4, 7)), np.ones((3, 8)), np.ones(8)):
        with pytest.raises(ValueError, match="arrays of one shape"):
            prefix_cosines(rows, other, [4])
    for value in (NAN, INF):
        broken = rows.copy()
        broken[2, 1] = value
        with pytest.raises(ValueError, match="must be finite"):
            prefix_cosines(rows, broken, [8, 4])
    with pytest.raises(ValueError, match="threshold"):
        classify_at(np.array([0.1, 0.2]), np.array([0, 1]), NAN)
    with pytest.raises(ValueError, match="both classes"):
        spearman_ceiling(np.ones(5))


@pytest.mark.slow
def test_a_hundred_thousand_pairs_take_memory_for_their_number_not_its_square() -> None:
    scores, labels, graded = draw(100_000, 0, 0.3, np.float32, seed=0)
    embeddings = np.random.default_rng(0).normal(size=(2, 100_000, 64)).astype(np.float32)
    tracemalloc.start()
    pair_metrics(scores, graded, labels)
    prefix_cosines(embeddings[0], embeddings[1], (64, 32, 16))
    assert tracemalloc.get_traced_memory()[1] < 100_000 * 1000  # bytes
    tracemalloc.stop()
