"""AdamW by its formula; decay on matrices and nothing else; every trained parameter held once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import Parameter

from trainer.config import LoraConfig, OptimConfig
from trainer.model.loading import load_encoder
from trainer.model.lora import add_lora
from trainer.training.optimizer import build_optimizer, skip_next_update

CONFIG = OptimConfig(lr=0.01, weight_decay=0.1)
SHAPES = {"matrix": (3, 4), "cube": (2, 3, 2), "norm": (4,), "bias": (5,), "scale": ()}


def parameters(seed: int = 0) -> dict[str, Parameter]:
    rng = np.random.default_rng(seed)
    return {name: Parameter(torch.tensor(rng.normal(size=shape))) for name, shape in SHAPES.items()}


def test_one_group_decays_and_one_does_not() -> None:
    own = parameters()
    decayed, plain = build_optimizer(own, CONFIG).param_groups
    assert decayed["weight_decay"] == CONFIG.weight_decay
    assert plain["weight_decay"] == 0
    assert [id(parameter) for parameter in decayed["params"]] == [id(own["matrix"]), id(own["cube"])]
    assert [id(parameter) for parameter in plain["params"]] == [id(own["norm"]), id(own["bias"]), id(own["scale"])]
    assert decayed["lr"] == plain["lr"] == CONFIG.lr


@pytest.mark.parametrize("only", ["matrix", "bias"])
def test_there_is_no_empty_group(only: str) -> None:
    (group,) = build_optimizer({only: parameters()[only]}, CONFIG).param_groups
    assert len(group["params"]) == 1


def test_without_a_gradient_matrices_shrink_and_nothing_else_moves() -> None:
    own, before = parameters(), parameters()
    for parameter in own.values():
        parameter.grad = torch.zeros_like(parameter)
    build_optimizer(own, CONFIG).step()
    for name, parameter in own.items():
        share = 1 - CONFIG.lr * CONFIG.weight_decay if parameter.ndim >= 2 else 1
        torch.testing.assert_close(parameter.data, before[name].data * share, rtol=1e-15, atol=0, msg=name)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_steps_are_those_of_the_formula(decay: float, seed: int) -> None:
    """Algorithm 2 of Loshchilov & Hutter (2019) in float64, with the rate changed between steps as the loop does."""
    own = parameters(seed)
    optimizer = build_optimizer(own, replace(CONFIG, weight_decay=decay))
    beta1, beta2, epsilon = 0.9, 0.999, 1e-8
    theta = {name: parameter.detach().numpy().copy() for name, parameter in own.items()}
    first = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    second = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    rng = np.random.default_rng(seed + 100)
    for t, rate in enumerate((0.01, 0.003, 0.0, 0.02), start=1):
        for group in optimizer.param_groups:
            group["lr"] = rate
        for name, parameter in own.items():
            gradient = rng.normal(size=SHAPES[name]) * 10.0 ** rng.integers(-3, 3)
            parameter.grad = torch.tensor(gradient)
            first[name] = beta1 * first[name] + (1 - beta1) * gradient
            second[name] = beta2 * second[name] + (1 - beta2) * gradient**2
            update = first[name] / (1 - beta1**t) / (np.sqrt(second[name] / (1 - beta2**t)) + epsilon)
            shrunk = rate * decay * theta[name] if len(SHAPES[name]) >= 2 else 0
            theta[name] = theta[name] - shrunk - rate * update
        optimizer.step()
    for name, parameter in own.items():
        np.testing.assert_allclose(parameter.detach().numpy(), theta[name], rtol=1e-12, atol=1e-14, err_msg=name)


def test_decay_is_decoupled_from_the_gradient() -> None:
    """With L2 in the gradient instead, the first step would be lr * sign of the sum."""
    weight = Parameter(torch.full((1, 1), 5.0, dtype=torch.float64))
    optimizer = build_optimizer({"w": weight}, OptimConfig(lr=0.1, weight_decay=0.5))
    weight.grad = torch.full((1, 1), -1e-3, dtype=torch.float64)
    optimizer.step()
    assert math.isclose(weight.item(), 5.0 * (1 - 0.1 * 0.5) + 0.1, rel_tol=1e-4)


NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NO_GPU)])
@pytest.mark.parametrize("skipped", [True, False])
def test_an_update_that_is_skipped_changes_nothing(skipped: bool, device: str) -> None:
    """Weights, both moments and the step count: torch promises this of its own loss scaler alone."""
    own = {name: Parameter(parameter.detach().to(device)) for name, parameter in parameters().items()}
    optimizer = build_optimizer(own, CONFIG)

    def update() -> None:
        for parameter in own.values():
            parameter.grad = torch.full_like(parameter, math.nan if skipped else 1.0)
        optimizer.step()

    def content() -> dict[str, torch.Tensor]:
        held = {f"{name} {key}": value for name in own for key, value in optimizer.state[own[name]].items()}
        return {key: value.detach().clone() for key, value in {**own, **held}.items()}

    for parameter in own.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    before = content()
    skip_next_update(optimizer, torch.tensor(skipped, device=device))
    update()
    after = content()
    assert len(before) == 4 * len(own)
    assert {key for key in before if not torch.equal(before[key], after[key])} == (set() if skipped else set(before))


@pytest.mark.parametrize("lora", [None, LoraConfig(), LoraConfig(targets=("attention", "ffn"), dora=True)])
@pytest.mark.parametrize("family", ["mpnet", "distilbert"])
def test_a_real_encoder_is_covered_and_its_norms_and_biases_do_not_decay(
    family: str, lora: LoraConfig | None, tiny_model: Callable[[str], Path]
) -> None:
    encoder = load_encoder(str(tiny_model(family)))
    if lora:
        add_lora(encoder, lora)
    own = encoder.trainable()
    optimizer = build_optimizer(own, CONFIG)
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(held) == sorted(map(id, own.values()))  # each once, and nothing else
    decayed = {id(parameter) for parameter in optimizer.param_groups[0]["params"]}
    names = {name for name, parameter in own.items() if id(parameter) in decayed}
    spared = own.keys() - names
    if lora:
        assert all(".lora_A." in name or ".lora_B." in name for name in names)
        assert all("lora_magnitude_vector" in name for name in spared)
        assert bool(spared) == lora.dora
    else:
        assert all(name.endswith(".bias") or "norm" in name.lower() for name in spared)
        assert all(name.endswith(".weight") and "norm" not in name.lower() for name in names)
        assert spared
