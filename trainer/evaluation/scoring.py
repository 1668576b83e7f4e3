"""Judging an encoder on held-out pairs, at every Matryoshka dim."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np

from trainer.data.pairs import PairTable
from trainer.errors import NumericError
from trainer.evaluation.pair_metrics import pair_metrics, prefix_cosines
from trainer.model.embedding import embed, tokenize_sides
from trainer.model.encoder import Encoder
from trainer.model.tokens import TokenTable

Metrics = dict[str, dict[str, float]]
"""Dim (as a string, as JSON has it) -> metric -> value."""


@dataclass(frozen=True)
class PairSet:
    """Held-out pairs with their tokens."""

    table: PairTable
    tokens: TokenTable

    @classmethod
    def build(cls, table: PairTable, encoder: Encoder) -> PairSet:
        """Tokenise the unique texts of a table for an encoder."""
        return cls(table, tokenize_sides(encoder, table.texts))


def sides(embeddings: np.ndarray, table: PairTable) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings [T, E] of a table's texts as first and as second texts of a pair.

    Args:
        embeddings: [T, E] where the model treats both sides alike; [2 * T, E] where each has a prompt of its own, all
            texts as first ones before all as second ones (`tokenize_sides`).
    """
    count = len(table.texts)
    assert len(embeddings) in (count, 2 * count)
    return embeddings[:count], embeddings[-count:]


def pair_cosines(embeddings: np.ndarray, table: PairTable, dims: tuple[int, ...]) -> np.ndarray:
    """Cosine similarities [M, N] of a table's pairs at every dim.

    Args:
        embeddings: [T, E] or [2 * T, E], as `sides` takes them.

    Raises:
        NumericError: an embedding is NaN or Inf.
    """
    broken = ~np.isfinite(embeddings).all(axis=1)
    if broken.any():
        text = int(np.flatnonzero(broken)[0])
        raise NumericError(f"{table.source}: {broken.sum()} embeddings are not finite, first that of text {text}")
    first, second = sides(embeddings, table)
    return prefix_cosines(first[table.text1], second[table.text2], dims)


def evaluate(
    encoder: Encoder,
    pairs: PairSet,
    dims: tuple[int, ...],
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Metrics:
    """All pair metrics at every dim. Each dim's threshold is fitted on these very pairs.

    Raises:
        NumericError: an embedding is NaN or Inf.
    """
    cosines = pair_cosines(embed(encoder, pairs.tokens, autocast, "Evaluating"), pairs.table, dims)
    table = pairs.table
    return {str(dim): pair_metrics(scores, table.score, table.label) for dim, scores in zip(dims, cosines, strict=True)}


def metrics_at(cosines: np.ndarray, table: PairTable, thresholds: Mapping[str, float]) -> Metrics:
    """All pair metrics of cosines [M, N], dim by dim as in `thresholds`, which were fitted elsewhere."""
    return {
        dim: pair_metrics(scores, table.score, table.label, threshold)
        for (dim, threshold), scores in zip(thresholds.items(), cosines, strict=True)
    }
