"""What a checkpoint every 50 steps costs a run: all-MiniLM-L6-v2 with LoRA, batches of 64 pairs of real tickets.

One real run of `trainer.train` is measured from inside. Each save (random states and tensors gathered, the log sealed,
files written, hashed, synced and renamed, older checkpoints verified and dropped) is set beside the updates since the
save before it: both are seconds of the same minute, so a clock that drifts cannot move their ratio. Evaluation, waiting
for batches, start and end of the run are left out, which makes the share larger. Processor seconds are those of all
threads; while a save runs, the next batch is being collated. What a save does to the update after it (caches, memory)
shows in that one's rate over the median of its stretch.

    python -m bench.speed.saving --encoder DIR --tickets tickets.csv
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import safetensors.torch

from bench.records import RESULTS, ROOT, environment, save_record
from bench.speed.throughput import timed, write_pairs
from trainer.checkpoint import sealed_folder as checkpoint
from trainer.config_file import load_config
from trainer.system import files as storage
from trainer.system.console import console
from trainer.system.process import tune_process
from trainer.training import log as logbook
from trainer.training import loop as train
from trainer.training import resume
from trainer.training.setup import Run
from trainer.training.step import Stepper

EVERY, BATCH_SIZE, MAX_LENGTH, DIMS = 50, 64, 256, [384, 256, 128, 64]
PARTS: tuple[tuple[str, Any, str], ...] = (
    ("snapshot", resume, "snapshot"),
    ("serialise", safetensors.torch, "save"),
    ("hash", checkpoint, "write_manifest"),
    ("sync", storage, "sync"),
    ("sync", logbook, "sync"),
    ("retention", checkpoint, "drop_old"),
)


@contextmanager
def measured(owner: Any, function: str, note: Callable[..., None]) -> Iterator[None]:
    """Pass the seconds, the processor seconds and the arguments of every call of a function on to `note`."""
    real = getattr(owner, function)

    def stopwatch(*args: Any, **kwargs: Any) -> Any:
        clock, processor = time.perf_counter(), time.process_time()
        result = real(*args, **kwargs)
        note({"seconds": time.perf_counter() - clock, "cpu_seconds": time.process_time() - processor}, *args)
        return result

    setattr(owner, function, stopwatch)
    try:
        yield
    finally:
        setattr(owner, function, real)


def settings_of(options: argparse.Namespace, folder: Path) -> list[str]:
    """The run, as settings of a config."""
    train_pairs = write_pairs(options.tickets, folder / "train.json", EVERY * BATCH_SIZE)
    settings: dict[str, Any] = {
        "model.name": str(options.encoder),
        "model.max_length": MAX_LENGTH,
        "lora.enabled": not options.full,
        "data.train": str(train_pairs),
        "data.dev": "incidents",
        "curriculum.mode": "mixed",
        "curriculum.epochs": options.saves,  # each is as long as one stretch
        "train.batch_size": BATCH_SIZE,
        "loss.dims": DIMS,
        "eval.choose_strength": False,
        "checkpoint.every": EVERY,
        "output.dir": str(folder / "run"),
    }
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train; returns every sample of every save, update and of the loop around them."""
    found: dict[str, Any] = {"saves": [], "updates": []}
    spent: dict[str, float] = {}

    def note_save(took: dict[str, float], run: Run, state: Any, log: Any) -> None:
        # The first save is made before the loop, and other files are synced before it.
        found["saves"].append({"updates": state.step, **took, "parts": dict(spent) if state.step else None})
        spent.clear()

    def note_update(took: dict[str, float], stepper: Stepper, step: int, batch: Any, *_: Any) -> None:
        found["updates"].append({**took, "tokens": batch.tokens})

    def note_loop(took: dict[str, float], *_: Any) -> None:
        found["loop"] = took

    os.environ["TRAINER_CACHE"] = str(folder / "cache")
    (folder / "empty.toml").write_text("")
    config = load_config(folder / "empty.toml", settings_of(options, folder))
    with ExitStack() as stack:
        for name, owner, function in PARTS:
            stack.enter_context(timed(owner, function, name, spent))
        stack.enter_context(measured(train, "checkpoint", note_save))
        stack.enter_context(measured(Stepper, "train_step", note_update))
        stack.enter_context(measured(train, "train_steps", note_loop))
        train.train(config, "saving")
    newest = max((folder / "run" / "checkpoints").glob("step-*"))
    found["checkpoint_bytes"] = sum(path.stat().st_size for path in newest.iterdir())
    return found


def stretches(found: dict[str, Any]) -> list[dict[str, float]]:
    """Each save of the loop and the updates since the one before it: seconds, and the share that saving takes."""
    updates, rows = found["updates"], []
    rates = [update["tokens"] / update["seconds"] for update in updates]
    # At the end of the loop the last save is looked at once more.
    saves = [save for save in found["saves"] if save["updates"]]
    for end in sorted({save["updates"] for save in saves}):
        here, row = slice(end - EVERY, end), {"updates": end}
        for kind in ("seconds", "cpu_seconds"):
            saving = sum(save[kind] for save in saves if save["updates"] == end)
            updating = sum(update[kind] for update in updates[here])
            row |= {f"saving_{kind}": saving, f"updating_{kind}": updating}
            row[f"share_of_{kind}"] = saving / (saving + updating)
        row["first_rate"] = rates[end - EVERY] / median(rates[here])
        rows.append(row)
    return rows


def share(rows: list[dict[str, float]], kind: str) -> float:
    """What saving took of all stretches together."""
    saving, updating = (sum(row[f"{what}_{kind}"] for row in rows) for what in ("saving", "updating"))
    return saving / (saving + updating)


def file_system(folder: Path) -> str:
    """The type of the file system that a folder lies on: syncing costs nothing on a tmpfs."""
    mounts = [mount for mount in psutil.disk_partitions(all=True) if folder.is_relative_to(mount.mountpoint)]
    return max(mounts, key=lambda mount: len(mount.mountpoint)).fstype


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", type=Path, required=True, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--tickets", help="CSV with short_description and description (default: made-up words)")
    parser.add_argument("--saves", type=int, default=4, help=f"stretches of {EVERY} updates (default 4)")
    parser.add_argument("--full", action="store_true", help="train every weight, not LoRA")
    parser.add_argument("--disk", type=Path, default=ROOT / "runs", help="where the run is written (default: runs/)")
    parser.add_argument("--name", default="saving", help="of the record (default: saving)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the record")
    options = parser.parse_args()
    tune_process()
    options.disk.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.disk) as scratch:
        folder = Path(scratch).resolve()
        found, disk = run(options, folder), file_system(folder)
    rows = stretches(found)
    record = {
        "environment": environment(),
        "settings": {"saves": options.saves, "every": EVERY, "batch_size": BATCH_SIZE, "lora": not options.full},
        "real_tickets": options.tickets is not None,
        "file_system": disk,
        **{f"share_of_{kind}": share(rows, kind) for kind in ("seconds", "cpu_seconds")},
        "worst_share_of_seconds": max(row["share_of_seconds"] for row in rows),
        "stretches": rows,
        **found,
    }
    console.print(
        f"Saving every {EVERY} steps: {record['share_of_seconds']:.3%} of the run's seconds (worst stretch "
        f"{record['worst_share_of_seconds']:.3%}), {record['share_of_cpu_seconds']:.3%} of its processor's"
    )
    console.print(f"Record: {save_record(options.name, record, options.results)}", markup=False)


if __name__ == "__main__":
    main()
