"""The GPU's attention kernel, here in Triton's interpreter, beside the attention in groups that the CPU has."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="needs the package triton (extra `test`, on Linux)")

from trainer.model import attention_triton as flash
from trainer.model import packing as packed
from trainer.model.attention import choose_attention
from trainer.model.forward import packed_hidden_states
from trainer.model.loading import load_encoder
from trainer.system.transfer import to_device

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
REACH = 140
# What a GPU does in fp32 and the interpreter in float64.
KIND = {"dtype": torch.float32 if DEVICE.type == "cuda" else torch.float64, "device": DEVICE}
CLOSE = {"rtol": 1e-4, "atol": 1e-4} if DEVICE.type == "cuda" else {"rtol": 1e-10, "atol": 1e-10}


def problem(lengths, heads, width, seed, with_bias=True):
    """(batch, query, key, value, table by distance, the same as a full bias, gradient of the output)."""
    torch.manual_seed(seed)
    lengths = np.array(lengths)
    batch = to_device(packed.pack(np.arange(lengths.sum()), lengths), DEVICE)
    query, key, value, upstream = torch.randn(4, lengths.sum(), heads * width, **KIND).unbind()
    table = torch.randn(heads, 2 * REACH - 1, **KIND) if with_bias else None
    inputs = [tensor.requires_grad_() for tensor in (query, key, value, table) if tensor is not None]
    return batch, inputs, upstream


def grouped(batch, inputs, heads):
    """The same in groups; autograd gives the gradients."""
    bias = None
    if len(inputs) == 4:
        places = torch.arange(REACH, device=DEVICE)
        bias = inputs[3][:, places[None, :] - places[:, None] + REACH - 1][None]
    return choose_attention(batch, bias, heads, 0.0)(*inputs[:3])


def kernel(batch, inputs, heads, dropout=0.0):
    return flash.packed_attention(*inputs[:3], batch.blocks, heads, inputs[3] if len(inputs) == 4 else None, dropout)


MIXED = [3, 3, 2, 17, 90, 1]
LONG = ([70, 1, 130, 64, 65], 1, 8, True)


@pytest.mark.parametrize(
    ("lengths", "heads", "width", "with_bias"),
    [
        ([1], 1, 24, True),
        *(
            pytest.param(*problem, marks=pytest.mark.slow)
            for problem in (
                ([1], 1, 24, False),
                *((lengths, 1, 24, bias) for lengths in ([64], [65], MIXED) for bias in (True, False)),
                (MIXED, 2, 32, True),
                LONG,
            )
        ),
    ],
    ids=str,
)
def test_values_and_gradients_are_those_of_the_groups(lengths, heads, width, with_bias):
    batch, inputs, upstream = problem(lengths, heads, width, seed=sum(lengths), with_bias=with_bias)
    mine, theirs = kernel(batch, inputs, heads), grouped(batch, inputs, heads)
    torch.testing.assert_close(mine, theirs, **CLOSE)
    for got, expected in zip(
        torch.autograd.grad(mine, inputs, upstream), torch.autograd.grad(theirs, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(got, expected, **CLOSE)


def dropped_weights(length, heads, probability, seed):
    """Weights [H, L, L] of one sequence before and after dropout, read off by embedding the identity as values."""
    batch, (query, key, _), _ = problem([length], heads, length, seed=5, with_bias=False)
    identity = torch.eye(length, **KIND).repeat(1, heads)
    torch.manual_seed(seed)
    after = flash.packed_attention(query, key, identity, batch.blocks, heads, None, probability)
    before = flash.packed_attention(query, key, identity, batch.blocks, heads)
    return (batch, query, key), *(x.view(length, heads, length).transpose(0, 1) for x in (before, after))


TILES = {
    "a GPU's": {"forward": (64, 32), "key_value": (64, 32), "query": (64, 32)},
    "all unlike": {"forward": (16, 64), "key_value": (32, 16), "query": (64, 16)},
}


@pytest.fixture(params=TILES)
def tiles(request, monkeypatch):
    """Each kernel with tiles of its own, (tokens owned, tokens walked)."""
    chosen = TILES[request.param]

    def options(kernel, dtype, head_width, device):
        own, walked = chosen[kernel]
        return {"own": own, "walked": walked, "num_warps": 4, "num_stages": 1}

    monkeypatch.setattr("trainer.model.attention_kernels.kernel_options", options)


@pytest.mark.slow
@pytest.mark.parametrize("lengths", [[65], [33, 1, 17]], ids=str)
def test_any_tiles_give_the_same(lengths, tiles):
    test_values_and_gradients_are_those_of_the_groups(lengths, 2, 24, True)


@pytest.mark.slow
def test_dropout_does_not_depend_on_the_tiles(tiles):
    check_gradients_under_dropout(40)


@pytest.mark.slow
def test_dropout_zeroes_its_share_and_scales_the_rest():
    _, before, after = dropped_weights(90, 2, 0.3, seed=1)
    kept = after != 0
    torch.testing.assert_close(after[kept], before[kept] / 0.7, **CLOSE)
    share, count = kept.double().mean().item(), kept.numel()
    assert abs(share - 0.7) < 5 * (0.21 / count) ** 0.5
    assert not torch.equal(kept[0], kept[1])  # heads draw their own
    assert not torch.equal(kept[0], kept[0].T)
    # Numbers drawn together, 8 apart, are independent: as often alike as chance has it.
    for near, far in ((kept[:, :-8], kept[:, 8:]), (kept[:, :, :-8], kept[:, :, 8:])):
        alike = (near == far).double().mean().item()
        assert abs(alike - 0.58) < 5 * (0.58 * 0.42 / near.numel()) ** 0.5
    _, _, other = dropped_weights(90, 2, 0.3, seed=2)
    assert not torch.equal(kept, other != 0)


@pytest.mark.slow
def test_gradients_under_dropout_are_those_of_the_same_mask():
    check_gradients_under_dropout(70)


def check_gradients_under_dropout(length, heads=2):
    """One sequence through the kernels beside the plain definition with the very mask that they draw."""
    (batch, query, key), _, after = dropped_weights(length, heads, 0.3, seed=7)
    factor = (after != 0).to(KIND["dtype"]) / 0.7
    value, upstream = torch.randn(2, length, heads * length, **KIND).unbind()
    inputs = [query, key, value.requires_grad_()]
    torch.manual_seed(7)  # the same mask
    mine = kernel(batch, inputs, heads, dropout=0.3)

    def split(x):
        return x.view(length, heads, -1).transpose(0, 1)

    scores = split(query) @ split(key).mT * length**-0.5
    theirs = ((scores.softmax(-1) * factor) @ split(value)).transpose(0, 1).reshape(length, -1)
    torch.testing.assert_close(mine, theirs, **CLOSE)
    for got, expected in zip(
        torch.autograd.grad(mine, inputs, upstream), torch.autograd.grad(theirs, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(got, expected, **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mpnet", "bert"])
def test_a_model_through_the_kernel_gives_the_same_embeddings_and_gradients(family, tiny_model):
    model = load_encoder(str(tiny_model(family))).model.to(**KIND)
    lengths = np.array([5, 30, 1, 12])
    batch = to_device(packed.pack(np.random.default_rng(0).integers(5, 60, lengths.sum()), lengths), DEVICE)
    found = []
    for way in ("groups", "kernel"):
        model.zero_grad()
        hidden = packed_hidden_states(model, batch, attention=way)
        hidden.square().sum().backward()
        found.append((hidden, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    close = CLOSE if family != "mpnet" else {"rtol": 1e-5, "atol": 1e-5}  # its table is kept in fp32
    torch.testing.assert_close(found[0][0], found[1][0], **close)
    assert found[0][1].keys() == found[1][1].keys()
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, **close, msg=name)
