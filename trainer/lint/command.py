"""The command `trainer lint`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from trainer.data.readers import add_label_options, add_reading_options, reading_from
from trainer.errors import InputError, LintError
from trainer.system.arguments import Parser, require_writable


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
    add_label_options(parser)
    add_reading_options(parser)
    text = "with --model: write the pairs whose labels it doubts there, the most doubtful first, for trainer label"
    parser.add_argument("--doubtful", type=Path, metavar="OUT", help=text)
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all findings and figures there")
    return parser


def run_lint(options: argparse.Namespace) -> None:
    """Look for what is wrong with pairs. Raises LintError where something is serious."""
    from trainer.data.pairs import read_pairs
    from trainer.lint.linter import lint_tables, measure_by
    from trainer.lint.show import print_report

    if options.doubtful and not options.model:
        raise InputError(f"--doubtful {options.doubtful}: a model doubts: name an untouched encoder with --model")
    if options.doubtful and options.json and options.doubtful.resolve() == options.json.resolve():
        raise InputError(f"--json {options.json}: is what --doubtful names too: name another file for one of them")
    label_options = {"label_scale": options.label_scale, "positive_threshold": options.positive_threshold}
    paths = (options.pairs, *options.held_out)
    for option, output in (("--doubtful", options.doubtful), ("--json", options.json)):
        if output:
            require_writable(output, option, paths)
    tables = [read_pairs(path, reading=reading_from(options), **label_options) for path in paths]
    tokens, cosines = measure_by(options.model, tables) if options.model else (None, None)
    report = lint_tables(tables, tokens, cosines)
    print_report(report)
    if options.doubtful and cosines is not None:
        from trainer.lint.doubtful import write_doubtful

        write_doubtful(options.doubtful, tables, cosines)
    if options.json:
        from trainer.system.files import write_file

        write_file(options.json, json.dumps(report.record(), indent=2, ensure_ascii=False) + "\n")
    if count := report.serious():
        raise LintError(f"{options.pairs}: {count} serious finding{'s' * (count > 1)}; mend the data before training")
