"""Named tensors and JSON state in a folder that is whole and unchanged, or is not used.

    checkpoints/step-000123/
        state.json            everything that is no tensor
        tensors.safetensors
        manifest.json         size and SHA-256 of the others, written last

A folder gets its name only when every file in it is on disk. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from trainer.console import console
from trainer.errors import CheckpointError
from trainer.storage import new_folder

KEEP = 3
_NAME = re.compile(r"step-(\d{6,})")


def save_checkpoint(root: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> Path:
    """Write the checkpoint of a step, then drop all but the newest KEEP.

    Raises:
        StorageError: the file system refused; older checkpoints are untouched.
    """
    folder = root / f"step-{step:06d}"
    if folder.exists():
        return folder  # the state after a step is the same however often it is saved
    with new_folder(folder) as path:
        unique = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
        (path / "tensors.safetensors").write_bytes(safetensors.torch.save(unique))
        (path / "state.json").write_text(json.dumps(state, ensure_ascii=False), encoding="utf-8")
        files = {file.name: _seal(file) for file in sorted(path.iterdir())}
        (path / "manifest.json").write_text(json.dumps(files, indent=2), encoding="utf-8")
    for old in _folders(root)[:-KEEP]:
        shutil.rmtree(old)
    return folder


def newest_checkpoint(root: Path) -> Path:
    """The newest checkpoint whose files are what its manifest says.

    A damaged one is named and renamed to end in `.damaged`; the next older one is tried.

    Raises:
        CheckpointError: there is none, or none is whole.
    """
    folders = _folders(root)
    if not folders:
        raise CheckpointError(f"{root}: no checkpoint to resume from; remove the folder of the run, or name another")
    for folder in reversed(folders):
        if problem := find_damage(folder):
            console.print(f"{folder}: {problem}; set aside", markup=False)
            damaged = folder.with_name(folder.name + ".damaged")
            shutil.rmtree(damaged, ignore_errors=True)  # the same step, damaged before
            folder.rename(damaged)
            continue
        return folder
    raise CheckpointError(f"{root}: none of {len(folders)} checkpoints is whole; start a new run")


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, state) of a checkpoint that `newest_checkpoint` found whole."""
    tensors = safetensors.torch.load((folder / "tensors.safetensors").read_bytes())
    return tensors, json.loads((folder / "state.json").read_bytes())


def find_damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint's files, None where they are what its manifest says."""
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        entries = {name: (entry["size"], entry["sha256"]) for name, entry in manifest.items()}
        for name in ("tensors.safetensors", "state.json"):
            found = _seal(folder / name)
            if entries[name] != (found["size"], found["sha256"]):
                return f"{name} is not what was written"
    except OSError as error:
        # A failing disk gives an error without a file name.
        return f"cannot read {Path(error.filename or folder).name}: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "manifest.json is not what was written"
    return None


def _seal(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        return {"size": file.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    named = [(int(match[1]), path) for path in root.iterdir() if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(named)]
