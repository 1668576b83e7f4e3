"""What held-out data say of a model, and of a baseline beside it: figures, intervals, losses. Pure functions.

Pairs of both labels are judged by labels, at frozen thresholds, and by search; positives alone by search. The search is
that of a corpus, or one among the pairs' own texts. What follows from it all is for `verdict.py` to say.
Legend: S systems, M dims, N pairs, B resamples, Q queries.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from trainer.data.pairs import PairTable
from trainer.data.split import has_both_labels
from trainer.evaluation.bootstrap import LEVEL, RESAMPLES, bootstrap_means, bootstrap_pairs, interval, why_undefined
from trainer.evaluation.diagnostic import FEWEST, diagnose
from trainer.evaluation.groups import Groups, groups_of_pairs, groups_of_queries
from trainer.evaluation.pair_metrics import pearson, spearman
from trainer.evaluation.scoring import metrics_at, pair_cosines
from trainer.evaluation.search import search
from trainer.evaluation.search_metrics import DEPTH, NAMES, Float
from trainer.evaluation.search_scores import BM25Scores
from trainer.evaluation.search_set import SearchedTexts, Values, task_of

GUARDED = ("success@10", f"map@{DEPTH}")
"""A model that surely loses one of these at some dim is not better, whatever the metric says that it is judged by."""
CHANGE = "difference"
DIFFERENCES = {
    CHANGE: ("model", "baseline"),
    "model less bm25": ("model", "bm25"),
    "baseline less bm25": ("baseline", "bm25"),
    "bm25+model less model": ("bm25+model", "model"),
    "bm25+model less bm25": ("bm25+model", "bm25"),
    "bm25+model less bm25+baseline": ("bm25+model", "bm25+baseline"),
    "bm25+baseline less baseline": ("bm25+baseline", "baseline"),
}
"""Name -> which of two systems less which; CHANGE is what the verdict is about."""

ByDim = dict[str, dict[str, Any]]
"""Dim (as a string, as JSON has it) -> metric -> a value, or [low, high] of its 95 % interval."""


Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Assessment:
    """Figures of every system at every dim: "model" and, where there are any, "baseline", "bm25" and fusions."""

    metrics: dict[str, ByDim]
    """System -> dim -> metric -> value. Those of BM25 are the same at each dim."""
    intervals: dict[str, ByDim]
    """The same with intervals; also of DIFFERENCES, paired."""
    undefined: dict[str, str]
    """Metric -> why an interval of it is NaN."""
    surely_worse: list[tuple[str, str]]
    """What the model surely lost against the baseline: which of GUARDED, and at which dim."""
    groups: dict[str, Any]
    """What the bootstrap drew: kind, count, and effective number."""
    queries: int
    """Texts that searched."""
    texts: int
    """How many different texts they searched among."""
    source: str
    """What file these are from."""
    diagnostic: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Dim -> status, numbers of pairs, and ROC-AUC and F1 of each system; empty where no pairs of both labels were
    judged."""


def assess(
    table: PairTable,
    embeddings: Mapping[str, np.ndarray],
    dims: Sequence[int],
    thresholds: Mapping[str, Mapping[str, float]],
    *,
    search: Assessment | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    fewest: int = FEWEST,
) -> Assessment:
    """Judge systems on a table's pairs: by labels where it has both, and by search.

    Args:
        embeddings: of the table's texts, as `embedding.sides` takes them, by system: "model", and "baseline"
            where there is one.
        thresholds: by system, dim -> threshold; not read where all pairs are positive.
        search: what a search of a corpus said of the same systems at the same dims; without, the texts of positive
            pairs search for each other among all texts of the table (which has some, see `split.require_positives`).
        fewest: pairs of either kind that the diagnostic needs.

    Raises:
        NumericError: an embedding is NaN or Inf.
    """
    dims = tuple(dims)
    # In this order whatever the caller's is: the difference is the first less the second.
    embeddings = {system: embeddings[system] for system in ("model", "baseline") if system in embeddings}
    search = search or assess_corpus(SearchedTexts.of_pairs(table), embeddings, dims, resamples=resamples, seed=seed)
    if not has_both_labels(table):
        return search
    systems, groups = list(embeddings), groups_of_pairs(table)
    frozen = {system: {str(dim): thresholds[system][str(dim)] for dim in dims} for system in systems}
    cosines = {system: pair_cosines(embeddings[system], table, dims) for system in systems}
    flat = np.concatenate(list(cosines.values()))
    at = np.array([threshold for of_system in frozen.values() for threshold in of_system.values()])
    by_name = bootstrap_pairs(flat, table.score, table.label, at, groups, resamples=resamples, seed=seed)
    names = list(by_name)
    by_system = np.stack(list(by_name.values())).reshape(len(names), len(systems), len(dims), resamples)
    samples = _with_differences(dict(zip(systems, by_system.swapaxes(0, 1), strict=True)))
    intervals = {system: _by_dim(interval(each), dims, names) for system, each in samples.items()}
    metrics = {system: metrics_at(cosines[system], table, frozen[system]) for system in systems}
    reasons = {name: why_undefined(rows, groups) for name, *rows in zip(names, *samples.values(), strict=True)}
    return replace(
        search,
        metrics=_joined(metrics, search.metrics),
        intervals=_joined(intervals, search.intervals),
        undefined={name: reason for name, reason in reasons.items() if reason} | search.undefined,
        groups=_drawn(groups),
        diagnostic=diagnose(table, cosines, frozen, fewest),
    )


