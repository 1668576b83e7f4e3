"""Attention over packed sequences on a GPU: exact, in memory that grows with the tokens, dropout included.

FlexAttention has no dropout and `scaled_dot_product_attention` no packed sequences with a bias, so this is our own
FlashAttention (Dao 2023, arXiv:2307.08691), whose kernels stand in `attention_kernels`. They run on a CPU too, in
Triton's interpreter (TRITON_INTERPRET=1), which is how they are tested without a GPU.

Shapes: T tokens, H heads, D head width, NB blocks of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trainer.model.attention_kernels import KERNELS, kernel_constants
from trainer.model.packing import BLOCK


def packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    blocks: Tensor,
    heads: int,
    bias: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention (query, key, value [T, H * D]) -> [T, H * D] within each sequence of a flat run, for a GPU.

    Args:
        blocks: [NB, 3] int32, for each block of BLOCK rows: first token of its sequence, its length, first row.
        bias: [H, 2R - 1] by distance, R at least the longest length; gets a gradient where it asks for one.
        dropout: probability for each attention weight.
    """
    seed = torch.randint(2**31 - 1, (1,), device=query.device) if dropout else blocks.new_zeros(1, dtype=torch.int64)
    inputs = query.contiguous(), key.contiguous(), value.contiguous()
    return _attend(*inputs, blocks, bias, seed, heads, dropout)[0]


def _outputs(query: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Room for what the forward kernel gives: [T, H * D], and the log-sum-exp of every row [H, T]."""
    wide = torch.promote_types(query.dtype, torch.float32)
    return torch.zeros_like(query), query.new_zeros(heads, query.shape[0], dtype=wide)


def _gradients(inputs: Sequence[Tensor], bias: Tensor | None, like: Tensor, train_bias: bool) -> tuple[Tensor, ...]:
    """Room for the gradients of queries, keys, values and bias; one number where the bias gets none."""
    d_bias = torch.zeros_like(bias, dtype=like.dtype) if bias is not None and train_bias else like.new_zeros(1)
    return *map(torch.zeros_like, inputs), d_bias


# Custom operators, so that torch.compile passes them by and sees their shapes.
@torch.library.custom_op("trainer::packed_attention", mutates_args=())
def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    blocks: Tensor,
    bias: Tensor | None,
    seed: Tensor,
    heads: int,
    dropout: float,
) -> tuple[Tensor, Tensor]:
    out, lse_HT = _outputs(query, heads)
    pointers = (query, key, value, bias if bias is not None else query, blocks, seed, out, lse_HT)
    _launch("forward", pointers, heads, dropout, bias)
    return out, lse_HT


@torch.library.custom_op("trainer::packed_attention_backward", mutates_args=())
def _attend_backward(
    d_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    blocks: Tensor,
    bias: Tensor | None,
    seed: Tensor,
    out: Tensor,
    lse_HT: Tensor,
    heads: int,
    dropout: float,
    train_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    d_out = d_out.contiguous()
    # What a weight's gradient loses because the weights of a row sum to 1; dropout does not change it.
    delta_HT = (d_out.to(lse_HT.dtype) * out).view(len(out), heads, -1).sum(2).T.contiguous()
    d_query, d_key, d_value, d_bias = _gradients((query, key, value), bias, lse_HT, train_bias)
    pointers = (query, key, value, bias if bias is not None else query, blocks, seed, d_out, lse_HT, delta_HT)
    _launch("key_value", (*pointers, d_key, d_value), heads, dropout, bias)
    _launch("query", (*pointers, d_query, d_bias), heads, dropout, bias, train_bias)
    return d_query, d_key, d_value, d_bias


def _launch(
    kernel: str,
    pointers: tuple[Tensor, ...],
    heads: int,
    dropout: float,
    bias: Tensor | None,
    train_bias: bool = False,
) -> None:
    """Run a kernel over all heads and blocks. `pointers` start with query, key, value, bias or any other, blocks."""
    query, blocks = pointers[0], pointers[4]
    head_width = query.shape[1] // heads
    flags = {"bias": bias is not None, "dropout": dropout > 0, "train_bias": train_bias}
    constants = kernel_constants(kernel, query.dtype, heads, head_width, BLOCK, **flags, device=query.device.type)
    own = constants["COLUMNS" if kernel == "key_value" else "ROWS"]
    reach = (bias.shape[1] + 1) // 2 if bias is not None else 1
    sizes = (query.shape[0], reach, head_width**-0.5, dropout, 1 / (1 - dropout))
    KERNELS[kernel][len(blocks) * (BLOCK // own), heads](*pointers, *sizes, **constants)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, blocks, bias, seed, ctx.heads, ctx.dropout = inputs
    ctx.save_for_backward(query, key, value, blocks, bias, seed, *output)


def _differentiate(ctx: Any, d_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    bias = ctx.saved_tensors[4]
    train_bias = bias is not None and ctx.needs_input_grad[4]
    found = _attend_backward(d_out, *ctx.saved_tensors, ctx.heads, ctx.dropout, train_bias)
    d_bias = found[3].to(bias.dtype) if train_bias else None
    return *found[:3], None, d_bias, None, None, None


_attend.register_autograd(_differentiate, setup_context=_save)
# What torch.compile sees of them: the shapes, by the arguments above in their order.
_attend.register_fake(lambda query, *others: _outputs(query, heads=others[-2]))
_attend_backward.register_fake(
    lambda d_out, query, key, value, blocks, bias, seed, out, lse_HT, *options: _gradients(
        (query, key, value), bias, lse_HT, train_bias=options[-1]
    )
)
