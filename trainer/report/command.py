"""The command `trainer report`."""

from __future__ import annotations

import argparse
from pathlib import Path

from trainer.errors import InputError
from trainer.system.arguments import Parser


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


def run_report(options: argparse.Namespace) -> None:
    """Report on a finished run, or compare several."""
    from trainer.report.comparison import COMPARISON, write_comparison
    from trainer.report.run_page import write_report
    from trainer.system.console import console

    if len(options.runs) == 1:
        if options.output:
            raise InputError("--output is for a comparison; the report of one run is written into its folder")
        path = write_report(options.runs[0])
    else:
        path = write_comparison(options.runs, options.output or Path(COMPARISON))
    console.print(f"Report: {path}", markup=False)
