"""Screen settings: train cells of settings on given data, each with every seed, and judge all on held-out pairs.

A cell is a name and settings (`section.key=value`) on top of what all cells share: a config and --set. Each run chooses
its best step and its strength on a share of its own training pairs (`data.dev_fraction`), never on the pairs that it is
judged on. A run takes a process of its own; what is in the record is not run again, so the program can be stopped and
started at will, and cells, data and seeds added to the same record.

    python -m bench.quality.screen --model DIR --data NAME TRAIN DEV --plan cells.toml
    python -m bench.quality.screen --model DIR --data NAME TRAIN DEV --cell plain --cell sharp loss.scale=50

A plan is a TOML file: its table `cells` has a list of settings a name. The cell called "plain" (--plain) is what the
others are compared with, seed by seed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from bench.measuring import clocked, each_in_new_process
from bench.quality.judging import HeldOut, judge_model
from bench.quality_tables import screen
from bench.records import ROOT, add_at_once, environment, finish, make_parser
from trainer.config import Config
from trainer.config_file import load_config
from trainer.data.pairs import read_pairs
from trainer.data.split import check_overlap
from trainer.errors import TrainerError

CONFIG = ROOT / "configs" / "itsm_minilm.toml"


class Job(NamedTuple):
    """One run: a cell on some data with a seed."""

    config: Path
    settings: list[str]
    """All of them, in the order in which they are applied; those of the cell come last."""
    model: str
    train: str
    held_out: HeldOut
    max_length: int
    """Tokens of a text where models are judged; a cell may train at another."""

    def resolve(self, folder: str = "") -> Config:
        """The checked config of the run. Raises InputError."""
        paths = {"model.name": self.model, "data.train": self.train, "data.dev": "", "output.dir": folder}
        return load_config(self.config, [*self.settings, *(f"{key}={json.dumps(path)}" for key, path in paths.items())])


def run_job(job: Job) -> dict[str, Any]:
    """Train and judge. Returns the figures of the trained and of the untouched model, and what it took."""
    from trainer.training.loop import train

    with tempfile.TemporaryDirectory() as scratch:
        with clocked() as took:
            result = train(job.resolve(f"{scratch}/run"), "screen")
        assert result.metrics is not None
        dims = tuple(map(int, result.metrics["baseline"]))
        judged = {
            when: judge_model(folder, job.held_out, dims, job.max_length, cached=when == "untouched")[0]
            for when, folder in (("untouched", job.model), ("trained", f"{scratch}/run/model"))
        }
        steps = json.loads((result.folder / "training_metadata.json").read_text(encoding="utf-8"))["steps"]
    taken = {"strength": result.metrics["strength"], "best_step": result.metrics["best_step"], "steps": steps}
    return {**judged, **taken, **{name: round(value, 1) for name, value in took.items()}}


def jobs_of(options: argparse.Namespace, cells: dict[str, list[str]]) -> dict[tuple[str, str, int], Job]:
    """Every run by cell, data and seed, settings checked; the plain cell first, one seed of all before the next."""
    shared = [f"model.max_length={options.max_length}", f"data.limit={options.limit}", *options.set]
    corpora = dict(options.corpus)
    order = sorted(cells, key=lambda name: name != options.plain)
    jobs = {}
    for seed in options.seeds:
        for data, train, dev in options.data:
            held_out = HeldOut(
                dev, options.dev_rows, sts=options.sts, corpus=corpora.get(data), queries=options.queries
            )
            for cell in order:
                settings = [*shared, f"train.seed={seed}", *cells[cell]]
                job = Job(options.config, settings, options.model, train, held_out, options.max_length)
                job.resolve()  # a wrong setting is said before the first run
                jobs[cell, data, seed] = job
    return jobs


def read_cells(options: argparse.Namespace) -> dict[str, list[str]]:
    """Cells of --plan and --cell: name -> settings."""
    cells = tomllib.loads(options.plan.read_text(encoding="utf-8"))["cells"] if options.plan else {}
    return cells | {name: settings for name, *settings in options.cell}


def open_record(options: argparse.Namespace, cells: dict[str, list[str]]) -> dict[str, Any]:
    """The record that is continued, or a new one. Exits where it was made with other settings or data."""
    shared = {"model": Path(options.model).name, "config": options.config.name, "set": options.set}
    shared |= {name: getattr(options, name) for name in ("max_length", "limit", "dev_rows", "queries")}
    shared |= {"sts": bool(options.sts), "corpora": sorted(name for name, _ in options.corpus)}
    data = {}
    for name, *files in options.data:
        train, dev = map(read_pairs, files)
        data[name] = {"train": train.fingerprint(), "train_rows": len(train), "dev": dev.fingerprint()}
        data[name] |= {"dev_rows": len(dev), "shared_texts": check_overlap(train, dev, allowed=1)}
    path = options.results / f"{options.name}.json"
    new: dict[str, Any] = {"settings": shared, "plain": options.plain, "cells": {}, "data": {}, "runs": []}
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else new
    for part, given in (("settings", shared), ("cells", cells), ("data", data)):
        for name, value in given.items():
            if record[part].setdefault(name, value) != value:
                there = f"{part} {name} is {record[part][name]!r} there and {value!r} here"
                raise SystemExit(f"{path}: {there}: choose another --name, or remove the record")
    return record


def main() -> None:
    parser = make_parser(__doc__, "screen")
    parser.add_argument("--model", required=True, help="folder of the encoder to start from")
    parser.add_argument(
        "--data", required=True, nargs=3, action="append", metavar=("NAME", "TRAIN", "DEV"), help="may be repeated"
    )
    parser.add_argument("--plan", type=Path, metavar="FILE", help="TOML file of cells")
    parser.add_argument("--cell", nargs="+", action="append", default=[], metavar=("NAME", "SECTION.KEY=VALUE"))
    parser.add_argument("--plain", default="plain", help="cell that the others are compared with (default: plain)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--config", type=Path, default=CONFIG, help="what all cells share (default: %(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="likewise")
    parser.add_argument("--max-length", type=int, default=128, help="tokens of a text, in training and judging")
    parser.add_argument("--limit", type=int, default=0, help="train on a sample of so many pairs")
    parser.add_argument("--dev-rows", type=int, default=0, help="judge on a sample of so many pairs")
    parser.add_argument("--sts", metavar="FILE", help="general similarity, judged as well")
    parser.add_argument(
        "--corpus",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "TICKETS"),
        help="searched, for the data NAME",
    )
    parser.add_argument("--queries", default="pairs_part=dev", help="tickets that search (default: %(default)s)")
    add_at_once(parser)
    options = parser.parse_args()
    cells = read_cells(options)
    try:
        record, jobs = open_record(options, cells), jobs_of(options, cells)
    except TrainerError as error:
        raise SystemExit(str(error)) from None
    failed = run_all(options, record, jobs)
    if record["runs"]:
        print("\n".join(screen(record)))
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


def run_all(options: argparse.Namespace, record: dict[str, Any], jobs: dict[tuple[str, str, int], Job]) -> list[str]:
    """Run what the record lacks, and write it after each run. Returns which runs failed; the others go on."""
    there = {(run["cell"], run["data"], run["seed"]) for run in record["runs"]}
    missing = {key: (job,) for key, job in jobs.items() if key not in there}
    failed = []
    for (cell, data, seed), outcome in each_in_new_process(run_job, missing, options.at_once):
        name = f"{cell} on {data}, seed {seed}"
        try:
            result = outcome.result()
        except TrainerError as error:  # one cell diverged: a result too, but none to average
            print(f"---- {name}: {type(error).__name__}: {error}", flush=True)
            failed.append(name)
            continue
        record.setdefault("untouched", {})[data] = result.pop("untouched")
        commit = environment()["commit"]
        record["runs"].append({"cell": cell, "data": data, "seed": seed, "commit": commit, **result})
        finish(options, record)
        print(f"---- {name}: done; {len(record['runs'])} runs in the record", flush=True)
    return failed


if __name__ == "__main__":
    main()
