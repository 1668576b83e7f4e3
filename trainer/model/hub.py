"""Fetch a model's files from the hub."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from trainer.errors import InputError, StorageError
from trainer.system.failures import is_disk_full


def download_model(name: str, patterns: Sequence[str], asked: str) -> Path:
    """The folder of a hub model's files that match the patterns, downloaded where the hub's cache lacks them.

    Args:
        asked: the setting or option that names the model, as messages begin with it: "model.name = NAME".

    Raises:
        InputError: no such model, or no network.
        StorageError: the disk of the hub's cache is full.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():  # a bar drawn over itself is escape codes in a file
        disable_progress_bars()

    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except (HFValidationError, OSError, RuntimeError) as error:  # the hub's other errors are OSErrors
        if is_disk_full(error):
            raise StorageError(
                f"{asked}: no space to download it; free some, or set HF_HOME to a folder with more"
            ) from error
        if isinstance(error, RuntimeError):
            raise
        raise InputError(
            f"{asked}: no such folder, and not to be had from the hub ({type(error).__name__}); check the name and the "
            "network, or name a local folder"
        ) from error
