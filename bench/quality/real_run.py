"""Train a config on real pairs with a real encoder, and record what it gained and what it forgot.

Dev metrics before and after at every dim come from the run itself; a general similarity set (STS format: two sentences
and a score from 0 to 5) is judged before and after, in fp32. Writes bench/results/NAME.json.

    python -m bench.quality.real_run --config configs/itsm_minilm.toml --model DIR --train FILE --dev FILE --sts FILE
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from bench.records import RESULTS, environment, save_record
from trainer.config_file import load_config, to_tree
from trainer.data.pairs import read_pairs
from trainer.evaluation.pair_metrics import Metrics
from trainer.evaluation.scoring import PairSet, evaluate
from trainer.model.loading import load_encoder
from trainer.system.console import console
from trainer.training.loop import train


def judge_sts(model: str, path: str, dims: tuple[int, ...]) -> Metrics:
    """Metrics of a model on an STS file."""
    encoder = load_encoder(model)
    return evaluate(encoder, PairSet.build(read_pairs(path, label_scale=5.0), encoder), dims)


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train, judge, and return the record."""
    paths = {"model.name": options.model, "data.train": options.train, "data.dev": options.dev, "output.dir": folder}
    overrides = [f"{key}={json.dumps(str(path))}" for key, path in paths.items()]
    config = load_config(options.config, [*overrides, *options.set])
    train(config, options.config.stem)
    tree = to_tree(config)
    for key in paths:
        section, name = key.split(".")
        tree[section][name] = Path(tree[section][name]).name  # a record should read the same everywhere
    metrics = json.loads((folder / "metrics.json").read_text())
    metadata = json.loads((folder / "training_metadata.json").read_text())
    return {
        "environment": environment(),
        "config": tree,
        "dev": {key: metrics[key] for key in ("baseline", "final", "verdict", "best_step", "strength", "evaluations")},
        "sts": {
            "baseline": judge_sts(options.model, options.sts, config.loss.dims),
            "final": judge_sts(str(folder / "model"), options.sts, config.loss.dims),
        },
        "steps": metadata["steps"],
        "training_seconds": metadata["seconds"],
        "overlapping_texts": metadata["overlapping_texts"],
        "fingerprints": metadata["fingerprints"],
        "reload_differences": metadata["reload_differences"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, type=Path)
    parser.add_argument("--model", required=True, help="folder of the encoder to start from")
    parser.add_argument("--train", required=True)
    parser.add_argument("--dev", required=True)
    parser.add_argument("--sts", required=True)
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--keep", type=Path, help="folder for the run (default: thrown away)")
    parser.add_argument("--name", help="name of the record (default: the config's)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the record")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        record = run(options, options.keep or Path(scratch) / "run")
    path = save_record(options.name or options.config.stem, record, options.results)
    for dim in record["sts"]["final"]:
        before, after = (record["sts"][key][dim]["spearman"] for key in ("baseline", "final"))
        console.print(f"STS Spearman at {dim} dims: {before:.4f} -> {after:.4f} ({after - before:+.4f})")
    console.print(f"Record: {path}", markup=False)


if __name__ == "__main__":
    main()
