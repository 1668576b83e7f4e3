"""The command `trainer report`."""

from __future__ import annotations

import argparse
from pathlib import Path

from trainer.errors import InputError
from trainer.system.arguments import Parser, require_writable


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
        output = options.output or Path(COMPARISON)
        if output.suffix.lower() != ".html":
            raise InputError(f"--output {output}: a comparison is a page: name it .html")
        require_writable(output, "--output", ())
        path = write_comparison(options.runs, output)
    console.print(f"Report: {path}", markup=False)
