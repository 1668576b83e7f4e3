"""The Matryoshka loss, forward and backward: ours beside the plain definition, one normalised product a dim.

Time: both in one process, in turns. Memory: each in a process of its own, the peak of its resident size over the
size just before the loss. Writes bench/results/loss.json.

    python bench/loss.py
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from records import environment, save_record
from torch import Tensor

from trainer.console import console
from trainer.loss import matryoshka_mnrl

DIMS = (768, 512, 256, 128, 64)


def plain(queries: Tensor, candidates: Tensor) -> Tensor:
    """The definition, as libraries write it: normalise and multiply anew for every dim."""
    targets = torch.arange(len(queries), device=queries.device)
    losses = []
    for dim in DIMS:
        logits = 20.0 * F.normalize(queries[:, :dim], dim=1) @ F.normalize(candidates[:, :dim], dim=1).T
        losses.append(F.cross_entropy(logits, targets))
    return torch.stack(losses).sum()


def ours(queries: Tensor, candidates: Tensor) -> Tensor:
    """This project's loss."""
    return matryoshka_mnrl(queries, candidates, dims=DIMS)[0]


KINDS = {"plain": plain, "ours": ours}


def embeddings(size: int) -> tuple[Tensor, Tensor]:
    """Random queries and candidates [size, 768] that want gradients."""
    torch.manual_seed(0)
    return torch.randn(size, DIMS[0], requires_grad=True), torch.randn(size, DIMS[0], requires_grad=True)


def step(kind: str, rows: tuple[Tensor, Tensor]) -> float:
    """Seconds of one forward and backward."""
    start = time.perf_counter()
    torch.autograd.grad(KINDS[kind](*rows), rows)
    return time.perf_counter() - start


def time_both(size: int, repeats: int) -> dict[str, Any]:
    """Samples of both kinds, in turns, and the median of their ratios."""
    rows = embeddings(size)
    for kind in KINDS:
        step(kind, rows)
    samples: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(repeats):
        for kind in KINDS:
            samples[kind].append(step(kind, rows))
    ratios = [mine / theirs for mine, theirs in zip(samples["ours"], samples["plain"], strict=True)]
    return {"size": size, "seconds": samples, "ratios": ratios, "ratio": statistics.median(ratios)}


def peak_bytes(kind: str, size: int) -> int:
    """Extra resident bytes of one forward and backward, gradients included, in a fresh process."""
    command = [sys.executable, __file__, "--child", kind, "--sizes", str(size)]
    return int(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["bytes"])


def child(kind: str, size: int) -> None:
    """What `peak_bytes` starts."""
    step(kind, embeddings(64))  # libraries are loaded and threads are there
    rows = embeddings(size)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    step(kind, rows)
    print(json.dumps({"bytes": resident("VmHWM") - before}))


def resident(name: str) -> int:
    """A size in bytes from /proc/self/status (Linux): VmRSS now, VmHWM its peak."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 1024, 4096], help="batch sizes to time")
    parser.add_argument("--memory-size", type=int, default=8192, help="batch size to take the memory of")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--child", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.sizes[0])
        return
    record: dict[str, Any] = {"environment": environment(), "dims": DIMS, "time": [], "memory": {}}
    for size in options.sizes:
        record["time"].append(time_both(size, options.repeats))
        console.print(f"B = {size}: {record['time'][-1]['ratio']:.2f} x the time of the plain definition")
    peaks = {kind: peak_bytes(kind, options.memory_size) for kind in KINDS}
    record["memory"] = {"size": options.memory_size, "bytes": peaks, "ratio": peaks["ours"] / peaks["plain"]}
    megabytes = {kind: value // 2**20 for kind, value in peaks.items()}
    console.print(f"B = {options.memory_size}: extra memory in MiB {megabytes}, ratio {record['memory']['ratio']:.3f}")
    console.print(f"Record: {save_record('loss', record)}", markup=False)


if __name__ == "__main__":
    main()
