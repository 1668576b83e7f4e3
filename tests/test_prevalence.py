"""Precision, F1 and thresholds at another share of positives, against pairs literally copied and loops over them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from trainer.evaluation.groups import groups_of_texts, resample_counts
from trainer.evaluation.pair_metrics import best_f1, classify_at
from trainer.evaluation.prevalence import (
    f1_at_share,
    precision_at_share,
    rate_of_unlabelled,
    resampled_rates,
    resampled_thresholds,
    smallest_rate,
    threshold_at_share,
)

F1 = ("f1", float("nan"))


def draw(n: int, seed: int, levels: int = 25) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.random(n) < 0.5
    labels[:2] = [True, False]
    return np.round((rng.normal(size=n) * 0.3 + 0.4 * labels) * levels) / levels, labels


def with_more_negatives(scores: np.ndarray, labels: np.ndarray, copies: int) -> tuple[np.ndarray, np.ndarray]:
    """Each negative so many times: what fewer positives look like."""
    repeats = np.where(labels, 1, copies)
    return np.repeat(scores, repeats), np.repeat(labels, repeats)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("copies", [1, 7, 200])
def test_reweighting_is_copying_the_negatives(seed: int, copies: int) -> None:
    scores, labels = draw(90, seed)
    many = with_more_negatives(scores, labels, copies)
    share = float(many[1].mean())
    for threshold in np.append(np.unique(scores), 9.0):
        at, expected = classify_at(scores, labels, threshold), classify_at(*many, threshold)
        rates = np.array(at["recall"]), np.array(at["false_positive_rate"])
        assert precision_at_share(*rates, share) == pytest.approx(expected["precision"], nan_ok=True)
        assert f1_at_share(*rates, share) == pytest.approx(expected["f1"])
    threshold = threshold_at_share(scores, labels, share, F1)
    assert classify_at(*many, threshold) == classify_at(*many, best_f1(*many)[1])
    highest = max(classify_at(*many, cut)["precision"] for cut in np.unique(scores))
    for wanted in (0.02, highest - 1e-9):
        chosen = threshold_at_share(scores, labels, share, ("precision", wanted))
        lowest = min(cut for cut in np.unique(scores) if classify_at(*many, cut)["precision"] >= wanted)
        assert chosen <= lowest and classify_at(*many, chosen) == classify_at(*many, lowest)
    if highest < 1:
        with pytest.raises(ValueError, match=r"no threshold reaches a precision of 1 at a share of"):
            threshold_at_share(scores, labels, share, ("precision", 1.0))
    rate = threshold_at_share(scores, labels, share, ("false_positive_rate", 0.1))
    assert rate == threshold_at_share(scores, labels, 0.5, ("false_positive_rate", 0.1))  # of one class alone
    assert classify_at(scores, labels, rate)["false_positive_rate"] <= 0.1


def test_by_hand() -> None:
    """Recall 0.8 at a false-positive rate of 0.1: fine where half is positive, 7 % right where one in a hundred is."""
    recall, rate = np.array(0.8), np.array(0.1)
    assert precision_at_share(recall, rate, 0.5) == pytest.approx(0.8 / 0.9)
    assert precision_at_share(recall, rate, 0.01) == pytest.approx(0.008 / (0.008 + 0.099))
    assert f1_at_share(recall, rate, 0.01) == pytest.approx(2 * 0.008 / (0.01 + 0.008 + 0.099))
    assert smallest_rate(409) == pytest.approx(0.00733, abs=1e-5) and smallest_rate(2) == 1.0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_unlabelled_pairs_give_the_tail(dtype: Any) -> None:
    """Two labelled negatives say nothing; a million unlabelled pairs say what each threshold would flag."""
    rng = np.random.default_rng(0)
    positives, share = rng.normal(0.7, 0.1, size=200), 0.001
    negatives = np.sort(rng.normal(0.2, 0.15, size=1_000_000))
    scores = np.append(positives, [0.1, 0.3]).astype(dtype)
    labels = np.arange(202) < 200

    def flagged(thresholds: np.ndarray) -> np.ndarray:
        above = 1 - np.searchsorted(negatives, thresholds) / len(negatives)
        return share * (positives[None, :] >= thresholds[:, None]).mean(axis=1) + (1 - share) * above

    threshold = threshold_at_share(scores, labels, share, F1, flagged)
    cuts = np.unique(scores)
    recall = (positives[None, :] >= cuts[:, None]).mean(axis=1)
    best = cuts[np.argmax(f1_at_share(recall, 1 - np.searchsorted(negatives, cuts) / len(negatives), share))]
    assert abs(threshold - best) < 0.02 and threshold > 0.5
    assert threshold_at_share(scores, labels, share, F1) < 0.45  # what two negatives would have chosen
    assert rate_of_unlabelled(np.array([0.3, 0.0]), np.array([1.0, 1.0]), 0.1) == pytest.approx([0.2 / 0.9, 0.0])


@pytest.mark.parametrize("levels", [12, 1000])
@pytest.mark.parametrize("rule", [F1, ("precision", 0.3), ("false_positive_rate", 0.2), ("false_positive_rate", 0.0)])
def test_a_resample_is_the_pairs_literally_drawn(rule: tuple[str, float], levels: int) -> None:
    scores, labels = draw(70, seed=3, levels=levels)
    if rule[1] == 0:
        scores[np.flatnonzero(~labels)[0]] = 2.0  # where it is drawn, nothing keeps the rate but what is above it
    texts = np.random.default_rng(1).integers(60, size=(2, 70))
    groups = groups_of_texts(*texts, labels)
    assert groups.effective >= 20
    thresholds = resampled_thresholds(scores, labels, 0.02, rule, groups, resamples=30, seed=7)
    frozen = np.array([0.2, 0.6])
    recall, rate = resampled_rates(np.stack([scores, -scores]), labels, frozen, groups, resamples=30, seed=7)
    counts = next(resample_counts(groups.count, 30, 7, 30))
    compared = 0
    for b, weights in enumerate(groups.weights(counts)):
        drawn = np.repeat(scores, weights), np.repeat(labels, weights)
        for s, sign in enumerate((1, -1)):
            at = classify_at(sign * drawn[0], drawn[1], frozen[s])
            assert (recall[s, b], rate[s, b]) == pytest.approx((at["recall"], at["false_positive_rate"]))
        try:
            chosen = threshold_at_share(*drawn, 0.02, rule)
        except ValueError:
            assert np.isnan(thresholds[b])
            continue
        compared += 1
        assert thresholds[b] == chosen
    assert compared > 20


def test_too_few_groups_have_no_interval() -> None:
    scores, labels = draw(30, seed=1)
    texts = np.arange(30) % 5, np.arange(30) % 7 + 5
    groups = groups_of_texts(*texts, labels)
    assert groups.effective < 20
    assert np.isnan(resampled_thresholds(scores, labels, 0.1, F1, groups, resamples=5)).all()
    assert np.isnan(resampled_rates(scores[None], labels, np.array([0.2]), groups, resamples=5)[0]).all()
