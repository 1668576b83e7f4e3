"""What differs between the devices that a run may be on: the CPU, a CUDA GPU, or another that accelerate picks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def is_measured(device: torch.device) -> bool:
    """Whether this trainer's own fast paths and figures are for this kind of device."""
    return device.type in ("cpu", "cuda")


def widest_float(device: torch.device) -> torch.dtype:
    """float64 where the device is sure to have it; Metal and some of Intel's GPUs have not."""
    return torch.float64 if is_measured(device) else torch.float32


def random_states() -> dict[str, Tensor]:
    """The random state of the CPU, under "torch", and of this process's accelerator, under its kind, if it has one."""
    states, device = {"torch": torch.get_rng_state()}, _accelerator()
    return states if device is None else states | {device.type: _module(device).get_rng_state()}


def set_random_states(states: Mapping[str, Tensor]) -> None:
    """Put back what `random_states` gave; an accelerator that had none keeps its own. Raises KeyError, RuntimeError."""
    torch.set_rng_state(states["torch"])
    device = _accelerator()
    if device is not None and device.type in states:
        _module(device).set_rng_state(states[device.type])


def _accelerator() -> torch.device | None:
    return torch.accelerator.current_accelerator(check_available=True)


def _module(device: torch.device) -> Any:
    return torch.get_device_module(device.type)
