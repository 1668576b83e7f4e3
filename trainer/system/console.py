"""What a person sees: one console on standard error; progress as a bar on a terminal, as plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

# `quiet` is set on every rank but the first, so no caller has to ask which rank it is.
console = Console(stderr=True, highlight=False, soft_wrap=True, width=None if sys.stderr.isatty() else 132)


PLAIN_INTERVAL_S = 10.0
TRACKED_STEP = 100  # items; a bar costs more than what is done to one of them


T = TypeVar("T")


@contextmanager
def progress(description: str, total: int, done: int = 0) -> Iterator[Callable[..., None]]:
    """Show progress over `total` units, `done` of them already behind us.

    Yields `advance(units=1, note="")`. On a terminal a bar with the note and the time left; otherwise one plain
    line every PLAIN_INTERVAL_S seconds and one at the end.
    """
    if console.is_terminal and not console.quiet:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, TextColumn("{task.fields[note]}"), console=console, transient=True) as bar:
            task = bar.add_task(description, total=total, completed=done, note="")

            def advance_bar(units: int = 1, note: str = "") -> None:
                bar.update(task, advance=units, note=note)

            yield advance_bar
        return

    start = last = time.monotonic()
    first = done

    def advance_plain(units: int = 1, note: str = "") -> None:
        nonlocal done, last
        done += units
        now = time.monotonic()
        if now - last >= PLAIN_INTERVAL_S or (done >= total and now - start >= PLAIN_INTERVAL_S):
            last = now
            left = (now - start) / max(done - first, 1) * (total - done)
            console.print(f"{description}: {done}/{total}, {left:.0f} s left  {note}".rstrip(), markup=False)

    yield advance_plain


def tracked(items: Collection[T], description: str) -> Iterator[T]:
    """The items, with progress over them. For loops that do not fail: one that did would leave its bar behind."""
    with progress(description, len(items)) as advance:
        for number, item in enumerate(items, start=1):
            yield item
            if number % TRACKED_STEP == 0 or number == len(items):
                advance((number - 1) % TRACKED_STEP + 1)
