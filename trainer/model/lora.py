"""LoRA adapters around an encoder's projections."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import torch
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from torch import nn

from trainer.config import LoraConfig
from trainer.errors import InputError
from trainer.model.encoder import Encoder, EncoderSpec
from trainer.model.families import FAMILIES
from trainer.model.fast_layers import make_lean
from trainer.model.folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, base_of_adapter, optional_json
from trainer.model.loading import load_with_adapter
from trainer.system.values import toml_value

RANK, ALPHA, TARGETS = 16, 32.0, ("attention",)  # of a new adapter, where lora.* leaves them open


def add_lora(encoder: Encoder, config: LoraConfig) -> None:
    """Wrap the encoder's backbone with LoRA adapters (Hu et al. 2021, arXiv:2106.09685) and freeze the rest.

    Raises:
        InputError: a target matches no linear layer, or something else than adapters would train.
    """
    config = _settled(config)
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


def continues_adapter(config: LoraConfig, spec: EncoderSpec) -> bool:
    """Whether training goes on with the adapter that an encoder was loaded with."""
    return config.enabled and config.start == "continue" and spec.adapter is not None


def start_adapters(encoder: Encoder, config: LoraConfig) -> None:
    """Put adapters around the backbone and freeze the rest: those the encoder was loaded with, or fresh ones.

    Args:
        config: as `settled_by_adapter` gives it.

    Raises:
        InputError: as `add_lora`.
    """
    spec = encoder.spec
    if not continues_adapter(config, spec):
        return add_lora(encoder, config)
    assert spec.adapter is not None
    encoder.backbone = load_with_adapter(spec, config.dropout)
    base = base_of_adapter(spec.adapter)
    encoder.spec = replace(spec, base=str(spec.folder.resolve()) if Path(base).is_dir() else base)


def _settled(config: LoraConfig) -> LoraConfig:
    """The settings of a new adapter, with what is left open settled."""
    return replace(config, rank=config.rank or RANK, alpha=config.alpha or ALPHA, targets=config.targets or TARGETS)


def settled_by_adapter(asked: LoraConfig, encoder: Encoder) -> LoraConfig:
    """What lora.* comes to: where an adapter is continued the adapter's, else what is usual where it is left open.

    Of rslora and dora, what differs from the default counts as asked for. Only dropout, which is no part of the model,
    may be another than the adapter's.

    Raises:
        InputError: an adapter of another kind than was asked for, or than `add_lora` makes.
    """
    if not continues_adapter(asked, spec := encoder.spec):
        return _settled(asked) if asked.enabled else asked
    assert spec.adapter is not None
    stored, name = optional_json(spec.adapter / ADAPTER_CONFIG), f"the adapter of model.name = {spec.name}"
    with safe_open(spec.adapter / ADAPTER_WEIGHTS, framework="pt") as tensors:
        weights = list(tensors.keys())
    factor_of_ours = r"\.lora_((A|B)\.weight|magnitude_vector(\.weight)?)$"  # no bias, as lora_bias adds
    others = [weight for weight in weights if not re.search(factor_of_ours, weight)]
    if others := others + [key for key in ("rank_pattern", "alpha_pattern") if stored.get(key)]:
        raise InputError(f'{name} has more than factors of one rank ({others[0]}); set lora.start = "merge"')
    factors = [weight.removeprefix("base_model.model.") for weight in weights if ".lora_A." in weight]
    layers = {factor.split(".lora_A.")[0] for factor in factors}
    usual = (asked.targets, TARGETS, ("attention", "ffn"), ("ffn",))
    targets = next((names for names in usual if _adapts(encoder, names, layers)), tuple(sorted(layers)))
    has: dict[str, Any] = {"rank": stored.get("r"), "alpha": stored.get("lora_alpha"), "targets": targets}
    has |= {"rslora": bool(stored.get("use_rslora")), "dora": bool(stored.get("use_dora"))}
    for key, value in has.items():
        if getattr(asked, key) not in (getattr(LoraConfig(), key), value):
            raise InputError(
                f"lora.{key} = {toml_value(getattr(asked, key))}: {name} has {toml_value(value)}; leave it out, or set "
                'lora.start = "merge" for a new adapter'
            )
    if asked.dropout == LoraConfig().dropout:
        has["dropout"] = stored.get("lora_dropout")
    return replace(asked, **has)


def _adapts(encoder: Encoder, targets: tuple[str, ...], layers: set[str]) -> bool:
    """Whether these targets mean these layers."""
    try:
        return set(resolve_targets(encoder.model, targets)) == layers
    except InputError:  # of a family whose layers have no such name
        return False


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
