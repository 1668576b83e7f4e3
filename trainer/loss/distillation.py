"""Learning a teacher's scores: the differences between them, at every Matryoshka dim."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.loss.cosent import prefix_cosines
from trainer.loss.matryoshka import weights_of
from trainer.loss.tiled import constants


def margin_mse(
    first: Tensor,
    second: Tensor,
    teacher: Tensor,
    groups: Tensor,
    *,
    dims: Sequence[int],
    weights: Sequence[float] | None = None,
) -> tuple[Tensor, Tensor]:
    """Cosines should differ from each other as the teacher's scores do: MarginMSE over all pairs of a group.

    With r the cosine of a pair less the teacher's score, the loss is the mean over the scored pairs of (r - mean of r
    in the group)^2, which is half the mean of (r_i - r_j)^2 where there is one group. What all scores of a group have
    in common does not count. MarginMSE: Hofstaetter et al. 2020, arXiv:2010.02666.

    >>> first, second = torch.eye(2)[[0, 0]], torch.eye(2)  # cosines 1 and 0
    >>> one_group = torch.zeros(2, dtype=torch.int64)
    >>> for scores in ([3.0, 2.0], [0.0, 0.0]):
    ...     print(margin_mse(first, second, torch.tensor(scores), one_group, dims=(2,))[0].item())
    0.0
    0.25

    Args:
        first, second: [P, E], the two sides of the pairs, not normalised.
        teacher: [P], scores in units of cosine; NaN for pairs that have none.
        groups: [P], 0 to P - 1: scores are compared with those of the same group.
        dims, weights: as in `matryoshka_mnrl`.

    Returns:
        The weighted total, a scalar, and the loss of each dim [M] in the order of `dims`.
    """
    cosines_PM = prefix_cosines(first, second, dims)
    scored = ~teacher.isnan()
    counted = scored.to(cosines_PM.dtype)[:, None]
    residuals_PM = (cosines_PM - torch.where(scored, teacher, 0).to(cosines_PM.dtype)[:, None]) * counted
    # As many sums as pairs, of which some stay 0: how many groups there are would have to be asked of the device.
    counts = torch.zeros_like(counted).index_add(0, groups, counted)
    means_PM = torch.zeros_like(residuals_PM).index_add(0, groups, residuals_PM) / counts.clamp(min=1)
    deviations_PM = (residuals_PM - means_PM[groups]) * counted
    by_dim_M = deviations_PM.square().sum(0) / counted.sum().clamp(min=1)
    return (by_dim_M * constants(weights_of(weights, len(dims)), by_dim_M)).sum(), by_dim_M
