"""The attention kernels compile for every GPU target, within its limits; no GPU is needed, so it runs anywhere.

Compiling all of them takes minutes. What the record in bench/ holds is taken for granted while it is of these very
kernels and this Triton, and samples of it are compiled again; where it is of others, what a test asks for is compiled.
"""

from __future__ import annotations

import importlib
import json
import os
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
RECORD = json.loads((ROOT / "bench" / "results" / "kernels.json").read_text(encoding="utf-8"))
CAPABILITIES = (80, 86, 89, 90, 100, 120)


QUERIES = f"import sys; from {BENCH} import main\nfor line in sys.stdin: sys.argv[1:] = line.split(); main()"


def compiled(*queries: tuple[object, ...]) -> list[dict]:
    """What the bench program answers queries, in one process of its own: here Triton is an interpreter."""
    lines = "\n".join(" ".join(map(str, ("--json", *query))) for query in queries)
    command = [sys.executable, "-c", QUERIES]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, timeout=800, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def chosen(capabilities: tuple[int, ...], dtypes: tuple[str, ...], widths: tuple[int, ...]) -> list[dict]:
    """All kernels as the code would compile them, with all that each can do: recorded, or else compiled."""
    if (RECORD["triton"], RECORD["kernels"]) == (triton.__version__, bench().kernels_fingerprint()):
        return [
            entry
            for entry in RECORD["entries"]
            if entry["capability"] in capabilities and entry["dtype"] in dtypes and entry["width"] in widths
        ]
    return compiled(("--capability", *capabilities, "--dtype", *dtypes, "--width", *widths, "--flags", "full"))


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
        # Another Triton is another compiler, which may spill where that of the record does not.
        if entry["spilled"] and entry["dtype"] == "bf16" and triton.__version__ == RECORD["triton"]:
            complaints.append(f"{name}: {entry['registers']} registers, {entry['spilled']} bytes spilled")
    return complaints


def test_in_bf16_at_width_64_every_card_runs_them_without_a_spill():
    entries = chosen(CAPABILITIES, ("bf16",), (64,))
    assert len(entries) == 18 and wrong(entries) == []


@pytest.mark.slow
def test_every_card_runs_the_other_types_and_widths():
    others = [*chosen(CAPABILITIES, ("fp16", "fp32"), (32, 64, 128)), *chosen(CAPABILITIES, ("bf16",), (32, 128))]
    assert len(others) == 144 and wrong(others) == []


@pytest.fixture(scope="module")
def samples() -> list[dict]:
    """A kernel as the code would compile it, and with tiles that are too large, that spill, and that cannot be."""
    query = ("--dtype", "bf16", "--width", 64, "--capability", 120, "--kernel", "query")
    tiles = ("--tile", 64, 128, 8, 4, "--tile", 64, 64, 2, 2, "--tile", 64, 24, 4, 1)  # 24 is no power of 2
    return compiled((*query, "--flags", "full"), (*query, "--flags", "none", *tiles))


@pytest.mark.slow
def test_what_the_record_says_comes_out_again(samples):
    again = samples[0]
    assert wrong([again]) == []
    if triton.__version__ == RECORD["triton"]:
        assert again in chosen((120,), ("bf16",), (64,)), "run python -m bench.speed.kernels --flags full"


def test_no_count_of_tokens_chooses_another_kernel():
    """Triton would compile one more where 16 divides it, in the middle of a run."""
    program = "from trainer.model.attention_kernels import KERNELS as k; "
    program += "print([[p.name for p in each.params if p.do_not_specialize] for each in k.values()])"
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=True)
    assert done.stdout.strip() == str([["T", "R"]] * 3)


def test_a_record_of_other_kernels_is_not_taken(monkeypatch):
    monkeypatch.setitem(RECORD, "kernels", "of others")
    monkeypatch.setattr(sys.modules[__name__], "compiled", lambda *arguments: ["compiled", arguments[0][1]])
    assert chosen((90,), ("bf16",), (64,)) == ["compiled", 90]


@pytest.mark.slow
def test_tiles_that_are_too_large_and_kernels_that_spill_are_seen(samples):
    _, too_large, spilling, impossible = samples
    assert "shared memory" in wrong([too_large])[0] and too_large["occupancy"] == 0
    assert spilling["spilled"] > 0
    if triton.__version__ == RECORD["triton"]:
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
    page = module.PAGE.read_text(encoding="utf-8")
    assert module.render(page, RECORD) == page, "run python -m bench.speed.kernels --render"
    assert RECORD["estimates"] == json.loads(json.dumps(module.estimates())), "run python -m bench.speed.kernels"
