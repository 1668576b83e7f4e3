"""Break the trainer as real processes, resume it, and compare with the undisturbed run, bit for bit and row for row.

    python -m bench.reliability.chaos [--kills 300] [--corruptions 500] [--signals 20] [--faults 3] [--peers 2]

Every case has random numbers of its own, of (seed, campaign, number): it is the same however many run side by side.
`chaos_runs.py` holds the processes and the comparison, `chaos_faults.py` what is planted in them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import psutil
import safetensors.torch
import torch

from bench.records import environment, save_record
from bench.reliability.chaos_faults import Plant, kill_at, not_a_number, raise_at, small_disk, small_files
from bench.reliability.chaos_runs import (
    SETTINGS,
    VARIANTS,
    Bench,
    Strike,
    differing,
    forget,
    last_checkpoint,
    made_updates,
    prepare,
    rows_of,
    start_run,
    wait,
)
from trainer.checkpoint import sealed_folder as checkpoint
from trainer.errors import InputError
from trainer.model.encoder import Encoder
from trainer.model.loading import load_encoder
from trainer.system import files as storage

SPOILS = ("truncate", "zero", "delete", "flip")
TIMEOUT_S = 20  # of a campaign with a dead or stopped rank


@dataclass
class Tally:
    """Counts of some cases, and a line for everything that is not as promised."""

    tried: int = 1
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    most_lost: int = 0  # updates that one process's death undid

    def record(self) -> dict[str, Any]:
        found = {"tried": self.tried, "wrong": len(self.wrong), "most_updates_lost": self.most_lost}
        return {**found, "counts": dict(sorted(self.counts.items())), "wrong_cases": self.wrong}


Case = Callable[[Bench, int, random.Random], Tally]


def campaign(case: Case, bench: Bench, count: int, seed: int, jobs: int) -> Tally:
    """The cases of these numbers, shared out over so many processes."""
    sums = Tally(0)
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("fork")) as pool:
        for tally in pool.map(partial(run_case, case, bench, seed), range(count)):
            sums.tried += tally.tried
            sums.counts += tally.counts
            sums.wrong += tally.wrong
            sums.most_lost = max(sums.most_lost, tally.most_lost)
    return sums


def run_case(case: Case, bench: Bench, seed: int, number: int) -> Tally:
    tally = case(bench, number, random.Random(f"{seed} {case.__name__} {number}"))
    tally.wrong = [f"{number}: {line}" for line in tally.wrong]
    return tally


def finish_run(bench: Bench, variant: str, folder: Path, rng: random.Random | None = None) -> str:
    """Resume until the run is done, sometimes killing the resume too; returns what is wrong, "" where nothing is."""
    for attempt in range(8):
        strike = random_strike(bench, variant, rng) if rng and attempt < 3 and rng.random() < 0.3 else None
        begun = any(path.name[0] != "." for path in folder.glob("*"))
        codes, said = wait(start_run(bench, variant, folder, resume=begun), folder, strike)
        if set(codes) == {0} or (folder / "metrics.json").exists():  # struck after the last file
            different = differing(bench, variant, folder)
            return f"differs in {', '.join(different)}" if different else ""
        if strike is None:
            return f"resume ended with {codes}: {last_words(said)}"
    return "was never done"


def random_strike(bench: Bench, variant: str, rng: random.Random) -> Strike:
    return rng.uniform(0, bench.seconds[variant]), signal.SIGKILL, rng.randrange(VARIANTS[variant][0])


def last_words(said: str) -> str:
    """The last line, and where there is a traceback the end of that."""
    lines = said.strip().splitlines()
    traces = [number for number, line in enumerate(lines) if line.startswith("Traceback")]
    return " | ".join([*(lines[traces[0] :][:12] if traces else []), *lines[-1:]])


def lost_updates(folder: Path) -> int:
    """The most updates that were made again after one process's death."""
    steps = [step for step, _ in made_updates(folder)]
    return max((before + 1 - after for before, after in itertools.pairwise(steps)), default=0)


# ---- cases of the campaigns


