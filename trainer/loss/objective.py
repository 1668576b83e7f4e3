"""The loss of a batch: MNRL over its layout; ranking and distillation where asked for."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from trainer.config import LossConfig
from trainer.data.batch_layout import BatchLayout
from trainer.loss.cosent import pairwise_ranking
from trainer.loss.distillation import margin_mse
from trainer.loss.matryoshka import matryoshka_mnrl
from trainer.system import distributed as ranks


@dataclass(frozen=True)
class Loss:
    """This rank's part of the global loss; the parts of all ranks sum to it."""

    total: Tensor  # scalar
    by_dim: Tensor  # [M] detached, in the order of the config's dims


def batch_loss(config: LossConfig, rows: Tensor, layout: BatchLayout) -> Loss:
    """This rank's part of the loss, from the embeddings [u, E] of its own texts. Collective."""
    dims, weights = config.dims, config.weights or None
    embeddings = ranks.gather_with_gradient(rows, layout.counts)
    total, by_dim = matryoshka_mnrl(
        embeddings[layout.queries],
        embeddings[layout.candidates],
        dims=dims,
        weights=weights,
        scale=config.scale,
        targets=layout.targets,
        excluded=layout.excluded,
        total_queries=max(layout.total_queries, 1),
    )
    # Every rank computes the same terms from all pairs: each contributes its share of them.
    first, second = embeddings[layout.pair1], embeddings[layout.pair2]
    terms = []
    if config.pair_weight:
        ranking = pairwise_ranking(first, second, layout.pair_labels, dims=dims, weights=weights, scale=config.scale)
        terms.append((config.pair_weight, ranking))
    if config.distillation_weight:
        distillation = margin_mse(first, second, layout.pair_teacher, layout.pair_groups, dims=dims, weights=weights)
        terms.append((config.distillation_weight, distillation))
    for weight, (term, term_by_dim) in terms:
        share = weight / ranks.world_size()
        total, by_dim = total + share * term, by_dim + share * term_by_dim
    return Loss(total, by_dim.detach())
