"""Layers that compute what their originals do, faster: linear layers and dropout on the CPU, and LoRA.

They hold nothing of their own, so state dicts, checkpoints and exports do not notice them.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from peft.tuners import lora
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakTensorKeyDictionary

from trainer.system.processor import TORCH, TYPES, is_widened, prepared, product, product_over_rows, product_way

LEVELS = 2**16  # resolution of a CPU dropout probability


def dropout(x: Tensor, probability: float) -> Tensor:
    """Inverted dropout: each value is zeroed with the given probability, the others are scaled to keep the mean.

    On the CPU, torch draws one random number a value on one thread, which costs a sixth of a training step of
    mpnet-base. There, one 64-bit number decides four values, and the probability is rounded to the nearest 1/65536. The
    numbers come from a fast generator that torch's own seeds, so torch's random state still decides them.
    """
    threshold = round(probability * LEVELS)
    if x.device.type != "cpu" or not 0 < threshold < LEVELS:
        return F.dropout(x, probability)
    seed = torch.empty(1, dtype=torch.int64).random_().numpy()
    words = np.random.SFC64(seed).random_raw((x.numel() + 3) // 4)
    uniform = torch.from_numpy(words.view(np.int16)[: x.numel()]).view(x.shape)
    kept = (uniform >= threshold - LEVELS // 2).to(x.dtype)
    return x * kept.mul_(LEVELS / (LEVELS - threshold))


class Dropout(nn.Dropout):
    """`dropout` as a module."""

    def forward(self, input: Tensor) -> Tensor:
        return dropout(input, self.p) if self.training and self.p else input


class PackedWeight:
    """A frozen weight [O, I] prepared for the products forward and backward, each when first asked.

    Handed a plain weight, oneDNN rearranges it in every call; under autocast it would be rounded anew as well.
    """

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        # An alias: as long as it lives, no other weight can come to lie where this one does.
        self.weight, self.version = weight.detach(), weight._version
        self.dtype, self.ways = dtype, _ways(dtype)

    def holds(self, weight: Tensor, dtype: torch.dtype) -> bool:
        """Whether this is still that weight. Blind, as autograd is, to writes through `weight.data`."""
        same = self.weight.data_ptr() == weight.data_ptr() and self.version == weight._version
        return same and self.dtype == dtype and self.ways == _ways(dtype)

    @cached_property
    def forward(self) -> Tensor:
        return prepared(self.weight, self.dtype, stays=True)

    @cached_property
    def backward(self) -> Tensor:
        return prepared(self.weight.T, self.dtype, stays=True)


packed_weights = WeakTensorKeyDictionary()


def _ways(dtype: torch.dtype) -> tuple[str, str]:
    return product_way(dtype), product_way(torch.float32)  # in which a widened product runs


def _oriented(weight: Tensor, dtype: torch.dtype, way: str) -> Tensor:
    """A weight [O, I] as the product "forward" takes it, or its transpose for "backward"; packed once if frozen."""
    if weight.requires_grad:
        return prepared(weight.detach() if way == "forward" else weight.detach().T, dtype)
    if weight not in packed_weights or not packed_weights[weight].holds(weight, dtype):
        packed_weights[weight] = PackedWeight(weight, dtype)
    return getattr(packed_weights[weight], way)


class _FastLinear(torch.autograd.Function):
    """(x [T, I], weight [O, I], bias [O] or None) -> [T, O] in the type of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if weight.requires_grad else None, weight)
        return product(x, _oriented(weight, x.dtype, "forward"), None if bias is None else bias.detach().to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad
        return (
            product(gradients[0], _oriented(weight, gradients[0].dtype, "backward")) if need_x else None,
            product_over_rows(gradients[0], x) if need_weight else None,
            gradients[0].sum(0) if need_bias else None,
        )


class _AddLowRank(torch.autograd.Function):
    """(result [T, O], inner [T, R], outer [O, R]) -> result + inner @ outer.T, in place.

    Autograd's own products take half as long again here: they are skinny, and it has them the wrong way round.
    """

    @staticmethod
    def forward(ctx: Any, result: Tensor, inner: Tensor, outer: Tensor) -> Tensor:
        ctx.mark_dirty(result)
        ctx.save_for_backward(inner, outer)
        return result.add_(product(inner, outer)) if is_widened(result) else result.addmm_(inner, outer.T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inner, outer = ctx.saved_tensors
        d_result = gradients[0]
        return d_result, product(d_result, outer.T), product_over_rows(d_result, inner)


class Linear(nn.Linear):
    """A linear layer whose products on the CPU are the fastest there: in fp32, or in bf16 under autocast."""

    def forward(self, input: Tensor) -> Tensor:
        if input.device.type != "cpu" or self.weight.dtype != torch.float32:
            return super().forward(input)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else input.dtype
        if dtype not in TYPES.values() or product_way(dtype) == TORCH:
            return super().forward(input)
        if input.ndim == 2:  # no view: LoRA adds to the result in place, and autograd copies a view's gradient for that
            return _FastLinear.apply(input.to(dtype), self.weight, self.bias)
        return self.forward(input.reshape(-1, self.in_features)).view(*input.shape[:-1], self.out_features)


class LoraLinear(lora.Linear):
    """PEFT's LoRA layer, the low-rank product added to the result in place and scaled at its small factor."""

    def merge(self, *args: Any, **kwargs: Any) -> None:
        super().merge(*args, **kwargs)
        packed_weights.pop(self.get_base_layer().weight, None)  # PEFT writes through weight.data

    def unmerge(self) -> None:
        super().unmerge()
        packed_weights.pop(self.get_base_layer().weight, None)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        adapter = self.active_adapters[0]
        plain = len(self.active_adapters) == 1 and adapter not in self.lora_variant and x.ndim == 2
        if not plain or self.disable_adapters or self.merged or args or kwargs:
            return super().forward(x, *args, **kwargs)
        result = self.base_layer(x)
        inner = self.lora_A[adapter](self.lora_dropout[adapter](x))
        outer = (self.lora_B[adapter].weight * self.scaling[adapter]).to(inner.dtype)
        return _AddLowRank.apply(result, inner, outer) if x.device.type == "cpu" else result.addmm_(inner, outer.T)


LEAN: dict[type[nn.Module], type[nn.Module]] = {nn.Dropout: Dropout, nn.Linear: Linear, lora.Linear: LoraLinear}


def make_lean(module: nn.Module) -> None:
    """Turn every layer below a module into its faster kind, in place: what it holds stays, only its class changes."""
    for child in module.modules():
        if type(child) in LEAN:
            child.__class__ = LEAN[type(child)]


def make_plain(module: nn.Module) -> None:
    """Undo `make_lean`, for tools that read the operations of a model."""
    plain = {lean: kind for kind, lean in LEAN.items()}
    for child in module.modules():
        if type(child) in plain:
            child.__class__ = plain[type(child)]
