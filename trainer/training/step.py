"""What one training step takes in and gives back."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.data.batch_layout import BatchLayout
from trainer.model.packing import TokenBatch
from trainer.system.transfer import Arriving


@dataclass(frozen=True)
class Prepared:
    """A step's input, made while the step before it runs."""

    layout: BatchLayout
    chunks: list[TokenBatch]
    positions: list[Tensor]  # of each chunk's texts among the rank's
    tokens: int  # that the rank encodes
    waste: float  # share of its attention that is padding


@dataclass(frozen=True)
class Pending:
    """An update whose numbers may still be on their way from the device."""

    step: int
    waste: float
    numbers: Arriving  # loss, tokens, stop, save, loss of each dim; gradient norm last


def peak_memory(device: torch.device) -> int:
    """Most bytes in use so far: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not on Windows

    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes if sys.platform == "darwin" else kilobytes * 1024
