"""AdamW with decoupled decay over exactly the parameters that train."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import Parameter

from trainer.config import OptimConfig


def build_optimizer(parameters: Mapping[str, Parameter], config: OptimConfig, fused: bool = True) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101): decay on matrices, none on norms, biases and scalars.

    The learning rate is set by the training loop before every step.
    """
    matrices = [parameter for parameter in parameters.values() if parameter.ndim >= 2]
    vectors = [parameter for parameter in parameters.values() if parameter.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=config.lr, fused=fused)


def skip_next_update(optimizer: torch.optim.AdamW, when: Tensor) -> None:
    """Make the next `optimizer.step()` change nothing (weights, moments, step counts) where `when` is true.

    The decision is read on the device, so no step waits for it. It goes through `found_inf`, the attribute by which
    torch's own GradScaler tells a fused optimizer the same; with that scaler, leave it to the scaler.

    Args:
        when: a boolean scalar on the parameters' device. It holds until the next call.
    """
    optimizer.found_inf = when.float()  # type: ignore[attr-defined]
