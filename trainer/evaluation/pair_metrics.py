"""How well scores of pairs agree with their labels: pure functions on arrays, O(N log N).

Legend: N pairs, E embedding width, M Matryoshka dims. `scores` [N] are similarities (higher is more alike),
`labels` [N] say whether a pair is positive (bool, or 0 and 1), `target` [N] is a graded or binary truth.

All raise ValueError on empty arrays, unequal lengths and values that are not finite; those that take `labels` also
where one class is missing. NaN is returned only where the value is undefined, as documented.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

FloatArray = NDArray[np.floating[Any]]
BoolArray = NDArray[np.bool_]
Metrics = dict[str, dict[str, float]]
"""Dim (as a string, as JSON has it) -> metric -> value."""


# Rows of embeddings that fit the processor's cache in float64: three times as fast as whole columns at 100,000 pairs.
ROWS_PER_CHUNK = 512


def spearman(scores: np.ndarray, target: np.ndarray) -> float:
    """Spearman's rank correlation, tied values sharing their average rank; NaN where either side is constant."""
    x, y = _aligned(scores, target)
    return pearson(rankdata(x), rankdata(y))


def pearson(scores: np.ndarray, target: np.ndarray) -> float:
    """Pearson's linear correlation; NaN where either side is constant."""
    # Less the first value, which is exact for values close together: a hair of variance is not lost in the mean.
    x, y = (values.astype(np.float64) - float(values[0]) for values in _aligned(scores, target))
    return float(np.corrcoef(x, y)[0, 1]) if x.any() and y.any() else float("nan")


def most_wrong(scores: np.ndarray, labels: np.ndarray, threshold: float) -> NDArray[np.int64]:
    """An order of pairs: those first whose score lies farthest on the wrong side of a threshold."""
    return np.argsort(-np.where(labels, threshold - scores, scores - threshold), kind="stable")


def roc_auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Probability that a positive pair scores above a negative one, ties counted half (Mann-Whitney U / (P * F))."""
    scores, positive = _labelled(scores, labels)
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    wins = float(rankdata(scores)[positive].sum()) - n_positive * (n_positive + 1) / 2
    return wins / (n_positive * n_negative)


def average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Sum over the distinct scores, from the top, of (gain in recall) * precision; tied pairs come in together."""
    _, hits, predicted = distinct_cuts(scores, labels)
    return float(np.sum(np.diff(hits, prepend=0) * (hits / predicted)) / hits[-1])


def distinct_cuts(scores: np.ndarray, labels: np.ndarray) -> tuple[FloatArray, NDArray[np.int64], NDArray[np.int64]]:
    """For each of D distinct scores, from the top: the score, the positives and the pairs at or above it; [D] each."""
    scores, positive = _labelled(scores, labels)
    order = np.argsort(scores)[::-1]
    descending = scores[order]
    last = np.append(np.flatnonzero(descending[1:] != descending[:-1]), len(scores) - 1)
    return descending[last], np.cumsum(positive[order])[last], last + 1


