"""The story of a run, from a config to an exported model, in the order in which it happens.

    inputs -> folder -> baseline -> plan -> steps (evaluate, keep the best, save) -> finish

`train` is that story; `train_steps` is its loop. Where the parts live: `setup` reads and builds, `plan` tells what will
happen, `batch` holds what a step is given, `step` makes an update (in chunks by `gradcache`), `resume` saves and
continues, `finish` judges and exports.

    from trainer.config import Config, DataConfig
    from trainer.training.loop import train

    result = train(Config(data=DataConfig(train="pairs.json")), name="first")
    print(result.verdict, result.folder / "model")
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.checkpoint.content import Best, RunState
from trainer.config import Config
from trainer.config_file import resolve_config, to_tree
from trainer.errors import InputError, Stopped
from trainer.system import distributed as ranks
from trainer.system.console import console, progress
from trainer.system.signals import Signals
from trainer.training.finish import finish
from trainer.training.log import CUT, Clock, RunLog, Timer, open_log
from trainer.training.plan import describe, lint_pairs, print_duration, print_numerics, print_plan
from trainer.training.resume import checkpoint, resumed_state, saved_conditions
from trainer.training.run_folder import choose_folder, claimed, has_begun
from trainer.training.setup import Inputs, Run, build_run, read_inputs
from trainer.training.step import StepNumbers, Stepper
from trainer.training.tracking import track_end, tracked


@dataclass(frozen=True)
class RunResult:
    """What a finished run leaves. With several processes only the first has metrics and verdict."""

    folder: Path
    metrics: dict[str, Any] | None
    """As in metrics.json: "baseline", "final", "verdict", "strength", ..."""

    @property
    def verdict(self) -> str | None:
        """Against the untouched model, on test or else dev, or on the corpus: "BETTER", "NOT BETTER" or "UNCLEAR"."""
        return self.metrics["verdict"] if self.metrics else None


def train(
    config: Config,
    name: str = "run",
    resume: bool = False,
    allow_inexact: bool = False,
    max_steps: int | None = None,
    dry_run: bool = False,
) -> RunResult:
    """Run a config to its end.

    Args:
        name: what to call the run where the config names no folder: runs/NAME.
        resume: continue the run of that folder from its newest checkpoint.
        allow_inexact: also where the result will not be the same to the bit, as with another number of processes.
        max_steps: end after so many steps of the plan, whose rates and batches stay as they are. It is of this call: a
            run that was interrupted goes on to the end of the plan without it.
        dry_run: read and check all, print the plan, and stop there; nothing is judged, and nothing written but the
            cache of tokens.

    Raises:
        TrainerError: one of its kinds; see `trainer.errors`.
    """
    config = resolve_config(to_tree(config))  # one that was built in Python is checked as a file is
    folder = choose_folder(config, name, resume)
    with Signals() as signals, ExitStack() as stack:
        # ---- Inputs: data, model, tokens, batches. What is wrong with them is said here, and nothing is written.
        inputs = read_inputs(config, folder, saved_conditions(folder) if resume else {}, max_steps)
        if dry_run:
            return rehearse(inputs)

        # ---- Folder: from here on no other process writes there.
        ranks.on_first_rank(lambda: stack.enter_context(claimed(folder, resume)))
        resuming = resume and ranks.on_first_rank(lambda: has_begun(folder))

        # ---- Baseline: the untouched encoder on dev and in the corpus. A model that cannot be judged leaves no file.
        state = None if resuming else RunState(baseline=inputs.judge_untouched())
        if not resuming:
            ranks.on_first_rank(lambda: lint_pairs(inputs))

        # ---- Plan: adapters, objective, optimizer; what will train, and at which rate.
        run = build_run(inputs)
        if state is None:
            state = resumed_state(run, allow_inexact)  # with the baseline that was judged then
            require_steps_ahead(run, state)
        else:
            print_plan(run)
            print_duration(run)
        print_numerics(run)
        describe(run)

        # ---- Steps
        stack.enter_context(tracked(config, run.accelerator))
        log = open_log(folder, run.accelerator, state.step)
        if not resuming:
            checkpoint(run, state, log)
        if state.inexact:
            log.write({"step": state.step, "inexact_resume": state.inexact})
        with signals.noted() as stop_requested:
            train_steps(run, state, log, stop_requested)

        # ---- Finish: how far to go, judgement, export, and the proof that it is what was trained.
        metrics = finish(run, state, signals)
        track_end(run.accelerator, metrics, state.step)
        return RunResult(folder, metrics)


def rehearse(inputs: Inputs) -> RunResult:
    """What comes before step 0 and takes no minutes: all but the judgement of the untouched model. Writes nothing."""
    if inputs.is_main:
        lint_pairs(inputs, keep=False)
    run = build_run(inputs)
    print_plan(run)
    print_duration(run, even_if_small=True)
    print_numerics(run)
    nothing = "nothing was judged or trained, and nothing written but the cache of tokens"
    console.print(f"Dry run: {nothing}; the run would be {run.folder}", markup=False)
    return RunResult(run.folder, None)


def require_steps_ahead(run: Run, state: RunState) -> None:
    """Raise InputError where a run that is continued has gone beyond the step that it is to be cut after."""
    if state.step > run.steps:
        raise InputError(
            f"--max-steps {run.steps}: {run.folder} has made {state.step} steps already; name a larger number, or "
            f"leave it out to make all {len(run.sampler)}"
        )


def train_steps(run: Run, state: RunState, log: RunLog, stop_requested: Callable[[], bool]) -> None:
    """The loop over the plan, from where the state stands to the end or the cut."""
    config, stepper = run.config, Stepper(run)
    run.encoder.train()
    console.print(f"Encoder on {run.device}: {run.encoder.path}", markup=False)
    clock, timer = Clock(state.seconds), Timer(config.checkpoint.minutes)
    with ThreadPoolExecutor(1) as ahead, progress("Training", run.steps, state.step) as advance:
        upcoming = ahead.submit(run.prepare, min(state.step, run.steps - 1))
        while state.step < run.steps and not out_of_patience(config, state):
            # ---- The update. The clock runs; the next batch is laid out meanwhile.
            step = state.step
            clock.start_step()
            prepared = upcoming.result()
            clock.data_is_here()
            if step + 1 < run.steps:
                upcoming = ahead.submit(run.prepare, step + 1)
            arrived = stepper.train_step(step, prepared, stop_requested, timer.rings)

            # ---- What follows it. Stop and save are read in the numbers, so that all ranks decide alike.
            stops = any(numbers.stop for numbers in arrived)
            evaluates, saves = is_due(run, step)
            saves |= stops or any(numbers.save for numbers in arrived)
            if evaluates or saves or step + 1 == run.steps:
                arrived += stepper.settle()
                stops |= any(numbers.stop for numbers in arrived)
                saves |= stops
            clock.end_step()
            state.step, state.seconds = step + 1, clock.seconds

            # ---- Log, evaluate, save. The clock stands still.
            for numbers in arrived:
                note_step(run, numbers, clock, log, advance)
            if evaluates:
                note_evaluation(run, state, log)
            if saves:
                checkpoint(run, state, log)
                timer.set()
            if stops:
                cut = f" --max-steps {run.steps}" if run.steps < len(run.sampler) else ""
                raise Stopped(
                    f"{run.folder}: stopped by a signal after step {step}; continue with --resume --output-dir "
                    f"{run.folder}{cut}"
                )
        checkpoint(run, state, log)  # where the run ended early, else it is there
        # An evaluation that the plan has not is not saved: the run may yet go on, and then as if it had not been cut.
        if not state.evaluations or state.evaluations[-1]["step"] != state.step:
            note_evaluation(run, state, log, at_cut=True)


def is_due(run: Run, step: int) -> tuple[bool, bool]:
    """Whether an evaluation, and whether a checkpoint, is due after a step by the plan, wherever it is cut."""
    ends_phase, last, done = run.sampler.ends_phase(step), step + 1 == len(run.sampler), step + 1
    every, cadence = run.config.eval.every, run.config.checkpoint.every
    evaluates = last or (ends_phase if every == 0 else done % every == 0)
    return evaluates, ends_phase or (cadence > 0 and done % cadence == 0)


def out_of_patience(config: Config, state: RunState) -> bool:
    """Whether early stopping ends the run here; says so."""
    patience = config.early_stopping.patience
    if not patience or state.without_best < patience:
        return False
    console.print(f"No new best in {patience} evaluations: stopping early after step {state.step - 1}")
    return True


def note_step(run: Run, numbers: StepNumbers, clock: Clock, log: RunLog, advance: Callable[..., None]) -> None:
    """Log the numbers of an update and move the progress bar on."""
    step, phase = numbers.step, run.sampler.phase_at(numbers.step).name
    line = {"step": step, "phase": phase, "epoch": run.sampler.epochs[step], "lr": run.rates[step], **numbers.logged}
    line |= {"tokens_per_s": line["tokens"] / clock.took, "waiting": clock.waiting}
    if step % run.config.log.every == 0:
        log.write(line)
    advance(
        note=f"phase {phase}  loss {line['loss']:.4f}  lr {line['lr']:.2e}  "
        f"{line['tokens_per_s']:,.0f} tokens/s  waiting {clock.waiting:.1%}"
    )


def note_evaluation(run: Run, state: RunState, log: RunLog, at_cut: bool = False) -> None:
    """Evaluate on dev; keep the weights where they are the best of the whole run.

    Args:
        at_cut: the plan has no evaluation here; it is made because the run is cut.
    """
    metrics = run.judge_on_dev()
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
    log.write({"step": state.step - 1, "evaluation": metrics, "best": is_best} | ({CUT: True} if at_cut else {}))
    change = value - state.baseline[largest][metric]
    console.print(
        f"After step {state.step - 1}: {run.judged_on} {metric} {value:.4f} at {largest} dims "
        f"({change:+.4f} on the baseline)" + (", the best so far" if is_best else "")
    )
