"""The folder of a run: which one, what may be in it, and how its files are called."""

from __future__ import annotations

from pathlib import Path

from trainer.config import Config
from trainer.errors import InputError, StorageError
from trainer.system.files import remove_debris
from trainer.training.finish import FINISHED

LOG = "log.jsonl"


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
    finished = (folder / FINISHED).exists()
    if resume and (finished or not folder.is_dir()):
        raise InputError(f"{folder}: {'this run is finished' if finished else 'no run'}; nothing to resume")
    # Names that begin with a dot are not a run's result: a lock, or what a killed process left.
    if not resume and folder.exists() and (not folder.is_dir() or any(p.name[0] != "." for p in folder.iterdir())):
        what = "is no empty folder"
        if (folder / "config.toml").exists():
            what = "holds a finished run" if finished else "holds an unfinished run (continue it with --resume)"
        raise StorageError(f"{folder}: {what} and is not overwritten; name another with --output-dir")


def clear_folder(folder: Path, resume: bool) -> None:
    """Look again, now that no other process can come in, and remove what one that died left half written."""
    check_folder(folder, resume)
    for place in (folder, folder / "checkpoints"):
        remove_debris(place)
