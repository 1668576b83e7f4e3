"""How sure a figure is: a seeded, paired bootstrap over groups of texts. Pure functions on arrays.

Pairs that share a text are not independent: a bootstrap over rows gives intervals that are too narrow. So whole groups
of texts are drawn, with replacement, as many as there are, and with them the pairs between texts that were drawn. The
interval is the middle 95 % of what the resamples give (percentile method; Efron and Tibshirani 1993, "An Introduction
to the Bootstrap"). Every scoring sees the same resamples, so that the difference of two scorings, resample by
resample, is that of the paired bootstrap.

What the groups are is decided in `groups.py`. A resample is a count a group, and gives every pair a weight; no row is
copied. What is a sum over pairs is then one matrix product; what needs ranks is read from running sums of the weights
along the scores, sorted once. The result equals the plain statistic on the rows literally drawn, ties included. A
metric that has no such form here is measured by its plain function on those rows, which is some hundred times slower.

Legend: N pairs, C groups, S scorings of the same pairs (a model at each dim, a baseline beside it), Q queries,
B resamples, b resamples at a time, G distinct values.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trainer.errors import InputError
from trainer.evaluation.groups import FEWEST_GROUPS, Groups, Int, resample_counts
from trainer.evaluation.pair_metrics import METRICS

Float = NDArray[np.float64]

RESAMPLES = 1000
FEWEST_RESAMPLES = 100  # for the ends of an interval
LEVEL = 0.95
# A resample may lack a class, or hold equal scores only. The interval is then that of the others, while they are most.
MOST_UNDEFINED = 0.05
CELLS_AT_ONCE = 2**19  # weights [b, N] that are worked on together: they fit the processor's cache
ROUNDING = 1e-12  # a sum of squares this far below its terms is 0


def check_resampling(resamples: int, seed: int) -> None:
    """Check what a person asks of the bootstrap. Raises InputError."""
    for option, value, least in (("--resamples", resamples, FEWEST_RESAMPLES), ("--seed", seed, 0)):
        if value < least:
            raise InputError(f"{option} {value}: use {least} or more")


def bootstrap_pairs(
    scores: np.ndarray,
    target: np.ndarray,
    labels: np.ndarray,
    thresholds: np.ndarray,
    groups: Groups,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Float]:
    """Every pair metric of every scoring on every resample.

    Args:
        scores: [S, N] similarities.
        target: [N] graded or binary truth, for the correlations.
        labels: [N] True for positive pairs, for everything else.
        thresholds: [S] frozen: scores from there on are called positive.
        groups: of the pairs' texts.

    Returns:
        [S, B] by the names of METRICS. NaN where a resample leaves a value undefined; all NaN with fewer than
        FEWEST_GROUPS effective groups.

    Raises ValueError where the shapes do not fit or a value is not finite.
    """
    scores, target = np.asarray(scores, dtype=np.float64), np.asarray(target, dtype=np.float64)
    positive, thresholds = np.asarray(labels, dtype=np.bool_), np.asarray(thresholds)
    shape = (len(thresholds), len(target))
    if scores.shape != shape or not positive.shape == groups.first.shape == shape[1:]:
        raise ValueError(f"scores {scores.shape} do not fit {shape[0]} thresholds and {shape[1]} targets")
    if not (np.isfinite(scores).all() and np.isfinite(target).all()):
        raise ValueError("scores and target must be finite")
    features, gap = _features(scores, target, positive, thresholds)
    by_target, by_score = _Ranking(target), [_Ranking(row) for row in scores]
    parts = []
    for counts in resample_counts(groups.count, resamples, seed, max(1, CELLS_AT_ONCE // shape[1])):
        weights = groups.weights(counts)
        rank, squares = _centred_ranks(by_target.running(weights))
        truth = by_target.to_rows(rank), squares
        ranked = [_from_ranks(ranking, weights, *truth, positive) for ranking in by_score]
        values = _from_sums((weights @ features).T, gap)
        values |= {name: np.stack([each[name] for each in ranked]) for name in ranked[0]}
        for name in METRICS.keys() - values.keys():
            values[name] = _from_drawn_rows(name, weights, scores, target, positive, thresholds)
        parts.append(values)
    return {name: trusted(np.concatenate([part[name] for part in parts], axis=1), groups) for name in parts[0]}


def bootstrap_means(values: np.ndarray, groups: Groups, *, resamples: int = RESAMPLES, seed: int = 0) -> Float:
    """[S, B] means of values [S, Q] of queries, of groups of queries."""
    rows = np.concatenate([values, np.ones((1, values.shape[1]))]).T
    sums = bootstrap_sums(rows, groups, resamples=resamples, seed=seed)
    return ratio(sums[:-1], sums[-1])


def bootstrap_sums(features: np.ndarray, groups: Groups, *, resamples: int = RESAMPLES, seed: int = 0) -> Float:
    """[F, B] sums of features [N, F] over the pairs drawn, or the queries; NaN where the groups are too few."""
    at_once = max(1, CELLS_AT_ONCE // (groups.count + len(features)))
    drawn = resample_counts(groups.count, resamples, seed, at_once)
    return trusted(np.concatenate([(groups.weights(counts) @ features).T for counts in drawn], axis=1), groups)


def trusted(samples: Float, groups: Groups) -> Float:
    """Samples, NaN with fewer than FEWEST_GROUPS effective groups."""
    return samples if groups.effective >= FEWEST_GROUPS else np.full_like(samples, np.nan)


def interval(samples: np.ndarray) -> Float:
    """[..., 2] low and high end of the 95 % interval of samples [..., B].

    Undefined samples are left out while they are at most MOST_UNDEFINED of all; with more, both ends are NaN.
    """
    hopeless = np.isnan(samples).mean(axis=-1, keepdims=True) > MOST_UNDEFINED
    tail = (1 - LEVEL) / 2
    ends = np.nanquantile(np.where(hopeless, 0.0, samples), [tail, 1 - tail], axis=-1)
    return np.where(hopeless, np.nan, np.moveaxis(ends, 0, -1))


def why_undefined(samples: ArrayLike, groups: Groups) -> str | None:
    """Why `interval` of samples [..., B] is NaN somewhere, in words; None where it is nowhere."""
    share = float(np.isnan(samples).mean(axis=-1).max(initial=0.0))
    if share <= MOST_UNDEFINED:
        return None
    if groups.effective < FEWEST_GROUPS:
        return (
            f"there are {groups.effective:.1f} {groups.kind} to draw from (counted as of equal size), and "
            f"{FEWEST_GROUPS} are needed"
        )
    return f"undefined in {share:.0%} of the resamples: one class only, or too few pairs of it, or all scores equal"


class _Ranking:
    """Rows by descending value, in groups of equal values; G groups."""

    def __init__(self, values: Float) -> None:
        self.order = np.argsort(-values, kind="stable")
        changes = np.diff(values[self.order]) != 0
        self.ends = np.append(np.flatnonzero(changes), len(values) - 1)  # [G] where in the order each group ends
        self.group = np.empty(len(values), dtype=np.int64)  # [N] of each row
        self.group[self.order] = np.concatenate([[0], np.cumsum(changes)])

    def running(self, weights: Int) -> Int:
        """[b, G] weight of all rows down to the end of each group, of weights [b, N]."""
        return np.take(np.cumsum(np.take(weights, self.order, axis=1), axis=1, dtype=np.int32), self.ends, axis=1)

    def to_rows(self, values: Float) -> Float:
        """[b, N] for each row what its group has, of values [b, G]."""
        return np.take(values, self.group, axis=1)


def _centred_ranks(above: Int) -> tuple[Float, Float]:
    """Average ranks [b, G] less their mean, highest first, and their sums of squares [b], of running weights [b, G].

    With n rows in groups of w the sum is ((n^3 - n) - sum of (w^3 - w)) / 12: 0 where all values are equal.
    """
    width = np.diff(above, axis=1, prepend=0).astype(np.float64)
    total = above[:, -1:].astype(np.float64)
    squares = (total**3 - total)[:, 0] - (np.einsum("bg,bg,bg->b", width, width, width) - total[:, 0])
    return (total + width) / 2 - above, squares / 12


def _from_ranks(
    ranking: _Ranking, weights: Int, truth: Float, truth_squares: Float, positive: NDArray[np.bool_]
) -> dict[str, Float]:
    """What depends on the order of one scoring only, [b] each.

    Args:
        weights: [b, N].
        truth: [b, N] centred ranks of the target, and their weighted sums of squares [b].
        positive: [N].
    """
    above, hits = ranking.running(weights), ranking.running(weights * positive)
    rank, squares = _centred_ranks(above)
    gained = np.diff(hits, axis=1, prepend=0).astype(np.float64)
    positives = hits[:, -1].astype(np.float64)
    product = np.einsum("bn,bn,bn->b", weights, ranking.to_rows(rank), truth)
    precision = hits / np.maximum(above, 1)
    # Mann and Whitney's U is the positives' centred rank sum, and half of the comparisons.
    comparisons = positives * (above[:, -1] - positives)
    average = ratio(np.einsum("bg,bg->b", gained, precision), positives)
    return {
        "spearman": ratio(product, np.sqrt(squares) * np.sqrt(truth_squares)),
        "roc_auc": 0.5 + ratio(np.einsum("bg,bg->b", gained, rank), comparisons),
        "average_precision": np.where(comparisons > 0, average, np.nan),
    }


def _features(scores: Float, target: Float, positive: NDArray[np.bool_], thresholds: Float) -> tuple[Float, Float]:
    """What is summed over pairs, [N, 4 + 8 S], and each scoring's difference of class means [S, 1].

    Columns: 1, y, y^2, positive; then, S each: x, x^2, x y, z of positives, z of negatives, z^2, called, hit.
    Here x and y are scores and target less their means, z the scores less the mean of their own class.
    """
    y = target - target.mean()
    x = scores - scores.mean(axis=1, keepdims=True)
    classes = (positive, ~positive)
    above, below = (x[:, rows].mean(axis=1, keepdims=True) if rows.any() else x[:, :1] for rows in classes)
    z = x - np.where(positive, above, below)
    called = scores >= thresholds[:, None]
    blocks = [x, x**2, x * y, z * positive, z * ~positive, z**2, called, called & positive]
    return np.concatenate([np.stack([np.ones_like(y), y, y**2, positive]), *blocks]).T, above - below


def _from_sums(sums: Float, gap: Float) -> dict[str, Float]:
    """What is made of sums over pairs, [S, b] each, of the sums [4 + 8 S, b] of `_features`."""
    n, y, yy, positives = sums[:4]
    x, xx, xy, z_above, z_below, zz, called, hits = sums[4:].reshape(8, len(gap), -1)
    negatives = n - positives
    some = np.maximum(n, 1)  # pairs between groups may all be missing from a resample
    squares = _spread(xx, x**2 / some) * _spread(yy, y**2 / some)
    difference = gap + ratio(z_above, positives) - ratio(z_below, negatives)
    within = _spread(zz, ratio(z_above**2, positives) + ratio(z_below**2, negatives))
    of_classes = {
        "precision": ratio(hits, called),
        "recall": ratio(hits, positives),
        "f1": ratio(2 * hits, called + positives),
        "false_positive_rate": ratio(called - hits, negatives),
        "separability": difference,
        "separability_d": ratio(difference, np.sqrt(ratio(within, np.maximum(n - 2, 0)))),
    }
    one_class = positives * negatives == 0
    pearson = np.clip(ratio(xy - x * y / some, np.sqrt(squares)), -1.0, 1.0)
    return {"pearson": pearson} | {name: np.where(one_class, np.nan, values) for name, values in of_classes.items()}


def _from_drawn_rows(
    name: str, weights: Int, scores: Float, target: Float, positive: NDArray[np.bool_], thresholds: Float
) -> Float:
    """[S, b] of a metric by its plain function, each row as often as it was drawn; NaN where a class is missing."""
    values = np.full((len(scores), len(weights)), np.nan)
    for resample, weight in enumerate(weights):
        rows = np.repeat(np.arange(len(target)), weight)
        if positive[rows].any() and not positive[rows].all():
            values[:, resample] = [
                METRICS[name](row[rows], target[rows], positive[rows], float(threshold))
                for row, threshold in zip(scores, thresholds, strict=True)
            ]
    return values


def _spread(squares: Float, squared_mean: Float) -> Float:
    """Sum of squares about the mean; exactly 0 where nothing but rounding is left."""
    left = squares - squared_mean
    return np.where(left > ROUNDING * squares, left, 0.0)


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> Float:
    """The quotient, NaN where the denominator is 0 (or NaN)."""
    shape = np.broadcast_shapes(np.shape(numerator), np.shape(denominator))
    return np.divide(numerator, denominator, out=np.full(shape, np.nan), where=np.asarray(denominator) > 0)
