"""A judgement, by pairs or by search, as tables and sentences in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from trainer.data.search_corpus import remarks
from trainer.evaluation.assessment import CHANGE, DIFFERENCES, GUARDED, Assessment
from trainer.evaluation.diagnostic import PASSING, insufficient
from trainer.evaluation.judge import Judgement
from trainer.evaluation.metric_choice import NO_NEGATIVES
from trainer.evaluation.prevalence import percent
from trainer.evaluation.question import EncoderQuestion
from trainer.evaluation.search_judge import SearchJudgement
from trainer.evaluation.search_set import SYSTEMS
from trainer.evaluation.type_comparison import print_types
from trainer.evaluation.verdict import Decision, no_intervals
from trainer.system.console import console

SHOWN = (CHANGE, "model less bm25", "bm25+model less bm25", "bm25+model less model")
"""Differences in the tables of a search; the record has them all."""


def print_judgement(judgement: Judgement) -> None:
    """Show a table a system, the differences, the diagnostic, what was forgotten, and the sentences."""
    question, assessment = judgement.question, judgement.assessment
    _print_drawn(f"{judgement.pairs} pairs", question, assessment)
    if not assessment.diagnostic:
        console.print(f"{question.pairs}: {NO_NEGATIVES}", markup=False)
    names = {"model": question.model, "baseline": question.baseline}
    for system, metrics in assessment.metrics.items():
        fitted = f"; thresholds fitted on {judgement.thresholds_from[system]}" if assessment.diagnostic else ""
        if fitted and question.prevalence is not None:
            fitted += "; precision and F1 at the share that is positive among the judged pairs"
        _print_metrics(f"{system}: {names[system]}{fitted}", metrics, assessment.intervals[system])
    if judgement.verdicts:
        differences = {
            dim: {name: value - assessment.metrics["baseline"][dim][name] for name, value in metrics.items()}
            for dim, metrics in assessment.metrics["model"].items()
        }
        title = "model less baseline, paired"
        verdicts = {f"by {question.metric}": judgement.verdicts}
        _print_metrics(title, differences, assessment.intervals[CHANGE], verdicts)
    for sentence in no_intervals(assessment.undefined, list(next(iter(assessment.metrics["model"].values())))):
        console.print(sentence, markup=False)
    if silent := insufficient(assessment.diagnostic, question.fewest):
        console.print(silent, markup=False)
    else:
        _print_diagnostic(judgement)
    if judgement.forgetting:
        _print_forgetting(judgement.forgetting)
    if judgement.deployment:
        _print_deployment(judgement.deployment)
    if judgement.spearman_ceiling:
        console.print(f"Highest Spearman reachable with these binary labels: {judgement.spearman_ceiling:.4f}")
    _print_decision(judgement, question)


def print_search(judgement: SearchJudgement) -> None:
    """Show a table a dim, a row a system and a row a difference, then the sentences."""
    question, assessment = judgement.question, judgement.assessment
    _print_drawn(assessment.source, question, assessment)
    for remark in remarks(judgement.facts):
        console.print(remark, markup=False)
    columns = tuple(dict.fromkeys(("success@5", *GUARDED, question.metric)))
    for dim in assessment.metrics["model"]:
        print_systems(assessment, dim, columns)
    if judgement.index_types:
        print_types(judgement.index_types)
    _print_decision(judgement, question)


def _print_drawn(judged: str, question: EncoderQuestion, assessment: Assessment) -> None:
    groups = assessment.groups
    console.print(
        f"{judged}: {assessment.queries} queries among {assessment.texts} texts; 95 % intervals from "
        f"{question.resamples} resamples (seed {question.seed}) of {groups['count']} {groups['kind']}, worth "
        f"{groups['effective']:.0f} of equal size",
        markup=False,
    )


def _print_decision(decision: Decision, question: EncoderQuestion) -> None:
    for sentence in decision.sentences:
        console.print(sentence, markup=False)
    if decision.verdict:
        console.print(f"Verdict by {question.metric} over all dims: {decision.verdict}")


def print_systems(assessment: Assessment, dim: str, columns: Sequence[str]) -> None:
    """Show a search at a dim: a row a system and a row a difference, a column a metric."""
    table = _table(f"{dim} dims", "search by", columns)
    metrics, intervals = assessment.metrics, assessment.intervals
    for system, title in SYSTEMS.items():
        if system in metrics:
            values, ends = metrics[system][dim], intervals[system][dim]
            table.add_row(title, *(_cell(values[name], ends[name]) for name in columns))
    table.add_section()
    for name in SHOWN:
        if name in intervals:
            ends, (first, second) = intervals[name][dim], (metrics[system][dim] for system in DIFFERENCES[name])
            cells = (_cell(first[column] - second[column], ends[column], "+") for column in columns)
            titles = (SYSTEMS[system] for system in DIFFERENCES[name])
            table.add_row(" less ".join(titles), *cells, style="bold" if name == CHANGE else None)
    console.print(table, markup=False)


def _print_deployment(deployment: Mapping[str, Any]) -> None:
    """A table a system, a row a threshold at a dim."""
    share, tickets = deployment["prevalence"], deployment["tickets"]
    about = [f"where {percent(share)} of the pairs are positive"] if share is not None else []
    if tickets is not None:
        about.append(f"alerts on the {tickets['count']} different tickets of {tickets['source']}")
    names = {"recall": "recall"} | ({"precision": "precision", "f1": "F1"} if share is not None else {})
    names |= {"alerts": "alerts a ticket"} if tickets is not None else {}
    for system, by_dim in deployment["systems"].items():
        table = _table(f"{system}: thresholds {', '.join(about)}", "dims", ("threshold", *names.values()))
        table.add_column("threshold chosen by")
        for dim, rows in by_dim.items():
            for row in rows:
                cells = (_cell(row.get(name, np.nan), row.get(f"{name}_interval")) for name in ("threshold", *names))
                table.add_row(dim, *cells, escape(row["chosen"]))
        console.print(table)
    drawn = "; alerts, and the threshold for them, over the tickets" if tickets is not None else ""
    console.print(
        "Intervals: recall, precision and F1 over groups of the judged texts, a fitted threshold over groups of the "
        f"texts that it was fitted on{drawn}",
        markup=False,
    )
    for note in deployment["notes"]:
        console.print(note, markup=False)


def _table(title: str, first: str, columns: Iterable[str]) -> Table:
    # A title names folders, in which [final] is no markup.
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, no_wrap=True)
    for heading in columns:
        table.add_column(heading, justify="right")
    return table


def _cell(value: float, ends: list[float] | None, sign: str = "") -> str:
    """A value with its interval, "-" where it is undefined."""
    text = "-" if np.isnan(value) else f"{value:{sign}.4f}"
    return text if ends is None or np.isnan(ends).any() else f"{text} ({ends[0]:{sign}.3f},{ends[1]:{sign}.3f})"


def _print_metrics(
    title: str,
    metrics: Mapping[str, Mapping[str, float]],
    intervals: Mapping[str, Mapping[str, list[float]]],
    last: Mapping[str, Mapping[str, str]] | None = None,
) -> None:
    """A column a dim, a row a metric, and rows of words at the end: differences, where there are such rows."""
    table = _table(title, "metric", (f"{dim} dims" for dim in metrics))
    for name in next(iter(metrics.values())):
        cells = (_cell(values[name], intervals[dim].get(name), "+" if last else "") for dim, values in metrics.items())
        table.add_row(name, *cells)
    for heading, words in (last or {}).items():
        table.add_row(heading, *(words[dim] for dim in metrics), style="bold")
    console.print(table, markup=False)


def _print_diagnostic(judgement: Judgement) -> None:
    diagnostic = judgement.assessment.diagnostic
    counts = next(iter(diagnostic.values()))
    title = (
        f"adversarial diagnostic: {counts['positives']} positives across categories against {counts['negatives']} "
        f"negatives within one; at least {judgement.question.fewest} of each, ROC-AUC and F1 at least {PASSING:.2f}"
    )
    systems = list(judgement.assessment.metrics)
    table = _table(title, "dims", [f"{name} {system}" for system in systems for name in ("ROC-AUC", "F1")])
    table.add_column("status")
    in_sample = " (in-sample threshold)" if judgement.in_sample("model") else ""
    for dim, entry in diagnostic.items():
        cells = (_cell(entry[system][name], None) for system in systems for name in ("roc_auc", "f1"))
        table.add_row(dim, *cells, entry["status"] + in_sample)
    console.print(table)


def _print_forgetting(changes: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    table = _table("general similarity, before and after", "dims", ("metric", "before", "after", "difference"))
    for dim, metrics in changes.items():
        for name, entry in metrics.items():
            difference = _cell(entry["after"] - entry["before"], entry["difference"], "+")
            table.add_row(dim, name, _cell(entry["before"], None), _cell(entry["after"], None), difference)
    console.print(table)
