"""Judging an encoder on held-out pairs, at every Matryoshka dim."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np

from trainer.data.pairs import PairTable
from trainer.data.split import has_both_labels
from trainer.errors import InputError, NumericError
from trainer.evaluation.pair_metrics import Metrics, pair_metrics, prefix_cosines
from trainer.evaluation.search_set import SearchedTexts
from trainer.model.embedding import embed, sides, tokenize_sides
from trainer.model.encoder import Encoder
from trainer.model.tokens import TokenTable


@dataclass(frozen=True)
class PairSet:
    """Held-out pairs with their tokens."""

    table: PairTable
    tokens: TokenTable
    searched: SearchedTexts | None
    """What `evaluate` searches among, where it does: the texts of the table."""

    @classmethod
    def build(cls, table: PairTable, encoder: Encoder, searched: bool = False) -> PairSet:
        """Tokenise the unique texts of a table for an encoder.

        Args:
            searched: whether `evaluate` searches among them; where the pairs are positives alone it always does.
        """
        texts = SearchedTexts.of_pairs(table) if searched or table.label.all() else None
        return cls(table, tokenize_sides(encoder, table.texts), texts)


def pair_cosines(embeddings: np.ndarray, table: PairTable, dims: tuple[int, ...]) -> np.ndarray:
    """Cosine similarities [M, N] of a table's pairs at every dim.

    Args:
        embeddings: [T, E] of its texts, or [2 * T, E] where sides differ (`tokenize_sides`).

    Raises:
        NumericError: an embedding is NaN or Inf.
    """
    require_finite(embeddings, table)
    first, second = sides(embeddings, len(table.texts))
    return prefix_cosines(first[table.text1], second[table.text2], dims)


def require_finite(embeddings: np.ndarray, table: PairTable) -> None:
    """Raise NumericError where an embedding of a table's texts is NaN or Inf."""
    broken = ~np.isfinite(embeddings).all(axis=1)
    if broken.any():
        text = int(np.flatnonzero(broken)[0])
        raise NumericError(f"{table.source}: {broken.sum()} embeddings are not finite, first that of text {text}")


def evaluate(
    encoder: Encoder,
    pairs: PairSet,
    dims: tuple[int, ...],
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Metrics:
    """`evaluate_embeddings` of an encoder's embeddings. Collective. Raises as that does."""
    return evaluate_embeddings(embed(encoder, pairs.tokens, autocast, "Evaluating"), pairs, dims)


def evaluate_embeddings(embeddings: np.ndarray, pairs: PairSet, dims: tuple[int, ...]) -> Metrics:
    """All pair metrics at every dim, and the search metrics where `pairs.searched` says so. Collective.

    Each dim's threshold is fitted on these very pairs. Positives alone have search metrics alone.

    Args:
        embeddings: of the texts, as `pair_cosines` takes them; the same on all ranks.

    Raises:
        NumericError: an embedding is NaN or Inf.
    """
    table = pairs.table
    metrics: Metrics = {str(dim): {} for dim in dims}
    if has_both_labels(table):
        for dim, scores in zip(dims, pair_cosines(embeddings, table, dims), strict=True):
            metrics[str(dim)] |= pair_metrics(scores, table.score, table.label)
    return metrics if pairs.searched is None else pairs.searched.add_to(metrics, embeddings)


def metrics_at(cosines: np.ndarray, table: PairTable, thresholds: Mapping[str, float]) -> Metrics:
    """All pair metrics of cosines [M, N], dim by dim as in `thresholds`, which were fitted elsewhere."""
    return {
        dim: pair_metrics(scores, table.score, table.label, threshold)
        for (dim, threshold), scores in zip(thresholds.items(), cosines, strict=True)
    }


def common_dims(dims: tuple[int, ...], encoders: Iterable[Encoder]) -> tuple[int, ...]:
    """The dims asked for, else the common one of those who name none. Raises InputError where they do not fit all."""
    encoders = list(encoders)
    narrowest = min(encoders, key=lambda encoder: encoder.width)
    usual = {encoder.usual_dim for encoder in encoders}
    if not dims and len(usual) > 1:
        widths = ", ".join(f"{encoder.spec.name} is {encoder.usual_dim} wide" for encoder in encoders)
        raise InputError(f"{widths}: name dims that fit both, such as --dims {min(usual)}")
    if dims and max(dims) > narrowest.width:
        raise InputError(
            f"--dims {max(dims)}: {narrowest.spec.name} is {narrowest.width} wide; use dims up to {narrowest.width}"
        )
    return dims or (min(usual),)
