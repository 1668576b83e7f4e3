"""Break the trainer as real processes, resume it, and compare with the undisturbed run, bit for bit and row for row.

    PYTHONPATH=. python bench/chaos.py [--kills 300] [--corruptions 500] [--signals 20] [--faults 3] [--peers 2]

Processes are forked from one that has imported everything, so a run of the tiny model costs about a second. Faults
are planted from here, by replacing functions in the child: the trainer holds no code for it. Named points are calls
of the functions that write, rename, remove and load; the process kills itself at one of them, before or after.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # also because a pool of threads does not survive a fork
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import psutil
import safetensors.torch
import torch

from bench.records import environment, save_record
from trainer import checkpoint, export, logbook, storage, train
from trainer.encoder import Encoder, load_encoder
from trainer.errors import InputError
from trainer.incidents import generate_pairs
from trainer.main import main as run_trainer
from trainer.objective import Objective
from trainer.run import Run
from trainer.tiny import build_tiny_mpnet

SETTINGS = {
    "train.batch_size": 8,
    "curriculum.epochs": 2,
    "optim.lr": 1e-3,
    "loss.dims": [64, 16],
    "loss.pair_weight": 0.5,
    "checkpoint.every": 2,
    "eval.every": 4,
    "train.timeout": 300,
}
VARIANTS: dict[str, tuple[int, dict[str, Any]]] = {
    "full": (1, {"lora.enabled": False, "loss.learn_scale": True}),
    "lora, chunks": (1, {"lora.enabled": True, "lora.rank": 4, "train.tokens_per_chunk": 200}),
    "two ranks": (2, {"lora.enabled": False, "train.batch_size": 4}),
}
POINTS: dict[str, tuple[Any, str]] = {
    "fsync": (storage, "sync"),
    "write file": (Path, "write_bytes"),
    "write text": (Path, "write_text"),
    "rename": (Path, "rename"),
    "replace": (Path, "replace"),
    "manifest": (checkpoint, "write_manifest"),
    "retention": (checkpoint, "drop_old"),
    "remove a checkpoint": (checkpoint, "remove_folder"),
    "remove a folder": (shutil, "rmtree"),
    "save": (train, "save_checkpoint"),
    "snapshot": (train, "snapshot"),
    "find the newest": (train, "newest_checkpoint"),
    "load": (train, "load_checkpoint"),
    "restore": (train, "restore"),
    "log line": (logbook, "json_ready"),
    "update": (Run, "train_step"),
    "evaluation": (train, "note_evaluation"),
    "finish": (train, "finish"),
    "model export": (export, "save_model"),
    "export check": (export, "check_exports"),
}
GRACE_S = 3.0  # as the launcher gives the others when one rank has ended
Plant = Callable[[int], None]  # called in the child with its rank, before the trainer starts


@dataclass
class Bench:
    """The folder of a campaign and the undisturbed runs in it."""

    root: Path
    seconds: dict[str, float] = field(default_factory=dict)
    whole: dict[str, dict[str, Any]] = field(default_factory=dict)
    calls: dict[str, Counter[str]] = field(default_factory=dict)
    count: int = 0

    def folder(self) -> Path:
        self.count += 1
        return self.root / f"run-{self.count}"


def prepare(root: Path) -> Bench:
    """Model, pairs and the undisturbed run of every variant."""
    os.environ["TRAINER_CACHE"] = str(root / "cache")
    for part, rows in (("train", 72), ("dev", 36)):
        (root / f"{part}.json").write_text(json.dumps(generate_pairs(rows, 0, part)))
    texts = json.loads((root / "train.json").read_text())["texts1"]
    load_encoder(str(build_tiny_mpnet(root / "model", texts)))  # imports what it needs, for all children
    (root / "empty.toml").write_text("")
    bench = Bench(root)
    for name in VARIANTS:
        for _ in range(2):  # the first fills the caches
            folder, start = bench.folder(), time.monotonic()
            codes, said = wait(start_run(bench, name, folder, plant=count_calls(folder)), folder)
            if set(codes) != {0}:
                raise SystemExit(f"the undisturbed run of {name!r} failed: {said}")
            bench.seconds[name] = time.monotonic() - start
        bench.whole[name] = outcome(folder)
        bench.calls[name] = Counter(calls_of(folder).read_text().split("\n")[:-1])
    return bench


def rows_of(folder: Path) -> Path:
    return folder.with_name(folder.name + ".rows")


def calls_of(folder: Path) -> Path:
    return folder.with_name(folder.name + ".calls")


def start_run(
    bench: Bench, variant: str, folder: Path, *, resume: bool = False, plant: Plant | None = None
) -> list[int]:
    """Fork the processes of a run; returns their ids."""
    ranks, settings = VARIANTS[variant]
    paths = {"model.name": bench.root / "model", "data.train": bench.root / "train.json"}
    everything = {**SETTINGS, **settings, **paths, "data.dev": bench.root / "dev.json"}
    sets = [
        f"--set={key}={str(value).lower() if value in (True, False) else value}" for key, value in everything.items()
    ]
    arguments = ["--config", str(bench.root / "empty.toml"), "--output-dir", str(folder), *sets]
    arguments += ["--resume"] if resume else []
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pids = []
    for rank in range(ranks):
        group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        group |= {"ACCELERATE_USE_CPU": "true", "LOCAL_WORLD_SIZE": ranks}
        pid = os.fork()
        if pid == 0:
            live(arguments, folder, {key: str(value) for key, value in group.items()} if ranks > 1 else {}, rank, plant)
        pids.append(pid)
    return pids


def live(arguments: list[str], folder: Path, group: dict[str, str], rank: int, plant: Plant | None) -> None:
    """The child's whole life."""
    code = 70  # a traceback: no error of the trainer has this
    try:
        os.setsid()
        os.environ.update(group)
        output = os.open(folder.with_name(f"{folder.name}.said"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(output, stream)
        if rank == 0:
            note_rows(rows_of(folder))
        if plant is not None:
            plant(rank)
        sys.argv = ["trainer", *arguments]
        run_trainer()
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def note_rows(path: Path) -> None:
    """Write down the rows of every update that was made."""
    real = Run.train_step

    def noted(self: Run, step: int, *rest: Any) -> Any:
        arrived = real(self, step, *rest)
        with path.open("a") as file:
            file.write(json.dumps([step, self.sampler[step].tolist()]) + "\n")
        return arrived

    Run.train_step = noted  # type: ignore[method-assign]


def wait(
    pids: list[int], folder: Path, strike: tuple[float, int, int] | None = None, limit: float = 400.0
) -> tuple[list[int], str]:
    """Exit codes (minus the signal) of all processes, and what they said since they were started.

    Args:
        strike: after so many seconds, send this signal to the process of this number, to all where it is -1.
    """
    start, codes, deadline = time.monotonic(), {}, float("inf")
    while len(codes) < len(pids):
        now = time.monotonic() - start
        living = [pid for pid in pids if pid not in codes]
        if strike and now >= strike[0]:
            for pid in living if strike[2] < 0 else [pid for pid in living if pid == pids[strike[2]]]:
                os.kill(pid, strike[1])
            strike = None
        for pid in living:
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                codes[pid] = os.waitstatus_to_exitcode(status)
                if codes[pid] != 0 and deadline == float("inf"):  # as the launcher does
                    deadline = now + GRACE_S
                    for other in living:
                        if other != pid:
                            os.kill(other, signal.SIGTERM)
        if now > min(deadline, limit):
            for pid in pids:
                if pid not in codes:
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)
    path = folder.with_name(f"{folder.name}.said")
    said = path.read_text(errors="replace") if path.exists() else ""
    path.unlink(missing_ok=True)
    return [codes[pid] for pid in pids], said


def outcome(folder: Path) -> dict[str, Any]:
    """Everything that must be equal: weights, optimizer, random states, counters, losses, rows, metrics, plan."""
    found: dict[str, Any] = {
        "plan": (folder / "plan.json").read_text(),
        "metrics": (folder / "metrics.json").read_text(),
    }
    for path in sorted(folder.rglob("*.safetensors")):
        if path.parent == last_checkpoint(folder) or "checkpoints" not in path.parts:
            found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    values = json.loads((last_checkpoint(folder) / "state.json").read_text())
    changing = ("seconds", "resumed_at", "log")
    found["state"] = {key: value for key, value in values.items() if key not in changing}
    clocks = ("tokens_per_s", "waiting", "peak_memory")
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    found["log"] = [{key: value for key, value in line.items() if key not in clocks} for line in lines]
    found["rows"] = dict(made_updates(folder))
    # A killed process leaves its lock file, which holds nobody off.
    hidden = [path.name for place in (folder, folder / "checkpoints") for path in place.glob(".*")]
    found["debris"] = sorted(set(hidden) - {".lock"})
    return found


def last_checkpoint(folder: Path) -> Path:
    return max(path for path in (folder / "checkpoints").iterdir() if path.name[-6:].isdigit())


def made_updates(folder: Path) -> list[tuple[int, list[int]]]:
    path = rows_of(folder)
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [tuple(json.loads(line)) for line in lines]


def differing(bench: Bench, variant: str, folder: Path) -> list[str]:
    """What of a finished run is not as in the undisturbed one."""
    found, expected = outcome(folder), bench.whole[variant]
    return [key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key)]


