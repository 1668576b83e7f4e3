"""What a finished run left in its folder, read for a report."""

from __future__ import annotations

import json
import shlex
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import InputError
from trainer.evaluation.metric_choice import judged_on
from trainer.system.run_files import CONFIG, LINT, LOG, METADATA, METRICS, PLAN, SCORES, STRENGTH

# What is raised over JSON of another shape; StopIteration where there is no dim at all.
FOREIGN = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, StopIteration)


@dataclass(frozen=True)
class Record:
    """The files of a finished run."""

    folder: Path
    metrics: dict[str, Any]
    scores: dict[str, Any]
    plan: dict[str, Any]
    metadata: dict[str, Any]
    config: dict[str, dict[str, Any]]
    steps: list[dict[str, Any]]
    """Lines of log.jsonl that are steps."""
    strength: dict[str, Any] | None
    lint: Any

    @property
    def pairs(self) -> str:
        """The name of the held-out pairs that were judged last: "test" where there is one, or "dev"."""
        return "test" if "test" in self.metrics else "dev"

    @property
    def judged(self) -> dict[str, Any]:
        """The judgement on these pairs, whose search figures are the corpus's where there is one."""
        judgement: dict[str, Any] = self.metrics[self.pairs]
        return judgement

    @property
    def search(self) -> dict[str, Any] | None:
        """What was found in the run's corpus; None without one."""
        return self.metrics.get("search")

    @property
    def judged_on(self) -> str:
        """What the verdict is about, "corpus", "test" or "dev"; of an older version too, which never says "corpus"."""
        return judged_on(self.judged["question"]["metric"], self.pairs, self.search is not None)

    @property
    def chose_after(self) -> bool:
        """Whether something was picked after the steps: a strength, or whether to turn the embeddings."""
        return self.strength is not None or "principal_axes" in self.metrics

    @property
    def in_sample(self) -> bool:
        """Whether thresholds were fitted on the judged pairs."""
        fitted = self.judged["thresholds"].get("model")
        return fitted is not None and fitted["data_fingerprint"] == self.judged["data_fingerprint"]

    @property
    def by_labels(self) -> bool:
        """Whether the judged pairs have both labels; positives alone are judged by search."""
        return bool(self.judged["diagnostic"])


@contextmanager
def known_files(folders: str) -> Iterator[None]:
    """Files that hold JSON, but not what this version writes, are bad input."""
    try:
        yield
    except FOREIGN as error:
        reason = str(error) or type(error).__name__
        raise InputError(f"{folders}: a file of the run is of another version or damaged: {reason}") from error


def read_run(folder: Path, metrics: dict[str, Any] | None = None) -> Record:
    """Read the files of a run. Raises InputError where it is no finished run, or a file is damaged."""
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder}: no run there; name the folder of a training run")
    if metrics is None and not (folder / METRICS).is_file():
        continued = f"trainer train --resume --output-dir {shlex.quote(str(folder))}"
        raise InputError(f"{folder}: this run is not finished; continue it with {continued}, then report")
    try:
        lines = (folder / LOG).read_text(encoding="utf-8").splitlines()
        return Record(
            folder=folder,
            metrics=metrics or _read_json(folder / METRICS),
            scores=_read_json(folder / SCORES),
            plan=_read_json(folder / PLAN),
            metadata=_read_json(folder / METADATA),
            config=tomllib.loads((folder / CONFIG).read_text(encoding="utf-8")),
            steps=[line for line in map(json.loads, lines) if "loss" in line],
            strength=_read_if_there(folder / STRENGTH),
            lint=_read_if_there(folder / LINT),
        )
    except FileNotFoundError as error:
        raise InputError(f"{error.filename}: not there; the run is of an older version or was cut") from error
    except FOREIGN as error:
        raise InputError(f"{folder}: a file of the run is damaged: {error}") from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name}: {error}") from error


def _read_if_there(path: Path) -> Any:
    return _read_json(path) if path.is_file() else None
