"""What a run computes with on a GPU: the fast ways that were proven on it before step 0, the plain ones elsewhere.

    attention    a Triton kernel, or scaled_dot_product_attention over groups of sequences
    layers       compiled by torch.compile, or eager

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

from trainer.errors import first_line
from trainer.model.encoder import Encoder, in_mode
from trainer.model.families import FAMILIES, to_autocast
from trainer.model.packing import TokenBatch
from trainer.model.self_check import attention_fault, layers_fault, same_random_state
from trainer.system import distributed as ranks
from trainer.system.console import clock_time

# The share of a step that compiled layers save. Assumed: fused activations, norms, dropouts and residuals are about a
# third of an eager step in bf16, and no such step was measured on this code.
SAVED_SHARE = 0.2
COMPILE_SECONDS = 60.0  # that compiling takes; a constant, so that two runs of one config choose alike


@dataclass(frozen=True)
class FastPaths:
    """How the steps of a run are computed. As built: the plain ways."""

    attention: str = "groups"  # or "kernel"
    compiled: bool = False
    notes: tuple[str, ...] = ()  # a line for each way that was not taken, or that needs a reason

    def conditions(self) -> dict[str, Any]:
        """What decides a result's last bits, for a checkpoint's identity."""
        return {"attention": self.attention, "train.compile": self.compiled}


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
        first_batch: lays out the chunks of a step, on the device.
        earlier: whether the layers of the run that is resumed were compiled; "auto" stays with it.
    """
    if encoder.model.config.model_type not in FAMILIES:
        return FastPaths()
    with autocast():
        dtype = to_autocast(torch.empty(0, dtype=encoder.model.dtype, device=encoder.model.device)).dtype
    notes: list[str] = []
    has_triton = find_spec("triton") is not None

    def whether_to_compile() -> tuple[bool, str]:
        if wanted != "off" and not has_triton:
            return False, "Triton is not installed"
        if wanted != "auto":
            return wanted == "on", f'train.compile = "{wanted}"'
        if earlier is not None:
            return earlier, "as before the run was interrupted"
        seconds = ranks.share_object(eager_seconds(encoder, first_batch(), autocast))
        saved = steps * seconds * SAVED_SHARE
        return saved > COMPILE_SECONDS, (
            f"over {steps} steps of {seconds:.2g} s in the encoder it saves about {clock_time(saved)}, "
            f'and compiling takes about {clock_time(COMPILE_SECONDS)} (train.compile = "auto")'
        )

    fault = _fault(lambda: attention_fault(encoder, dtype) if has_triton else "Triton is not installed")
    encoder.attention = "groups" if fault else "kernel"
    if fault:
        notes.append(f"The attention kernel is not used: {fault}; attention runs in groups of sequences")
    tried, reason = whether_to_compile()
    fault = _fault(lambda: layers_fault(encoder, autocast, dtype)) if tried else None
    encoder.compiled = tried and fault is None
    notes.append(f"Layers are compiled: {reason}" if encoder.compiled else f"Layers run eagerly: {fault or reason}")
    return FastPaths(encoder.attention, encoder.compiled, tuple(notes))


def _fault(check: Callable[[], str | None]) -> str | None:
    """What a check finds wrong on the first rank where it does; what it raises is what is wrong. Collective."""
    try:
        fault = check()
    except (torch.AcceleratorError, torch.OutOfMemoryError):
        raise  # after these nothing else would run on the device either
    except Exception as error:  # of a compiler, anything
        fault = f"{type(error).__name__}: {first_line(error)}"
    return next((fault for fault in ranks.gather_objects(fault) if fault), None)


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
