"""Matryoshka MNRL in tiles: the losses of all dims in memory that does not grow with queries times candidates.

Forward walks tiles of the logit matrix. Within a tile the dot products of the ascending prefixes nest, so one E-wide
product yields the logits of every dim; of each only a running log-sum-exp a query is kept. Backward computes the
logits again, tile by tile, and turns them into gradients with two more E-wide products:

    P_m = softmax(l_m) - onehot          C_m = g_m * P_m * s / (|a|_m |c|_m)          S_k = sum over m >= k of C_m
    da[:, block k] = S_k @ c[:, block k] - a[:, block k] * sum over m >= k of (sum_j g_m P_m l_m) / |a|_m^2

and likewise for c with rows and columns exchanged. g_m is the gradient of the loss of dim m over the number of queries,
s the scale, block k the columns between the neighbouring dims d_(k-1) and d_k, which every dim m >= k contains.

Cosines do not change with the length of a row. So each row is taken times a power of two that brings its largest entry
near 1, and no square overflows or vanishes, however long or short the row is.

Shapes: Q queries, G candidates, E width, M dims ascending, q and g the rows and columns of a tile.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainer.onednn import product

ZERO_LENGTH = 1e-15  # a prefix this much shorter than its row's largest entry counts as a zero vector
TILE = 1024
# Powers of 2 take 0.4 times as long as powers of e on a CPU, so log2(e) goes into the factors of the dot products.
LOG2_E = 1 / math.log(2)


def row_scales(rows: Tensor) -> Tensor:
    """Powers of two [N] that bring the largest entry of each row of [N, E] near 1. Constants: no gradient runs in."""
    dtype = torch.promote_types(rows.dtype, torch.float32)
    least, largest = rows.detach().aminmax(dim=1)
    largest = torch.maximum(-least, largest).to(dtype)
    tiny = torch.finfo(dtype).tiny  # beyond these limits the power itself would overflow or vanish
    exponents = torch.frexp(largest.clamp(tiny, 0.25 / tiny)).exponent
    return torch.ldexp(torch.ones_like(largest), -exponents)


def inverse_norms(rows: Tensor, dims: Sequence[int]) -> Tensor:
    """1 / length of the prefixes of [N, E] for ascending dims: [M, N]. Rows are scaled with `row_scales` before.

    0 for a zero vector: its cosine with everything is 0, and its gradient too.
    """
    squares = [rows[:, start:stop].square().sum(1) for start, stop in pairwise([0, *dims])]
    squares_MN = torch.stack(squares).cumsum(0)
    return torch.where(squares_MN < ZERO_LENGTH**2, torch.inf, squares_MN).rsqrt()


class TiledLosses(torch.autograd.Function):
    """(queries, candidates, scale, targets, mask, dims, tile) -> summed loss of each dim [M], dims ascending."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        candidates: Tensor,
        scale: Tensor,
        targets: Tensor,
        mask: Tensor | None,
        dims: Sequence[int],
        tile: int,
    ) -> Tensor:
        scales = row_scales(queries), row_scales(candidates)
        inverses = tuple(
            inverse_norms(rows * by[:, None], dims) for rows, by in zip((queries, candidates), scales, strict=True)
        )
        factors = LOG2_E * scale * inverses[0], inverses[1]
        log2_sums_MQ = queries.new_full((len(dims), len(queries)), -torch.inf)
        target_logits_MQ = torch.zeros_like(log2_sums_MQ)
        spaces = _spaces(2, queries, candidates, tile)
        for q, g, a_blocks, c_blocks in _tiles(queries, candidates, scales, dims, tile):
            columns, inside = _targets_in(targets, q, g)
            dot, logits = _in_shape(spaces, a_blocks, c_blocks)
            for k in range(len(dims)):
                _next_logits(k, dot, logits, a_blocks, c_blocks, factors, mask, q, g)
                target_logits_MQ[k, q] += (logits.gather(1, columns) * inside).squeeze(1)
                highest = logits.amax(1)
                sums = logits.sub_(highest[:, None]).exp2_().sum(1)
                log2_sums_MQ[k, q] = torch.logaddexp2(log2_sums_MQ[k, q], highest + sums.log2())
        ctx.save_for_backward(queries, candidates, scale, targets, mask, log2_sums_MQ, *scales, *inverses)
        ctx.dims, ctx.tile = dims, tile
        return (log2_sums_MQ - target_logits_MQ).sum(1) / LOG2_E

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        # Backward does not inherit the forward's autocast state: it could be called inside someone's.
        with torch.autocast(gradients[0].device.type, enabled=False):
            return _backward(ctx, gradients[0])


