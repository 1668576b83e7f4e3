"""The model card, and the table a run ends with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.table import Table

from trainer.config import Config
from trainer.system.console import console
from trainer.system.run_files import THRESHOLDS

MEANING = {
    "BETTER": "the 95 % interval of the difference to the untouched model lies above 0 at every dim",
    "NOT BETTER": "at some dim no part of the difference's 95 % interval lies above 0: keep using the untouched model",
    "UNCLEAR": "at some dim the difference's 95 % interval holds 0: these pairs cannot tell a gain from luck",
}


def print_summary(records: dict[str, dict[str, Any]], best_step: int, alpha: float, model: Path) -> None:
    """The end of a run: before, after and verdict at every dim of each held-out set, and how to use the model.

    Args:
        records: what was found on "dev" and, where there is one, "test"; the last one's verdict counts.
    """
    for name, record in records.items():
        _print_changes(name, record)
    for dim, entry in (records["dev"]["forgetting"] or {}).items():
        before, after = (entry["spearman"][when] for when in ("before", "after"))
        console.print(
            f"General similarity at {dim} dims, Spearman: {before:.4f} -> {after:.4f} ({after - before:+.4f})"
        )
    name, record = list(records.items())[-1]
    console.print(
        f"{record['verdict']} on {name}: {MEANING[record['verdict']]} (best at step {best_step}, strength "
        f"{alpha:.1f}).",
        markup=False,
    )
    if name == "dev":
        console.print("Dev has also picked the model, so expect a little less on other pairs; data.test would tell.")
    console.print(f"Model: {model}\n", markup=False)
    console.print(usage(model, record), markup=False)


def shown_metrics(metric: str, on: str) -> dict[str, str]:
    """The headings of what is shown of a held-out set, by metric: three that many ask for, and the run's own."""
    f1 = "F1 at dev's threshold" if on == "test" else "best F1"
    titles = {"spearman": "Spearman", "roc_auc": "ROC-AUC", "f1": f1}
    return titles | {metric: titles.get(metric, metric)}


def _print_changes(name: str, record: dict[str, Any]) -> None:
    metric = record["question"]["metric"]
    table = Table(title=f"{name.capitalize()} pairs: baseline -> final (difference)", title_justify="left")
    table.add_column("dim", justify="right")
    shown = shown_metrics(metric, name)
    for heading in (*shown.values(), f"95 % of {shown[metric]}", "verdict"):
        table.add_column(heading, justify="right")
    for dim, after in record["final"].items():
        before = record["baseline"][dim]
        cells = (f"{before[key]:.4f} -> {after[key]:.4f} ({after[key] - before[key]:+.4f})" for key in shown)
        low, high = record["intervals"]["difference"][dim][metric]
        table.add_row(dim, *cells, f"{low:+.3f} to {high:+.3f}", record["verdicts"][dim])
    console.print(table)
    for undefined, reason in record["undefined"].items():
        if undefined == metric:
            console.print(f"No interval of {metric} on {name}: {reason}", markup=False)


def usage(model: Path, record: dict[str, Any]) -> str:
    """Five lines of code that use the exported model as its thresholds were fitted: prompts, length 1 after the cut."""
    fitted = record["thresholds"]["model"]["model"]
    first, second = ("_query", "_document") if fitted["query_prompt"] or fitted["document_prompt"] else ("", "")
    return (
        "from sentence_transformers import SentenceTransformer\n"
        f'model = SentenceTransformer("{model}", truncate_dim={min(record["final"], key=int)})\n'
        f'first = model.encode{first}(["vpn is down"], normalize_embeddings=True)\n'
        f'second = model.encode{second}(["cannot connect from home"], normalize_embeddings=True)\n'
        "print(model.similarity(first, second))  # cosines"
    )


def thresholds_in_words(record: dict[str, Any]) -> str:
    """What a person must know to use the thresholds that are kept beside the model."""
    kept = record["thresholds"]["model"]
    fitted = kept["model"]
    values = ", ".join(f"{value:.4f} at {dim} dims" for dim, value in kept["values"].items())
    prompts = "no prompts"
    if fitted["query_prompt"] or fitted["document_prompt"]:
        shown = " and ".join(json.dumps(fitted[f"{side}_prompt"], ensure_ascii=False) for side in ("query", "document"))
        prompts = f"the prompts {shown} before first and second texts (`encode_query`, `encode_document`)"
    return (
        f'Thresholds of "same problem" are cosines ({values}), fitted on dev, where {kept["positive_share"]:.0%} of '
        f"the pairs are positive, at {fitted['max_length']} tokens, with {prompts}; they are in `{THRESHOLDS}`. "
        "Embeddings cut to a dim are not of length 1: without `normalize_embeddings=True` a dot product is no cosine."
    )


def model_card(config: Config, record: dict[str, Any], on: str, alpha: float) -> str:
    """README.md of the exported model: what it is, how it did, how to use it. It quotes no training text.

    Args:
        record: what was found on the held-out set `on`.
    """
    metric = config.eval.metric
    columns, titles = dict.fromkeys(("spearman", "roc_auc", metric)), shown_metrics(metric, on)
    headings = " | ".join(f"{titles[key]} before | after" for key in columns)
    rows = []
    for dim, after in record["final"].items():
        cells = [f"{values[key]:.4f}" for key in columns for values in (record["baseline"][dim], after)]
        low, high = record["intervals"]["difference"][dim][metric]
        rows.append(f"| {dim} | {' | '.join(cells)} | {low:+.3f} to {high:+.3f} | {record['verdicts'][dim]} |")
    dims = ", ".join(map(str, config.loss.dims))
    how = f"LoRA (rank {config.lora.rank})" if config.lora.enabled else "full fine-tuning"
    return "\n".join(
        [
            "---",
            "library_name: sentence-transformers",
            "pipeline_tag: sentence-similarity",
            "tags: [sentence-similarity, matryoshka]",
            "---",
            "",
            f"# {Path(config.model.name).name}, fine-tuned on labelled pairs",
            "",
            f"Trained by {how} with multiple-negatives ranking at the dims {dims}; strength of the update {alpha:.1f}.",
            f"Against the untouched model, by {metric} on {record['pairs']} held-out pairs ({on}): "
            f"**{record['verdict']}**.",
            "",
            f"| dim | {headings} | 95 % of the difference | verdict |",
            f"|---:|{'---:|---:|' * len(columns)}---:|---|",
            *rows,
            "",
            thresholds_in_words(record),
            "",
            "```python",
            usage(Path("path/to/model"), record),
            "```",
            "",
        ]
    )
