"""Two processes against one at the same global batch: do the gradients agree, and what does a step take?

The gradients are those that the optimizer gets, in float64 and without dropout. The processes share this machine's
cores, half of its threads each, so equal times mean that nothing is lost. Writes bench/results/two_ranks.json.

    python -m bench.speed.ranks --encoder DIR --tickets FILE
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from bench.records import RESULTS, environment, save_record
from bench.speed.throughput import Ours, write_pairs
from bench.workload import SHAPES
from trainer.system import distributed
from trainer.system.console import console
from trainer.system.process import tune_process
from trainer.training.step import Stepper

MODEL = "minilm-l6"


def build(options: argparse.Namespace, folder: Path) -> Stepper:
    """The steps of a run whose batches are this process's share of the global one."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    shape = argparse.Namespace(
        batch_size=options.batch_size // world_size,
        max_length=SHAPES[MODEL]["max_length"],
        precision="fp32",
        tokens_per_chunk=0,
        dims=[384, 256, 128, 64],
    )
    return Ours(shape, Path(options.encoder), Path(options.pairs), folder).stepper


def gradient(options: argparse.Namespace, folder: Path) -> torch.Tensor:
    """What the optimizer gets in the second step, end to end in float64: the first moves LoRA's B off zero."""
    stepper = build(options, folder)
    run = stepper.run
    run.encoder.double().eval()
    run.objective.double()
    taken: list[torch.Tensor] = []
    update = run.optimizer.step

    def step() -> None:
        taken.append(torch.cat([p.grad.flatten() for p in run.parameters.values() if p.grad is not None]))
        update()

    run.optimizer.step = step
    for number in (100, 101):  # past the first rates of the warm-up
        stepper.train_step(number, stepper.run.prepare(number))
    return taken[1]


def child(options: argparse.Namespace) -> None:
    """One rank: the gradient, then timed steps in fp32 with dropout. Rank 0 writes both."""
    with tempfile.TemporaryDirectory() as scratch:
        found = gradient(options, Path(scratch))
        stepper = build(options, Path(scratch))
        seconds = []
        for step in range(options.steps + 1):
            batch = stepper.run.prepare(step)
            if distributed.world_size() > 1:
                torch.distributed.barrier()
            start = time.perf_counter()
            stepper.train_step(step, batch)
            stepper.settle()
            seconds.append(time.perf_counter() - start)
    if distributed.rank() == 0:
        torch.save({"gradient": found, "seconds": seconds[1:]}, options.child)


def on_ranks(options: argparse.Namespace, world_size: int, folder: Path) -> dict[str, Any]:
    """`child` on so many processes."""
    result = folder / f"{world_size}.pt"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(world_size)]
    command += ["-m", "bench.speed.ranks"]
    command += ["--child", str(result), "--encoder", options.encoder, "--pairs", str(folder / "pairs.json")]
    command += ["--batch-size", str(options.batch_size), "--steps", str(options.steps)]
    threads = max((os.cpu_count() or 1) // world_size, 1)
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)})
    return dict(torch.load(result, weights_only=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", required=True, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--tickets", help="CSV with short_description and description (default: made-up words)")
    parser.add_argument("--batch-size", type=int, default=64, help="pairs of the global batch")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the record")
    parser.add_argument("--pairs", help=argparse.SUPPRESS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    tune_process()
    if options.child:
        child(options)
        return
    with tempfile.TemporaryDirectory() as scratch:
        write_pairs(options.tickets, Path(scratch) / "pairs.json", 1000)
        one, two = (on_ranks(options, world_size, Path(scratch)) for world_size in (1, 2))
    largest = one["gradient"].abs().max()
    record = {
        "environment": environment(),
        "settings": {"model": MODEL, "batch_size": options.batch_size, "steps": options.steps},
        "gradient_size": one["gradient"].numel(),
        "seconds": {"one": one["seconds"], "two": two["seconds"]},
        "gradient_difference": float((one["gradient"] - two["gradient"]).abs().max() / largest),
        "time_ratio": statistics.median(two["seconds"]) / statistics.median(one["seconds"]),
    }
    console.print(
        f"gradients differ by {record['gradient_difference']:.1e} of the largest; a step takes "
        f"{record['time_ratio']:.2f} x the time"
    )
    console.print(f"Record: {save_record('two_ranks', record, options.results)}", markup=False)


if __name__ == "__main__":
    main()
