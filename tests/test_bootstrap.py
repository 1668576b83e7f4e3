"""The bootstrap: weights give what the rows literally drawn give, and its intervals cover the truth."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.stats

from trainer.evaluation.bootstrap import bootstrap_means, bootstrap_pairs, interval, why_undefined
from trainer.evaluation.groups import Groups, groups_of_texts, resample_counts
from trainer.evaluation.pair_metrics import METRICS, pair_metrics

NAN = float("nan")


def grouped(first: np.ndarray, second: np.ndarray | None = None) -> Groups:
    """Groups as given, as many as their highest number says."""
    second = first if second is None else second
    count = int(max(first.max(), second.max())) + 1
    return Groups("given", np.arange(count), first, second, count, float(count))


def draw(n: int, groups: int, levels: int, seed: int, binary: bool, across: bool = False) -> dict[str, Any]:
    """Scores at three "dims", with ties where there are levels; groups of unequal size, some pairs between two."""
    rng = np.random.default_rng(seed)
    labels = rng.random(n) < 0.4
    scores = rng.normal(size=(3, n)) * 0.3 + np.array([[0.5], [0.2], [0.0]]) * labels
    if levels:
        scores = np.round(scores * levels) / levels
    first = rng.permutation(np.concatenate([np.arange(groups), rng.integers(groups, size=n - groups) ** 2 % 7]))
    second = np.where(across & (rng.random(n) < 0.5), rng.integers(groups, size=n), first)
    target = labels.astype(float) if binary else np.round(3 * rng.random(n) + labels)
    return {
        "scores": scores,
        "target": target,
        "labels": labels,
        "thresholds": np.array([0.3, 0.0, 0.9]),
        "groups": grouped(first, second),
    }


def literal_rows(groups: Groups, counts: np.ndarray) -> list[int]:
    """The rows of a resample: draw the groups, then take each pair once for every copy, or two copies, of its texts."""
    copies = Counter(np.repeat(np.arange(len(counts)), counts).tolist())
    rows: list[int] = []
    for row, (one, other) in enumerate(zip(groups.first.tolist(), groups.second.tolist(), strict=True)):
        for _ in range(copies[one]):
            rows += [row] if one == other else [row] * copies[other]
    return rows


def plain(scores: np.ndarray, target: np.ndarray, labels: np.ndarray, threshold: float) -> dict[str, float]:
    """Every metric by scipy, scikit-learn and definition."""
    from sklearn import metrics as peer

    above, below, called = scores[labels], scores[~labels], scores >= threshold
    gap = above.mean() - below.mean()
    within = ((above - above.mean()) ** 2).sum() + ((below - below.mean()) ** 2).sum()
    precision, recall, f1, _ = peer.precision_recall_fscore_support(
        labels, called, average="binary", zero_division=np.nan
    )
    return {
        "spearman": scipy.stats.spearmanr(scores, target).statistic,
        "pearson": scipy.stats.pearsonr(scores, target).statistic,
        "roc_auc": peer.roc_auc_score(labels, scores),
        "average_precision": peer.average_precision_score(labels, scores),
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "false_positive_rate": called[~labels].mean(),
        "separability": gap,
        "separability_d": gap / math.sqrt(within / (len(scores) - 2)),
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "groups", "across", "levels", "binary"),
    [
        *((60, 20, across, levels, b) for across in (False, True) for levels in (0, 2, 20) for b in (True, False)),
        (301, 301, False, 0, True),
        (500, 40, True, 20, False),
    ],
)
def test_weights_give_what_the_drawn_rows_give(n: int, groups: int, across: bool, levels: int, binary: bool) -> None:
    data = draw(n, groups, levels, seed=n + levels, binary=binary, across=across)
    found = bootstrap_pairs(**data, resamples=4, seed=7)
    (counts,) = resample_counts(groups, 4, seed=7, at_once=4)
    for resample, count in enumerate(counts):
        rows = literal_rows(data["groups"], count)
        for scoring, threshold in enumerate(data["thresholds"]):
            expected = plain(
                data["scores"][scoring, rows], data["target"][rows], data["labels"][rows], float(threshold)
            )
            ours = {name: values[scoring, resample] for name, values in found.items()}
            assert ours == pytest.approx(expected, abs=1e-10, nan_ok=True)


def test_names_and_full_sample_are_those_of_the_plain_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    data = draw(200, 50, 20, seed=3, binary=False)
    once = np.ones((1, 50), dtype=np.int32)
    monkeypatch.setattr("trainer.evaluation.bootstrap.resample_counts", lambda *_: [once])
    found = bootstrap_pairs(**data)
    for scoring in range(3):
        expected = pair_metrics(data["scores"][scoring], data["target"], data["labels"])
        fitted = data | {"thresholds": np.full(3, expected.pop("threshold"))}
        found = bootstrap_pairs(**fitted)
        assert {name: values[scoring, 0] for name, values in found.items()} == pytest.approx(expected, abs=1e-12)


def test_a_metric_without_a_fast_form_is_measured_on_the_drawn_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    data = draw(60, 25, 5, seed=3, binary=False, across=True)
    for name in ("spearman", "recall"):
        monkeypatch.setitem(METRICS, f"plain {name}", METRICS[name])
    found = bootstrap_pairs(**data, resamples=20)
    for name in ("spearman", "recall"):
        assert found[f"plain {name}"] == pytest.approx(found[name], abs=1e-12)


def test_a_seed_repeats_and_the_size_of_a_batch_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    data = draw(100, 30, 5, seed=1, binary=True)
    first = bootstrap_pairs(**data, resamples=37, seed=5)
    monkeypatch.setattr("trainer.evaluation.bootstrap.CELLS_AT_ONCE", 400)
    again, other = (bootstrap_pairs(**data, resamples=37, seed=seed) for seed in (5, 6))
    for name, values in first.items():
        assert values.shape == (3, 37)
        np.testing.assert_allclose(again[name], values, atol=1e-12)
        assert not np.allclose(other[name], values, equal_nan=True)


def test_scorings_are_paired() -> None:
    data = draw(300, 60, 0, seed=2, binary=True)
    same = data | {"scores": np.stack([data["scores"][0]] * 2), "thresholds": np.full(2, 0.3)}
    for values in bootstrap_pairs(**same, resamples=50).values():
        assert np.array_equal(values[0], values[1])  # a model beside itself: every difference is 0


def test_means_are_those_of_the_drawn_queries() -> None:
    rng = np.random.default_rng(4)
    values, texts, group = rng.random((2, 40)), rng.permutation(60)[:40], rng.integers(30, size=60)
    groups = Groups("given", group, group, group, 30, 30.0)
    found = bootstrap_means(values, texts, groups, resamples=30, seed=3)
    (counts,) = resample_counts(30, 30, seed=3, at_once=30)
    for resample, count in enumerate(counts):
        rows = np.repeat(np.arange(40), count[group[texts]])
        np.testing.assert_allclose(found[:, resample], values[:, rows].mean(axis=1), atol=1e-12)
    # Queries of one group of many: undefined in each resample that does not draw it.
    rare = bootstrap_means(np.ones((1, 1)), texts[:1], groups, resamples=200)
    assert 0.2 < np.isnan(rare).mean() < 0.5


def test_groups_are_connected_components_where_these_are_many() -> None:
    found = groups_of_texts(np.arange(50), np.arange(50, 100), np.arange(50) % 2 == 0)
    assert (found.kind, found.count, found.effective) == ("connected components", 50, 50.0)
    assert np.array_equal(found.first, found.second) and np.array_equal(found.of_text[:50], found.of_text[50:])


def test_a_chain_of_negatives_falls_back_to_what_positives_connect() -> None:
    """Ticket k: its title with its own body (positive), and with the next ticket's body (negative)."""
    titles, bodies = np.arange(60), 60 + np.arange(60)
    first, second = np.concatenate([titles, titles]), np.concatenate([bodies, np.roll(bodies, 1)])
    positive = np.arange(120) < 60
    found = groups_of_texts(first, second, positive)
    assert found.kind == "groups of texts connected by positives" and found.count == 60
    assert np.array_equal(found.first[:60], found.second[:60]) and (found.first[60:] != found.second[60:]).all()
    # Without negatives nothing stands in the way of components.
    assert groups_of_texts(first[:60], second[:60], positive[:60]).kind == "connected components"
    # Where positives are the chain, only single texts are left.
    assert groups_of_texts(first, second, np.ones(120, dtype=bool)).kind == "single texts"


