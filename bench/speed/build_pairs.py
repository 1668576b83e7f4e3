"""`trainer build-pairs` as the file grows: seconds and peak memory from 10,000 to 100,000 tickets.

Larger files are made out of real tickets: the title of one, then one to three sentences of others of its category, so
words keep their frequencies and titles recur as often as the file is larger. Resolution and notes are further such
sentences, every tenth ticket is a duplicate of an earlier one, and all have a date: every source of labels is there. Without --tickets they are made out of
generated incidents, whose small vocabulary makes far more pairs alike. Each size runs in a process of its own, with the
defaults of the command.

    python -m bench.speed.build_pairs --tickets tickets.csv
"""

from __future__ import annotations

import csv
import json
import re
import resource
import tempfile
import time
from collections import defaultdict
from datetime import datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

from bench.measuring import in_new_process
from bench.records import finish, make_parser
from trainer.data.incidents import generate_pairs
from trainer.data.readers import read_table
from trainer.data.ticket_table import Columns
from trainer.main import cli

NAMES = (
    "number", "short_description", "description", "assignment_group", "close_notes", "work_notes", "duplicate_of",
    "opened_at",
)  # fmt: skip
START = datetime(2024, 1, 1)
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
            texts = [
                " ".join(random.choices(sentences[category] or [body], k=random.randint(1, most))) for most in (3, 2, 2)
            ]
            link = f"INC{random.randrange(number):07}" if number % 10 == 9 else ""
            opened = START + timedelta(minutes=number)
            writer.writerow([f"INC{number:07}", title, texts[0], category, *texts[1:], link, opened.isoformat()])


def build(tickets: Path, output: Path, sources: str) -> dict[str, float]:
    """The command, of all sources or of some: seconds of the clock and of both cores, and the peak of this process."""
    start = time.perf_counter()
    asked = ["--sources", sources] if sources else []
    if code := cli(["build-pairs", "--tickets", str(tickets), "--output", str(output), *asked]):
        raise SystemExit(f"build-pairs ended with code {code}")
    used = resource.getrusage(resource.RUSAGE_SELF)
    took = {"seconds": time.perf_counter() - start, "cpu_seconds": used.ru_utime + used.ru_stime}
    return took | {"peak_bytes": used.ru_maxrss * 1024}


def measure(known: list[tuple[str, str, str]], count: int, sources: str) -> dict[str, Any]:
    """One size: what the command took, tickets kept, candidates and rows written."""
    with tempfile.TemporaryDirectory() as folder:
        tickets, output = Path(folder) / "tickets.csv", Path(folder) / "out"
        write_tickets(tickets, known, count)
        took = in_new_process(build, tickets, output, sources)
        report = json.loads((output / "report.json").read_text(encoding="utf-8"))
    candidates = {name: figures["candidates"] for name, figures in report["parts"]["train"].items()}
    return {
        "tickets": count,
        **took,
        "kept": report["tickets"]["kept"],
        "candidates": candidates,
        "sources": report["sources"],
        "rows": report["files"],
    }


def main() -> None:
    parser = make_parser(__doc__, "build_pairs")
    parser.add_argument("--tickets", help="real tickets with the default columns (default: generated ones)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 20_000, 50_000, 100_000])
    parser.add_argument("--sources", default="", help="as of the command (default: all, but for similarity)")
    options = parser.parse_args()
    known = real_tickets(options.tickets) if options.tickets else generated_tickets()
    growth = []
    for count in options.sizes:
        entry = measure(known, count, options.sources)
        growth.append(entry)
        said = f"{count:,} tickets: {entry['seconds']:.0f} s, peak {entry['peak_bytes'] / 2**30:.2f} GiB"
        print(
            f"{said}, {entry['kept']:,} kept, sources {entry['sources']}, candidates {entry['candidates']}", flush=True
        )
    made_from = "sentences of real tickets" if options.tickets else "generated incidents"
    finish(
        options,
        {"sources": options.sources or "all but similarity", "made_from": f"{made_from}, recombined", "growth": growth},
    )


if __name__ == "__main__":
    main()
