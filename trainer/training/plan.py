"""What a person gets to see before step 0: what lint finds in the pairs, what will train, and when at which rate."""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from rich.table import Table

from trainer.config import LossConfig
from trainer.config_file import dump_config
from trainer.data.pairs import PairTable, graded_labels, soft_targets
from trainer.data.sources import by_source, rows_by_source
from trainer.lint.linter import Tokens, lint_tables
from trainer.lint.show import print_findings
from trainer.model.encoder import in_mode
from trainer.model.self_check import same_random_state
from trainer.system import distributed as ranks
from trainer.system.console import console
from trainer.system.files import write_file, write_json
from trainer.system.numerics import unmeasured_line
from trainer.system.run_files import CONFIG, LINT, PLAN
from trainer.training.corpus_search import print_searches
from trainer.training.schedule import schedule_edges
from trainer.training.settled import Conditions, little_movement, print_settings
from trainer.training.setup import Inputs, Run
from trainer.training.step import backward

# Multiply-adds of a plan, about, that are not worth timing two of its steps: what a core does in a minute or so.
SMALL_PLAN = 1e12


def lint_pairs(inputs: Inputs, keep: bool = True) -> None:
    """Show, and `keep` in the folder, what lint finds without a model in the pairs; nothing it finds ends the run."""
    parts = [(inputs.data.train, inputs.tokens), *((pairs.table, pairs.tokens) for pairs in inputs.held_out)]
    files = [by_source(table) for table, _ in parts]
    lengths = []
    for (table, tokens), of_table in zip(parts, files, strict=True):
        of_text = dict(zip(table.texts, tokens.longest(len(table.texts)).tolist(), strict=True))
        lengths += [np.array([of_text[text] for text in one.texts]) for one in of_table]
    limits = Tokens(lengths, inputs.encoder.spec.max_length)
    report = lint_tables([one for of_table in files for one in of_table], limits, training=len(files[0]))
    console.print("Lint of the run's pairs:")
    print_findings(report)
    if keep:
        write_json(inputs.folder / LINT, report.record())
    if report.serious():
        console.print("Training goes on; what it learns and how it is judged may not mean what it seems to")


def plan_record(run: Run) -> dict[str, Any]:
    """plan.json: phases, steps, trained parameters with their shapes, the learning rate of every step.

    All of it is of the whole plan; "stops_after" says how many of its steps are made.
    """
    optim = run.config.optim
    first_hold, first_decay = schedule_edges(len(run.rates), optim.warmup_ratio, optim.hold_ratio)
    return {
        "steps": len(run.sampler),
        "stops_after": run.steps,
        "global_batch_size": run.sampler.global_size,
        "phases": [asdict(phase) for phase in run.sampler.phases],
        "schedule": {"first_hold_step": first_hold, "first_decay_step": first_decay},
        "fast_paths": asdict(run.fast_paths),
        "trained": {name: list(parameter.shape) for name, parameter in run.parameters.items()},
        "learning_rates": run.rates,
    }


def source_record(run: Run, steps: int) -> dict[str, Any]:
    """Training file -> its rows, those that the first steps of the plan show, and its weight."""
    rows, shown = rows_by_source(run.data.train), run.sampler.rows_shown(steps)
    weights = [file.weight for file in run.config.data.training_files()]
    return {
        source: {"rows": rows[source], "shown": shown[source], "weight": weight}
        for source, weight in zip(rows, weights, strict=True)
    }


def describe(run: Run) -> None:
    """Write what the run is going to do, and say where; again when it is resumed, since cadences may have changed."""
    console.print(f"Folder of the run: {run.folder}", markup=False)
    if run.is_main:
        write_file(run.folder / CONFIG, dump_config(run.config))
        write_json(run.folder / PLAN, plan_record(run))


def print_numerics(inputs: Inputs) -> None:
    """Say in which precision the run computes, why, and by which products."""
    console.print(f"Precision: {inputs.numerics}", markup=False)
    if line := unmeasured_line(inputs.device):
        console.print(line, markup=False)


def print_graded_labels(pairs: PairTable) -> None:
    """Say what becomes of labels between 0 and the full scale: training knows positives and negatives alone."""
    graded = graded_labels(pairs)
    if graded.any():
        positives = int((graded & pairs.label).sum())
        console.print(
            f"{graded.sum()} of {len(pairs)} labels lie between 0 and data.label_scale: {positives} train "
            f"as full positives, {graded.sum() - positives} as negatives; data.positive_threshold draws the line",
            markup=False,
        )


def print_teacher(pairs: PairTable, loss: LossConfig) -> None:
    """Say how many pairs have a teacher's score, and what becomes of these."""
    if scored := int((~np.isnan(pairs.teacher)).sum()):
        weight = loss.distillation_weight
        use = f"are learned, in units of loss.teacher_scale = {loss.teacher_scale:g}" if weight else "are not learned"
        console.print(
            f"{scored} of {len(pairs)} pairs have a teacher's score; these {use} (loss.distillation_weight = "
            f"{weight:g})",
            markup=False,
        )


def print_false_negatives(run: Run) -> None:
    """Say how many candidates loss.guide_margin masks in the first batch, where that is on."""
    if run.layouts.guide is not None:
        prepared = run.prepare(0)
        console.print(
            f"loss.guide_margin = {run.config.loss.guide_margin:g}: of the first batch's "
            f"{len(prepared.layout.candidates)} candidates {prepared.known()['false_negatives']:.1f} a query are "
            "masked, on average, as probable false negatives",
            markup=False,
        )


