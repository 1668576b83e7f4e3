"""The Triton kernels of `attention_triton`, and the tiles, warps and stages that each is compiled with.

A program owns some rows of one sequence and one head, and walks the columns of that sequence alone, so nothing is
computed for other sequences. Backward computes the weights again from the saved log-sum-exp: one kernel by columns for
keys and values, one by rows for queries.

Scores may get a learned bias by distance (as MPNet has), read from a table [H, 2R - 1] whose entry R - 1 + (j - i) is
for column j seen from row i. Dropout is drawn from a counter, so backward draws the same.

Shapes: T tokens, H heads, D head width, NB blocks of rows.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

# Whether 16 divides the tokens of a batch must not choose among compiled kernels: some steps would wait for another.
_launched = triton.jit(do_not_specialize=["T", "R"])


@triton.jit
def _own_part(blocks, BLOCK: tl.constexpr, OWN: tl.constexpr):
    """(first token of the sequence, its length, first of the OWN rows that this program owns of a block)."""
    block = blocks + 3 * (tl.program_id(0) // (BLOCK // OWN))
    part = tl.program_id(0) % (BLOCK // OWN)
    return tl.load(block), tl.load(block + 1), tl.load(block + 2) + part * OWN


@triton.jit
def _places(tokens, real, head, HEADS: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr):
    """Where a head's part of some tokens stands in [T, H * D], and which of it is there."""
    wide = tl.arange(0, WIDE)
    return tokens.to(tl.int64)[:, None] * (HEADS * D) + head * D + wide[None, :], real[:, None] & (wide[None, :] < D)


@triton.jit
def _biased(scores, bias, head, first_row, row, first_column, column, length, R):
    """Scores of a tile with the bias by distance, 0 where a row or column is beyond the sequence's end."""
    where = head * (2 * R - 1) + R - 1 + (first_column + column) - (first_row + row)
    inside = (first_row + row < length) & (first_column + column < length)
    return scores + tl.load(bias + where, mask=inside, other=0.0)


@triton.jit
def _kept(seed, head, first_row, row, first_column, column, probability):
    """What dropout keeps of a tile. First rows are counted over the whole run, first columns within a sequence.

    Philox draws four numbers at a time, here for rows r and r + 8 and columns c and c + 8: in a tile of 64 rows one
    thread holds all four (but on capability 100), so that the compiler draws once for them and nothing moves between
    threads. Which number a weight gets depends on its row and column alone: all kernels agree, whatever their tiles.
    """
    counter = (first_row + (row & ~8)) * 8192 + (first_column + (column & ~8))
    a, b, c, d = tl.rand4x(seed + head, counter)
    draw = tl.where((row & 8) == 0, tl.where((column & 8) == 0, a, b), tl.where((column & 8) == 0, c, d))
    return draw >= probability


