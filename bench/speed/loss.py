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

import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.measuring import clocked, extra_memory, in_new_process
from bench.records import finish, make_parser
from bench.speed.flops import matmul_peak
from bench.workload import MPNET_DIMS as DIMS
from trainer.loss.matryoshka import matryoshka_mnrl

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


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


KINDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "plain": torch.compile(plain) if DEVICE.type == "cuda" else plain,
    "ours": ours,
}


def embeddings(size: int) -> tuple[Tensor, Tensor]:
    """Random queries and candidates [size, 768] that want gradients: bf16 on a GPU, fp32 elsewhere."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
    first, second = (torch.randn(size, DIMS[0], device=DEVICE, dtype=dtype) for _ in range(2))
    return first.requires_grad_(), second.requires_grad_()


def step(kind: str, rows: tuple[Tensor, Tensor]) -> float:
    """Seconds of one forward and backward."""
    with clocked() as took:
        torch.autograd.grad(KINDS[kind](*rows), rows)
    return took["seconds"]


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


def take_alone(kind: str, size: int) -> dict[str, float]:
    """Extra bytes and seconds of one forward and backward, of a process that has made none of that size."""
    step(kind, embeddings(64))  # libraries are loaded and threads are there
    rows = embeddings(size)
    if DEVICE.type == "cuda":
        step(kind, rows)  # kernels are compiled and chosen
    with extra_memory() as extra:
        seconds = step(kind, rows)
    return {**extra, "seconds": seconds}


def main() -> None:
    parser = make_parser(__doc__, "loss")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 1024, 4096], help="batch sizes to time")
    parser.add_argument("--memory-size", type=int, default=16384, help="batch size to take the memory of")
    parser.add_argument("--large", type=int, help="take ours alone, at this batch size; the record is NAME_large")
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    if size := options.large:
        options.name += "_large"
        found = {"size": size, **in_new_process(take_alone, "ours", size)}
        if DEVICE.type == "cuda":
            found["share_of_peak"] = 6 * size**2 * DIMS[0] / found["seconds"] / matmul_peak("bf16", DEVICE)
        print(f"loss B = {size}: {found['seconds']:.0f} s, {found['bytes'] / 2**20:,.0f} MiB extra")
        finish(options, {"dims": DIMS, **found})
        return
    times = [time_both(size, options.repeats) for size in options.sizes]
    for each in times:
        print(f"loss B = {each['size']}: {each['ratio']:.2f} x the time of the plain definition")
    peaks = {kind: in_new_process(take_alone, kind, options.memory_size)["bytes"] for kind in KINDS}
    memory = {"size": options.memory_size, "bytes": peaks, "ratio": peaks["ours"] / peaks["plain"]}
    megabytes = {kind: round(value / 2**20) for kind, value in peaks.items()}
    print(f"B = {options.memory_size}: extra memory in MiB {megabytes}, ratio {memory['ratio']:.3f}")
    finish(options, {"dims": DIMS, "time": times, "memory": memory})


if __name__ == "__main__":
    main()
