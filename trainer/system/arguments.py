"""Reading command lines: one-line errors, lists of names and of dims, files to write."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from pathlib import Path

from trainer.errors import InputError, StorageError


class Parser(argparse.ArgumentParser):
    """Reports a bad command line as one line, like every other bad input."""

    def error(self, message: str) -> None:  # type: ignore[override]  # argparse's never returns; neither does this
        if message.startswith("unrecognized") and "--set " in self.format_usage():
            message += "; each setting stands behind a --set of its own, and a value with spaces between single quotes"
        raise InputError(f"{message}; see {self.prog} --help")

    def refuse(self, options: argparse.Namespace, unused: Iterable[str], where: str) -> None:
        """Raise InputError where one of some options, by their names in `options`, was given and would do nothing: a
        person would take it for obeyed. `where` says it, as in "for tickets"."""
        names = set(unused)
        for action in self._actions:
            if action.dest in names and getattr(options, action.dest) != action.default:
                option = action.option_strings[0]
                raise InputError(f"{option} means nothing {where}: leave it out, or see {self.prog} --help")


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


def require_writable(path: Path, option: str, inputs: Iterable[str | None]) -> None:
    """Raise StorageError, before any work, where a file that an option names could not be written at its end, or
    would be written over one that the command reads."""
    if path.exists() and not path.is_file():
        raise StorageError(f"{path}: is no file: name one as {option}")
    folder = next(each for each in path.absolute().parents if each.exists())
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise StorageError(f"{path}: cannot be written in {folder}: name another file as {option}")
    read = (Path(each) for each in inputs if each)
    if path.exists() and any(each.exists() and path.samefile(each) for each in read):
        raise StorageError(f"{path}: is read, and not overwritten: name another file as {option}")
