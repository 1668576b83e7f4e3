"""Alerts a ticket: every pair counted against a loop in float64, and the bootstrap against tickets literally drawn."""

from __future__ import annotations

from itertools import combinations_with_replacement

import numpy as np
import pytest

from trainer.evaluation import alerts as module
from trainer.evaluation.alerts import (
    COARSE,
    STEPS,
    alerts_at,
    count_alerts,
    resample_alerts,
    resampled_per_ticket,
    resampled_thresholds,
    threshold_for_alerts,
)
from trainer.evaluation.groups import resample_counts


def exact_rows(count: int, seed: int) -> np.ndarray:
    """Embeddings of 16 signs and of 4 signs (the rest zero): all cosines are multiples of 1 / 16, exactly."""
    rng = np.random.default_rng(seed)
    rows = rng.choice([-1.0, 1.0], size=(count, 16), p=[0.25, 0.75])
    rows[: count // 3, 4:] = 0
    return (rows * rng.choice([0.5, 1, 8], size=(count, 1))).astype(np.float32)


def slow(queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """Cosines of all pairs of different tickets, one at a time, in float64."""
    cosines = []
    for i, new in enumerate(queries.astype(np.float64)):
        for j, past in enumerate(documents.astype(np.float64)):
            if i != j:
                cosines.append(new @ past / max(np.linalg.norm(new) * np.linalg.norm(past), 1e-30))
    return np.array(cosines)


@pytest.mark.parametrize("rows", [7, 2048])
@pytest.mark.parametrize(("count", "dim"), [(2, 16), (45, 16), (45, 4), (95, 16)])
def test_every_pair_is_counted_for_both_its_tickets(
    count: int, dim: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cosines that are candidates themselves, and blocks that cut the groups: equal to a threshold reaches it."""
    monkeypatch.setattr(module, "ROWS", rows)
    embeddings = exact_rows(count, seed=count)
    before = embeddings.copy()
    counts = count_alerts(embeddings, embeddings, dim, groups=4 if rows == 7 else 40)  # of more than a block, or less
    assert counts.alerts[0] == count * (count - 1) == counts.pairs.sum()
    cosines = slow(embeddings[:, :dim], embeddings[:, :dim])
    for threshold in (-1.0, -0.25, 0.0, 0.5, 0.5 + 1 / STEPS, 0.75, 1.0):
        expected = (cosines >= threshold).sum()
        assert counts.per_ticket(threshold) * count == pytest.approx(expected)
        assert counts.flagged(np.array([threshold]))[0] == pytest.approx(expected / (count * (count - 1)))
    assert (counts.by_groups.sum(axis=0) == counts.alerts[:: STEPS // COARSE]).all()
    assert (embeddings == before).all()


@pytest.mark.parametrize("seed", range(3))
def test_sides_that_differ_are_counted_both_ways(seed: int) -> None:
    """A model with a prompt for each side: i may find j where j does not find i."""
    rng = np.random.default_rng(seed)
    queries, documents = (rng.normal(size=(50, 9)).astype(np.float32) for _ in range(2))
    counts = count_alerts(queries, documents, 7, groups=3, seed=seed)
    cosines = slow(queries[:, :7], documents[:, :7])
    for threshold in (-0.5, 0.0, 0.3, 0.8):
        assert counts.per_ticket(threshold) * 50 == pytest.approx((cosines >= threshold).sum())


@pytest.mark.parametrize("wanted", [0.3, 1.0, 5.0, 31.4, 119.0])
def test_the_lowest_threshold_that_raises_no_more(wanted: float) -> None:
    rng = np.random.default_rng(3)
    embeddings = (rng.normal(size=(120, 24)) + 0.4).astype(np.float32)
    counts = count_alerts(embeddings, embeddings, 24, groups=2)
    threshold = threshold_for_alerts(counts, wanted)
    unit = embeddings.astype(np.float64) / np.linalg.norm(embeddings.astype(np.float64), axis=1, keepdims=True)
    cosines = (unit @ unit.T)[~np.eye(120, dtype=bool)]
    assert (cosines >= threshold).sum() / 120 <= wanted
    assert threshold == -1 or (cosines >= threshold - 1 / STEPS).sum() / 120 > wanted


def test_alerts_that_no_threshold_reaches() -> None:
    embeddings = np.random.default_rng(3).normal(size=(120, 24)).astype(np.float32)
    counts = count_alerts(embeddings, embeddings, 24, groups=2)
    for wanted in (0.0, -1.0, 119.5, float("nan")):
        with pytest.raises(ValueError, match="more than 0 and at most 119"):
            threshold_for_alerts(counts, wanted)
    with pytest.raises(ValueError, match=r"no threshold raises so few: .* 120 tickets the highest raises 0\.017"):
        threshold_for_alerts(counts, 0.01)  # one pair is two alerts
    same = np.ones((30, 4), dtype=np.float32)
    with pytest.raises(ValueError, match="the highest raises 29 alerts a ticket"):
        threshold_for_alerts(count_alerts(same, same, 4, groups=1), 28.0)


@pytest.mark.parametrize("count", [1, 0])
def test_one_ticket_has_no_pairs(count: int) -> None:
    with pytest.raises(ValueError, match="two tickets or more"):
        count_alerts(np.ones((count, 4)), np.ones((count, 4)), 4)


def test_a_resample_is_the_tickets_literally_drawn() -> None:
    """Groups drawn twice bring their tickets twice; a ticket and its own copy are no pair."""
    rng = np.random.default_rng(0)
    embeddings = exact_rows(25, seed=5) + 0
    counts = count_alerts(embeddings, embeddings, 16, seed=4)
    samples = resample_alerts(counts, resamples=5, seed=9)
    order = np.random.default_rng(4).permutation(25)  # 25 tickets: each is a group of its own
    drawn = next(resample_counts(25, 5, 9, 5))
    for weights, row in zip(drawn, samples, strict=True):
        tickets = np.repeat(order, weights)
        rows = embeddings[tickets].astype(np.float64)
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        pair = tickets[:, None] != tickets[None, :]
        for threshold in (-0.5, 0.25, 0.75):
            expected = 24 * ((unit @ unit.T >= threshold) & pair).sum() / pair.sum()
            assert row[round(threshold * COARSE) + COARSE] == pytest.approx(expected)
    wanted = float(rng.uniform(1, 3))
    for row, threshold in zip(samples, resampled_thresholds(samples, wanted), strict=True):
        at = round(threshold * COARSE) + COARSE
        assert row[at] <= wanted < row[at - 1]
    assert (resampled_per_ticket(counts, samples, 0.25) == samples[:, COARSE + COARSE // 4]).all()


@pytest.mark.parametrize(
    ("count", "groups_differ"),
    [(2, False), *(pytest.param(count, True, marks=pytest.mark.slow) for count in (31, 200))],
)
def test_at_one_threshold_it_is_what_counting_all_says(count: int, groups_differ: bool) -> None:
    """Also with sides that differ, and in every resample."""
    rng = np.random.default_rng(count)
    queries, documents = exact_rows(count, seed=count), exact_rows(count, seed=count + 1)
    rng.shuffle(documents)
    for others in (queries, documents):
        counts = count_alerts(queries, others, 16, seed=5)
        alerts, samples = alerts_at(queries, others, 16, 0.25, seed=5)
        assert alerts == counts.per_ticket(0.25)
        expected = resampled_per_ticket(counts, resample_alerts(counts, seed=5), 0.25)
        np.testing.assert_allclose(samples, expected)
        assert np.isfinite(samples).all() == groups_differ


def test_a_run_on_the_cpu_counts_the_alerts_of_its_thresholds_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "default_device", lambda: pytest.fail("the GPU was asked for"))
    assert alerts_at(exact_rows(9, seed=1), exact_rows(9, seed=2), 16, 0.25)[0] >= 0


def test_pairs_of_groups_stand_in_the_order_of_their_weights() -> None:
    """Weights of 1 give the counts back, and groups of unequal size their own numbers of pairs."""
    embeddings = np.random.default_rng(1).normal(size=(101, 8)).astype(np.float32)
    counts = count_alerts(embeddings, embeddings, 8)
    sizes = np.diff(np.linspace(0, 101, 41).astype(int))
    for (a, b), pairs in zip(combinations_with_replacement(range(40), 2), counts.pairs, strict=True):
        assert pairs == (sizes[a] * (sizes[a] - 1) if a == b else 2 * sizes[a] * sizes[b])
    assert (counts.by_groups[:, 0] == counts.pairs).all()


def test_too_few_tickets_have_no_interval() -> None:
    embeddings = np.random.default_rng(1).normal(size=(19, 8)).astype(np.float32)
    samples = resample_alerts(count_alerts(embeddings, embeddings, 8), 10)
    assert np.isnan(samples).all() and np.isnan(resampled_thresholds(samples, 1.0)).all()


@pytest.mark.slow
def test_intervals_are_as_wide_as_other_tickets_differ() -> None:
    """The spread over sets of tickets drawn afresh against that of the resamples of one; tickets come in clusters."""
    rng = np.random.default_rng(2)
    centres = rng.normal(size=(6, 10))

    def draw() -> np.ndarray:
        return (centres[rng.integers(6, size=240)] + rng.normal(size=(240, 10))).astype(np.float32)

    sets = [draw() for _ in range(80)]
    spread = []
    for rows in sets:
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        spread.append(((unit @ unit.T >= 0.5).sum() - 240) / 240)
    widths = []
    for rows in sets[:6]:
        counts = count_alerts(rows, rows, 10)
        widths.append(resampled_per_ticket(counts, resample_alerts(counts, 300), 0.5).std())
    assert 0.7 < np.mean(widths) / np.std(spread) < 1.5
