"""One step of training: encode what was prepared, loss, backward, update, and read the numbers.

    Inputs.prepare (a step ahead, on a thread) -> train_step -> [next steps] -> settle

Everything that a step costs is here and in what it calls; evaluation and saving are the loop's.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from trainer.data.sources import by_source
from trainer.errors import NumericError
from trainer.loss.objective import Loss, batch_loss
from trainer.system import distributed as ranks
from trainer.system.devices import widest_float
from trainer.system.transfer import Arriving
from trainer.training.batch import Prepared
from trainer.training.gradcache import backward_in_chunks
from trainer.training.optimizer import skip_next_update
from trainer.training.setup import Run


@dataclass(frozen=True)
class StepNumbers:
    """What is known of an update once its numbers have arrived."""

    step: int
    logged: dict[str, Any]
    """What log.jsonl says of it: loss, loss of each dim, gradient norm, tokens, ..."""
    stop: bool
    """Whether any rank was asked to stop."""
    save: bool
    """Whether any rank found a checkpoint due."""


class Stepper:
    """Makes the updates of a run, in the order of its plan."""

    def __init__(self, run: Run, lag: int | None = None) -> None:
        """Args: lag: how many updates may have numbers that nobody has read; by default 1 on a GPU, else 0."""
        self.run = run
        on_device = run.device.type == "cuda" and run.fast_paths.fused  # where a bad update is passed over
        self.lag = int(on_device) if lag is None else lag
        # Step, what is known of it already, and numbers still on their way.
        self.pending: deque[tuple[int, dict[str, float], Arriving]] = deque()

    def train_step(
        self,
        step: int,
        prepared: Prepared,
        stop: Callable[[], bool] = lambda: False,
        save: Callable[[], bool] = lambda: False,
    ) -> list[StepNumbers]:
        """One update. Returns the numbers, of this update and those before it, that have arrived.

        On a GPU these lag one update behind, so that no step waits for the device. An update whose loss or gradient is
        not finite changes nothing, wherever its numbers are.

        Args:
            stop: whether this rank was asked to stop; the numbers say whether any was.
            save: whether this rank finds a checkpoint due; likewise.

        Raises:
            NumericError: the loss or the gradient of an update was not finite; nothing has been updated since.
        """
        run = self.run
        for group in run.optimizer.param_groups:
            group["lr"] = run.rates[step]

        # ---- loss and gradient, of this rank's part and then of the whole batch
        loss = backward(run, prepared)
        ranks.sum_gradients(run.parameters.values())
        limit = run.config.optim.clip_norm or float("inf")
        norm = run.accelerator.clip_grad_norm_(run.parameters.values(), limit)

        # ---- numbers: one tensor over all ranks, read when it has arrived
        counters = [torch.full((1,), float(value), device=run.device) for value in (prepared.tokens, stop(), save())]
        parts = torch.cat([loss.total.detach().view(1), *counters, loss.by_dim]).to(widest_float(run.device))
        numbers = torch.cat([ranks.sum_over_ranks(parts), norm.detach().to(parts.dtype).view(1)])
        self.pending.append((step, prepared.known(), Arriving(numbers)))
        arrived = self.settle(self.lag)

        # ---- update
        if run.accelerator.scaler is None and run.fast_paths.fused:
            skip_next_update(run.optimizer.optimizer, when=~numbers.isfinite().all())
        run.optimizer.step()
        run.optimizer.zero_grad()
        return arrived

    def settle(self, lag: int = 0) -> list[StepNumbers]:
        """Read the numbers of all updates but the last `lag`, in order. Raises NumericError as `train_step` does."""
        arrived = []
        while len(self.pending) > lag:
            step, known, numbers = self.pending.popleft()
            loss, tokens, stop, save, *by_dim, norm = numbers.read()
            self.check_finite(step, loss, norm)
            logged = {
                "loss": loss,
                "loss_by_dim": dict(zip(map(str, self.run.config.loss.dims), by_dim, strict=True)),
                "grad_norm": norm,
                "skipped": not np.isfinite(norm),  # the fp16 loss scaler passes over an update that overflowed
                "tokens": int(tokens),
                **known,
                "peak_memory": peak_memory(self.run.device),
            }
            arrived.append(StepNumbers(step, logged, stop=stop > 0, save=save > 0))
        return arrived

    def check_finite(self, step: int, loss: float, norm: float) -> None:
        """Raise NumericError where an update would have ruined the weights; an fp16 overflow is the loss scaler's."""
        run = self.run
        scaler = run.accelerator.scaler
        # The scale is asked for last: the host waits for it.
        if np.isfinite(loss) and (np.isfinite(norm) or (scaler is not None and scaler.get_scale() > 1)):
            return
        batch = by_source(run.data.train, run.sampler[step])
        rows = [f"{', '.join(map(str, part.row[:8]))}{', ...' * (len(part) > 8)} of {part.source}" for part in batch]
        what = f"gradient norm is {norm}" if np.isfinite(loss) else f"loss is {loss}"
        fix = "lower optim.lr" + (", or train in bf16 or fp32" if scaler is not None else "")
        raise NumericError(
            f"step {step}, phase {run.sampler.phase_at(step).name}: the {what}; nothing was updated. The batch holds "
            f"rows {' and '.join(rows)}; {fix}"
        )


def backward(run: Run, prepared: Prepared) -> Loss:
    """The loss of a batch, its gradient added to this rank's parameters. Collective."""
    return backward_in_chunks(
        encode=run.encoder,
        chunks=prepared.chunks,
        positions=prepared.positions,
        loss_of=lambda embeddings: batch_loss(run.config.loss, embeddings, prepared.layout),
        backward=run.accelerator.backward,
        autocast=run.autocast,
    )


def peak_memory(device: torch.device) -> int:
    """Most bytes in use so far: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not on Windows

    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes if sys.platform == "darwin" else kilobytes * 1024
