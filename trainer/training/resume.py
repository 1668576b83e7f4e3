"""The start of a run: the judged, untouched model, or the newest checkpoint; and saving the next one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from trainer.checkpoint.content import RunState, restore, snapshot
from trainer.checkpoint.identity import identity, require_same_run
from trainer.checkpoint.sealed_folder import has_checkpoints, load_checkpoint, newest_checkpoint, save_checkpoint
from trainer.config import dump_config, to_tree
from trainer.errors import CheckpointError
from trainer.lint.linter import Tokens, lint_tables
from trainer.lint.show import print_findings
from trainer.system import distributed as ranks
from trainer.system.console import console
from trainer.system.files import sync, write_file, write_json
from trainer.training.plan import plan_record, print_plan
from trainer.training.run_folder import LOG
from trainer.training.setup import Run

# What files raise that are no checkpoint's. A plain RuntimeError would also be memory that ran out.
FOREIGN = (SafetensorError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)


def start_state(run: Run, resume: bool, allow_inexact: bool) -> RunState:
    """Judge the untouched model, or continue from the newest checkpoint; write the run's first files."""
    if resume and ranks.on_first_rank(lambda: has_begun(run.folder)):
        return resumed_state(run, allow_inexact)
    baseline = run.judge()
    ranks.on_first_rank(lambda: lint_data(run))  # not before: a model that cannot be judged leaves no file
    run.add_trainables()
    print_plan(run.sampler, run.rates, run.parameters)
    describe(run)
    state = RunState(baseline=baseline)
    checkpoint(run, state)
    return state


def lint_data(run: Run) -> None:
    """Show and keep what lint finds without a model in the pairs of the run; nothing it finds ends the run."""
    held_out = [pairs for pairs in (run.dev, run.test) if pairs is not None]
    tables = [run.data.train, *(pairs.table for pairs in held_out)]
    lengths = [run.tokens.lengths, *(pairs.tokens.lengths for pairs in held_out)]
    report = lint_tables(tables, Tokens(lengths, run.encoder.spec.max_length))
    console.print("Lint of the run's pairs:")
    print_findings(report)
    write_json(run.folder / "lint.json", report.record())
    if report.serious():
        console.print("Training goes on; what it learns and how it is judged may not mean what it seems to")


def describe(run: Run) -> None:
    """Write what the run is going to do; again when it is resumed, since cadences may have changed."""
    if run.main:
        write_file(run.folder / "config.toml", dump_config(run.config))
        write_json(run.folder / "plan.json", plan_record(run.sampler, run.rates, run.config, run.parameters))


def has_begun(folder: Path) -> bool:
    """Whether a run ever saved its state; one that died before has nothing to lose, and starts at step 0."""
    begun = has_checkpoints(folder / "checkpoints") or (folder / LOG).exists()
    if not begun:
        console.print(f"{folder}: stopped before its first checkpoint; starting at step 0", markup=False)
    return begun


def resumed_state(run: Run, allow_inexact: bool) -> RunState:
    """The state of the newest whole checkpoint, once it is known to be of this run."""
    # One rank looks, for it renames what is damaged.
    path = Path(ranks.on_first_rank(lambda: str(newest_checkpoint(run.folder / "checkpoints"))))
    with of_this_version(path):
        tensors, values = load_checkpoint(path)
        compiled_before = values["identity"]["setting"]["train.compile"]
    run.add_trainables(compiled_before)
    current = identity(to_tree(run.config), run.fingerprints, run.setting())
    with of_this_version(path):
        inexact = require_same_run(path, values["identity"], current, allow_inexact)
        state = restore(tensors, values, run.parameters, run.optimizer.optimizer, run.accelerator.scaler)
        log_is_whole = log_seal(run.folder / LOG, values["log"]["size"]) == values["log"]
    state.inexact += [f"step {state.step}: {difference}" for difference in inexact]
    describe(run)
    console.print(f"Resuming from {path}", markup=False)
    if run.main and not log_is_whole:
        console.print(f"{run.folder / LOG}: its lines before step {state.step} are not what was written", markup=False)
    for difference in inexact:
        console.print(f"Not the same to the bit: {difference}", markup=False)
    return state


@contextmanager
def of_this_version(path: Path) -> Iterator[None]:
    """Name the checkpoint that is being read in what goes wrong. Raises CheckpointError."""
    try:
        yield
    except FOREIGN as error:  # its hashes are right, so somebody else sealed it, or another version
        cause = f"{type(error).__name__}: {error}".splitlines()[0]
        raise CheckpointError(f"{path}: not a checkpoint of this version ({cause}); start a new run") from error


def checkpoint(run: Run, state: RunState) -> None:
    """Save everything that `start_state` needs to continue. Fails on all ranks where it fails on one."""
    tensors, values = snapshot(state, run.parameters, run.optimizer.optimizer, run.accelerator.scaler)
    values["identity"] = identity(to_tree(run.config), run.fingerprints, run.setting())
    keep = {phase.first_step + phase.steps for phase in run.sampler.phases} | (
        {state.best.step} if state.best else set()
    )

    def save() -> None:
        if (run.folder / LOG).exists():
            sync(run.folder / LOG)  # or, after a power cut, it lacks steps that the checkpoint holds
        values["log"] = log_seal(run.folder / LOG)
        save_checkpoint(run.folder / "checkpoints", state.step, tensors, values, keep)

    ranks.on_first_rank(save)


def log_seal(path: Path, size: int | None = None) -> dict[str, Any]:
    """Size and SHA-256 of a log's first `size` bytes, or of all."""
    data = path.read_bytes()[:size] if path.exists() else b""
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
