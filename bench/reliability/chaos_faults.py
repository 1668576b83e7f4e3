"""Faults that are planted in a run's process before the trainer starts, and a disk that is too small.

They replace functions in the child: the trainer holds no code for it. Named points are calls of the functions that
write, rename, remove and load; the process kills itself at one of them, before or after.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainer.checkpoint import sealed_folder
from trainer.model import export
from trainer.system import files
from trainer.training import log, loop, resume
from trainer.training import step as training_step
from trainer.training.step import Stepper

Plant = Callable[[int], None]  # called in the child with its rank, before the trainer starts
POINTS: dict[str, tuple[Any, str]] = {
    "fsync": (files, "sync"),
    "write file": (Path, "write_bytes"),
    "write text": (Path, "write_text"),
    "rename": (Path, "rename"),
    "replace": (Path, "replace"),
    "manifest": (sealed_folder, "write_manifest"),
    "retention": (sealed_folder, "drop_old"),
    "remove a checkpoint": (sealed_folder, "remove_folder"),
    "remove a folder": (shutil, "rmtree"),
    "save": (resume, "save_checkpoint"),
    "snapshot": (resume, "snapshot"),
    "find the newest": (resume, "newest_checkpoint"),
    "load": (resume, "load_checkpoint"),
    "restore": (resume, "restore"),
    "log line": (log, "json_ready"),
    "update": (Stepper, "train_step"),
    "evaluation": (loop, "note_evaluation"),
    "finish": (loop, "finish"),
    "model export": (export, "save_model"),
    "export check": (export, "check_exports"),
}
# Of Linux' sched.h and mount.h.
CLONE_NEWNS, CLONE_NEWUSER, MS_REMOUNT, MS_PRIVATE, MNT_DETACH = 0x20000, 0x10000000, 0x20, 0x44000, 2


def nothing(*_: Any) -> None:
    """What stands where nothing is planted."""


def wrap(owner: Any, attribute: str, before: Callable[..., Any] = nothing, after: Callable[..., Any] = nothing) -> None:
    """Replace a function by one that hands its arguments to `before`, then its result and them to `after`."""
    real = getattr(owner, attribute)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        before(*args)
        result = real(*args, **kwargs)
        after(result, *args)
        return result

    setattr(owner, attribute, wrapped)


def at_call(number: int, act: Callable[..., Any]) -> Callable[..., None]:
    """A function that acts at its call of that number."""
    calls = itertools.count(1)

    def count(*args: Any) -> None:
        if next(calls) == number:
            act(*args)

    return count


def count_calls(path: Path) -> Plant:
    """Note every call of a named point."""

    def plant(rank: int) -> None:
        if rank == 0:
            for name, (owner, attribute) in POINTS.items():
                wrap(owner, attribute, lambda *_, name=name: path.open("a").write(name + "\n"))

    return plant


def kill_at(name: str, call: int, when: str) -> Plant:
    """Die at the call of that number of a named point, before or after it."""
    owner, attribute = POINTS[name]
    die = at_call(call, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    return lambda rank: wrap(owner, attribute, **{when: die}) if rank == 0 else None


def raise_at(owner: Any, attribute: str, call: int, error: BaseException) -> Plant:
    """Raise at the call of that number."""

    def fail(*_: Any) -> None:
        raise error

    return lambda rank: wrap(owner, attribute, at_call(call, fail))


def not_a_number(what: str, call: int, ranks: tuple[int, ...]) -> Plant:
    """A loss or a gradient of one step that is NaN on some ranks."""

    def spoil(loss: Any, *_: Any) -> None:
        if what == "loss":
            loss.total.data.fill_(float("nan"))
        else:
            loss.total.register_hook(lambda gradient: gradient * float("nan"))

    return lambda rank: wrap(training_step, "batch_loss", after=at_call(call, spoil)) if rank in ranks else None


def small_files(size: int) -> Plant:
    """Let no file grow beyond a size."""

    def plant(rank: int) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    return plant


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Callable[[], None]]:
    """Make a folder on a tmpfs of so many bytes, for this process and its children alone. Yields what makes it large.

    Raises:
        OSError: this system lets nobody mount, or not this user.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def call(function: Any, *arguments: Any) -> None:
        if function(*arguments) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def mount(flags: int, options: str) -> None:
        call(libc.mount, b"tmpfs", bytes(folder), b"tmpfs", flags, options.encode())

    folder.mkdir()
    user, group = os.getuid(), os.getgid()
    try:
        call(libc.unshare, CLONE_NEWNS)
    except PermissionError:  # in a user namespace everybody is root
        call(libc.unshare, CLONE_NEWNS | CLONE_NEWUSER)
        for name, content in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            Path("/proc/self", name).write_text(content)
    call(libc.mount, None, b"/", None, MS_PRIVATE, None)
    mount(0, f"size={size}")
    try:
        yield lambda: mount(MS_REMOUNT, "size=1g")
    finally:
        call(libc.umount2, bytes(folder), MNT_DETACH)