def kills(bench: Bench, number: int, rng: random.Random) -> Tally:
    """Half at random times, half at named points; then resumed, some resumes killed as well."""
    tally, variant, folder = Tally(), rng.choice(list(VARIANTS)), bench.folder()
    strike, plant = None, None
    if number % 2:
        name = rng.choice(list(bench.calls[variant]))
        call, when = rng.randint(1, bench.calls[variant][name]), rng.choice(["before", "after"])
        plant, what = kill_at(name, call, when), f"{when} call {call} of {name!r}"
    else:
        strike = random_strike(bench, variant, rng)
        what = f"after {strike[0]:.2f} s"
    codes, said = wait(start_run(bench, variant, folder, plant=plant), folder, strike)
    tally.counts[f"{'named point' if number % 2 else 'random time'}: {'killed' if min(codes) < 0 else 'done'}"] += 1
    problem = last_words(said) if 70 in codes and VARIANTS[variant][0] == 1 else ""
    if not problem and not (set(codes) == {0} and not differing(bench, variant, folder)):
        problem = finish_run(bench, variant, folder, rng)
    tally.most_lost = lost_updates(folder)
    if not problem and tally.most_lost > SETTINGS["checkpoint.every"]:
        problem = f"{tally.most_lost} updates lost"
    if problem:
        tally.wrong.append(f"{variant}, killed {what}: {problem}")
    forget(folder)
    return tally


def signals(bench: Bench, number: int, rng: random.Random) -> Tally:
    """SIGTERM or SIGINT at random: exit 75 (0 where it was done), no update lost, the same result."""
    tally, variant, folder = Tally(), rng.choice(list(VARIANTS)), bench.folder()
    sent, delay = rng.choice([signal.SIGTERM, signal.SIGINT]), rng.uniform(0.1, 1.0) * bench.seconds[variant]
    start, what = time.monotonic(), f"{variant}, {sent.name} after {delay:.2f} s"
    codes, said = wait(start_run(bench, variant, folder), folder, (delay, sent, -1))
    tally.counts[f"exit {codes[0]}"] += 1
    if time.monotonic() - start > delay + 25:
        tally.wrong.append(f"{what}: took more than 25 s")
    if not set(codes) <= {0, 75, -signal.SIGTERM, -signal.SIGINT} or "Traceback" in said:
        tally.wrong.append(f"{what}: codes {codes}, {last_words(said)}")
    elif set(codes) != {0} and (problem := finish_run(bench, variant, folder)):
        tally.wrong.append(f"{what}: {problem}")
    tally.most_lost = lost_updates(folder)
    if tally.most_lost:
        tally.wrong.append(f"{what}: {tally.most_lost} updates lost")
    forget(folder)
    return tally


def spoil(path: Path, how: str, rng: random.Random) -> None:
    """Truncate, zero (4 KiB of), delete, or flip one bit of a file."""
    data = bytearray(path.read_bytes())
    if how == "delete":
        path.unlink()
        return
    if how == "truncate":
        data = data[: rng.randrange(len(data))]
    elif how == "zero":
        start = rng.randrange(len(data))
        data[start : start + 4096] = bytes(len(data[start : start + 4096]))
        if bytes(data) == path.read_bytes():
            data[:] = bytes(len(data))
    else:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def make_targets(bench: Bench, variant: str = "lora, chunks") -> None:
    """A run that was stopped and one that is done, for files of theirs to be spoilt."""
    bench.stopped, bench.done = bench.folder(), bench.folder()
    wait(start_run(bench, variant, bench.stopped, plant=kill_at("update", 12, "before")), bench.stopped)
    wait(start_run(bench, variant, bench.done), bench.done)
    # Lines behind the checkpoint are made again whatever they hold.
    sealed = json.loads((last_checkpoint(bench.stopped) / "state.json").read_text())["log"]["size"]
    os.truncate(bench.stopped / "log.jsonl", sealed)


def targets(bench: Bench) -> list[tuple[Path, str]]:
    """Every file of a checkpoint and of a model, and how it is spoilt."""
    files = [*sorted(last_checkpoint(bench.stopped).iterdir()), bench.stopped / "log.jsonl"]
    sealed = json.loads((bench.done / "model" / "manifest.json").read_text())
    files += [bench.done / "model" / name for name in (*sealed, "manifest.json")]
    return [(path, how) for path in files for how in SPOILS]


