"""The training run, from a config to an exported model.

    read data and model -> plan -> baseline -> steps (evaluate, checkpoint) -> best weights -> finish

Nothing is written before everything that can be wrong with the input has been checked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from trainer import distributed as ranks
from trainer.checkpoint import has_checkpoints, load_checkpoint, newest_checkpoint, save_checkpoint
from trainer.config import Config, dump_config, to_tree
from trainer.console import console, progress
from trainer.errors import CheckpointError, InputError, Stopped, StorageError
from trainer.finish import FINISHED, finish
from trainer.lint import Tokens, lint_tables, print_findings
from trainer.logbook import Clock, Timer, open_log, write_json
from trainer.run import Run
from trainer.signals import Signals
from trainer.state import Best, RunState, identity, require_same_run, restore, snapshot
from trainer.storage import only_writer, remove_debris, sync, write_file
from trainer.summary import plan_record, print_plan

LOG = "log.jsonl"
# What files raise that are no checkpoint's. A plain RuntimeError would also be memory that ran out.
FOREIGN = (SafetensorError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)


def train(config: Config, name: str, resume: bool = False, allow_inexact: bool = False) -> Path:
    """Run a config to its end. Returns the folder of the run.

    Args:
        name: what to call the run where the config names no folder.
        resume: continue the run of that folder from its newest checkpoint.
        allow_inexact: also where the result will not be the same to the bit, as with another number of processes.

    Raises:
        TrainerError: one of its kinds; see `trainer.errors`.
    """
    folder = choose_folder(config, name, resume)
    with Signals() as signals, ExitStack() as stack:
        run = Run(config, folder)
        ranks.on_first_rank(lambda: stack.enter_context(only_writer(folder)))
        ranks.on_first_rank(lambda: clear_folder(folder, resume))
        state = start_state(run, resume, allow_inexact)
        with open_log(run.folder, run.accelerator, state.step, run.config.log.tensorboard) as log:
            if state.inexact:
                log({"step": state.step, "inexact_resume": state.inexact})
            with signals.noted() as stop_requested:
                steps(run, state, log, stop_requested)
        finish(run, state, signals)
    return folder


def steps(run: Run, state: RunState, log: Callable[[dict[str, Any]], None], stop: Callable[[], bool]) -> None:
    """The loop over the plan, from where the state stands."""
    config, sampler = run.config, run.sampler
    run.encoder.train()
    console.print(f"Encoder on {run.device}: {run.encoder.path}", markup=False)
    clock, timer = Clock(state.seconds), Timer(config.checkpoint.minutes)
    with ThreadPoolExecutor(1) as ahead, progress("Training", len(sampler), state.step) as advance:
        upcoming = ahead.submit(run.prepare, state.step) if state.step < len(sampler) else None
        while state.step < len(sampler) and not out_of_patience(config, state):
            step = state.step
            clock.start_step()
            assert upcoming is not None
            batch = upcoming.result()
            clock.data_is_here()
            if step + 1 < len(sampler):
                upcoming = ahead.submit(run.prepare, step + 1)
            arrived = run.train_step(step, batch, stop, timer.rings)
            ends_phase, last = sampler.ends_phase(step), step + 1 == len(sampler)
            evaluates = ends_phase if config.eval.every == 0 else last or (step + 1) % config.eval.every == 0
            cadence = config.checkpoint.every
            saves = ends_phase or (cadence > 0 and (step + 1) % cadence == 0) or any(n["save"] for n in arrived)
            if evaluates or saves or last or stops(arrived):
                arrived += run.settle()
            clock.end_step()
            state.step, state.seconds = step + 1, clock.seconds
            for numbers in arrived:
                note_step(run, numbers, clock, log, advance)

            if evaluates:
                note_evaluation(run, state, log)
            if saves or stops(arrived):
                checkpoint(run, state)
                timer.set()
            if stops(arrived):
                raise Stopped(f"{run.folder}: stopped by a signal after step {step}; continue with --resume")
        checkpoint(run, state)  # where the run ended early, else it is there


def stops(arrived: list[dict[str, Any]]) -> bool:
    """Whether a rank was asked to stop, which all ranks read in the numbers of the same step."""
    return any(numbers["stop"] for numbers in arrived)


def note_step(
    run: Run,
    numbers: dict[str, Any],
    clock: Clock,
    log: Callable[[dict[str, Any]], None],
    advance: Callable[..., None],
) -> None:
    """Log the numbers of an update and move the progress bar on."""
    step, phase = numbers["step"], run.sampler.phase_at(numbers["step"]).name
    line = {"step": step, "phase": phase, "epoch": run.sampler.epochs[step], "lr": run.rates[step], **numbers}
    del line["stop"], line["save"]
    line |= {"tokens_per_s": numbers["tokens"] / clock.took, "waiting": clock.waiting}
    if step % run.config.log.every == 0:
        log(line)
    advance(
        note=f"phase {phase}  loss {line['loss']:.4f}  lr {line['lr']:.2e}  "
        f"{line['tokens_per_s']:,.0f} tokens/s  waiting {clock.waiting:.1%}"
    )


def out_of_patience(config: Config, state: RunState) -> bool:
    """Whether early stopping ends the run here; says so."""
    patience = config.early_stopping.patience
    if not patience or state.without_best < patience:
        return False
    console.print(f"No new best in {patience} evaluations: stopping early after step {state.step - 1}")
    return True


def note_evaluation(run: Run, state: RunState, log: Callable[[dict[str, Any]], None]) -> None:
    """Evaluate on dev; keep the weights where they are the best of the whole run."""
    metrics = run.judge()
    metric, largest = run.config.eval.metric, str(max(run.config.loss.dims))
    value = metrics[largest][metric]
    # Not "above": the first value may be NaN, where dev scores are all equal, and any number beats that.
    is_best = state.best is None or not (value <= state.best.value or np.isnan(value))
    if is_best:
        weights = {name: parameter.detach().cpu().clone() for name, parameter in run.parameters.items()}
        state.best, state.without_best = Best(state.step, value, metrics, weights), 0
    else:
        state.without_best += 1
    state.evaluations.append({"step": state.step, "metrics": metrics})
    log({"step": state.step - 1, "evaluation": metrics, "best": is_best})
    change = value - state.baseline[largest][metric]
    console.print(
        f"After step {state.step - 1}: dev {metric} {value:.4f} at {largest} dims ({change:+.4f} on the baseline)"
        + (", the best so far" if is_best else "")
    )


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
    run.add_trainables()
    # One rank looks, for it renames what is damaged.
    path = Path(ranks.on_first_rank(lambda: str(newest_checkpoint(run.folder / "checkpoints"))))
    current = identity(to_tree(run.config), run.fingerprints, run.setting())
    try:
        tensors, values = load_checkpoint(path)
        inexact = require_same_run(path, values["identity"], current, allow_inexact)
        state = restore(tensors, values, run.parameters, run.optimizer.optimizer, run.accelerator.scaler)
        log_is_whole = log_seal(run.folder / LOG, values["log"]["size"]) == values["log"]
    except FOREIGN as error:  # its hashes are right, so somebody else sealed it, or another version
        cause = f"{type(error).__name__}: {error}".splitlines()[0]
        raise CheckpointError(f"{path}: not a checkpoint of this version ({cause}); start a new run") from error
    state.inexact += [f"step {state.step}: {difference}" for difference in inexact]
    describe(run)
    console.print(f"Resuming from {path}", markup=False)
    if run.main and not log_is_whole:
        console.print(f"{run.folder / LOG}: its lines before step {state.step} are not what was written", markup=False)
    for difference in inexact:
        console.print(f"Not the same to the bit: {difference}", markup=False)
    return state


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


def choose_folder(config: Config, name: str, resume: bool) -> Path:
    """The folder of the run: the config's, or the first free one (when resuming: the newest) of runs/NAME, NAME-2, ...

    Raises:
        InputError: nothing there to resume.
        StorageError: the folder holds a run already.
    """
    folder = Path(config.output.dir)
    if not config.output.dir:
        numbered = [Path("runs") / name, *(Path("runs") / f"{name}-{i}" for i in range(2, 10_000))]
        free = next(i for i, path in enumerate(numbered) if not path.exists())
        folder = numbered[max(free - 1, 0) if resume else free]
    check_folder(folder, resume)
    return folder


def check_folder(folder: Path, resume: bool) -> None:
    """Raise InputError or StorageError unless a run may be resumed, or started, in a folder."""
    finished = (folder / FINISHED).exists()
    if resume and (finished or not folder.is_dir()):
        raise InputError(f"{folder}: {'this run is finished' if finished else 'no run'}; nothing to resume")
    # Names that begin with a dot are not a run's result: a lock, or what a killed process left.
    if not resume and folder.exists() and (not folder.is_dir() or any(p.name[0] != "." for p in folder.iterdir())):
        what = "is no empty folder"
        if (folder / "config.toml").exists():
            what = "holds a finished run" if finished else "holds an unfinished run (continue it with --resume)"
        raise StorageError(f"{folder}: {what} and is not overwritten; name another with --output-dir")


def clear_folder(folder: Path, resume: bool) -> None:
    """Look again, now that no other process can come in, and remove what one that died left half written."""
    check_folder(folder, resume)
    for place in (folder, folder / "checkpoints"):
        remove_debris(place)
