"""What an error from a library means: a lost peer, memory that ran out, or a full disk."""

from __future__ import annotations

import errno
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


def is_disk_full(error: Exception) -> bool:
    """Whether a file could not be written for want of space or quota. Libraries in Rust say so in the text alone."""
    numbers = (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "errno", None) in numbers or any(f"os error {number})" in str(error) for number in numbers)
