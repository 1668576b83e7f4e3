"""Saving a run's state, and continuing from the newest checkpoint of the same run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from trainer.checkpoint.content import RunState, restore, saved_identity, saved_log_seal, snapshot
from trainer.checkpoint.identity import Identity, identity, require_same_run
from trainer.checkpoint.sealed_folder import load_checkpoint, newest_checkpoint, newest_values, save_checkpoint
from trainer.config_file import to_tree
from trainer.errors import CheckpointError
from trainer.system import distributed as ranks
from trainer.system.console import console
from trainer.system.run_files import CHECKPOINTS, LOG
from trainer.training.log import RunLog, is_log_whole
from trainer.training.setup import Run

# What files raise that are no checkpoint's. A plain RuntimeError would also be memory that ran out.
FOREIGN = (SafetensorError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)


def checkpoint(run: Run, state: RunState, log: RunLog) -> None:
    """Save everything that `resumed_state` needs to continue. Fails on all ranks where it fails on one."""
    tensors, values = snapshot(
        state, run.parameters, run.optimizer.optimizer, run.accelerator.scaler, run_identity(run), log.seal()
    )
    steps_to_keep = {phase.first_step + phase.steps for phase in run.sampler.phases}
    if state.best is not None:
        steps_to_keep.add(state.best.step)

    def save() -> None:
        log.sync()  # or, after a power cut, it lacks steps that the checkpoint holds
        save_checkpoint(run.folder / CHECKPOINTS, state.step, tensors, values, steps_to_keep)

    ranks.on_first_rank(save)


def saved_conditions(folder: Path) -> dict[str, Any]:
    """The conditions of the run that a folder holds, as far as its newest checkpoint tells; {} where it does not."""
    try:
        return dict(saved_identity(newest_values(folder / CHECKPOINTS))["conditions"])
    except (LookupError, TypeError, ValueError):  # of another version: `resumed_state` says so
        return {}


def resumed_state(run: Run, allow_inexact: bool) -> RunState:
    """The state of the newest whole checkpoint, once it is known to be of this run; weights and optimizer as it had.

    Raises:
        CheckpointError: none is whole, or it is of another run, or under other conditions that are not allowed.
    """
    # One rank looks, for it renames what is damaged.
    path = Path(ranks.on_first_rank(lambda: str(newest_checkpoint(run.folder / CHECKPOINTS))))
    try:
        tensors, values = load_checkpoint(path)
        inexact = require_same_run(path, saved_identity(values), run_identity(run), allow_inexact)
        state = restore(tensors, values, run.parameters, run.optimizer.optimizer, run.accelerator.scaler)
        log_is_whole = is_log_whole(run.folder, saved_log_seal(values))
    except FOREIGN as error:  # its hashes are right, so somebody else sealed it, or another version
        cause = f"{type(error).__name__}: {error}".splitlines()[0]
        raise CheckpointError(f"{path}: not a checkpoint of this version ({cause}); start a new run") from error
    state.inexact += [f"step {state.step}: {difference}" for difference in inexact]
    console.print(f"Resuming from {path}", markup=False)
    if run.is_main and not log_is_whole:
        console.print(f"{run.folder / LOG}: its lines before step {state.step} are not what was written", markup=False)
    for difference in inexact:
        console.print(f"Not the same to the bit: {difference}", markup=False)
    return state


def run_identity(run: Run) -> Identity:
    """What must be equal for another run to be this one."""
    return identity(to_tree(run.config), run.fingerprints, run.conditions())
