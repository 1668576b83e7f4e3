"""What a run computes with on a GPU: the fast ways that were proven on it before step 0, the plain ones elsewhere.

    attention    a Triton kernel, or scaled_dot_product_attention over groups of sequences
    layers       compiled by torch.compile, or eager
    update       fused, passing over a bad gradient on the device; or plain, after the host has read that it is good

A way that fails to compile, or that gives something else than the plain one, is not taken, on any rank; a note says
what, why and what is taken instead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch.nn import Parameter

from trainer.config import OptimConfig
from trainer.errors import first_line
from trainer.model.encoder import Encoder, in_mode
from trainer.model.families import FAMILIES, to_autocast
from trainer.model.forward import forget_compiled
from trainer.model.packing import TokenBatch
from trainer.model.self_check import attention_fault, layers_fault, same_random_state
from trainer.system import distributed as ranks
from trainer.system.console import clock_time
from trainer.system.gpu import note_compile_seconds, read_compile_seconds
from trainer.training.optimizer import build_optimizer, skip_next_update

# The share of a step that compiled layers save. Assumed: fused activations, norms, dropouts and residuals are about a
# third of an eager step in bf16, and no such step was measured on this code.
SAVED_SHARE = 0.2
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
    encoder: Encoder,
    wanted: str,
    steps: int,
    first_batch: Callable[[], Sequence[TokenBatch]],
    autocast: Callable[[], AbstractContextManager[None]],
    earlier: bool | None = None,
) -> FastPaths:
    """Prove what a run is about to use on the encoder's GPU. Collective: all ranks take the same.

    The encoder is set to what is taken, and torch's random state is as it was.

    Args:
        encoder: with everything that trains.
        wanted: `train.compile`.
        steps: of the run.
        first_batch: lays out the chunks of a step, on the device.
        earlier: whether the layers of the run that is resumed were compiled; "auto" stays with it.
    """
    notes: list[str] = []
    if encoder.model.config.model_type in FAMILIES:
        with autocast():
            dtype = to_autocast(torch.empty(0, dtype=encoder.model.dtype, device=encoder.model.device)).dtype
        notes += _choose_attention(encoder, dtype)
        tried, reason = _whether_to_compile(encoder, wanted, steps, first_batch, autocast, earlier)
        notes.append(_choose_layers(encoder, autocast, dtype, tried, reason))
    fault = _fault(lambda: update_fault(encoder.model.device))
    if fault:
        notes.append(f"The fused update is not used: {fault}; each gradient is read before the plain one")
    return FastPaths(encoder.attention, encoder.compiled, fault is None, tuple(notes))


def _choose_attention(encoder: Encoder, dtype: torch.dtype) -> list[str]:
    """Set an encoder to the kernel where it proves right, else to groups; the note on it. Collective."""
    fault = _fault(lambda: attention_fault(encoder, dtype) if find_spec("triton") else NO_TRITON)
    encoder.attention = "groups" if fault else "kernel"
    return [f"The attention kernel is not used: {fault}; attention runs in groups of sequences"] if fault else []


def _choose_layers(
    encoder: Encoder, autocast: Callable[[], AbstractContextManager[None]], dtype: torch.dtype, tried: bool, reason: str
) -> str:
    """Set an encoder to compiled layers where they are `tried` and prove right; the note on them. Collective."""
    if tried:
        forget_compiled()
    start = time.perf_counter()
    fault = _fault(lambda: layers_fault(encoder, autocast, dtype)) if tried else None
    encoder.compiled = tried and fault is None
    if encoder.compiled and ranks.rank() == 0:
        note_compile_seconds(time.perf_counter() - start)  # the check beside it takes less than a second
    return f"Layers are compiled: {reason}" if encoder.compiled else f"Layers run eagerly: {fault or reason}"


def _fault(check: Callable[[], str | None]) -> str | None:
    """What a check finds wrong on the first rank where it does; what it raises is what is wrong. Collective."""
    try:
        fault = check()
    except (torch.AcceleratorError, torch.OutOfMemoryError):
        raise  # after these nothing else would run on the device either
    except Exception as error:  # of a compiler, anything
        fault = f"{type(error).__name__}: {first_line(error)}"
    return next((fault for fault in ranks.gather_objects(fault) if fault), None)


def _whether_to_compile(
    encoder: Encoder,
    wanted: str,
    steps: int,
    first_batch: Callable[[], Sequence[TokenBatch]],
    autocast: Callable[[], AbstractContextManager[None]],
    earlier: bool | None,
) -> tuple[bool, str]:
    """Whether to try to compile, and why; to be asked once attention is chosen. Collective."""
    if wanted != "off" and not find_spec("triton"):
        return False, NO_TRITON
    if wanted != "auto":
        return wanted == "on", f'train.compile = "{wanted}"'
    if earlier is not None:
        return earlier, "as before the run was interrupted"
    seconds, cost = ranks.share_object((eager_seconds(encoder, first_batch(), autocast), read_compile_seconds()))
    saved = steps * seconds * SAVED_SHARE
    return saved > cost, (
        f"over {steps} steps of {seconds:.2g} s in the encoder it saves about {clock_time(saved)}, "
        f'and compiling takes about {clock_time(cost)} (train.compile = "auto")'
    )


def eager_seconds(
    encoder: Encoder, chunks: Sequence[TokenBatch], autocast: Callable[[], AbstractContextManager[None]]
) -> float:
    """Seconds of the encoder's eager share of a step: forward and backward of every chunk, measured on the first."""
    device, parameters = encoder.model.device, list(encoder.trainable().values())
    with in_mode(encoder, training=True), same_random_state(device):
        for _ in range(2):  # the first time starts what runs for the first time
            start = time.perf_counter()
            with autocast():
                embeddings = encoder(chunks[0])
            torch.autograd.grad(embeddings.sum(), parameters, allow_unused=True)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds = time.perf_counter() - start
    return seconds * len(chunks)


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
