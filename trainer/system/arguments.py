"""Reading command lines: one-line errors, lists of names and of dims."""

from __future__ import annotations

import argparse

from trainer.errors import InputError


class Parser(argparse.ArgumentParser):
    """Reports a bad command line as one line, like every other bad input."""

    def error(self, message: str) -> None:  # type: ignore[override]  # argparse's never returns; neither does this
        if message.startswith("unrecognized") and "--set " in self.format_usage():
            message += "; each setting stands behind a --set of its own, and a value with spaces between single quotes"
        raise InputError(f"{message}; see {self.prog} --help")


def parse_names(text: str) -> tuple[str, ...]:
    """ "a, b" -> ("a", "b"); nothing -> ()."""
    return tuple(name for name in (part.strip() for part in text.split(",")) if name)


def parse_dims(text: str | None) -> tuple[int, ...]:
    """ "768,64" -> (768, 64); nothing -> (). Raises InputError."""
    try:
        dims = tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        dims = (0,)
    if any(dim < 1 for dim in dims) or len(set(dims)) != len(dims):
        raise InputError(f"--dims {text}: write different whole numbers above 0, as in --dims 768,128")
    return dims
