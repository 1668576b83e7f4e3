"""The training run, from a config to an exported model. The only owner of the `Accelerator`.

    read data and model -> plan -> baseline -> steps (evaluate, checkpoint) -> best weights -> export -> summary

Nothing is written before everything that can be wrong with the input has been checked.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from trainer import __version__
from trainer import distributed as ranks
from trainer.checkpoint import load_newest, save_checkpoint
from trainer.config import Config, dump_config, to_tree
from trainer.console import console, progress
from trainer.curriculum import PhasedBatchSampler
from trainer.encoder import Encoder, add_lora, load_encoder, weights_fingerprint
from trainer.errors import CheckpointError, InputError, NumericError, StorageError, Stopped
from trainer.evaluation import Metrics, PairSet, evaluate, evaluate_at, json_ready, tokenize_for, verdict
from trainer.export import check_exports, choose_probes, save_adapter, save_model
from trainer.gradcache import backward_in_chunks
from trainer.layout import BatchLayout, LayoutBuilder
from trainer.logbook import Clock, open_log, signals_noted
from trainer.objective import Objective
from trainer.optim import build_optimizer
from trainer.packed import TokenBatch
from trainer.pairs import positives_of
from trainer.sources import RunData, load_data, locate_model
from trainer.state import Best, RunState, identity, restore, snapshot
from trainer.storage import write_file
from trainer.summary import learning_rates, model_card, plan_record, print_plan, print_summary
from trainer.tokens import TokenTable

FINISHED = "metrics.json"  # the last file of a run


@dataclass(frozen=True)
class Prepared:
    """A step's input, made while the step before it runs."""

    layout: BatchLayout
    chunks: list[TokenBatch]
    positions: list[np.ndarray]