# ---- faults, planted in the child


def count_calls(folder: Path) -> Plant:
    """Note every call of a named point."""

    def plant(rank: int) -> None:
        if rank == 0:
            for name, (owner, attribute) in POINTS.items():
                wrap(owner, attribute, lambda name=name: calls_of(folder).open("a").write(name + "\n"))

    return plant


def wrap(
    owner: Any, attribute: str, before: Callable[[], Any] = lambda: None, after: Callable[[], Any] = lambda: None
) -> None:
    """Replace a function by one that calls `before` and `after` around it."""
    real = getattr(owner, attribute)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        before()
        result = real(*args, **kwargs)
        after()
        return result

    setattr(owner, attribute, wrapped)


def at_call(number: int, act: Callable[[], Any]) -> Callable[[], None]:
    """A function that acts at its call of that number."""
    calls = itertools.count(1)

    def count() -> None:
        if next(calls) == number:
            act()

    return count


def kill_at(name: str, call: int, when: str) -> Plant:
    """Die at the call of that number of a named point, before or after it."""

    def plant(rank: int) -> None:
        if rank == 0:
            die = at_call(call, lambda: os.kill(os.getpid(), signal.SIGKILL))
            wrap(*POINTS[name], **{when: die})

    return plant


def raise_at(owner: Any, attribute: str, call: int, error: BaseException) -> Plant:
    """Raise at the call of that number."""

    def fail() -> None:
        raise error

    return lambda rank: wrap(owner, attribute, at_call(call, fail))