def print_plan(run: Run) -> None:
    """Show what is about to happen: settings, trained parameters, phases, the learning rate at every boundary."""
    has_negatives = not run.data.train.label.all()
    has_soft_targets = not np.isnan(soft_targets(run.data.train)).all()
    conditions = Conditions(
        run.config,
        run.steps,
        planned_steps=len(run.sampler),
        processes=ranks.world_size(),
        has_negatives=has_negatives,
        has_soft_targets=has_soft_targets,
        has_teacher=not np.isnan(run.data.train.teacher).all(),
        is_limited=run.data.beyond_limit > 0,
        from_adapter=run.encoder.spec.adapter is not None,
    )
    print_settings(run.asked, conditions, run.encoder.width)
    print_searches(run, conditions.evaluations_before_the_end + 1)
    print_graded_labels(run.data.train)
    print_teacher(run.data.train, run.config.loss)
    print_false_negatives(run)
    trained = sum(parameter.numel() for parameter in run.parameters.values())
    console.print(f"{len(run.sampler)} steps, training {trained:,} values in {len(run.parameters)} tensors:")
    kinds = Counter((re.sub(r"\.\d+\.", ".*.", name), tuple(p.shape)) for name, p in run.parameters.items())
    for (name, shape), count in kinds.items():
        console.print(f"  {count:3} x {name} {list(shape)}", markup=False)
    print_phases(run)
    if run.steps < len(run.sampler):
        console.print(
            f"Cut short: the first {run.steps} of these {len(run.sampler)} steps are made, at the rates of the whole "
            "plan; then the run ends as usual"
        )
    if warning := little_movement(run.config, run.rates[: run.steps]):
        console.print(warning, markup=False)


def print_phases(run: Run) -> None:
    """Show the plan as a table, a row a phase, and what else there is to say of each."""
    table = Table(title="Plan", title_justify="left")
    for heading in ("phase", "rows +/-", "epochs", "steps", "neg/anchor", "riding/extra", "left over", "LR first-last"):
        table.add_column(heading, justify="left" if heading == "phase" else "right")
    for phase in run.sampler.phases:
        last = phase.first_step + phase.steps - 1
        table.add_row(
            phase.name,
            f"{phase.positives}/{phase.negatives}",
            str(phase.epochs),
            f"{phase.first_step}-{last}",
            f"{phase.negatives_per_anchor:.1f}",
            f"{phase.riding}/{phase.extra}",
            str(phase.left_over),
            f"{run.rates[phase.first_step]:.2e}-{run.rates[last]:.2e}",
        )
    console.print(table)
    for phase in run.sampler.phases:
        if len(phase.rows_by_source) > 1:
            shown = ", ".join(f"{rows} rows of {source}" for source, rows in phase.rows_by_source.items())
            console.print(f"Phase {phase.name} shows {shown}", markup=False)
        if not phase.negatives_per_anchor:
            nothing = "no anchor has a negative in its batch, so that MNRL is 0 and teaches nothing"
            console.print(f"Phase {phase.name}: {nothing}: add pairs of other anchors", markup=False)
        if phase.repeats:
            batches = f"{phase.repeats} batch{'es' * (phase.repeats > 1)}"
            console.print(f"Phase {phase.name}: {batches} could not avoid showing a text twice")
        if phase.replayed:
            console.print(f"Phase {phase.name}: {phase.replayed} rows of earlier phases are shown again")


def print_duration(run: Run, even_if_small: bool = False) -> None:
    """Say how long the steps will take, by two of median length that are timed. Collective.

    Weights, gradients and random states are as before. A small plan is over before anybody asks: it is passed over,
    unless it is wanted `even_if_small`.
    """
    table, lengths = run.data.train, run.tokens.longest(len(run.data.train.texts))
    pair_tokens = lengths[table.text1] + lengths[table.text2]
    step_tokens = np.array([pair_tokens[run.sampler[step]].sum() for step in range(run.steps)])
    weights = sum(parameter.numel() for parameter in run.encoder.parameters())
    if 3 * weights * int(step_tokens.sum()) < SMALL_PLAN and not even_if_small:
        return
    median = int(np.argsort(step_tokens, kind="stable")[run.steps // 2])
    seconds = step_seconds(run, median)
    minutes = math.ceil(seconds * step_tokens.sum() / step_tokens[median] / 60)
    duration = f"about {minutes // 60}:{minutes % 60:02} (h:mm)" if minutes > 1 else "less than a minute"
    console.print(
        f"The steps take {duration}, at {seconds:.2g} s for one of median length; "
        "evaluations and the judgement at the end come on top"
    )


def step_seconds(run: Run, step: int) -> float:
    """Seconds from the rows of a step to its gradient, at the second time: the first starts what runs for the first
    time. Collective; weights, gradients and random states are as before."""
    with in_mode(run.encoder, training=True), same_random_state(run.device):
        for _ in range(2):
            start = time.perf_counter()
            backward(run, run.prepare(step))
            if run.device.type == "cuda":
                torch.cuda.synchronize(run.device)
            seconds = time.perf_counter() - start
            run.optimizer.zero_grad()
    return seconds