def roc_points(scores: np.ndarray, labels: np.ndarray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """False-positive rates and recalls [D + 1] from (0, 0) to (1, 1), a point a distinct score, from the top."""
    _, hits, predicted = distinct_cuts(scores, labels)
    misses = predicted - hits
    return np.append(0.0, misses / misses[-1]), np.append(0.0, hits / hits[-1])


def best_f1(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Return (F1, threshold): the highest F1 of `scores >= threshold`, and the lowest threshold that gives it.

    A threshold stands halfway between two neighbouring distinct scores, which leaves the widest margin on both
    sides; where every pair is best called positive it is the lowest score. It is representable in the precision
    of `scores`, so that comparing in float32 or in float64 gives the same answer.
    """
    values, hits, predicted = distinct_cuts(scores, labels)
    f1 = 2 * hits / (predicted + hits[-1])
    best = len(f1) - 1 - int(np.argmax(f1[::-1]))
    return float(f1[best]), threshold_below(values, best)


def classify_at(scores: np.ndarray, labels: np.ndarray, threshold: float) -> dict[str, float]:
    """Return precision, recall, f1 and false_positive_rate of calling `scores >= threshold` positive.

    Precision is NaN where no pair reaches the threshold (F1 is then 0).
    """
    scores, positive = _labelled(scores, labels)
    if np.isnan(threshold):
        raise ValueError("threshold must be a number, not NaN")
    called = scores.astype(np.float64) >= threshold
    hits, n_called, n_positive = int((called & positive).sum()), int(called.sum()), int(positive.sum())
    return {
        "precision": hits / n_called if n_called else float("nan"),
        "recall": hits / n_positive,
        "f1": 2 * hits / (n_called + n_positive),
        "false_positive_rate": (n_called - hits) / (len(positive) - n_positive),
    }


def separability(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Return (mean of positives - mean of negatives, the same in pooled standard deviations: Cohen's d).

    The pooled variance is the sum of squares within the classes over N - 2. Cohen's d is NaN where it is 0:
    with N = 2, or with each class constant.
    """
    scores, positive = _labelled(scores, labels)
    exact = scores.astype(np.float64)
    classes = exact[positive], exact[~positive]
    difference = float(classes[0].mean() - classes[1].mean())
    # Deviations are of values less the first one, so that a constant class gives exact zeros.
    squares = sum(float(np.sum((part - part[0] - (part - part[0]).mean()) ** 2)) for part in classes)
    return difference, difference / float(np.sqrt(squares / (len(exact) - 2))) if squares else float("nan")


METRICS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray, float], float]] = {
    "spearman": lambda scores, target, labels, threshold: spearman(scores, target),
    "pearson": lambda scores, target, labels, threshold: pearson(scores, target),
    "roc_auc": lambda scores, target, labels, threshold: roc_auc(scores, labels),
    "average_precision": lambda scores, target, labels, threshold: average_precision(scores, labels),
    "precision": lambda scores, target, labels, threshold: classify_at(scores, labels, threshold)["precision"],
    "recall": lambda scores, target, labels, threshold: classify_at(scores, labels, threshold)["recall"],
    "f1": lambda scores, target, labels, threshold: classify_at(scores, labels, threshold)["f1"],
    "false_positive_rate": lambda scores, target, labels, threshold: classify_at(scores, labels, threshold)[
        "false_positive_rate"
    ],
    "separability": lambda scores, target, labels, threshold: separability(scores, labels)[0],
    "separability_d": lambda scores, target, labels, threshold: separability(scores, labels)[1],
}
"""Name -> metric of (scores, target, labels, threshold). A metric that is added here is measured, reported, and has its
interval, slowly: until `bootstrap` gets a fast form of it, it is computed on one resample after the other. Where it
must not judge a model, leave it out of JUDGING."""

JUDGING = tuple(name for name in METRICS if name not in ("precision", "recall", "false_positive_rate"))
"""What tells the better of two models. Of the others a threshold alone makes anything."""


def pair_metrics(
    scores: np.ndarray, target: np.ndarray, labels: np.ndarray, threshold: float | None = None
) -> dict[str, float]:
    """All METRICS of one set of pairs, and the "threshold" that f1, precision, recall and the like are read at.

    Args:
        threshold: frozen, from other pairs; None fits it on these very pairs (`best_f1`), which flatters them.
    """
    threshold = best_f1(scores, labels)[1] if threshold is None else threshold
    return {name: metric(scores, target, labels, threshold) for name, metric in METRICS.items()} | {
        "threshold": threshold
    }


def length_similarity(first: np.ndarray, second: np.ndarray) -> NDArray[np.float64]:
    """[N] scores that need no understanding: less the difference of two texts' lengths [N]."""
    return -np.abs(np.subtract(first, second, dtype=np.float64))


def same_category(first: np.ndarray, second: np.ndarray, unknown: Any) -> NDArray[np.float64]:
    """[N] scores that need no understanding: 1 where two categories [N] are equal and known, else 0."""
    return ((first == second) & (first != unknown)).astype(np.float64)


def spearman_ceiling(labels: np.ndarray) -> float:
    """The highest Spearman that scores without ties can reach against binary labels.

    Distinct scores have ranks 1 .. N, binary labels two tied ranks; even in the perfect order the two disagree within
    each class. With p the share of positives the perfect order gives

        cov = p (1 - p) N / 2,  var(ranks) = (N^2 - 1) / 12,  var(labels) = p (1 - p)
        ceiling = sqrt(3 p (1 - p)) * N / sqrt(N^2 - 1)

    which tends to 0.866 for p = 1/2 and large N. Only scores tied within the classes can go beyond it.
    """
    positive = _classes(labels)
    n, share = len(positive), float(positive.mean())
    return float(np.sqrt(3 * share * (1 - share)) * n / np.sqrt(float(n) ** 2 - 1))


