"""Compile the attention kernels for each GPU target, without a GPU, and say what they take.

python -m bench.speed.kernels                    every target and type: the record and bench/kernels.md
python -m bench.speed.kernels --flags full       the same with all that a kernel can do alone: some 6 minutes
python -m bench.speed.kernels --render           bench/kernels.md from the record, nothing compiled
python -m bench.speed.kernels --capability 90 --dtype bf16 --width 64 --json    some, as JSON lines, nothing written
python -m bench.speed.kernels --tile 128 128 4 3 with another tile: tokens owned, walked, warps, stages
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"  # triton reads it once, when it is imported: its interpreter compiles nothing

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bench.records import RESULTS, environment, save_record
from trainer.model import attention_kernels
from trainer.model.attention_kernels import KERNELS, kernel_constants, kernel_options

PAGE = Path(__file__).parents[1] / "kernels.md"
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
WIDTHS = (32, 64, 128)
HEADS, BLOCK = 12, 64
# What each argument is where it is not a tensor of the run's type.
ARGUMENTS = {
    "bias": "*fp32", "blocks": "*i32", "seed_at": "*i64", "lse_at": "*fp32", "delta_at": "*fp32", "d_bias_at": "*fp32",
    "T": "i32", "R": "i32", "scale": "fp32", "probability": "fp32", "keep_scale": "fp32",
}  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """What one multiprocessor of a compute capability has (CUDA C++ Programming Guide, technical specifications)."""

    shared_of_program: int  # bytes
    shared: int  # bytes
    warps: int
    programs: int
    registers: int = 65536


KIB = 1024
LIMITS = {
    80: Limits(163 * KIB, 164 * KIB, 64, 32),
    86: Limits(99 * KIB, 100 * KIB, 48, 16),
    89: Limits(99 * KIB, 100 * KIB, 48, 24),
    90: Limits(227 * KIB, 228 * KIB, 64, 32),
    100: Limits(227 * KIB, 228 * KIB, 64, 32),
    120: Limits(99 * KIB, 100 * KIB, 48, 24),
}


@dataclass(frozen=True)
class Card:
    """A card's data sheet, dense: bf16 with fp32 sums on tensor cores, and memory."""

    name: str
    capability: int
    flops: float
    bytes_per_s: float
    source: str


CARDS = (
    Card("RTX 5090", 120, 209.5e12, 1.792e12, "NVIDIA RTX Blackwell GPU architecture white paper, GeForce RTX 5090"),
    Card("H100 SXM", 90, 989.4e12, 3.35e12, "NVIDIA H100 Tensor Core GPU data sheet, SXM5, without sparsity"),
)


