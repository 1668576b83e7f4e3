"""What this processor multiplies, found out by trying, and the products that follow from it.

A product of two matrices of one type runs on the CPU in one of three ways:

    "onednn"   oneDNN called by its own operators, as torch.compile does; a weight that stays may be packed for it
    "torch"    torch's own product, which goes to MKL, to oneDNN or to a loop, by type and processor
    "widened"  bf16 alone: the rounded values multiplied in fp32, and the sums rounded to bf16, which is what bf16
               hardware computes. torch's own product takes 20 to 36 times as long as in fp32 where it emulates bf16.

Which ways work is tried once on small matrices (a processor's flags say nothing of ONEDNN_MAX_CPU_ISA and its like);
which of them is taken is measured in a few milliseconds. TRAINER_ONEDNN=off leaves oneDNN's operators out.
Nothing is asked before the first product.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

ONEDNN, TORCH, WIDENED = "onednn", "torch", "widened"
SWITCH = "TRAINER_ONEDNN"
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# A later way is taken only where it needs less than this share of the time: two runs on one machine should choose
# alike, although its clock drifts by a third.
MARGIN = 0.7
ROWS, WIDTH = 256, 512  # of the measured product: 1 to 3 ms in fp32 on one core
TRIES = 5

# This thread's own time is not troubled by other processes; Windows counts it in ticks of 16 ms.
CLOCK = time.thread_time if time.get_clock_info("thread_time").resolution < 1e-5 else time.perf_counter

_taken: dict[torch.dtype, str] = {}
_lock = threading.RLock()


# ---- products


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None, way: str | None = None) -> Tensor:
    """x [T, I] times weight [O, I], plus bias [O]: [T, O], in the type of x.

    Args:
        weight: plain and of x's type, it or its transpose contiguous (on any other oneDNN takes a thousand times as
            long); or what `prepared` made of it for that type.
        way: None for that of x's type.
    """
    way = way or (product_way(x.dtype) if x.device.type == "cpu" else TORCH)
    if way == ONEDNN:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    if way == WIDENED:
        wide = weight if weight.is_mkldnn else weight.float()
        with torch.autocast("cpu", enabled=False):  # which would round again what has just been widened
            return product(x.float(), wide, None if bias is None else bias.float()).to(x.dtype)
    return F.linear(x, weight, bias)


def product_over_rows(a: Tensor, b: Tensor) -> Tensor:
    """a.T @ b for a [T, O] and b [T, I]: [O, I], in fp32 where the processor widens their type."""
    if not is_widened(a):
        return a.T @ b
    with torch.autocast("cpu", enabled=False):
        return a.float().T @ b.float()


def prepared(weight: Tensor, dtype: torch.dtype, stays: bool = False, way: str | None = None) -> Tensor:
    """A weight [O, I] on the CPU, rounded to a type, as `product` takes it beside rows of that type.

    Args:
        stays: many products will use it, so it is worth packing in oneDNN's own layout; else each call does that.
    """
    weight, way = weight.to(dtype), way or product_way(dtype)
    if way == WIDENED:
        weight, way = weight.float(), product_way(torch.float32)
    packed = stays and way == ONEDNN and packs(weight.dtype)
    return torch.ops.mkldnn._reorder_linear_weight(weight) if packed else weight


def is_widened(x: Tensor) -> bool:
    """Whether products of such a tensor are better taken in fp32 and rounded than in its own type."""
    return x.dtype == torch.bfloat16 and x.device.type == "cpu" and product_way(x.dtype) == WIDENED


# ---- which way


def product_way(dtype: torch.dtype) -> str:
    """The way in which products of a type run on the CPU: chosen when first asked, or as `take_products` had it."""
    way = _taken.get(dtype)
    return _choose(dtype) if way is None else way


def take_products(products: Mapping[str, str]) -> None:
    """Take a way for each of some types of TYPES from now on, as a run agreed on it. Raises ValueError."""
    for name, way in products.items():
        if not works(way, TYPES[name]):
            raise ValueError(f"products of {name} by {way} do not work on this processor")
    with _lock:
        _taken.update({TYPES[name]: way for name, way in products.items()})


def forget() -> None:
    """Ask everything anew when it is next needed, as after a change of the environment."""
    with _lock:
        _taken.clear()
        works.cache_clear()
        packs.cache_clear()
        seconds.cache_clear()


@cache
def works(way: str, dtype: torch.dtype) -> bool:
    """Whether a product of a type runs in a way here, and is right within its rounding."""
    if dtype not in TYPES.values() or (way == ONEDNN and os.environ.get(SWITCH) == "off"):
        return False
    if way == WIDENED:
        return dtype == torch.bfloat16
    return way in (ONEDNN, TORCH) and _is_right(dtype, partial(product, way=way))


@cache
def packs(dtype: torch.dtype) -> bool:
    """Whether oneDNN packs a weight of a type here, and multiplies by it."""
    return works(ONEDNN, dtype) and _is_right(
        dtype, lambda x, weight, bias: product(x, torch.ops.mkldnn._reorder_linear_weight(weight), bias, ONEDNN)
    )


def has_bf16_instructions() -> bool:
    """Whether the processor has instructions that multiply bf16, allowed to be used or not."""
    if platform.machine().lower() in ("arm64", "aarch64"):
        # On Arm it asks for just these. Without oneDNN, as on macOS, torch does not use them.
        return hasattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported") and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def multiplies_bf16() -> bool:
    """Whether products in bf16 run natively on the CPU: by instructions for it, and measured faster than in fp32."""
    return has_bf16_instructions() and product_way(torch.bfloat16) != WIDENED and bf16_slowdown() < 1


def bf16_slowdown() -> float:
    """How many times as long a product in bf16 takes on the CPU as one in fp32, each in its own way."""
    fp32, bf16 = seconds(tuple((product_way(dtype), dtype) for dtype in (torch.float32, torch.bfloat16)))
    return bf16 / fp32


def _choose(dtype: torch.dtype) -> str:
    with _lock:
        if dtype not in _taken:
            ways = _candidates(dtype)
            took = dict(zip(ways, seconds(tuple((way, dtype) for way in ways)), strict=True))
            _taken[dtype] = min(ways, key=lambda way: took[way] * (MARGIN if way == ways[0] else 1))
        return _taken[dtype]


def _candidates(dtype: torch.dtype) -> list[str]:
    """The ways worth measuring, the one to prefer first. Without instructions torch's own bf16 is emulated."""
    ways = [ONEDNN, WIDENED, TORCH] if dtype == torch.bfloat16 else [ONEDNN, TORCH]
    if dtype == torch.bfloat16 and not has_bf16_instructions():
        ways.remove(TORCH)
    return [way for way in ways if works(way, dtype)] or [TORCH]


