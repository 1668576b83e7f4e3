"""What lives as long as a run: its data, model, plan, optimizer and `Accelerator`, and one step of training."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, set_seed
from torch import Tensor

from trainer.config import Config, OutputConfig
from trainer.data.batch_layout import LayoutBuilder
from trainer.data.curriculum import PhasedBatchSampler
from trainer.data.pairs import positives_of
from trainer.data.run_data import RunData, load_data, locate_model
from trainer.errors import InputError, NumericError
from trainer.evaluation.scoring import Metrics, PairSet, evaluate
from trainer.loss.objective import Objective
from trainer.model.embedding import tokenize_for
from trainer.model.encoder import Encoder, weights_fingerprint
from trainer.model.loading import hush_transformers, load_encoder
from trainer.model.lora import add_lora, resolve_targets
from trainer.model.tokens import TokenTable
from trainer.system import distributed as ranks
from trainer.system.console import console
from trainer.system.gpu import require_code
from trainer.system.transfer import Arriving, to_device
from trainer.training.choices import Choices, choose
from trainer.training.gradcache import backward_in_chunks
from trainer.training.optimizer import build_optimizer
from trainer.training.schedule import learning_rates
from trainer.training.step import Pending, Prepared, peak_memory


class Run:
    """Everything that lives as long as the run."""

    def __init__(self, config: Config, folder: Path) -> None:
        self.config, self.folder = replace(config, output=OutputConfig(dir=str(folder))), folder
        self.accelerator = make_accelerator(config, folder)
        self.device = self.accelerator.device
        require_code(self.device)
        self.main: bool = self.accelerator.is_main_process
        console.quiet = not self.main
        set_seed(config.train.seed)

        hush_transformers()
        data = load_data(config.data, config.train.seed)
        self.data: RunData = data
        with self.accelerator.local_main_process_first():
            self.model_name = locate_model(config, data)
            self.encoder = self.load_base()
        check_dims_fit(config, self.encoder)
        if config.lora.enabled:
            resolve_targets(self.encoder.model, config.lora.targets)  # complains before any work is done
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
            self.general = PairSet.build(data.general, self.encoder) if data.general is not None else None
        self.layouts = LayoutBuilder(
            data.train, positives_of(data.train), rank=ranks.rank(), all_pairs=config.loss.pair_weight > 0
        )
        self.fingerprints = {
            "train_data": data.train.fingerprint(),
            "dev_data": data.dev.fingerprint(),
            "base_weights": weights_fingerprint(self.encoder),
            "tokens": self.tokens.fingerprint(),
        }
        self.encoder.to(self.device)
        self.pending: deque[Pending] = deque()  # updates whose numbers have not been read

    def load_base(self) -> Encoder:
        """The untouched encoder, from disk, on the CPU."""
        model = self.config.model
        return load_encoder(self.model_name, max_length=model.max_length, pooling=model.pooling)

    def add_trainables(self, compiled_before: bool | None = None) -> None:
        """Adapters where asked for, the objective, and an optimizer over exactly what trains.

        Args:
            compiled_before: whether layers were compiled in the run that is resumed.
        """
        if self.config.lora.enabled:
            add_lora(self.encoder, self.config.lora)
            self.encoder.to(self.device)
        self.objective = Objective(self.config.loss).to(self.device)
        self.parameters = self.encoder.trainable()
        self.parameters |= {n: p for n, p in self.objective.named_parameters() if p.requires_grad}
        ranks.share_parameters(self.parameters.values())
        self.choices = Choices()
        if self.device.type == "cuda":
            self.choices = choose(
                self.encoder,
                self.config.train.compile,
                len(self.sampler),
                lambda: self.prepare(0).chunks,
                self.accelerator.autocast,
                compiled_before,
            )
        elif self.config.train.compile == "on":
            self.choices = Choices(notes=('train.compile = "on": layers are compiled on a GPU alone',))
        for note in self.choices.notes:
            console.print(note, markup=False)
        # How many updates there may be whose numbers have not been read.
        self.lag = 1 if self.device.type == "cuda" and self.choices.fused else 0
        # Accelerate's wrapper adds fp16 loss scaling. The schedule and the sharing of batches stay ours, and so does
        # the sum of gradients over ranks: no DDP wrapper.
        optimizer = build_optimizer(self.parameters, self.config.optim, self.choices.fused)
        self.optimizer = self.accelerator.prepare_optimizer(optimizer)
        set_seed((self.config.train.seed + 1 + ranks.rank()) % 2**32)  # dropout differs between ranks

    def prepare(self, step: int) -> Prepared:
        """Lay out and collate the batch of a step, and send it to the device."""
        shares = [self.sampler.local(step, rank) for rank in range(ranks.world_size())]
        layout = self.layouts.build(shares)
        own = layout.texts[ranks.rank()]
        positions = self.tokens.chunks(own, self.config.train.tokens_per_chunk)
        chunks = [self.tokens.batch(own[where]) for where in positions]
        prepared = Prepared(
            layout,
            chunks,
            [torch.from_numpy(p) for p in positions],
            tokens=sum(chunk.token_count for chunk in chunks),
            waste=0.0 if self.encoder.attention == "kernel" else float(np.mean([chunk.waste for chunk in chunks])),
        )
        return to_device(prepared, self.device)

    def setting(self) -> dict[str, Any]:
        """What, apart from the config, decides a result's last bits."""
        return {
            "processes": ranks.world_size(),
            "device": self.device.type,
            "threads": torch.get_num_threads(),
            **self.choices.setting(),
            **{name: version(name) for name in ("torch", "transformers", "peft", "numpy")},
        }

    def train_step(
        self,
        step: int,
        batch: Prepared,
        stop: Callable[[], bool] = lambda: False,
        save: Callable[[], bool] = lambda: False,
    ) -> list[dict[str, Any]]:
        """One update. Returns what there is to log of the updates whose numbers have arrived.

        On a GPU these lag one update behind, so that no step waits for the device. An update whose loss or gradient is
        not finite changes nothing, wherever its numbers are.

        Args:
            stop: whether this rank was asked to stop; the numbers say whether any was.
            save: whether this rank finds a checkpoint due; likewise.

        Raises:
            NumericError: the loss or the gradient of an update was not finite; nothing has been updated since.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.rates[step]
        loss = backward_in_chunks(
            encode=self.encoder,
            batches=batch.chunks,
            positions=batch.positions,
            loss_of=lambda rows: self.objective(rows, batch.layout),
            backward=self.accelerator.backward,
            autocast=self.accelerator.autocast,
        )
        ranks.sum_gradients(self.parameters.values())
        limit = self.config.optim.clip_norm or float("inf")
        norm = self.accelerator.clip_grad_norm_(self.parameters.values(), limit)
        counters = [torch.full((1,), float(value), device=self.device) for value in (batch.tokens, stop(), save())]
        parts = torch.cat([loss.total.detach().view(1), *counters, loss.by_dim]).double()
        numbers = torch.cat([ranks.sum_over_ranks(parts), norm.detach().double().view(1)])
        self.pending.append(Pending(step, batch.waste, Arriving(numbers)))
        arrived = self.settle(self.lag)
        if self.accelerator.scaler is None and self.choices.fused:
            # The fused optimizer reads this on the device and passes over the update.
            self.optimizer.optimizer.found_inf = (~numbers.isfinite().all()).float()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return arrived

    def settle(self, lag: int = 0) -> list[dict[str, Any]]:
        """Read the numbers of all updates but the last `lag`, in order. Raises NumericError as `train_step` does."""
        arrived = []
        while len(self.pending) > lag:
            pending = self.pending.popleft()
            loss, tokens, stop, save, *by_dim, norm = pending.numbers.read()
            self.check_finite(pending.step, loss, norm)
            arrived.append(
                {
                    "step": pending.step,
                    "loss": loss,
                    "loss_by_dim": dict(zip(map(str, self.config.loss.dims), by_dim, strict=True)),
                    "grad_norm": norm,
                    "skipped": not np.isfinite(norm),  # the fp16 loss scaler passes over an update that overflowed
                    "tokens": int(tokens),
                    "waste": pending.waste,
                    "peak_memory": peak_memory(self.device),
                    "stop": stop > 0,
                    "save": save > 0,
                }
            )
        return arrived

    def check_finite(self, step: int, loss: float, norm: float) -> None:
        """Stop where an update would have ruined the weights; the loss scaler skips an fp16 overflow instead."""
        scaler = self.accelerator.scaler
        overflow_is_handled = scaler is not None and scaler.get_scale() > 1
        if np.isfinite(loss) and (np.isfinite(norm) or overflow_is_handled):
            return
        rows = self.data.train.row[self.sampler[step]]
        shown = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
        what = f"gradient norm is {norm}" if np.isfinite(loss) else f"loss is {loss}"
        raise NumericError(
            f"step {step}, phase {self.sampler.phase_at(step).name}: the {what}; nothing was updated. The batch holds "
            f"rows {shown} of {self.data.train.source}; lower optim.lr, or train in bf16 or fp32"
        )

    def start_values(self) -> dict[str, Tensor]:
        """What the parameters that train began with, by name; LoRA's random factors are drawn anew."""
        untouched = self.load_base()
        if self.config.lora.enabled:
            add_lora(untouched, self.config.lora)
        return {name: parameter.detach() for name, parameter in untouched.trainable().items()}

    def judge(self) -> Metrics:
        """All pair metrics on dev, as the run goes on: in its precision, thresholds fitted on dev itself."""
        return evaluate(self.encoder, self.dev, self.config.loss.dims, self.accelerator.autocast)


def make_accelerator(config: Config, folder: Path) -> Accelerator:
    """The accelerator of a run, in exactly the precision asked for, with the tracker asked for."""
    precision = {"fp32": "no"}.get(config.train.precision, config.train.precision)
    if config.log.tensorboard and not find_spec("tensorboard"):  # accelerate would leave it out without a word
        raise InputError("log.tensorboard = true: tensorboard is not installed; install the extra `track`")
    trackers = "tensorboard" if config.log.tensorboard else None
    patience = InitProcessGroupKwargs(timeout=timedelta(seconds=config.train.timeout))
    try:
        return Accelerator(
            mixed_precision=precision, log_with=trackers, project_dir=str(folder), kwargs_handlers=[patience]
        )
    except ValueError as error:
        raise InputError(f"train.precision = {config.train.precision}: {error}".replace("\n", " ")) from error


def check_dims_fit(config: Config, encoder: Encoder) -> None:
    """Raise InputError where a Matryoshka dim is wider than the model."""
    if max(config.loss.dims) > encoder.width:
        raise InputError(
            f"loss.dims = {list(config.loss.dims)}: {config.model.name} is {encoder.width} wide; "
            f"use dims up to {encoder.width}"
        )
