"""The folder of a run: which one, what may be in it already, and that no other process writes there.

The names of its files stand in `trainer.system.run_files`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.checkpoint.sealed_folder import has_checkpoints
from trainer.config import Config
from trainer.errors import InputError, StorageError
from trainer.system.console import console
from trainer.system.files import only_writer, remove_debris, remove_folder
from trainer.system.run_files import (
    ADAPTER,
    BASE,
    CHECKPOINTS,
    CONFIG,
    LOG,
    METADATA,
    METRICS,
    MODEL,
    REPORT,
    SCORES,
    STRENGTH,
)


def choose_folder(config: Config, name: str, resume: bool) -> Path:
    """The folder of the run: the config's, or the first free one (when resuming: the newest) of runs/NAME, NAME-2, ...

    Raises:
        InputError: nothing there to resume.
        StorageError: the folder holds a run already.
    """
    folder = Path(config.output.dir)
    if not config.output.dir:
        numbered = [Path("runs") / name, *(Path("runs") / f"{name}-{i}" for i in range(2, 10_000))]
        free = next(i for i, path in enumerate(numbered) if not path.exists())
        folder = numbered[max(free - 1, 0) if resume else free]
    check_folder(folder, resume)
    return folder


def check_folder(folder: Path, resume: bool) -> None:
    """Raise InputError or StorageError unless a run may be resumed, or started, in a folder."""
    finished = (folder / METRICS).exists()
    if resume and (finished or not folder.is_dir()):
        raise InputError(
            f"{folder}: this run is finished, nothing to resume; to train its model further, start a new run with "
            f"--set model.name={folder / MODEL}"
            if finished
            else f"{folder}: no run there, nothing to resume; check the folder, or leave out --resume to start one"
        )
    # Names that begin with a dot are not a run's result: a lock, or what a killed process left.
    if not resume and folder.exists() and (not folder.is_dir() or any(p.name[0] != "." for p in folder.iterdir())):
        what = "is no empty folder"
        if (folder / CONFIG).exists():
            what = "holds a finished run" if finished else "holds an unfinished run (continue it with --resume)"
        raise StorageError(f"{folder}: {what} and is not overwritten; name another with --output-dir")


def clear_results(folder: Path, keeps_strength: bool) -> None:
    """Remove what the end of a run writes and an earlier try, cut short, may have left there.

    Args:
        keeps_strength: also keep strength.json, which says itself what its points are of.
    """
    for name in (MODEL, ADAPTER, BASE):
        if (folder / name).exists():
            remove_folder(folder / name)
    for name in (SCORES, METADATA, REPORT) if keeps_strength else (SCORES, METADATA, REPORT, STRENGTH):
        (folder / name).unlink(missing_ok=True)


@contextmanager
def claimed(folder: Path, resume: bool) -> Iterator[None]:
    """Keep other processes out of a folder, look again what is in it, and remove what one that died left half written.

    Raises:
        InputError, StorageError: as `check_folder`; or another process is at work there.
    """
    with only_writer(folder):
        check_folder(folder, resume)
        for place in (folder, folder / CHECKPOINTS):
            remove_debris(place)
        yield


def has_begun(folder: Path) -> bool:
    """Whether a run ever saved its state; one that died before has nothing to lose, and starts at step 0."""
    log = folder / LOG
    begun = has_checkpoints(folder / CHECKPOINTS) or (log.exists() and log.stat().st_size > 0)
    if not begun:
        console.print(f"{folder}: stopped before its first checkpoint; starting at step 0", markup=False)
    return begun