def not_a_number(what: str, call: int, ranks: tuple[int, ...]) -> Plant:
    """A loss or a gradient of one step that is NaN on some ranks."""

    def plant(rank: int) -> None:
        real, seen = Objective.forward, 0

        def spoilt(self: Objective, *args: Any, **kwargs: Any) -> Any:
            nonlocal seen
            seen += 1
            loss = real(self, *args, **kwargs)
            if seen == call and what == "loss":
                loss.total.data.fill_(float("nan"))
            elif seen == call:
                loss.total.register_hook(lambda gradient: gradient * float("nan"))
            return loss

        if rank in ranks:
            Objective.forward = spoilt  # type: ignore[method-assign]

    return plant


def small_files(size: int) -> Plant:
    def plant(rank: int) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    return plant


# ---- campaigns: each returns a row of the table and what went wrong


@dataclass
class Tally:
    """Counts of a campaign, and a line for everything that is not as promised."""

    tried: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        return {"tried": self.tried, "wrong": len(self.wrong), "counts": dict(self.counts), "wrong_cases": self.wrong}


def finish_run(bench: Bench, variant: str, folder: Path, rng: random.Random | None = None) -> str:
    """Resume until the run is done, sometimes killing the resume too; returns what is wrong, "" where nothing is."""
    for attempt in range(8):
        strike = None
        if rng is not None and attempt < 3 and rng.random() < 0.3:
            strike = (rng.uniform(0, bench.seconds[variant]), signal.SIGKILL, rng.randrange(VARIANTS[variant][0]))
        begun = any(path.name[0] != "." for path in folder.glob("*"))
        codes, said = wait(start_run(bench, variant, folder, resume=begun), folder, strike)
        if set(codes) == {0}:
            different = differing(bench, variant, folder)
            return f"differs in {', '.join(different)}" if different else ""
        if (folder / "metrics.json").exists():  # struck after the last file
            return "" if not (different := differing(bench, variant, folder)) else f"differs in {', '.join(different)}"
        if strike is None:
            return f"resume ended with {codes}: {said.strip().splitlines()[-1:]}"
    return "was never done"


def most_repeated(folder: Path) -> int:
    """Updates that were made more than once."""
    return sum(count - 1 for count in Counter(step for step, _ in made_updates(folder)).values())


