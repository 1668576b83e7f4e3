"""Multiple-negatives ranking at every Matryoshka dim, on unnormalised embeddings.

Shapes: Q queries, G candidates, E embedding width, M dims.

The dot product of the first d columns of two embeddings is part of the dot product of the first d' > d columns. So
one E-wide product, taken block by block in ascending dims, passes through the dot products of every dim on its way:
E multiply-adds a pair instead of the sum of the dims (1728 for 768 + 512 + 256 + 128 + 64). Dividing by the outer
product of the prefix norms makes them cosines; the embeddings themselves are never normalised. `tiled.py` does that
tile by tile, so that no Q x G matrix is ever held.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.loss.tiled import LossWithGradients, Task


def matryoshka_mnrl(
    queries: Tensor,
    candidates: Tensor,
    *,
    dims: Sequence[int],
    weights: Sequence[float] | None = None,
    scale: float = 20.0,
    targets: Tensor | None = None,
    excluded: Tensor | None = None,
    total_queries: int | None = None,
    tile: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each query's positive among all candidates, summed over dims.

    Multiple-negatives ranking (Henderson et al. 2017, arXiv:1705.00652) under Matryoshka representation learning
    (Kusupati et al. 2022, arXiv:2205.13147). Computed in fp32 (float64 for float64 input), also under autocast. However
    long or short an embedding is, its cosines are exact; a zero vector has cosine 0 with everything and gets no
    gradient.

    >>> queries = torch.eye(3).requires_grad_()
    >>> total, by_dim = matryoshka_mnrl(queries, torch.eye(3), dims=(3, 2), scale=2.0)
    >>> total.backward()
    >>> round(total.item(), 2), by_dim.shape, queries.grad.shape
    (0.77, torch.Size([2]), torch.Size([3, 3]))

    Args:
        queries: [Q, E], not normalised.
        candidates: [G, E], not normalised.
        dims: prefix lengths in any order, each once, from 1 to E.
        weights: one a dim, in the order of `dims`; 1 each by default.
        scale: factor on the cosines (1 / temperature).
        targets: [Q], the candidate that is each query's positive; 0..Q-1 by default.
        excluded: [Q, K], the candidates that are no candidates of each query; -1 fills the rows of queries that have
            fewer. A query's own target stays in.
        total_queries: what the sum over queries is divided by, Q by default: the number of queries on all devices
            where each holds a part.
        tile: queries and candidates that are taken at a time; by default as many as it is fast with.

    Returns:
        The weighted total, a scalar, and the loss of each dim [M] in the order of `dims`; gradients run through the
        total alone.

    Raises:
        ValueError: dims, weights, targets, excluded and embeddings do not fit each other.
    """
    count = len(queries)
    if targets is None:
        if len(candidates) < count:
            raise ValueError(f"{len(candidates)} candidates for {count} queries: name the targets")
        targets = torch.arange(count, device=queries.device)
    check_dims(dims, queries.shape[-1])
    if queries.shape[-1] != candidates.shape[-1]:
        raise ValueError(f"queries are {queries.shape[-1]} wide, candidates {candidates.shape[-1]}")
    if targets.shape != (count,):
        raise ValueError(f"targets has shape {tuple(targets.shape)}, not ({count},)")
    if excluded is not None and (excluded.ndim != 2 or len(excluded) != count or excluded.dtype != torch.int64):
        raise ValueError(f"excluded is {excluded.dtype} of shape {tuple(excluded.shape)}, not int64 of ({count}, any)")
    by_dim = dict(zip(dims, weights_of(weights, len(dims)), strict=True))
    ascending = sorted(dims)
    total_queries = count if total_queries is None else total_queries
    with torch.autocast(queries.device.type, enabled=False):
        queries, candidates = full_precision(queries), full_precision(candidates)
        ordered = [by_dim[dim] for dim in ascending]
        wanted = torch.is_grad_enabled() and (queries.requires_grad or candidates.requires_grad)
        task = Task(targets, excluded, ascending, ordered, scale, total_queries, wanted, tile)
        total, losses_M = LossWithGradients.apply(task, queries, candidates)
    return total, torch.stack([losses_M.detach()[ascending.index(dim)] for dim in dims])


def check_dims(dims: Sequence[int], width: int) -> None:
    """Raise ValueError unless every dim is a whole number from 1 to `width`, each once."""
    if not dims or len(set(dims)) != len(dims) or min(dims) < 1 or max(dims) > width:
        raise ValueError(f"dims {list(dims)} must be different numbers from 1 to the embedding width {width}")


def full_precision(embeddings: Tensor) -> Tensor:
    """Embeddings as the losses take them: float64 stays, everything else becomes fp32."""
    return embeddings if embeddings.dtype == torch.float64 else embeddings.float()


def weights_of(weights: Sequence[float] | None, count: int) -> Sequence[float]:
    """A weight for each of so many dims: those given, or 1 each. Raises ValueError where they are not as many."""
    weights = [1.0] * count if weights is None else weights
    if len(weights) != count:
        raise ValueError(f"{len(weights)} weights for {count} dims")
    return weights
