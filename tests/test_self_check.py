"""The checks before step 0 pass what is right, and name what was broken on purpose."""

from __future__ import annotations

import re
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="needs the package triton (extra `test`, on Linux)")

from trainer.config import LoraConfig
from trainer.model import attention_triton, self_check
from trainer.model.families import FAMILIES
from trainer.model.loading import load_encoder
from trainer.model.lora import add_lora
from trainer.model.self_check import attention_fault, layers_fault
from trainer.training.fast_paths import update_fault

packed_attention = attention_triton.packed_attention
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def short_encoder(tiny_model):
    """Family -> an encoder of sequences of up to 20 tokens."""

    def load(family, max_length=20):
        encoder = load_encoder(str(tiny_model(family))).to(DEVICE)
        encoder.spec = replace(encoder.spec, max_length=max_length)
        return encoder

    return load


@pytest.fixture
def short_attention(short_encoder):
    """The same as if it had one head, as Triton's interpreter takes its time for each."""

    def load(family, max_length=20, heads=1):
        encoder = short_encoder(family, max_length)
        encoder.model.config.num_attention_heads = heads
        return encoder

    return load


# ---- attention


@pytest.mark.slow
@pytest.mark.parametrize(("family", "dtype"), [("mpnet", torch.float32), ("bert", torch.float16)])
def test_the_kernel_passes_and_the_random_state_is_as_it_was(short_attention, family, dtype):
    encoder = short_attention(family, heads=2)
    torch.manual_seed(11)
    before = torch.get_rng_state()
    assert attention_fault(encoder, dtype) is None
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_the_kernel_passes_over_several_blocks(short_attention):
    assert attention_fault(short_attention("bert", 70), torch.float32) is None


def wrong_sign(query, *others):
    return packed_attention(-query, *others)


def wrong_key_gradient(query, key, *others):
    out = packed_attention(query, key, *others)
    return out + 1e-2 * (key - key.detach())


def no_bias_gradient(query, key, value, blocks, rows, heads, bias, dropout):
    return packed_attention(query, key, value, blocks, rows, heads, bias.detach() + 0 * bias, dropout)


def not_a_number(*inputs):
    return packed_attention(*inputs) * float("nan")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (wrong_sign, "values off by"),
        (wrong_key_gradient, "the gradient of keys off by"),
        (no_bias_gradient, "the gradient of the bias off by 1"),
        (not_a_number, "values off by nan"),
    ],
)
def test_a_broken_kernel_is_named(short_attention, monkeypatch, broken, words):
    encoder = short_attention("mpnet", 12)
    encoder.model.config.attention_probs_dropout_prob = 0.0
    monkeypatch.setattr(attention_triton, "packed_attention", broken)
    fault = attention_fault(encoder, torch.float32)
    assert fault is not None and re.match(words, fault), fault


def with_dropout_of(change):
    """The kernel with its dropout changed."""

    def broken(*inputs):
        return packed_attention(*inputs) if not inputs[-1] else change(*inputs)

    return broken


def one_seed(*inputs):
    with torch.random.fork_rng([]):
        torch.manual_seed(5)
        return packed_attention(*inputs)


def no_seed(*inputs):
    with torch.random.fork_rng([]):
        torch.manual_seed(int(np.random.default_rng().integers(2**31)))
        return packed_attention(*inputs)


def half_as_much(*inputs):
    return packed_attention(*inputs[:-1], inputs[-1] / 2)


def not_scaled(*inputs):
    return packed_attention(*inputs) * (1 - inputs[-1])


def other_mask_backward(*inputs):
    out, other = packed_attention(*inputs), packed_attention(*inputs)
    return other + (out - other).detach()


@pytest.mark.slow
@pytest.mark.skipif(DEVICE.type == "cuda", reason="puts back the random state of the CPU alone")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (one_seed, "dropout's mask from another seed"),
        (no_seed, "dropout's second mask from one seed"),
        (half_as_much, "the share that dropout drops"),
        (not_scaled, "what dropout leaves"),
        (other_mask_backward, "under dropout the gradient of"),
    ],
)
def test_broken_dropout_is_named(short_attention, monkeypatch, change, words):
    encoder = short_attention("bert")
    encoder.model.config.attention_probs_dropout_prob = 0.3
    monkeypatch.setattr(self_check, "ATTENTION_LENGTHS", (3,))  # without dropout nothing is broken
    monkeypatch.setattr(attention_triton, "packed_attention", with_dropout_of(change))
    fault = attention_fault(encoder, torch.float32)
    assert fault is not None and fault.startswith(words)


# ---- layers