def kills(bench: Bench, count: int, rng: random.Random) -> Tally:
    """Half at random times, half at named points; then resumed, some resumes killed as well."""
    tally = Tally(count)
    for number in range(count):
        variant = rng.choice(list(VARIANTS))
        folder, strike, plant, what = bench.folder(), None, None, ""
        if number % 2:
            name = rng.choice(list(bench.calls[variant]))
            call, when = rng.randint(1, bench.calls[variant][name]), rng.choice(["before", "after"])
            plant, what = kill_at(name, call, when), f"{when} call {call} of {name!r}"
        else:
            strike = (rng.uniform(0, bench.seconds[variant]), signal.SIGKILL, rng.randrange(VARIANTS[variant][0]))
            what = f"after {strike[0]:.2f} s"
        codes, _ = wait(start_run(bench, variant, folder, plant=plant), folder, strike)
        tally.counts["killed" if min(codes) < 0 else "ended before"] += 1
        lost = len(made_updates(folder))
        problem = "traceback" if 70 in codes and VARIANTS[variant][0] == 1 else ""
        if not problem and not (set(codes) == {0} and not differing(bench, variant, folder)):
            problem = finish_run(bench, variant, folder, rng)
        if problem:
            tally.wrong.append(f"{variant}, killed {what}: {problem}")
        tally.counts["updates made twice"] += most_repeated(folder) if lost else 0
        forget(folder)
    return tally


def signals(bench: Bench, count: int, rng: random.Random) -> Tally:
    """SIGTERM or SIGINT at random: exit 75 (0 where it was done), no update lost, the same result."""
    tally = Tally(count)
    for _ in range(count):
        variant, number = rng.choice(list(VARIANTS)), rng.choice([signal.SIGTERM, signal.SIGINT])
        folder, delay = bench.folder(), rng.uniform(0.1, 1.0)
        start = time.monotonic()
        codes, said = wait(start_run(bench, variant, folder), folder, (delay * bench.seconds[variant], number, -1))
        tally.counts[f"exit {codes[0]}"] += 1
        if time.monotonic() - start > delay * bench.seconds[variant] + 25:
            tally.wrong.append(f"{variant}, {number.name}: took more than 25 s")
        if not set(codes) <= {0, 75, -signal.SIGTERM, -signal.SIGINT} or "Traceback" in said:
            tally.wrong.append(f"{variant}, {number.name}: codes {codes}, {said.strip().splitlines()[-1:]}")
        elif set(codes) != {0} and (problem := finish_run(bench, variant, folder)):
            tally.wrong.append(f"{variant}, {number.name}: {problem}")
        if most_repeated(folder):
            tally.wrong.append(f"{variant}, {number.name}: {most_repeated(folder)} updates lost")
        forget(folder)
    return tally


def spoil(path: Path, how: str, rng: random.Random) -> None:
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


def corruptions(bench: Bench, count: int, rng: random.Random) -> Tally:
    """Spoil each file of a checkpoint and of a model: it must be named, and a resume must end as undisturbed."""
    tally, variant = Tally(count), "lora, chunks"
    stopped, done = bench.folder(), bench.folder()
    wait(start_run(bench, variant, stopped, plant=kill_at("update", 12, "before")), stopped)
    wait(start_run(bench, variant, done), done)
    newest = last_checkpoint(stopped)
    # Lines behind the checkpoint are made again whatever they hold.
    os.truncate(stopped / "log.jsonl", json.loads((newest / "state.json").read_text())["log"]["size"])
    targets = [*(path for path in newest.iterdir()), stopped / "log.jsonl"]
    sealed = json.loads((done / "model" / "manifest.json").read_text())
    targets += [done / "model" / name for name in (*sealed, "manifest.json")]
    every = [(path, how) for path in targets for how in ("truncate", "zero", "delete", "flip")]
    for number in range(count):
        path, how = every[number % len(every)]
        source = stopped if stopped in path.parents else done
        folder = bench.folder()
        shutil.copytree(source, folder)
        if rows_of(source).exists():
            shutil.copy(rows_of(source), rows_of(folder))
        spoil(folder / path.relative_to(source), how, rng)
        problem = unnoticed(bench, variant, folder, path, source is done, quick=number >= len(every))
        tally.counts[f"{how} {path.name}"] += 1
        if problem:
            tally.wrong.append(f"{how} of {path.relative_to(source)}: {problem}")
        forget(folder)
    return tally


def unnoticed(bench: Bench, variant: str, folder: Path, path: Path, exported: bool, quick: bool) -> str:
    """What went wrong after a file was spoilt, "" where it was noticed. `quick` looks, but trains no more."""
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
        return f"resume ended with {codes}: {said.strip().splitlines()[-1:]}"
    if f"{named}: " not in said:
        return "was not named"
    # A log that rotted is named and cannot be mended; the rest must be as undisturbed.
    different = set(differing(bench, variant, folder)) - ({"log"} if path.name == "log.jsonl" else set())
    return f"differs in {', '.join(different)}" if different else ""


