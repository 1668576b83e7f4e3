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
from trainer.evaluation import Metrics
from trainer.schedule import learning_rate, schedule_edges

SHOWN = {"spearman": "Spearman", "roc_auc": "ROC-AUC", "f1": "best F1", "separability": "separability"}


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


def print_summary(baseline: Metrics, final: Metrics, verdict: str, best_step: int, model: Path) -> None:
    """The end of a run: baseline, final and difference at every dim, the verdict, and how to use the model."""
    table = Table(title="Dev pairs: baseline -> final (difference)", title_justify="left")
    table.add_column("dim", justify="right")
    for heading in SHOWN.values():
        table.add_column(heading, justify="right")
    for dim, after in final.items():
        before = baseline[dim]
        cells = (f"{before[key]:.4f} -> {after[key]:.4f} ({after[key] - before[key]:+.4f})" for key in SHOWN)
        table.add_row(dim, *cells)
    console.print(table)
    meaning = {
        "BETTER": "the trained model beats the untouched one at every dim",
        "MIXED": "the trained model beats the untouched one at the largest dim, not at every one",
        "NOT BETTER": "the trained model does not beat the untouched one: keep using that",
    }[verdict]
    console.print(f"{verdict}: {meaning} (best at step {best_step}).\nModel: {model}\n", markup=False)
    console.print(usage(model, min(final, key=int)), markup=False)


def usage(model: Path, dim: str) -> str:
    """Three lines of code that use the exported model."""
    return (
        "from sentence_transformers import SentenceTransformer\n"
        f'model = SentenceTransformer("{model}", truncate_dim={dim})\n'
        'print(model.similarity(model.encode(["vpn is down"]), model.encode(["cannot connect from home"])))'
    )


def model_card(config: Config, baseline: Metrics, final: Metrics, verdict: str) -> str:
    """README.md of the exported model: what it is, how it did, how to use it. It quotes no training text."""
    rows = [
        f"| {dim} | {baseline[dim]['spearman']:.4f} | {after['spearman']:.4f} | {baseline[dim]['roc_auc']:.4f} "
        f"| {after['roc_auc']:.4f} |"
        for dim, after in final.items()
    ]
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
            f"Trained by {how} with multiple-negatives ranking at the dims {dims}.",
            f"Against the untouched model on held-out pairs: **{verdict}**.",
            "",
            "| dim | Spearman before | after | ROC-AUC before | after |",
            "|---:|---:|---:|---:|---:|",
            *rows,
            "",
            "```python",
            usage(Path("path/to/model"), min(final, key=int)),
            "```",
            "",
        ]
    )
