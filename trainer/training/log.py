"""What a run writes as it goes, and the clocks it goes by."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from trainer.system.files import json_ready, write_file


@contextmanager
def open_log(
    folder: Path, accelerator: Accelerator, first_step: int, tensorboard: bool
) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yields `log(line)`, which appends to log.jsonl and to the tracker.

    Lines of `first_step` and later, which an interrupted run may have left, are dropped: each step stands once.
    """
    if tensorboard:
        accelerator.init_trackers("tensorboard")
    path = folder / "log.jsonl"
    if accelerator.is_main_process:
        old = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
        kept = [line for line in old if _step(line) < first_step]
        write_file(path, "".join(line + "\n" for line in kept))
    with path.open("a", encoding="utf-8") if accelerator.is_main_process else nullcontext() as file:

        def log(line: dict[str, Any]) -> None:
            if file is not None:
                file.write(json.dumps(json_ready(line)) + "\n")
                file.flush()
            if tensorboard:
                accelerator.log(_scalars(line), step=line["step"])

        yield log
    if tensorboard:
        accelerator.end_training()


def _scalars(line: dict[str, Any], path: str = "") -> dict[str, float]:
    """The numbers of a log line, nested ones under names joined by slashes."""
    found: dict[str, float] = {}
    for key, value in line.items():
        if isinstance(value, dict):
            found |= _scalars(value, f"{path}{key}/")
        elif isinstance(value, int | float):
            found[path + key] = value
    return found


def _step(line: str) -> float:
    """The step of a log line; a line that a crash cut short counts as later than any."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return float("inf")


class Timer:
    """Says when so many minutes have gone by since it was last set; never, where that is 0."""

    def __init__(self, minutes: float) -> None:
        self.seconds = 60 * minutes
        self.set()

    def set(self) -> None:
        self._start = time.monotonic()

    def rings(self) -> bool:
        return 0 < self.seconds <= time.monotonic() - self._start


class Clock:
    """Time spent in steps, evaluation and saving left out."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.took = self.waiting = 0.0  # seconds of the last step, and the share of it spent waiting for its batch

    def start_step(self) -> None:
        self._start = time.perf_counter()

    def data_is_here(self) -> None:
        self._ready = time.perf_counter()

    def end_step(self) -> None:
        self.took = time.perf_counter() - self._start
        self.seconds += self.took
        self.waiting = (self._ready - self._start) / self.took
