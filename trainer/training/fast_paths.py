"""What a run computes with on a GPU: the fast ways that were proven on it before step 0, the plain ones elsewhere.

    attention    a Triton kernel, or scaled_dot_product_attention over groups of sequences
    layers       compiled by torch.compile, or eager
    update       fused, passing over a bad gradient on the device; or plain, after the host has read that it is good

A way that fails to compile, or that gives something else than the plain one, is not taken, on any rank; a note says
what, why and what is taken instead.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch.nn import Parameter

from trainer.config import OptimConfig
from trainer.errors import first_line
from trainer.model.encoder import Encoder
from trainer.model.families import FAMILIES, to_autocast
from trainer.model.forward import forget_compiled
from trainer.model.self_check import attention_fault, layers_fault, same_random_state
from trainer.system import distributed as ranks
from trainer.training.optimizer import build_optimizer, skip_next_update

NO_TRITON = "Triton is not installed"


@dataclass(frozen=True)
class FastPaths:
    """How the steps of a run are computed. As built: the plain ways, with the fused update that every device has."""

    attention: str = "groups"  # or "kernel"
    compiled: bool = False
    fused: bool = True  # the update
    notes: tuple[str, ...] = ()  # a line for each way that was not taken, or that needs a reason

    def conditions(self) -> dict[str, Any]:
        """What decides a result's last bits, for a checkpoint's identity."""
        return {"attention": self.attention, "train.compile": self.compiled, "fused update": self.fused}


def choose_fast_paths(
    encoder: Encoder, compiles: bool, autocast: Callable[[], AbstractContextManager[None]]
) -> FastPaths:
    """Prove what a run is about to use on the encoder's GPU. Collective: all ranks take the same.

    The encoder is set to what is taken, and torch's random state is as it was.

    Args:
        encoder: with everything that trains.
        compiles: whether `train.compile` asks for compiled layers.
        autocast: the context of the run's precision.
    """
    notes: list[str] = []
    if encoder.model.config.model_type in FAMILIES:
        with autocast():
            dtype = to_autocast(torch.empty(0, dtype=encoder.model.dtype, device=encoder.model.device)).dtype
        notes += _choose_attention(encoder, dtype)
        if compiles:
            notes.append(_choose_layers(encoder, autocast, dtype))
    fault = _fault(lambda: update_fault(encoder.model.device))
    if fault:
        notes.append(f"The fused update is not used: {fault}; each gradient is read before the plain one")
    return FastPaths(encoder.attention, encoder.compiled, fault is None, tuple(notes))


def _choose_attention(encoder: Encoder, dtype: torch.dtype) -> list[str]:
    """Set an encoder to the kernel where it proves right, else to groups; the note on it. Collective."""
    fault = _fault(lambda: attention_fault(encoder, dtype) if find_spec("triton") else NO_TRITON)
    encoder.attention = "groups" if fault else "kernel"
    return [f"The attention kernel is not used: {fault}; attention runs in groups of sequences"] if fault else []


def _choose_layers(encoder: Encoder, autocast: Callable[[], AbstractContextManager[None]], dtype: torch.dtype) -> str:
    """Set an encoder to compiled layers where they prove right; the note on them. Collective."""
    forget_compiled()
    fault = _fault(lambda: layers_fault(encoder, autocast, dtype) if find_spec("triton") else NO_TRITON)
    encoder.compiled = fault is None
    return f"Layers run eagerly: {fault}" if fault else "Layers are compiled"


def _fault(check: Callable[[], str | None]) -> str | None:
    """What a check finds wrong on the first rank where it does; what it raises is what is wrong. Collective."""
    try:
        fault = check()
    except (torch.AcceleratorError, torch.OutOfMemoryError):
        raise  # after these nothing else would run on the device either
    except Exception as error:  # of a compiler, anything
        fault = f"{type(error).__name__}: {first_line(error)}"
    return next((fault for fault in ranks.gather_objects(fault) if fault), None)


def update_fault(device: torch.device) -> str | None:
    """Say how the fused update breaks its promise to pass over a step whose `found_inf` is set; None where it keeps it.

    Held against it: weights, both moments and the count of steps of a small optimizer like the run's.
    """
    with same_random_state(device):
        parameters = {
            "matrix": Parameter(torch.randn(3, 4, device=device)),
            "vector": Parameter(torch.randn(5, device=device)),
        }
        optimizer = build_optimizer(parameters, OptimConfig(lr=0.1))

        def update(skip: bool, gradient: float) -> list[torch.Tensor]:
            for parameter in parameters.values():
                parameter.grad = torch.full_like(parameter, gradient)
            skip_next_update(optimizer, when=torch.tensor(skip, device=device))
            optimizer.step()
            states = (optimizer.state[parameter] for parameter in parameters.values())
            tensors = [*parameters.values(), *(value for state in states for value in state.values())]
            return [tensor.detach().clone() for tensor in tensors]

        before = update(False, 1.0)
        passed_over = update(True, float("nan"))
        after = update(False, 1.0)
    if not all(map(torch.equal, before, passed_over)):
        return "it does not pass over a gradient that is not finite"
    if any(map(torch.equal, before, after)):
        return "it passes over a gradient that is finite"
    return None
