"""Arithmetic: what a training step needs, and the fastest that this machine does."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from trainer.model.fast_layers import Linear


def matmul_peak(precision: str, device: torch.device) -> float:
    """The fastest large matrix product seen in a few tries, in FLOP/s: torch's own, or that of our linear layer."""
    size, tries = (8192, 12) if device.type == "cuda" else (1536, 6)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    layer = Linear(size, size, bias=False, device=device).requires_grad_(False)
    products = [lambda: a @ b, lambda: layer(a)]
    best = 0.0
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        for product in products * tries:
            start = time.perf_counter()
            float(product()[0, 0])  # waits for the device
            best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def model_flops(model: Any, lengths: np.ndarray, lora_rank: int) -> float:
    """FLOPs that forward and backward into LoRA adapters need over sequences of these lengths [N].

    A token costs 2 FLOPs a weight of the layers forward and 2 more backward for the gradient on activations; LoRA never
    computes the weight gradient of the frozen base, nor the activations' gradient below the first adapters, so neither
    counts. Adapters cost 6 FLOPs a weight. Attention adds 4 * E FLOPs a token and key forward and twice that backward.
    Padding counts for nothing.
    """
    config = model.config
    width, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    tokens = float(lengths.sum())
    frozen = layers * (4 * width * width + 2 * width * inner)
    unused = 3 * width * width  # query, key and value of the first layer: nothing below them is trained
    adapters = layers * 4 * 2 * lora_rank * width
    attention = layers * 4 * width * float((lengths.astype(np.float64) ** 2).sum())
    return (4 * frozen - 2 * unused + 6 * adapters) * tokens + 3 * attention
