"""A judgement by search as tables in the terminal."""

from __future__ import annotations

import numpy as np
from rich import box
from rich.table import Table

from trainer.data.search_corpus import remarks
from trainer.evaluation.search_judge import SearchJudgement
from trainer.evaluation.search_verdict import GUARDED
from trainer.system.console import console

NAMES = {
    "bm25": "BM25",
    "baseline": "baseline",
    "model": "model",
    "bm25+baseline": "BM25 + baseline",
    "bm25+model": "BM25 + model",
}


SHOWN = (("model", "baseline"), ("model", "bm25"), ("bm25+model", "bm25"), ("bm25+model", "model"))
"""Differences in the tables; the record has them all."""


def print_search(judgement: SearchJudgement) -> None:
    """Show a table a dim, a row a system and a row a difference, then the sentences."""
    question, facts, assessment = judgement.question, judgement.facts, judgement.assessment
    groups = assessment.groups
    console.print(
        f"{judgement.source}: {facts['queries']} queries among {facts['texts']} texts; 95 % intervals from "
        f"{question.resamples} resamples (seed {question.seed}) of {groups['count']} {groups['kind']}, worth "
        f"{groups['effective']:.0f} of equal size",
        markup=False,
    )
    for remark in remarks(facts):
        console.print(remark, markup=False)
    columns = tuple(dict.fromkeys(("success@5", *GUARDED, question.metric)))
    for dim in assessment.metrics["model"]:
        _print_dim(judgement, dim, columns)
    if assessment.undefined:
        console.print(f"No intervals: {assessment.undefined}", markup=False)
    for sentence in judgement.sentences:
        console.print(sentence, markup=False)
    if assessment.verdict:
        console.print(f"Verdict by {question.metric} over all dims: {assessment.verdict}")


def _print_dim(judgement: SearchJudgement, dim: str, columns: tuple[str, ...]) -> None:
    assessment = judgement.assessment
    table = Table(title=f"{dim} dims", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("search by", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right")
    metrics, intervals = assessment.metrics, assessment.intervals
    for system, title in NAMES.items():
        if system in metrics:
            table.add_row(title, *(_cell(metrics[system][dim][name], intervals[system][dim][name]) for name in columns))
    table.add_section()
    for first, second in SHOWN:
        if second in metrics:
            ends = intervals[f"{first} less {second}"][dim]
            cells = (_cell(metrics[first][dim][name] - metrics[second][dim][name], ends[name], "+") for name in columns)
            bold = "bold" if second == "baseline" else None
            table.add_row(f"{NAMES[first]} less {NAMES[second]}", *cells, style=bold)
    console.print(table, markup=False)


def _cell(value: float, ends: list[float], sign: str = "") -> str:
    """A value with its interval."""
    if np.isnan(ends).any():
        return f"{value:{sign}.3f}"
    return f"{value:{sign}.3f} ({ends[0]:{sign}.3f},{ends[1]:{sign}.3f})"
