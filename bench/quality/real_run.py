"""Record what a finished run gained and what it forgot, on its dev pairs, on kept-back pairs and in general.

Dev metrics before and after at every dim come from the run itself. Pairs that chose nothing (--test) are judged here,
before and after, with the 95 % interval of the gain at every dim; so is a general similarity set (STS format: two
sentences and a score from 0 to 5). All in fp32, texts cut at the run's length. The model before is the run's
`model.name`; name its folder (--model) where it lies elsewhere now.

    python -m bench.quality.real_run --run runs/first --sts FILE --test NAME=FILE --name NAME
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from bench.quality.judging import STS_SCALE, HeldOut, compare, judge_model
from bench.records import finish, make_parser
from trainer.config import Config
from trainer.config_file import load_config, to_tree
from trainer.errors import TrainerError
from trainer.system.run_files import CONFIG, METADATA, METRICS, MODEL

PATHS = ("model.name", "data.train", "data.dev", "data.test", "data.forgetting", "data.corpus", "output.dir")
JUDGED = ("baseline", "final", "verdict", "best_step", "strength", "evaluations")
TOLD = ("steps", "planned_steps", "rows", "processes", "threads", "overlapping_texts", "fingerprints")


def record_of(options: argparse.Namespace) -> dict[str, Any]:
    """Read the run, judge its model and the one before. Raises InputError."""
    config = load_config(options.run / CONFIG)
    files = {name: options.run / name for name in (METRICS, METADATA)}
    if missing := [str(path) for path in files.values() if not path.exists()]:
        raise SystemExit(f"{missing[0]}: not there: name the folder of a finished run as --run")
    metrics, metadata = (json.loads(path.read_text(encoding="utf-8")) for path in files.values())
    models = {"baseline": options.model or config.model.name, "final": str(options.run / MODEL)}
    length = metadata["model"]["max_length"]
    tests = [test.partition("=") for test in options.test]
    return {
        "config": _tree(config),
        "dev": {key: metrics[key] for key in JUDGED},
        "sts": judge_sts(models, options.sts, config.loss.dims, length) if options.sts else None,
        "tests": {name: judge_test(models, path, config.loss.dims, length) for name, _, path in tests},
        "max_length": length,
        "training_seconds": metadata["seconds"],
        **{key: metadata[key] for key in (*TOLD, "reload_differences")},
    }


def judge_test(models: dict[str, str], path: str, dims: tuple[int, ...], length: int) -> dict[str, Any]:
    """Figures before and after on kept-back pairs, and the interval of the gain, by dim."""
    held_out = HeldOut(path)
    before, after = (
        judge_model(folder, held_out, dims, length, cached=when == "baseline")[1] for when, folder in models.items()
    )
    table = held_out.read_pairs()
    judged = compare(before[np.newaxis], after[np.newaxis], table, dims)
    return {**judged, "pairs": len(table), "fingerprint": table.fingerprint()}


def judge_sts(models: dict[str, str], path: str, dims: tuple[int, ...], length: int) -> dict[str, Any]:
    """Figures of both models on an STS file."""
    held_out = HeldOut(path, scale=STS_SCALE)
    return {when: judge_model(folder, held_out, dims, length)[0] for when, folder in models.items()}


def _tree(config: Config) -> dict[str, Any]:
    """The settings, paths without folders: a record should read the same everywhere."""
    tree = to_tree(config)
    for key in PATHS:
        section, name = key.split(".")
        tree[section][name] = Path(tree[section][name]).name
    return tree


def main() -> None:
    parser = make_parser(__doc__, "RUN")
    parser.add_argument("--run", required=True, type=Path, metavar="FOLDER", help="a finished run")
    parser.add_argument("--model", metavar="DIR", help="the model before (default: the run's model.name)")
    parser.add_argument("--sts", metavar="FILE", help="general similarity")
    parser.add_argument("--test", action="append", default=[], metavar="NAME=FILE", help="kept-back pairs; repeatable")
    options = parser.parse_args()
    if options.name == parser.get_default("name"):
        options.name = options.run.name
    try:
        record = record_of(options)
    except TrainerError as error:
        raise SystemExit(str(error)) from None
    for name, test in record["tests"].items():
        for dim, (low, high) in ((dim, gains["spearman"]) for dim, gains in test["gain"].items()):
            before, after = (test[when][dim]["spearman"] for when in ("before", "after"))
            print(f"{name}, Spearman at {dim} dims: {before:.4f} -> {after:.4f}, gain {low:+.4f} to {high:+.4f}")
    finish(options, record)


if __name__ == "__main__":
    main()