def faults(bench: Bench, count: int, rng: random.Random) -> Tally:
    """NaN, out of memory, files that find no room: the right exit code, nothing left over, an equal resume."""
    tally = Tally()
    for _ in range(count):
        step = rng.randint(3, 12)
        memory = MemoryError("planted")
        cases: list[tuple[str, Plant, tuple[str, ...], int]] = [
            ("NaN loss", not_a_number("loss", step, (0,)), tuple(VARIANTS), 3),
            ("NaN gradient", not_a_number("gradient", step, (0,)), tuple(VARIANTS), 3),
            ("NaN loss on rank 1", not_a_number("loss", step, (1,)), ("two ranks",), 3),
            ("out of memory in forward", raise_at(Encoder, "forward", 20 + step, memory), tuple(VARIANTS)[:2], 2),
            ("out of memory in backward", raise_at(torch.Tensor, "backward", step, memory), tuple(VARIANTS)[:2], 2),
            ("out of memory in save", raise_at(safetensors.torch, "save", 4, memory), tuple(VARIANTS)[:2], 2),
            ("files too large", small_files(rng.randint(100, 250_000)), tuple(VARIANTS), 5),
        ]
        for name, plant, variants, code in cases:
            variant, folder = rng.choice(variants), bench.folder()
            codes, said = wait(start_run(bench, variant, folder, plant=plant), folder)
            tally.tried += 1
            tally.counts[f"{name}: exit {codes[0]}"] += 1
            if code not in codes or "Traceback" in said:
                tally.wrong.append(f"{variant}, {name}: codes {codes}, {said.strip().splitlines()[-1:]}")
            elif left := [p.name for where in (folder, folder / "checkpoints") for p in where.glob(".*.tmp")]:
                tally.wrong.append(f"{variant}, {name}: left {left}")
            elif problem := finish_run(bench, variant, folder):
                tally.wrong.append(f"{variant}, {name}: {problem}")
            forget(folder)
    return tally


def peers(bench: Bench, count: int, rng: random.Random) -> Tally:
    """Kill or stop one of two ranks under the launcher: all end within the time-out + 10 s, with a message."""
    tally, timeout = Tally(), 20
    for number in [signal.SIGKILL, signal.SIGSTOP] * count:
        tally.tried += 1
        folder = bench.folder()
        settings = {**SETTINGS, "train.batch_size": 4, "train.timeout": timeout, "curriculum.epochs": 1000}
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
            victim.send_signal(number)
        start = time.monotonic()
        _, said = launcher.communicate()
        seconds = time.monotonic() - start
        tally.counts[f"{number.name}: exit {launcher.returncode} after {seconds:.1f} s"] += 1
        if not ranks or any(rank.is_running() for rank in ranks) or seconds > timeout + 10:
            tally.wrong.append(f"{number.name}: ended after {seconds:.1f} s with {launcher.returncode}")
        elif launcher.returncode == 0 or "Traceback" in said or "another process of this run" not in said:
            tally.wrong.append(f"{number.name}: exit {launcher.returncode}: {said.strip().splitlines()[-1:]}")
        forget(folder)
    return tally


def forget(folder: Path) -> None:
    for path in folder.parent.glob(f"{folder.name}.*"):
        path.unlink()
    shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    """Run the campaigns, print the table, write the record; 1 where anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {"kills": 300, "corruptions": 500, "signals": 20, "faults": 3, "peers": 2, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--save", metavar="NAME", help="write bench/results/NAME.json")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the record there")
    options = parser.parse_args()
    rng, results, start = random.Random(options.seed), {}, time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        bench = prepare(Path(folder))
        print("undisturbed: " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in bench.seconds.items()))
        for campaign in (kills, corruptions, signals, faults, peers):
            before, name = time.monotonic(), campaign.__name__
            tally = campaign(bench, getattr(options, name), rng)
            results[name] = tally.record() | {"seconds": round(time.monotonic() - before, 1)}
            print(f"{name:12} {tally.tried:5} tried {len(tally.wrong):5} wrong  {results[name]['seconds']:7} s")
            print("".join(f"    {line}\n" for line in tally.wrong), end="", flush=True)
    record = {"environment": environment(), "seed": options.seed, "seconds": round(time.monotonic() - start, 1)}
    record |= {"undisturbed_seconds": bench.seconds, "campaigns": results}
    if options.save:
        print(save_record(options.save, record))
    if options.json:
        options.json.write_text(json.dumps(record, indent=2))
    return int(any(result["wrong"] for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
