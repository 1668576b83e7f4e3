"""LoRA adapters around an encoder's projections."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import peft
import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from trainer.config import LoraConfig
from trainer.errors import InputError
from trainer.model.encoder import Encoder
from trainer.model.families import FAMILIES
from trainer.model.fast_layers import make_lean


def add_lora(encoder: Encoder, config: LoraConfig) -> None:
    """Wrap the encoder's backbone with LoRA adapters (Hu et al. 2021, arXiv:2106.09685) and freeze the rest.

    Raises:
        InputError: a target matches no linear layer, or something else than adapters would train.
    """
    targets = resolve_targets(encoder.model, config.targets)
    adapters = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # peft divides by the rank; a fraction is fine
        lora_dropout=config.dropout,
        target_modules=targets,
        use_rslora=config.rslora,
        use_dora=config.dora,
        bias="none",
    )
    encoder.backbone = peft.get_peft_model(encoder.model, adapters)
    make_lean(encoder.backbone)
    trained = encoder.trainable()
    unexpected_parameters = [name for name in trained if ".lora_" not in name]
    targets_without_adapter = [target for target in targets if not any(f".{target}.lora_" in name for name in trained)]
    if wrong := unexpected_parameters or targets_without_adapter:
        raise InputError(f"lora.targets: trained parameters are not exactly the adapters: {wrong}")


def require_own_weights(encoder: Encoder) -> None:
    """Raise InputError where an adapter would be trained on top of another one: no library loads such a chain."""
    if encoder.spec.adapter:
        raise InputError(
            f"model.name = {encoder.spec.name}: holds an adapter, on which no other can be trained; name the merged "
            "model (a run's model/), or set lora.enabled to false"
        )


def resolve_targets(model: Any, targets: tuple[str, ...]) -> list[str]:
    """Full names of the linear layers that `lora.targets` means, in the model's order.

    "attention" and "ffn" are the projections of the model's family, anything else the ending of a module's name.

    Raises:
        InputError: one of them matches nothing, or there are no linear layers.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    endings = ", ".join(sorted({re.sub(r"^.*\.\d+\.", "", name) for name in linear}))
    if not linear:
        raise InputError(
            f"lora.enabled: {model.config.model_type} has no linear layers of the kind that adapters go around; set "
            "lora.enabled = false"
        )
    family = FAMILIES.get(model.config.model_type)
    matched: set[str] = set()
    for target in targets:
        patterns: tuple[str, ...] = (re.escape(target),)
        if target in ("attention", "ffn"):
            if family is None:
                raise InputError(
                    f'lora.targets: "{target}" is not known for {model.config.model_type}; name endings of its linear '
                    f"layers: {endings}; or set lora.enabled = false"
                )
            patterns = family.attention if target == "attention" else family.ffn
        for pattern in patterns:
            matches = {name for name in linear if re.search(rf"(^|\.){pattern}$", name)}
            if not matches:
                raise InputError(f"lora.targets: {target!r} matches no linear layer; there are {endings}")
            matched |= matches
    return [name for name in linear if name in matched]


@contextmanager
def adapters_merged(encoder: Encoder) -> Iterator[Encoder]:
    """The encoder with its adapters folded into the weights meanwhile; afterwards every weight is as before to the bit.

    It computes what a merged copy would, to the last bit on the same device: nothing is compiled meanwhile, and every
    weight is marked as one just loaded is, since a frozen one takes another way through the CPU's products. So it is
    for evaluation alone. An encoder without adapters needs no more than that.
    """
    required = {parameter: parameter.requires_grad for parameter in encoder.parameters()}
    compiled, encoder.compiled = encoder.compiled, False
    backbone: Any = encoder.backbone
    adapted = isinstance(backbone, peft.PeftModel)
    layers: list[Any] = [module for module in encoder.modules() if isinstance(module, LoraLayer)]
    weights = [layer.get_base_layer().weight for layer in layers]
    kept = [weight.detach().clone() for weight in weights]
    try:
        if adapted:
            backbone.merge_adapter()
        encoder.requires_grad_(True)
        yield encoder
    finally:
        for parameter, needed in required.items():
            parameter.requires_grad_(needed)
        if adapted:
            backbone.unmerge_adapter()  # subtracts what was added, which rounds
        with torch.no_grad():
            for weight, values in zip(weights, kept, strict=True):
                weight.copy_(values)
        encoder.compiled = compiled