# ---- trying and measuring


def _sample(rows: int, width: int, dtype: torch.dtype) -> Tensor:
    """[rows, width] of values within -1 and 1; no random state is touched."""
    return torch.arange(rows * width, dtype=torch.float64).mul_(0.7).sin_().view(rows, width).to(dtype)


def _is_right(dtype: torch.dtype, action: Callable[[Tensor, Tensor, Tensor], Tensor]) -> bool:
    """Whether x @ weight.T + bias comes out as in float64, for a weight as it is and one that is a transpose."""
    x, bias = _sample(5, 24, dtype), _sample(1, 40, dtype)[0]
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            for weight in (_sample(40, 24, dtype), _sample(24, 40, dtype).T):
                expected = x.double() @ weight.double().T + bias.double()
                error = (action(x, weight, bias).double() - expected).abs().max()
                if not error <= 4 * torch.finfo(dtype).eps * expected.abs().max():
                    return False
    except (RuntimeError, AttributeError):  # no such instruction, or no such operator
        return False
    return True


@cache
def seconds(ways: Sequence[tuple[str, torch.dtype]]) -> tuple[float, ...]:
    """How long a product takes in each of some (way, type), on one thread: the others may be busy elsewhere.

    By a weight that stays. The rows are few, and one that oneDNN must rearrange in each call would cost it a third
    more; beside the thousands of rows of a batch that is little.
    """
    x, weight = _sample(ROWS, WIDTH, torch.float32), _sample(WIDTH, WIDTH, torch.float32)

    def action(way: str, dtype: torch.dtype) -> Callable[[], Tensor]:
        rows, columns = x.to(dtype), prepared(weight, dtype, stays=True, way=way)
        return lambda: product(rows, columns, way=way)

    with _lock:
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(1)
            with torch.no_grad(), torch.autocast("cpu", enabled=False):
                return fastest_times([action(*way) for way in ways], CLOCK)
        finally:
            torch.set_num_threads(threads)


def fastest_times(actions: Sequence[Callable[[], object]], clock: Callable[[], float]) -> tuple[float, ...]:
    """The least seconds that each action took of several tries, in turn."""

    def timed(action: Callable[[], object]) -> float:
        start = clock()
        action()
        return clock() - start

    tries = [[timed(action) for action in actions] for _ in range(1 + TRIES)]
    return tuple(map(min, zip(*tries[1:], strict=True)))  # what is done once, is not measured
