"""The tables and sentences that a run ends with, in the terminal; what they say of verdict and alerts comes from
evaluation/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from trainer.config import Config
from trainer.evaluation.alerts import alerts_in_words
from trainer.evaluation.metric_choice import on_in_words
from trainer.system.console import console
from trainer.system.run_files import THRESHOLDS
from trainer.training.model_card import (
    UNTOUCHED,
    ends_in_words,
    fitted_in_words,
    has_thresholds,
    judged_records,
    judged_with_corpus,
    picked_by,
    shown_metrics,
    smallest_fit_dim,
    usage,
)


def print_summary(config: Config, metrics: dict[str, Any], model: Path, sided: bool) -> None:
    """The end of a run: before, after and verdict at every dim of each held-out set, and how to use the model.

    Args:
        metrics: what metrics.json holds.
        model: the exported model's folder.
        sided: whether the two texts of a pair have prompts of their own.
    """
    records, verdict_on = judged_records(metrics), metrics["verdict_on"]
    on_corpus = verdict_on == "corpus"
    # Sets of positives alone are all judged by the same search of the corpus: one table, with one title.
    for title, name in {_title(name, record, on_corpus): name for name, record in records.items()}.items():
        _print_changes(title, name, records[name], on_corpus)
    name, record = list(records.items())[-1]
    if "original" in record:
        title = _title(name, record["original"], on_corpus, before="original")
        _print_changes(title, name, record["original"], on_corpus)
    for sentence in record["sentences"]:
        console.print(sentence, markup=False)
    metric, alpha = record["question"]["metric"], metrics["strength"]
    how = f"best after step {metrics['best_step'] - 1}, strength {alpha:.1f}{'' if alpha else UNTOUCHED}"
    console.print(f"Verdict by {metric} on {on_in_words(verdict_on)}: {record['verdict']} ({how}).", markup=False)
    for dim, entry in (metrics["dev"]["forgetting"] or {}).items():
        before, after = (entry["spearman"][when] for when in ("before", "after"))
        console.print(
            f"General similarity at {dim} dims, Spearman: {before:.4f} -> {after:.4f} ({after - before:+.4f})"
        )
    if has_thresholds(metrics):
        alerts = alerts_in_words(metrics["alerts_on_training_texts"])
        console.print(f"{fitted_in_words(metrics['dev'])}. {alerts}", markup=False)
    else:
        console.print(f"No {THRESHOLDS}: dev holds positives alone; trainer evaluate --dev fits and keeps them")
    if picked := picked_by(config, metrics):
        console.print(f"{picked}{'' if on_corpus else '; data.test would tell'}.")
    console.print(f"Model: {model}\n", markup=False)
    console.print(usage(model, smallest_fit_dim(record), sided), markup=False)


def _title(name: str, record: dict[str, Any], on_corpus: bool, before: str = "baseline") -> str:
    """What a held-out set is judged on, as the title of its table."""
    judged = judged_with_corpus(record, f"{name} pairs") if on_corpus else f"{name} pairs"
    return f"{judged[0].upper()}{judged[1:]}: {before} -> final (difference)"


def _print_changes(title: str, name: str, record: dict[str, Any], on_corpus: bool) -> None:
    metric = record["question"]["metric"]
    table = Table(title=escape(title), title_justify="left")
    table.add_column("dim", justify="right")
    shown = shown_metrics(record)
    for heading in (*shown.values(), f"95 % of {shown[metric]}", "verdict"):
        table.add_column(heading, justify="right")
    for dim, after in record["final"].items():
        old = record["baseline"][dim]
        cells = (f"{old[key]:.4f} -> {after[key]:.4f} ({after[key] - old[key]:+.4f})" for key in shown)
        ends = ends_in_words(record["intervals"]["difference"][dim][metric])
        table.add_row(dim, *cells, ends, record["verdicts"][dim])
    console.print(table)
    if reason := record["undefined"].get(metric):
        on = on_in_words("corpus" if on_corpus else name)
        console.print(f"No interval of {metric} on {on}: {reason}", markup=False)
