"""The seconds and bytes that something takes, and processes of its own for it."""

from __future__ import annotations

import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

Key = TypeVar("Key")


@contextmanager
def clocked() -> Iterator[dict[str, float]]:
    """Yield what will hold the `seconds` of the block, the GPU's work included, and `cpu_seconds` of all threads."""
    took: dict[str, float] = {}
    clock, processor = time.perf_counter(), time.process_time()
    yield took
    wait_for_gpu()
    took |= {"seconds": time.perf_counter() - clock, "cpu_seconds": time.process_time() - processor}


def wait_for_gpu() -> None:
    """Return when the GPU has done all it was given, where there is one."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextmanager
def watched(owner: Any, function: str, note: Callable[..., None]) -> Iterator[None]:
    """Within the block, pass what each call of a function took, and its arguments, on to `note`."""
    real = getattr(owner, function)

    def call(*args: Any, **kwargs: Any) -> Any:
        with clocked() as took:
            result = real(*args, **kwargs)
        note(took, *args)
        return result

    with patch.object(owner, function, call):
        yield


@contextmanager
def summed(owner: Any, function: str, name: str, spent: dict[str, float]) -> Iterator[None]:
    """Within the block, add the seconds of every call of a function to `spent`."""

    def note(took: dict[str, float], *_: Any) -> None:
        spent[name] = spent.get(name, 0.0) + took["seconds"]

    with watched(owner, function, note):
        yield


@contextmanager
def extra_memory() -> Iterator[dict[str, int]]:
    """Yield what will hold `bytes`: the most that the block used beyond what was in use, on the GPU or (Linux) here."""
    import torch

    cuda, found = torch.cuda.is_available(), dict[str, int]()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = torch.cuda.memory_allocated() if cuda else _resident("VmRSS")
    yield found
    found["bytes"] = (torch.cuda.max_memory_allocated() if cuda else _resident("VmHWM")) - before


def _resident(name: str) -> int:
    """A size in bytes from /proc/self/status: VmRSS now, VmHWM its peak."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of a module returns in a process that has done nothing else."""
    return in_new_processes(function, [arguments])[0]


def in_new_processes(function: Callable[..., Any], arguments: list[tuple[Any, ...]]) -> list[Any]:
    """Likewise in several at once, one for each tuple of arguments."""
    with ProcessPoolExecutor(len(arguments), multiprocessing.get_context("spawn"), _end_with_parent) as pool:
        return list(pool.map(function, *zip(*arguments, strict=True)))


def each_in_new_process(
    function: Callable[..., Any], arguments: Mapping[Key, tuple[Any, ...]], at_once: int = 1
) -> Iterator[tuple[Key, Future[Any]]]:
    """Call a function with each of the arguments in a process that has done nothing else, so many at a time.

    Yields their keys as they end, each with the future that has what the call returned, or raises what it raised.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(at_once, context, _end_with_parent, max_tasks_per_child=1) as pool:
        keys = {pool.submit(function, *of_key): key for key, of_key in arguments.items()}
        try:
            for future in as_completed(keys):
                yield keys[future], future
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # nothing is begun that nobody waits for


def _end_with_parent() -> None:
    """End this process when its parent does: a training of half an hour would go on for nobody."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def rank_variables(world_size: int) -> list[dict[str, str]]:
    """The environment that makes each of some processes on this machine a rank of one run on the CPU."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    group = {"WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    group |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": max((os.cpu_count() or 1) // world_size, 1)}
    return [
        {key: str(value) for key, value in {**group, "RANK": rank, "LOCAL_RANK": rank}.items()}
        for rank in range(world_size)
    ]
