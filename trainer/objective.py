"""The training objective of a batch: MNRL over its layout, the other direction and the ranking term where asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from trainer import distributed as ranks
from trainer.config import LossConfig
from trainer.layout import BatchLayout
from trainer.loss import matryoshka_mnrl, pair_logits, ranking_of


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
        ring = config.exchange == "ring"
        view = RingView(rows, layout.counts) if ring else GatheredView(rows, layout.counts)
        mnrl = partial(
            matryoshka_mnrl,
            dims=config.dims,
            weights=weights,
            scale=self.scale,
            total_queries=max(len(layout.all_queries), 1),
            implementation=config.implementation,
        )
        queries = view.own(layout.queries)
        total, by_dim = mnrl(
            queries, **view.others(layout.candidates), targets=layout.targets, excluded=layout.excluded
        )
        if config.symmetric:
            own = torch.arange(len(queries), device=rows.device) + layout.first_query
            reverse, reverse_by_dim = mnrl(
                view.own(layout.own_targets),
                **view.others(layout.all_queries),
                targets=own,
                excluded=layout.reverse_excluded,
            )
            total, by_dim = (total + reverse) / 2, (by_dim + reverse_by_dim) / 2
        if config.pair_weight:
            logits = view.pair_logits(layout, dims=config.dims, scale=self.scale)
            # Every rank computes the same term from all pairs: each contributes its share of it.
            term, term_by_dim = ranking_of(logits, layout.pair_labels, weights)
            share = config.pair_weight / ranks.world_size()
            total, by_dim = total + share * term, by_dim + share * term_by_dim
        return Loss(total, by_dim.detach())


class GatheredView:
    """Every rank has the embeddings of all: one gathered tensor for all dims and terms."""

    def __init__(self, rows: Tensor, counts: Sequence[int]) -> None:
        self.embeddings = ranks.gather_with_gradient(rows, counts)

    def own(self, positions: Tensor) -> Tensor:
        """This rank's rows at positions among all."""
        return self.embeddings[positions]

    def others(self, positions: Tensor) -> dict[str, Any]:
        """Candidates for `matryoshka_mnrl`."""
        return {"candidates": self.embeddings[positions]}

    def pair_logits(self, layout: BatchLayout, **options: Any) -> Tensor:
        """Of all labelled pairs [P, M]."""
        return pair_logits(self.embeddings[layout.pair1], self.embeddings[layout.pair2], **options)


class RingView:
    """Every rank has its own embeddings; candidates go round, and of the pairs only their logits are gathered."""

    def __init__(self, rows: Tensor, counts: Sequence[int]) -> None:
        self.rows, self.ends = rows, list(accumulate(counts))
        self.start = self.ends[ranks.rank()] - len(rows)

    def own(self, positions: Tensor) -> Tensor:
        """This rank's rows at positions among all."""
        return self.rows[positions - self.start]

    def others(self, positions: Tensor) -> dict[str, Any]:
        """Candidates for `matryoshka_mnrl`: this rank's, and which of all each rank has."""
        owners = torch.bucketize(positions, torch.tensor(self.ends, device=positions.device), right=True)
        columns = [(owners == owner).nonzero().squeeze(1) for owner in range(len(self.ends))]
        return {"candidates": self.own(positions[columns[ranks.rank()]]), "columns": columns}

    def pair_logits(self, layout: BatchLayout, **options: Any) -> Tensor:
        """Of all labelled pairs [P, M]."""
        first = sum(layout.pairs[: ranks.rank()])
        mine = slice(first, first + layout.pairs[ranks.rank()])
        logits = pair_logits(self.own(layout.pair1[mine]), self.own(layout.pair2[mine]), **options)
        return ranks.gather_with_gradient(logits, layout.pairs)
