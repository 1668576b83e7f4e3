"""How the tests break the trainer, and watch the order in which its files reach the disk."""

from __future__ import annotations

import inspect
import os
import re
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def planted(function: Callable[..., Any], old: str, new: str) -> Iterator[None]:
    """A mutant: one fragment of a function's source is another meanwhile, for every module that calls it."""
    function = inspect.unwrap(function)
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"{function.__qualname__} does not hold {old!r} once: adapt the mutant"
    scope = dict(function.__globals__)
    exec("from __future__ import annotations\n" + source.replace(old, new), scope)
    with pytest.MonkeyPatch.context() as patch:  # its own, for a test may undo the one that it has
        patch.setattr(function, "__code__", inspect.unwrap(scope[function.__name__]).__code__)
        yield


def watch_disk(patch: pytest.MonkeyPatch, root: Path) -> list[str]:
    """What happens below a folder from now on, in order: "sync NAME" by os.fsync, "name NAME" by a rename to it.

    Temporary names stand in brackets, without what makes them unique.
    """
    events: list[str] = []

    def short(name: str) -> str:
        return re.sub(r"^\.(.+)\.[^.]+\.tmp$", r"(\1)", name)

    def fsync(handle: int, real: Any = os.fsync) -> None:
        real(handle)
        inode = os.fstat(handle).st_ino
        events.extend(f"sync {short(path.name)}" for path in [root, *root.rglob("*")] if path.stat().st_ino == inode)

    def noted(real: Callable[..., None]) -> Callable[..., None]:
        return lambda old, new: (real(old, new), events.append(f"name {short(Path(new).name)}"))[0]

    patch.setattr(os, "fsync", fsync)
    patch.setattr(os, "rename", noted(os.rename))
    patch.setattr(os, "replace", noted(os.replace))
    return events
