"""Gradient caching: peak memory and time a pair of a large contrastive batch cut into chunks, beside a small whole one.

Every batch size runs in processes of its own, small and large in turns. Memory is the peak of the resident size over
what is held once the model is loaded (on a GPU: over what is allocated). A batch in chunks embeds every text twice, so
4/3 of the time a pair is what the arithmetic alone asks for. Writes bench/results/gradient_caching.json.

    python bench/memory.py --encoder DIR --tickets FILE
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from loss import resident
from records import RESULTS, environment, save_record
from throughput import Ours, write_pairs
from workload import SHAPES, write_model

from trainer.console import console
from trainer.process import tune_process


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each step and peak bytes of a batch size, in this process."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = write_model(options.model, options.encoder, folder / "model")
        ours = Ours(options, model, write_pairs(options.tickets, folder / "pairs.json", options.pairs), folder)
        ours.run.prepare(0)
        cuda = ours.run.device.type == "cuda"
        before = torch.cuda.memory_allocated() if cuda else resident("VmRSS")
        seconds = []
        for step in range(options.steps):
            batch = ours.run.prepare(step)
            start = time.perf_counter()
            ours.run.train_step(step, batch)
            ours.run.settle()
            seconds.append(time.perf_counter() - start)
        peak = torch.cuda.max_memory_allocated() if cuda else resident("VmHWM")
    return {"seconds": seconds, "bytes": peak - before}


def in_child(options: argparse.Namespace, batch_size: int, tokens_per_chunk: int, steps: int) -> dict[str, Any]:
    """`measure` in a fresh process."""
    command = [sys.executable, __file__, "--child", "--batch-size", str(batch_size), "--steps", str(steps)]
    command += ["--tokens-per-chunk", str(tokens_per_chunk), "--model", options.model, "--pairs", str(options.pairs)]
    for name in ("encoder", "tickets"):
        if getattr(options, name):
            command += [f"--{name}", getattr(options, name)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return dict(json.loads(output.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHAPES, default="minilm-l6")
    parser.add_argument("--encoder", help="folder of all-MiniLM-L6-v2: the model, or just its tokenizer")
    parser.add_argument("--tickets", help="CSV with short_description and description (default: made-up words)")
    parser.add_argument("--batch-size", type=int, default=4096, help="pairs of the large batch")
    parser.add_argument("--small", type=int, default=64, help="pairs of the small one")
    parser.add_argument("--tokens-per-chunk", type=int, default=2048, help="of the large batch")
    parser.add_argument("--steps", type=int, default=1, help="steps of the large batch")
    parser.add_argument("--pairs", type=int, default=4300)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the record")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    tune_process()
    options.precision, options.max_length = "fp32", SHAPES[options.model]["max_length"]
    options.dims = [384, 256, 128, 64] if options.model == "minilm-l6" else [768, 512, 256, 128, 64]
    if options.child:
        print(json.dumps(measure(options)))
        return
    small_steps = 12
    first = in_child(options, options.small, 0, small_steps)
    large = in_child(options, options.batch_size, options.tokens_per_chunk, options.steps)
    second = in_child(options, options.small, 0, small_steps)
    a_pair = statistics.median(first["seconds"][2:] + second["seconds"][2:]) / options.small
    record = {
        "environment": environment(),
        "settings": {
            key: value for key, value in vars(options).items() if key not in ("encoder", "tickets", "results")
        },
        "small": [first, second],
        "large": large,
        "time_ratio": statistics.median(large["seconds"]) / options.batch_size / a_pair,
        "memory_ratio": large["bytes"] / max(first["bytes"], second["bytes"]),
    }
    ratios = f"{record['memory_ratio']:.2f} x the memory and {record['time_ratio']:.2f} x the time a pair"
    console.print(f"batch {options.batch_size:,}: {ratios} of batch {options.small}")
    console.print(f"Record: {save_record('gradient_caching', record, options.results)}", markup=False)


if __name__ == "__main__":
    main()
