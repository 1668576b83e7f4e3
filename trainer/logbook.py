"""What a run leaves behind as it goes: log lines, timings, and the signals that ask it to stop."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from trainer.errors import Stopped
from trainer.evaluation import json_ready
from trainer.storage import write_file


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


def write_json(path: Path, value: Any) -> None:
    """Write JSON in one step, NaN as null. Raises StorageError."""
    write_file(path, json.dumps(json_ready(value), indent=2, ensure_ascii=False) + "\n")


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


class Signals:
    """SIGTERM and SIGINT while the run is in hand; a second one ends the process at once.

    The first raises Stopped where nothing would be lost; inside `noted` it only sets `requested`.
    """

    NUMBERS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.requested = self.deferred = False

    def __enter__(self) -> Signals:
        self._previous = {number: signal.signal(number, self._note) for number in self.NUMBERS}
        self._hook, sys.unraisablehook = sys.unraisablehook, self._swallowed
        return self

    def __exit__(self, *error: object) -> None:
        sys.unraisablehook = self._hook
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        if self.requested:  # the other signal came in the same moment
            return
        self.requested = True
        self._answer(signal.SIG_DFL)
        if not self.deferred:
            self._stop()

    def _swallowed(self, lost: Any) -> None:
        """Stop a moment later: a destructor or a weak reference's callback was running, and Python lets none raise."""
        if not isinstance(lost.exc_value, Stopped):
            self._hook(lost)
            return
        for number in self.NUMBERS:
            signal.signal(number, self._note)
        self.requested = False
        threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGTERM)).start()

    def _answer(self, action: signal.Handlers) -> None:
        """Leave further signals to the system, whatever the process is waiting for.

        Python keeps `_note` as their handler: to one that it has seen and not handled yet it would otherwise print a
        traceback ("ignored due to race condition").
        """
        for number in self.NUMBERS:
            ctypes.pythonapi.PyOS_setsig(number, ctypes.c_void_p(action))

    @contextmanager
    def noted(self) -> Iterator[Callable[[], bool]]:
        """Yields `requested()`: whether a signal came. One that nobody acted upon raises Stopped at the end."""
        self.deferred = True
        yield lambda: self.requested
        self.deferred = False
        if self.requested:
            self._stop()

    def ignore(self) -> None:
        """Let no signal turn into a failure what is about to be done."""
        self._answer(signal.SIG_IGN)

    def _stop(self) -> None:
        raise Stopped("stopped by a signal; continue with --resume, or start again where no step was made")


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
