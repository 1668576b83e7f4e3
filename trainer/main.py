"""The command line: `trainer [train]`, `trainer build-pairs`, `trainer lint`, `trainer evaluate`, `trainer report`."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # Started as a file (`accelerate launch trainer/main.py`), Python puts trainer/ itself first on the path, where its
    # modules would hide others of the same name. What belongs there is the folder above.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import json
import os
import signal
import warnings
from collections.abc import Callable, Sequence

from trainer.errors import InputError, LintError, Stopped, StorageError, TrainerError
from trainer.process import tune_process


def cli(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, do the work, return the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    command = "train"
    if arguments and not arguments[0].startswith("-"):
        command = arguments.pop(0)
    try:
        if command not in COMMANDS:
            raise InputError(f"unknown command {command!r}; use one of {', '.join(COMMANDS)}")
        make_parser, work = COMMANDS[command]
        options = make_parser().parse_args(arguments)
        tune_process()
        # PEFT still asks transformers for a property by its old name; a user can do nothing about it.
        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
        work(options)
    except TrainerError as error:
        # Bad input and a signal are the same on every rank of a machine: one of them says so.
        if os.environ.get("LOCAL_RANK", "0") == "0" or not isinstance(error, InputError | Stopped):
            report(error)
        return error.exit_code
    except OSError as error:
        report(error)
        return StorageError.exit_code
    except (RuntimeError, MemoryError) as error:
        if is_peer_lost(error):
            # Of gloo's message, without its source lines and advice.
            cause = str(error).splitlines()[0].split("] ", 1)[-1].split(". ")[0]
            report(
                "another process of this run died, or did not answer within train.timeout; the first message says why "
                f"({cause})"
            )
            return TrainerError.exit_code  # of no cause's own: the launcher prefers the rank that has one
        if not is_out_of_memory(error):
            raise
        report(f"out of memory: {MORE_MEMORY[command]}")
        return InputError.exit_code
    return 0


def main() -> None:
    """The whole life of a process: the command line's work, then an end that no signal disturbs."""
    code = cli()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(code)


def report(error: object) -> None:
    """Print an error as one line."""
    print(f"error: {error}".replace("\n", " "), file=sys.stderr)


