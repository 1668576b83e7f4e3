"""The command `trainer train`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from trainer.system.arguments import Parser
from trainer.system.run_files import CONFIG


def train_parser() -> argparse.ArgumentParser:
    """Options of `trainer train`."""
    parser = Parser(
        prog="trainer",
        description="Fine-tune a text-embedding encoder on labelled pairs, at every Matryoshka size.",
        epilog="Other commands, each with --help: trainer build-pairs, trainer lint, trainer evaluate, trainer report, "
        "trainer settings (every SECTION.KEY). Without --config a small example is trained in under a minute.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file of the experiment")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change a setting (may be repeated)"
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
    return parser


def run_train(options: argparse.Namespace) -> None:
    """Load the config and train."""
    from trainer.config_file import load_config

    path = options.config or default_config()
    if options.resume and options.output_dir and not options.config:
        path = Path(options.output_dir) / CONFIG  # the run's own
    overrides = [*options.set, *([f"output.dir={json.dumps(options.output_dir)}"] if options.output_dir else [])]
    overrides += ["eval.choose_strength=false"] if options.full_strength else []
    config = load_config(path, overrides)

    from trainer.training.loop import train  # imports torch: after everything that can fail without it

    train(config, path.stem, options.resume, options.allow_inexact_resume)


def default_config() -> Path:
    """configs/quickstart.toml, of the checkout or inside the installed package."""
    package = Path(__file__).resolve().parents[1]
    places = [package.parent / "configs" / "quickstart.toml", package / "configs" / "quickstart.toml"]
    return next((path for path in places if path.is_file()), places[0])
