"""How a pair is shown and an answer read: on a terminal, where a key is enough, or in lines.

Texts of a file are masked, as in reports, and none can command the terminal.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from trainer.errors import Stopped
from trainer.labelling.answers import Pair
from trainer.system.console import stderr_console
from trainer.text.masking import mask_text

YES, NO, SKIP, UNDO, QUIT = "y", "n", "s", "u", "q"
KEYS = {YES: "yes", NO: "no", SKIP: "skip", UNDO: "undo", QUIT: "quit"}
QUESTION = "The same problem?  y yes   n no   s skip   u undo   q quit "
SIDE_BY_SIDE = 100  # columns from which on two texts stand beside each other
MASKED, SHOWN = 20_000, 2_000  # characters of a text that are masked, and shown of these
END = b"\x04"  # Control-D


def readable(text: str) -> str:
    """A text as it may be shown: masked, cut, and every sign that could command a terminal written out."""
    masked = mask_text(text[:MASKED])
    cut = f"\n[{len(text) - SHOWN:,} more characters]" if len(text) > SHOWN else ""
    return _plain(masked[:SHOWN]) + cut


def _plain(text: str) -> str:
    """A text with every sign but line feeds that is not printable written out."""
    return "".join(sign if sign.isprintable() or sign == "\n" else repr(sign)[1:-1] for sign in text)


def _forget_typed(keyboard: int) -> None:
    import termios

    termios.tcflush(keyboard, termios.TCIFLUSH)


@dataclass(frozen=True)
class Screen:
    """Where pairs are shown and answers come from."""

    console: Console
    keyboard: int | None
    """The terminal that gives keys; None: lines of standard input."""

    @classmethod
    @contextmanager
    def open(cls) -> Iterator[Screen]:
        """The terminal, which gives keys without Enter until the end, or the standard streams."""
        if not sys.stdin.isatty():
            yield cls(stderr_console(), None)
            return
        import termios
        import tty

        keyboard = sys.stdin.fileno()
        before = termios.tcgetattr(keyboard)
        try:
            tty.setcbreak(keyboard)
            yield cls(stderr_console(), keyboard)
        finally:
            termios.tcsetattr(keyboard, termios.TCSADRAIN, before)

    def say(self, line: str) -> None:
        """Show a line, whatever names a file or a person has put into it."""
        self.console.print(_plain(line), markup=False)

    def show(self, pair: Pair, heading: str) -> None:
        """Show a pair: side by side where there is room, else one below the other."""
        texts = [Text(readable(text)) for text in (pair.text1, pair.text2)]
        self.console.rule(Text(heading), style="dim")
        if self.console.width >= SIDE_BY_SIDE:
            table = Table(box=box.SIMPLE_HEAD, expand=True, pad_edge=False, show_header=False)
            for _ in texts:
                table.add_column(ratio=1, overflow="fold")
            table.add_row(*texts)
            self.console.print(table, soft_wrap=False)
            return
        for number, text in enumerate(texts, start=1):
            self.console.print(f"{number}.", style="bold")
            self.console.print(text, soft_wrap=False, overflow="fold")

    def ask(self, question: str = QUESTION, keys: Collection[str] = tuple(KEYS)) -> str:
        """One of some keys; at the end of the input QUIT. What was typed before the question is no answer to it."""
        while True:
            if self.keyboard is not None:
                _forget_typed(self.keyboard)
            try:
                self.console.print(question, end="", markup=False)
                key = self._line() if self.keyboard is None else self._key(self.keyboard)
            except Stopped:
                self.say("")  # what is said next has a line of its own
                raise
            self.say(KEYS[key] if key in keys else "")
            if key in keys:
                return key

    def _line(self) -> str:
        line = sys.stdin.buffer.readline()
        word = line.decode(errors="replace").strip().lower()
        return QUIT if not line else next((key for key, name in KEYS.items() if word in (key, name)), "")

    def _key(self, keyboard: int) -> str:
        pressed = os.read(keyboard, 64)
        if pressed in (b"", END):
            return QUIT
        return pressed.decode(errors="replace").lower()  # several at once are a paste or an arrow: no answer
