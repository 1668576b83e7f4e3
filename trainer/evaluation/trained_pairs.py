"""What a model was trained on, as far as the run that it lies in still tells."""

from __future__ import annotations

import json
from pathlib import Path

from trainer.data.pairs import PairTable
from trainer.data.run_data import pairs_of_run
from trainer.errors import InputError
from trainer.system.console import console
from trainer.system.run_files import METADATA


def trained_pairs(model: str) -> PairTable | None:
    """The training pairs of the run that a model's folder lies in, read again.

    None where they are not known, which is said: the folder is no run's, or its files are not what it was trained on.
    None of a model that is no folder.
    """
    if not Path(model).is_dir():
        return None
    run = Path(model).resolve().parent
    try:
        if not (run / METADATA).is_file():
            raise InputError("it lies in no folder of a run")
        fingerprint = json.loads((run / METADATA).read_bytes())["fingerprints"]["train_data"]
        train = pairs_of_run(run).train
        if train.fingerprint() != fingerprint:
            raise InputError(f"{train.source} has changed since")
        return train
    except InputError as error:
        why = str(error)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        why = f"{run / METADATA} is damaged or of another version"
    console.print(f"{model}: whether it was trained on what it is judged by cannot be told: {why}", markup=False)
    return None
