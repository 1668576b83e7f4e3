"""`trainer build-pairs` as the file grows: seconds and peak memory from 10,000 to 100,000 tickets.

Larger files are made out of real tickets: the title of one, then one to three sentences of others of its category, so
words keep their frequencies and titles recur as often as the file is larger. Without --tickets they are made out of
generated incidents, whose small vocabulary makes far more pairs alike. Each size runs in a process of its own, with the
defaults of the command. Writes bench/results/build_pairs.json.

    python -m bench.speed.build_pairs --tickets tickets.csv
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from random import Random
from typing import Any

from bench.records import RESULTS, environment, save_record
from trainer.data.incidents import generate_pairs
from trainer.data.readers import read_table
from trainer.data.ticket_table import Columns
from trainer.main import cli
from trainer.system.console import console

NAMES = ("number", "short_description", "description", "assignment_group")
SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")


def real_tickets(path: str) -> list[tuple[str, str, str]]:
    """Title, body and category of each ticket."""
    columns = read_table(path, Columns()).columns
    return list(zip(*(columns[name] for name in ("text1", "text2", "category")), strict=True))


def generated_tickets() -> list[tuple[str, str, str]]:
    """As `real_tickets`, from the seeded grammar."""
    pairs = generate_pairs(6000, 0, "train")
    return list(zip(pairs["texts1"], pairs["texts2"], pairs["categories1"], strict=True))


def write_tickets(path: Path, known: list[tuple[str, str, str]], count: int) -> None:
    """`count` tickets recombined from known ones; a pure function of these."""
    random = Random(count)
    sentences: dict[str, list[str]] = defaultdict(list)
    for _, body, category in known:
        sentences[category] += [part for part in SENTENCE.split(body) if len(part.split()) > 2]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(NAMES)
        for number in range(count):
            title, body, category = random.choice(known)
            parts = random.choices(sentences[category] or [body], k=random.randint(1, 3))
            writer.writerow([f"INC{number:07}", title, " ".join(parts), category])


def child(tickets: str, output: str) -> None:
    """What `measure` starts: the command, timed."""
    start = time.perf_counter()
    code = cli(["build-pairs", "--tickets", tickets, "--output", output])
    seconds = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_SELF)
    busy = used.ru_utime + used.ru_stime
    print(json.dumps({"code": code, "seconds": seconds, "cpu_seconds": busy, "peak_bytes": used.ru_maxrss * 1024}))


def measure(known: list[tuple[str, str, str]], count: int) -> dict[str, Any]:
    """One size: seconds of the clock and of both cores, peak bytes, tickets kept and rows written."""
    with tempfile.TemporaryDirectory() as folder:
        tickets, output = Path(folder) / "tickets.csv", Path(folder) / "out"
        write_tickets(tickets, known, count)
        command = [sys.executable, "-m", "bench.speed.build_pairs", "--child", str(tickets), str(output)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        result = json.loads(done.stdout)
        if result["code"]:
            raise SystemExit(f"build-pairs on {count} tickets ended with code {result['code']}")
        report = json.loads((output / "report.json").read_text(encoding="utf-8"))
    candidates = {name: figures["candidates"] for name, figures in report["parts"]["train"].items()}
    return {
        "tickets": count,
        **{key: result[key] for key in ("seconds", "cpu_seconds", "peak_bytes")},
        "kept": report["tickets"]["kept"],
        "candidates": candidates,
        "rows": report["files"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tickets", help="real tickets with the default columns (default: generated ones)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 20_000, 50_000, 100_000])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the record")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return
    known = real_tickets(options.tickets) if options.tickets else generated_tickets()
    made_from = "sentences of real tickets, recombined" if options.tickets else "generated incidents, recombined"
    record: dict[str, Any] = {"environment": environment(), "made_from": made_from, "growth": []}
    for count in options.sizes:
        record["growth"].append(measure(known, count))
        entry = record["growth"][-1]
        said = f"{count:,} tickets: {entry['seconds']:.0f} s, peak {entry['peak_bytes'] / 2**30:.2f} GiB"
        console.print(f"{said}, {entry['kept']:,} kept, candidates {entry['candidates']}", markup=False)
    console.print(f"Record: {save_record('build_pairs', record, options.results)}", markup=False)


if __name__ == "__main__":
    main()
