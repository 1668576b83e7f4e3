"""Files that are whole or not there at all, folders that notice damage, one writer a folder, and where caches live."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open

from trainer.errors import StorageError
from trainer.system.console import console

MANIFEST = "manifest.json"  # size and SHA-256 of the other files of a folder
LOCK = ".lock"
APPEND_WAIT_S = 60.0  # for another process that adds a line to the same file
DEBRIS = ".tmp"  # how names end that only a process that died leaves behind
# What tells that there is no such file. Every other error in reading may be gone tomorrow, and the file be whole.
NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)


def cache_dir() -> Path:
    """Folder for what can be made again: $TRAINER_CACHE, or matryoshka-trainer in the user's cache folder."""
    if folder := os.environ.get("TRAINER_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "matryoshka-trainer"


def digest(*arrays: np.ndarray) -> str:
    """SHA-256 of the values of arrays."""
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def read_cached(path: Path, names: Collection[str], doing: str) -> dict[str, np.ndarray] | None:
    """The arrays of a cache file; None where there is none, or it does not hold what its checksum says.

    Args:
        doing: what then has to be done again, as a person is told of a damaged file.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="np") as file:
            arrays = {name: file.get_tensor(name) for name in names}
            if (file.metadata() or {}).get("sha256") == digest(*arrays.values()):
                return arrays
    except SafetensorError:
        pass  # said below
    console.print(f"{path}: damaged; {doing} again", markup=False)
    return None


def write_cached(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Keep arrays for `read_cached`, which asks for them in this order. Raises StorageError."""
    try:
        write_file(path, safetensors.numpy.save(dict(arrays), metadata={"sha256": digest(*arrays.values())}))
    except StorageError as error:
        if not path.is_relative_to(cache_dir()):
            raise
        raise StorageError(f"{error}; name another folder for what is kept as TRAINER_CACHE") from error


def make_folder(path: Path) -> None:
    """Make a folder where it is missing, and those above it, so that each one's name is on disk. Raises OSError."""
    if not path.is_dir():
        if path.exists():
            raise NotADirectoryError(errno.ENOTDIR, f"{path} is no folder", str(path))
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync(path.parent)


def write_file(path: Path, data: bytes | str) -> None:
    """Replace a file in one step: a reader sees the old content or the new, also after a crash.

    Raises:
        StorageError: the file system refused.
    """
    data = data.encode() if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.{os.getpid()}{DEBRIS}")
    try:
        with writing(path):
            make_folder(path.parent)
            temporary.write_bytes(data)
            sync(temporary)
            temporary.replace(path)
            sync(path.parent)
    except BaseException:
        with suppress(OSError):  # its folder may not be there either
            temporary.unlink()
        raise


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in a line what the file system refuses where a path is written to. Raises StorageError."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path}: cannot write: {error.strerror or error}") from error


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Fill a folder under a temporary name, then give it its own: it is there whole or not at all.

    Raises:
        StorageError: the file system refused, or the folder exists.
    """
    with writing(path):
        if path.exists():
            raise StorageError(f"{path}: exists already and is not overwritten; name another folder or remove it")
        make_folder(path.parent)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=DEBRIS, dir=path.parent))
        try:
            yield temporary
            temporary.chmod(0o755)  # mkdtemp's folders are private
            for file in temporary.rglob("*"):
                sync(file)
            sync(temporary)
            temporary.rename(path)
            sync(path.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def remove_folder(path: Path) -> None:
    """Take a folder's name away first: a process that dies meanwhile leaves none that is half there."""
    renamed = path.with_name(f".{path.name}.{os.getpid()}{DEBRIS}")
    path.rename(renamed)
    shutil.rmtree(renamed)


