"""What a search says of a model: intervals, differences between systems, and a verdict in words. Pure functions.

Systems are "model" and, where there are any, "baseline", "bm25", and the fusions "bm25+model" and "bm25+baseline".
Legend: S systems, M dims, Q queries, B resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.evaluation.bootstrap import LEVEL, RESAMPLES, bootstrap_means, interval, why_undefined
from trainer.evaluation.groups import groups_of_queries
from trainer.evaluation.search_metrics import DEPTH, NAMES, Float
from trainer.evaluation.verdict import Verdict, overall_verdict, paired_verdict

GUARDED = ("success@10", f"map@{DEPTH}")
"""A model that surely loses one of these at some dim is not better, whatever the metric says that it is judged by."""
DIFFERENCES = (
    ("model", "baseline"),
    ("model", "bm25"),
    ("baseline", "bm25"),
    ("bm25+model", "model"),
    ("bm25+model", "bm25"),
    ("bm25+model", "bm25+baseline"),
    ("bm25+baseline", "baseline"),
)

ByDim = dict[str, dict[str, Any]]
"""Dim (as a string, as JSON has it) -> metric -> a value, or [low, high] of its 95 % interval."""


@dataclass(frozen=True)
class SearchAssessment:
    """Figures of every system at every dim; those of BM25 are the same at each."""

    metrics: dict[str, ByDim]
    """System -> dim -> metric -> mean over the queries."""
    intervals: dict[str, ByDim]
    """The same with intervals; also of "model less baseline" and the like, paired."""
    undefined: str | None
    """Why the intervals are NaN, where they are."""
    verdicts: dict[str, Verdict]
    """Dim -> verdict by the metric; empty without a baseline."""
    surely_worse: list[str]
    """What the model surely lost against the baseline, of GUARDED, as "success@10 at 64 dims"."""
    verdict: Verdict | None
    """Over all dims and GUARDED; None without a baseline."""
    groups: dict[str, Any]
    """What the bootstrap drew: kind, count, and effective number."""


def assess_search(
    values: Mapping[str, Mapping[str, Float]],
    clusters: np.ndarray,
    dims: Sequence[int],
    metric: str,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> SearchAssessment:
    """Judge systems by what each query found.

    Args:
        values: system -> metric -> [M, Q], or [1, Q] of a system without dims; see `search.search`.
        clusters: [Q] of the queries, which are drawn whole.
        metric: one of NAMES, which carries the verdict.
    """
    groups, systems = groups_of_queries(clusters), list(values)
    shape = (len(dims), len(clusters))
    rows = np.stack([np.broadcast_to(values[system][name], shape) for system in systems for name in NAMES])
    drawn = bootstrap_means(
        rows.reshape(-1, len(clusters)), np.arange(len(clusters)), groups, resamples=resamples, seed=seed
    )
    by_system = drawn.reshape(len(systems), len(NAMES), len(dims), resamples)
    samples = dict(zip(systems, by_system, strict=True))
    pairs = [(first, second) for first, second in DIFFERENCES if {first, second} <= samples.keys()]
    samples |= {f"{first} less {second}": samples[first] - samples[second] for first, second in pairs}
    means = dict(zip(systems, rows.reshape(len(systems), len(NAMES), *shape).mean(axis=-1), strict=True))
    intervals = {name: _by_dim(interval(drawn), dims) for name, drawn in samples.items()}
    change = samples.get("model less baseline")
    verdicts, worse = {}, []
    if change is not None:
        ends = intervals["model less baseline"]
        verdicts = {dim: paired_verdict(*ends[dim][metric]) for dim in ends}
        losses = {
            f"{name} at {dim} dims": change[NAMES.index(name), m] for m, dim in enumerate(dims) for name in GUARDED
        }
        worse = surely_below_zero(losses)
    return SearchAssessment(
        metrics={system: _by_dim(mean, dims) for system, mean in means.items()},
        intervals=intervals,
        undefined=why_undefined(drawn, groups),
        verdicts=verdicts,
        surely_worse=worse,
        verdict=(Verdict.NOT_BETTER if worse else overall_verdict(verdicts)) if verdicts else None,
        groups={"kind": groups.kind, "count": groups.count, "effective": groups.effective},
    )


def _by_dim(figures: Float, dims: Sequence[int]) -> ByDim:
    """Figures [names, M, ...] nested as people read them."""
    return {
        str(dim): {name: figures[n, m].tolist() for n, name in enumerate(NAMES)} for m, dim in enumerate(dims)
    }


def surely_below_zero(samples: Mapping[str, Float]) -> list[str]:
    """Names whose difference is below zero beyond doubt, all of them taken together, of samples [B] by name.

    Each is tested by the share of resamples that are not below zero, at the same error as one end of a 95 % interval;
    Holm's step-down procedure (1979) keeps that error for the whole family.
    """
    shares = {name: float(np.mean(~(drawn < 0))) for name, drawn in samples.items()}
    worse: list[str] = []
    for name in sorted(shares, key=shares.__getitem__):
        if shares[name] > (1 - LEVEL) / 2 / (len(shares) - len(worse)):
            break
        worse.append(name)
    return [name for name in samples if name in worse]
