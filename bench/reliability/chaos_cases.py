"""What is done to a run, and how it must end: the cases of the campaigns of `chaos.py`."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import psutil
import safetensors.torch
import torch

from bench.reliability.chaos_faults import Plant, kill_at, not_a_number, raise_at, small_disk, small_files
from bench.reliability.chaos_runs import (
    SETTINGS,
    VARIANTS,
    Bench,
    Strike,
    arguments_of,
    differing,
    last_checkpoint,
    made_updates,
    rows_of,
    run,
)
from trainer.checkpoint.sealed_folder import FILES
from trainer.errors import InputError
from trainer.model.encoder import Encoder
from trainer.model.loading import load_encoder
from trainer.system.files import find_damage

SPOILS = ("truncate", "zero", "delete", "flip")
TIMEOUT_S = 20  # of a run with a dead or stopped rank
SPOILT_VARIANT = "lora, chunks"


@dataclass
class Result:
    """How a case ended."""

    counted: list[str] = field(default_factory=list)
    """What it is counted as."""
    wrong: str = ""
    """What is not as promised."""
    lost: int = 0
    """The most updates that one process's death undid."""
    tried: bool = True
    """False where this system does not let it."""


AnyBench = TypeVar("AnyBench", bound=Bench)
Case = Callable[[AnyBench, Path, int, random.Random], Result]


def finish_run(bench: Bench, variant: str, folder: Path, rng: random.Random | None = None) -> str:
    """Resume until the run is done, sometimes killing the resume too; returns what is wrong, "" where nothing is."""
    for attempt in range(8):
        strike = random_strike(bench, variant, rng) if rng and attempt < 3 and rng.random() < 0.3 else None
        begun = any(path.name[0] != "." for path in folder.glob("*"))
        codes, said = run(bench, variant, folder, resume=begun, strike=strike)
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


def recover(
    bench: Bench, variant: str, folder: Path, codes: list[int], most_lost: int, rng: random.Random | None = None
) -> tuple[str, int]:
    """Resume a run that ended with these codes. What is wrong then, and the most updates that one death undid."""
    done = set(codes) == {0} and not differing(bench, variant, folder)
    problem = "" if done else finish_run(bench, variant, folder, rng)
    steps = [step for step, _ in made_updates(folder)]
    lost = max((before + 1 - after for before, after in itertools.pairwise(steps)), default=0)
    return problem or (f"{lost} updates lost" if lost > most_lost else ""), lost


def kills(bench: Bench, folder: Path, number: int, rng: random.Random) -> Result:
    """Half at random times, half at named points; then resumed, some resumes killed as well."""
    variant = rng.choice(list(VARIANTS))
    strike, plant = None, None
    if number % 2:
        name = rng.choice(list(bench.calls[variant]))
        call, when = rng.randint(1, bench.calls[variant][name]), rng.choice(["before", "after"])
        plant, what, kind = kill_at(name, call, when), f"{when} call {call} of {name!r}", "named point"
    else:
        strike = random_strike(bench, variant, rng)
        what, kind = f"after {strike[0]:.2f} s", "random time"
    codes, said = run(bench, variant, folder, plant=plant, strike=strike)
    if 70 in codes and VARIANTS[variant][0] == 1:
        problem, lost = last_words(said), 0
    else:
        problem, lost = recover(bench, variant, folder, codes, SETTINGS["checkpoint.every"], rng)
    ended = f"{kind}: {'killed' if min(codes) < 0 else 'done'}"
    return Result([ended], problem and f"{variant}, killed {what}: {problem}", lost)


def signals(bench: Bench, folder: Path, number: int, rng: random.Random) -> Result:
    """SIGTERM or SIGINT at random: exit 75 (0 where it was done), no update lost, the same result."""
    variant = rng.choice(list(VARIANTS))
    sent, delay = rng.choice([signal.SIGTERM, signal.SIGINT]), rng.uniform(0.1, 1.0) * bench.seconds[variant]
    start = time.monotonic()
    codes, said = run(bench, variant, folder, strike=(delay, sent, -1))
    if time.monotonic() - start > delay + 25:
        problem, lost = "took more than 25 s", 0
    elif not set(codes) <= {0, 75, -signal.SIGTERM, -signal.SIGINT} or "Traceback" in said:
        problem, lost = f"codes {codes}, {last_words(said)}", 0
    else:
        problem, lost = recover(bench, variant, folder, codes, 0)
    what = f"{variant}, {sent.name} after {delay:.2f} s"
    return Result([f"exit {codes[0]}"], problem and f"{what}: {problem}", lost)


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


def make_targets(bench: Bench) -> None:
    """A run that was stopped and one that is done, for files of theirs to be spoilt."""
    bench.stopped, bench.done = bench.folder(), bench.folder()
    run(bench, SPOILT_VARIANT, bench.stopped, plant=kill_at("update", 12, "before"))
    run(bench, SPOILT_VARIANT, bench.done)
    # Lines behind the checkpoint are made again whatever they hold.
    sealed = json.loads((last_checkpoint(bench.stopped) / "state.json").read_text())["log"]["size"]
    os.truncate(bench.stopped / "log.jsonl", sealed)


