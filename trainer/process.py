"""Settings of the whole process that training on the CPU wants."""

from __future__ import annotations

import ctypes
import os
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def tune_process() -> None:
    """Choose how threads wait, and keep freed memory for the next step. Call before torch is first imported."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # OpenMP's threads wait for each other by spinning: 5 % faster than sleeping where the cores are free, but beside
    # one busy process it took the quickstart from 18 s to over 5 minutes.
    if os.getloadavg()[0] > 0.5 * (os.cpu_count() or 1):
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if platform.libc_ver()[0] == "glibc":
        # Large tensors come from mmap and go back to the system when freed: every step faulted in over 200,000 pages
        # again, 6 % of its processor time. From the heap, untrimmed, a step faults in next to none.
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)
