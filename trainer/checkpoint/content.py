"""What a checkpoint holds: the state of a run between two updates, to and from named tensors and JSON.

Every key stands in this module, but for those within "identity". Tensors:

    weight/NAME                   each parameter that trains
    optimizer/KEY/NAME            AdamW's step, exp_avg and exp_avg_sq of it; not before its first update
    random/RANK/torch, .../cuda   random states: what draws in training draws from torch alone
    best/NAME                     the weights of the best evaluation so far

JSON: the fields of `RunState`; "parameters", their names in order; "scaler", fp16's loss scaling; "log", size and
SHA-256 of log.jsonl at that moment; "identity", what must be equal for a run to be the same. Its keys come from
`identity` and, for the conditions of a run, from training's `Run.conditions`, `numerics` and `fast_paths`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from trainer.checkpoint.identity import Identity
from trainer.errors import CheckpointError
from trainer.evaluation.pair_metrics import Metrics
from trainer.system.devices import random_states, set_random_states
from trainer.system.distributed import gather_objects, rank


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
    inexact: list[str] = field(default_factory=list)  # what differed at a resume that was allowed to


PLAIN_FIELDS = tuple(item.name for item in fields(RunState) if item.name != "best")  # JSON as they are


def snapshot(
    state: RunState,
    parameters: Mapping[str, Parameter],
    optimizer: torch.optim.Optimizer,
    scaler: Any,
    identity: Identity,
    log_seal: Mapping[str, Any],
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and JSON from which `restore` continues. Collective: every rank contributes its random states.

    Args:
        scaler: fp16's loss scaler, None in other precisions.
        identity: what `require_same_run` compares when the run is resumed.
        log_seal: size and SHA-256 of the log so far.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        tensors[f"weight/{name}"] = parameter
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer/{key}/{name}"] = value
    for number, generators in enumerate(gather_objects(random_states())):
        tensors |= {f"random/{number}/{kind}": value for kind, value in generators.items()}
    values: dict[str, Any] = {
        **{name: getattr(state, name) for name in PLAIN_FIELDS},
        "scaler": scaler.state_dict() if scaler is not None else None,
        "parameters": list(parameters),
        "identity": identity,
        "log": dict(log_seal),
        "best": None,
    }
    if state.best is not None:
        values["best"] = {"step": state.best.step, "value": state.best.value, "metrics": state.best.metrics}
        tensors |= {f"best/{name}": tensor for name, tensor in state.best.weights.items()}
    return tensors, values


def saved_identity(values: Mapping[str, Any]) -> Identity:
    """The identity of the run that a checkpoint's JSON is of."""
    identity: Identity = values["identity"]
    return identity


def saved_log_seal(values: Mapping[str, Any]) -> dict[str, Any]:
    """Size and SHA-256 that the log had when a checkpoint was saved."""
    return {key: values["log"][key] for key in ("size", "sha256")}


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
        LookupError, TypeError, ValueError: it is no checkpoint of this version.
    """
    if values["parameters"] != list(parameters):
        raise CheckpointError("the checkpoint holds other parameters than this config trains; use the run's own config")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(_of_shape(tensors[f"weight/{name}"], parameter, name))
            if f"optimizer/step/{name}" in tensors:  # not before its first update
                moments = {key: tensors[f"optimizer/{key}/{name}"] for key in ("exp_avg", "exp_avg_sq")}
                for key, saved in moments.items():
                    optimizer.state[parameter][key] = _of_shape(saved, parameter, name).to(parameter.device)
                optimizer.state[parameter]["step"] = tensors[f"optimizer/step/{name}"].to(parameter.device)
    if scaler is not None and values["scaler"] is not None:  # in another precision there was none
        scaler.load_state_dict(values["scaler"])
    generators = _below(f"random/{rank()}/", tensors)
    if generators or rank() == 0:  # a rank that the saved run did not have goes on as seeded
        try:
            set_random_states(generators)
        except RuntimeError as error:
            raise ValueError("its random states are of another version of torch") from error
    best = None
    if values["best"] is not None:
        best = Best(**values["best"], weights=_below("best/", tensors))
    state = RunState(best=best, **{name: values[name] for name in PLAIN_FIELDS})
    state.resumed_at = [*state.resumed_at, state.step]
    return state


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _of_shape(saved: Tensor, parameter: Parameter, name: str) -> Tensor:
    """A tensor as it is, once it is known that nothing would be broadcast."""
    if saved.shape != parameter.shape:
        raise ValueError(f"{name} is {list(saved.shape)}, not {list(parameter.shape)}")
    return saved
