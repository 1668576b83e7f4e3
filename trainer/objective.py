"""The training objective of a batch: MNRL over its layout, the other direction and the ranking term where asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from trainer.config import LossConfig
from trainer.layout import BatchLayout
from trainer.loss import matryoshka_mnrl, pairwise_ranking


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

    def forward(self, embeddings: Tensor, layout: BatchLayout, world_size: int = 1) -> Loss:
        """This rank's part of the loss, from the gathered embeddings [U, E] of all ranks."""
        config = self.config
        weights = config.weights or None
        mnrl = partial(matryoshka_mnrl, dims=config.dims, weights=weights, scale=self.scale)
        ranking = partial(pairwise_ranking, dims=config.dims, weights=weights, scale=self.scale)
        queries, candidates = embeddings[layout.queries], embeddings[layout.candidates]
        every_query = max(len(layout.all_queries), 1)
        total, by_dim = mnrl(queries, candidates, targets=layout.targets, mask=layout.mask, total_queries=every_query)
        if config.symmetric:
            own = torch.arange(len(layout.queries), device=embeddings.device) + layout.first_query
            reverse, reverse_by_dim = mnrl(
                candidates[layout.targets],
                embeddings[layout.all_queries],
                targets=own,
                mask=layout.reverse_mask,
                total_queries=every_query,
            )
            total, by_dim = (total + reverse) / 2, (by_dim + reverse_by_dim) / 2
        if config.pair_weight:
            # Every rank sees all pairs and computes the same term: each contributes its share of it.
            term, term_by_dim = ranking(embeddings[layout.pair1], embeddings[layout.pair2], layout.pair_labels)
            share = config.pair_weight / world_size
            total, by_dim = total + share * term, by_dim + share * term_by_dim
        return Loss(total, by_dim.detach())