def test_one_text_in_every_pair_leaves_nothing_to_draw_from() -> None:
    for positive in (np.ones(300, dtype=bool), np.arange(300) % 2 == 0):
        groups = groups_of_texts(np.zeros(300, dtype=int), 1 + np.arange(300), positive)
        assert groups.effective < 5
        data = draw(300, 50, 0, seed=1, binary=False) | {"groups": groups}
        for values in bootstrap_pairs(**data, resamples=20).values():
            assert values.shape == (3, 20) and np.isnan(interval(values)).all()
            assert "groups to draw from" in str(why_undefined(values, groups))
        assert np.isnan(interval(bootstrap_means(np.ones((1, 9)), np.arange(9), groups))).all()


@pytest.mark.parametrize("label", [True, False])
def test_one_class_is_nan_with_a_reason(label: bool) -> None:
    data = draw(80, 30, 0, seed=1, binary=False) | {"labels": np.full(80, label)}
    for name, values in bootstrap_pairs(**data, resamples=20).items():
        graded = name in ("spearman", "pearson")  # these have no need of classes
        assert np.isnan(interval(values)).all() != graded
        assert ("one class" in str(why_undefined(values, data["groups"]))) != graded


def test_equal_scores_and_equal_targets_have_no_correlation() -> None:
    data = draw(80, 30, 0, seed=1, binary=False)
    for broken in ({"scores": np.full((3, 80), 0.1)}, {"target": np.full(80, 0.7)}):
        found = bootstrap_pairs(**(data | broken), resamples=20)
        assert np.isnan(found["spearman"]).all() and np.isnan(found["pearson"]).all()
    constant = bootstrap_pairs(**(data | {"scores": np.full((3, 80), 0.1)}), resamples=20)
    assert (constant["roc_auc"] == 0.5).all() and np.isnan(constant["separability_d"]).all()


