"""What follows from an assessment: the verdict on a model beside its baseline, and the sentences for people.

Every way of judging goes through `decide`: pairs, a corpus, the end of a training run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trainer.evaluation.assessment import CHANGE, DIFFERENCES, GUARDED, Assessment
from trainer.evaluation.metric_choice import BY_SEARCH
from trainer.evaluation.search_metrics import NAMES


class Verdict(StrEnum):
    """Whether a model is better than its baseline."""

    BETTER = "BETTER"
    NOT_BETTER = "NOT BETTER"
    UNCLEAR = "UNCLEAR"


@dataclass(frozen=True)
class Decision:
    """The verdict on a model, and what there is to say."""

    verdicts: dict[str, Verdict]
    """Dim -> what the metric says there; empty without a baseline."""
    verdict: Verdict | None
    """Over all dims, and over what must not get worse (GUARDED); None without a baseline."""
    sentences: list[str]
    """For people; beside a baseline the first is the verdict."""


def decide(assessment: Assessment, metric: str) -> Decision:
    """BETTER needs the metric's interval above 0 at every dim, and neither of GUARDED surely below 0 at any.

    What is surely worse is named first; it makes any verdict NOT BETTER.

    Args:
        metric: one of the assessment's.
    """
    ends = assessment.intervals.get(CHANGE, {})
    verdicts = {dim: paired_verdict(*ends[dim][metric]) for dim in ends}
    verdict = (Verdict.NOT_BETTER if assessment.surely_worse else overall_verdict(verdicts)) if verdicts else None
    return Decision(verdicts, verdict, _sentences(assessment, metric, verdicts, verdict))


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


def worse_by(assessment: Assessment, metric: str, margin: float) -> list[str]:
    """What may be worse than the baseline by more than a margin, in figures; [] where all is surely not.

    Looked at are the metric and GUARDED at every dim: the low end of the paired interval counts, and one that cannot be
    told may be anything.
    """
    names, dims = dict.fromkeys((metric, *GUARDED)), assessment.intervals[CHANGE]
    changes = (_Change.of(assessment, CHANGE, name, dim) for dim in dims for name in names)
    return [change.figures for change in changes if not change.low >= -margin]


def _sentences(
    assessment: Assessment, metric: str, verdicts: Mapping[str, Verdict], verdict: Verdict | None
) -> list[str]:
    """The assessment for people, at its largest dim."""
    dim = max(assessment.metrics["model"], key=int)
    five, ten = (_success(assessment, name, dim) for name in ("success@5", "success@10"))
    source = re.sub(r"\S*[/\\]", "", assessment.source)  # without folders
    five = f"{five}, searching the {assessment.texts:,} texts of {source} at {dim} dims"
    reason = assessment.undefined.get(GUARDED[0])
    if verdict is None:
        said = [f"The right ticket is {five}.", f"It is {ten}."]
        said += [f"How sure that is cannot be told: {reason}."] if reason else []
    else:
        noticed = _noticed(_Change.of(assessment, CHANGE, "success@5", dim))
        if lost := _losses(assessment, metric):
            said = [
                f"{verdict}: the model is surely worse{lost}; deploy: no.",
                f"The right ticket is {five}; {noticed}.",
            ]
        else:
            deploy = _deploy(assessment, metric, verdicts, verdict)
            said = [f"{verdict}: the right ticket is {five}; {deploy}; {noticed}."]
        said.append(f"It is {ten}.")
        said += [f"Whether search got better or worse cannot be told: {reason}."] if reason else []
    return said if reason else said + _beside_words(assessment, metric, dim)


def _losses(assessment: Assessment, metric: str) -> str:
    """What was surely lost, of GUARDED and by the metric itself: at the largest dim in figures, the others named."""
    own = [(metric, dim) for dim, ends in assessment.intervals[CHANGE].items() if ends[metric][1] < 0]
    lost = [*assessment.surely_worse, *(loss for loss in own if loss not in assessment.surely_worse)]
    by_metric: dict[str, list[str]] = {}
    for name, dim in sorted(lost, key=lambda loss: -int(loss[1])):
        by_metric.setdefault(name, []).append(dim)
    figures = [
        _Change.of(assessment, CHANGE, name, dim).figures + (f" (also at {', '.join(others)})" if others else "")
        for name, (dim, *others) in by_metric.items()
    ]
    at = " at finding the right ticket" if by_metric.keys() <= set(NAMES) else ""
    return f"{at}: {'; '.join(figures)}" if figures else ""


def _success(assessment: Assessment, name: str, dim: str) -> str:
    """How often the right ticket is among the first few, of 100; beside a baseline with the interval of the change."""
    values = [
        100 * assessment.metrics[system][dim][name] for system in ("baseline", "model") if system in assessment.metrics
    ]
    sign = "+" if len(values) > 1 else ""
    ends = assessment.intervals[CHANGE if sign else "model"][dim][name]
    interval = (
        "(no interval)" if np.isnan(ends).any() else "[" + ", ".join(f"{100 * end:{sign}.0f}" for end in ends) + "]"
    )
    first = {"success@5": "five", "success@10": "ten"}[name]
    return f"among the first {first} for {' -> '.join(f'{value:.0f}' for value in values)} of 100 tickets {interval}"


def _deploy(assessment: Assessment, metric: str, verdicts: Mapping[str, Verdict], verdict: Verdict) -> str:
    if verdict == Verdict.BETTER and (words := _no_gain_on_words(assessment, metric)):
        return words
    if verdict == Verdict.BETTER:
        guard = "could not be checked" if GUARDED[0] in assessment.undefined else "are surely worse at none"
        return f"deploy: yes, because {metric} is surely better at every dim, and {' and '.join(GUARDED)} {guard}"
    dims = ", ".join(dim for dim, each in verdicts.items() if each == verdict)
    if verdict == Verdict.NOT_BETTER:
        return f"deploy: no, because {metric} is not better at {dims} dims"
    return f"deploy: not on this evidence, because {metric} may be no better at {dims} dims"


def _no_gain_on_words(assessment: Assessment, metric: str) -> str:
    """Why a model that is better than its baseline does not replace a search by words; "" where it may."""
    if "bm25" not in assessment.metrics or GUARDED[0] in assessment.undefined:
        return ""
    metric, dim = metric if metric in NAMES else BY_SEARCH, max(assessment.metrics["model"], key=int)
    alone, both = (_Change.of(assessment, f"{name} less bm25", metric, dim) for name in ("model", "bm25+model"))
    if alone.high >= 0:
        return ""
    if both.low > 0:
        return "deploy: beside BM25, a search by words, not in its place: alone it loses to that"
    return "deploy: no, because BM25, a search by words without any model, finds more"


def _noticed(change: _Change) -> str:
    unsure = "that users will notice a difference is not shown"
    count = f"{100 * abs(change.after - change.before):.0f}"
    if count == "0":
        return unsure
    found = "of 100 searches show it among the first five"
    return change.say(
        f"users will notice that {count} more {found}", f"users will notice that {count} fewer {found}", unsure
    )


def _beside_words(assessment: Assessment, metric: str, largest: str) -> list[str]:
    """What the model is worth to one who can search by words."""
    if "bm25" not in assessment.metrics:
        return []
    metric = metric if metric in NAMES else BY_SEARCH
    names = ("model less bm25", "bm25+model less bm25", "bm25+model less model")
    alone, both, gain = (_Change.of(assessment, name, metric, largest) for name in names)
    words = "BM25, a search by words without any model"
    said = [f"The model {alone.say('beats', 'loses to', 'is not surely better than')} {words}: {alone.figures}."]
    for dim in assessment.metrics["model"]:
        smaller = _Change.of(assessment, "model less bm25", metric, dim)
        if dim != largest and smaller.high < 0 <= alone.high:
            said.append(f"Cut to {dim} dims it loses to BM25: {smaller.figures}.")
    if both.high < 0:
        return [*said, f"Both together are worse than BM25 alone: {both.figures}."]
    if not (alone.low > 0 or both.low > 0):
        return [*said, f"It adds nothing to BM25 that is sure: both together, {both.figures}."]
    verb = gain.say("are better than", "are worse than", "are not surely better than")
    return [*said, f"BM25 and the model together {verb} the model alone: {gain.figures}."]


def beside_both(began: Mapping[str, Any], original: Mapping[str, Any]) -> str:
    """How a model stands beside the one that its training began with and beside the original, in one sentence.

    Args:
        began: the record of a judgement as metrics.json has it, and `original` the one with the original as baseline.
    """
    names = ("/".join(Path(record["question"]["baseline"]).parts[-2:]) for record in (began, original))
    (start, first), metric = names, original["question"]["metric"]
    # The largest dim that says what the whole does, or the largest at all.
    dim = max(original["verdicts"], key=lambda dim: (original["verdicts"][dim] == original["verdict"], int(dim)))
    before, after = (original[system][dim][metric] for system in ("baseline", "final"))
    low, high = original["intervals"][CHANGE][dim][metric]
    interval = "no interval" if low is None or np.isnan(low) else f"{low:+.3f}, {high:+.3f}"
    return (
        f"{began['verdict']} beside {start}, which training began with, and {original['verdict']} beside the original, "
        f"{first}: {metric} {before:.3f} -> {after:.3f} [{interval}] at {dim} dims."
    )


class _Change(NamedTuple):
    """One system less another, by one metric at one dim."""

    before: float
    after: float
    low: float
    high: float
    figures: str

    @classmethod
    def of(cls, assessment: Assessment, difference: str, metric: str, dim: str) -> _Change:
        """One of DIFFERENCES."""
        after, before = (assessment.metrics[system][dim][metric] for system in DIFFERENCES[difference])
        low, high = assessment.intervals[difference][dim][metric]
        interval = "(no interval)" if np.isnan(low) else f"[{low:+.3f}, {high:+.3f}]"
        return cls(before, after, low, high, f"{metric} {before:.3f} -> {after:.3f} {interval} at {dim} dims")

    def say(self, above: str, below: str, unsure: str) -> str:
        """The word for an interval above zero, below it, or neither."""
        return above if self.low > 0 else below if self.high < 0 else unsure


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
    if undefined.keys() >= set(metrics) - {"threshold"}:
        return [f"No intervals, so no verdict can be sure: {'; '.join(by_reason)}."]
    return [f"No interval of {', '.join(names)}: {reason}." for reason, names in by_reason.items()]
