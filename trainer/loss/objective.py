"""The training objective of a batch: MNRL over its layout; other direction, ranking, distillation where asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

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


class Objective(nn.Module):
    """Holds the scale, the only thing about the loss that can learn."""

    def __init__(self, config: LossConfig) -> None:
        super().__init__()
        self.config = config
        self.log_scale = nn.Parameter(torch.tensor(math.log(config.scale)), requires_grad=config.learn_scale)

    @property
    def scale(self) -> Tensor | float:
        """The factor on the cosines; at most 100 where it is learned, as in CLIP (Radford et al. 2021)."""
        return self.log_scale.exp().clamp(max=100.0) if self.config.learn_scale else self.config.scale

    def forward(self, rows: Tensor, layout: BatchLayout) -> Loss:
        """This rank's part of the loss, from the embeddings [u, E] of its own texts. Collective."""
        config, weights = self.config, self.config.weights or None
        embeddings = ranks.gather_with_gradient(rows, layout.counts)
        mnrl = partial(
            matryoshka_mnrl,
            dims=config.dims,
            weights=weights,
            scale=self.scale,
            total_queries=max(len(layout.all_queries), 1),
        )
        queries, candidates = embeddings[layout.queries], embeddings[layout.candidates]
        total, by_dim = mnrl(queries, candidates, targets=layout.targets, excluded=layout.excluded)
        if config.symmetric:
            reverse_targets = torch.arange(len(queries), device=rows.device) + layout.first_query
            reverse, reverse_by_dim = mnrl(
                embeddings[layout.own_targets],
                embeddings[layout.all_queries],
                targets=reverse_targets,
                excluded=layout.reverse_excluded,
            )
            total, by_dim = (total + reverse) / 2, (by_dim + reverse_by_dim) / 2
        # Every rank computes the same terms from all pairs: each contributes its share of them.
        first, second = embeddings[layout.pair1], embeddings[layout.pair2]
        dims, terms = config.dims, []
        if config.pair_weight:
            ranking = pairwise_ranking(first, second, layout.pair_labels, dims=dims, weights=weights, scale=self.scale)
            terms.append((config.pair_weight, ranking))
        if config.distillation_weight:
            teacher = layout.pair_teacher / config.teacher_scale
            distillation = margin_mse(first, second, teacher, layout.pair_groups, dims=dims, weights=weights)
            terms.append((config.distillation_weight, distillation))
        for weight, (term, term_by_dim) in terms:
            share = weight / ranks.world_size()
            total, by_dim = total + share * term, by_dim + share * term_by_dim
        return Loss(total, by_dim.detach())
