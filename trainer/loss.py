"""Multiple-negatives ranking and a pairwise ranking term at every Matryoshka size, on unnormalised embeddings.

Shapes: Q queries, G candidates, P labelled pairs, E embedding width, M dims.

The dot product of the first d columns of two embeddings is part of the dot product of the first d' > d columns. So
one E-wide product, taken block by block in ascending dims, passes through the dot products of every dim on its way:
E multiply-adds a pair instead of the sum of the dims (1728 for 768 + 512 + 256 + 128 + 64). Dividing by the outer
product of the prefix norms makes them cosines; the embeddings themselves are never normalised. `tiled.py` does that
tile by tile, so that no Q x G matrix is ever held.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from trainer.tiled import TILE, TiledLosses, prefix_norms


def matryoshka_mnrl(
    queries: Tensor,
    candidates: Tensor,
    *,
    dims: Sequence[int],
    weights: Sequence[float] | None = None,
    scale: float | Tensor = 20.0,
    targets: Tensor | None = None,
    mask: Tensor | None = None,
    total_queries: int | None = None,
    tile: int = TILE,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each query's positive among all candidates, summed over dims.

    Multiple-negatives ranking (Henderson et al. 2017, arXiv:1705.00652) under Matryoshka representation learning
    (Kusupati et al. 2022, arXiv:2205.13147). Computed in fp32 (float64 for float64 input), also under autocast.

    Args:
        queries: [Q, E], not normalised.
        candidates: [G, E], not normalised.
        dims: prefix lengths in any order, each once, from 1 to E.
        weights: one a dim, in the order of `dims`; 1 each by default.
        scale: factor on the cosines (1 / temperature); a tensor where it is learned.
        targets: [Q], the candidate that is each query's positive; 0..Q-1 by default.
        mask: [Q, G] bool; True takes candidate j out of row i. A query's own target stays in.
        total_queries: what the sum over queries is divided by, Q by default: the number of queries on all devices
            where each holds a part.
        tile: rows and columns of logits that are held at a time.

    Returns:
        The weighted total, a scalar, and the loss of each dim [M] in the order of `dims`.

    Raises:
        ValueError: dims, weights, targets, mask and embeddings do not fit each other.
    """
    count = queries.shape[0]
    if targets is None:
        if candidates.shape[0] < count:
            raise ValueError(f"{candidates.shape[0]} candidates for {count} queries: name the targets")
        targets = torch.arange(count, device=queries.device)
    check_dims(dims, queries.shape[-1])
    if queries.shape[-1] != candidates.shape[-1]:
        raise ValueError(f"queries are {queries.shape[-1]} wide, candidates {candidates.shape[-1]}")
    if targets.shape != (count,):
        raise ValueError(f"targets has shape {tuple(targets.shape)}, not ({count},)")
    if mask is not None:
        if mask.shape != (count, candidates.shape[0]):
            raise ValueError(f"mask has shape {tuple(mask.shape)}, not ({count}, {candidates.shape[0]})")
        mask = mask.scatter(1, targets[:, None], False)

    ascending = sorted(dims)
    with torch.autocast(queries.device.type, enabled=False):
        queries, candidates = _full(queries), _full(candidates)
        if not isinstance(scale, Tensor):
            scale = queries.new_full((), scale)
        summed_M = TiledLosses.apply(queries, candidates, scale.to(queries), targets, mask, ascending, tile)
        by_dim_M = summed_M / (count if total_queries is None else total_queries)
        return _weighted([by_dim_M[ascending.index(dim)] for dim in dims], weights)


def pairwise_ranking(
    first: Tensor,
    second: Tensor,
    labels: Tensor,
    *,
    dims: Sequence[int],
    weights: Sequence[float] | None = None,
    scale: float | Tensor = 20.0,
) -> tuple[Tensor, Tensor]:
    """Every positive pair should be more alike than every negative one: the CoSENT loss at every dim.

    loss = log(1 + sum over positives p, negatives n of exp(scale * (cos_n - cos_p))). The sum is a product of one sum
    over negatives and one over positives, so it costs O(P), not O(P^2). It is 0 where either kind is missing.
    CoSENT: https://kexue.fm/archives/8847 (Su 2022).

    Args:
        first, second: [P, E], the two sides of the labelled pairs, not normalised.
        labels: [P] bool, True for positives.
        dims, weights, scale: as in `matryoshka_mnrl`.

    Returns:
        The weighted total, a scalar, and the loss of each dim [M] in the order of `dims`.
    """
    check_dims(dims, first.shape[-1])
    with torch.autocast(first.device.type, enabled=False):
        first, second = _full(first), _full(second)
        ascending = sorted(dims)
        dot = first.new_zeros(first.shape[0])
        norms = prefix_norms(first, ascending) * prefix_norms(second, ascending)
        losses = {}
        for k, (start, stop) in enumerate(pairwise([0, *ascending])):
            dot = dot + (first[:, start:stop] * second[:, start:stop]).sum(1)
            logits_P = scale * dot / norms[k]
            # Filled, not selected: how many there are of a kind would have to be asked of the device.
            least = torch.finfo(logits_P.dtype).min
            spread = torch.logsumexp(logits_P.masked_fill(labels, least), 0)
            spread = spread + torch.logsumexp((-logits_P).masked_fill(~labels, least), 0)
            # log(1 + exp(x)); softplus would drop the 1 for x above 20.
            losses[stop] = torch.logaddexp(spread, torch.zeros_like(spread))
        return _weighted([losses[dim] for dim in dims], weights)


def check_dims(dims: Sequence[int], width: int) -> None:
    """Raise ValueError unless every dim is a whole number from 1 to `width`, each once."""
    if not dims or len(set(dims)) != len(dims) or min(dims) < 1 or max(dims) > width:
        raise ValueError(f"dims {list(dims)} must be different numbers from 1 to the embedding width {width}")


def _full(embeddings: Tensor) -> Tensor:
    return embeddings if embeddings.dtype == torch.float64 else embeddings.float()


def _weighted(by_dim: Sequence[Tensor], weights: Sequence[float] | None) -> tuple[Tensor, Tensor]:
    if weights is not None and len(weights) != len(by_dim):
        raise ValueError(f"{len(weights)} weights for {len(by_dim)} dims")
    by_dim_M = torch.stack(list(by_dim))
    if weights is None:
        return by_dim_M.sum(), by_dim_M
    return torch.stack([weight * loss for weight, loss in zip(weights, by_dim, strict=True)]).sum(), by_dim_M
