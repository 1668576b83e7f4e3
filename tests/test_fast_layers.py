"""The faster layers beside those they stand in for."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from torch import nn

from trainer.model import fast_layers as lean
from trainer.model.fast_layers import Dropout, Linear, LoraLinear, make_lean
from trainer.system import processor
from trainer.system.processor import works

pytestmark = pytest.mark.numbers

EPS = {torch.float32: 2.0**-21, torch.bfloat16: 2.0**-8}  # a sum in fp32 that may cancel; rounding to bf16
WAYS = [(fp32, bf16) for fp32 in ("onednn", "torch") for bf16 in ("onednn", "torch", "widened")]


def take(fp32: str, bf16: str = "widened") -> None:
    """Force the ways of both types until the end of the test, or skip it."""
    for way, dtype in ((fp32, torch.float32), (bf16, torch.bfloat16)):
        if not works(way, dtype):
            pytest.skip(f"this processor has no {dtype} product by {way}")
    processor.take_products({"fp32": fp32, "bf16": bf16})


@pytest.fixture(autouse=True)
def ask_again():
    yield
    processor.forget()


@pytest.mark.parametrize("probability", [0.001, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_dropout_zeroes_its_share_and_keeps_the_mean(probability, dtype):
    torch.manual_seed(0)
    x = torch.ones(1001, 333, dtype=dtype)
    dropped = lean.dropout(x, probability)
    kept = (dropped != 0).double()
    spread = (probability * (1 - probability) / kept.numel()) ** 0.5
    assert abs(kept.mean().item() - (1 - probability)) < 5 * spread + 1 / lean.LEVELS
    torch.testing.assert_close(dropped[dropped != 0].double().mean().item(), 1 / (1 - probability), rtol=4e-3, atol=0)
    # Neighbours share a 64-bit number; they must not share a fate.
    flat = kept.flatten() - kept.mean()
    for distance in (1, 2, 3, 4):
        assert abs((flat[distance:] * flat[:-distance]).mean().item()) < 6 * kept.var().item() / kept.numel() ** 0.5


def test_dropout_follows_torchs_random_state_and_its_gradient_its_mask():
    x = torch.randn(5, 7, requires_grad=True)  # not a multiple of 4
    torch.manual_seed(1)
    first = lean.dropout(x, 0.4)
    second = lean.dropout(x, 0.4)
    torch.manual_seed(1)
    assert torch.equal(first, lean.dropout(x, 0.4)) and not torch.equal(first, second)
    (gradient,) = torch.autograd.grad(first.sum(), x)
    torch.testing.assert_close(gradient, first.detach() / x.detach())


def test_dropout_at_its_ends_and_in_evaluation():
    x = torch.randn(8, 8)
    assert torch.equal(lean.dropout(x, 0.0), x) and not lean.dropout(x, 1.0).any()
    assert Dropout(0.5).eval()(x) is x


@pytest.mark.parametrize("trains", ["x", "weight", "bias", "x weight bias", "x bias"])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 1, 1), (37, 24, 56), (130, 64, 16)])
def test_linear_gives_torchs_values_and_gradients(trains, with_bias, shape):
    count, inner, outer = shape
    torch.manual_seed(count)
    slow = nn.Linear(inner, outer, bias=with_bias)
    fast = copy.deepcopy(slow)
    make_lean(fast)
    assert type(fast) is Linear
    x = torch.randn(count, inner, requires_grad="x" in trains)
    upstream = torch.randn(count, outer)
    found = []
    for layer in (slow, fast):
        for name, parameter in layer.named_parameters():
            parameter.requires_grad_(name in trains)
        wanted = [t for t in (x, *layer.parameters()) if t.requires_grad]
        out = layer(x)
        assert out.requires_grad == bool(wanted)
        found.append((out, torch.autograd.grad(out, wanted, upstream) if wanted else ()))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)


def test_linear_keeps_what_it_has_no_fast_path_for():
    layer = Linear(8, 4)
    x = torch.randn(2, 3, 8)
    torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x[0]).dtype == torch.bfloat16
    assert layer.double()(x[0].double()).dtype == torch.float64


@pytest.mark.parametrize("trains", ["x", "weight bias", "x weight bias"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (37, 24, 56), (2, 19, 64, 48)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("ways", WAYS, ids="-".join)
def test_linear_is_the_float64_layer_within_rounding_by_every_way(ways, dtype, shape, trains):
    take(*ways)
    *rows, inner, outer = shape
    fast = nn.Linear(inner, outer)
    make_lean(fast)
    fast.weight.requires_grad_("weight" in trains), fast.bias.requires_grad_("bias" in trains)
    x = torch.randn(*rows, inner, requires_grad="x" in trains)
    upstream = torch.randn(*rows, outer).to(dtype)
    exact = copy.deepcopy(fast).double()
    with torch.no_grad():
        for parameter in exact.parameters():
            parameter.copy_(parameter.to(dtype))
    exact_x = x.detach().to(dtype).double().requires_grad_("x" in trains)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        out = fast(x)
    assert out.dtype == dtype
    expected = nn.functional.linear(exact_x, exact.weight, exact.bias)
    pairs = [(x, exact_x), (fast.weight, exact.weight), (fast.bias, exact.bias)]
    wanted = [pair for pair in pairs if pair[0].requires_grad]
    out.backward(upstream)
    expected.backward(upstream.double())
    for name, found, right in [("out", out, expected), *((str(i), a.grad, b.grad) for i, (a, b) in enumerate(wanted))]:
        error = (found.double() - right).abs().max() / right.abs().max().clamp(min=1)
        assert error <= 8 * EPS[dtype], (name, error)


@pytest.mark.parametrize("trains", ["x", "x weight bias"])
def test_linear_under_autocast_gives_torchs_values_and_gradients(trains):
    torch.manual_seed(0)
    slow = nn.Linear(64, 48)
    fast = copy.deepcopy(slow)
    make_lean(fast)
    x = torch.randn(37, 64, requires_grad=True)
    upstream = torch.randn(37, 48, dtype=torch.bfloat16)
    found = []
    for layer in (slow, fast):
        layer.requires_grad_("weight" in trains)
        wanted = [t for t in (x, *layer.parameters()) if t.requires_grad]
        with torch.autocast("cpu", torch.bfloat16):
            out = layer(x)
        found.append((out, torch.autograd.grad(out, wanted, upstream)))
    assert found[1][0].dtype == torch.bfloat16
    # Both round sums of up to 64 products to 8 bits; in which order they add is theirs.
    torch.testing.assert_close(found[0], found[1], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("way", ["forward", "backward"])
def test_the_fast_product_is_really_taken(monkeypatch, way):
    """Negative control: with a wrong product in its place, values and gradients change."""
    take("onednn")
    layer, x = Linear(8, 4).requires_grad_(False), torch.randn(5, 8, requires_grad=True)
    right = layer(x), torch.autograd.grad(layer(x).sum(), x)[0]
    setattr(lean.packed_weights[layer.weight], way, 2 * getattr(lean.packed_weights[layer.weight], way).to_dense())
    wrong = layer(x) - layer.bias, torch.autograd.grad(layer(x).sum(), x)[0]
    expected = 2 * (right[0] - layer.bias) if way == "forward" else 2 * right[1]
    torch.testing.assert_close(wrong[way == "backward"], expected)


def _write_in_place(layer):
    with torch.no_grad():
        layer.weight.mul_(3)


def _write_elsewhere(layer):
    layer.weight.data = layer.weight.data * 3


def _load(layer):
    layer.load_state_dict({name: value * 3 for name, value in layer.state_dict().items()})


@pytest.mark.parametrize("change", [_write_in_place, _write_elsewhere, _load])
def test_a_packed_weight_is_packed_anew_when_it_changes(change, monkeypatch):
    take("onednn")
    layer, x = Linear(8, 4, bias=False).requires_grad_(False), torch.randn(5, 8, requires_grad=True)
    before = layer(x), torch.autograd.grad(layer(x).sum(), x)[0]
    change(layer)
    torch.testing.assert_close((layer(x), torch.autograd.grad(layer(x).sum(), x)[0]), (3 * before[0], 3 * before[1]))
    monkeypatch.setattr(lean.PackedWeight, "holds", lambda *a: True)  # negative control
    change(layer)
    torch.testing.assert_close(layer(x), 3 * before[0])


def test_a_weight_is_packed_anew_when_another_way_is_taken():
    layer, x = Linear(8, 4, bias=False).requires_grad_(False), torch.randn(5, 8)
    take("onednn")
    before = layer(x)
    take("torch")
    torch.testing.assert_close(layer(x), before)  # torch takes no packed weight
    with torch.autocast("cpu", torch.bfloat16):
        rounded = layer(x)
        take("onednn")
        torch.testing.assert_close(layer(x), rounded, rtol=2e-2, atol=2e-2)


def test_a_packed_weight_is_packed_once_and_goes_with_its_weight():
    take("onednn")
    layer, x = Linear(8, 4).requires_grad_(False), torch.randn(5, 8)
    layer(x)
    first, count = lean.packed_weights[layer.weight], len(lean.packed_weights)
    layer(x)
    assert lean.packed_weights[layer.weight] is first
    with torch.autocast("cpu", torch.bfloat16):
        layer(x)
    assert lean.packed_weights[layer.weight].dtype == torch.bfloat16
    del layer, first
    assert len(lean.packed_weights) == count - 1
    trained = Linear(8, 4)
    trained(x)
    assert trained.weight not in lean.packed_weights


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense, self.drop = nn.Linear(24, 24), nn.Dropout(0.3)

    def forward(self, x):
        return self.drop(torch.relu(self.dense(x)))


def adapted(dropout=0.0, dtype=torch.float64, **options):
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, lora_alpha=6, lora_dropout=dropout, target_modules=["dense"], **options)
    model = peft.get_peft_model(Block(), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return model.to(dtype).eval()


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"use_dora": True}])
@pytest.mark.parametrize("shape", [(9, 24), (2, 5, 24)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_lora_gives_pefts_values_and_gradients(options, shape, dtype):
    slow, fast = adapted(dtype=dtype, **options), adapted(dtype=dtype, **options)
    make_lean(fast)
    assert isinstance(fast.base_model.model.dense, LoraLinear)
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    upstream = torch.randn(shape, dtype=dtype)
    close = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-5}
    found = [
        (model(x), torch.autograd.grad(model(x), [x, *filter(lambda p: p.requires_grad, model.parameters())], upstream))
        for model in (slow, fast)
    ]
    torch.testing.assert_close(found[0], found[1], **close)
    with fast.disable_adapter(), slow.disable_adapter():
        torch.testing.assert_close(fast(x), slow(x), **close)
    torch.testing.assert_close(fast.merge_and_unload()(x), slow.merge_and_unload()(x), **close)


@pytest.mark.parametrize("forgets", [True, False])
def test_merging_and_unmerging_in_place_reach_the_packed_weight(forgets, monkeypatch):
    take("onednn")
    if not forgets:  # negative control: PEFT's own write is one that nothing notices
        monkeypatch.delattr(LoraLinear, "merge")
    model = adapted(dtype=torch.float32)
    make_lean(model)
    x = torch.randn(9, 24)
    with torch.no_grad():
        adapted_values = model(x)
        layer = model.base_model.model.dense
        layer.merge()
        assert torch.allclose(model(x), adapted_values, atol=1e-5) == forgets
        layer.unmerge()
        torch.testing.assert_close(model(x), adapted_values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("ways", WAYS, ids="-".join)
def test_lora_is_the_float64_layer_within_rounding_by_every_way(ways, dtype):
    """In bf16 packing raised on processors without AVX-512, and training by LoRA ended there."""
    take(*ways)
    fast = adapted(dtype=torch.float32)
    exact = copy.deepcopy(fast).double()
    make_lean(fast)
    x = torch.randn(9, 24, requires_grad=True)
    exact_x = x.detach().double().requires_grad_()
    upstream = torch.randn(9, 24)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        out = fast(x)
    out.backward(upstream.to(out.dtype))
    exact(exact_x).backward(upstream.double())
    gradients = {name: parameter.grad for name, parameter in exact.named_parameters() if parameter.grad is not None}
    assert len(gradients) == 2
    pairs = [(x.grad, exact_x.grad), *((p.grad, gradients[n]) for n, p in fast.named_parameters() if n in gradients)]
    for found, right in [(out, exact(exact_x)), *pairs]:
        # Inputs, weights and the low-rank factor are rounded, and so are what they give.
        assert (found.double() - right).abs().max() <= 16 * EPS[dtype] * right.abs().max().clamp(min=1)


def test_lora_adds_in_place_to_no_view():
    """Of a view, autograd would copy the whole gradient in every backward."""
    model = adapted(dtype=torch.float32)
    make_lean(model)
    out = model.base_model.model.dense(torch.randn(9, 24, requires_grad=True))
    before = [function for function, _ in out.grad_fn.next_functions]
    assert "CopySlices" not in {type(function).__name__ for function in (out.grad_fn, *before)}


def test_lora_applies_its_dropout():
    model = adapted(dropout=0.5)
    make_lean(model)
    x = torch.randn(9, 24, dtype=torch.float64)
    still = model(x)
    model.base_model.model.dense.train()
    assert not torch.allclose(model(x), still)


def test_a_state_dict_does_not_notice():
    slow, fast = adapted(), adapted()
    make_lean(fast)
    assert list(slow.state_dict()) == list(fast.state_dict())
    assert [type(m) for m in fast.modules() if type(m) in lean.LEAN] == []