def corruptions(bench: Bench, number: int, rng: random.Random) -> Tally:
    """A spoilt file must be named; where it is a checkpoint's, a resume must end as undisturbed."""
    every = targets(bench)
    path, how = every[number % len(every)]
    tally, source, folder = Tally(), bench.stopped if bench.stopped in path.parents else bench.done, bench.folder()
    shutil.copytree(source, folder)
    shutil.copy(rows_of(source), rows_of(folder))
    spoil(folder / path.relative_to(source), how, rng)
    problem = unnoticed(bench, folder, path, source is bench.done, quick=number >= len(every))
    tally.counts[f"{how} {path.name}"] += 1
    if problem:
        tally.wrong.append(f"{how} of {path.relative_to(source)}: {problem}")
    forget(folder)
    return tally


def unnoticed(bench: Bench, folder: Path, path: Path, exported: bool, quick: bool) -> str:
    """What went wrong after a file was spoilt, "" where it was noticed. `quick` looks, but trains no more."""
    variant = "lora, chunks"
    if exported:
        if path.name == "manifest.json" and not (folder / "model" / "manifest.json").exists():
            return ""  # a folder without a manifest is a model like any other
        try:
            load_encoder(str(folder / "model"))
        except InputError:
            return ""
        return "the model was loaded"
    if quick and path.name != "log.jsonl":
        damage = storage.find_damage(folder / "checkpoints" / path.parent.name, checkpoint.FILES)
        return "" if damage else "was taken for whole"
    codes, said = wait(start_run(bench, variant, folder, resume=True), folder)
    named = path.parent.name if path.name != "log.jsonl" else "log.jsonl"
    if codes != [0] or "Traceback" in said:
        return f"resume ended with {codes}: {last_words(said)}"
    if f"{named}: " not in said:
        return "was not named"
    # A log that rotted is named and cannot be mended; the rest must be as undisturbed.
    different = set(differing(bench, variant, folder)) - ({"log"} if path.name == "log.jsonl" else set())
    return f"differs in {', '.join(different)}" if different else ""


FAULTS = 8


def faults(bench: Bench, number: int, rng: random.Random) -> Tally:
    """NaN, out of memory, no room: the right exit code, no debris, checkpoints whole, an equal resume."""
    step, memory = rng.randint(3, 12), MemoryError("planted")
    every, single = list(VARIANTS), [name for name, (ranks, _) in VARIANTS.items() if ranks == 1]
    cases: list[tuple[str, Plant | None, list[str], int]] = [
        ("NaN loss", not_a_number("loss", step, (0,)), every, 3),
        ("NaN gradient", not_a_number("gradient", step, (0,)), every, 3),
        ("NaN loss on rank 1", not_a_number("loss", step, (1,)), ["two ranks"], 3),
        ("out of memory in forward", raise_at(Encoder, "forward", 20 + step, memory), single, 2),
        ("out of memory in backward", raise_at(torch.Tensor, "backward", step, memory), single, 2),
        ("out of memory in save", raise_at(safetensors.torch, "save", 4, memory), single, 2),
        ("files too large", small_files(rng.randint(100, 250_000)), every, 5),
        ("disk too small", None, every, 5),
    ]
    name, plant, variants, code = cases[number % FAULTS]
    variant, folder = rng.choice(variants), bench.folder()
    tally = Tally()

    def strike_and_resume(room: Callable[[], None] = lambda: None) -> None:
        codes, said = wait(start_run(bench, variant, folder, plant=plant), folder)
        tally.counts[f"{name}: exit {codes[0]}"] += 1
        if problem := after_fault(folder, codes, said, code):
            tally.wrong.append(f"{variant}, {name}: {problem}")
            return
        room()
        if problem := finish_run(bench, variant, folder):
            tally.wrong.append(f"{variant}, {name}: {problem}")

    if plant is not None:
        strike_and_resume()
    else:
        folder.mkdir()
        try:
            with small_disk(folder, int(rng.uniform(0.05, 0.9) * bench.size[variant])) as enlarge:
                strike_and_resume(enlarge)
        except OSError as error:
            tally = Tally(0, Counter({f"{name}: skipped, {error.strerror}": 1}))
    forget(folder)
    return tally