def prefix_cosines(first: np.ndarray, second: np.ndarray, dims: Sequence[int]) -> NDArray[np.float64]:
    """Return [M, N]: for each of `dims` (in any order) the cosine of row i of both [N, E] arrays, cut to that width.

    Prefixes nest, so each column is read once: block sums between neighbouring dims, accumulated in float64.
    A pair with an all-zero prefix has cosine 0 at that dim. No pairs (N = 0) give an empty [M, 0].

    Raises ValueError for arrays of unequal shape, for values that are not finite, and for dims outside 1 .. E.
    """
    if first.ndim != 2 or first.shape != second.shape:
        raise ValueError(f"embeddings must be two [N, E] arrays of one shape, not {first.shape} and {second.shape}")
    if not dims or min(dims) < 1 or max(dims) > first.shape[1]:
        raise ValueError(f"dims must lie in 1 .. {first.shape[1]}, not {list(dims)}")
    n, widths = len(first), sorted(set(dims))
    blocks = np.empty((3, len(widths), n))
    for start in range(0, n, ROWS_PER_CHUNK):
        rows = slice(start, start + ROWS_PER_CHUNK)
        a, b = first[rows].astype(np.float64), second[rows].astype(np.float64)
        for k, (low, high) in enumerate(pairwise([0, *widths])):
            a_k, b_k = a[:, low:high], b[:, low:high]
            for row, (x, y) in enumerate(((a_k, b_k), (a_k, a_k), (b_k, b_k))):
                blocks[row, k, rows] = np.einsum("ne,ne->n", x, y)
    dot, square_a, square_b = np.cumsum(blocks, axis=1)
    if not np.isfinite(square_a[-1] + square_b[-1]).all():  # whatever is not finite stays in the running sums
        raise ValueError("embeddings must be finite")
    norms = np.sqrt(square_a) * np.sqrt(square_b)
    cosines: NDArray[np.float64] = np.clip(np.divide(dot, norms, out=np.zeros_like(dot), where=norms > 0), -1.0, 1.0)
    return np.stack([cosines[widths.index(dim)] for dim in dims])


def _finite(values: np.ndarray, name: str) -> FloatArray:
    """Return `values` as a non-empty finite float array [N]; a floating precision is kept."""
    array = np.asarray(values)
    if array.dtype.kind != "f":
        array = array.astype(np.float64)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"{name} must be a non-empty array of one dimension, not of shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite: value {int(np.argmin(np.isfinite(array)))} is not")
    return array


def _aligned(scores: np.ndarray, target: np.ndarray) -> tuple[FloatArray, FloatArray]:
    x, y = _finite(scores, "scores"), _finite(target, "target")
    if len(x) != len(y):
        raise ValueError(f"{len(x)} scores for {len(y)} targets")
    return x, y


def _classes(labels: np.ndarray) -> BoolArray:
    values = _finite(labels, "labels")
    positive: BoolArray = values == 1
    if not (positive | (values == 0)).all():
        raise ValueError("labels must be 0 or 1: give graded values as target")
    if positive.all() or not positive.any():
        raise ValueError(f"all {len(positive)} labels are {int(positive[0])}: both classes are needed")
    return positive


def _labelled(scores: np.ndarray, labels: np.ndarray) -> tuple[FloatArray, BoolArray]:
    values, positive = _finite(scores, "scores"), _classes(labels)
    if len(values) != len(positive):
        raise ValueError(f"{len(values)} scores for {len(positive)} labels")
    return values, positive


def threshold_below(values: FloatArray, last: int) -> float:
    """A threshold that calls positive the descending distinct values up to index `last`, and nothing below."""
    upper, lower = values[last], values[min(last + 1, len(values) - 1)]
    middle = lower / 2 + upper / 2
    # Between two adjacent floats there is no middle, rounding may give the lower one, and half the smallest is 0.
    return float(middle if lower < middle < upper else upper)
