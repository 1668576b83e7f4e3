"""What a run writes as it goes, and the clocks it goes by."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from trainer.system.files import json_ready, sync, write_file, writing
from trainer.system.run_files import LOG
from trainer.training.tracking import track

CUT = "cut"  # in the line of an evaluation that no checkpoint holds, made because the run was cut there


class RunLog:
    """log.jsonl, and the trackers that are asked for. On other ranks than the first, the trackers alone."""

    def __init__(self, path: Path, content: bytes, accelerator: Accelerator) -> None:
        """Args: content: what the file holds so far."""
        self.path, self._accelerator = path, accelerator
        self._size, self._digest = len(content), hashlib.sha256(content)

    def write(self, line: dict[str, Any]) -> None:
        """Append a line, which has a "step". Raises StorageError."""
        if self._accelerator.is_main_process:
            data = (json.dumps(json_ready(line)) + "\n").encode()
            with writing(self.path), self.path.open("ab") as file:
                file.write(data)
            self._size += len(data)
            self._digest.update(data)
        track(self._accelerator, line, line["step"])

    def seal(self) -> dict[str, Any]:
        """Size and SHA-256 of the file as it is now, kept up while it is written."""
        return {"size": self._size, "sha256": self._digest.hexdigest()}

    def sync(self) -> None:
        """Wait until every line is on disk. Raises StorageError."""
        if self._accelerator.is_main_process:
            with writing(self.path):
                sync(self.path)


def open_log(folder: Path, accelerator: Accelerator, first_step: int) -> RunLog:
    """The log of a run that goes on with update `first_step`.

    Lines of that step and later, which an interrupted run may have left, are dropped: each step stands once. So is the
    evaluation of a cut, which is made again where the run is cut again.
    """
    path, content = folder / LOG, b""
    if accelerator.is_main_process:
        old = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
        content = "".join(line + "\n" for line in old if _step(line) < first_step).encode()
        write_file(path, content)
    return RunLog(path, content, accelerator)


def is_log_whole(folder: Path, seal: dict[str, Any]) -> bool:
    """Whether a run's log still begins with what a checkpoint's seal of it says."""
    path = folder / LOG
    data = path.read_bytes()[: seal["size"]] if path.exists() else b""
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} == seal


def _step(line: str) -> float:
    """The step of a log line; one that a crash cut short, or of a cut's evaluation, counts as later than any."""
    try:
        read = json.loads(line)
        return float("inf") if CUT in read else float(read["step"])
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return float("inf")


class Timer:
    """Says when so many minutes have gone by since it was last set; never, where that is 0."""

    def __init__(self, minutes: float) -> None:
        self._seconds = 60 * minutes
        self._start = time.monotonic()

    def set(self) -> None:
        """Begin to count anew."""
        self._start = time.monotonic()

    def rings(self) -> bool:
        """Whether the minutes have gone by."""
        return 0 < self._seconds <= time.monotonic() - self._start


class Clock:
    """Time spent in steps, evaluation and saving left out."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.took = self.waiting = 0.0  # seconds of the last step, and the share of it spent waiting for its batch
        self._start = self._ready = 0.0

    def start_step(self) -> None:
        """The loop turns to a step; its batch may not be there yet."""
        self._start = time.perf_counter()

    def data_is_here(self) -> None:
        """The step's batch is there."""
        self._ready = time.perf_counter()

    def end_step(self) -> None:
        """The step is done."""
        self.took = time.perf_counter() - self._start
        self.seconds += self.took
        self.waiting = (self._ready - self._start) / self.took