def after_fault(folder: Path, codes: list[int], said: str, code: int) -> str:
    """What is wrong where a fault ended a run, "" where nothing is."""
    if code not in codes or "Traceback" in said:
        return f"codes {codes}, {last_words(said)}"
    if left := [path.name for place in (folder, folder / "checkpoints") for path in place.glob(".*.tmp")]:
        return f"left {left}"
    damaged = [path.name for path in folder.glob("checkpoints/step-*") if storage.find_damage(path, checkpoint.FILES)]
    return f"damaged {damaged}" if damaged else ""


def peers(bench: Bench, number: int, rng: random.Random) -> Tally:
    """Kill or stop one of two ranks under the launcher: all end within the time-out + 10 s, with a message."""
    tally, sent, folder = Tally(), (signal.SIGKILL, signal.SIGSTOP)[number % 2], bench.folder()
    settings = {**SETTINGS, "train.batch_size": 4, "train.timeout": TIMEOUT_S, "curriculum.epochs": 1000}
    settings |= {"model.name": bench.root / "model", "eval.every": 10**6, "lora.enabled": "false"}
    settings |= {f"data.{part}": bench.root / f"{part}.json" for part in ("train", "dev")}
    command = [sys.executable, "-m", "trainer.launcher", "--num_processes", "2", "--cpu", "--"]
    command += ["--config", str(bench.root / "empty.toml"), "--output-dir", str(folder)]
    command += [f"--set={key}={value}" for key, value in settings.items()]
    launcher = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    log = folder / "log.jsonl"
    while launcher.poll() is None and not (log.exists() and log.stat().st_size):
        time.sleep(0.1)
    ranks = psutil.Process(launcher.pid).children() if launcher.poll() is None else []
    for victim in rng.sample(ranks, min(1, len(ranks))):
        victim.send_signal(sent)
    start = time.monotonic()
    _, said = launcher.communicate()
    seconds = time.monotonic() - start
    tally.counts[f"{sent.name}: exit {launcher.returncode} after {seconds:.1f} s"] += 1
    if not ranks or any(rank.is_running() for rank in ranks) or seconds > TIMEOUT_S + 10:
        tally.wrong.append(f"{sent.name}: ended after {seconds:.1f} s with {launcher.returncode}")
    elif launcher.returncode == 0 or "Traceback" in said or "another process of this run" not in said:
        tally.wrong.append(f"{sent.name}: exit {launcher.returncode}: {last_words(said)}")
    forget(folder)
    return tally


def main() -> int:
    """Run the campaigns, print the table, write the record; 1 where anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {"kills": 300, "corruptions": 500, "signals": 20, "faults": 3, "peers": 2, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="cases side by side (default: the cores)")
    parser.add_argument("--save", metavar="NAME", help="write bench/results/NAME.json")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the record there")
    options = parser.parse_args()
    results, start = {}, time.monotonic()
    numbers = {kills: options.kills, corruptions: options.corruptions, signals: options.signals}
    numbers |= {faults: FAULTS * options.faults, peers: 2 * options.peers}
    with tempfile.TemporaryDirectory() as folder:
        bench = prepare(Path(folder), options.jobs)
        print("undisturbed: " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in bench.seconds.items()))
        make_targets(bench)
        for case, count in numbers.items():
            before, name = time.monotonic(), case.__name__
            # A time-out is measured with nothing beside it.
            tally = campaign(case, bench, count, options.seed, 1 if case is peers else options.jobs)
            results[name] = tally.record() | {"seconds": round(time.monotonic() - before, 1)}
            print(f"{name:12} {tally.tried:5} tried {len(tally.wrong):5} wrong  {results[name]['seconds']:7} s")
            print("".join(f"    {line}\n" for line in tally.wrong), end="", flush=True)
    record = {"environment": environment(), "seed": options.seed, "jobs": options.jobs}
    record |= {"seconds": round(time.monotonic() - start, 1), "undisturbed_seconds": bench.seconds}
    record |= {"save_interval": SETTINGS["checkpoint.every"], "timeout": TIMEOUT_S, "campaigns": results}
    if options.save:
        print(save_record(options.save, record))
    if options.json:
        options.json.write_text(json.dumps(record, indent=2))
    return int(any(result["wrong"] for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
