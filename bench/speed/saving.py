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
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import safetensors.torch

from bench.measuring import summed, watched
from bench.records import ROOT, finish, make_parser, settings_of
from bench.speed.steps import run_config
from bench.workload import add_workload, write_workload
from trainer.checkpoint import sealed_folder
from trainer.system import files
from trainer.system.process import tune_process
from trainer.training import log, loop, resume
from trainer.training.setup import Run
from trainer.training.step import Stepper

EVERY, BATCH_SIZE = 50, 64
PARTS: tuple[tuple[str, Any, str], ...] = (
    ("snapshot", resume, "snapshot"),
    ("serialise", safetensors.torch, "save"),
    ("hash", sealed_folder, "write_manifest"),
    ("sync", files, "sync"),
    ("sync", log, "sync"),
    ("retention", sealed_folder, "drop_old"),
)


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
    config = run_config(
        options.model,
        *write_workload(options, folder, EVERY * BATCH_SIZE),
        lora={"enabled": not options.full},
        curriculum={"epochs": options.saves},  # each is as long as one stretch
        train={"batch_size": BATCH_SIZE},
        eval={"choose_strength": False},
        checkpoint={"every": EVERY},
        output={"dir": str(folder / "run")},
    )
    with ExitStack() as stack:
        for name, owner, function in PARTS:
            stack.enter_context(summed(owner, function, name, spent))
        stack.enter_context(watched(loop, "checkpoint", note_save))
        stack.enter_context(watched(Stepper, "train_step", note_update))
        stack.enter_context(watched(loop, "train_steps", note_loop))
        loop.train(config, "saving")
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
            row[f"saving_{kind}"] = sum(save[kind] for save in saves if save["updates"] == end)
            row[f"updating_{kind}"] = sum(update[kind] for update in updates[here])
            row[f"share_of_{kind}"] = share([row], kind)
        row["first_rate"] = rates[end - EVERY] / median(rates[here])
        rows.append(row)
    return rows


def share(rows: list[dict[str, float]], kind: str) -> float:
    """What saving took of some stretches together."""
    saving, updating = (sum(row[f"{what}_{kind}"] for row in rows) for what in ("saving", "updating"))
    return saving / (saving + updating)


def file_system(folder: Path) -> str:
    """The type of the file system that a folder lies on: syncing costs nothing on a tmpfs."""
    mounts = [mount for mount in psutil.disk_partitions(all=True) if folder.is_relative_to(mount.mountpoint)]
    return max(mounts, key=lambda mount: len(mount.mountpoint)).fstype


def main() -> None:
    parser = make_parser(__doc__, "saving")
    add_workload(parser, "minilm-l6")
    parser.add_argument("--saves", type=int, default=4, help=f"stretches of {EVERY} updates (default 4)")
    parser.add_argument("--full", action="store_true", help="train every weight, not LoRA")
    options = parser.parse_args()
    tune_process()
    (ROOT / "runs").mkdir(exist_ok=True)  # on the disk that runs are written to
    with tempfile.TemporaryDirectory(dir=ROOT / "runs") as scratch:
        folder = Path(scratch).resolve()
        found, disk = run(options, folder), file_system(folder)
    rows = stretches(found)
    record = {
        "settings": {**settings_of(options), "every": EVERY, "batch_size": BATCH_SIZE},
        "real_tickets": options.tickets is not None,
        "file_system": disk,
        **{f"share_of_{kind}": share(rows, kind) for kind in ("seconds", "cpu_seconds")},
        "worst_share_of_seconds": max(row["share_of_seconds"] for row in rows),
        "stretches": rows,
        **found,
    }
    print(
        f"Saving every {EVERY} steps: {record['share_of_seconds']:.3%} of the run's seconds (worst stretch "
        f"{record['worst_share_of_seconds']:.3%}), {record['share_of_cpu_seconds']:.3%} of its processor's"
    )
    finish(options, record)


if __name__ == "__main__":
    main()
