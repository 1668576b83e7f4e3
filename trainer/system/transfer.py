"""Moving what a batch is made of to the device it is needed on."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor


def to_device(value: Any, device: torch.device) -> Any:
    """Every tensor in a dataclass, tuple or list on a device; anything else stays as it is.

    To a CUDA GPU, the copies start from pinned memory and are not waited for.
    """
    if isinstance(value, Tensor):
        if device.type != "cuda":
            return value.to(device)
        return (value.pin_memory() if value.device.type == "cpu" else value).to(device, non_blocking=True)
    if isinstance(value, tuple | list):
        return type(value)(to_device(item, device) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{item.name: to_device(getattr(value, item.name), device) for item in fields(value)})
    return value


class Arriving:
    """A tensor on its way from a device to the CPU."""

    def __init__(self, tensor: Tensor) -> None:
        self._copied: torch.cuda.Event | None = None
        self._tensor = tensor
        if tensor.device.type == "cuda":
            self._tensor = torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def read(self) -> list[float]:
        """Its values, once they are here."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._tensor.tolist()
