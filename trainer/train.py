"""The training run, from a config to an exported model.

    read data and model -> plan -> baseline -> steps (evaluate, checkpoint) -> best weights -> finish

Nothing is written before everything that can be wrong with the input has been checked.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from trainer import distributed as ranks
from trainer.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from trainer.config import Config, dump_config, to_tree
from trainer.console import console, progress
from trainer.errors import CheckpointError, InputError, Stopped, StorageError
from trainer.finish import FINISHED, finish
from trainer.logbook import Clock, open_log, signals_noted, write_json
from trainer.run import Run
from trainer.state import Best, RunState, identity, restore, snapshot
from trainer.storage import write_file
from trainer.summary import plan_record, print_plan


def train(config: Config, name: str, resume: bool = False) -> Path:
    """Run a config to its end. Returns the folder of the run.

    Args:
        name: what to call the run where the config names no folder.
        resume: continue the run of that folder from its newest checkpoint.

    Raises:
        TrainerError: one of its kinds; see `trainer.errors`.
    """
    folder = choose_folder(config, name, resume)
    run = Run(config, folder)
    with signals_noted() as stop_requested:
        state = start_state(run, resume)
        with open_log(run.folder, run.accelerator, state.step, run.config.log.tensorboard) as log:
            steps(run, state, log, stop_requested)
        finish(run, state)
    return folder


def steps(run: Run, state: RunState, log: Callable[[dict[str, Any]], None], stop: Callable[[], bool]) -> None:
    """The loop over the plan, from where the state stands."""
    config, sampler = run.config, run.sampler
    run.encoder.train()
    console.print(f"Encoder on {run.device}: {run.encoder.path}", markup=False)
    clock = Clock(state.seconds)
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
            arrived = run.train_step(step, batch, stop)
            ends_phase, last = sampler.ends_phase(step), step + 1 == len(sampler)
            evaluates = ends_phase if config.eval.every == 0 else last or (step + 1) % config.eval.every == 0
            saves = ends_phase if config.checkpoint.every == 0 else (step + 1) % config.checkpoint.every == 0
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
            if stops(arrived) and not last:
                raise Stopped(f"{run.folder}: stopped by a signal after step {step}; continue with --resume")


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
    del line["stop"]
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


def start_state(run: Run, resume: bool) -> RunState:
    """Judge the untouched model, or continue from the newest checkpoint; write the run's first files."""
    root = run.folder / "checkpoints"
    if resume:
        run.add_trainables()
        # One rank looks, for it renames what is damaged.
        path = Path(ranks.share_object(str(newest_checkpoint(root)) if run.main else None))
        tensors, values = load_checkpoint(path)
        current = identity(to_tree(run.config), run.fingerprints)
        if changed := [key for key in current if values["identity"].get(key) != current[key]]:
            details = "; ".join(f"{key} was {values['identity'].get(key)!r}, is {current[key]!r}" for key in changed)
            raise CheckpointError(f"{path}: not the same run: {details}")
        state = restore(tensors, values, run.parameters, run.optimizer.optimizer, run.accelerator.scaler)
        console.print(f"Resuming from {path}", markup=False)
        return state
    baseline = run.judge()
    run.add_trainables()
    print_plan(run.sampler, run.rates, run.parameters)
    if run.main:
        write_file(run.folder / "config.toml", dump_config(run.config))
        write_json(run.folder / "plan.json", plan_record(run.sampler, run.rates, run.config, run.parameters))
    state = RunState(baseline=baseline)
    checkpoint(run, state)
    return state


def checkpoint(run: Run, state: RunState) -> None:
    """Save everything that `start_state` needs to continue."""
    tensors, values = snapshot(state, run.parameters, run.optimizer.optimizer, run.accelerator.scaler)
    values["identity"] = identity(to_tree(run.config), run.fingerprints)
    if run.main:
        save_checkpoint(run.folder / "checkpoints", state.step, tensors, values)
    ranks.barrier()


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
    finished = (folder / FINISHED).exists()
    if resume and (finished or not folder.is_dir()):
        raise InputError(f"{folder}: {'this run is finished' if finished else 'no run'}; nothing to resume")
    if not resume and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "is no empty folder"
        if (folder / "config.toml").exists():
            what = "holds a finished run" if finished else "holds an unfinished run (continue it with --resume)"
        raise StorageError(f"{folder}: {what} and is not overwritten; name another with --output-dir")
    return folder