def assess_corpus(
    searched: SearchedTexts,
    embeddings: Mapping[str, np.ndarray],
    dims: Sequence[int],
    words: BM25Scores | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Assessment:
    """Let every query search by every system, by words, and by both, and judge what it found.

    Args:
        embeddings: of the different texts, by system: "model" or "baseline"; see `SearchedTexts.search`.
        words: of the same corpus.

    Raises:
        NumericError: an embedding is NaN or Inf.
    """
    corpus = searched.corpus
    values: Values = {}
    if words is not None:
        values["bm25"] = search(words, task_of(corpus), "Search by BM25")
    for system, rows in embeddings.items():
        values |= searched.search(system, rows, dims, words)
    return assess_search(
        values,
        corpus.clusters,
        dims,
        texts=len(corpus.texts),
        source=corpus.source,
        resamples=resamples,
        seed=seed,
    )


def assess_search(
    values: Mapping[str, Mapping[str, Float]],
    clusters: np.ndarray,
    dims: Sequence[int],
    *,
    texts: int,
    source: str,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Assessment:
    """Judge systems by what each query found.

    Args:
        values: system -> metric -> [M, Q], or [1, Q] of a system without dims; see `search.search`.
        clusters: [Q] of the queries, which are drawn whole.
        texts: how many they searched among; `source` is what these are called.
    """
    groups, systems = groups_of_queries(clusters), list(values)
    shape = (len(dims), len(clusters))
    rows = np.stack([np.broadcast_to(values[system][name], shape) for system in systems for name in NAMES])
    drawn = bootstrap_means(rows.reshape(-1, len(clusters)), groups, resamples=resamples, seed=seed)
    by_system = drawn.reshape(len(systems), len(NAMES), len(dims), resamples)
    samples = _with_differences(dict(zip(systems, by_system, strict=True)))
    means = dict(zip(systems, rows.reshape(len(systems), len(NAMES), *shape).mean(axis=-1), strict=True))
    losses = {}
    if CHANGE in samples:
        guarded = [(name, m) for m in range(len(dims)) for name in GUARDED]
        losses = {(name, str(dims[m])): samples[CHANGE][NAMES.index(name), m] for name, m in guarded}
    reason = why_undefined(list(samples.values()), groups)
    return Assessment(
        metrics={system: _by_dim(mean, dims, NAMES) for system, mean in means.items()},
        intervals={name: _by_dim(interval(each), dims, NAMES) for name, each in samples.items()},
        undefined=dict.fromkeys(NAMES, reason) if reason else {},
        surely_worse=surely_below_zero(losses),
        groups=_drawn(groups),
        queries=len(clusters),
        texts=texts,
        source=source,
    )


def _with_differences(samples: dict[str, Float]) -> dict[str, Float]:
    """Samples by system, and those of each difference of two that are there."""
    pairs = {name: pair for name, pair in DIFFERENCES.items() if samples.keys() >= set(pair)}
    return samples | {name: samples[first] - samples[second] for name, (first, second) in pairs.items()}


def _by_dim(figures: Float, dims: Sequence[int], names: Sequence[str]) -> ByDim:
    """Figures [names, M, ...] nested as people read them."""
    return {str(dim): {name: figures[n, m].tolist() for n, name in enumerate(names)} for m, dim in enumerate(dims)}


def _joined(of_pairs: Mapping[str, ByDim], of_search: Mapping[str, ByDim]) -> dict[str, ByDim]:
    """By name and dim, figures of both; some systems search only."""
    return {
        name: {dim: of_pairs.get(name, {}).get(dim, {}) | figures for dim, figures in by_dim.items()}
        for name, by_dim in of_search.items()
    }


def _drawn(groups: Groups) -> dict[str, Any]:
    return {"kind": groups.kind, "count": groups.count, "effective": groups.effective}


def surely_below_zero(samples: Mapping[Name, Float]) -> list[Name]:
    """Names whose difference is below zero beyond doubt, all of them taken together, of samples [B] by name.

    Each is tested by the share of resamples that are not below zero, one more counted in so that few resamples are sure
    of little (Davison and Hinkley 1997), at the same error as one end of a 95 % interval; Holm's step-down procedure
    (1979) keeps that error for the whole family.
    """
    shares = {name: float(1 + np.sum(~(drawn < 0))) / (1 + len(drawn)) for name, drawn in samples.items()}
    worse: list[Name] = []
    for name in sorted(shares, key=shares.__getitem__):
        if shares[name] > (1 - LEVEL) / 2 / (len(shares) - len(worse)):
            break
        worse.append(name)
    return [name for name in samples if name in worse]


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
