"""Matryoshka MNRL in tiles: the losses of all dims in memory that does not grow with queries times candidates.

Forward walks tiles of the logit matrix. Within a tile the dot products of the ascending prefixes nest, so one E-wide
product yields the logits of every dim; of each only a running log-sum-exp a query is kept. Backward computes the
logits again, tile by tile, and turns them into gradients with two more E-wide products:

    P_m = softmax(l_m) - onehot          C_m = g_m * P_m * s / (|a|_m |c|_m)          S_k = sum over m >= k of C_m
    da[:, block k] = S_k @ c[:, block k] - a[:, block k] * sum over m >= k of (sum_j g_m P_m l_m) / |a|_m^2

and likewise for c with rows and columns exchanged. g_m is the gradient of the loss of dim m over the number of queries,
s the scale, block k the columns between the neighbouring dims d_(k-1) and d_k, which every dim m >= k contains.

Shapes: Q queries, G candidates, E width, M dims ascending, q and g the rows and columns of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

NORM_EPSILON = 1e-12  # as in torch.nn.functional.normalize: a zero vector has cosine 0 with everything
TILE = 1024


def prefix_norms(rows: Tensor, dims: Sequence[int]) -> Tensor:
    """Lengths [M, N] of the prefixes of [N, E], held off zero, for ascending dims."""
    squares = [rows[:, start:stop].square().sum(1) for start, stop in pairwise([0, *dims])]
    return torch.stack(squares).cumsum(0).clamp_min(NORM_EPSILON**2).sqrt()


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
        norms = prefix_norms(queries, dims), prefix_norms(candidates, dims)
        factors = scale / norms[0], 1 / norms[1]
        log_sums_MQ = queries.new_full((len(dims), len(queries)), -torch.inf)
        target_logits_MQ = torch.zeros_like(log_sums_MQ)
        for q, g in _tiles(len(queries), len(candidates), tile):
            columns, inside = _targets_in(targets, q, g)
            for k, logits in enumerate(_logits(queries, candidates, factors, mask, dims, q, g)):
                log_sums_MQ[k, q] = torch.logaddexp(log_sums_MQ[k, q], logits.logsumexp(1))
                target_logits_MQ[k, q] += (logits.gather(1, columns) * inside).squeeze(1)
        ctx.save_for_backward(queries, candidates, scale, targets, mask, log_sums_MQ, *norms)
        ctx.dims, ctx.tile = dims, tile
        return (log_sums_MQ - target_logits_MQ).sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        # Backward does not inherit the forward's autocast state: it could be called inside someone's.
        with torch.autocast(gradients[0].device.type, enabled=False):
            return _backward(ctx, gradients[0])


def _backward(ctx: Any, gradients_M: Tensor) -> tuple[Tensor | None, ...]:
    queries, candidates, scale, targets, mask, log_sums_MQ, *norms = ctx.saved_tensors
    dims, blocks = ctx.dims, list(pairwise([0, *ctx.dims]))
    d_queries, d_candidates = torch.zeros_like(queries), torch.zeros_like(candidates)
    factors = scale / norms[0], 1 / norms[1]
    # sum_j of g P l for every query and sum_i for every candidate: what their norms and the scale get.
    per_query, per_candidate = torch.zeros_like(norms[0]), torch.zeros_like(norms[1])
    for q, g in _tiles(len(queries), len(candidates), ctx.tile):
        columns, inside = _targets_in(targets, q, g)
        by_dim = []
        for k, logits in enumerate(_logits(queries, candidates, factors, mask, dims, q, g)):
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
            d_queries[q, start:stop] += suffix @ candidates[g, start:stop]
            d_candidates[g, start:stop] += suffix.T @ queries[q, start:stop]
    _subtract_norm_terms(d_queries, queries, norms[0], per_query, blocks)
    _subtract_norm_terms(d_candidates, candidates, norms[1], per_candidate, blocks)
    return d_queries, d_candidates, (per_query.sum() / scale).view_as(scale), None, None, None, None


def _logits(
    queries: Tensor,
    candidates: Tensor,
    factors: Sequence[Tensor],
    mask: Tensor | None,
    dims: Sequence[int],
    q: slice,
    g: slice,
) -> Iterator[Tensor]:
    """The logits [q, g] of a tile for each dim, from the factors scale / norm [M, Q] and 1 / norm [M, G].

    Masked ones are the lowest number there is: times 0 that is 0, as -inf is not.
    """
    dot = queries.new_zeros(len(queries[q]), len(candidates[g]))
    for k, (start, stop) in enumerate(pairwise([0, *dims])):
        dot.addmm_(queries[q, start:stop], candidates[g, start:stop].T)
        logits = (dot * factors[0][k, q, None]).mul_(factors[1][k, None, g])
        yield logits if mask is None else logits.masked_fill_(mask[q, g], torch.finfo(logits.dtype).min)


def _subtract_norm_terms(
    gradient: Tensor, rows: Tensor, norms: Tensor, sums: Tensor, blocks: Sequence[tuple[int, int]]
) -> None:
    """What the gradient loses because longer vectors have smaller logits. A length held off zero does not change."""
    terms_MN = torch.where(norms > NORM_EPSILON, sums / norms.square(), 0)
    suffix_MN = terms_MN.flip(0).cumsum(0).flip(0)
    for k, (start, stop) in enumerate(blocks):
        gradient[:, start:stop] -= rows[:, start:stop] * suffix_MN[k, :, None]


def _tiles(queries: int, candidates: int, tile: int) -> Iterator[tuple[slice, slice]]:
    for first in range(0, queries, tile):
        for start in range(0, candidates, tile):
            yield slice(first, min(first + tile, queries)), slice(start, min(start + tile, candidates))


def _targets_in(targets: Tensor, q: slice, g: slice) -> tuple[Tensor, Tensor]:
    """Column [q, 1] of each row's target in a tile, and whether it is among the tile's columns [q, 1].

    Where it is not, the column is any. Nothing here waits for the device.
    """
    columns = targets[q, None] - g.start
    inside = (columns >= 0) & (columns < g.stop - g.start)
    return columns.clamp(0, g.stop - g.start - 1), inside
