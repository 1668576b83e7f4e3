"""Tokenising and collating alone, and what starting a run costs.

Three figures: real tokens tokenised a second (once a data set, then cached); real tokens laid out and collated a second
(every step, on a thread beside the step before it) and the share of a training step that would take, were it not
beside; and the seconds from starting the command to the first step of a run on 15,000 pairs whose tokens are cached.

    python -m bench.speed.input_pipeline --encoder DIR --tickets tickets.csv
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from bench.records import RESULTS, ROOT, environment, save_record
from bench.workload import SHAPES, ticket_pairs, write_model
from trainer.config import CurriculumConfig
from trainer.data.batch_layout import LayoutBuilder
from trainer.data.curriculum import PhasedBatchSampler
from trainer.data.pairs import PairTable, positives_of, read_pairs
from trainer.model.embedding import tokenize_sides
from trainer.model.loading import load_encoder
from trainer.model.tokens import TokenTable
from trainer.system.console import console

BATCHES = 50
STARTS = 3


def write_pairs(pairs: list[tuple[str, str]], path: Path, count: int) -> Path:
    """`count` labelled pairs: a title with its own body, then with the body of a ticket one, two, ... places on."""
    places = [(i % len(pairs), (i + i // len(pairs)) % len(pairs)) for i in range(count)]
    columns = {
        "texts1": [pairs[a][0] for a, _ in places],
        "texts2": [pairs[b][1] for _, b in places],
        "labels": [int(a == b) for a, b in places],
    }
    path.write_text(json.dumps(columns))
    return path


def collating(table: PairTable, tokens: TokenTable, batch_size: int) -> list[dict[str, float]]:
    """Seconds and real tokens of laying out and collating each of some batches."""
    sampler = PhasedBatchSampler(
        table, CurriculumConfig(mode="mixed", epochs=1), batch_size=batch_size, seed=0, world_size=1
    )
    layouts = LayoutBuilder(table, positives_of(table), rank=0, all_pairs=False)
    samples = []
    for step in range(min(BATCHES, len(sampler))):
        start = time.perf_counter()
        batch = tokens.batch(layouts.build([sampler.local(step, 0)]).texts[0])
        samples.append({"seconds": time.perf_counter() - start, "tokens": batch.token_count})
    return samples


def starting(model: Path, train: Path, max_length: int, folder: Path) -> float:
    """Seconds from starting the command to its first step, for which the checkpoint of step 0 is the sign."""
    settings = {"model.name": model, "model.max_length": max_length, "data.train": train, "data.dev": "incidents"}
    quoted = [f"{key}={value if isinstance(value, int) else json.dumps(str(value))}" for key, value in settings.items()]
    sets = [word for setting in [*quoted, 'curriculum.mode="mixed"'] for word in ("--set", setting)]
    empty = folder / "empty.toml"
    empty.write_text("")
    out = Path(tempfile.mkdtemp(dir=folder)) / "run"
    command = [sys.executable, "-m", "trainer", "--config", str(empty), "--output-dir", str(out), *sets]
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        while not (out / "checkpoints" / "step-000000").exists():
            if process.poll() is not None:
                raise SystemExit(f"the run ended before its first step: {process.stderr.read()}")
            time.sleep(0.01)
        return time.perf_counter() - start
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All figures, in a cache of their own."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ["TRAINER_CACHE"] = str(folder / "cache")
        max_length = SHAPES[options.model]["max_length"]
        model = write_model(options.model, options.encoder, folder / "model")
        pairs = ticket_pairs(options.tickets)
        train = write_pairs(pairs, folder / "train.json", options.pairs)
        encoder, table = load_encoder(str(model), max_length=max_length), read_pairs(str(train))
        start = time.perf_counter()
        tokens = tokenize_sides(encoder, table.texts)
        tokenising = {"seconds": time.perf_counter() - start, "tokens": int(tokens.lengths.sum())}
        batches = collating(table, tokens, options.batch_size)
        starting(model, train, max_length, folder)  # fills the cache with the tokens of dev
        starts = [starting(model, train, max_length, folder) for _ in range(STARTS)]
    record: dict[str, Any] = {
        "environment": environment(),
        "settings": {
            key: value for key, value in vars(options).items() if key not in ("encoder", "tickets", "results")
        },
        "real_tickets": options.tickets is not None,
        "tokenising": tokenising,
        "tokenising_tokens_per_s": tokenising["tokens"] / tokenising["seconds"],
        "collating": batches,
        "collating_tokens_per_s": median(batch["tokens"] / batch["seconds"] for batch in batches),
        "starts": starts,
        "start_seconds": median(starts),
    }
    step = RESULTS / f"throughput_{options.model}_fp32_cpu.json"
    if step.is_file():
        steps = json.loads(step.read_text(encoding="utf-8"))["ours"]
        record["share_of_step"] = median(b["seconds"] for b in batches) / median(s["seconds"] for s in steps)
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHAPES, default="mpnet-4")
    parser.add_argument("--encoder", help="folder of all-MiniLM-L6-v2: the model, or just its tokenizer")
    parser.add_argument("--tickets", help="CSV with short_description and description (default: made-up words)")
    parser.add_argument("--pairs", type=int, default=15_000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the record")
    options = parser.parse_args()
    record = measure(options)
    console.print(
        f"tokenising {record['tokenising_tokens_per_s']:,.0f} tokens/s, collating "
        f"{record['collating_tokens_per_s']:,.0f} tokens/s, first step after {record['start_seconds']:.1f} s"
    )
    console.print(f"Record: {save_record('input_pipeline', record, options.results)}", markup=False)


if __name__ == "__main__":
    main()
