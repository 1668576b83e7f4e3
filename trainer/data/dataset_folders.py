"""Folders of Hugging Face datasets: what `save_to_disk` writes, and Parquet shards as the hub keeps them.

Only data is read: no loading script is run, and no name in a description leads out of its folder.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from trainer.errors import InputError

STATE, SPLITS = "state.json", "dataset_dict.json"  # of a saved dataset, and of several splits of one
SHARD = re.compile(r"(?P<split>\w+(?:\.\w+)*)-(?P<number>\d{5})-of-(?P<count>\d{5})(?:-[0-9a-f]+)?\.parquet")


def shards_of(path: Path) -> list[Path]:
    """The files of a dataset, in order: of a folder of one split, or of FOLDER/SPLIT. [] for what is no such folder.

    Raises InputError: several splits, none of which is named, or a folder that is not whole.
    """
    if not os.path.isdir(path):  # of the hub's layout, a split is no folder
        return [] if os.path.lexists(path) else _whole(path, _parquet_of(path.parent).get(path.name, []))
    if (path / STATE).is_file():
        return _saved_shards(path)
    splits: dict[str, list[Path]] = {}
    if (path / SPLITS).is_file():
        splits = {name: [path / name] for name in _names(path / SPLITS, "splits")}
    elif not (splits := _parquet_of(path)):
        return []
    if len(splits) > 1:
        choices = " or ".join(str(path / name) for name in splits)
        raise InputError(f"{path}: holds several splits of a dataset: name one of them, {choices}")
    shards = next(iter(splits.values()), [])
    return shards_of(shards[0]) if shards and shards[0].is_dir() else _whole(path, shards)


def _saved_shards(folder: Path) -> list[Path]:
    """The Arrow files of one saved split. Raises InputError."""
    shards = [folder / name for name in _names(folder / STATE, "_data_files")]
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise InputError(f"{folder}: {missing[0]}, which {STATE} names, is missing: copy the whole folder again")
    return shards


def _names(path: Path, key: str) -> list[str]:
    """Names of files or folders beside a description, which lists them under a key. Raises InputError."""
    try:
        listed = json.loads(path.read_bytes())[key]
        names = [one["filename"] if isinstance(one, dict) else one for one in listed]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        names = []
    if not names or not all(isinstance(name, str) and name == Path(name).name for name in names):
        raise InputError(f"{path}: does not name the files of a dataset as {key}: save the dataset again")
    return names


def _parquet_of(folder: Path) -> dict[str, list[Path]]:
    """Split -> its Parquet shards, in a folder or in its subfolder `data`."""
    splits: dict[str, list[Path]] = {}
    for place in (folder, folder / "data"):
        for path in sorted(place.glob("*.parquet")) if not splits else ():
            if name := SHARD.fullmatch(path.name):
                splits.setdefault(name["split"], []).append(path)
    return splits


def _whole(path: Path, shards: list[Path]) -> list[Path]:
    """The Parquet shards of a split, whose names say how many there are. Raises InputError for fewer, or for more."""
    names = [name for shard in shards if (name := SHARD.fullmatch(shard.name))]
    counts = sorted({name["count"] for name in names})
    if len(counts) > 1:
        sets = " and ".join(f"{names[0]['split']}-...-of-{count}" for count in counts)
        raise InputError(f"{path}: holds its rows more than once, as {sets}: remove the older files")
    for count in counts:
        have = [name["number"] for name in names]
        if missing := sorted({f"{number:05d}" for number in range(int(count))}.difference(have)):
            shard = f"{names[0]['split']}-{missing[0]}-of-{count}.parquet"
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise InputError(f"{path}: {shard}{more} is missing: copy the whole folder again")
        if len(have) > int(count):
            what = f"{len(have)} files of {names[0]['split']}"
            raise InputError(f"{path}: has {what} whose names say {int(count)}: remove the older ones")
    return shards
