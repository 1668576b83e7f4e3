"""Chunked batches give the gradient of the whole, dropout and all."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from transformers import MPNetConfig, MPNetModel

from trainer.config import LossConfig
from trainer.data.batch_layout import LayoutBuilder
from trainer.data.pairs import pairs_from_columns, positives_of
from trainer.loss.objective import batch_loss
from trainer.model.forward import packed_hidden_states, pool
from trainer.model.tokens import TokenTable
from trainer.training.gradcache import backward_in_chunks

pytestmark = pytest.mark.numbers

ROWS = 8


@pytest.fixture(scope="module")
def batch():
    """A batch of labelled pairs with hard negatives: (tokens of its texts, its layout)."""
    rng = np.random.default_rng(0)
    columns = {
        "texts1": [f"anchor {i // 2}" for i in range(ROWS)],
        "texts2": [f"text {i}" for i in range(ROWS)],
        "labels": [1, 0] * (ROWS // 2),
    }
    pairs = pairs_from_columns(columns, "pairs")
    lengths = rng.integers(1, 30, len(pairs.texts))
    tokens = TokenTable(rng.integers(5, 60, lengths.sum()).astype(np.int32), np.concatenate([[0], np.cumsum(lengths)]))
    return tokens, LayoutBuilder(pairs, positives_of(pairs), rank=0, all_pairs=True).build([np.arange(ROWS)])


def model_with_dropout(probability):
    torch.manual_seed(1)
    config = MPNetConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=40,
        hidden_dropout_prob=probability,
        attention_probs_dropout_prob=probability,
    )
    return MPNetModel(config, add_pooling_layer=False).double().train()


LOSS = LossConfig(dims=(32, 8), pair_weight=0.5)


def gradients(model, batch, budget, seed=3):
    """Loss and gradients of one step cut into chunks of at most `budget` tokens."""
    tokens, layout = batch
    own = layout.texts[0]
    positions = tokens.chunks(own, budget)
    model.zero_grad()
    torch.manual_seed(seed)
    loss = backward_in_chunks(
        encode=lambda b: pool(packed_hidden_states(model, b), b, "mean"),
        chunks=[tokens.batch(own[where]) for where in positions],
        positions=[torch.from_numpy(where) for where in positions],
        loss_of=lambda rows: batch_loss(LOSS, rows, layout),
        backward=torch.Tensor.backward,
        autocast=nullcontext,
    )
    return loss.total.item(), {n: p.grad.clone() for n, p in model.named_parameters()}, len(positions)


def assert_equal(mine, theirs):
    for name in theirs:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.parametrize("budget", [1, 40, 75])
def test_chunks_equal_the_whole_without_dropout(batch, budget):
    model = model_with_dropout(0.0)
    loss, whole, one = gradients(model, batch, 0)
    cut_loss, cut, many = gradients(model, batch, budget)
    assert one == 1 and many > 1 and cut_loss == pytest.approx(loss, abs=1e-12)
    assert_equal(cut, whole)


def slow_gradients(model, batch, budget, seed=3):
    """The obvious version under dropout: all chunks with one graph, in the order in which they draw their masks."""
    tokens, layout = batch
    own = layout.texts[0]
    positions = tokens.chunks(own, budget)
    model.zero_grad()
    torch.manual_seed(seed)
    rows = torch.cat(
        [pool(packed_hidden_states(model, b), b, "mean") for b in (tokens.batch(own[w]) for w in positions)]
    )
    whole = torch.empty_like(rows).index_copy(0, torch.as_tensor(np.concatenate(positions)), rows)
    loss = batch_loss(LOSS, whole, layout).total
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize("budget", [1, 40])
def test_chunks_equal_the_whole_with_dropout(batch, budget):
    model = model_with_dropout(0.2)
    loss, cut, _ = gradients(model, batch, budget)
    slow_loss, slow = slow_gradients(model, batch, budget)
    assert loss == pytest.approx(slow_loss, abs=1e-12)
    assert_equal(cut, slow)


def test_a_replay_with_other_dropout_is_noticed(batch, monkeypatch):
    """Negative control: without the random states put back the gradient is wrong."""
    model = model_with_dropout(0.2)
    _, slow = slow_gradients(model, batch, 40)
    monkeypatch.setattr(torch, "set_rng_state", lambda state: None)
    _, broken, _ = gradients(model, batch, 40)
    with pytest.raises(AssertionError):
        assert_equal(broken, slow)


def test_the_random_state_moves_on_as_if_embedded_once(batch):
    model = model_with_dropout(0.2)
    gradients(copy.deepcopy(model), batch, 40)
    after = torch.rand(3)
    slow_gradients(model, batch, 40)
    assert torch.equal(after, torch.rand(3))
