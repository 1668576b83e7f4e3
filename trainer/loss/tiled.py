"""Matryoshka MNRL in tiles: the losses of all dims in memory that does not grow with queries times candidates.

A band of queries walks the candidates twice, tile by tile. Within a tile the dot products of the ascending prefixes
nest, so one E-wide product yields the logits of every dim. The first walk keeps the band's dot products and adds up the
exponentials of every query; the second turns both into gradients with two more E-wide products:

    P_m = softmax(l_m) - onehot          C_m = g_m * P_m * s / (|a|_m |c|_m)          S_k = sum over m >= k of C_m
    da[:, block k] = S_k @ c[:, block k] - a[:, block k] * sum over m >= k of (sum_j g_m P_m l_m) / |a|_m^2

and likewise for c with rows and columns exchanged. g_m is the weight of dim m over the number of queries, s the scale,
block k the columns between the neighbouring dims d_(k-1) and d_k, which every dim m >= k contains.

So forward ends with the gradients, and backward only multiplies them by the loss's own. Left to backward, they would
take the logits of all queries, or a third more arithmetic to make them again.

Cosines do not change with the length of a row. So each row is taken times a power of two that brings its largest entry
near 1, and no square overflows or vanishes, however long or short the row is.

Shapes: Q queries, G candidates, E width, M dims ascending, q queries of a band, g candidates of a tile, T tiles.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainer.system.processor import product

ZERO_LENGTH = 1e-15  # a prefix this much shorter than its row's largest entry counts as a zero vector


class Sizes(NamedTuple):
    """How much is taken at a time."""

    tile: int
    """Logits of a tile."""
    band: int
    """Dot products of a band that are kept, while it has LEAST queries or more."""


# 1024 x 1024 was the fastest tile on a CPU. A GPU is fed in few large pieces, whose band and tile to work in take 1 GiB
# at most: in a CPU's pieces a batch of 8192 took an H200 seven times as long.
ON_CPU, ON_GPU = Sizes(2**20, 2**24), Sizes(2**25, 2**27)
LEAST, MOST = 128, 1024  # queries of a band
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


def constants(values: Sequence[float], like: Tensor) -> Tensor:
    """A vector of the type and on the device of another tensor, for which nothing waits as for a copy from the host."""
    return torch.stack([like.new_full((), value) for value in values])


@dataclass(frozen=True)
class Task:
    """What is asked of the embeddings, as in `trainer.loss.matryoshka.matryoshka_mnrl`."""

    targets: Tensor  # [Q]
    excluded: Tensor | None  # [Q, K]
    dims: Sequence[int]  # ascending
    weights: Sequence[float]
    scale: float
    total_queries: int
    with_gradients: bool  # False where nobody will ask for them; there are none then
    tile: tuple[int, int] | None = None  # queries of a band and candidates of a tile


class LossWithGradients(torch.autograd.Function):
    """(task, queries, candidates) -> the weighted sum of the losses, and the loss of each dim [M].

    Gradients run through the sum alone.
    """

    @staticmethod
    def forward(ctx: Any, task: Task, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        total, losses_M, gradients = losses_and_gradients(task, *inputs)
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(losses_M)
        return total, losses_M

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(gradient * each for each in ctx.saved_tensors)


def losses_and_gradients(task: Task, queries: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """The weighted sum of the losses, the loss of each dim [M], and the gradients of the sum in the inputs' order.

    Args:
        queries, candidates: [Q, E] and [G, E], of one type.
    """
    dims = task.dims
    scales = row_scales(queries), row_scales(candidates)
    inverses = [inverse_norms(rows * by[:, None], dims) for rows, by in zip((queries, candidates), scales, strict=True)]
    factors = LOG2_E * task.scale * inverses[0], inverses[1]
    weights_M = constants(task.weights, queries) / task.total_queries
    slopes = weights_M[:, None] * task.scale * inverses[0]
    gradients = Gradients.zeros(queries, candidates, dims) if task.with_gradients else None
    summed_M = torch.zeros_like(weights_M)
    for q, band in bands(task, queries, candidates, scales, factors):
        log2_sums, target_logits = band.log2_sums()
        summed_M += (log2_sums - target_logits).sum(1) / LOG2_E
        if gradients is not None:
            band.add_gradients(log2_sums, slopes[:, q], q, gradients)
    total, losses_M = (weights_M * summed_M).sum(), summed_M / task.total_queries
    if gradients is None:
        return total, losses_M, ()
    d_candidates = gradients.candidates_T.T.contiguous()
    finish_gradient(gradients.queries, queries, scales[0], inverses[0], gradients.per_query, dims)
    finish_gradient(d_candidates, candidates, scales[1], inverses[1], gradients.per_candidate, dims)
    return total, losses_M, (gradients.queries, d_candidates)


@dataclass
class Gradients:
    """What the second walks add up."""

    queries: Tensor  # [Q, E], but for the part of the norms
    candidates_T: Tensor  # [E, G] likewise
    # sum_j of g P l for every query [M, Q] and sum_i for every candidate [M, G]: what their norms get.
    per_query: Tensor
    per_candidate: Tensor

    @classmethod
    def zeros(cls, queries: Tensor, candidates: Tensor, dims: Sequence[int]) -> Gradients:
        sums = (rows.new_zeros(len(dims), len(rows)) for rows in (queries, candidates))
        return cls(torch.zeros_like(queries), candidates.new_zeros(candidates.shape[::-1]), *sums)


def bands(
    task: Task, queries: Tensor, candidates: Tensor, scales: tuple[Tensor, Tensor], factors: tuple[Tensor, Tensor]
) -> Iterator[tuple[slice, Band]]:
    """The queries band by band, with where each stands among them. A band is used up when the next is asked for.

    `scales` are the `row_scales` of both sides, `factors` as in `Band` but of all queries.
    """
    dims, targets, excluded = task.dims, task.targets, task.excluded
    sizes = ON_CPU if queries.device.type == "cpu" else ON_GPU
    height, width = task.tile or tile_shape(len(candidates), len(dims), sizes)
    tiles = [slice(start, min(start + width, len(candidates))) for start in range(0, len(candidates), width)]
    # Every band is written to the same memory, which stays in the cache where that is large enough.
    room = queries.new_empty(len(tiles) + 1, len(dims), min(height, len(queries)) * min(width, len(candidates)))
    c_blocks = _blocks(candidates, scales[1], dims)
    for first in range(0, len(queries), height):
        q = slice(first, min(first + height, len(queries)))
        a_blocks = _blocks(queries[q], scales[0][q], dims)
        mask = None if excluded is None else exclusion_mask(excluded[q], targets[q], len(candidates))
        yield q, Band(dims, a_blocks, c_blocks, (factors[0][:, q], factors[1]), targets[q], mask, tiles, room)


def exclusion_mask(excluded: Tensor, targets: Tensor, candidates: int) -> Tensor:
    """[q, G] bool, True at the excluded [q, K] candidates of each query but at its target [q]; -1 is none of them."""
    mask = excluded.new_zeros(len(excluded), candidates + 1, dtype=torch.bool)
    mask.scatter_(1, torch.where(excluded < 0, candidates, excluded), True)
    mask.scatter_(1, targets[:, None], False)
    return mask[:, :candidates]


def tile_shape(candidates: int, dims: int, sizes: Sizes) -> tuple[int, int]:
    """Queries of a band and candidates of a tile."""
    height = min(max(sizes.band // max(candidates * dims, 1), LEAST), MOST)
    tiles = max(math.ceil(candidates * height / sizes.tile), 1)
    return height, max(math.ceil(candidates / tiles), 1)


@dataclass
class Band:
    """Some queries before all candidates."""

    dims: Sequence[int]
    a_blocks: Sequence[Tensor]  # scaled queries by block, [q, d_k - d_(k-1)] each
    c_blocks: Sequence[Tensor]  # scaled candidates by block, [G, d_k - d_(k-1)] each
    factors: tuple[Tensor, Tensor]  # log2(e) * scale / norm [M, q] and 1 / norm [M, G]
    targets: Tensor  # [q]
    mask: Tensor | None  # [q, G]
    tiles: Sequence[slice]
    room: Tensor  # [T + 1, M, at least q * g]: the dot products by tile, and one tile to work in

    def log2_sums(self) -> tuple[Tensor, Tensor]:
        """First walk: the log2-sum-exp of every query and its target's logit, both [M, q] and times log2(e)."""
        log2_sums = torch.full_like(self.factors[0], -torch.inf)
        target_logits = torch.zeros_like(log2_sums)
        for number, g in enumerate(self.tiles):
            columns, inside = self._targets_in(g)
            dots, (logits, *_) = self._matrices(number, g), self._matrices(-1, g)
            for k, (a, c, dot) in enumerate(zip(self.a_blocks, self.c_blocks, dots, strict=True)):
                if k == 0:
                    torch.mm(a, c[g].T, out=dot)
                else:
                    torch.add(dots[k - 1], product(a, c[g]), out=dot)
                self._logits(k, g, dot, logits)
                target_logits[k] += (logits.gather(1, columns) * inside).squeeze(1)
                highest = logits.amax(1)
                sums = logits.sub_(highest[:, None]).exp2_().sum(1)
                log2_sums[k] = torch.logaddexp2(log2_sums[k], highest + sums.log2())
        return log2_sums, target_logits

    def add_gradients(self, log2_sums: Tensor, slopes: Tensor, q: slice, gradients: Gradients) -> None:
        """Second walk. `slopes` are g * s / norm [M, q], `q` where the band is. The kept dot products are used up."""
        a_blocks_T = [block.T.contiguous() for block in self.a_blocks]
        blocks = list(enumerate(pairwise([0, *self.dims])))
        for number, g in enumerate(self.tiles):
            columns, inside = self._targets_in(g)
            dots, by_dim = self._matrices(number, g), self._matrices(-1, g)
            for k, (dot, slope) in enumerate(zip(dots, by_dim, strict=True)):
                self._logits(k, g, dot, slope)
                slope.sub_(log2_sums[k, :, None]).exp2_()
                slope.scatter_add_(1, columns, -inside.to(slope.dtype))
                slope.mul_(slopes[k, :, None]).mul_(self.factors[1][k, None, g])
                dot.mul_(slope)
                gradients.per_query[k, q] += dot.sum(1)
                gradients.per_candidate[k, g] += dot.sum(0)
            for k, (start, stop) in reversed(blocks):
                if k + 1 < len(by_dim):
                    by_dim[k] += by_dim[k + 1]  # from C_k to S_k
                gradients.queries[q, start:stop] += product(by_dim[k], self.c_blocks[k][g].T)
                gradients.candidates_T[start:stop, g] += product(a_blocks_T[k], by_dim[k].T)

    def _matrices(self, number: int, g: slice) -> list[Tensor]:
        """Of each dim the matrix [q, g] that belongs to a tile of that number."""
        count = len(self.targets), g.stop - g.start
        return [space[: math.prod(count)].view(count) for space in self.room[number]]

    def _logits(self, k: int, g: slice, dot: Tensor, out: Tensor) -> None:
        """Logits [q, g] of a dim times log2(e). Masked ones are the lowest number there is."""
        torch.mul(dot, self.factors[0][k, :, None], out=out).mul_(self.factors[1][k, None, g])
        if self.mask is not None:
            out.masked_fill_(self.mask[:, g], torch.finfo(out.dtype).min)

    def _targets_in(self, g: slice) -> tuple[Tensor, Tensor]:
        """Column [q, 1] of each query's target in a tile, and whether it is among the tile's columns [q, 1].

        Where it is not, the column is any. Nothing here waits for the device.
        """
        columns = self.targets[:, None] - g.start
        inside = (columns >= 0) & (columns < g.stop - g.start)
        return columns.clamp(0, g.stop - g.start - 1), inside


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


def _blocks(rows: Tensor, scales: Tensor, dims: Sequence[int]) -> list[Tensor]:
    return [rows[:, start:stop] * scales[:, None] for start, stop in pairwise([0, *dims])]