def targets(bench: Bench) -> list[tuple[Path, str]]:
    """Every file of a checkpoint and of a model, and how it is spoilt."""
    files = [*sorted(last_checkpoint(bench.stopped).iterdir()), bench.stopped / "log.jsonl"]
    sealed = json.loads((bench.done / "model" / "manifest.json").read_text())
    files += [bench.done / "model" / name for name in (*sealed, "manifest.json")]
    return [(path, how) for path in files for how in SPOILS]


def corruptions(bench: Bench, folder: Path, number: int, rng: random.Random) -> Result:
    """A spoilt file must be named; where it is a checkpoint's, a resume must end as undisturbed."""
    every = targets(bench)
    path, how = every[number % len(every)]
    source = bench.stopped if bench.stopped in path.parents else bench.done
    shutil.copytree(source, folder)
    shutil.copy(rows_of(source), rows_of(folder))
    spoil(folder / path.relative_to(source), how, rng)
    if source is bench.done:
        problem = accepted_model(folder / "model", whole=path.name != "manifest.json" or how != "delete")
    elif number >= len(every) and path.name != "log.jsonl":  # once each is resumed from, then it is only looked at
        whole = not find_damage(folder / "checkpoints" / path.parent.name, FILES)
        problem = "was taken for whole" if whole else ""
    else:
        problem = unnoticed(bench, folder, path)
    return Result([f"{how} {path.name}"], problem and f"{how} of {path.relative_to(source)}: {problem}")


def accepted_model(model: Path, whole: bool) -> str:
    """What is wrong where a spoilt model was loaded; one without a manifest is a model like any other."""
    try:
        load_encoder(str(model))
    except InputError:
        return ""
    return "the model was loaded" if whole else ""


def unnoticed(bench: Bench, folder: Path, path: Path) -> str:
    """What is wrong with the resume from a spoilt file of a run, "" where it was named and did no harm."""
    codes, said = run(bench, SPOILT_VARIANT, folder, resume=True)
    is_log = path.name == "log.jsonl"
    if codes != [0] or "Traceback" in said:
        return f"resume ended with {codes}: {last_words(said)}"
    if f"{path.name if is_log else path.parent.name}: " not in said:
        return "was not named"
    # A log that rotted is named and cannot be mended; the rest must be as undisturbed.
    different = set(differing(bench, SPOILT_VARIANT, folder)) - ({"log"} if is_log else set())
    return f"differs in {', '.join(different)}" if different else ""


FAULTS = 8


def faults(bench: Bench, folder: Path, number: int, rng: random.Random) -> Result:
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
    variant = rng.choice(variants)
    with ExitStack() as stack:
        if plant is None:
            room = int(rng.uniform(0.05, 0.9) * bench.size[variant])
            try:
                enlarge = stack.enter_context(small_disk(folder, room))
            except OSError as error:
                return Result([f"{name}: skipped, {error.strerror}"], tried=False)
        codes, said = run(bench, variant, folder, plant=plant)
        problem = after_fault(folder, codes, said, code)
        if not problem:
            if plant is None:
                enlarge()
            problem = finish_run(bench, variant, folder)
    return Result([f"{name}: exit {codes[0]}"], problem and f"{variant}, {name}: {problem}")


def after_fault(folder: Path, codes: list[int], said: str, code: int) -> str:
    """What is wrong where a fault ended a run, "" where nothing is."""
    if code not in codes or "Traceback" in said:
        return f"codes {codes}, {last_words(said)}"
    if left := [path.name for place in (folder, folder / "checkpoints") for path in place.glob(".*.tmp")]:
        return f"left {left}"
    damaged = [path.name for path in folder.glob("checkpoints/step-*") if find_damage(path, FILES)]
    return f"damaged {damaged}" if damaged else ""


def peers(bench: Bench, folder: Path, number: int, rng: random.Random) -> Result:
    """Kill or stop one of two ranks under the launcher: all end within the time-out + 10 s, with a message."""
    sent = (signal.SIGKILL, signal.SIGSTOP)[number % 2]
    endless = {"train.timeout": TIMEOUT_S, "curriculum.epochs": 1000, "eval.every": 10**6}
    command = [sys.executable, "-m", "trainer.launcher", "--num_processes", "2", "--cpu", "--"]
    command += arguments_of(bench, "two ranks", folder, endless)
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
    problem = ""
    if not ranks or any(rank.is_running() for rank in ranks) or seconds > TIMEOUT_S + 10:
        problem = f"ended after {seconds:.1f} s with {launcher.returncode}"
    elif launcher.returncode == 0 or "Traceback" in said or "another process of this run" not in said:
        problem = f"exit {launcher.returncode}: {last_words(said)}"
    ended = f"{sent.name}: exit {launcher.returncode} after {seconds:.1f} s"
    return Result([ended], problem and f"{sent.name}: {problem}")
