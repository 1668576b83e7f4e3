"""What a rank needs for a step, ahead of it: its part of the batch, laid out and cut into chunks of tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.data.batch_layout import BatchLayout
from trainer.model.packing import TokenBatch, waste
from trainer.model.tokens import TokenTable
from trainer.system.distributed import rank


@dataclass(frozen=True)
class Prepared:
    """A step's input, made while the step before it runs."""

    layout: BatchLayout
    chunks: list[TokenBatch]
    positions: list[Tensor]  # of each chunk's texts among the rank's
    tokens: int  # that the rank encodes
    waste: float  # share of its attention that is padding

    def known(self) -> dict[str, float]:
        """What the log says of this rank's part: padding, and probable false negatives of a query, on average."""
        false_negatives = self.layout.false_negatives / max(len(self.layout.queries), 1)
        return {"waste": self.waste, "false_negatives": false_negatives}


def collate(layout: BatchLayout, tokens: TokenTable, tokens_per_chunk: int, in_groups: bool) -> Prepared:
    """This rank's part of a batch as chunks of at most so many tokens, on the CPU; with 0 as one chunk.

    Args:
        in_groups: whether attention runs in groups of sequences, which pad; the GPU kernel does not.
    """
    texts = layout.texts[rank()]
    positions = tokens.chunks(texts, tokens_per_chunk)
    chunks = [tokens.batch(texts[where]) for where in positions]
    return Prepared(
        layout,
        chunks,
        [torch.from_numpy(where) for where in positions],
        tokens=sum(chunk.token_count for chunk in chunks),
        waste=waste(chunks) if in_groups else 0.0,
    )