def test_equal_scores_within_a_resample_are_seen_through_rounding() -> None:
    """All scores but those of one group are equal: without it, a resample has no variance."""
    data = draw(90, 30, 0, seed=4, binary=False)
    scores = np.where(data["groups"].first == 8, [[0.71], [0.3], [1e3]], [[0.1], [0.1 + 1e-9], [1 / 3]])
    found = bootstrap_pairs(**(data | {"scores": scores}), resamples=200)
    (counts,) = resample_counts(30, 200, seed=0, at_once=200)
    for name in ("spearman", "pearson", "separability_d"):
        assert np.array_equal(np.isnan(found[name]), np.tile(counts[:, 8] == 0, (3, 1))), name


def test_a_rare_class_may_be_missing_from_few_resamples() -> None:
    samples = np.tile(np.arange(100.0), (2, 1))
    samples[0, :5], samples[1, :6] = NAN, NAN
    ends = interval(samples)
    np.testing.assert_allclose(ends[0], np.quantile(np.arange(5, 100), [0.025, 0.975]))
    assert np.isnan(ends[1]).all()
    groups = grouped(np.arange(90))
    assert why_undefined(samples[0], groups) is None and "6%" in str(why_undefined(samples, groups))


@pytest.mark.parametrize(
    "changes",
    [
        {"scores": np.zeros((3, 59))},
        {"target": np.zeros(61)},
        {"groups": grouped(np.arange(61))},
        {"thresholds": np.zeros(2)},
        {"scores": np.full((3, 60), NAN)},
        {"target": np.full(60, np.inf)},
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any]) -> None:
    data = draw(60, 20, 0, seed=0, binary=True)
    bootstrap_pairs(**data, resamples=2)  # the control
    with pytest.raises(ValueError, match=r"fit|finite"):
        bootstrap_pairs(**(data | changes), resamples=2)


def clustered(rng: np.random.Generator, clusters: int, size: int, within: float) -> dict[str, Any]:
    """Rows that agree within their cluster: bivariate normal with correlation 0.5 and two classes, row by row."""

    def shared(count: int) -> np.ndarray:
        own, common = rng.normal(size=(count, clusters * size)), rng.normal(size=(count, clusters))
        return math.sqrt(within) * np.repeat(common, size, axis=1) + math.sqrt(1 - within) * own

    x, y = shared(2)
    return {
        "scores": (0.5 * y + math.sqrt(0.75) * x)[None],
        "target": y,
        "labels": y > 0.5,
        "thresholds": np.zeros(1),
        "groups": grouped(np.repeat(np.arange(clusters), size)),
    }


