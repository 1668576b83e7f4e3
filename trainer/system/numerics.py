"""In which precision a run computes, and by which products: decided once, for all its processes, and kept with it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.system.devices import is_measured
from trainer.system.distributed import gather_objects, share_object
from trainer.system.processor import (
    TORCH,
    TYPES,
    WIDENED,
    bf16_slowdown,
    fastest_times,
    has_bf16_instructions,
    multiplies_bf16,
    product_way,
    take_products,
    works,
)

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
NATIVE_CAPABILITY = (8, 0)  # of a CUDA GPU that multiplies bf16
WORKS_ANYWHERE = {"fp32": TORCH, "bf16": WIDENED}
WIDTH = 2048  # of the product that is measured on a GPU


@dataclass(frozen=True)
class Numerics:
    """What decides the rounding of a run."""

    precision: str  # "fp32", "bf16" or "fp16"; the weights that train, the loss and the final judgement are fp32
    products: Mapping[str, str]  # how each type is multiplied, as `trainer.system.processor` has it; only for the CPU
    reason: str

    def __str__(self) -> str:
        ways = "".join(f"; products in {name}: {way}" for name, way in self.products.items())
        return f"{self.precision}, {self.reason}{ways}"

    def conditions(self) -> dict[str, Any]:
        """What a resumed run must find again to be the same to the bit."""
        return {"train.precision": self.precision, "products": dict(self.products)}

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """The context of the encoder's forward."""
        return torch.autocast(device.type, AUTOCAST.get(self.precision), enabled=self.precision in AUTOCAST)


def settle_numerics(asked: str, device: torch.device, saved: Mapping[str, Any] | None = None) -> Numerics:
    """Decide in which precision and by which products a run computes, and take these products. Collective.

    The first rank decides. Where another cannot follow, "auto" is fp32 and the products are those that work anywhere.

    Args:
        asked: `train.precision`.
        saved: `Numerics.conditions` of the run that is continued; what it took is taken again where it is to be had.
    """
    chosen = share_object(_choose(asked, device, saved or {}))
    if not all(gather_objects(_can_take(chosen, asked, device))):
        precision = "fp32" if asked == "auto" else asked
        reason = f"{chosen.reason}; not the fastest products, which not every process can take"
        chosen = Numerics(precision, {name: WORKS_ANYWHERE[name] for name in _types(precision, device)}, reason)
    take_products(chosen.products)
    return chosen


def _choose(asked: str, device: torch.device, saved: Mapping[str, Any]) -> Numerics:
    precision, reason = _choose_precision(asked, device, saved.get("train.precision"))
    products = {name: product_way(TYPES[name]) for name in _types(precision, device)}
    earlier = saved.get("products")
    for name in products:
        # A checkpoint may hold anything.
        way = earlier.get(name) if isinstance(earlier, dict) else None
        if isinstance(way, str) and works(way, TYPES[name]):
            products[name] = way
    return Numerics(precision, products, reason)


def _choose_precision(asked: str, device: torch.device, saved: Any) -> tuple[str, str]:
    """(precision, why)"""
    if asked not in ("auto", "bf16"):
        return asked, "as train.precision says"
    if asked == "auto" and saved == "fp32":
        return "fp32", "as the run began"
    native, why = bf16_support(device)
    if asked == "auto":
        return ("bf16" if native else "fp32"), why
    if native:
        return asked, "as train.precision says"
    slower = bf16_slowdown() if device.type == "cpu" else _slowdown_on(device)
    return asked, f"as train.precision says, though {why}: a product takes {slower:.1f} times as long as in fp32"


def _can_take(chosen: Numerics, asked: str, device: torch.device) -> bool:
    native = asked != "auto" or chosen.precision != "bf16" or bf16_support(device)[0]
    return native and all(works(way, TYPES[name]) for name, way in chosen.products.items())


def _types(precision: str, device: torch.device) -> tuple[str, ...]:
    """The types that a run of a precision multiplies on the CPU."""
    if device.type != "cpu":
        return ()
    return ("fp32", "bf16") if precision == "bf16" else ("fp32",)


def bf16_support(device: torch.device) -> tuple[bool, str]:
    """(whether a device multiplies bf16 natively, what it is that says so)"""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        native = (major, minor) >= NATIVE_CAPABILITY
        return native, f"the GPU (capability {major}.{minor}) {'multiplies bf16' if native else 'emulates bf16'}"
    if device.type != "cpu":
        return False, f"bf16 has not been measured on {device.type}"
    if not has_bf16_instructions():
        return False, "the processor has no instructions for bf16"
    if not multiplies_bf16():
        return False, "the processor has instructions for bf16, but products by them are no faster than in fp32"
    return True, f"the processor multiplies bf16, in {bf16_slowdown():.2f} of the time of fp32"


def _slowdown_on(device: torch.device) -> float:
    """How many times as long a product in bf16 takes on a device other than the CPU as one in fp32."""

    def action(dtype: torch.dtype) -> Callable[[], float]:
        matrix: Tensor = torch.ones(WIDTH, WIDTH, dtype=dtype, device=device)
        return lambda: (matrix @ matrix)[0, 0].item()  # waits for the device

    fp32, bf16 = fastest_times([action(torch.float32), action(torch.bfloat16)], time.perf_counter)
    return bf16 / fp32


def unmeasured_line(device: torch.device) -> str | None:
    """What to say of a device on which nothing here was measured, with the way around it; None for CPU and CUDA."""
    if is_measured(device):
        return None
    return (
        f"Training on {device.type}, by attention in groups: this trainer has been measured on the CPU and on CUDA "
        "GPUs alone; ACCELERATE_USE_CPU=true keeps to the CPU"
    )
