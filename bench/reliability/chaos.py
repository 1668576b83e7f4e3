"""Break the trainer as real processes, resume it, and compare with the undisturbed run, bit for bit and row for row.

    python -m bench.reliability.chaos [--kills 300] [--corruptions 500] [--signals 20] [--faults 3] [--peers 2]

Every case has random numbers of its own, of (seed, campaign, number): it is the same however many run side by side.
`chaos_cases.py` holds what is done to a run, `chaos_runs.py` the processes and the comparison, `chaos_faults.py` what
is planted in them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from bench.measuring import clocked
from bench.records import finish, make_parser
from bench.reliability.chaos_cases import (
    FAULTS,
    TIMEOUT_S,
    AnyBench,
    Case,
    Result,
    corruptions,
    faults,
    kills,
    make_targets,
    peers,
    signals,
)
from bench.reliability.chaos_runs import SETTINGS, prepare


def chaos_parser(description: str | None, record: str, kills: int) -> argparse.ArgumentParser:
    """The options of a campaign of kills."""
    parser = make_parser(description, record)
    parser.add_argument("--kills", type=int, default=kills)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="cases side by side (default: the cores)")
    return parser


def campaign(case: Case[AnyBench], bench: AnyBench, count: int, options: argparse.Namespace) -> dict[str, Any]:
    """The cases of these numbers, shared out over the processes: counts, and a line for all that is not as promised."""
    # A time-out is measured with nothing beside it.
    jobs = 1 if case is peers else options.jobs
    with clocked() as took, ProcessPoolExecutor(jobs, multiprocessing.get_context("fork")) as pool:
        results = list(pool.map(partial(run_case, case, bench, options.seed), range(count)))
    wrong = [f"{number}: {result.wrong}" for number, result in enumerate(results) if result.wrong]
    found = {
        "tried": sum(result.tried for result in results),
        "wrong": len(wrong),
        "most_updates_lost": max((result.lost for result in results), default=0),
        "counts": dict(sorted(Counter(name for result in results for name in result.counted).items())),
        "wrong_cases": wrong,
        "seconds": round(took["seconds"], 1),
    }
    print(f"{case.__name__:12} {found['tried']:5} tried {len(wrong):5} wrong  {found['seconds']:7} s")
    print("".join(f"    {line}\n" for line in wrong), end="", flush=True)
    return found


def run_case(case: Case[AnyBench], bench: AnyBench, seed: int, number: int) -> Result:
    """One case, in a folder of its own that goes with it."""
    folder = bench.folder()
    try:
        return case(bench, folder, number, random.Random(f"{seed} {case.__name__} {number}"))
    finally:
        shutil.rmtree(folder.parent, ignore_errors=True)


def main() -> int:
    """Run the campaigns, print the table, write the record; 1 where anything was wrong."""
    parser = chaos_parser(__doc__, "chaos", kills=300)
    for name, default in {"corruptions": 500, "signals": 20, "faults": 3, "peers": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    start = time.monotonic()
    numbers = {kills: options.kills, corruptions: options.corruptions, signals: options.signals}
    numbers |= {faults: FAULTS * options.faults, peers: 2 * options.peers}
    with tempfile.TemporaryDirectory() as folder:
        bench = prepare(Path(folder), options.jobs)
        print("undisturbed: " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in bench.seconds.items()))
        make_targets(bench)
        results = {case.__name__: campaign(case, bench, count, options) for case, count in numbers.items()}
    record = {"seed": options.seed, "jobs": options.jobs, "seconds": round(time.monotonic() - start, 1)}
    record |= {"undisturbed_seconds": bench.seconds, "save_interval": SETTINGS["checkpoint.every"]}
    finish(options, record | {"timeout": TIMEOUT_S, "campaigns": results})
    return int(any(result["wrong"] for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
