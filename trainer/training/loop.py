"""The training run, from a config to an exported model.

    read data and model -> plan -> baseline -> steps (evaluate, checkpoint) -> best weights -> finish

Nothing is written before everything that can be wrong with the input has been checked.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from trainer.checkpoint.content import Best, RunState
from trainer.checkpoint.sealed_folder import newest_setting
from trainer.config import Config
from trainer.errors import Stopped
from trainer.system import distributed as ranks
from trainer.system.console import console, progress
from trainer.system.files import only_writer
from trainer.system.signals import Signals
from trainer.training.finish import finish
from trainer.training.log import Clock, Timer, open_log
from trainer.training.resume import checkpoint, start_state
from trainer.training.run_folder import choose_folder, clear_folder
from trainer.training.setup import Run


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
        run = Run(config, folder, newest_setting(folder / "checkpoints") if resume else None)
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
