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

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

ZERO_LENGTH = 1e-15  # a prefix this much shorter than its row's largest entry counts as a zero vector
TILE = 1024


def row_scales(rows: Tensor) -> Tensor:
    """Powers of two [N] that bring the largest entry of each row of [N, E] near 1. Constants: no gradient runs in."""
    dtype = torch.promote_types(rows.dtype, torch.float32)
    largest = torch.linalg.vector_norm(rows.detach(), torch.inf, dim=1, dtype=dtype)
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
        factors = scale * inverses[0], inverses[1]
        log_sums_MQ = queries.new_full((len(dims), len(queries)), -torch.inf)
        target_logits_MQ = torch.zeros_like(log_sums_MQ)
        for q, g, a_qE, c_gE in _tiles(queries, candidates, scales, tile):
            columns, inside = _targets_in(targets, q, g)
            for k, logits in enumerate(_logits(a_qE, c_gE, factors, mask, dims, q, g)):
                log_sums_MQ[k, q] = torch.logaddexp(log_sums_MQ[k, q], logits.logsumexp(1))
                target_logits_MQ[k, q] += (logits.gather(1, columns) * inside).squeeze(1)
        ctx.save_for_backward(queries, candidates, scale, targets, mask, log_sums_MQ, *scales, *inverses)
        ctx.dims, ctx.tile = dims, tile
        return (log_sums_MQ - target_logits_MQ).sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        # Backward does not inherit the forward's autocast state: it could be called inside someone's.
        with torch.autocast(gradients[0].device.type, enabled=False):
            return _backward(ctx, gradients[0])


def _backward(ctx: Any, gradients_M: Tensor) -> tuple[Tensor | None, ...]:
    queries, candidates, scale, targets, mask, log_sums_MQ, *lengths = ctx.saved_tensors
    scales, inverses = lengths[:2], lengths[2:]
    dims, blocks = ctx.dims, list(pairwise([0, *ctx.dims]))
    d_queries, d_candidates = torch.zeros_like(queries), torch.zeros_like(candidates)
    factors = scale * inverses[0], inverses[1]
    # sum_j of g P l for every query and sum_i for every candidate: what their norms and the scale get.
    per_query, per_candidate = torch.zeros_like(inverses[0]), torch.zeros_like(inverses[1])
    for q, g, a_qE, c_gE in _tiles(queries, candidates, scales, ctx.tile):
        columns, inside = _targets_in(targets, q, g)
        by_dim = []
        for k, logits in enumerate(_logits(a_qE, c_gE, factors, mask, dims, q, g)):
            slopes = (logits - log_sums_MQ[k, q, None]).exp_()
            slopes.scatter_add_(1, columns, -inside.to(slopes.dtype))
            slopes *= gradients_M[k]
            weighted = logits.mul_(slopes)
            per_query[k, q] += weighted.sum(1)
            per_candidate[k, g] += weighted.sum(0)
            by_dim.append(slopes.mul_(factors[0][k, q, None]).mul_(factors[1][k, None, g]))
        suffix = torch.zeros_like(by_dim[0])
        for (start, stop), slopes in zip(reversed(blocks), reversed(by_dim), strict=True):
            suffix += slopes
            d_queries[q, start:stop] += suffix @ c_gE[:, start:stop]
            d_candidates[g, start:stop] += suffix.T @ a_qE[:, start:stop]
    finish_gradient(d_queries, queries, scales[0], inverses[0], per_query, dims)
    finish_gradient(d_candidates, candidates, scales[1], inverses[1], per_candidate, dims)
    return d_queries, d_candidates, (per_query.sum() / scale).view_as(scale), None, None, None, None


def _logits(
    a_qE: Tensor,
    c_gE: Tensor,
    factors: Sequence[Tensor],
    mask: Tensor | None,
    dims: Sequence[int],
    q: slice,
    g: slice,
) -> Iterator[Tensor]:
    """The logits [q, g] of a tile for each dim, from the factors scale / norm [M, Q] and 1 / norm [M, G].

    Masked ones are the lowest number there is: times 0 that is 0, as -inf is not.
    """
    dot = a_qE.new_zeros(len(a_qE), len(c_gE))
    for k, (start, stop) in enumerate(pairwise([0, *dims])):
        dot.addmm_(a_qE[:, start:stop], c_gE[:, start:stop].T)
        logits = (dot * factors[0][k, q, None]).mul_(factors[1][k, None, g])
        yield logits if mask is None else logits.masked_fill_(mask[q, g], torch.finfo(logits.dtype).min)


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
    queries: Tensor, candidates: Tensor, scales: Sequence[Tensor], tile: int
) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
    """The tiles as rows and columns, each with its scaled queries [q, E] and candidates [g, E]."""
    for first in range(0, len(queries), tile):
        q = slice(first, first + tile)
        a_qE = queries[q] * scales[0][q, None]
        for start in range(0, len(candidates), tile):
            g = slice(start, min(start + tile, len(candidates)))
            yield q, g, a_qE, candidates[g] * scales[1][g, None]


def _targets_in(targets: Tensor, q: slice, g: slice) -> tuple[Tensor, Tensor]:
    """Column [q, 1] of each row's target in a tile, and whether it is among the tile's columns [q, 1].

    Where it is not, the column is any. Nothing here waits for the device.
    """
    columns = targets[q, None] - g.start
    inside = (columns >= 0) & (columns < g.stop - g.start)
    return columns.clamp(0, g.stop - g.start - 1), inside
