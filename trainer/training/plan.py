"""What a person reads of a run: the plan before it, the table after it, the card of the model."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import asdict
from typing import Any

from rich.table import Table
from torch.nn import Parameter

from trainer.config import Config
from trainer.data.curriculum import PhasedBatchSampler
from trainer.system.console import console
from trainer.training.schedule import schedule_edges


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
