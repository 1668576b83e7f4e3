"""The GPU's attention kernel, here in Triton's interpreter, beside the attention in groups that the CPU has."""

from __future__ import annotations

from importlib.metadata import version

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
pytestmark = pytest.mark.skipif(
    DEVICE.type == "cpu"
    and tuple(map(int, version("triton").split(".")[:2])) < (3, 7)
    and np.lib.NumpyVersion(np.__version__) >= "2.4.0",
    reason="the interpreter of Triton before 3.7 fails with numpy 2.4",
)
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


def with_gradients(out, inputs, upstream):
    return [out, *torch.autograd.grad(out, inputs, upstream)]


TILES = {  # (tokens owned, tokens walked)
    "a GPU's": {"forward": (64, 32), "key_value": (64, 32), "query": (64, 32)},
    "all unlike": {"forward": (16, 64), "key_value": (32, 16), "query": (64, 16)},
}


@pytest.fixture
def tiles(request, monkeypatch):
    """Each kernel with tiles of its own, or with the usual ones."""
    if request.param == "usual":
        return

    def options(kernel, dtype, head_width, device):
        own, walked = TILES[request.param][kernel]
        return {"own": own, "walked": walked, "num_warps": 4, "num_stages": 1}

    monkeypatch.setattr("trainer.model.attention_kernels.kernel_options", options)


@pytest.mark.parametrize(
    ("tiles", "lengths", "heads", "width", "with_bias"),
    [
        ("usual", [1], 1, 24, True),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("usual", [70, 1, 130, 64, 65], 1, 8, True),
                ("usual", [3, 3, 2, 17, 90, 1], 2, 32, True),
                ("usual", [64, 1, 65], 1, 24, False),
                *((tiles, lengths, 1, 24, True) for tiles in TILES for lengths in ([65], [33, 1, 17])),
                ("all unlike", [17], 2, 24, True),
            )
        ),
    ],
    ids=str,
    indirect=["tiles"],
)
def test_values_and_gradients_are_those_of_the_groups(tiles, lengths, heads, width, with_bias):
    batch, inputs, upstream = problem(lengths, heads, width, seed=sum(lengths), with_bias=with_bias)
    mine = with_gradients(kernel(batch, inputs, heads), inputs, upstream)
    torch.testing.assert_close(mine, with_gradients(grouped(batch, inputs, heads), inputs, upstream), **CLOSE)


def shown_weights(batch, query, key, heads, probability, seed=0):
    """Weights [H, L, L] of one sequence of L tokens after dropout, read off by embedding the identity as values."""
    length = len(query)
    identity = torch.eye(length, **KIND).repeat(1, heads)
    torch.manual_seed(seed)
    shown = flash.packed_attention(query, key, identity, batch.blocks, heads, None, probability)
    return shown.view(length, heads, length).transpose(0, 1)


@pytest.mark.slow
def test_dropout_zeroes_its_share_and_scales_the_rest():
    batch, (query, key, _), _ = problem([90], 2, 90, seed=5, with_bias=False)
    before, after, other = (
        shown_weights(batch, query, key, 2, share, seed) for share, seed in ((0.0, 0), (0.3, 1), (0.3, 2))
    )
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
    assert not torch.equal(kept, other != 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tiles", "length"), [("usual", 70), *((tiles, 40) for tiles in TILES)], indirect=["tiles"], ids=str
)
def test_gradients_under_dropout_are_those_of_the_same_mask(tiles, length):
    """One sequence, beside the plain definition with the very mask that the kernels draw."""
    batch, inputs, upstream = problem([length], 2, length, seed=5, with_bias=False)
    factor = (shown_weights(batch, *inputs[:2], 2, 0.3, seed=7) != 0).to(KIND["dtype"]) / 0.7
    query, key, value = (tensor.view(length, 2, length).transpose(0, 1) for tensor in inputs)
    weights = (query @ key.mT * length**-0.5).softmax(-1) * factor
    theirs = (weights @ value).transpose(0, 1).reshape(length, -1)
    torch.manual_seed(7)  # the same mask
    mine = with_gradients(kernel(batch, inputs, 2, dropout=0.3), inputs, upstream)
    torch.testing.assert_close(mine, with_gradients(theirs, inputs, upstream), **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mpnet", "bert"])
def test_a_model_through_the_kernel_gives_the_same_embeddings_and_gradients(family, tiny_model):
    model = load_encoder(str(tiny_model(family))).model.to(**KIND)
    lengths = np.array([30, 1])
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
