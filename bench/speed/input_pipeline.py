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

from bench.measuring import clocked
from bench.records import RESULTS, ROOT, finish, make_parser, settings_of
from bench.speed.steps import run_config
from bench.workload import SHAPES, add_workload, ticket_pairs, write_model, write_pairs
from trainer.config import CurriculumConfig
from trainer.config_file import dump_config
from trainer.data.batch_layout import LayoutBuilder
from trainer.data.curriculum import PhasedBatchSampler
from trainer.data.pairs import PairTable, positives_of, read_pairs
from trainer.model.embedding import tokenize_sides
from trainer.model.loading import load_encoder
from trainer.model.tokens import TokenTable

BATCHES = 50
STARTS = 3


def collating(table: PairTable, tokens: TokenTable, batch_size: int) -> list[dict[str, float]]:
    """Seconds and real tokens of laying out and collating each of some batches."""
    one_epoch = CurriculumConfig(mode="mixed", epochs=1)
    sampler = PhasedBatchSampler(table, one_epoch, batch_size=batch_size, seed=0, world_size=1)
    layouts = LayoutBuilder(table, positives_of(table), rank=0, all_pairs=False)
    samples = []
    for step in range(min(BATCHES, len(sampler))):
        with clocked() as took:
            batch = tokens.batch(layouts.build([sampler.local(step, 0)]).texts[0])
        samples.append({"seconds": took["seconds"], "tokens": batch.token_count})
    return samples


def starting(config: Path) -> float:
    """Seconds from starting the command to its first step, for which the checkpoint of step 0 is the sign."""
    out = Path(tempfile.mkdtemp(dir=config.parent)) / "run"
    command = [sys.executable, "-m", "trainer", "--config", str(config), "--output-dir", str(out)]
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        while not (out / "checkpoints" / "step-000000").exists():
            if process.poll() is not None:
                raise SystemExit(f"the run ended before its first step: {process.communicate()[1]}")
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
        model = write_model(options.model, options.encoder, folder / "model")
        train = write_pairs(ticket_pairs(options.tickets), folder / "train.json", options.pairs)
        config = folder / "run.toml"
        config.write_text(dump_config(run_config(options.model, model, train)))
        encoder = load_encoder(str(model), max_length=SHAPES[options.model].max_length)
        table = read_pairs(str(train))
        with clocked() as took:
            tokens = tokenize_sides(encoder, table.texts)
        tokenising = {"seconds": took["seconds"], "tokens": int(tokens.lengths.sum())}
        batches = collating(table, tokens, options.batch_size)
        starting(config)  # fills the cache with the tokens of dev
        starts = [starting(config) for _ in range(STARTS)]
    record: dict[str, Any] = {
        "settings": settings_of(options),
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
    parser = make_parser(__doc__, "input_pipeline")
    add_workload(parser, "mpnet-4")
    parser.add_argument("--pairs", type=int, default=15_000)
    parser.add_argument("--batch-size", type=int, default=64)
    options = parser.parse_args()
    record = measure(options)
    print(
        f"tokenising {record['tokenising_tokens_per_s']:,.0f} tokens/s, collating "
        f"{record['collating_tokens_per_s']:,.0f} tokens/s, first step after {record['start_seconds']:.1f} s"
    )
    finish(options, record)


if __name__ == "__main__":
    main()
