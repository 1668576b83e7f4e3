"""What must be equal for a resumed run to be the same run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.errors import CheckpointError
from trainer.system.distributed import world_size

# Keys that may change freely: they decide what is written and when, not what is computed. What train.precision and
# train.compile came to is among the conditions.
FREE = (
    *("log.", "checkpoint.", "output.", "train.timeout", "train.precision", "train.compile", "data.forgetting"),
    *("model.original", "eval.every", "eval.choose_strength", "eval.largest_strength", "eval.forgetting_limit"),
)
# Keys whose change leaves the run the same in kind, but not to the bit.
INEXACT = ("train.batch_size", "train.tokens_per_chunk")

Identity = dict[str, dict[str, Any]]


def identity(
    config_tree: dict[str, dict[str, Any]], fingerprints: Mapping[str, str], conditions: Mapping[str, Any]
) -> Identity:
    """What must be equal for a resumed run to be the same run.

    Args:
        config_tree: the config, as `config.to_tree` gives it.
        fingerprints: of data, tokens and base weights.
        conditions: number of processes, device, threads, versions, precision, products and fast paths.

    Returns:
        "run": what makes it another run; "conditions": what makes it the same one with other rounding or dropout. The
        batch of all ranks together is of the run, a rank's part of it is not.
    """
    flat = {f"{section}.{key}": value for section, values in config_tree.items() for key, value in values.items()}
    kept = {key: value for key, value in flat.items() if not key.startswith(FREE)}
    run = {key: value for key, value in kept.items() if key not in INEXACT}
    whole = {"train.batch_size of all processes": flat["train.batch_size"] * world_size()}
    inexact = {key: kept[key] for key in INEXACT}
    return {"run": {**run, **fingerprints, **whole}, "conditions": {**inexact, **conditions}}


# Fingerprint -> setting
DATA = {"train_data": "data.train", "dev_data": "data.dev", "test_data": "data.test", "corpus": "data.corpus"}
SOURCE = "source "  # begins the fingerprints of several training files, by their paths
READS = ("data.", "train.seed")  # begin the settings that decide what is read of these files
DIGITS = 12  # shown of a fingerprint


def differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Every field that differs, in words; of data that are not what they were also the file, and the fix."""
    nothing = "absent"
    told = []
    # Other settings read other pairs from the same files.
    same_reading = all(saved.get(key) == value for key, value in current.items() if key.startswith(READS))
    for key in dict.fromkeys((*current, *saved)):
        before, now = saved.get(key, nothing), current.get(key, nothing)
        if before != now and key in DATA and nothing not in (before, now):
            if not same_reading:
                continue
            setting = next((name for name in (DATA[key], "data.train") if current.get(name)), "data.sources")
            was, is_now = (f"'{str(value)[:DIGITS]}…'" for value in (before, now))  # a checkpoint may hold anything
            fix = "restore the file, or name another --output-dir"
            told.append(f"{key} was {was}, is {is_now}: {setting} = {current.get(setting)} has changed: {fix}")
        elif before != now and key.startswith(SOURCE) and nothing not in (before, now):
            told.append(f"{key.removeprefix(SOURCE)} has changed")
        elif before != now:
            told.append(f"{key} was {before!r}, is {now!r}")
    return told


def require_same_run(
    path: Path, saved: Mapping[str, Any], current: Mapping[str, Any], allow_inexact: bool
) -> list[str]:
    """What differs in the conditions, once that is known to be allowed.

    Raises:
        CheckpointError: a checkpoint of another run, or of other conditions that are not allowed; all fields are named.
    """
    if changed := differences(saved["run"], current["run"]):
        raise CheckpointError(f"{path}: not the same run: {'; '.join(changed)}")
    changed = differences(saved["conditions"], current["conditions"])
    if changed and not allow_inexact:
        raise CheckpointError(
            f"{path}: the result would not be the same to the bit: {'; '.join(changed)}; to go on all the same, add "
            "--allow-inexact-resume"
        )
    return changed
