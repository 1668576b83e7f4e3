"""Gradient caching: peak memory and time a pair of a large contrastive batch cut into chunks, beside a small whole one.

Memory: each batch size in a process of its own, the peak over what is held once the model is loaded. Time: both in one
process, a small step before every few chunks of the large one, since a machine's clock can drift by more than what is
to be seen while a large batch takes minutes. A batch in chunks embeds every text twice. Backward is twice as much
arithmetic as forward where all weights train, so the arithmetic alone asks for 4/3 of the time a pair; with LoRA it is
as much, which makes 3/2.

    python -m bench.speed.memory --encoder DIR --tickets FILE [--full]
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from bench.measuring import extra_memory, in_new_process
from bench.records import finish, make_parser, settings_of
from bench.speed.steps import build_steps, run_config, update
from bench.workload import add_workload, write_workload
from trainer.system.process import tune_process
from trainer.training.step import Stepper

APART = 5  # chunks of the large batch between small steps
RUNS = {"small": 2, "large": 1}  # processes whose memory is taken


def build(options: argparse.Namespace, kind: str, folder: Path) -> Stepper:
    """The steps of a run with batches of one kind: small and whole, or large and in chunks."""
    folder.mkdir()
    model, pairs = write_workload(options, folder, options.batch_size + 200)
    train = {"precision": "fp32", "batch_size": options.small}
    if kind == "large":
        train |= {"batch_size": options.batch_size, "tokens_per_chunk": options.tokens_per_chunk}
    lora = {"enabled": not options.full, "rank": 16, "dropout": 0.0}
    return build_steps(run_config(options.model, model, pairs, lora=lora, train=train), folder / "run")


def extra_bytes(options: argparse.Namespace, kind: str) -> int:
    """Of one large step or some small ones, in this process."""
    tune_process()
    with tempfile.TemporaryDirectory() as scratch:
        stepper = build(options, kind, Path(scratch) / "run")
        stepper.run.prepare(0)
        with extra_memory() as extra:
            for number in range(1 if kind == "large" else 12):
                update(stepper, number, stepper.run.prepare(number))
    return extra["bytes"]


def times(options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of small steps, and of one large step without the small ones that were made in between."""
    tune_process()
    with tempfile.TemporaryDirectory() as scratch:
        small, large = (build(options, kind, Path(scratch) / kind) for kind in ("small", "large"))
        for number in range(3):
            update(small, number, small.run.prepare(number))
        batch, found, chunks = large.run.prepare(0), list[float](), itertools.count()
        between = 0.0

        def small_step(*_: Any) -> None:
            nonlocal between
            if next(chunks) % APART == 0:
                start = time.perf_counter()
                with torch.enable_grad():
                    found.append(update(small, len(found), small.run.prepare(len(found))))
                between += time.perf_counter() - start

        large.run.encoder.register_forward_pre_hook(small_step)
        seconds = update(large, 0, batch)
    return {"small": found, "large": [seconds - between]}


def main() -> None:
    parser = make_parser(__doc__, "gradient_caching")
    add_workload(parser, "minilm-l6")
    parser.add_argument("--batch-size", type=int, default=4096, help="pairs of the large batch")
    parser.add_argument("--small", type=int, default=64, help="pairs of the small one")
    parser.add_argument("--tokens-per-chunk", type=int, default=2048, help="of the large batch")
    parser.add_argument("--full", action="store_true", help="train all weights, not LoRA; the record is NAME_full")
    options = parser.parse_args()
    options.name += "_full" if options.full else ""
    seconds = in_new_process(times, options)
    extra = {kind: [in_new_process(extra_bytes, options, kind) for _ in range(runs)] for kind, runs in RUNS.items()}
    a_pair = {
        "small": statistics.fmean(seconds["small"]) / options.small,
        "large": seconds["large"][0] / options.batch_size,
    }
    record = {
        "settings": settings_of(options),
        "seconds": seconds,
        "bytes": extra,
        "seconds_a_pair": a_pair,
        "time_ratio": a_pair["large"] / a_pair["small"],
        "memory_ratio": max(extra["large"]) / max(extra["small"]),
    }
    ratios = f"{record['memory_ratio']:.2f} x the memory and {record['time_ratio']:.2f} x the time a pair"
    print(f"batch {options.batch_size:,}: {ratios} of batch {options.small}")
    finish(options, record)


if __name__ == "__main__":
    main()
