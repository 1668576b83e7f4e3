"""Named tensors and JSON state in a folder that is whole and unchanged, or is not used.

    checkpoints/step-000123/
        state.json            everything that is no tensor
        tensors.safetensors
        manifest.json         size and SHA-256 of the others, written last

A folder gets its name only when every file in it is on disk. Nothing is unpickled. What is whole is known by its
hashes, which are computed once for as long as inode, size and time of each file stay the same.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from trainer.errors import CheckpointError, StorageError
from trainer.system.console import console
from trainer.system.files import MANIFEST, NO_FILE, find_damage, new_folder, remove_folder, write_manifest, writing

KEEP = 3
DAMAGED = ".damaged"  # how the names of those end that were set aside
TENSORS, STATE = FILES = ("tensors.safetensors", "state.json")
_NAME = re.compile(r"step-(\d{6,})")
_known_whole: set[tuple[tuple[int, int, int], ...]] = set()  # files that this process wrote, or compared with hashes


def save_checkpoint(
    root: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any], keep: Collection[int] = ()
) -> Path:
    """Write the checkpoint of a step, then drop older ones: all but the newest KEEP that are whole.

    Args:
        keep: steps whose checkpoints stay however old they are.

    Raises:
        StorageError: the file system refused; what was saved before is untouched.
    """
    folder = root / f"step-{step:06d}"
    if folder.exists():
        if is_whole(folder):
            return folder  # the state after a step is the same however often it is saved
        set_aside(folder)
    with new_folder(folder) as path:
        unique = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
        (path / TENSORS).write_bytes(safetensors.torch.save(unique))
        (path / STATE).write_text(json.dumps(state, ensure_ascii=False), encoding="utf-8")
        write_manifest(path)
    _known_whole.add(_stamp(folder))
    drop_old(root, keep)
    return folder


def drop_old(root: Path, keep: Collection[int]) -> None:
    """Remove the checkpoints that are older than the newest KEEP whole ones, but for those of the steps `keep`."""
    whole = 0
    for folder in reversed(_folders(root)):
        if whole >= KEEP:  # only then is anything removed, so nothing is lost by one that rotted
            if _step(folder) not in keep:
                remove_folder(folder)
            continue
        with suppress(StorageError):  # one that cannot be read does not count either
            whole += is_whole(folder)


def is_whole(folder: Path) -> bool:
    """Whether a checkpoint's files are what its manifest says; read and hashed where that is not known yet.

    Raises:
        StorageError: a file cannot be read.
    """
    try:
        stamp = _stamp(folder)
    except OSError:
        return find_damage(folder, FILES) is None  # which tells a file that is missing from one that cannot be read
    if stamp not in _known_whole and find_damage(folder, FILES) is None:
        _known_whole.add(stamp)
    return stamp in _known_whole


def has_checkpoints(root: Path) -> bool:
    """Whether a checkpoint was ever written there, damaged ones included."""
    return any(name.startswith("step-") for name in _names(root))


def newest_checkpoint(root: Path) -> Path:
    """The newest checkpoint whose files are what its manifest says.

    A damaged one is named and renamed to end in `.damaged`; the next older one is tried.

    Raises:
        CheckpointError: there is none, or none is whole.
        StorageError: one cannot be read, which is no reason to go on from an older one.
    """
    for folder in reversed(_folders(root)):
        try:
            problem = find_damage(folder, FILES)
        except StorageError as error:
            raise StorageError(f"{error}, or move {folder.name} away to resume from the one before") from error
        if problem is None:
            return folder
        console.print(f"{folder}: {problem}; set aside", markup=False)
        set_aside(folder)
    if damaged := sorted(name for name in _names(root) if name.endswith(DAMAGED)):
        raise CheckpointError(
            f"{root}: no checkpoint is whole; restore one that was set aside ({', '.join(damaged)}) and take "
            f"{DAMAGED} off its name, or start a new run"
        )
    raise CheckpointError(f"{root}: no checkpoint to resume from; remove the folder of the run, or name another")


def newest_values(root: Path) -> dict[str, Any]:
    """The JSON of the newest checkpoint that can be read; {} where there is none.

    For what must be known before the run is built: nothing is checked yet, and what is damaged is passed over, since
    `newest_checkpoint` will say so.
    """
    for folder in reversed(_folders(root)):
        try:
            values = json.loads((folder / STATE).read_bytes())
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(values, dict):
            return values
    return {}


def set_aside(folder: Path) -> None:
    """Rename a damaged checkpoint to end in `.damaged`. Raises StorageError."""
    damaged = folder.with_name(folder.name + DAMAGED)
    with writing(damaged):
        shutil.rmtree(damaged, ignore_errors=True)  # the same step, damaged before
        folder.rename(damaged)


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, state) of a checkpoint that `newest_checkpoint` found whole."""
    tensors = safetensors.torch.load((folder / TENSORS).read_bytes())
    return tensors, json.loads((folder / STATE).read_bytes())


def _folders(root: Path) -> list[Path]:
    return sorted((root / name for name in _names(root) if _NAME.fullmatch(name)), key=_step)


def _names(root: Path) -> list[str]:
    """What stands in a folder, [] where there is none. Raises StorageError where that cannot be known."""
    try:
        return [path.name for path in root.iterdir()]
    except OSError as error:
        if error.errno in NO_FILE:
            return []
        raise StorageError(f"{root}: cannot read: {error.strerror}; mend that and try again") from error


def _stamp(folder: Path) -> tuple[tuple[int, int, int], ...]:
    """Inode, size and time of each file: they change with every way of writing to one, though not as a disk rots."""
    stats = [(folder / name).stat() for name in (*FILES, MANIFEST)]
    return tuple((stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats)


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))