@pytest.mark.slow
def test_intervals_cover_the_truth_and_those_of_rows_do_not() -> None:
    """Truth: the correlation by construction, Spearman's by 6/pi asin(rho/2), ROC-AUC from a very large sample."""
    rng = np.random.default_rng(2024)
    large = clustered(rng, 200_000, 1, 0.0)
    truth = {
        "pearson": 0.5,
        "spearman": 6 / math.pi * math.asin(0.25),
        "roc_auc": pair_metrics(large["scores"][0], large["target"], large["labels"])["roc_auc"],
        "recall": float(np.mean(large["scores"][0][large["labels"]] >= 0)),
    }
    covered = {kind: dict.fromkeys(truth, 0) for kind in ("groups", "rows")}
    sets = 150
    for _ in range(sets):
        data = clustered(rng, clusters=80, size=8, within=0.8)
        for kind, groups in (("groups", data["groups"]), ("rows", grouped(np.arange(640)))):
            samples = bootstrap_pairs(**(data | {"groups": groups}), resamples=200)
            for name, value in truth.items():
                low, high = interval(samples[name])[0]
                covered[kind][name] += low <= value <= high
    for name in truth:
        assert 0.90 <= covered["groups"][name] / sets <= 0.985, (name, covered)
        assert covered["rows"][name] / sets < 0.8, (name, covered)


def shared_texts(rng: np.random.Generator, tickets: int, popular: int) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Every title with its own body and with another's; half of the others' are one of few popular ones.

    Each text moves all of its scores, which is the dependence that sharing a text means.
    """
    titles, other = np.arange(tickets), rng.integers(1, tickets, size=tickets)
    other = (titles + other) % tickets
    hub = rng.integers(popular, size=tickets)
    other = np.where((rng.random(tickets) < 0.5) & (hub != titles), hub, other)
    first, second = np.concatenate([titles, titles]), np.concatenate([titles, other])
    positive = np.arange(2 * tickets) < tickets
    by_title, by_body = rng.normal(size=(2, tickets)) * math.sqrt(0.4)
    scores = by_title[first] + by_body[second] + rng.normal(size=2 * tickets) * math.sqrt(0.2) + positive
    data = {"scores": scores[None], "target": positive.astype(float), "labels": positive, "thresholds": np.zeros(1)}
    return data, first, tickets + second


@pytest.mark.slow
def test_where_one_component_holds_most_pairs_intervals_are_cautious() -> None:
    rng = np.random.default_rng(5)
    truth = scipy.stats.norm.cdf(1 / math.sqrt(2))
    rules: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], Groups]] = {
        "ours": groups_of_texts,
        "rows": lambda first, *_: grouped(np.arange(len(first))),
        "titles": lambda first, *_: grouped(first),
    }
    covered = dict.fromkeys(rules, 0)
    for _ in range(100):
        data, first, second = shared_texts(rng, tickets=200, popular=5)
        for name, rule in rules.items():
            groups = rule(first, second, data["labels"])
            low, high = interval(bootstrap_pairs(**data, groups=groups, resamples=200)["roc_auc"])[0]
            covered[name] += low <= truth <= high
    assert covered["ours"] >= 93, covered
    assert max(covered["rows"], covered["titles"]) < 90, covered


@pytest.mark.slow
def test_two_equally_good_models_are_rarely_told_apart() -> None:
    """Both see the truth through noise of the same strength: the paired difference covers 0 in 95 % of sets."""
    rng = np.random.default_rng(11)
    covered = apart = 0
    for _ in range(150):
        data = clustered(rng, clusters=80, size=4, within=0.6)
        noise = rng.normal(size=(2, 320))
        scores = data["scores"] + 0.5 * noise
        samples = bootstrap_pairs(**(data | {"scores": scores, "thresholds": np.zeros(2)}), resamples=200)["spearman"]
        low, high = interval(samples[0] - samples[1])
        covered += low <= 0 <= high
        alone = interval(samples)
        apart += alone[0, 0] > alone[1, 1] or alone[1, 0] > alone[0, 1]
    assert 0.9 <= covered / 150 <= 0.985
    assert apart == 0  # two intervals side by side say far less than the paired one


@pytest.mark.slow
def test_five_dims_of_two_models_on_twenty_thousand_pairs_take_seconds() -> None:
    """A tenth of the resamples that 20 s are there for, in 20 s of processor time: only a blow-up fails."""
    data = draw(20_000, 15_000, 0, seed=0, binary=True)
    scores = np.random.default_rng(1).normal(size=(10, 20_000)).astype(np.float32) + data["labels"]
    start = time.process_time()
    bootstrap_pairs(**(data | {"scores": scores, "thresholds": np.full(10, 0.5)}), resamples=100)
    assert time.process_time() - start < 20
