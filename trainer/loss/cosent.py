"""The pairwise ranking term at every Matryoshka dim."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from trainer.loss.matryoshka import check_dims, full_precision, weights_of
from trainer.loss.tiled import constants, inverse_norms, row_scales


def prefix_cosines(first: Tensor, second: Tensor, dims: Sequence[int]) -> Tensor:
    """Cosines [P, M] of the rows of two [P, E] at every dim, in fp32 (float64 for float64 input), also under autocast.

    Raises ValueError for dims that do not fit.
    """
    check_dims(dims, first.shape[-1])
    with torch.autocast(first.device.type, enabled=False):
        first, second = (rows * row_scales(rows)[:, None] for rows in (full_precision(first), full_precision(second)))
        ascending = sorted(dims)
        dot = first.new_zeros(first.shape[0])
        inverses = inverse_norms(first, ascending), inverse_norms(second, ascending)
        by_dim = {}
        for k, (start, stop) in enumerate(pairwise([0, *ascending])):
            dot = dot + (first[:, start:stop] * second[:, start:stop]).sum(1)
            by_dim[stop] = dot * inverses[0][k] * inverses[1][k]
        return torch.stack([by_dim[dim] for dim in dims], 1)


def pairwise_ranking(
    first: Tensor,
    second: Tensor,
    labels: Tensor,
    *,
    dims: Sequence[int],
    weights: Sequence[float] | None = None,
    scale: float = 20.0,
) -> tuple[Tensor, Tensor]:
    """Every positive pair should be more alike than every negative one: the CoSENT loss at every dim.

    loss = log(1 + sum over positives p, negatives n of exp(scale * (cos_n - cos_p))). The sum is a product of one sum
    over negatives and one over positives, so it costs O(P), not O(P^2). It is 0 where either kind is missing.
    CoSENT: https://kexue.fm/archives/8847 (Su 2022).

    >>> first, second = torch.eye(4), torch.eye(4)[[0, 1, 3, 2]]  # two pairs of the same embedding, two at right angles
    >>> labels = torch.tensor([True, True, False, False])
    >>> total, by_dim = pairwise_ranking(first, second, labels, dims=(4,), scale=2.0)
    >>> round(total.item(), 4)  # log(1 + 4 * exp(-2))
    0.4327

    Args:
        first, second: [P, E], the two sides of the labelled pairs, not normalised.
        labels: [P] bool, True for positives.
        dims, weights, scale: as in `matryoshka_mnrl`.

    Returns:
        The weighted total, a scalar, and the loss of each dim [M] in the order of `dims`.
    """
    logits = scale * prefix_cosines(first, second, dims)
    # Filled, not selected: how many there are of a kind would have to be asked of the device.
    least, positive = torch.finfo(logits.dtype).min, labels[:, None]
    spread_M = torch.logsumexp(logits.masked_fill(positive, least), 0)
    spread_M = spread_M + torch.logsumexp((-logits).masked_fill(~positive, least), 0)
    # log(1 + exp(x)); softplus would drop the 1 for x above 20.
    by_dim_M = torch.logaddexp(spread_M, torch.zeros_like(spread_M))
    return (by_dim_M * constants(weights_of(weights, len(dims)), by_dim_M)).sum(), by_dim_M
