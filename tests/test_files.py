"""Files and folders are whole or not there: through errors, a full disk, Ctrl-C and a kill at any point of writing."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from oracles import watch_disk

from trainer.errors import StorageError
from trainer.system import files as storage
from trainer.system.files import cache_dir, make_folder, new_folder, only_writer, write_cached, write_file

OLD, NEW = b"old content", b"new content, longer than the old"
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def everything(root: Path) -> dict[str, bytes | None]:
    """All that lies in a folder: relative path -> content, None for a folder."""
    return {str(path.relative_to(root)): path.read_bytes() if path.is_file() else None for path in root.rglob("*")}


def fail_at(patch: pytest.MonkeyPatch, step: str, error: BaseException) -> None:
    """Make the first call of a step of writing raise."""

    def fail(*args: object, **kwargs: object) -> None:
        raise error

    owner, name = {
        "make folder": (storage, "make_folder"),
        "write": (Path, "write_bytes"),
        "sync": (os, "fsync"),
        "replace": (Path, "replace"),
        "rename": (Path, "rename"),
    }[step]
    patch.setattr(owner, name, fail)


def fill(folder: Path) -> None:
    with new_folder(folder) as path:
        (path / "sub").mkdir()
        for name in ("a", "sub/b"):
            with (path / name).open("wb") as stream:
                stream.write(NEW)


# ---- one file


@pytest.mark.parametrize("data", [NEW, NEW.decode(), "", "Grüße 日本\n"])
def test_a_file_is_written_with_the_folders_it_needs(data: bytes | str, tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    write_file(path, data)
    assert path.read_bytes() == (data if isinstance(data, bytes) else data.encode())
    assert everything(tmp_path).keys() == {"a", "a/b", "a/b/file"}


@pytest.mark.parametrize("step", ["make folder", "write", "sync", "replace"])
@pytest.mark.parametrize(
    "error", [FULL, KeyboardInterrupt(), RuntimeError("x")], ids=lambda error: type(error).__name__
)
def test_an_error_at_any_step_leaves_the_old_file_alone(
    step: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(OLD)
    fail_at(monkeypatch, step, error)
    with pytest.raises(StorageError if error is FULL else type(error)) as caught:
        write_file(path, NEW)
    assert everything(tmp_path) == {"file": OLD}
    if error is FULL:
        assert str(caught.value) == f"{path}: cannot write: No space left on device"


def test_an_error_leaves_no_file_where_there_was_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_at(monkeypatch, "replace", FULL)
    with pytest.raises(StorageError):
        write_file(tmp_path / "file", NEW)
    assert everything(tmp_path) == {}


def test_where_a_file_stands_in_the_way_the_path_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(OLD)
    for path in (tmp_path / "file" / "x", tmp_path / "file" / "x" / "y"):
        with pytest.raises(StorageError) as caught:
            write_file(path, NEW)
        assert str(caught.value).startswith(f"{path}: cannot write: ")
        with pytest.raises(StorageError) as caught:
            fill(path)
        assert str(caught.value).startswith(f"{path}: ")
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    with pytest.raises(StorageError, match="cannot write"):
        write_file(tmp_path / "folder", NEW)
    assert everything(tmp_path) == {"file": OLD, "folder": None, "folder/inside": None}


# ---- a folder


def test_a_folder_appears_with_all_that_was_put_in(tmp_path: Path) -> None:
    fill(tmp_path / "deep" / "run")
    assert everything(tmp_path / "deep") == {"run": None, "run/a": NEW, "run/sub": None, "run/sub/b": NEW}
    assert (tmp_path / "deep" / "run").stat().st_mode & 0o777 == 0o755


def test_while_it_is_filled_it_is_not_there(tmp_path: Path) -> None:
    with new_folder(tmp_path / "run") as path:
        (path / "a").write_bytes(NEW)
        assert not (tmp_path / "run").exists()
    assert (tmp_path / "run" / "a").exists()


@pytest.mark.parametrize("step", ["sync", "rename"])
@pytest.mark.parametrize(
    "error", [FULL, KeyboardInterrupt(), RuntimeError("x")], ids=lambda error: type(error).__name__
)
def test_an_error_at_any_step_leaves_no_folder(
    step: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at(monkeypatch, step, error)
    with pytest.raises(StorageError if error is FULL else type(error)):
        fill(tmp_path / "run")
    assert everything(tmp_path) == {}


@pytest.mark.parametrize(
    "error", [FULL, KeyboardInterrupt(), RuntimeError("x")], ids=lambda error: type(error).__name__
)
def test_an_error_while_it_is_filled_leaves_no_folder(error: BaseException, tmp_path: Path) -> None:
    with (
        pytest.raises(StorageError if error is FULL else type(error)),
        new_folder(tmp_path / "run") as path,
    ):
        (path / "a").write_bytes(NEW)
        raise error
    assert everything(tmp_path) == {}


def test_a_folder_that_exists_is_not_touched(tmp_path: Path) -> None:
    fill(tmp_path / "run")
    before = everything(tmp_path)
    with pytest.raises(StorageError, match="exists already and is not overwritten"):
        fill(tmp_path / "run")
    with pytest.raises(StorageError), new_folder(tmp_path / "late") as path:
        (path / "mine").write_bytes(NEW)
        fill(tmp_path / "late")  # another process is faster
    assert everything(tmp_path).items() >= before.items()
    assert everything(tmp_path / "late").keys() == {"a", "sub", "sub/b"}
    assert len(list(tmp_path.iterdir())) == 2


def test_everything_is_on_disk_before_the_name_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir(parents=True)
    events = watch_disk(monkeypatch, tmp_path / "in")
    fill(tmp_path / "in" / "run")
    assert sorted(events[:3]) == ["sync a", "sync b", "sync sub"]
    assert events[3:] == ["sync (run)", "name run", "sync in"]
    events.clear()
    write_file(tmp_path / "in" / "file", NEW)
    assert events == ["sync (file)", "name file", "sync in"]


def test_the_names_of_new_folders_are_on_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir(parents=True)
    events = watch_disk(monkeypatch, tmp_path / "in")
    with only_writer(tmp_path / "in" / "runs" / "first"):
        assert events == ["sync in", "sync runs"]
    make_folder(tmp_path / "in" / "runs")
    assert events == ["sync in", "sync runs"]


LOST: dict[str, Callable[[Path], bool]] = {
    "all": lambda path: True,
    "content of files": Path.is_file,
    "names in a folder that is not there yet": lambda path: path.name.endswith(".tmp") and path.is_dir(),
    "the name at the end": lambda path: path.name == "in",
}


@pytest.mark.parametrize("what", LOST)
def test_a_sync_that_is_left_out_is_seen(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative controls of the two tests above."""
    real = storage.sync
    monkeypatch.setattr(storage, "sync", lambda path: None if LOST[what](path) else real(path))
    with pytest.raises(AssertionError):
        test_everything_is_on_disk_before_the_name_is_given(tmp_path / "file and folder", monkeypatch)
    if what in ("all", "the name at the end"):
        with pytest.raises(AssertionError):
            test_the_names_of_new_folders_are_on_disk_too(tmp_path / "above", monkeypatch)


