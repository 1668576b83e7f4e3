"""Record what finished runs of one recipe gained and what they forgot, on dev, on kept-back pairs and in general.

The runs (--run, one a seed) have the same settings but for their seeds and folders; a figure is their mean. Dev figures
before and after at every dim come from the runs themselves. Pairs that chose nothing (--test) are judged here, before
and after, with the 95 % interval of the gain at every dim; so is a general similarity set (STS format: two sentences
and a score from 0 to 5). All in fp32, texts cut at the runs' length. The model before is the runs' `model.name`; name
its folder (--model) where it lies elsewhere now.

    python -m bench.quality.real_run --run runs/first --run runs/second --sts FILE --test NAME=FILE --name NAME
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from bench.quality.judging import STS_SCALE, HeldOut, compare, judge_model, over_models, pair_figures
from bench.records import finish, make_parser
from trainer.checkpoint.identity import SOURCE
from trainer.config import Config
from trainer.config_file import load_config, to_tree
from trainer.errors import TrainerError
from trainer.evaluation.pair_metrics import Metrics
from trainer.system.run_files import CONFIG, METADATA, METRICS, MODEL

PATHS = ("model.name", "data.train", "data.dev", "data.test", "data.forgetting", "data.corpus", "output.dir")
OWN = ("train.seed", "output.dir")
"""Settings of which each run may have its own."""
CHOSEN = ("verdict", "best_step", "strength")
TOLD = ("steps", "planned_steps", "rows", "processes", "threads", "overlapping_texts")


def record_of(options: argparse.Namespace) -> dict[str, Any]:
    """Read the runs, judge their models and the one before. Raises InputError."""
    configs = [load_config(run / CONFIG) for run in options.run]
    config = same_recipe(options.run, configs)
    metrics, metadata = ([read_finished(run / name) for run in options.run] for name in (METRICS, METADATA))
    before, length = options.model or config.model.name, metadata[0]["model"]["max_length"]
    models, dims = [before, *(str(run / MODEL) for run in options.run)], config.loss.dims
    tests = [test.partition("=") for test in options.test]
    return {
        "config": _tree(config),
        "seeds": [each.train.seed for each in configs],
        "dev": judged_by_runs(metrics),
        "sts": judge_sts(models, options.sts, dims, length) if options.sts else None,
        "tests": {name: judge_test(models, path, dims, length) for name, _, path in tests},
        "max_length": length,
        "training_seconds": mean(each["seconds"] for each in metadata),
        "trained_on": metadata[0]["device"],
        **{key: metadata[0][key] for key in TOLD},
        "fingerprints": without_folders(metadata[0]["fingerprints"]),
        "reload_differences": [each["reload_differences"] for each in metadata],
    }


def same_recipe(runs: list[Path], configs: list[Config]) -> Config:
    """The first of the configs. Exits where another has other settings, or two have the same seed."""
    first, *others = (_tree(config, without=OWN) for config in configs)
    for run, other in zip(runs[1:], others, strict=True):
        for section in first:
            if other[section] != first[section]:
                raise SystemExit(f"{run}: its section [{section}] is not that of {runs[0]}: name runs of one recipe")
    if len({config.train.seed for config in configs}) < len(configs):
        raise SystemExit("two runs have the same seed: name one run a seed")
    return configs[0]


def read_finished(path: Path) -> dict[str, Any]:
    """A JSON file that a run has when it is finished."""
    if not path.exists():
        raise SystemExit(f"{path}: not there: name the folder of a finished run as --run")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def judged_by_runs(metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """Means of the runs' dev figures before and after, the spread of those after, and what each chose."""
    sides = {name: [run[name] for run in metrics] for name in ("baseline", "final")}
    found: dict[str, Any] = {name: over_models(figures, mean) for name, figures in sides.items()}
    found["spread"] = over_models(sides["final"], stdev) if len(metrics) > 1 else None
    return found | {key: [run[key] for run in metrics] for key in CHOSEN}


def judge_test(models: list[str], path: str, dims: tuple[int, ...], length: int) -> dict[str, Any]:
    """Figures of the first model and means of the others' on kept-back pairs, and the interval of the gain, by dim."""
    held_out = HeldOut(path)
    before, *after = (judge_model(folder, held_out, dims, length, cached=folder == models[0])[1] for folder in models)
    table = held_out.read_pairs()
    judged = compare(before[np.newaxis], np.stack(after), table, dims)
    by_model = [pair_figures(cosines, table, dims) for cosines in after]
    spread = over_models(by_model, stdev) if len(after) > 1 else None
    return {**judged, "spread": spread, "pairs": len(table), "fingerprint": table.fingerprint()}


def judge_sts(models: list[str], path: str, dims: tuple[int, ...], length: int) -> dict[str, Metrics]:
    """Figures of the first model and means of the others' on an STS file."""
    held_out = HeldOut(path, scale=STS_SCALE)
    before, *after = (judge_model(folder, held_out, dims, length)[0] for folder in models)
    return {"baseline": before, "final": over_models(after, mean)}


def without_folders(fingerprints: dict[str, str]) -> dict[str, str]:
    """Fingerprints, those of several training files by their names alone.

    >>> without_folders({"source runs/pairs.json": "ab", "dev": "cd"})
    {'source pairs.json': 'ab', 'dev': 'cd'}
    """
    names = {name: SOURCE + Path(name).name if name.startswith(SOURCE) else name for name in fingerprints}
    return {names[name]: value for name, value in fingerprints.items()}


def _tree(config: Config, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """The settings but for some, paths without folders: a record should read the same everywhere."""
    tree = to_tree(config)
    for key in PATHS:
        section, name = key.split(".")
        tree[section][name] = Path(tree[section][name]).name
    for source in tree["data"]["sources"]:
        source["path"] = Path(source["path"]).name
    for key in without:
        section, name = key.split(".")
        del tree[section][name]
    return tree


def main() -> None:
    parser = make_parser(__doc__, "RUN")
    parser.add_argument(
        "--run", required=True, type=Path, action="append", metavar="FOLDER", help="a finished run; one a seed"
    )
    parser.add_argument("--model", metavar="DIR", help="the model before (default: the runs' model.name)")
    parser.add_argument("--sts", metavar="FILE", help="general similarity")
    parser.add_argument("--test", action="append", default=[], metavar="NAME=FILE", help="kept-back pairs; repeatable")
    options = parser.parse_args()
    if options.name == parser.get_default("name"):
        options.name = options.run[0].name
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