@_launched
def _forward_kernel(
    q_at, k_at, v_at, bias, blocks, seed_at, out_at, lse_at, T, R, scale, probability, keep_scale,
    HEADS: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, FLOAT: tl.constexpr, BIAS: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    start, length, first_row = _own_part(blocks, BLOCK, ROWS)
    if first_row >= length:
        return
    row, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    rows = first_row + row
    own, own_mask = _places(start + rows, rows < length, head, HEADS, D, WIDE)
    q = tl.load(q_at + own, mask=own_mask, other=0.0)
    top = tl.full([ROWS], float("-inf"), FLOAT)
    total = tl.zeros([ROWS], FLOAT)
    out = tl.zeros([ROWS, WIDE], FLOAT)
    for first in range(0, length, COLUMNS):
        real = first + column < length
        other, other_mask = _places(start + first + column, real, head, HEADS, D, WIDE)
        k = tl.load(k_at + other, mask=other_mask, other=0.0)
        v = tl.load(v_at + other, mask=other_mask, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        if BIAS:
            scores = _biased(scores, bias, head, first_row, row[:, None], first, column[None, :], length, R)
        # Each tile has a real column, so that the maximum is finite, also in rows past the end.
        scores = tl.where(real[None, :], scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp(scores - new_top[:, None])
        shrink = tl.exp(top - new_top)
        total = total * shrink + tl.sum(weights, 1)
        if DROPOUT:
            seed = tl.load(seed_at)
            kept = _kept(seed, head, start + first_row, row[:, None], first, column[None, :], probability)
            weights = tl.where(kept, weights, 0.0)
        out = out * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        top = new_top
    tl.store(out_at + own, (out * (keep_scale / total)[:, None]).to(q.dtype), mask=own_mask)
    tl.store(lse_at + head * T + start + rows, top + tl.log(total), mask=rows < length)


@_launched
def _key_value_kernel(
    q_at, k_at, v_at, bias, blocks, seed_at, d_out_at, lse_at, delta_at, d_k_at, d_v_at, T, R, scale, probability,
    keep_scale, HEADS: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, FLOAT: tl.constexpr, BIAS: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    start, length, first_column = _own_part(blocks, BLOCK, COLUMNS)
    if first_column >= length:
        return
    row, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    columns = first_column + column
    own, own_mask = _places(start + columns, columns < length, head, HEADS, D, WIDE)
    k = tl.load(k_at + own, mask=own_mask, other=0.0)
    v = tl.load(v_at + own, mask=own_mask, other=0.0)
    d_k = tl.zeros([COLUMNS, WIDE], FLOAT)
    d_v = tl.zeros([COLUMNS, WIDE], FLOAT)
    # Tiles have columns first, as the products for d_k and d_v want them: none is transposed once it is there. Rows
    # past the end have queries, gradients, log-sum-exps and deltas of 0: they add nothing. Columns past it go nowhere.
    for first in range(0, length, ROWS):
        real = first + row < length
        other, other_mask = _places(start + first + row, real, head, HEADS, D, WIDE)
        q = tl.load(q_at + other, mask=other_mask, other=0.0)
        d_out = tl.load(d_out_at + other, mask=other_mask, other=0.0)
        lse = tl.load(lse_at + head * T + start + first + row, mask=real, other=0.0)
        delta = tl.load(delta_at + head * T + start + first + row, mask=real, other=0.0)
        scores = tl.dot(k, tl.trans(q), input_precision="ieee") * scale
        if BIAS:
            scores = _biased(scores, bias, head, first, row[None, :], first_column, column[:, None], length, R)
        weights = tl.exp(scores - lse[None, :])
        dropped = weights
        if DROPOUT:
            seed = tl.load(seed_at)
            kept = _kept(seed, head, start + first, row[None, :], first_column, column[:, None], probability)
            dropped = tl.where(kept, weights, 0.0)
        d_v += tl.dot(dropped.to(v.dtype), d_out, input_precision="ieee")
        d_weights = tl.dot(v, tl.trans(d_out), input_precision="ieee") * keep_scale
        d_scores = dropped * d_weights - weights * delta[None, :]
        d_k += tl.dot(d_scores.to(q.dtype), q, input_precision="ieee")
    tl.store(d_k_at + own, (d_k * scale).to(k.dtype), mask=own_mask)
    tl.store(d_v_at + own, (d_v * keep_scale).to(v.dtype), mask=own_mask)


@_launched
def _query_kernel(
    q_at, k_at, v_at, bias, blocks, seed_at, d_out_at, lse_at, delta_at, d_q_at, d_bias_at, T, R, scale, probability,
    keep_scale, HEADS: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, FLOAT: tl.constexpr, BIAS: tl.constexpr, DROPOUT: tl.constexpr,
    TRAIN_BIAS: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    start, length, first_row = _own_part(blocks, BLOCK, ROWS)
    if first_row >= length:
        return
    row, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    rows = first_row + row
    own, own_mask = _places(start + rows, rows < length, head, HEADS, D, WIDE)
    q = tl.load(q_at + own, mask=own_mask, other=0.0)
    d_out = tl.load(d_out_at + own, mask=own_mask, other=0.0)
    lse = tl.load(lse_at + head * T + start + rows, mask=rows < length, other=0.0)
    delta = tl.load(delta_at + head * T + start + rows, mask=rows < length, other=0.0)
    d_q = tl.zeros([ROWS, WIDE], FLOAT)
    for first in range(0, length, COLUMNS):
        real = first + column < length
        other, other_mask = _places(start + first + column, real, head, HEADS, D, WIDE)
        k = tl.load(k_at + other, mask=other_mask, other=0.0)
        v = tl.load(v_at + other, mask=other_mask, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        if BIAS:
            scores = _biased(scores, bias, head, first_row, row[:, None], first, column[None, :], length, R)
        # Weights of 0 past the end: exp(0 - lse) may overflow.
        weights = tl.exp(tl.where(real[None, :], scores, float("-inf")) - lse[:, None])
        d_weights = tl.dot(d_out, tl.trans(v), input_precision="ieee") * keep_scale
        if DROPOUT:
            seed = tl.load(seed_at)
            kept = _kept(seed, head, start + first_row, row[:, None], first, column[None, :], probability)
            d_weights = tl.where(kept, d_weights, 0.0)
        d_scores = weights * (d_weights - delta[:, None])
        d_q += tl.dot(d_scores.to(k.dtype), k, input_precision="ieee")
        if TRAIN_BIAS:
            where = head * (2 * R - 1) + R - 1 + (first + column)[None, :] - rows[:, None]
            inside = (rows < length)[:, None] & real[None, :]
            tl.atomic_add(d_bias_at + where, d_scores, mask=inside, sem="relaxed")
    tl.store(d_q_at + own, (d_q * scale).to(q.dtype), mask=own_mask)


KERNELS = {"forward": _forward_kernel, "key_value": _key_value_kernel, "query": _query_kernel}


def kernel_options(kernel: str, dtype: torch.dtype, head_width: int, device: str = "cuda") -> dict[str, int]:
    """What a kernel is compiled with: the tokens that a program owns and those that it walks at a time, warps, stages.

    One table serves every card: with it none of the capabilities 80, 86, 89, 90, 100 and 120 spills a register in bf16,
    and all stay within their shared memory (bench/kernels.md). Larger tiles spill, and compute more padding: of real
    tickets' scores 64 by 64 computes 1.43 times those that are there, 64 by 32 1.24 times.

    Args:
        kernel: a key of `KERNELS`.
        dtype: of queries, keys and values.
        head_width: D.
        device: the type of device; on "cpu" it is the interpreter that runs them, where large tiles are fastest.

    Returns:
        "own", "walked", "num_warps" and "num_stages". A program owns no more than a block of rows: `packing.BLOCK`
        has to grow with "own".
    """
    if device == "cpu":
        own, walked, warps, stages = 64, 64, 4, 1
    elif dtype.itemsize > 2:  # products without tensor cores: each value takes a register
        own, walked, warps, stages = (32, 16, 4, 1) if head_width <= 64 else (16, 16, 4, 1)
    elif head_width <= 64:
        # Two gradients are summed at once for keys and values: a second stage would spill on most cards.
        own, walked, warps, stages = 64, 32, 4, 1 if kernel == "key_value" else 2
    else:
        own, walked, warps, stages = (64, 32, 8, 2) if head_width <= 128 else (32, 32, 8, 1)
    return {"own": own, "walked": walked, "num_warps": warps, "num_stages": stages}


def kernel_constants(
    kernel: str,
    dtype: torch.dtype,
    heads: int,
    head_width: int,
    rows: int,
    bias: bool = False,
    dropout: bool = False,
    train_bias: bool = False,
    device: str = "cuda",
) -> dict[str, Any]:
    """Compile-time constants and launch options of a kernel, by the names that it gives them.

    Args:
        rows: tokens of a block, a power of 2 from 16.
    """
    options = kernel_options(kernel, dtype, head_width, device)
    own, walked = min(options.pop("own"), rows), options.pop("walked")
    constants = {
        "HEADS": heads,
        "D": head_width,
        "WIDE": max(16, triton.next_power_of_2(head_width)),  # a tile of a product is at least 16 wide
        "BLOCK": rows,
        "ROWS": walked if kernel == "key_value" else own,
        "COLUMNS": own if kernel == "key_value" else walked,
        "FLOAT": tl.float64 if dtype == torch.float64 else tl.float32,
        "BIAS": bias,
        "DROPOUT": dropout,
    }
    return constants | ({"TRAIN_BIAS": train_bias} if kernel == "query" else {}) | options
