"""fp32 products on the CPU through oneDNN.

torch's own fp32 products go to MKL, which reaches 80 % of oneDNN's speed on AMD processors and is even elsewhere.
torch.compile calls oneDNN by these operators; they have no backward of their own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

AVAILABLE = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [T, I] times weight [O, I], plus bias [O]: [T, O]. By oneDNN where that is in fp32 on the CPU, or packed.

    A weight, or its transpose, must be contiguous: on any other oneDNN takes a thousand times as long.
    """
    plain = x.dtype == torch.float32 and x.device.type == "cpu"
    if AVAILABLE and (plain or weight.is_mkldnn):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def packed(weight: Tensor) -> Tensor:
    """A weight [O, I] in oneDNN's own layout, which it would otherwise be brought into by every product."""
    return torch.ops.mkldnn._reorder_linear_weight(weight)
