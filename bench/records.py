"""What every measurement takes and writes: the options of its record, and the record, which says where it was made."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
PACKAGES = ("torch", "transformers", "peft", "accelerate", "sentence-transformers", "numpy")


def make_parser(description: str | None, record: str) -> argparse.ArgumentParser:
    """A parser with the options of every measurement: the name of its record, and the folder."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default=record, help=f"name of the record (default: {record})")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the record")
    return parser


def add_at_once(parser: argparse.ArgumentParser) -> None:
    """The option of measurements whose runs may go beside each other: no figure of theirs is a time."""
    text = "runs at a time (default: 1): a GPU that one does not fill takes several; on a CPU, set OMP_NUM_THREADS"
    parser.add_argument("--at-once", type=int, default=1, metavar="N", help=text)


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """The options that decide what is measured, not where anything lies."""
    return {key: value for key, value in vars(options).items() if key not in ("name", "results", "encoder", "tickets")}


def finish(options: argparse.Namespace, record: dict[str, Any]) -> None:
    """Write a measurement's record, with the environment, and say where. The record gets its environment too."""
    record["environment"] = environment()  # of this process, also where the record is continued
    path = save_record(options.name, {"environment": record["environment"], **record}, options.results)
    print(f"Record: {path}")


def environment() -> dict[str, Any]:
    """Commit, versions and hardware of this process."""
    import torch

    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "packages": found,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": device,
        "command": " ".join([_program(), *map(_without_folder, sys.argv[1:])]),
    }


def save_record(name: str, record: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Write a record as `name`.json. Returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def _program() -> str:
    """How this process was started: `python -m MODULE`, or a file's name."""
    spec = sys.modules["__main__"].__spec__
    return f"python -m {spec.name}" if spec else Path(sys.argv[0]).name


def _commit() -> str | None:
    """The commit, marked where a file differs from it; the records themselves do not count."""
    commit = _git("describe", "--always")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench/results")
    return f"{commit}-dirty" if changed else commit or None


def _git(*arguments: str) -> str:
    if shutil.which("git") is None:  # a machine to measure on may have a copy of the files alone
        return ""
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True).stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _without_folder(argument: str) -> str:
    """An argument with local folders taken out of its paths: a record should read the same everywhere."""
    key, equals, value = argument.rpartition("=")
    return key + equals + (Path(value).name if "/" in value else value)
