"""Runs of the tiny model as real processes, and everything of them that must be equal.

Processes are forked from one that has imported everything, so a run costs about two seconds.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bench.measuring import rank_variables
from bench.reliability.chaos_faults import Plant, count_calls, wrap
from trainer.data.incidents import generate_pairs
from trainer.main import main as run_trainer
from trainer.model.loading import load_encoder
from trainer.model.tiny import build_tiny_mpnet
from trainer.training.step import Stepper

SETTINGS: dict[str, Any] = {
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
    "full": (1, {"lora.enabled": False}),
    "lora, chunks": (1, {"lora.enabled": True, "lora.rank": 4, "train.tokens_per_chunk": 200}),
    "two ranks": (2, {"lora.enabled": False, "train.batch_size": 4}),
}
GRACE_S = 3.0  # as the launcher gives the others when one rank has ended
LAZY = (
    "sklearn.feature_extraction.text",
    "matplotlib.figure",
    "matplotlib.backends.backend_svg",
)  # half of a run's time
Strike = tuple[float, int, int]  # after so many seconds, send this signal to the process of this number, -1: to all


@dataclass
class Bench:
    """The folder of all runs and the undisturbed ones."""

    root: Path
    seconds: dict[str, float] = field(default_factory=dict)
    size: dict[str, int] = field(default_factory=dict)  # bytes
    whole: dict[str, dict[str, Any]] = field(default_factory=dict)
    calls: dict[str, Counter[str]] = field(default_factory=dict)
    stopped: Path = Path()  # a run that was stopped and one that is done, for files of theirs to be spoilt
    done: Path = Path()

    def folder(self) -> Path:
        """Where a run may go, alone in its own folder."""
        return Path(tempfile.mkdtemp(dir=self.root)) / "run"


def prepare(root: Path, jobs: int = 1) -> Bench:
    """Model, pairs and the undisturbed run of every variant."""
    os.environ["TRAINER_CACHE"] = str(root / "cache")
    for part, rows in (("train", 72), ("dev", 36)):
        (root / f"{part}.json").write_text(json.dumps(generate_pairs(rows, 0, part)))
    texts = json.loads((root / "train.json").read_text())["texts1"]
    load_encoder(str(build_tiny_mpnet(root / "model", texts)))  # imports what it needs, for all children
    for name in LAZY:
        with suppress(ImportError):  # extras
            importlib.import_module(name)
    (root / "empty.toml").write_text("")
    bench = Bench(root)
    for name in VARIANTS:

        def start(folder: Path, name: str = name) -> list[int]:
            return start_run(bench, name, folder, plant=count_calls(calls_of(folder)))

        folders = run_undisturbed(bench, name, jobs, start)
        bench.whole[name] = outcome(folders[0])
        bench.size[name] = sum(path.stat().st_size for path in folders[0].rglob("*"))
        bench.calls[name] = Counter(calls_of(folders[0]).read_text().split("\n")[:-1])
        if any(differing(bench, name, folder) for folder in folders):
            raise SystemExit(f"undisturbed runs of {name!r} differ")
    return bench


def run_undisturbed(bench: Bench, name: str, jobs: int, start: Callable[[Path], list[int]]) -> list[Path]:
    """Folders of undisturbed runs: one that fills the caches, then as many side by side as there will be, timed."""
    folders: list[Path] = []
    for copies in (1, jobs):
        beside, begun = [bench.folder() for _ in range(copies)], time.monotonic()
        groups = [start(folder) for folder in beside]
        for pids, folder in zip(groups, beside, strict=True):
            codes, said = wait(pids, folder)
            if set(codes) != {0}:
                raise SystemExit(f"the undisturbed run of {name!r} failed: {said}")
        bench.seconds[name] = time.monotonic() - begun
        folders += beside
    return folders


def rows_of(folder: Path) -> Path:
    return folder.with_name(folder.name + ".rows")


def calls_of(folder: Path) -> Path:
    return folder.with_name(folder.name + ".calls")


def arguments_of(bench: Bench, variant: str, folder: Path, more: dict[str, Any]) -> list[str]:
    """The trainer's arguments for a run of a variant, with some settings on top."""
    paths = {"model.name": bench.root / "model", "data.train": bench.root / "train.json"}
    everything = {**SETTINGS, **VARIANTS[variant][1], **paths, "data.dev": bench.root / "dev.json", **more}
    texts = {key: str(value).lower() if value in (True, False) else value for key, value in everything.items()}
    sets = [f"--set={key}={text}" for key, text in texts.items()]
    return ["--config", str(bench.root / "empty.toml"), "--output-dir", str(folder), *sets]


def start_run(
    bench: Bench, variant: str, folder: Path, *, resume: bool = False, plant: Plant | None = None
) -> list[int]:
    """Fork the processes of a run; returns their ids."""
    ranks, _ = VARIANTS[variant]
    arguments = [*arguments_of(bench, variant, folder, {}), *(["--resume"] if resume else [])]
    groups: list[dict[str, str]] = rank_variables(ranks) if ranks > 1 else [{}]
    return [fork(folder, partial(live, arguments, folder, group, rank, plant)) for rank, group in enumerate(groups)]


def run(
    bench: Bench,
    variant: str,
    folder: Path,
    *,
    resume: bool = False,
    plant: Plant | None = None,
    strike: Strike | None = None,
) -> tuple[list[int], str]:
    """A run from start to end; returns what `wait` does."""
    return wait(start_run(bench, variant, folder, resume=resume, plant=plant), folder, strike)


def live(arguments: list[str], folder: Path, group: dict[str, str], rank: int, plant: Plant | None) -> None:
    """The life of one process of a run."""
    os.environ.update(group)
    if rank == 0:
        note_rows(rows_of(folder))
    if plant is not None:
        plant(rank)
    sys.argv = ["trainer", *arguments]
    run_trainer()


def fork(folder: Path, act: Callable[[], None]) -> int:
    """Start a process that does this and no more; what it says goes beside its folder. Returns its id."""
    if pid := os.fork():
        return pid
    code = 70  # a traceback: no error of the trainer has this
    try:
        os.setsid()
        output = os.open(folder.with_name(f"{folder.name}.said"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(output, stream)
        act()
        code = 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        for written in (sys.stdout, sys.stderr):
            written.flush()
        os._exit(code)


def note_rows(path: Path) -> None:
    """Write down the rows of every update that was made."""

    def note(arrived: Any, stepper: Stepper, step: int, *_: Any) -> None:
        with path.open("a") as file:
            file.write(json.dumps([step, stepper.run.sampler[step].tolist()]) + "\n")

    wrap(Stepper, "train_step", after=note)


def wait(pids: list[int], folder: Path, strike: Strike | None = None, limit: float = 400.0) -> tuple[list[int], str]:
    """Exit codes (minus the signal) of all processes, and what they said since they were started."""
    start, codes, deadline = time.monotonic(), dict[int, int](), float("inf")
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
