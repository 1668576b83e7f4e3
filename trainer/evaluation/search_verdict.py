"""What a search says of a model: intervals, differences between systems, and a verdict in words. Pure functions.

Systems are "model" and, where there are any, "baseline", "bm25", and the fusions "bm25+model" and "bm25+baseline".
Legend: S systems, M dims, Q queries, B resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from trainer.evaluation.bootstrap import LEVEL, RESAMPLES, bootstrap_means, interval, why_undefined
from trainer.evaluation.groups import FEWEST_GROUPS, Groups, groups_of_queries
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
        undefined=_undefined(drawn, groups),
        verdicts=verdicts,
        surely_worse=worse,
        verdict=(Verdict.NOT_BETTER if worse else overall_verdict(verdicts)) if verdicts else None,
        groups={"kind": groups.kind, "count": groups.count, "effective": groups.effective},
    )


def _undefined(samples: Float, groups: Groups) -> str | None:
    """Why intervals of samples [..., B] are NaN; None where none is."""
    if groups.effective >= FEWEST_GROUPS:
        return why_undefined(samples, groups)
    return (
        f"the queries are of {groups.effective:.1f} clusters of duplicates (counted as of equal size), and "
        f"{FEWEST_GROUPS} are needed"
    )


def _by_dim(figures: Float, dims: Sequence[int]) -> ByDim:
    """Figures [names, M, ...] nested as people read them."""
    return {str(dim): {name: figures[n, m].tolist() for n, name in enumerate(NAMES)} for m, dim in enumerate(dims)}


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


def sentences(assessment: SearchAssessment, metric: str) -> list[str]:
    """The assessment for people, at its largest dim; the first sentence is the verdict on a model beside a baseline.

    What the model surely lost is named first.
    """
    dim = max(assessment.metrics["model"], key=int)
    said = []
    if assessment.surely_worse:
        lost = "; ".join(_lost(assessment, name) for name in assessment.surely_worse)
        said.append(f"The model is surely worse than the baseline at finding the right ticket: {lost}; deploy: no.")
    said.append(f"{_success(assessment, 'success@5', dim)}.")
    if assessment.verdict:
        because = "" if assessment.surely_worse else f"{_deploy(assessment, metric)}; "
        said[-1] = f"{said[-1][:-1]}; {because}{_noticed(assessment, dim)}."
        said.append(f"{_success(assessment, 'success@10', dim)}.")
    return said + _beside_words(assessment, metric, dim)


def _lost(assessment: SearchAssessment, loss: str) -> str:
    name, _, dim = loss.removesuffix(" dims").partition(" at ")
    before, after = (assessment.metrics[system][dim][name] for system in ("baseline", "model"))
    low, high = assessment.intervals["model less baseline"][dim][name]
    return f"{loss} {before:.3f} -> {after:.3f} [{low:+.3f}, {high:+.3f}]"


def _success(assessment: SearchAssessment, name: str, dim: str) -> str:
    """How often the right ticket is among the first few, of 100, with the interval of the change."""
    first = {"success@5": "five", "success@10": "ten"}[name]
    after = f"{100 * assessment.metrics['model'][dim][name]:.0f}"
    ends = assessment.intervals["model"][dim][name]
    interval = "[{:.0f}, {:.0f}]".format(*(100 * end for end in ends))
    if "baseline" in assessment.metrics:
        after = f"{100 * assessment.metrics['baseline'][dim][name]:.0f} -> {after}"
        ends = assessment.intervals["model less baseline"][dim][name]
        interval = "[{:+.0f}, {:+.0f}]".format(*(100 * end for end in ends))
    interval = "(no interval)" if np.isnan(ends).any() else interval
    return f"The right ticket is among the first {first} for {after} of 100 tickets {interval} at {dim} dims"


def _deploy(assessment: SearchAssessment, metric: str) -> str:
    guarded = " and ".join(GUARDED)
    if assessment.verdict == Verdict.BETTER:
        return f"deploy: yes, because {metric} is surely better at every dim, and {guarded} are surely worse at none"
    dims = [dim for dim, verdict in assessment.verdicts.items() if verdict != Verdict.BETTER]
    if assessment.verdict == Verdict.NOT_BETTER:
        return f"deploy: no, because {metric} is not better at {', '.join(dims)} dims"
    return f"deploy: not on this evidence, because {metric} may be no better at {', '.join(dims)} dims"


def _noticed(assessment: SearchAssessment, dim: str) -> str:
    low, high = assessment.intervals["model less baseline"][dim]["success@5"]
    change = 100 * (assessment.metrics["model"][dim]["success@5"] - assessment.metrics["baseline"][dim]["success@5"])
    if low > 0 or high < 0:
        more = "more" if low > 0 else "fewer"
        return f"users will notice that {abs(change):.0f} {more} of 100 searches show it among the first five"
    return "that users will notice a difference is not shown"


def _beside_words(assessment: SearchAssessment, metric: str, largest: str) -> list[str]:
    """What the model is worth to one who can search by words."""
    if "bm25" not in assessment.metrics:
        return []
    alone, both, gain = (
        _Comparison.of(assessment, metric, largest, *pair)
        for pair in (("model", "bm25"), ("bm25+model", "bm25"), ("bm25+model", "model"))
    )
    words = "BM25, a search by words without any model"
    said = [f"The model {alone.say('beats', 'loses to', 'is not surely better than')} {words}: {alone.figures}."]
    for dim in assessment.metrics["model"]:
        smaller = _Comparison.of(assessment, metric, dim, "model", "bm25")
        if dim != largest and smaller.high < 0 <= alone.high:
            said.append(f"Cut to {dim} dims it loses to BM25: {smaller.figures}.")
    if not (alone.low > 0 or both.low > 0):
        return [*said, f"It adds nothing to BM25 that is sure: both together, {both.figures}."]
    verb = gain.say("are better than", "are worse than", "are not surely better than")
    return [*said, f"BM25 and the model together {verb} the model alone: {gain.figures}."]


class _Comparison(NamedTuple):
    """One system less another, by one metric at one dim."""

    low: float
    high: float
    figures: str

    @classmethod
    def of(cls, assessment: SearchAssessment, metric: str, dim: str, first: str, second: str) -> _Comparison:
        low, high = assessment.intervals[f"{first} less {second}"][dim][metric]
        before, after = (assessment.metrics[system][dim][metric] for system in (second, first))
        interval = "(no interval)" if np.isnan(low) else f"[{low:+.3f}, {high:+.3f}]"
        return cls(low, high, f"{metric} {before:.3f} -> {after:.3f} {interval} at {dim} dims")

    def say(self, above: str, below: str, unsure: str) -> str:
        """The word for an interval above zero, below it, or neither."""
        return above if self.low > 0 else below if self.high < 0 else unsure