@pytest.fixture
def compiled_as(monkeypatch):
    """Put something in torch.compile's place, for layers that were not compiled before."""

    def put(compile_layer):
        family = FAMILIES["mpnet"]
        anew = replace(
            family,
            project=lambda layer, hidden: family.project(layer, hidden),
            finish=lambda layer, context, hidden: family.finish(layer, context, hidden),
        )
        monkeypatch.setitem(FAMILIES, "mpnet", anew)
        monkeypatch.setattr(torch, "compile", compile_layer)

    return put


def as_it_is(function, **options):
    return function


def a_little_more(function, **options):
    def layer_part(layer, *inputs):
        out = function(layer, *inputs)
        return out * 1.01 if isinstance(out, torch.Tensor) else out

    return layer_part


def cut_gradient(function, **options):
    def layer_part(layer, *inputs):
        out = function(layer, *inputs)
        return out if isinstance(out, torch.Tensor) else (out[0].detach(), *out[1:])

    return layer_part


def unscaled_dropout(function, **options):
    def layer_part(layer, *inputs):
        handles = [
            module.register_forward_hook(lambda module, _, out: out * (1 - module.p) if module.training else out)
            for module in layer.modules()
            if isinstance(module, torch.nn.Dropout)
        ]
        try:
            return function(layer, *inputs)
        finally:
            for handle in handles:
                handle.remove()

    return layer_part


def own_seeds(function, **options):
    seeds = iter(range(10**6))

    def layer_part(layer, *inputs):
        torch.manual_seed(next(seeds))
        return function(layer, *inputs)

    return layer_part


@pytest.mark.slow
@pytest.mark.skipif(DEVICE.type == "cuda", reason="stand-ins for what a GPU compiles")
@pytest.mark.parametrize("lora", [True, False], ids=["lora", "all weights"])
def test_layers_that_are_right_pass(short_encoder, compiled_as, lora):
    encoder = short_encoder("mpnet")
    if lora:
        add_lora(encoder, LoraConfig())
    compiled_as(as_it_is)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    encoder.eval()
    fault, seconds = layers_fault(encoder, nullcontext, torch.float32)
    assert fault is None and seconds >= 0
    assert torch.equal(torch.get_rng_state(), before) and not encoder.training
    assert all(parameter.grad is None for parameter in encoder.parameters())
    assert any(module.p for module in encoder.modules() if isinstance(module, torch.nn.Dropout))


@pytest.mark.slow
@pytest.mark.skipif(DEVICE.type == "cuda", reason="stand-ins for what a GPU compiles")
@pytest.mark.parametrize(
    ("compile_layer", "copies", "words"),
    [
        (a_little_more, 8, "the mean embedding is off by"),
        (cut_gradient, 8, "is missing"),
        (unscaled_dropout, self_check.COPIES, "two draws of dropout differ"),
        (own_seeds, 8, "a second pass from the same random state"),
    ],
)
def test_layers_that_are_wrong_are_named(short_encoder, compiled_as, compile_layer, copies, words, monkeypatch):
    encoder = short_encoder("mpnet")
    add_lora(encoder, LoraConfig())
    monkeypatch.setattr(self_check, "COPIES", copies)
    compiled_as(compile_layer)
    fault, _ = layers_fault(encoder, nullcontext, torch.float32)
    assert fault is not None and words in fault


def test_what_a_compiler_raises_arrives(short_encoder, compiled_as, monkeypatch):
    def compile_layer(function, **options):
        def layer_part(*inputs):
            raise RuntimeError("no C compiler\nand advice")

        return layer_part

    monkeypatch.setattr(self_check, "COPIES", 2)
    compiled_as(compile_layer)
    encoder = short_encoder("mpnet")
    with pytest.raises(RuntimeError, match="no C compiler"):
        layers_fault(encoder, nullcontext, torch.float32)
    assert any(module.p for module in encoder.modules() if isinstance(module, torch.nn.Dropout))  # put back


# ---- the update


def test_the_fused_update_passes_over_what_it_should():
    before = torch.get_rng_state()
    assert update_fault(DEVICE) is None
    assert torch.equal(torch.get_rng_state(), before)


def test_an_update_that_ignores_found_inf_is_named(monkeypatch):
    step = torch.optim.AdamW.step

    def ignoring(self, *arguments):
        self.found_inf = None
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", ignoring)
    assert "does not pass over" in update_fault(DEVICE)


def test_an_update_that_passes_over_everything_is_named(monkeypatch):
    step = torch.optim.AdamW.step

    def idle(self, *arguments):
        self.found_inf = torch.ones((), device=DEVICE)
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", idle)
    assert "that is finite" in update_fault(DEVICE)
