"""Thresholds where few pairs are positive: pure functions on arrays.

Recall and the false-positive rate are shares of one class each, so they are the same whatever the share of positives.
Precision and F1 are not: with a share p of positives, recall r and false-positive rate f,

    precision = p r / (p r + (1 - p) f),   F1 = 2 p r / (p + p r + (1 - p) f)

(The assumption is that of Saerens et al. 2002, "Adjusting the outputs of a classifier to new a priori probabilities":
only the shares of the classes differ, not what is in them.) A false-positive rate of 1 % is a detail where half of the
pairs are positive, and a flood of false alarms where one in a thousand is.

Legend: N pairs, D distinct scores, S scorings, B resamples, b resamples at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import ROUND_FLOOR, ROUND_HALF_EVEN, Context

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trainer.evaluation.bootstrap import CELLS_AT_ONCE, RESAMPLES, bootstrap_sums, ratio, trusted
from trainer.evaluation.groups import Groups, resample_counts
from trainer.evaluation.pair_metrics import distinct_cuts, threshold_below

Float = NDArray[np.float64]
Flagged = Callable[[np.ndarray], Float]
"""Share of all pairs, of which nearly none is positive, that reach each of some thresholds."""
NO_CHOICE = -2  # in place of a cut
TELLING = 3  # negatives called positive, with fewer of which a rate is not told from 0: the rule of three


def precision_at_share(recall: ArrayLike, false_positive_rate: ArrayLike, share: float) -> Float:
    """Precision where this share of the pairs is positive; NaN where nothing is called positive."""
    hits, alarms = share * np.asarray(recall), (1 - share) * np.asarray(false_positive_rate)
    return ratio(hits, hits + alarms)


def f1_at_share(recall: ArrayLike, false_positive_rate: ArrayLike, share: float) -> Float:
    """F1 where this share of the pairs is positive."""
    hits, alarms = share * np.asarray(recall), (1 - share) * np.asarray(false_positive_rate)
    score: Float = 2 * hits / (share + hits + alarms)
    return score


def smallest_rate(negatives: int) -> float:
    """The lowest rate that so many negatives can tell from 0 with 95 % confidence: 3 / n (the rule of three).

    >>> percent(smallest_rate(131), "ROUND_CEILING")
    '2.3 %'
    """
    return min(1.0, 3 / negatives)


def rounded(value: float, digits: int, rounding: str = ROUND_HALF_EVEN) -> str:
    """A number to some digits. A bound takes the `rounding` by which it claims no more than was seen.

    >>> rounded(0.94997, 4), rounded(0.94997, 4, "ROUND_FLOOR")
    ('0.95', '0.9499')
    """
    short = Context(prec=digits, rounding=rounding).create_decimal(f"{value:.12g}")  # 0.8 may be 0.8000000000000002
    return f"{float(short):g}"


def percent(share: float, rounding: str = ROUND_HALF_EVEN) -> str:
    """A share in words, two digits of it, so that a small one is not 0 %.

    >>> percent(0.5), percent(0.118), percent(0.00234), percent(1.0)
    ('50 %', '12 %', '0.23 %', '100 %')
    """
    return f"{rounded(100 * share, 2, rounding)} %"


def threshold_at_share(
    scores: np.ndarray, labels: np.ndarray, share: float, rule: tuple[str, float], flagged: Flagged | None = None
) -> float:
    """The threshold that a rule chooses where this share of the pairs is positive, not that of the labels.

    Args:
        scores: [N] similarities; thresholds stand between two of them, as that of `best_f1`.
        rule: as `thresholds.parse_rule` gives it.
        flagged: where given, false-positive rates come from unlabelled pairs: of those flagged, what the positives at
            this share and recall do not explain.

    Raises ValueError where no threshold reaches a precision.
    """
    values, hits, called = distinct_cuts(scores, labels)
    recall, rate = hits / hits[-1], (called - hits) / (called[-1] - hits[-1])
    if flagged is not None:
        between = np.array([threshold_below(values, last) for last in range(len(values))])
        rate = rate_of_unlabelled(flagged(between), recall, share)
    best = int(_choose(recall, rate, share, *rule))
    if best >= 0:
        return threshold_below(values, best)
    if rule[0] == "precision":
        highest = np.nanmax(precision_at_share(recall, rate, share))
        reached = rounded(highest, 4, ROUND_FLOOR)
        raise ValueError(f"no threshold reaches a precision of {rule[1]:g} at a share of {share:g}: {reached} does")
    return float(np.nextafter(values[0], values.dtype.type(np.inf)))


def rate_of_unlabelled(flagged: ArrayLike, recall: ArrayLike, share: float) -> Float:
    """False-positive rates by flagged = share * recall + (1 - share) * rate, at least 0."""
    rates: Float = np.clip((np.asarray(flagged) - share * np.asarray(recall)) / (1 - share), 0.0, 1.0)
    return rates


def resampled_thresholds(
    scores: np.ndarray,
    labels: np.ndarray,
    share: float,
    rule: tuple[str, float],
    groups: Groups,
    flagged: Flagged | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Float:
    """[B] what `threshold_at_share` chooses in each resample of groups of texts; NaN where it has nothing to choose.

    What `flagged` says is held fixed.
    """
    scores, positive = np.asarray(scores), np.asarray(labels, dtype=np.bool_)
    values = np.unique(scores)[::-1]
    order = np.argsort(-scores, kind="stable")
    ends = np.searchsorted(-scores[order], -values, side="right") - 1
    of_all = None
    if flagged is not None:
        of_all = flagged(np.array([threshold_below(values, last) for last in range(len(values))]))
    parts = []
    for counts in resample_counts(groups.count, resamples, seed, max(1, CELLS_AT_ONCE // len(scores))):
        weights = groups.weights(counts)[:, order]
        running = [np.cumsum(weights * rows, axis=1)[:, ends] for rows in (positive[order], ~positive[order])]
        recall, rate = (ratio(sums, sums[:, -1:]) for sums in running)
        defined = ~np.isnan(recall[:, 0]) & ~np.isnan(rate[:, 0])
        drawn = np.diff(sum(running), axis=1, prepend=0) > 0
        if of_all is not None:
            rate = rate_of_unlabelled(of_all, recall, share)
        best = _choose(recall, rate, share, *rule)
        for cut, of_pairs in zip(np.where(defined, best, NO_CHOICE), drawn, strict=True):
            parts.append(_threshold_of_resample(values[of_pairs], values[max(cut, 0)], cut, rule[0]))
    return trusted(np.array(parts, dtype=np.float64), groups)


def _threshold_of_resample(drawn: np.ndarray, lowest: float, cut: int, kind: str) -> float:
    """What `threshold_at_share` makes of a cut in a resample: halfway to the next value that was drawn.

    Args:
        drawn: descending distinct values of the pairs that were drawn.
        lowest: the value that the cut ends at, drawn or not.
        cut: its index, -1 where no cut keeps the rule, NO_CHOICE where a label is missing.
    """
    called = int((drawn >= lowest).sum()) if cut >= 0 else 0
    if called:
        return threshold_below(drawn, called - 1)
    if cut == NO_CHOICE or kind == "precision":
        return np.nan
    return float(np.nextafter(drawn[0], drawn.dtype.type(np.inf)))


def resampled_rates(
    scores: np.ndarray,
    labels: np.ndarray,
    thresholds: Sequence[float] | np.ndarray,
    groups: Groups,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[Float, Float]:
    """Recall and false-positive rate [S, B] of scores [S, N] at thresholds [S] in resamples of groups of texts."""
    positive = np.asarray(labels, dtype=np.bool_)
    called = (np.asarray(scores, dtype=np.float64) >= np.asarray(thresholds)[:, None]).T
    features = np.column_stack([positive, called & positive[:, None], ~positive, called & ~positive[:, None]])
    total = bootstrap_sums(features.astype(np.float64), groups, resamples=resamples, seed=seed)
    of_positives, of_negatives = np.split(total, 2)
    return ratio(of_positives[1:], of_positives[0]), ratio(of_negatives[1:], of_negatives[0])


def _choose(recall: Float, rate: Float, share: float, kind: str, target: float) -> NDArray[np.int64]:
    """The last cut [...] of those down the scores [..., D] that a rule prefers; -1 where there is none."""
    if kind == "f1":
        f1 = f1_at_share(recall, rate, share)
        kept = f1 >= np.max(f1, axis=-1, keepdims=True) * (1 - 1e-12)  # equal but for rounding, here and below
    elif kind == "precision":
        kept = precision_at_share(recall, rate, share) >= target * (1 - 1e-12)
    else:
        kept = rate <= target
    last = kept.shape[-1] - 1 - np.argmax(kept[..., ::-1], axis=-1)
    chosen: NDArray[np.int64] = np.where(kept.any(axis=-1), last, -1)
    return chosen
