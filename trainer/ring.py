"""Matryoshka MNRL where no rank holds the candidates of all: they go round from rank to rank, block by block.

Twice: first for the log-sum-exp of every query; then once more, and with each block the gradient of its candidates,
which grows from rank to rank and is complete when both come home. Queries stay where they are. The numbers are those of
`tiled.py` on the gathered candidates; the logits are computed twice, since a rank meets all blocks before it knows a
query's sum. (Liu et al. 2023, arXiv:2310.01889, pass the keys of attention round likewise.)

Shapes: Q queries of this rank, n candidates of a block, G of all ranks, E width, M dims.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from trainer.distributed import pass_on, rank, world_size
from trainer.tiled import (
    LOG2_E,
    Band,
    Computed,
    Gradients,
    Task,
    bands,
    constants,
    finish_gradient,
    inverse_norms,
    row_scales,
)


def ring_losses_and_gradients(
    queries: Tensor, own: Tensor, scale: Tensor, task: Task, columns: Sequence[Tensor]
) -> Computed:
    """As `tiled.losses_and_gradients`; the gradient of the own candidates is that of the losses of all ranks.

    Collective: all ranks want gradients or none does, and the gradient of the sum is the same on all.

    Args:
        own: [n, E], the candidates of this rank; the task is about the columns of all.
        columns: which of all candidates each rank holds, in the order in which it does.
    """
    dims = task.dims
    scales = row_scales(queries)
    inverses = inverse_norms(queries * scales[:, None], dims)
    weights_M = constants(task.weights, queries) / task.total_queries
    slopes = weights_M[:, None] * scale * inverses

    def bands_before(block: Tensor, owner: int) -> Iterator[tuple[slice, Band]]:
        block_scales = row_scales(block)
        factors = LOG2_E * scale * inverses, inverse_norms(block * block_scales[:, None], dims)
        where = columns[owner]
        places = task.targets.new_full((sum(map(len, columns)),), -1)
        places[where] = torch.arange(len(where), device=places.device)
        excluded = None if task.excluded is None else torch.where(task.excluded < 0, -1, places[task.excluded])
        return bands(queries, block, (scales, block_scales), factors, places[task.targets], excluded, dims)

    owners = [(rank() - step) % world_size() for step in range(world_size())]  # of the blocks as they arrive
    log2_sums, target_logits = torch.full_like(inverses, -torch.inf), torch.zeros_like(inverses)
    block = own
    for owner, following in zip(owners, [*owners[1:], owners[0]], strict=True):
        for q, band in bands_before(block, owner):
            sums, found = band.log2_sums()
            log2_sums[:, q] = torch.logaddexp2(log2_sums[:, q], sums)
            target_logits[:, q] += found
        block = pass_on(block, (len(columns[following]), own.shape[1]))
    summed_M = (log2_sums - target_logits).sum(1) / LOG2_E
    total, losses_M = (weights_M * summed_M).sum(), summed_M / task.total_queries
    if not task.with_gradients:
        return total, losses_M, ()

    made = Gradients.zeros(queries, own, dims)
    for owner, following in zip(owners, [*owners[1:], owners[0]], strict=True):
        for q, band in bands_before(block, owner):
            band.log2_sums()  # for its dot products
            band.add_gradients(log2_sums[:, q], slopes[:, q], q, made)
        count = len(columns[following])
        block = pass_on(block, (count, own.shape[1]))
        made.candidates_T = pass_on(made.candidates_T, (own.shape[1], count))
        made.per_candidate = pass_on(made.per_candidate, (len(dims), count))
    d_own, own_scales = made.candidates_T.T.contiguous(), row_scales(own)
    finish_gradient(made.queries, queries, scales, inverses, made.per_query, dims)
    own_inverses = inverse_norms(own * own_scales[:, None], dims)
    finish_gradient(d_own, own, own_scales, own_inverses, made.per_candidate, dims)
    return total, losses_M, (made.queries, d_own, (made.per_query.sum() / scale).view_as(scale))
