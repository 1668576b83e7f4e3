"""Gradient caching: peak memory and time a pair of a large contrastive batch cut into chunks, beside a small whole one.

Memory: each batch size in a process of its own, the peak of the resident size over what is held once the model is
loaded (on a GPU: over what is allocated). Time: both in one process, a small step before every few chunks of the large
one, since a machine's clock can drift by more than what is to be seen while a large batch takes minutes. A batch in
chunks embeds every text twice. Backward is twice as much arithmetic as forward where all weights train, so 4/3 of the
time a pair is what the arithmetic alone asks for; with LoRA it is as much, which makes 3/2. Writes
bench/results/gradient_caching.json, with --full gradient_caching_full.json.

    python -m bench.speed.memory --encoder DIR --tickets FILE [--full]
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from bench.records import RESULTS, environment, save_record
from bench.speed.loss import resident
from bench.speed.throughput import Ours, write_pairs
from bench.workload import SHAPES, write_model
from trainer.system.console import console
from trainer.system.process import tune_process
from trainer.training.batch import Prepared
from trainer.training.step import Stepper


def build(options: argparse.Namespace, batch_size: int, tokens_per_chunk: int, folder: Path) -> Stepper:
    """The steps of a run with batches of that size."""
    folder.mkdir()
    model = write_model(options.model, options.encoder, folder / "model")
    pairs = write_pairs(options.tickets, folder / "pairs.json", options.pairs)
    shape = argparse.Namespace(**{**vars(options), "batch_size": batch_size, "tokens_per_chunk": tokens_per_chunk})
    return Ours(shape, model, pairs, folder, lora=not options.full).stepper


def step(stepper: Stepper, prepared: Prepared) -> float:
    """Seconds of an update."""
    start = time.perf_counter()
    stepper.train_step(0, prepared)
    stepper.settle()
    return time.perf_counter() - start


def peak(options: argparse.Namespace, batch_size: int, tokens_per_chunk: int, steps: int) -> int:
    """Extra bytes of some steps, in this process."""
    with tempfile.TemporaryDirectory() as scratch:
        stepper = build(options, batch_size, tokens_per_chunk, Path(scratch) / "run")
        stepper.run.prepare(0)
        cuda = stepper.run.device.type == "cuda"
        before = torch.cuda.memory_allocated() if cuda else resident("VmRSS")
        for number in range(steps):
            step(stepper, stepper.run.prepare(number))
        return (torch.cuda.max_memory_allocated() if cuda else resident("VmHWM")) - before


def times(options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of small steps, and of one large step without the small ones that were made in between."""
    with tempfile.TemporaryDirectory() as scratch:
        small = build(options, options.small, 0, Path(scratch) / "small")
        large = build(options, options.batch_size, options.tokens_per_chunk, Path(scratch) / "large")
        for number in range(3):
            step(small, small.run.prepare(number))
        batch, found, chunks = large.run.prepare(0), list[float](), itertools.count()
        between = 0.0

        def small_step(*_: Any) -> None:
            nonlocal between
            if next(chunks) % options.apart == 0:
                start = time.perf_counter()
                with torch.enable_grad():
                    found.append(step(small, small.run.prepare(len(found))))
                between += time.perf_counter() - start

        large.run.encoder.register_forward_pre_hook(small_step)
        seconds = step(large, batch)
    return {"small": found, "large": [seconds - between]}


def in_child(options: argparse.Namespace, *what: str) -> Any:
    """What a fresh process finds."""
    command = [sys.executable, "-m", "bench.speed.memory", *sys.argv[1:], "--child", *what]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHAPES, default="minilm-l6")
    parser.add_argument("--encoder", help="folder of all-MiniLM-L6-v2: the model, or just its tokenizer")
    parser.add_argument("--tickets", help="CSV with short_description and description (default: made-up words)")
    parser.add_argument("--batch-size", type=int, default=4096, help="pairs of the large batch")
    parser.add_argument("--small", type=int, default=64, help="pairs of the small one")
    parser.add_argument("--tokens-per-chunk", type=int, default=2048, help="of the large batch")
    parser.add_argument("--apart", type=int, default=5, help="chunks of the large batch between small steps")
    parser.add_argument("--pairs", type=int, default=4300)
    parser.add_argument("--full", action="store_true", help="train all weights, not LoRA alone")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the record")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    tune_process()
    options.precision, options.max_length = "fp32", SHAPES[options.model]["max_length"]
    options.dims = [384, 256, 128, 64] if options.model == "minilm-l6" else [768, 512, 256, 128, 64]
    if options.child:
        large = options.batch_size, options.tokens_per_chunk, 1
        asked = {"times": lambda: times(options), "large": lambda: peak(options, *large)}
        asked["small"] = lambda: peak(options, options.small, 0, 12)
        print(json.dumps(asked[options.child[0]]()))
        return
    seconds = in_child(options, "times")
    extra = {"small": [in_child(options, "small") for _ in range(2)], "large": [in_child(options, "large")]}
    sizes = {"small": options.small, "large": options.batch_size}
    a_pair = {name: statistics.fmean(samples) / sizes[name] for name, samples in seconds.items()}
    record = {
        "environment": environment(),
        "settings": {
            key: value for key, value in vars(options).items() if key not in ("encoder", "tickets", "results", "child")
        },
        "seconds": seconds,
        "bytes": extra,
        "seconds_a_pair": a_pair,
        "time_ratio": a_pair["large"] / a_pair["small"],
        "memory_ratio": max(extra["large"]) / max(extra["small"]),
    }
    ratios = f"{record['memory_ratio']:.2f} x the memory and {record['time_ratio']:.2f} x the time a pair"
    console.print(f"batch {options.batch_size:,}: {ratios} of batch {options.small}")
    name = "gradient_caching_full" if options.full else "gradient_caching"
    console.print(f"Record: {save_record(name, record, options.results)}", markup=False)


if __name__ == "__main__":
    main()
