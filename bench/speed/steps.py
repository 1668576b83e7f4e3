"""A run over the benchmarks' pairs: its settings, its steps, and what one takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.measuring import clocked
from bench.workload import SHAPES
from trainer.config import Config
from trainer.config_file import resolve_config
from trainer.training.batch import Prepared
from trainer.training.setup import build_run, read_inputs
from trainer.training.step import Stepper


def run_config(shape: str, model: Path, pairs: Path, **sections: dict[str, Any]) -> Config:
    """The settings of a run over such pairs, with those of some sections on top."""
    tree: dict[str, dict[str, Any]] = {
        "model": {"name": str(model), "max_length": SHAPES[shape].max_length},
        "data": {"train": str(pairs), "dev": "incidents"},  # a run needs one; nothing here looks at it
        "curriculum": {"mode": "mixed", "epochs": 50},
        "loss": {"dims": list(SHAPES[shape].dims)},
    }
    for section, values in sections.items():
        tree[section] = tree.get(section, {}) | values
    return resolve_config(tree)


def build_steps(config: Config, folder: Path) -> Stepper:
    """The steps of a run, about to be made."""
    run = build_run(read_inputs(config, folder, {}))
    run.encoder.train()
    return Stepper(run)


def update(stepper: Stepper, number: int, batch: Prepared) -> float:
    """Make the update of a step; returns its seconds."""
    with clocked() as took:
        stepper.train_step(number, batch)
        stepper.settle()
    return took["seconds"]