def remove_debris(folder: Path) -> None:
    """Remove what a process that died in `write_file`, `new_folder` or `remove_folder` left in a folder."""
    for path in folder.glob(f".*{DEBRIS}"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Keep every other process off a folder; the lock ends with the process, however that ends.

    A folder that was made for this and got nothing else is removed again.

    Raises:
        StorageError: another process has it, or the file system refused.
    """
    is_new = not folder.exists()
    with _locked(folder / LOCK, folder, "another process runs there; wait for its end, or name another folder"):
        try:
            yield
        finally:
            if is_new and [entry.name for entry in folder.iterdir()] == [LOCK]:
                shutil.rmtree(folder, ignore_errors=True)


def only_writer_of(path: Path, wait_s: float = 0.0) -> AbstractContextManager[None]:
    """Keep every other process that asks here off a file; the lock, a file beside it, ends with the process.

    Args:
        wait_s: seconds to wait for another process that has it.

    Raises:
        StorageError: another process has it, or the file system refused.
    """
    lock = path.with_name(f".{path.name}{LOCK}")
    return _locked(lock, path, "another process writes it; wait for its end, or name another file", wait_s)


@contextmanager
def _locked(lock: Path, what: Path, busy: str, wait_s: float = 0.0) -> Iterator[None]:
    """Hold the lock of something; `busy` tells of another process that has it. Raises StorageError."""
    try:
        make_folder(lock.parent)
        # The file stays when the lock is given up: a process that had opened one just removed would lock nothing.
        held = FileLock(lock).acquire(timeout=wait_s)
    except Timeout:
        raise StorageError(f"{what}: {busy}") from None
    except OSError as error:
        raise StorageError(f"{what}: cannot write there: {error.strerror or error}") from error
    with held:
        yield


def append_line(path: Path, line: str) -> None:
    """Add a line to a text file, in one step: it is there whole or not at all. Raises StorageError."""
    with only_writer_of(path, APPEND_WAIT_S):
        try:
            before = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise StorageError(f"{path}: cannot read: {error.strerror or error}") from error
        end = b"\n" if before and not before.endswith(b"\n") else b""
        write_file(path, before + end + line.encode() + b"\n")


def write_manifest(folder: Path) -> None:
    """Note size and SHA-256 of every file of a folder, but for an older note of it; to be called last."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file != folder / MANIFEST]
    entries = {str(file.relative_to(folder)): seal(file) for file in files}
    (folder / MANIFEST).write_text(json.dumps(entries, indent=2), encoding="utf-8")


def find_damage(folder: Path, required: Collection[str] = ()) -> str | None:
    """What is wrong with a folder's files, None where they are what its manifest says.

    Args:
        required: files that the manifest must name.

    Raises:
        StorageError: a file cannot be read, which tells nothing of what it holds.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        entries = {name: (entry["size"], entry["sha256"]) for name, entry in manifest.items()}
        if not entries or any(name not in entries for name in required) or not all(map(_is_inside, entries)):
            return f"{MANIFEST} is not what was written"
        for name, sealed in entries.items():
            if sealed != tuple(seal(folder / name).values()):
                return f"{name} is not what was written"
    except OSError as error:
        path = Path(error.filename or folder)  # a failing disk gives an error without a file name
        if error.errno in NO_FILE:
            return f"cannot read {path.name}: {error.strerror}"
        raise StorageError(f"{path}: cannot read: {error.strerror}; mend that and try again") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{MANIFEST} is not what was written"
    return None


def _is_inside(name: str) -> bool:
    return not Path(name).is_absolute() and ".." not in Path(name).parts


def seal(file: Path) -> dict[str, Any]:
    """Size and SHA-256 (hex) of a file."""
    with file.open("rb") as stream:
        return {"size": file.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def json_ready(value: Any) -> Any:
    """NaN, which JSON has no word for, as null; everything else as it is."""
    if isinstance(value, dict):
        return {key: json_ready(item) for key, item in value.items()}
    if isinstance(value, list):
        return [json_ready(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def write_json(path: Path, value: Any) -> None:
    """Write JSON in one step, NaN as null. Raises StorageError."""
    write_file(path, json.dumps(json_ready(value), indent=2, ensure_ascii=False) + "\n")
