"""Render the tables of every page, and the picture of bench/README.md, from the records in bench/results.

A page is a README.md; a table stands between `<!-- begin NAME -->` and `<!-- end NAME -->`, on one page or several.
A figure between markers is never typed by hand.

    python -m bench.report            rewrite the pages and draw the picture (extra `report`)
    python -m bench.report --check    exit 1 where a page is not what the records say
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import quality_tables as quality
from bench import reliability_tables as reliability
from bench import speed_tables as speed
from bench.records import RESULTS, ROOT

THROUGHPUT = ("throughput_mpnet-4_fp32_cpu", "throughput_minilm-l6_fp32_cpu")
ON_GPU = ("throughput_mpnet-base_bf16_cuda", "throughput_mpnet-base_bf16_512", "throughput_minilm-l6_bf16_sdpa")
REFERENCE_RUNS = ("mpnet_reference", "mpnet_lora", "mpnet_full")
BLOCKS: dict[str, tuple[tuple[str, ...], Callable[..., list[str]]]] = {
    "real run": (("itsm_minilm",), quality.real_run),
    "real run, LoRA": (("itsm_minilm_lora",), quality.real_run),
    "real run, replay": (("itsm_minilm_replay",), quality.real_run),
    "real run, two stages": (("itsm_two_stages",), quality.real_run),
    "reference model": ((*REFERENCE_RUNS, "mpnet_lora_1e-3"), quality.reference_model),
    "reference model, in short": (REFERENCE_RUNS, quality.reference_in_short),
    "loss": (("loss", "loss_large"), speed.loss),
    "any batch": (("gradient_caching", "gradient_caching_full", "two_ranks"), speed.any_batch),
    "throughput": (THROUGHPUT, speed.throughput),
    "throughput, GPU": (ON_GPU, speed.throughput_gpu),
    "input pipeline": (("input_pipeline",), speed.input_pipeline),
    "build pairs": (("build_pairs",), speed.build_pairs),
    "chaos": (("chaos",), reliability.chaos),
    "fuzz": (("fuzz",), reliability.fuzz),
    "chaos, peer": (("chaos_peer",), reliability.chaos_peer),
    "saving": (("saving",), speed.saving),
    "judging": (("intervals",), speed.judging),
    "searching": (("search",), speed.searching),
    "serving": (("serving",), speed.serving),
    "serving, mpnet": (("serving_mpnet",), speed.serving),
    "bugs": (("bugs",), quality.bugs),
    "bugs gains": (("bugs",), quality.bugs_gains),
    "raw incidents": (("raw_incidents",), quality.reference_model),
    "index types": (("index_types",), quality.index_types),
    "principal axes": (("principal_axes",), quality.axes),
    "index": (("index",), speed.index),
    "screen": (("screen",), quality.screen),
    "peers": (("peers",), quality.peers),
    "peers, bugs": (("peers_bugs",), quality.peers),
    "false negatives": (("false_negatives",), quality.false_negatives),
}


def read_record(name: str) -> dict[str, Any]:
    """A record of bench/results."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def lines_of(block: str) -> list[str]:
    """A table as its records have it, or which records are missing."""
    records, table = BLOCKS[block]
    if missing := [f"{name}.json" for name in records if not (RESULTS / f"{name}.json").exists()]:
        return [f"Not measured yet: no {' and no '.join(missing)} among the records."]
    return table(*map(read_record, records))


def pages(root: Path = ROOT) -> list[Path]:
    """README.md of the project and of its folders."""
    folders = ("trainer", "configs", "bench", "tests")
    return [root / "README.md", *(page for name in folders for page in sorted((root / name).rglob("README.md")))]


def render(text: str, page: str) -> tuple[str, set[str]]:
    """A page with every table between its markers written anew from its records, and the names of its tables."""
    names = re.findall("<!-- begin (.+?) -->", text)
    for name in names:
        if name not in BLOCKS:
            raise SystemExit(f"{page}: no table is called {name!r}; there are {', '.join(sorted(BLOCKS))}")
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        body = "\n".join([begin, "", *lines_of(name), "", end])
        text, found = re.subn(re.escape(begin) + ".*?" + re.escape(end), lambda *_, body=body: body, text, flags=re.S)
        if found != 1:
            raise SystemExit(f"{page}: expected one {begin} with its end, found {found}")
    return text, set(names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a page would change")
    options = parser.parse_args()
    stale, shown = [], set[str]()
    for page in pages():
        name, old = str(page.relative_to(ROOT)), page.read_text(encoding="utf-8")
        new, names = render(old, name)
        shown |= names
        if new != old:
            stale.append(name)
            if not options.check:
                page.write_text(new, encoding="utf-8")
    if unseen := set(BLOCKS) - shown:
        raise SystemExit(f"no page shows {', '.join(sorted(unseen))}")
    if options.check:
        sys.exit(f"not what the records say: {', '.join(stale)}; run python -m bench.report" if stale else 0)
    speed.draw_throughput(RESULTS / "throughput.svg", *map(read_record, THROUGHPUT))


if __name__ == "__main__":
    main()
