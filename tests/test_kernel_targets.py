"""The attention kernels compile for every GPU target, within its limits; no GPU is needed, so it runs anywhere."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs the package triton (extra `test`, on Linux)")

import triton

ROOT = Path(__file__).resolve().parents[1]
BENCH = "bench.speed.kernels"
# Another version is another compiler, which may spill where the one of the record does not.
PINNED = json.loads((ROOT / "bench" / "results" / "kernels.json").read_text(encoding="utf-8"))["triton"]
CAPABILITIES = (80, 86, 89, 90, 100, 120)


def compiled(*arguments: object) -> list[dict]:
    """What the bench program says, in a process of its own: here Triton is an interpreter."""
    command = [sys.executable, "-m", BENCH, "--json", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def wrong(entries: list[dict]) -> list[str]:
    """What keeps a kernel from running well on its target, a line each."""
    complaints = []
    for entry in entries:
        name = f"{entry['kernel']} on {entry['capability']}, {entry['dtype']}, width {entry['width']}"
        if "error" in entry:
            complaints.append(f"{name}: does not compile: {entry['error']}")
            continue
        if not entry["fits"]:
            complaints.append(f"{name}: {entry['shared']} bytes of shared memory are more than there is")
        if entry["spilled"] and entry["dtype"] == "bf16" and triton.__version__ == PINNED:
            complaints.append(f"{name}: {entry['registers']} registers, {entry['spilled']} bytes spilled")
    return complaints


def test_the_chosen_configuration_in_bf16_at_width_64_runs_on_the_newest_card_without_a_spill():
    entries = compiled("--capability", 120, "--dtype", "bf16", "--width", 64, "--flags", "full")
    assert len(entries) == 3 and wrong(entries) == []


@pytest.mark.slow
def test_the_chosen_configuration_in_bf16_at_width_64_runs_on_the_others():
    entries = compiled("--capability", *CAPABILITIES[:-1], "--dtype", "bf16", "--width", 64, "--flags", "full")
    assert len(entries) == 15 and wrong(entries) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("capability", "dtypes", "widths"), [(80, ("fp16", "fp32"), (64,)), (120, ("bf16",), (32, 128))], ids=str
)
def test_other_types_and_widths_run(capability, dtypes, widths):
    """On one card each: the record has all of them on all cards, which takes six minutes."""
    entries = compiled("--capability", capability, "--dtype", *dtypes, "--width", *widths, "--flags", "full")
    assert len(entries) == 6 and wrong(entries) == []


@pytest.mark.slow
def test_tiles_that_are_too_large_and_kernels_that_spill_are_seen():
    tiles = ("--tile", 64, 128, 8, 4, "--tile", 64, 64, 2, 2, "--tile", 64, 24, 4, 1)  # 24 is no power of 2
    chosen = ("--dtype", "bf16", "--width", 64, "--capability", 120, "--kernel", "query", "--flags", "none", *tiles)
    too_large, spilling, impossible = compiled(*chosen)
    assert "shared memory" in wrong([too_large])[0] and too_large["occupancy"] == 0
    assert spilling["spilled"] > 0
    if triton.__version__ == PINNED:
        assert "spilled" in wrong([spilling])[-1]
    assert "does not compile" in wrong([impossible])[0]


@cache
def bench():
    """The bench program as a module; its own imports stay out of the other tests' way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        return importlib.import_module(BENCH)


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "capability", "share"),
    [
        (32, 0, 4, 90, 1.0),  # 64 warps of 32 registers a thread are all registers
        (33, 0, 4, 90, 48 / 64),  # in steps of 8 registers: 1,280 a warp, 51 of them, 12 programs
        (128, 0, 4, 80, 16 / 64),
        (255, 0, 8, 120, 8 / 48),
        (64, 99 * 1024, 4, 120, 4 / 48),  # one program takes all
        (64, 99 * 1024 + 1, 4, 120, 0.0),
        (64, 49 * 1024, 4, 89, 8 / 48),  # two of 50 KiB with the system's share are 100 KiB
        (64, 49 * 1024 + 1, 4, 89, 4 / 48),
        (16, 0, 1, 86, 16 / 48),  # at most 16 programs
    ],
)
def test_occupancy_by_hand(registers, shared, warps, capability, share):
    module = bench()
    assert module.occupancy(registers, shared, warps, module.LIMITS[capability]) == pytest.approx(share)


def test_the_estimate_counts_whole_tiles_and_each_tensor_once():
    module = bench()
    card = module.Card("a card", 90, flops=1e12, bytes_per_s=1e11, source="")
    lengths = np.array([65, 3])  # tiles of 64 x 32: 2 x 3, and 1
    found = module.roofline("forward", lengths, 64, 32, card)
    assert found["arithmetic"] == pytest.approx(7 * 64 * 32 * 2 * 64 * 12 * 2 / 1e12)
    assert found["memory"] == pytest.approx(68 * 768 * 2 * 4 / 1e11)
    assert found["seconds"] == max(found["arithmetic"], found["memory"])
    assert module.roofline("key_value", lengths, 64, 32, card)["arithmetic"] == 2 * found["arithmetic"]


def test_the_page_is_what_the_record_says():
    module = bench()
    record = json.loads((ROOT / "bench" / "results" / "kernels.json").read_text(encoding="utf-8"))
    page = module.PAGE.read_text(encoding="utf-8")
    assert module.render(page, record) == page, "run python -m bench.speed.kernels --render"
    assert record["estimates"] == json.loads(json.dumps(module.estimates())), "run python -m bench.speed.kernels"
