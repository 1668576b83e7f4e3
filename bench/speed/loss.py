"""The Matryoshka loss, forward and backward: ours beside the plain definition, one normalised product a dim.

Time: both in one process, in turns, as torch and malloc come by default. Memory: each in a process of its own, the peak
over what is held just before the loss; gradients count, embeddings do not. One batch too large for the plain definition
can be taken by ours alone. On a GPU the plain definition is compiled, and there is the share of the measured
matrix-product peak: of 6 Q G E operations, one E-wide product forward and two backward. Logits that backward computes
again count for nothing.

    python -m bench.speed.loss
    python -m bench.speed.loss --large 131072
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.records import RESULTS, environment, save_record
from bench.speed.throughput import matmul_peak
from trainer.loss.matryoshka import matryoshka_mnrl
from trainer.system.console import console

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


KINDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"plain": plain, "ours": ours}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def embeddings(size: int) -> tuple[Tensor, Tensor]:
    """Random queries and candidates [size, 768] that want gradients: bf16 on a GPU, fp32 elsewhere."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
    first, second = (torch.randn(size, DIMS[0], device=DEVICE, dtype=dtype) for _ in range(2))
    return first.requires_grad_(), second.requires_grad_()


def step(kind: str, rows: tuple[Tensor, Tensor]) -> float:
    """Seconds of one forward and backward."""
    start = time.perf_counter()
    torch.autograd.grad(KINDS[kind](*rows), rows)
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
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


def in_child(kind: str, size: int) -> dict[str, float]:
    """Extra bytes and seconds of one forward and backward in a fresh process."""
    command = [sys.executable, "-m", "bench.speed.loss", "--child", kind, "--sizes", str(size)]
    return dict(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def child(kind: str, size: int) -> None:
    """What `in_child` starts."""
    step(kind, embeddings(64))  # libraries are loaded and threads are there
    rows = embeddings(size)
    if DEVICE.type == "cuda":
        step(kind, rows)  # kernels are compiled and chosen
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        seconds = step(kind, rows)
        extra = torch.cuda.max_memory_allocated() - before
    else:
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
        seconds = step(kind, rows)
        extra = resident("VmHWM") - before
    print(json.dumps({"bytes": extra, "seconds": seconds}))


def resident(name: str) -> int:
    """A size in bytes from /proc/self/status (Linux): VmRSS now, VmHWM its peak."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def large(size: int) -> dict[str, Any]:
    """Ours alone at a size that is too large for the plain definition."""
    found = {"size": size, **in_child("ours", size)}
    if DEVICE.type == "cuda":
        found["share_of_peak"] = 6 * size**2 * DIMS[0] / found["seconds"] / matmul_peak("bf16", DEVICE)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 1024, 4096], help="batch sizes to time")
    parser.add_argument("--memory-size", type=int, default=16384, help="batch size to take the memory of")
    parser.add_argument("--large", type=int, default=0, help="take ours alone, at this batch size, and nothing else")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--name", default="loss", help="name of the record")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the record")
    parser.add_argument("--child", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if DEVICE.type == "cuda":
        KINDS["plain"] = torch.compile(plain)
    if options.child:
        child(options.child, options.sizes[0])
        return
    if options.large:
        record = {"environment": environment(), "dims": DIMS, **large(options.large)}
        console.print(f"loss B = {options.large}: {record['seconds']:.0f} s, {record['bytes'] / 2**20:,.0f} MiB extra")
        console.print(f"Record: {save_record(f'{options.name}_large', record, options.results)}", markup=False)
        return
    times = [time_both(size, options.repeats) for size in options.sizes]
    for found in times:
        console.print(f"loss B = {found['size']}: {found['ratio']:.2f} x the time of the plain definition")
    peaks = {kind: in_child(kind, options.memory_size)["bytes"] for kind in KINDS}
    memory = {"size": options.memory_size, "bytes": peaks, "ratio": peaks["ours"] / peaks["plain"]}
    megabytes = {kind: round(value / 2**20) for kind, value in peaks.items()}
    console.print(f"B = {options.memory_size}: extra memory in MiB {megabytes}, ratio {memory['ratio']:.3f}")
    record = {"environment": environment(), "dims": DIMS, "time": times, "memory": memory}
    console.print(f"Record: {save_record(options.name, record, options.results)}", markup=False)


if __name__ == "__main__":
    main()
