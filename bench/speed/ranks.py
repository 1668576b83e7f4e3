"""Two processes against one at the same global batch: do the gradients agree, and what does a step take?

The gradients are those that the optimizer gets, in float64 and without dropout. The processes share this machine's
cores, half of its threads each, so equal times mean that nothing is lost.

    python -m bench.speed.ranks --encoder DIR --tickets FILE
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.measuring import in_new_processes, rank_variables
from bench.records import finish, make_parser, settings_of
from bench.speed.steps import build_steps, run_config, update
from bench.workload import add_workload, write_workload
from trainer.system import distributed
from trainer.system.process import tune_process
from trainer.training.step import Stepper


def gradient(stepper: Stepper) -> np.ndarray:
    """What the optimizer gets in the second step, end to end in float64: the first moves LoRA's B off zero."""
    run = stepper.run
    run.encoder.double().eval()
    taken: list[torch.Tensor] = []
    update = run.optimizer.step

    def step() -> None:
        taken.append(torch.cat([p.grad.flatten() for p in run.parameters.values() if p.grad is not None]))
        update()

    run.optimizer.step = step
    for number in (100, 101):  # past the first rates of the warm-up
        stepper.train_step(number, stepper.run.prepare(number))
    return taken[1].numpy()


def seconds(stepper: Stepper, steps: int) -> list[float]:
    """Of each step but the first, in fp32 with dropout."""
    samples = []
    for step in range(steps + 1):
        batch = stepper.run.prepare(step)
        if distributed.world_size() > 1:
            torch.distributed.barrier()
        samples.append(update(stepper, step, batch))
    return samples[1:]


def take_rank(variables: dict[str, str], options: argparse.Namespace, model: Path, pairs: Path) -> dict[str, Any]:
    """What a process finds that has its share of the global batch."""
    os.environ.update(variables)
    torch.set_num_threads(int(variables["OMP_NUM_THREADS"]))
    tune_process()
    train = {"precision": "fp32", "batch_size": options.batch_size // int(variables["WORLD_SIZE"])}
    config = run_config(options.model, model, pairs, lora={"rank": 16, "dropout": 0.0}, train=train)
    of_second = gradient(build_steps(config, pairs.parent / "run"))
    return {"gradient": of_second, "seconds": seconds(build_steps(config, pairs.parent / "run"), options.steps)}


def main() -> None:
    parser = make_parser(__doc__, "two_ranks")
    add_workload(parser, "minilm-l6")
    parser.add_argument("--batch-size", type=int, default=64, help="pairs of the global batch")
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        model, pairs = write_workload(options, Path(scratch), 1000)
        one, two = (
            in_new_processes(take_rank, [(variables, options, model, pairs) for variables in rank_variables(count)])[0]
            for count in (1, 2)
        )
    record = {
        "settings": settings_of(options),
        "gradient_size": one["gradient"].size,
        "seconds": {"one": one["seconds"], "two": two["seconds"]},
        "gradient_difference": float(np.abs(one["gradient"] - two["gradient"]).max() / np.abs(one["gradient"]).max()),
        "time_ratio": statistics.median(two["seconds"]) / statistics.median(one["seconds"]),
    }
    print(
        f"gradients differ by {record['gradient_difference']:.1e} of the largest; a step takes "
        f"{record['time_ratio']:.2f} x the time"
    )
    finish(options, record)


if __name__ == "__main__":
    main()
