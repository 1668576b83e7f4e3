"""What a person reads of a run: the plan before it, the table after it, the card of the model."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table
from torch.nn import Parameter

from trainer.config import Config, OptimConfig
from trainer.console import console
from trainer.curriculum import PhasedBatchSampler
from trainer.schedule import learning_rate, schedule_edges

SHOWN = {"spearman": "Spearman", "roc_auc": "ROC-AUC", "f1": "best F1"}
MEANING = {
    "BETTER": "the 95 % interval of the difference to the untouched model lies above 0 at every dim",
    "NOT BETTER": "at some dim no part of the difference's 95 % interval lies above 0: keep using the untouched model",
    "UNCLEAR": "at some dim the difference's 95 % interval holds 0: these pairs cannot tell a gain from luck",
}


def learning_rates(config: OptimConfig, steps: int) -> list[float]:
    """The learning rate of every step of a run."""
    return [
        learning_rate(
            step,
            total_steps=steps,
            peak=config.lr,
            floor=config.floor_lr,
            warmup_ratio=config.warmup_ratio,
            hold_ratio=config.hold_ratio,
        )
        for step in range(steps)
    ]


def plan_record(
    sampler: PhasedBatchSampler, rates: list[float], config: Config, parameters: dict[str, Parameter]
) -> dict[str, Any]:
    """plan.json: phases, steps, trained parameters with their shapes, the learning rate of every step."""
    first_hold, first_decay = schedule_edges(len(rates), config.optim.warmup_ratio, config.optim.hold_ratio)
    return {
        "steps": len(sampler),
        "global_batch_size": sampler.global_size,
        "phases": [asdict(phase) for phase in sampler.phases],
        "schedule": {"first_hold_step": first_hold, "first_decay_step": first_decay},
        "trained": {name: list(parameter.shape) for name, parameter in parameters.items()},
        "learning_rates": rates,
    }


def print_plan(sampler: PhasedBatchSampler, rates: list[float], parameters: dict[str, Parameter]) -> None:
    """Show what is about to happen: trained parameters, phases, the learning rate at every boundary."""
    trained = sum(parameter.numel() for parameter in parameters.values())
    console.print(f"{len(sampler)} steps, training {trained:,} values in {len(parameters)} tensors:")
    kinds = Counter((re.sub(r"\.\d+\.", ".*.", name), tuple(p.shape)) for name, p in parameters.items())
    for (name, shape), count in kinds.items():
        console.print(f"  {count:3} x {name} {list(shape)}", markup=False)
    table = Table(title="Plan", title_justify="left")
    for heading in ("phase", "rows +/-", "epochs", "steps", "neg/anchor", "riding/extra", "left over", "LR first-last"):
        table.add_column(heading, justify="left" if heading == "phase" else "right")
    for phase in sampler.phases:
        last = phase.first_step + phase.steps - 1
        table.add_row(
            phase.name,
            f"{phase.positives}/{phase.negatives}",
            str(phase.epochs),
            f"{phase.first_step}-{last}",
            f"{phase.negatives_per_anchor:.1f}",
            f"{phase.riding}/{phase.extra}",
            str(phase.left_over),
            f"{rates[phase.first_step]:.2e}-{rates[last]:.2e}",
        )
    console.print(table)
    for phase in sampler.phases:
        if phase.repeats:
            console.print(f"Phase {phase.name}: {phase.repeats} batches could not avoid showing a text twice")
        if phase.replayed:
            console.print(f"Phase {phase.name}: {phase.replayed} rows of earlier phases are shown again")


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
    console.print(usage(model, min(record["final"], key=int)), markup=False)


def _print_changes(name: str, record: dict[str, Any]) -> None:
    metric = record["question"]["metric"]
    table = Table(title=f"{name.capitalize()} pairs: baseline -> final (difference)", title_justify="left")
    table.add_column("dim", justify="right")
    shown = {**SHOWN, "f1": "F1 at dev's threshold" if name == "test" else SHOWN["f1"]}
    for heading in (*shown.values(), f"95 % of {shown.get(metric, metric)}", "verdict"):
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


def usage(model: Path, dim: str) -> str:
    """Three lines of code that use the exported model."""
    return (
        "from sentence_transformers import SentenceTransformer\n"
        f'model = SentenceTransformer("{model}", truncate_dim={dim})\n'
        'print(model.similarity(model.encode(["vpn is down"]), model.encode(["cannot connect from home"])))'
    )


def model_card(config: Config, record: dict[str, Any], on: str, alpha: float) -> str:
    """README.md of the exported model: what it is, how it did, how to use it. It quotes no training text.

    Args:
        record: what was found on the held-out set `on`.
    """
    columns, metric = ("spearman", "roc_auc"), config.eval.metric
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
            "| dim | Spearman before | after | ROC-AUC before | after | 95 % of the difference | verdict |",
            "|---:|---:|---:|---:|---:|---:|---|",
            *rows,
            "",
            'Thresholds of "same problem", fitted on dev, are in `thresholds.json`.',
            "",
            "```python",
            usage(Path("path/to/model"), min(record["final"], key=int)),
            "```",
            "",
        ]
    )
