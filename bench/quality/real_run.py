"""Train a config on real pairs with a real encoder, and record what it gained and what it forgot.

Dev metrics before and after at every dim come from the run itself; a general similarity set (STS format: two sentences
and a score from 0 to 5) is judged before and after, in fp32.

    python -m bench.quality.real_run --config configs/itsm_minilm.toml --model DIR --train FILE --dev FILE --sts FILE
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from bench.records import finish, make_parser
from trainer.config_file import load_config, to_tree
from trainer.data.pairs import read_pairs
from trainer.evaluation.pair_metrics import Metrics
from trainer.evaluation.scoring import PairSet, evaluate
from trainer.model.loading import load_encoder
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
    models = {"baseline": options.model, "final": str(folder / "model")}
    return {
        "config": tree,
        "dev": {key: metrics[key] for key in ("baseline", "final", "verdict", "best_step", "strength", "evaluations")},
        "sts": {when: judge_sts(model, options.sts, config.loss.dims) for when, model in models.items()},
        "training_seconds": metadata["seconds"],
        **{key: metadata[key] for key in ("steps", "overlapping_texts", "fingerprints", "reload_differences")},
    }


def main() -> None:
    parser = make_parser(__doc__, "CONFIG")
    parser.add_argument("--config", required=True, type=Path)
    parser.add_argument("--model", required=True, help="folder of the encoder to start from")
    for name in ("--train", "--dev", "--sts"):
        parser.add_argument(name, required=True, metavar="FILE")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--keep", type=Path, help="folder for the run (default: thrown away)")
    options = parser.parse_args()
    if options.name == parser.get_default("name"):
        options.name = options.config.stem
    with tempfile.TemporaryDirectory() as scratch:
        record = run(options, options.keep or Path(scratch) / "run")
    for dim in record["sts"]["final"]:
        before, after = (record["sts"][key][dim]["spearman"] for key in ("baseline", "final"))
        print(f"STS Spearman at {dim} dims: {before:.4f} -> {after:.4f} ({after - before:+.4f})")
    finish(options, record)


if __name__ == "__main__":
    main()
