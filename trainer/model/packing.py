"""A batch without padding: one flat run of T tokens, sequences laid end to end, longest first.

Embeddings, projections, feed-forward and norms never look across tokens, so they run on the flat run as it is
(`forward`). On the CPU attention runs over groups of sequences of near-equal length, padded to the longest of their
group, so padding costs a little attention and nothing else; on a GPU a kernel walks blocks of rows without any.

Shapes: T tokens, N sequences, n sequences of a group, L its padded length, NB blocks of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# A group holds sequences at least this share as long as its longest. Lower means fewer, larger calls and more padding.
# From 0.6 to 1 an attention call of real tickets took the same time within its noise (2 cores).
GROUP_TOLERANCE = 0.8
BLOCK = 64  # rows of a sequence, of which a program of the GPU kernel owns all or a part


@dataclass(frozen=True)
class Group:
    """Neighbouring sequences that share one attention call."""

    start: int  # first token of the group in the flat run
    stop: int
    count: int  # n
    length: int  # L
    # For sequences of unequal length only: where each token of the flat run stands in the padded [n * L], and [n, L]
    # marks of what is real there.
    slots: Tensor | None = None
    real: Tensor | None = None


@dataclass(frozen=True)
class TokenBatch:
    """N sequences as one run of T tokens, longest first; `order` remembers how they came."""

    input_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64, from 0 within each sequence
    segments: Tensor  # [T] int64, which sequence of the run a token belongs to
    lengths: Tensor  # [N] int64, descending
    order: Tensor  # [N] int64: sequence i as given is sequence order[i] of the run
    groups: tuple[Group, ...]  # for the CPU
    blocks: Tensor  # [NB, 3] int32, for the GPU: first token of the sequence, its length, first row of a block of rows
    max_length: int

    @property
    def token_count(self) -> int:
        """T."""
        return self.input_ids.shape[0]


def waste(batches: Sequence[TokenBatch]) -> float:
    """Share of the attention scores of batches that is padding, where attention runs in groups."""
    padded = sum(group.count * group.length**2 for batch in batches for group in batch.groups)
    return 1 - sum(float(batch.lengths.square().sum()) for batch in batches) / padded


def pack(ids: np.ndarray, lengths: np.ndarray) -> TokenBatch:
    """Lay sequences end to end, longest first.

    Args:
        ids: [T] the tokens of all sequences in the order given, end to end.
        lengths: [N] tokens in each, at least 1.
    """
    descending = np.argsort(-lengths, kind="stable")
    starts = np.cumsum(lengths) - lengths
    sorted_lengths = lengths[descending]
    positions = ragged_arange(sorted_lengths)
    segments = np.repeat(np.arange(len(lengths)), sorted_lengths)
    order = np.empty_like(descending)
    order[descending] = np.arange(len(lengths))
    counts = -(-sorted_lengths // BLOCK)
    begins = np.cumsum(sorted_lengths) - sorted_lengths
    blocks = [np.repeat(begins, counts), np.repeat(sorted_lengths, counts), ragged_arange(counts) * BLOCK]
    return TokenBatch(
        input_ids=torch.from_numpy(ids[starts[descending][segments] + positions].astype(np.int64)),
        positions=torch.from_numpy(positions),
        segments=torch.from_numpy(segments),
        lengths=torch.from_numpy(sorted_lengths.astype(np.int64)),
        order=torch.from_numpy(order),
        groups=tuple(group_by_length(sorted_lengths)),
        blocks=torch.from_numpy(np.stack(blocks, axis=1).astype(np.int32)),
        max_length=int(sorted_lengths[0]),
    )


def ragged_arange(lengths: np.ndarray) -> np.ndarray:
    """0..l-1 for every l of [N], end to end: int64 [sum of lengths]."""
    lengths = lengths.astype(np.int64)
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def group_by_length(lengths: np.ndarray) -> list[Group]:
    """Cut descending lengths [N] into groups within GROUP_TOLERANCE of their longest."""
    groups = []
    first = token = 0
    while first < len(lengths):
        length = int(lengths[first])
        # Descending, so the group ends at the first sequence that is too short.
        last = int(np.searchsorted(-lengths, -GROUP_TOLERANCE * length, side="right"))
        members = lengths[first:last]
        stop = token + int(members.sum())
        if members[-1] == length:
            groups.append(Group(token, stop, len(members), length))
        else:
            real = np.arange(length)[None, :] < members[:, None]
            slots = torch.from_numpy(np.flatnonzero(real))
            groups.append(Group(token, stop, len(members), length, slots, torch.from_numpy(real)))
        first, token = last, stop
    return groups
