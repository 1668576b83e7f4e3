"""The command `trainer train`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from trainer.errors import InputError
from trainer.system.arguments import Parser
from trainer.system.run_files import CONFIG


def train_parser() -> argparse.ArgumentParser:
    """Options of `trainer train`."""
    parser = Parser(
        prog="trainer",
        description="Fine-tune a text-embedding encoder on labelled pairs, at every Matryoshka size.",
        epilog="Other commands, each with --help: trainer build-pairs, label, lint, evaluate, promote, report, index, "
        "search, duplicates, export, push, and settings (every SECTION.KEY). Without --config, and with neither "
        "model.name nor data.train set, a small example is trained in under a minute.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="TOML file of the experiment (default: the built-in settings)"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change a setting (may be repeated)"
    )
    parser.add_argument(
        "--from",
        dest="start",
        metavar="DIR|NAME",
        help="the model to begin with, as --set model.name=DIR: that of an earlier run is compared with at the end, "
        "and so is the original that the chain of runs began with",
    )
    parser.add_argument("--output-dir", metavar="DIR", help="folder of the run (default: runs/NAME of the config)")
    parser.add_argument("--resume", action="store_true", help="continue the run of that folder")
    parser.add_argument(
        "--allow-inexact-resume",
        action="store_true",
        help="also with another number of processes, device, precision or version: not the same to the bit",
    )
    parser.add_argument(
        "--full-strength",
        action="store_true",
        help="export the trained weights as they are; by default dev chooses how far to go from the untouched ones",
    )
    parser.add_argument(
        "--max-steps",
        type=int,
        metavar="N",
        help="end after N steps of the plan, at the rates and with the batches that these have in it; then judge and "
        "export as usual",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="read and check everything, print the plan and how long it will take, and leave nothing behind",
    )
    return parser


def run_train(options: argparse.Namespace) -> None:
    """Load the config and train. Raises InputError."""
    from trainer.config_file import load_config, resolve_config

    if options.allow_inexact_resume and not options.resume:
        raise InputError("--allow-inexact-resume is about continuing a run: add --resume, or leave it out")
    if options.dry_run and options.resume:
        raise InputError("--dry-run is about a run that has not begun: leave out --resume")
    if options.max_steps is not None and options.max_steps < 1:
        raise InputError(f"--max-steps {options.max_steps}: use 1 or more, or leave it out to make all steps")
    if options.start is not None:
        if options.resume or any(text.partition("=")[0].strip() == "model.name" for text in options.set):
            raise InputError(
                f"--from {options.start}: is short for model.name, which --resume or --set names: drop one"
            )
        options.set = [*options.set, f"model.name={json.dumps(options.start)}"]
    overrides = [*options.set, *([f"output.dir={json.dumps(options.output_dir)}"] if options.output_dir else [])]
    overrides += ["eval.choose_strength=false"] if options.full_strength else []
    if path := choose_config(options):
        config, name = load_config(path, overrides), path.stem
    else:
        config = resolve_config({}, overrides, "without --config")
        name = Path(config.data.training_files()[0].path).name.split(".")[0] or "run"

    from trainer.training.loop import train  # imports torch: after everything that can fail without it

    train(config, name, options.resume, options.allow_inexact_resume, options.max_steps, options.dry_run)


def choose_config(options: argparse.Namespace) -> Path | None:
    """The file of the experiment: the one named, or the one in the folder of the run that is continued.

    Without either, the quickstart's, unless a model or training pairs are set: what does for a toy does not for these,
    so None leaves them to the built-in settings.
    """
    if options.config:
        return Path(options.config)
    if options.resume and options.output_dir:
        path = Path(options.output_dir) / CONFIG
        if not path.is_file():
            raise InputError(
                f"{options.output_dir}: no {CONFIG} of a run to continue; check --output-dir, or leave out --resume to "
                "start one there"
            )
        return path
    keys = {text.partition("=")[0].strip() for text in options.set}
    return None if keys & {"model.name", "data.train", "data.sources"} else default_config()


def default_config() -> Path:
    """configs/quickstart.toml, of the checkout or inside the installed package."""
    package = Path(__file__).resolve().parents[1]
    places = [package.parent / "configs" / "quickstart.toml", package / "configs" / "quickstart.toml"]
    return next((path for path in places if path.is_file()), places[0])