def is_peer_lost(error: Exception) -> bool:
    """Whether a collective operation failed for want of its other ranks."""
    from torch.distributed import DistError

    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return several and (isinstance(error, DistError) or "gloo" in str(error))


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed, on a GPU or on the CPU."""
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, MemoryError) or should_reduce_batch_size(error)


class Parser(argparse.ArgumentParser):
    """Reports a bad command line as one line, like every other bad input."""

    def error(self, message: str) -> None:  # type: ignore[override]  # argparse's never returns; neither does this
        raise InputError(f"{message}; see {self.prog} --help")


def train_parser() -> argparse.ArgumentParser:
    """Options of `trainer train`."""
    parser = Parser(
        prog="trainer",
        description="Fine-tune a text-embedding encoder on labelled pairs, at every Matryoshka size.",
        epilog="Other commands, each with --help: trainer build-pairs, trainer lint, trainer evaluate, trainer report. "
        "Without --config a small example is trained in under a minute.",
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


def evaluate_parser() -> argparse.ArgumentParser:
    """Options of `trainer evaluate`."""
    parser = Parser(prog="trainer evaluate", description="Judge an encoder on labelled pairs.", allow_abbrev=False)
    parser.add_argument("--model", required=True, metavar="DIR|NAME")
    parser.add_argument("--pairs", required=True, metavar="FILE", help="held-out pairs to report on")
    parser.add_argument(
        "--dev",
        metavar="FILE",
        help="pairs to fit thresholds on, which are then kept in the model's folder (default: those kept there, else "
        "fitted on the judged pairs and labelled in-sample)",
    )
    parser.add_argument("--baseline", metavar="NAME", help="model to compare with")
    parser.add_argument("--dims", metavar="N,N,...", help="Matryoshka dims (default: the models' width)")
    parser.add_argument("--label-scale", type=float, default=1.0, help="labels run from 0 to this (default 1)")
    parser.add_argument("--positive-threshold", type=float, help="labels from here on are positive (default: half)")
    parser.add_argument(
        "--threshold",
        dest="rule",
        default="f1",
        metavar="RULE",
        help="f1 (default), or the lowest that keeps precision=P or false_positive_rate=R",
    )
    parser.add_argument("--metric", default="spearman", help="what the verdict goes by (default spearman)")
    parser.add_argument(
        "--forgetting",
        metavar="FILE",
        help="STS set (sentence, sentence, score 0-5; no header) to judge before (baseline) and after",
    )
    parser.add_argument("--resamples", type=int, default=1000, help="of the bootstrap (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default 0)")
    parser.add_argument(
        "--fewest", type=int, default=20, help="pairs of either kind that the diagnostic needs (default 20)"
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all figures there")
    return parser


def lint_parser() -> argparse.ArgumentParser:
    """Options of `trainer lint`."""
    parser = Parser(
        prog="trainer lint",
        description="Find what is wrong with labelled pairs, before training on them.",
        epilog="Exit code 1 where something is serious.",
        allow_abbrev=False,
    )
    parser.add_argument("--pairs", required=True, metavar="FILE", help="training pairs")
    parser.add_argument(
        "--eval", dest="held_out", nargs="+", action="extend", default=[], metavar="FILE", help="held-out pairs"
    )
    parser.add_argument(
        "--model",
        metavar="DIR|NAME",
        help="untouched encoder to measure difficulty and lengths by (default: TF-IDF, and an estimate)",
    )
    parser.add_argument("--label-scale", type=float, default=1.0, help="labels run from 0 to this (default 1)")
    parser.add_argument("--positive-threshold", type=float, help="labels from here on are positive (default: half)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all findings and figures there")
    return parser


def build_pairs_parser() -> argparse.ArgumentParser:
    """Options of `trainer build-pairs`."""
    from trainer.build_options import DESCRIPTION, EPILOG, add_options

    parser = Parser(prog="trainer build-pairs", description=DESCRIPTION, epilog=EPILOG, allow_abbrev=False)
    add_options(parser)
    return parser


def report_parser() -> argparse.ArgumentParser:
    """Options of `trainer report`."""
    parser = Parser(
        prog="trainer report",
        description="Write report.html into a finished run's folder; of several runs, a comparison.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="of a comparison (default: comparison.html where you are)"
    )
    return parser


def run_train(options: argparse.Namespace) -> None:
    """Load the config and train."""
    from trainer.config import load_config

    path = options.config or default_config()
    if options.resume and options.output_dir and not options.config:
        path = Path(options.output_dir) / "config.toml"  # the run's own
    overrides = [*options.set, *([f"output.dir={json.dumps(options.output_dir)}"] if options.output_dir else [])]
    overrides += ["eval.choose_strength=false"] if options.full_strength else []
    config = load_config(path, overrides)

    from trainer.train import train  # imports torch: after everything that can fail without it

    train(config, path.stem, options.resume, options.allow_inexact_resume)


def run_evaluate(options: argparse.Namespace) -> None:
    """Evaluate a model, and a baseline beside it."""
    from trainer.judge import Question, judge, judgement_record, keep_thresholds, print_judgement

    asked = {key: value for key, value in vars(options).items() if key not in ("json", "dims")}
    judgement = judge(Question(**asked, dims=parse_dims(options.dims)))
    print_judgement(judgement)
    if options.json:
        from trainer.logbook import write_json

        write_json(options.json, judgement_record(judgement))
    keep_thresholds(judgement)


def run_lint(options: argparse.Namespace) -> None:
    """Look for what is wrong with pairs. Raises LintError where something is serious."""
    from trainer.lint import lint_files, print_report

    report = lint_files(
        options.pairs,
        options.held_out,
        options.model,
        label_scale=options.label_scale,
        positive_threshold=options.positive_threshold,
    )
    print_report(report)
    if options.json:
        from trainer.storage import write_file

        write_file(options.json, json.dumps(report.record(), indent=2, ensure_ascii=False) + "\n")
    if count := report.serious():
        raise LintError(f"{options.pairs}: {count} serious finding{'s' * (count > 1)}; mend the data before training")


def run_build_pairs(options: argparse.Namespace) -> None:
    """Build pairs from raw tickets."""
    from trainer.build_options import settings_from
    from trainer.builder import build_pairs

    build_pairs(settings_from(options))


def run_report(options: argparse.Namespace) -> None:
    """Report on a finished run, or compare several."""
    from trainer.console import console
    from trainer.report import COMPARISON, write_comparison, write_report

    if len(options.runs) == 1:
        if options.output:
            raise InputError("--output is for a comparison; the report of one run is written into its folder")
        path = write_report(options.runs[0])
    else:
        path = write_comparison(options.runs, options.output or Path(COMPARISON))
    console.print(f"Report: {path}", markup=False)


def parse_dims(text: str | None) -> tuple[int, ...]:
    """ "768,64" -> (768, 64); nothing -> (). Raises InputError."""
    try:
        dims = tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        dims = (0,)
    if any(dim < 1 for dim in dims) or len(set(dims)) != len(dims):
        raise InputError(f"--dims {text}: write different whole numbers above 0, as in --dims 768,128")
    return dims


def default_config() -> Path:
    """configs/quickstart.toml, of the checkout or inside the installed package."""
    package = Path(__file__).resolve().parent
    places = [package.parent / "configs" / "quickstart.toml", package / "configs" / "quickstart.toml"]
    return next((path for path in places if path.is_file()), places[0])


COMMANDS: dict[str, tuple[Callable[[], argparse.ArgumentParser], Callable[[argparse.Namespace], None]]] = {
    "train": (train_parser, run_train),
    "evaluate": (evaluate_parser, run_evaluate),
    "lint": (lint_parser, run_lint),
    "build-pairs": (build_pairs_parser, run_build_pairs),
    "report": (report_parser, run_report),
}

ON_CPU = "; where a GPU is full, CUDA_VISIBLE_DEVICES= keeps to the CPU"
MORE_MEMORY = {  # what to do where it runs out
    "train": "set train.tokens_per_chunk, to 16384 first and lower while it still runs out",
    "evaluate": "judge a part of the pairs" + ON_CPU,
    "lint": "look at a part of the pairs, or leave out --model" + ON_CPU,
    "build-pairs": "give fewer tickets, lower --sizes and --max-words, or leave out --model" + ON_CPU,
    "report": "compare fewer runs",
}

if __name__ == "__main__":
    main()