class Run:
    """Everything that lives as long as the run."""

    def __init__(self, config: Config, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.accelerator = make_accelerator(config)
        self.device = self.accelerator.device
        self.main = self.accelerator.is_main_process
        console.quiet = not self.main
        set_seed(config.train.seed)

        data = load_data(config.data, config.train.seed)
        self.data: RunData = data
        with self.accelerator.local_main_process_first():
            self.model_name = locate_model(config, data)
            self.encoder = load_encoder(
                self.model_name, max_length=config.model.max_length, pooling=config.model.pooling
            )
        check_dims_fit(config, self.encoder)
        self.sampler = PhasedBatchSampler(
            data.train,
            config.curriculum,
            batch_size=config.train.batch_size,
            seed=config.train.seed,
            world_size=ranks.world_size(),
        )
        self.rates = learning_rates(config.optim, len(self.sampler))
        with self.accelerator.local_main_process_first():  # the others find it in the cache
            self.tokens: TokenTable = tokenize_for(self.encoder, data.train.texts)
            self.dev = PairSet.build(data.dev, self.encoder)
            self.test = PairSet.build(data.test, self.encoder) if data.test is not None else None
        self.layouts = LayoutBuilder(
            data.train, positives_of(data.train), rank=ranks.rank(), all_pairs=config.loss.pair_weight > 0
        )
        self.fingerprints = {
            "train_data": data.train.fingerprint(),
            "dev_data": data.dev.fingerprint(),
            "base_weights": weights_fingerprint(self.encoder),
        }
        self.encoder.to(self.device)

    def add_trainables(self) -> None:
        """Adapters where asked for, the objective, and an optimizer over exactly what trains."""
        if self.config.lora.enabled:
            add_lora(self.encoder, self.config.lora)
            self.encoder.to(self.device)
        self.objective = Objective(self.config.loss).to(self.device)
        self.parameters = self.encoder.trainable()
        self.parameters |= {n: p for n, p in self.objective.named_parameters() if p.requires_grad}
        ranks.share_parameters(self.parameters.values())
        # Accelerate's wrapper adds fp16 loss scaling. The schedule and the sharing of batches stay ours, and so does
        # the sum of gradients over ranks: no DDP wrapper.
        self.optimizer = self.accelerator.prepare_optimizer(build_optimizer(self.parameters, self.config.optim))
        set_seed(self.config.train.seed + 1 + ranks.rank())  # dropout differs between ranks

    def prepare(self, step: int) -> Prepared:
        """Lay out and collate the batch of a step."""
        shares = [self.sampler.local(step, rank) for rank in range(ranks.world_size())]
        layout = self.layouts.build(shares)
        own = layout.texts[ranks.rank()]
        positions = self.tokens.chunks(own, self.config.train.tokens_per_chunk)
        chunks = [self.tokens.batch(own[where]) for where in positions]
        return Prepared(layout, chunks, positions)

    def train_step(self, step: int, batch: Prepared) -> dict[str, Any]:
        """One update. Returns what there is to log.

        Raises:
            NumericError: the loss or the gradient is not finite; nothing has been updated.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.rates[step]
        counts = [len(texts) for texts in batch.layout.texts]
        loss = backward_in_chunks(
            encode=self.encoder,
            batches=[chunk.to(self.device) for chunk in batch.chunks],
            positions=batch.positions,
            loss_of=lambda rows: self.objective(
                ranks.gather_with_gradient(rows, counts), batch.layout, ranks.world_size()
            ),
            backward=self.accelerator.backward,
            autocast=self.accelerator.autocast,
        )
        ranks.sum_gradients(self.parameters.values())
        limit = self.config.optim.clip_norm or float("inf")
        norm = float(self.accelerator.clip_grad_norm_(self.parameters.values(), limit))
        total = float(ranks.sum_over_ranks(loss.total))
        by_dim = ranks.sum_over_ranks(loss.by_dim).tolist()
        self.check_finite(step, total, norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {
            "loss": total,
            "loss_by_dim": dict(zip(map(str, self.config.loss.dims), by_dim, strict=True)),
            "grad_norm": norm,
            "skipped": bool(self.optimizer.step_was_skipped),
            "tokens": int(ranks.sum_over_ranks(torch.tensor(sum(c.token_count for c in batch.chunks))).item()),
        }

    def check_finite(self, step: int, loss: float, norm: float) -> None:
        """Stop before an update that would ruin the weights; an fp16 overflow is skipped by the loss scaler instead."""
        scaler = self.accelerator.scaler
        overflow_is_handled = scaler is not None and scaler.get_scale() > 1
        if np.isfinite(loss) and (np.isfinite(norm) or overflow_is_handled):
            return
        rows = self.data.train.row[self.sampler[step]]
        shown = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
        what = f"gradient norm is {norm}" if np.isfinite(loss) else f"loss is {loss}"
        raise NumericError(
            f"step {step}, phase {self.sampler.phase_at(step).name}: the {what}; nothing was updated. The batch holds rows "
            f"{shown} of {self.data.train.source}; lower optim.lr, or train in bf16 or fp32"
        )

    def judge(self) -> Metrics:
        """All metrics on dev."""
        return evaluate(self.encoder, self.dev, self.config.loss.dims, self.accelerator.autocast)


def train(config: Config, name: str, resume: bool = False) -> Path:
    """Run a config to its end. Returns the folder of the run.

    Args:
        name: what to call the run where the config names no folder.
        resume: continue the run of that folder from its newest checkpoint.

    Raises:
        TrainerError: one of its kinds; see `trainer.errors`.
    """
    folder = choose_folder(config, name, resume)
    try:
        run = Run(config, folder)
        with signals_noted() as stop_requested:
            state = start_state(run, resume)
            with open_log(run.folder, run.accelerator, state.step, run.config.log.tensorboard) as log:
                steps(run, state, log, stop_requested)
        finish(run, state)
    except torch.OutOfMemoryError as error:
        raise InputError(out_of_memory(config)) from error
    return folder


def steps(run: Run, state: RunState, log: Callable[[dict[str, Any]], None], stop: Callable[[], bool]) -> None:
    """The loop over the plan, from where the state stands."""
    config, sampler = run.config, run.sampler
    run.encoder.train()
    clock = Clock(state.seconds)
    with ThreadPoolExecutor(1) as ahead, progress("Training", len(sampler), state.step) as advance:
        upcoming = ahead.submit(run.prepare, state.step) if state.step < len(sampler) else None
        while state.step < len(sampler):
            step, phase = state.step, sampler.phase_at(state.step)
            clock.start_step()
            assert upcoming is not None
            batch = upcoming.result()
            clock.data_is_here()
            if step + 1 < len(sampler):
                upcoming = ahead.submit(run.prepare, step + 1)
            logged = run.train_step(step, batch)
            clock.end_step(logged["tokens"])

            state.step, state.seconds = step + 1, clock.seconds
            line = {"step": step, "phase": phase.name, "epoch": sampler.epochs[step], "lr": run.rates[step], **logged}
            line |= {"tokens_per_s": clock.rate, "waiting": clock.waiting}
            if step % config.log.every == 0:
                log(line)
            advance(
                note=f"phase {phase.name}  loss {line['loss']:.4f}  lr {line['lr']:.2e}  {clock.rate:,.0f} tokens/s  "
                f"waiting {clock.waiting:.1%}"
            )

            ends_phase = sampler.ends_phase(step)
            last = state.step == len(sampler)
            if ends_phase if config.eval.every == 0 else last or state.step % config.eval.every == 0:
                note_evaluation(run, state, log)
            stopping = ranks.any_rank(stop(), run.device)
            if stopping or (ends_phase if config.checkpoint.every == 0 else state.step % config.checkpoint.every == 0):
                checkpoint(run, state)
            if stopping and not last:
                raise Stopped(f"{run.folder}: stopped by a signal after step {step}; continue with --resume")
            patience = config.early_stopping.patience
            if patience and state.without_best >= patience:
                console.print(f"No new best in {patience} evaluations: stopping early after step {step}")
                break


def note_evaluation(run: Run, state: RunState, log: Callable[[dict[str, Any]], None]) -> None:
    """Evaluate on dev; keep the weights where they are the best of the whole run."""
    metrics = run.judge()
    metric, largest = run.config.eval.metric, str(max(run.config.loss.dims))
    value = metrics[largest][metric]
    is_best = state.best is None or value > state.best.value
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
        tensors, values, path = load_newest(root)
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
        write_json(run.folder / "plan.json", plan_record(run.sampler, run.rates, run.config))
    ranks.barrier()
    return RunState(baseline=baseline)


def checkpoint(run: Run, state: RunState) -> None:
    """Save everything that `start_state` needs to continue."""
    tensors, values = snapshot(state, run.parameters, run.optimizer.optimizer, run.accelerator.scaler)
    values["identity"] = identity(to_tree(run.config), run.fingerprints)
    if run.main:
        save_checkpoint(run.folder / "checkpoints", state.step, tensors, values)
    ranks.barrier()


def finish(run: Run, state: RunState) -> None:
    """Put the best weights back, export them, prove the export, and say how it went."""
    best = state.best
    assert best is not None  # the last step is always evaluated
    with torch.no_grad():
        for name, parameter in run.parameters.items():
            parameter.copy_(best.weights[name])
    run.encoder.eval()
    result = verdict(state.baseline, best.metrics, run.config.eval.metric)
    metrics: dict[str, Any] = {"baseline": state.baseline, "final": best.metrics, "verdict": result}
    metrics |= {"best_step": best.step, "evaluations": state.evaluations}
    if run.test is not None:
        metrics["test"] = judge_on_test(run, state, run.test)
    if run.main:
        card = model_card(run.config, state.baseline, best.metrics, result)
        save_model(run.encoder, run.folder / "model", card)
        if run.config.lora.enabled:
            save_adapter(run.encoder, run.folder / "adapter")
        base = load_encoder(run.model_name, max_length=run.config.model.max_length, pooling=run.config.model.pooling)
        differences = check_exports(run.encoder, base, run.folder, choose_probes(run.data.dev.texts))
        write_json(run.folder / "training_metadata.json", metadata(run, state, differences))
        write_json(run.folder / FINISHED, metrics)
        print_summary(state.baseline, best.metrics, result, best.step, run.folder / "model")
    ranks.barrier()


def judge_on_test(run: Run, state: RunState, test: PairSet) -> dict[str, Metrics]:
    """Baseline and final on the test pairs, each at the thresholds that were fitted for it on dev."""
    assert state.best is not None
    found: dict[str, Metrics] = {}
    untouched = load_encoder(run.model_name, max_length=run.config.model.max_length, pooling=run.config.model.pooling)
    for name, encoder, dev in (
        ("baseline", untouched.to(run.device), state.baseline),
        ("final", run.encoder, state.best.metrics),
    ):
        thresholds = {dim: values["threshold"] for dim, values in dev.items()}
        found[name] = evaluate_at(encoder, test, thresholds, run.accelerator.autocast)
    return found


def metadata(run: Run, state: RunState, differences: dict[str, float]) -> dict[str, Any]:
    """training_metadata.json, read from what is there."""
    spec = run.encoder.spec
    return {
        "versions": {
            "trainer": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "peft", "accelerate")},
        },
        "device": str(run.device),
        "precision": run.accelerator.mixed_precision,
        "processes": ranks.world_size(),
        "threads": torch.get_num_threads(),
        "model": {
            "name": spec.name,
            "pooling": spec.pooling,
            "max_length": spec.max_length,
            "width": run.encoder.width,
            "parameters": sum(parameter.numel() for parameter in run.encoder.parameters()),
        },
        "trained": {name: list(parameter.shape) for name, parameter in run.parameters.items()},
        "trained_count": sum(parameter.numel() for parameter in run.parameters.values()),
        "fingerprints": run.fingerprints,
        "rows": {"train": len(run.data.train), "dev": len(run.data.dev)},
        "overlapping_texts": run.data.overlap,
        "truncated_texts": int((run.tokens.lengths >= spec.max_length).sum()),
        "scale": float(run.objective.scale),
        "steps": state.step,
        "seconds": round(state.seconds, 3),
        "resumed_at": state.resumed_at,
        "reload_differences": differences,
    }


def make_accelerator(config: Config) -> Accelerator:
    """The accelerator of a run, in exactly the precision asked for."""
    precision = {"fp32": "no"}.get(config.train.precision, config.train.precision)
    trackers = "tensorboard" if config.log.tensorboard else None
    try:
        return Accelerator(mixed_precision=precision, log_with=trackers)
    except ValueError as error:
        raise InputError(f"train.precision = {config.train.precision}: {error}".replace("\n", " ")) from error


def check_dims_fit(config: Config, encoder: Encoder) -> None:
    """Raise InputError where a Matryoshka dim is wider than the model."""
    if max(config.loss.dims) > encoder.width:
        raise InputError(
            f"loss.dims = {list(config.loss.dims)}: {config.model.name} is {encoder.width} wide; "
            f"use dims up to {encoder.width}"
        )


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
    if not resume and (folder / "config.toml").exists():
        what = "a finished run" if finished else "an unfinished run (continue it with --resume)"
        raise StorageError(f"{folder}: holds {what}, which is not overwritten; name another folder with --output-dir")
    return folder


def write_json(path: Path, value: Any) -> None:
    """Write JSON in one step, NaN as null."""
    write_file(path, json.dumps(json_ready(value), indent=2, ensure_ascii=False) + "\n")


def out_of_memory(config: Config) -> str:
    """What to change when memory runs out."""
    now = config.train.tokens_per_chunk
    fix = f"below {now}" if now else "to 16384, or lower while it still runs out"
    return f"out of memory: set train.tokens_per_chunk {fix}; it changes memory, not the result"


