"""SIGTERM and SIGINT: a run that is asked to stop ends where nothing is lost."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from trainer.errors import Stopped


class Signals:
    """SIGTERM and SIGINT while the run is in hand; a second one ends the process at once.

    The first raises Stopped where nothing would be lost; inside `noted` it only sets `requested`.
    """

    NUMBERS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.requested = self.deferred = False
        self._previous: dict[signal.Signals, Any] = {}
        self._hook = sys.unraisablehook

    def __enter__(self) -> Signals:
        self._previous = {number: signal.signal(number, self._note) for number in self.NUMBERS}
        self._hook, sys.unraisablehook = sys.unraisablehook, self._swallowed
        return self

    def __exit__(self, *error: object) -> None:
        sys.unraisablehook = self._hook
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        if self.requested:  # the other signal came in the same moment
            return
        self.requested = True
        self._answer(signal.SIG_DFL)
        if not self.deferred:
            self._stop()

    def _swallowed(self, lost: Any) -> None:
        """Stop a moment later: a destructor or a weak reference's callback was running, and Python lets none raise."""
        if not isinstance(lost.exc_value, Stopped):
            self._hook(lost)
            return
        for number in self.NUMBERS:
            signal.signal(number, self._note)
        self.requested = False
        threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGTERM)).start()

    def _answer(self, action: signal.Handlers) -> None:
        """Leave further signals to the system, whatever the process is waiting for.

        Python keeps `_note` as their handler: to one that it has seen and not handled yet it would otherwise print a
        traceback ("ignored due to race condition").
        """
        for number in self.NUMBERS:
            ctypes.pythonapi.PyOS_setsig(number, ctypes.c_void_p(action))

    @contextmanager
    def noted(self) -> Iterator[Callable[[], bool]]:
        """Yields `requested()`: whether a signal came. One that nobody acted upon raises Stopped at the end."""
        self.deferred = True
        yield lambda: self.requested
        self.deferred = False
        if self.requested:
            self._stop()

    def ignore(self) -> None:
        """Let no signal turn into a failure what is about to be done."""
        self._answer(signal.SIG_IGN)

    def _stop(self) -> None:
        raise Stopped("stopped by a signal; continue with --resume, or start again where no step was made")
