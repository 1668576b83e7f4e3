"""What a person sees: one console on standard error, and progress.

Progress is a bar on a terminal, one line that changes in place in a notebook's cell, and plain lines elsewhere.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def stderr_console() -> Console:
    """A console on standard error as it is now. A pipe or a file gets no escape codes, whatever FORCE_COLOR says: a bar
    drawn over itself is no text that can be read or searched."""
    is_terminal = sys.stderr.isatty()
    return Console(
        stderr=True, highlight=False, soft_wrap=True, force_terminal=is_terminal, width=None if is_terminal else 132
    )


console = stderr_console()  # `quiet` is set on every rank but the first, so no caller has to ask which rank it is


PLAIN_INTERVAL_S = 10.0
NOTEBOOK_INTERVAL_S = 0.2


T = TypeVar("T")


@contextmanager
def progress(description: str, total: int, done: int = 0) -> Iterator[Callable[..., None]]:
    """Show progress over `total` units, `done` of them already behind us.

    Yields `advance(units=1, note="")`, which shows the note and the time left: as a bar on a terminal, in a notebook
    every NOTEBOOK_INTERVAL_S seconds in the cell's one display, elsewhere as a line every PLAIN_INTERVAL_S seconds and
    one at the end.

        >>> with progress("Copying", total=2) as advance:
        ...     advance(note="first file")
        ...     advance(note="second file")
    """
    if console.is_terminal and not console.quiet:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, TextColumn("{task.fields[note]}"), console=console, transient=True) as bar:
            task = bar.add_task(description, total=total, completed=done, note="")

            def advance_bar(units: int = 1, note: str = "") -> None:
                bar.update(task, advance=units, note=note)

            yield advance_bar
        return

    in_notebook = console.is_jupyter and not console.quiet
    interval = NOTEBOOK_INTERVAL_S if in_notebook else PLAIN_INTERVAL_S
    start = last = time.monotonic()
    first = done

    def advance_line(units: int = 1, note: str = "") -> None:
        nonlocal done, last
        done += units
        now = time.monotonic()
        if now - last >= interval or (done >= total and now - start >= interval):
            last = now
            left = (now - start) / max(done - first, 1) * max(total - done, 0)
            line = f"{description}: {done}/{total}, {clock_time(left)} left  {note}".rstrip()
            if in_notebook:
                show_in_notebook(line)
            else:
                console.print(line, markup=False)

    yield advance_line


def clock_time(seconds: float) -> str:
    """A duration as h:mm:ss: 802 s are "0:13:22"."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def show_in_notebook(line: str) -> None:
    """Show a line in the cell that runs, in place of the progress shown there before."""
    from IPython import get_ipython

    cell_display(get_ipython().execution_count).update({"text/plain": line}, raw=True)


@cache
def cell_display(cell: int) -> Any:
    """The one display of progress in a notebook's cell, by the cell's number. Rich's own would ask for ipywidgets."""
    from IPython.display import display

    return display({"text/plain": ""}, raw=True, display_id=True)


def tracked(items: Collection[T], description: str) -> Iterator[T]:
    """Yield the items, with progress over them. For loops that do not fail: one that did would leave its bar behind."""
    with progress(description, len(items)) as advance:
        for item in items:
            yield item
            advance()
