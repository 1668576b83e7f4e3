"""The state of a run between two updates, to and from the named tensors and JSON of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from trainer.distributed import gather_objects, rank, world_size
from trainer.errors import CheckpointError
from trainer.evaluation import Metrics


@dataclass
class Best:
    """The best evaluation of the run so far and the weights it was made with."""

    step: int  # updates made
    value: float
    metrics: Metrics
    weights: dict[str, Tensor]


@dataclass
class RunState:
    """What changes as a run goes on, apart from weights and optimizer."""

    baseline: Metrics
    step: int = 0  # updates made, which is the next position in the plan
    best: Best | None = None
    without_best: int = 0  # evaluations since the best
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0  # of training, before this process took over
    resumed_at: list[int] = field(default_factory=list)


def snapshot(
    state: RunState, parameters: Mapping[str, Parameter], optimizer: torch.optim.Optimizer, scaler: Any
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and JSON from which `restore` continues. Collective: every rank contributes its random states."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        tensors[f"weight/{name}"] = parameter
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer/{key}/{name}"] = value
    for number, generators in enumerate(gather_objects(_random_states())):
        tensors |= {f"random/{number}/{kind}": value for kind, value in generators.items()}
    values: dict[str, Any] = {
        "step": state.step,
        "baseline": state.baseline,
        "without_best": state.without_best,
        "evaluations": state.evaluations,
        "seconds": state.seconds,
        "resumed_at": state.resumed_at,
        "scaler": scaler.state_dict() if scaler is not None else None,
        "parameters": list(parameters),
        "best": None,
    }
    if state.best is not None:
        values["best"] = {"step": state.best.step, "value": state.best.value, "metrics": state.best.metrics}
        tensors |= {f"best/{name}": tensor for name, tensor in state.best.weights.items()}
    return tensors, values


def restore(
    tensors: dict[str, Tensor],
    values: dict[str, Any],
    parameters: Mapping[str, Parameter],
    optimizer: torch.optim.Optimizer,
    scaler: Any,
) -> RunState:
    """Put weights, optimizer, scaler and random states back; returns the state of the run.

    Raises:
        CheckpointError: the checkpoint holds other parameters than those that train now.
    """
    if values["parameters"] != list(parameters):
        raise CheckpointError("the checkpoint holds other parameters than this config trains; use the run's own config")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"weight/{name}"])
            for key in ("step", "exp_avg", "exp_avg_sq"):
                saved = tensors.get(f"optimizer/{key}/{name}")
                if saved is not None:
                    optimizer.state[parameter][key] = saved.to(parameter.device)
    if scaler is not None:
        scaler.load_state_dict(values["scaler"])
    own = f"random/{rank()}/"
    _set_random_states({name[len(own) :]: value for name, value in tensors.items() if name.startswith(own)})
    best = None
    if values["best"] is not None:
        weights = {name[len("best/") :]: value for name, value in tensors.items() if name.startswith("best/")}
        best = Best(**values["best"], weights=weights)
    return RunState(
        baseline=values["baseline"],
        step=values["step"],
        best=best,
        without_best=values["without_best"],
        evaluations=values["evaluations"],
        seconds=values["seconds"],
        resumed_at=[*values["resumed_at"], values["step"]],
    )


def identity(config_tree: dict[str, dict[str, Any]], fingerprints: Mapping[str, str]) -> dict[str, Any]:
    """What must be equal for a resumed run to be the same run: all but logging, cadences, folders and what comes after
    the last step."""
    free = ("log.", "checkpoint.", "output.", "eval.every", "eval.choose_strength", "data.forgetting")
    flat = {f"{section}.{key}": value for section, values in config_tree.items() for key, value in values.items()}
    kept = {key: value for key, value in flat.items() if not key.startswith(free)}
    return {**kept, **fingerprints, "world_size": world_size()}


def _random_states() -> dict[str, Tensor]:
    states = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _set_random_states(states: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
