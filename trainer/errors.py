"""The errors a person can cause or mend. Each is one line and carries the exit code of the command line.

`main.cli` maps what libraries raise to these (no memory, a full disk); of several processes `launcher` picks the cause.
"""

from __future__ import annotations


class TrainerError(Exception):
    """Base of all expected failures; `main` prints it and exits with `exit_code`.

    The message is one line that any terminal can show, whatever a file or a person's own words put into it.
    """

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__("".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in message))


class LintError(TrainerError):
    """Data that can be read and should not be trained on."""


class NotPromoted(TrainerError):
    """A model that is not surely better than the deployed one, or not surely within the margin asked for."""


class LostTooMuch(TrainerError):
    """An exported form of a model that lost more than was allowed."""


class InputError(TrainerError):
    """Bad data, configuration or model: the message names file, row and field (or key) and the fix."""

    exit_code = 2


class NumericError(TrainerError):
    """NaN or Inf in a loss, a gradient or an embedding."""

    exit_code = 3


class CheckpointError(TrainerError):
    """A checkpoint, an exported model or an index that is corrupt, incompatible, or not what was written."""

    exit_code = 4


class StorageError(TrainerError):
    """The file system refused: no space, no permission, a folder that must not be overwritten."""

    exit_code = 5


class Stopped(TrainerError):
    """A signal ended the run after its state was saved (EX_TEMPFAIL of sysexits.h: try again later)."""

    exit_code = 75


def first_line(error: Exception) -> str:
    """The first line of what an error says, or its type's name where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
