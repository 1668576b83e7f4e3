"""SIGTERM, SIGINT and SIGHUP: a run that is asked to stop, or whose terminal is gone, ends where nothing is lost."""

from __future__ import annotations

import ctypes
import os
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from trainer.errors import Stopped

NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Signals:
    """Signals while the run is in hand; a second SIGTERM or SIGINT ends the process at once.

    The first raises Stopped where nothing would be lost; inside `noted` it only sets `requested`. A terminal that goes
    away sends several SIGHUPs, from its shell and from the system, so that further ones do nothing. Where SIGHUP is
    ignored (nohup), it stays so. Outside the main thread Python hands no signals out: there none is looked for.

    Args:
        kind: what is raised. Stopped is an Exception, which libraries may catch, and go on, as torch's exporter does:
            among them it has to be KeyboardInterrupt.
    """

    def __init__(self, kind: type[BaseException] = Stopped) -> None:
        self.kind = kind
        self.requested = self.deferred = False
        self._previous: dict[signal.Signals, Any] = {}
        self._hook = sys.unraisablehook

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else set()
            heard = [number for number in NUMBERS if number not in ignored]
            self._previous = {number: signal.signal(number, self._note) for number in heard}
        self._hook, sys.unraisablehook = sys.unraisablehook, self._swallowed
        return self

    def __exit__(self, *error: object) -> None:
        sys.unraisablehook = self._hook
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        if self.requested:  # another signal came in the same moment
            return
        if number == signal.SIGHUP:
            forget_terminal()
        self.requested = True
        self._answer(signal.SIG_DFL)
        if not self.deferred:
            self._stop()

    def _swallowed(self, lost: Any) -> None:
        """Stop a moment later: a destructor or a weak reference's callback was running, and Python lets none raise."""
        if not isinstance(lost.exc_value, self.kind):
            self._hook(lost)
            return
        for number in self._previous:
            signal.signal(number, self._note)
        self.requested = False
        threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGTERM)).start()

    def _answer(self, action: signal.Handlers) -> None:
        """Leave further signals to the system, whatever the process is waiting for.

        Python keeps `_note` as their handler: to one that it has seen and not handled yet it would otherwise print a
        traceback ("ignored due to race condition").
        """
        for number in self._previous:
            wanted = signal.SIG_IGN if number == signal.SIGHUP else action
            ctypes.pythonapi.PyOS_setsig(number, ctypes.c_void_p(wanted))

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
        raise self.kind("stopped by a signal; continue with --resume, or start again where no step was made")


def forget_terminal() -> None:
    """Let what is printed go nowhere where it went to a terminal, which is gone: writing there would be an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for output in (1, 2):
        if stat.S_ISCHR(os.fstat(output).st_mode):
            os.dup2(nowhere, output)
    os.close(nowhere)
