"""Candidates that the untouched encoder finds nearer to a query than its own positive: probably false negatives.

Positive-aware filtering, as in GISTEmbed (Solatorio 2024, arXiv:2402.16829) and NV-Retriever (Moreira et al. 2024,
arXiv:2407.15831), with the model that training starts from as the guide: its embeddings are computed once.

Shapes: T texts, Q queries, G candidates, E embedding width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from trainer.config import LossConfig
from trainer.model.embedding import embed_cached
from trainer.model.encoder import Encoder
from trainer.model.tokens import TokenTable

OFF = -2.0  # a margin that no two cosines differ by
BAND = 2**24  # cosines that are held at a time, 64 MiB in fp32
MOST = 256  # candidates masked of one query: 2 KiB a query in `BatchLayout.excluded`, however large the batch
ROUNDING = 1e-5  # so that a text of the positive's very tokens counts as near, wherever it stands in a product


@dataclass(frozen=True)
class Guide:
    """Says by the untouched encoder who is probably a false negative for whom."""

    embeddings: Tensor
    """[T, E] of length 1, on the CPU; [2 * T, E] where the encoder has a prompt for each side."""
    margin: float

    @classmethod
    def build(cls, encoder: Encoder, tokens: TokenTable, loss: LossConfig) -> Guide | None:
        """The guide of a run from its encoder before training, cached; None where `loss.guide_margin` is off.

        Collective.
        """
        if loss.guide_margin <= OFF:
            return None
        embeddings = torch.from_numpy(embed_cached(encoder, tokens, "Embedding the training texts"))
        return cls(torch.nn.functional.normalize(embeddings), loss.guide_margin)

    def false_negatives(
        self, queries: np.ndarray, targets: np.ndarray, candidates: np.ndarray, known: sparse.csr_matrix
    ) -> sparse.csr_matrix:
        """[Q, G] bool: who is nearer to each query than its target less the margin, of all text ids [Q], [Q] and [G].

        Args:
            known: [Q, G] bool, the candidates of each query that labels have decided on.
        """
        queries_QE, targets_QE, candidates_GE = (self.embeddings[ids] for ids in (queries, targets, candidates))
        return nearest_above(queries_QE, candidates_GE, (queries_QE * targets_QE).sum(1) - self.margin, known)


def nearest_above(
    queries: Tensor, candidates: Tensor, thresholds: Tensor, known: sparse.csr_matrix, most: int = MOST
) -> sparse.csr_matrix:
    """[Q, G] bool: the candidates whose dot product with a query is above its threshold, or equals it but for rounding.

    Of more than `most` for one query, the nearest; those that tie with the next of them are left out.

    Args:
        queries, candidates: [Q, E] and [G, E].
        thresholds: [Q].
        known: [Q, G] bool, the candidates that never count.
    """
    height, bands = max(BAND // max(len(candidates), 1), 1), []
    for first in range(0, max(len(queries), 1), height):
        q = slice(first, first + height)
        cosines, limits = queries[q] @ candidates.T, thresholds[q] - ROUNDING
        cosines[known[q].nonzero()] = -torch.inf
        above = cosines > limits[:, None]
        if most < len(candidates) and (above.sum(1) > most).any():
            next_nearest = cosines.topk(most + 1, dim=1).values[:, -1]
            above = cosines > torch.maximum(limits, next_nearest)[:, None]
        bands.append(sparse.csr_matrix(above.numpy()))
    return sparse.vstack(bands, "csr")
