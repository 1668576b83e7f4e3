"""What differs between the devices that a run may be on: the CPU, a CUDA GPU, or another that accelerate picks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def is_measured(device: torch.device) -> bool:
    """Whether this trainer's own fast paths and figures are for this kind of device."""
    return device.type in ("cpu", "cuda")


def widest_float(device: torch.device) -> torch.dtype:
    """float64 where the device is sure to have it; Metal and some of Intel's GPUs have not."""
    return torch.float64 if is_measured(device) else torch.float32


def random_state(device: torch.device) -> Tensor:
    """The random state of the CPU, or of the current device of another kind."""
    return torch.get_rng_state() if device.type == "cpu" else _module(device).get_rng_state()


def set_random_state(device: torch.device, state: Tensor) -> None:
    """Put back what `random_state` gave."""
    if device.type == "cpu":
        torch.set_rng_state(state)
    else:
        _module(device).set_rng_state(state)


def _module(device: torch.device) -> Any:
    return torch.get_device_module(device.type)