def compile_kernel(
    kernel: str, capability: int, dtype: str, width: int, flags: dict[str, bool], tile: list[int] | None = None
) -> dict[str, Any]:
    """Compile a kernel as a launch would, and read its resources from the binary.

    Args:
        flags: `bias`, `dropout`, `train_bias`.
        tile: tokens owned and walked, warps, stages; the code's own choice without.

    Returns:
        Registers a thread, bytes spilled a thread (local memory and stack), shared memory of a program, warps, and how
        full a multiprocessor is; "error" in their place where it does not compile.
    """
    constants = kernel_constants(kernel, DTYPES[dtype], HEADS, width, BLOCK, device="cuda", **flags)
    if tile:
        own, walked = ("COLUMNS", "ROWS") if kernel == "key_value" else ("ROWS", "COLUMNS")
        constants |= dict(zip((own, walked, "num_warps", "num_stages"), tile, strict=True))
        constants["BLOCK"] = max(BLOCK, tile[0])
    options = {name: constants.pop(name) for name in ("num_warps", "num_stages")}
    names = KERNELS[kernel].arg_names
    signature = {name: "constexpr" if name in constants else ARGUMENTS.get(name, f"*{dtype}") for name in names}
    # As at a launch: torch's memory begins at multiples of 16 bytes.
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name].startswith("*")}
    entry: dict[str, Any] = {"kernel": kernel, "capability": capability, "dtype": dtype, "width": width, "flags": flags}
    entry |= {"tile": [constants["ROWS"], constants["COLUMNS"]], "warps": options["num_warps"]}
    entry |= {"stages": options["num_stages"]}
    try:
        source = ASTSource(KERNELS[kernel], signature, constants, aligned)
        binary = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    except Exception as error:  # each failure is a finding, told by name
        return entry | {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
    entry |= read_resources(binary.asm["cubin"]) | {"shared": binary.metadata.shared}
    limits = LIMITS[capability]
    fits = entry["shared"] <= limits.shared_of_program
    return entry | {"fits": fits, "occupancy": occupancy(entry["registers"], entry["shared"], entry["warps"], limits)}


def kernels_fingerprint() -> str:
    """Changes with any code of the kernels and their options; comments and layout do not count."""
    source = Path(attention_kernels.__file__).read_text(encoding="utf-8")
    return hashlib.sha256(ast.dump(ast.parse(source)).encode()).hexdigest()


def read_resources(cubin: bytes) -> dict[str, int]:
    """Registers and bytes spilled a thread, by the binary's own word."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = subprocess.run([CUOBJDUMP, "-res-usage", path], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", usage)
    if found is None:
        raise SystemExit(f"cuobjdump told no resources: {usage!r}")
    registers, stack, local = map(int, found.groups())
    return {"registers": registers, "spilled": stack + local}


def occupancy(registers: int, shared: int, warps: int, limits: Limits) -> float:
    """Share of a multiprocessor's warps that can be there at once, 0 where one program does not fit.

    Registers are given by the warp in units of 256, shared memory by the program in units of 128 bytes, 1 KiB of
    which the system keeps for each program.
    """
    of_warp = -(-registers * 32 // 256) * 256
    by_registers = limits.registers // of_warp // 4 * 4 // warps  # four schedulers, a quarter of the registers each
    by_shared = limits.shared // (-(-shared // 128) * 128 + KIB) if shared <= limits.shared_of_program else 0
    return min(limits.programs, limits.warps // warps, by_registers, by_shared) * warps / limits.warps


def workload_lengths(pairs: int = 64, longest: int = 384) -> np.ndarray:
    """Tokens of the titles and bodies of a batch, an even share of each tenth of real tickets' ranking."""
    from bench.workload import BODY_LENGTHS, TITLE_LENGTHS  # imports transformers, which takes longer than a kernel

    places = (np.arange(pairs) + 0.5) / pairs
    sides = [np.interp(places, np.linspace(0, 1, len(tenths)), tenths) for tenths in (TITLE_LENGTHS, BODY_LENGTHS)]
    return np.minimum(np.concatenate(sides).astype(int) + 2, longest)  # two special tokens each


def roofline(kernel: str, lengths: np.ndarray, own: int, walked: int, card: Card, width: int = 64) -> dict[str, float]:
    """Least seconds of one layer: arithmetic of whole tiles over the card's, bytes once each way over its bandwidth.

    A tile of own x walked scores takes products of 2 * own * walked * D: two forward, four for keys and values, three
    for queries. Each bf16 tensor [T, H * D] is moved once: forward 3 in and 1 out, 4 and 2, 4 and 1.
    """
    tiles = float((-(-lengths // own) * -(-lengths // walked)).sum())
    products = {"forward": 2, "key_value": 4, "query": 3}[kernel]
    tensors = {"forward": 4, "key_value": 6, "query": 5}[kernel]
    arithmetic = tiles * own * walked * 2 * width * HEADS * products / card.flops
    memory = float(lengths.sum()) * HEADS * width * 2 * tensors / card.bytes_per_s
    return {"arithmetic": arithmetic, "memory": memory, "seconds": max(arithmetic, memory)}


def all_flags(kernel: str) -> list[dict[str, bool]]:
    """Every combination that a kernel can be compiled with, from none to all."""
    combinations = [{"bias": b, "dropout": d} for b, d in itertools.product((False, True), repeat=2)]
    if kernel != "query":
        return combinations
    return [c | {"train_bias": t} for c in combinations for t in ((False, True) if c["bias"] else (False,))]


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """An entry for each kernel, target, type, width and set of flags asked for; two compiled at once."""
    chosen = [
        (kernel, capability, dtype, width, flags, tile)
        for kernel in options.kernel
        for capability in options.capability
        for dtype in options.dtype
        for width in options.width
        for flags in all_flags(kernel)[{"all": slice(None), "none": slice(1), "full": slice(-1, None)}[options.flags]]
        for tile in options.tile or [None]
    ]
    with tempfile.TemporaryDirectory() as cache, ThreadPoolExecutor(2) as pool:
        os.environ["TRITON_CACHE_DIR"] = cache
        entries = []
        for number, entry in enumerate(pool.map(lambda each: compile_kernel(*each), chosen), 1):
            entries.append(entry)
            if sys.stderr.isatty():
                print(f"\r{number} of {len(chosen)}", end="", file=sys.stderr, flush=True)
    return entries


def estimates() -> list[dict[str, Any]]:
    """The roofline of each card for the workload, a layer."""
    lengths = workload_lengths()
    rows = []
    for card, kernel in itertools.product(CARDS, KERNELS):
        chosen = kernel_options(kernel, torch.bfloat16, 64)
        row = {"card": card.name, "kernel": kernel, **roofline(kernel, lengths, chosen["own"], chosen["walked"], card)}
        rows.append(row | {"flops": card.flops, "bytes_per_s": card.bytes_per_s, "source": card.source})
    return rows


def tables(record: dict[str, Any]) -> dict[str, list[str]]:
    """The page's tables by name."""
    head = "| kernel | capability | rows x columns | warps | stages | registers | spilled | shared memory | occupancy |"
    lines = [head, "|---|---:|---:|---:|---:|---:|---:|---:|---:|"]
    entries = record["entries"]
    for e in entries:
        if e["dtype"] == "bf16" and e["width"] == 64 and e["flags"] == all_flags(e["kernel"])[-1]:
            tile, shared = "{} x {}".format(*e["tile"]), f"{e['shared'] / KIB:.1f} KiB"
            lines.append(
                f"| {e['kernel']} | {e['capability']} | {tile} | {e['warps']} | {e['stages']} | {e['registers']} | "
                f"{e['spilled']} | {shared} | {e['occupancy']:.0%} |"
            )
    environment = record["environment"]
    lines += ["", f"Triton {record['triton']}; {environment['date'][:10]}."]
    times = ["| card | kernel | arithmetic | bandwidth | estimate, a layer | estimate, 12 layers |"]
    times.append("|---|---|---:|---:|---:|---:|")
    for row in record["estimates"]:
        us = [f"{1e6 * seconds:.1f} us" for seconds in (row["arithmetic"], row["memory"], row["seconds"])]
        times.append(f"| {row['card']} | {row['kernel']} | {' | '.join(us)} | {1e6 * 12 * row['seconds']:.0f} us |")
    for row in {row["card"]: row for row in record["estimates"]}.values():
        sheet = f"{row['flops'] / 1e12:.1f} TFLOP/s, {row['bytes_per_s'] / 1e12:.3g} TB/s"
        times += ["", f"{row['card']}: {sheet} ({row['source']})."]
    return {"bf16 at head width 64": lines, "estimate": times}


def render(text: str, record: dict[str, Any]) -> str:
    """The page with every table between its markers written anew."""
    for name, lines in tables(record).items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        body = "\n".join([begin, "", *lines, "", end])
        text, found = re.subn(re.escape(begin) + ".*?" + re.escape(end), lambda *_, body=body: body, text, flags=re.S)
        if found != 1:
            raise SystemExit(f"{PAGE.name}: expected one block {begin}, found {found}")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", nargs="+", choices=KERNELS, default=list(KERNELS))
    parser.add_argument("--capability", nargs="+", type=int, choices=LIMITS, default=list(LIMITS))
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--width", nargs="+", type=int, default=list(WIDTHS))
    parser.add_argument("--flags", choices=("all", "full", "none"), default="all")
    parser.add_argument("--tile", nargs=4, type=int, action="append", metavar=("OWN", "WALKED", "WARPS", "STAGES"))
    parser.add_argument("--json", action="store_true", help="print entries and write nothing")
    parser.add_argument("--render", action="store_true", help="write the page from the record")
    options = parser.parse_args()
    if options.json:
        for entry in measure(options):
            print(json.dumps(entry))
        return
    if not options.render:
        entries = measure(options)
        failed = [entry for entry in entries if "error" in entry]
        if failed:
            raise SystemExit(f"{len(failed)} of {len(entries)} do not compile, the first: {json.dumps(failed[0])}")
        record = {"environment": environment(), "triton": triton.__version__, "kernels": kernels_fingerprint()}
        record |= {"entries": entries}
        save_record("kernels", record | {"estimates": estimates()})
    record = json.loads((RESULTS / "kernels.json").read_text(encoding="utf-8"))
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8"), record), encoding="utf-8")


if __name__ == "__main__":
    main()
