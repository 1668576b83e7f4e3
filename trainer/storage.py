"""Files that are whole or not there at all, and where caches live."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trainer.errors import StorageError


def cache_dir() -> Path:
    """Folder for what can be made again: $TRAINER_CACHE, or matryoshka-trainer in the user's cache folder."""
    if "TRAINER_CACHE" in os.environ:
        return Path(os.environ["TRAINER_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "matryoshka-trainer"


def write_file(path: Path, data: bytes | str) -> None:
    """Replace a file in one step: a reader sees the old content or the new, also after a crash.

    Raises:
        StorageError: the file system refused.
    """
    data = data.encode() if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except BaseException as error:
        with suppress(OSError):  # its folder may not be there either
            temporary.unlink()
        if isinstance(error, OSError):
            raise StorageError(f"{path}: cannot write: {error.strerror or error}") from error
        raise


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Fill a folder under a temporary name, then give it its own: it is there whole or not at all.

    Raises:
        StorageError: the file system refused, or the folder exists.
    """
    try:
        if path.exists():
            raise StorageError(f"{path}: exists already and is not overwritten; name another folder or remove it")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            yield temporary
            temporary.chmod(0o755)  # mkdtemp's folders are private
            for file in temporary.rglob("*"):
                _sync(file)
            _sync(temporary)
            temporary.rename(path)
            _sync(path.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except OSError as error:
        raise StorageError(f"{path}: cannot write: {error.strerror or error}") from error


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