# ---- a process that dies, a disk that is full

CHILD = """
import os, resource, signal, sys
from pathlib import Path
from trainer.system import files as storage

how, where, root = sys.argv[1:]
root = Path(root)


def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


if how == "full":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
elif how == "naive":
    storage.write_file = lambda path, data: (path.write_bytes(data[:1000]), die())
else:
    owner = os if how == "fsync" else Path
    setattr(owner, how, die)
data = b"new" * 1000
try:
    if where == "file":
        storage.write_file(root / "file", data)
    else:
        with storage.new_folder(root / "run") as path:
            (path / "a").write_bytes(data)
except storage.StorageError as error:
    print(error)
"""


def run_child(how: str, where: str, root: Path) -> subprocess.CompletedProcess[str]:
    (root / "file").write_bytes(OLD)
    return subprocess.run(
        [sys.executable, "-c", CHILD, how, where, str(root)], capture_output=True, text=True, timeout=60
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "where"), [("fsync", "file"), ("replace", "file"), ("fsync", "run"), ("rename", "run")]
)
def test_a_killed_process_leaves_the_old_file_and_no_folder(how: str, where: str, tmp_path: Path) -> None:
    assert run_child(how, where, tmp_path).returncode == -signal.SIGKILL
    assert (tmp_path / "file").read_bytes() == OLD
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_plain_writing_would_not_pass_the_kill(tmp_path: Path) -> None:
    assert run_child("naive", "file", tmp_path).returncode == -signal.SIGKILL
    assert (tmp_path / "file").read_bytes() != OLD


@pytest.mark.slow
@pytest.mark.parametrize("where", ["file", "run"])
def test_a_file_that_finds_no_room_is_a_storage_error_and_leaves_nothing(where: str, tmp_path: Path) -> None:
    child = run_child("full", where, tmp_path)
    assert child.returncode == 0, child.stderr
    assert child.stdout == f"{tmp_path / where}: cannot write: File too large\n"
    assert everything(tmp_path) == {"file": OLD}


# ---- caches


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"TRAINER_CACHE": "/c", "XDG_CACHE_HOME": "/x"}, lambda home: Path("/c")),
        ({"TRAINER_CACHE": "", "XDG_CACHE_HOME": "/x"}, lambda home: Path("/x/matryoshka-trainer")),
        ({"XDG_CACHE_HOME": ""}, lambda home: home / ".cache" / "matryoshka-trainer"),
        ({}, lambda home: home / ".cache" / "matryoshka-trainer"),
    ],
)
def test_where_the_cache_lives(
    variables: dict[str, str], expected: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TRAINER_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"HOME": str(tmp_path)} | variables).items():
        monkeypatch.setenv(name, value)
    assert cache_dir() == expected(tmp_path)


def test_a_cache_that_cannot_be_written_to_says_how_to_have_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(OLD)
    monkeypatch.setenv("TRAINER_CACHE", str(tmp_path / "file"))
    with pytest.raises(StorageError, match="no folder; name another folder for what is kept as TRAINER_CACHE"):
        write_cached(cache_dir() / "tokens" / "x", {})
    monkeypatch.setenv("TRAINER_CACHE", "/elsewhere")  # negative control: what is no cache
    with pytest.raises(StorageError, match=r"no folder$"):
        write_cached(tmp_path / "file" / "tokens" / "x", {})
