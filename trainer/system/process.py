"""Settings of the whole process that training on the CPU wants."""

from __future__ import annotations

import ctypes
import os
import platform

# Of glibc's malloc.h, and what malloc starts with.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
DEFAULT_TRIM_THRESHOLD, DEFAULT_MMAP_MAX = 128 * 1024, 65536


def tune_process() -> None:
    """Choose how threads wait, and keep freed memory for the next step. Call before torch is first imported."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # OpenMP's threads wait for each other by spinning: 5 % faster than sleeping where the cores are free, but beside
    # one busy process it took the quickstart from 18 s to over 5 minutes.
    if os.getloadavg()[0] > 0.5 * (os.cpu_count() or 1):
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_freed_memory(True)


def keep_freed_memory(keep: bool) -> None:
    """Whether malloc keeps what large tensors free, or gives it back to the system as it does by default.

    Given back, every step of training faulted in over 200,000 pages again, 6 % of its processor time; kept, next to
    none.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0 if keep else DEFAULT_MMAP_MAX)
        libc.mallopt(M_TRIM_THRESHOLD, -1 if keep else DEFAULT_TRIM_THRESHOLD)
        if not keep:
            libc.malloc_trim(ctypes.c_size_t(0))
