"""What a RuntimeError from a library means: a lost peer, or memory that ran out."""

from __future__ import annotations

import os


def is_peer_lost(error: Exception) -> bool:
    """Whether a collective operation failed for want of its other ranks."""
    from torch.distributed import DistError

    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return several and (isinstance(error, DistError) or "gloo" in str(error))


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed, on a GPU or on the CPU."""
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, MemoryError) or should_reduce_batch_size(error)
