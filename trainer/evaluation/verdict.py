"""Figures that nobody is fooled by: intervals, retrieval, a paired verdict and the adversarial diagnostic.

Works on embeddings of a table's texts, of one system ("model") or of two side by side ("baseline"). Pairs of both
labels are judged by labels, at frozen thresholds, and by search; positives alone by search.
Legend: K systems, M dims, N pairs, U canonical texts, E embedding width, B resamples, Q queries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.data.pairs import PairTable, canonical_count
from trainer.data.split import has_both_labels
from trainer.evaluation.bootstrap import RESAMPLES, bootstrap_means, bootstrap_pairs, interval, why_undefined
from trainer.evaluation.groups import groups_of_pairs
from trainer.evaluation.metric_choice import SEARCH_METRICS
from trainer.evaluation.pair_metrics import classify_at, pearson, roc_auc, spearman
from trainer.evaluation.scoring import Metrics, metrics_at, pair_cosines, search

PASSING = 0.70  # ROC-AUC and F1 of the adversarial diagnostic
FEWEST = 20  # pairs of either kind, below which it says nothing


Intervals = dict[str, dict[str, list[float]]]
"""Dim -> metric -> [low, high] of the 95 % interval."""


class Verdict(StrEnum):
    """Whether a model is better than its baseline."""

    BETTER = "BETTER"
    NOT_BETTER = "NOT BETTER"
    UNCLEAR = "UNCLEAR"


class Status(StrEnum):
    """What the adversarial diagnostic says."""

    PASS = "PASS"
    FAIL = "FAIL"
    INSUFFICIENT = "INSUFFICIENT"


@dataclass(frozen=True)
class Assessment:
    """What a set of pairs says of a model, and of a baseline beside it. Dims are strings, as JSON has them."""

    metrics: dict[str, Metrics]
    """System -> dim -> metric -> value."""
    intervals: dict[str, Intervals]
    """The same; also "difference", model less baseline, where there is a baseline."""
    undefined: dict[str, str]
    """Metric -> why an interval of it is NaN."""
    diagnostic: dict[str, dict[str, Any]]
    """Dim -> status, numbers of pairs, and ROC-AUC and F1 of each system; empty where all pairs are positive."""
    verdicts: dict[str, Verdict]
    """Dim -> verdict; empty without a baseline."""
    groups: dict[str, Any]
    """What the bootstrap drew: kind, count, and effective number."""
    queries: int
    """Texts that search was measured for."""
    texts: int
    """Canonical texts; each query is searched for among all of them but itself."""


def assess(
    table: PairTable,
    embeddings: Mapping[str, np.ndarray],
    dims: tuple[int, ...],
    thresholds: Mapping[str, Mapping[str, float]],
    *,
    metric: str = "spearman",
    resamples: int = RESAMPLES,
    seed: int = 0,
    fewest: int = FEWEST,
) -> Assessment:
    """Judge systems on a table's pairs.

    Args:
        embeddings: of the table's texts, as `scoring.sides` takes them, by system: "model", and "baseline"
            where there is one.
        thresholds: by system, dim -> threshold; not read where all pairs are positive.
        metric: one of JUDGED_BY that the table can tell (see `metric_choice`), which carries the verdict.
        fewest: pairs of either kind that the diagnostic needs.

    Raises:
        NumericError: an embedding is NaN or Inf.
    """
    # In this order whatever the caller's is: the difference is the first less the second.
    embeddings = {system: embeddings[system] for system in ("model", "baseline") if system in embeddings}
    systems, groups = list(embeddings), groups_of_pairs(table)
    metrics: dict[str, Metrics] = {system: {str(dim): {} for dim in dims} for system in systems}
    samples: dict[str, np.ndarray] = {}
    diagnostic: dict[str, dict[str, Any]] = {}
    if has_both_labels(table):
        thresholds = {system: {str(dim): thresholds[system][str(dim)] for dim in dims} for system in systems}
        cosines = {system: pair_cosines(embeddings[system], table, dims) for system in systems}
        metrics = {system: metrics_at(cosines[system], table, thresholds[system]) for system in systems}
        flat = np.concatenate([cosines[system] for system in systems])
        frozen = np.array([threshold for system in systems for threshold in thresholds[system].values()])
        samples = bootstrap_pairs(flat, table.score, table.label, frozen, groups, resamples=resamples, seed=seed)
        diagnostic = diagnose(table, cosines, thresholds, fewest)
    queries, values = _search(table, embeddings, dims)
    for name, rows in values.items():
        samples[name] = bootstrap_means(rows, queries, groups, resamples=resamples, seed=seed)
        means = rows.mean(axis=1) if len(queries) else np.full(len(rows), np.nan)
        for row, mean in enumerate(means.tolist()):
            metrics[systems[row // len(dims)]][str(dims[row % len(dims)])][name] = mean
    samples = {name: rows.reshape(len(systems), len(dims), resamples) for name, rows in samples.items()}
    if len(systems) == 2:
        samples = {name: np.concatenate([rows, rows[:1] - rows[1:]]) for name, rows in samples.items()}
    intervals = _by_dim([*systems, "difference"], dims, samples)
    reasons = {name: why_undefined(rows, groups) for name, rows in samples.items()}
    return Assessment(
        metrics=metrics,
        intervals=intervals,
        undefined={name: reason for name, reason in reasons.items() if reason},
        diagnostic=diagnostic,
        verdicts={dim: paired_verdict(*ends[metric]) for dim, ends in intervals.get("difference", {}).items()},
        groups={"kind": groups.kind, "count": groups.count, "effective": groups.effective},
        queries=len(queries),
        texts=canonical_count(table),
    )


def _search(
    table: PairTable, embeddings: Mapping[str, np.ndarray], dims: tuple[int, ...]
) -> tuple[NDArray[Any], dict[str, NDArray[np.float64]]]:
    """Queries [Q] as canonical texts, and search values [K * M, Q] by name."""
    measured = [search(table, rows, dims) for rows in embeddings.values()]
    return measured[0][0], {name: np.concatenate([values[name] for _, values in measured]) for name in SEARCH_METRICS}


def no_intervals(undefined: Mapping[str, str], metrics: Sequence[str]) -> list[str]:
    """A sentence for each reason why metrics have no interval, of the `undefined` of an assessment of `metrics`.

    >>> no_intervals({"f1": "too few", "recall": "too few"}, ["f1", "recall", "spearman"])
    ['No interval of f1, recall: too few.']
    >>> no_intervals({"f1": "too few", "recall": "too few"}, ["f1", "recall", "threshold"])
    ['No intervals, so no verdict can be sure: too few.']
    """
    by_reason: dict[str, list[str]] = {}
    for name, reason in undefined.items():
        by_reason.setdefault(reason, []).append(name)
    everything = set(metrics) - {"threshold"}

    def what(names: Sequence[str]) -> str:
        everywhere = set(names) == everything
        return "No intervals, so no verdict can be sure" if everywhere else f"No interval of {', '.join(names)}"

    return [f"{what(names)}: {reason}." for reason, names in by_reason.items()]


def insufficient(diagnostic: Mapping[str, Mapping[str, Any]], fewest: int) -> str | None:
    """Why the adversarial diagnostic says nothing, in a sentence; None where it says something."""
    if not diagnostic:
        return "The adversarial diagnostic needs negatives, and these pairs have none."
    counts = next(iter(diagnostic.values()))
    if counts["status"] != Status.INSUFFICIENT:
        return None
    return (
        f"INSUFFICIENT: the adversarial diagnostic needs {max(fewest, 1)} positives across categories and as many "
        f"negatives within one, and these pairs have {counts['positives']} and {counts['negatives']}."
    )


def _by_dim(systems: Sequence[str], dims: Sequence[int], samples: Mapping[str, np.ndarray]) -> dict[str, Intervals]:
    """Intervals of samples [K, M, B] by metric, nested as people read them."""
    ends = {name: interval(values).tolist() for name, values in samples.items()}
    count = len(next(iter(samples.values())))
    return {
        system: {str(dim): {name: ends[name][k][m] for name in ends} for m, dim in enumerate(dims)}
        for k, system in enumerate(systems[:count])
    }


def paired_verdict(low: float, high: float) -> Verdict:
    """The verdict on a paired interval of the difference: above 0 all of it, nowhere above 0, or neither."""
    if low > 0:
        return Verdict.BETTER
    return Verdict.NOT_BETTER if high <= 0 else Verdict.UNCLEAR


def overall_verdict(verdicts: Mapping[str, Verdict]) -> Verdict:
    """BETTER where it is that at every dim, NOT BETTER where it is that at any, else UNCLEAR."""
    if set(verdicts.values()) == {Verdict.BETTER}:
        return Verdict.BETTER
    return Verdict.NOT_BETTER if Verdict.NOT_BETTER in verdicts.values() else Verdict.UNCLEAR


def adversarial(table: PairTable) -> NDArray[np.bool_]:
    """[N] the pairs that a shortcut by category gets wrong: positives across categories, negatives within one.

    Pairs without two known categories are in neither kind.
    """
    if table.categories1 is None or table.categories2 is None:
        return np.zeros(len(table), dtype=np.bool_)
    first, second = np.array(table.categories1, dtype=object), np.array(table.categories2, dtype=object)
    chosen: NDArray[np.bool_] = (first != "") & (second != "") & ((first == second) != table.label)
    return chosen


def diagnose(
    table: PairTable,
    cosines: Mapping[str, np.ndarray],
    thresholds: Mapping[str, Mapping[str, float]],
    fewest: int = FEWEST,
) -> dict[str, dict[str, Any]]:
    """The adversarial diagnostic at every dim, from cosines [M, N] by system.

    PASS where the model reaches PASSING in ROC-AUC and in F1 at its frozen threshold, FAIL where not, INSUFFICIENT with
    fewer than `fewest` pairs of either kind, whatever the figures are.
    """
    rows = adversarial(table)
    labels = table.label[rows]
    positives, negatives = int(labels.sum()), int((~labels).sum())
    diagnostic: dict[str, dict[str, Any]] = {}
    for m, dim in enumerate(thresholds["model"]):
        entry: dict[str, Any] = {"status": Status.INSUFFICIENT, "positives": positives, "negatives": negatives}
        for system, scores in cosines.items():
            figures = {"roc_auc": float("nan"), "f1": float("nan")}
            if positives and negatives:
                at = classify_at(scores[m, rows], labels, thresholds[system][dim])
                figures = {"roc_auc": roc_auc(scores[m, rows], labels), "f1": at["f1"]}
            entry[system] = figures
        if min(positives, negatives) >= max(fewest, 1):
            entry["status"] = Status.PASS if min(entry["model"].values()) >= PASSING else Status.FAIL
        diagnostic[dim] = entry
    return diagnostic


def forgetting(
    table: PairTable, before: np.ndarray, after: np.ndarray, dims: tuple[int, ...], resamples: int, seed: int
) -> dict[str, dict[str, dict[str, Any]]]:
    """Dim -> metric -> before, after and their difference's interval, of correlations with graded scores.

    Args:
        before: [T, E] embeddings of the table's texts by the model that training began with; `after` by the trained.

    Raises:
        NumericError: an embedding is NaN or Inf.
    """
    cosines = np.stack([pair_cosines(rows, table, dims) for rows in (before, after)])
    flat, unused = cosines.reshape(-1, len(table)), np.zeros(2 * len(dims))
    groups = groups_of_pairs(table)
    samples = bootstrap_pairs(flat, table.score, table.label, unused, groups, resamples=resamples, seed=seed)
    changes: dict[str, dict[str, dict[str, Any]]] = {str(dim): {} for dim in dims}
    for name, plain in (("spearman", spearman), ("pearson", pearson)):
        old, new = samples[name].reshape(2, len(dims), resamples)
        for m, (dim, ends) in enumerate(zip(dims, interval(new - old).tolist(), strict=True)):
            values = [plain(scores, table.score) for scores in cosines[:, m]]
            changes[str(dim)][name] = dict(zip(("before", "after"), values, strict=True)) | {"difference": ends}
    return changes