def _backward(ctx: Any, gradients_M: Tensor) -> tuple[Tensor | None, ...]:
    queries, candidates, scale, targets, mask, log2_sums_MQ, *lengths = ctx.saved_tensors
    scales, inverses = lengths[:2], lengths[2:]
    dims, blocks = ctx.dims, list(pairwise([0, *ctx.dims]))
    d_queries, d_candidates = torch.zeros_like(queries), candidates.new_zeros(candidates.shape[::-1])
    factors = LOG2_E * scale * inverses[0], inverses[1]
    row_factors = gradients_M[:, None] * scale * inverses[0]
    # sum_j of g P l for every query and sum_i for every candidate: what their norms and the scale get.
    per_query, per_candidate = torch.zeros_like(inverses[0]), torch.zeros_like(inverses[1])
    spaces = _spaces(2 + len(dims), queries, candidates, ctx.tile)
    for q, g, a_blocks, c_blocks in _tiles(queries, candidates, scales, dims, ctx.tile):
        columns, inside = _targets_in(targets, q, g)
        if g.start == 0:
            a_blocks_T = [block.T.contiguous() for block in a_blocks]
        dot, weighted, *by_dim = _in_shape(spaces, a_blocks, c_blocks)
        for k, slopes in enumerate(by_dim):
            _next_logits(k, dot, slopes, a_blocks, c_blocks, factors, mask, q, g)
            slopes.sub_(log2_sums_MQ[k, q, None]).exp2_()
            slopes.scatter_add_(1, columns, -inside.to(slopes.dtype))
            slopes.mul_(row_factors[k, q, None]).mul_(inverses[1][k, None, g])
            torch.mul(slopes, dot, out=weighted)
            per_query[k, q] += weighted.sum(1)
            per_candidate[k, g] += weighted.sum(0)
        for k in reversed(range(len(dims))):
            start, stop = blocks[k]
            if k + 1 < len(dims):
                by_dim[k] += by_dim[k + 1]  # from C_k to S_k
            d_queries[q, start:stop] += product(by_dim[k], c_blocks[k].T)
            d_candidates[start:stop, g] += product(a_blocks_T[k], by_dim[k].T)
    d_candidates = d_candidates.T.contiguous()
    finish_gradient(d_queries, queries, scales[0], inverses[0], per_query, dims)
    finish_gradient(d_candidates, candidates, scales[1], inverses[1], per_candidate, dims)
    return d_queries, d_candidates, (per_query.sum() / scale).view_as(scale), None, None, None, None


def _spaces(count: int, queries: Tensor, candidates: Tensor, tile: int) -> Tensor:
    """Room for so many tiles [count, q * g]: every tile is written to the same memory, which stays in the cache."""
    return queries.new_empty(count, min(tile, len(queries)) * min(tile, len(candidates)))


def _in_shape(spaces: Tensor, a_blocks: Sequence[Tensor], c_blocks: Sequence[Tensor]) -> list[Tensor]:
    """Spaces as matrices [q, g] of one tile."""
    rows, columns = len(a_blocks[0]), len(c_blocks[0])
    return [space[: rows * columns].view(rows, columns) for space in spaces]


def _next_logits(
    k: int,
    dot: Tensor,
    logits: Tensor,
    a_blocks: Sequence[Tensor],
    c_blocks: Sequence[Tensor],
    factors: Sequence[Tensor],
    mask: Tensor | None,
    q: slice,
    g: slice,
) -> None:
    """From the dot products [q, g] of dim k - 1 those of dim k, in place, and its logits times log2(e).

    By the factors log2(e) * scale / norm [M, Q] and 1 / norm [M, G]. Masked logits are the lowest number there is.
    """
    if k == 0:
        torch.mm(a_blocks[0], c_blocks[0].T, out=dot)
    else:
        dot += product(a_blocks[k], c_blocks[k])
    torch.mul(dot, factors[0][k, q, None], out=logits).mul_(factors[1][k, None, g])
    if mask is not None:
        logits.masked_fill_(mask[q, g], torch.finfo(logits.dtype).min)


def finish_gradient(
    gradient: Tensor, rows: Tensor, scales: Tensor, inverses: Tensor, sums: Tensor, dims: Sequence[int]
) -> None:
    """Turn S @ c into the gradient of the rows [N, E], in place.

    Longer vectors have smaller logits, which takes a share of each row itself off, from its sums of g P l [M, N]; and
    S @ c is the gradient of the scaled rows.
    """
    suffix_MN = (sums * inverses.square()).flip(0).cumsum(0).flip(0)
    for k, (start, stop) in enumerate(pairwise([0, *dims])):
        gradient[:, start:stop] -= rows[:, start:stop] * scales[:, None] * suffix_MN[k, :, None]
    gradient *= scales[:, None]


def _tiles(
    queries: Tensor, candidates: Tensor, scales: Sequence[Tensor], dims: Sequence[int], tile: int
) -> Iterator[tuple[slice, slice, list[Tensor], list[Tensor]]]:
    """The tiles as rows and columns, each with its scaled queries and candidates by block: [q, d_k - d_(k-1)] each."""
    all_c_blocks = _blocks(candidates, scales[1], dims)
    for first in range(0, len(queries), tile):
        q = slice(first, first + tile)
        a_blocks = _blocks(queries[q], scales[0][q], dims)
        for start in range(0, len(candidates), tile):
            g = slice(start, min(start + tile, len(candidates)))
            yield q, g, a_blocks, [block[g] for block in all_c_blocks]


def _blocks(rows: Tensor, scales: Tensor, dims: Sequence[int]) -> list[Tensor]:
    return [rows[:, start:stop] * scales[:, None] for start, stop in pairwise([0, *dims])]


def _targets_in(targets: Tensor, q: slice, g: slice) -> tuple[Tensor, Tensor]:
    """Column [q, 1] of each row's target in a tile, and whether it is among the tile's columns [q, 1].

    Where it is not, the column is any. Nothing here waits for the device.
    """
    columns = targets[q, None] - g.start
    inside = (columns >= 0) & (columns < g.stop - g.start)
    return columns.clamp(0, g.stop - g.start - 1), inside
