"""Trackers of a run, through accelerate: its settings, every number of log.jsonl, and the judgement at the end.

How to reach a server is for each library's own environment variables to say (WANDB_MODE, MLFLOW_TRACKING_URI, ...).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import (
    GeneralTracker,
    MLflowTracker,
    TensorBoardTracker,
    WandBTracker,
    get_available_trackers,
)

from trainer.config import Config
from trainer.config_file import to_tree
from trainer.errors import InputError, first_line
from trainer.system.values import toml_value

PROJECT = "matryoshka-trainer"  # of Weights & Biases, and the experiment of MLflow
HOW = {"tensorboard": "install the extra `track`", "wandb": "pip install wandb", "mlflow": "pip install mlflow"}


def make_trackers(config: Config, folder: Path) -> list[GeneralTracker]:
    """The trackers that log.trackers names, not started. Raises InputError where a package is missing."""
    for name in config.log.trackers:  # accelerate would leave it out without a word
        if name not in {str(available.value) for available in get_available_trackers()}:
            raise InputError(f'log.trackers: "{name}" is not installed: {HOW[name]}, or leave it out')
    kinds = {
        "tensorboard": lambda: TensorBoardTracker("tensorboard", folder),
        "wandb": lambda: WandBTracker(PROJECT, name=folder.name),
        "mlflow": lambda: MLflowTracker(PROJECT, run_name=folder.name),
    }
    return [kinds[name]() for name in config.log.trackers]


@contextmanager
def tracked(config: Config, accelerator: Accelerator) -> Iterator[Accelerator]:
    """Start the trackers of a run with its settings, and end them with it. Raises InputError where one cannot start."""
    if accelerator.log_with:
        settings = {
            f"{section}.{name}": value if isinstance(value, bool | int | float | str) else toml_value(value)
            for section, values in to_tree(config).items()
            for name, value in values.items()
        }
        try:
            accelerator.init_trackers(PROJECT, settings)
        except Exception as error:  # of any library: no account, no server
            trackers = toml_value(config.log.trackers)
            raise InputError(f"log.trackers = {trackers}: cannot start: {first_line(error)}") from error
    try:
        yield accelerator
    finally:
        for tracker in accelerator.trackers:  # not `end_training`, which also ends the group of processes
            tracker.finish()


def track(accelerator: Accelerator, values: Mapping[str, Any], step: int) -> None:
    """Give the numbers of nested values to the trackers, where there are any."""
    if accelerator.trackers:
        accelerator.log(scalars(values), step=step)


def track_end(accelerator: Accelerator, metrics: Mapping[str, Any] | None, step: int) -> None:
    """Give the judgement of a finished run (metrics.json) to the trackers; ranks without one have nothing to give."""
    if metrics is None:
        return
    names = ("baseline", "final", "forgetting")
    judged = {
        part: {name: values[name] for name in names if values.get(name)}
        for part in ("dev", "test")
        if (values := metrics.get(part))
    }
    searched = {name: values for name, values in metrics.get("search", {}).items() if name != "facts"}
    track(accelerator, {"end": {**judged, "search": searched, "strength": metrics["strength"]}}, step)


def scalars(values: Mapping[str, Any], path: str = "") -> dict[str, float]:
    """The numbers of nested values, under names joined by slashes, of signs that every tracker takes."""
    flat: dict[str, float] = {}
    for key, value in values.items():
        name = path + str(key).replace("@", "_at_").replace("+", "_and_")
        if isinstance(value, Mapping):
            flat |= scalars(value, f"{name}/")
        elif isinstance(value, int | float):
            flat[name] = value
    return flat
