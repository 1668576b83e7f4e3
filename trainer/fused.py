"""The losses of `tiled.py` through the kernels of `mnrl_kernel.py`: padding, launches, and what stands around them.

Shapes: Q queries, G candidates, E width, M dims ascending, q and g the rows and columns of a chunk, W the padded width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainer import mnrl_kernel
from trainer.mnrl_kernel import DEPTH, INTERPRETED, ROWS
from trainer.tiled import exclusion_mask, finish_gradient, inverse_norms, row_scales

WORKSPACE_BYTES = 2**25
MASK_BYTES = 2**28  # of the mask of the queries that forward takes at a time: at 65,536 candidates 4,096 of them
PROGRAMS = 512  # blocks of queries by ranges of candidates in forward, about: a few for each multiprocessor


class FusedLosses(torch.autograd.Function):
    """(queries, candidates, scale, targets, excluded, dims) -> summed loss of each dim [M]: `tiled.py`'s mathematics.

    Queries and candidates are both bf16, both fp32 or, in the interpreter alone, both float64; the scale and the
    losses are fp32 (float64).
    """

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        candidates: Tensor,
        scale: Tensor,
        targets: Tensor,
        excluded: Tensor | None,
        dims: Sequence[int],
    ) -> Tensor:
        scales = row_scales(queries), row_scales(candidates)
        inverses = tuple(
            inverse_norms(rows * by[:, None], dims) for rows, by in zip((queries, candidates), scales, strict=True)
        )
        log_sums_MQ, means_MQ, target_logits_MQ = _sums(
            _padded(queries, scales[0], dims), _padded(candidates, scales[1], dims), scale * inverses[0], inverses[1],
            targets, excluded, dims,
        )  # fmt: skip
        # The last is sum_j of P l for every query: what its norm and the scale get.
        ctx.save_for_backward(
            queries, candidates, scale, targets, excluded, log_sums_MQ, means_MQ - target_logits_MQ, *scales, *inverses
        )
        ctx.dims = dims
        return (log_sums_MQ - target_logits_MQ).sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _backward(ctx, gradients[0].contiguous())


def _sums(
    a_QW: Tensor,
    c_GW: Tensor,
    a_factors: Tensor,
    c_factors: Tensor,
    targets: Tensor,
    excluded: Tensor | None,
    dims: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exp, mean logit under the softmax, and target's logit, each [M, Q]."""
    if excluded is None:
        return _band_sums(a_QW, c_GW, a_factors, c_factors, targets, None, dims)
    candidates = c_factors.shape[1]
    sums = torch.empty_like(a_factors), torch.empty_like(a_factors), torch.empty_like(a_factors)
    for q in _slices(len(a_QW), max(MASK_BYTES // candidates // ROWS, 1) * ROWS):
        mask = _mask(excluded[q], targets[q], candidates)
        of_band = _band_sums(a_QW[q], c_GW, a_factors[:, q], c_factors, targets[q], mask, dims)
        for whole, part in zip(sums, of_band, strict=True):
            whole[:, q] = part
    return sums


def _band_sums(
    a_QW: Tensor,
    c_GW: Tensor,
    a_factors: Tensor,
    c_factors: Tensor,
    targets: Tensor,
    mask: Tensor | None,
    dims: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """`_sums` of the queries that are taken at a time."""
    (dim_count, queries), candidates = a_factors.shape, c_factors.shape[1]
    # Few queries make few programs: then the candidates are cut into ranges.
    width = max(triton.cdiv(candidates * len(a_QW) // ROWS, PROGRAMS * ROWS), 1) * ROWS
    ranges = triton.cdiv(candidates, width)
    a_factors, c_factors = _padded_end(a_factors), _padded_end(c_factors)
    log_sums, means = (a_factors.new_empty(ranges, dim_count, len(a_QW)) for _ in range(2))
    target_logits = torch.zeros_like(a_factors)
    mnrl_kernel.forward[lambda tile: (triton.cdiv(len(a_QW), tile["BLOCK_ROWS"]), ranges)](
        a_QW, c_GW, a_factors, c_factors, _padded_end(targets, -1), mask, log_sums, means, target_logits,
        queries, candidates, len(a_QW), len(c_GW), a_QW.shape[1], width, **_constants(a_QW, dims),
    )  # fmt: skip
    log_sums_MQ = log_sums.logsumexp(0)
    means_MQ = ((log_sums - log_sums_MQ).exp() * means).sum(0)
    return log_sums_MQ[:, :queries], means_MQ[:, :queries], target_logits[:, :queries]


def _backward(ctx: Any, gradients_M: Tensor) -> tuple[Tensor | None, ...]:
    queries, candidates, scale, targets, excluded, log_sums_MQ, per_query, *lengths = ctx.saved_tensors
    dims, (a_scales, c_scales, a_inverses, c_inverses) = ctx.dims, lengths
    a_QW, c_GW = _padded(queries, a_scales, dims), _padded(candidates, c_scales, dims)
    d_a, d_c = (torch.zeros_like(rows, dtype=log_sums_MQ.dtype) for rows in (a_QW, c_GW))
    a_factors, c_factors = _padded_end(scale * a_inverses), _padded_end(c_inverses)
    log_sums_MQ, padded_targets = _padded_end(log_sums_MQ), _padded_end(targets, -1)
    # sum_j of g P l for every query and sum_i for every candidate: what their norms and the scale get.
    per_query, per_candidate = gradients_M[:, None] * per_query, torch.zeros_like(c_factors)
    side = max(math.isqrt(WORKSPACE_BYTES // (len(dims) * a_QW.element_size())) // ROWS, 1) * ROWS
    suffixes = a_QW.new_empty(len(dims), side, side)
    for q in _slices(len(a_QW), side):
        mask = None if excluded is None else _mask(excluded[q], targets[q], len(candidates))
        for g in _slices(len(c_GW), side):
            a_qW, c_gW, mask_qg = a_QW[q], c_GW[g], None if mask is None else mask[:, g]
            column_sums = c_factors.new_empty(len(a_qW) // ROWS, len(dims), len(c_gW))
            mnrl_kernel.slopes[_grid(a_qW, c_gW)](
                a_qW, c_gW, a_factors[:, q], c_factors[:, g], padded_targets[q], mask_qg, log_sums_MQ[:, q],
                gradients_M, suffixes, column_sums, len(queries) - q.start, len(candidates) - g.start, len(a_QW),
                len(c_GW), len(candidates), len(c_gW), a_qW.shape[1], g.start, side, **_constants(a_qW, dims),
            )  # fmt: skip
            per_candidate[:, g] += column_sums.sum(0)
            _add_products(suffixes, c_gW, d_a[q], dims)
            _add_products(suffixes.transpose(1, 2), a_qW, d_c[g], dims)
    d_queries = _finished(d_a, queries, a_scales, a_inverses, per_query, dims)
    d_candidates = _finished(d_c, candidates, c_scales, c_inverses, per_candidate[:, : len(candidates)], dims)
    return d_queries, d_candidates, (per_query.sum() / scale).view_as(scale), None, None, None


def _mask(excluded: Tensor, targets: Tensor, candidates: int) -> Tensor:
    """As `exclusion_mask`, in rows of the length that the kernels expect."""
    return exclusion_mask(excluded, targets, candidates).contiguous()


def _grid(rows: Tensor, columns: Tensor) -> Callable[[dict[str, int]], tuple[int, int]]:
    return lambda tile: (len(rows) // tile["BLOCK_ROWS"], len(columns) // tile["BLOCK_COLUMNS"])


def _add_products(suffixes: Tensor, others: Tensor, gradient: Tensor, dims: Sequence[int]) -> None:
    """gradient[:, block k] += S_k @ others[:, block k], with S_k the upper left corner of suffixes[k]."""
    widths = [stop - start for start, stop in pairwise(_edges(dims))]

    def grid(tile: dict[str, int]) -> tuple[int, int]:
        tiles = sum(triton.cdiv(width, tile["BLOCK_COLUMNS"]) for width in widths)
        return len(gradient) // tile["BLOCK_ROWS"], tiles

    mnrl_kernel.products[grid](
        suffixes, others, gradient, len(others), others.shape[1], *suffixes.stride(), **_constants(others, dims)
    )  # fmt: skip


def _edges(dims: Sequence[int]) -> tuple[int, ...]:
    """Where the blocks of columns begin in the padded copies, and where the last one ends."""
    widths = (triton.cdiv(stop - start, DEPTH) * DEPTH for start, stop in pairwise([0, *dims]))
    return tuple(accumulate(widths, initial=0))


def _padded(rows: Tensor, scales: Tensor, dims: Sequence[int]) -> Tensor:
    """The scaled rows [N, E], zeros between blocks of columns and below. Exact in bf16: scales are powers of two."""
    edges = _edges(dims)
    padded = rows.new_zeros(triton.cdiv(len(rows), ROWS) * ROWS, edges[-1])
    for place, (start, stop) in zip(edges, pairwise([0, *dims]), strict=False):
        padded[: len(rows), place : place + stop - start] = rows[:, start:stop] * scales[:, None]
    return padded


def _padded_end(numbers: Tensor, value: int = 0) -> Tensor:
    """As many columns as `_padded` has rows."""
    return F.pad(numbers, (0, -numbers.shape[-1] % ROWS), value=value)


def _finished(
    padded: Tensor, rows: Tensor, scales: Tensor, inverses: Tensor, sums: Tensor, dims: Sequence[int]
) -> Tensor:
    """The gradient of the rows [N, E] from that of their scaled and padded copy."""
    gradient = padded.new_zeros(rows.shape)
    for place, (start, stop) in zip(_edges(dims), pairwise([0, *dims]), strict=False):
        gradient[:, start:stop] = padded[: len(rows), place : place + stop - start]
    finish_gradient(gradient, rows, scales, inverses, sums, dims)
    return gradient.to(rows.dtype)


def _constants(rows: Tensor, dims: Sequence[int]) -> dict[str, Any]:
    """What the kernels are compiled for. The interpreter cannot multiply bf16."""
    types = {torch.bfloat16: tl.float32 if INTERPRETED else tl.bfloat16, torch.float64: tl.float64}
    return {"EDGES": _edges(dims), "OPERAND": types.get(rows.dtype, tl.float32)}


def _slices(count: int, height: int) -> Iterator[slice]:
    return (slice(first, min(first + height, count)) for first in range(0, count, height))
