"""The packed forward against Hugging Face's own padded one."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModel

from trainer.model import forward
from trainer.model import packing as packed
from trainer.model.families import FAMILIES
from trainer.model.fast_layers import make_lean
from trainer.model.forward import packed_hidden_states, padded_hidden_states, pool
from trainer.model.packing import pack

pytestmark = pytest.mark.numbers

LONGEST = 37
WORDS = 90


def build(family: str, **changes):
    """A small random model with weights spread wide enough that every path matters."""
    names = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    if family == "distilbert":
        names = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "pad_token_id": 0}
    else:
        names |= {"intermediate_size": 64, "pad_token_id": 1 if FAMILIES[family].position_offset else 0}
    config = AutoConfig.for_model(family, vocab_size=WORDS + 5, max_position_embeddings=LONGEST + 2, **names, **changes)
    torch.manual_seed(7)
    model = AutoModel.from_config(config, **({} if family == "distilbert" else {"add_pooling_layer": False}))
    for name, parameter in model.named_parameters():
        if "LayerNorm" not in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def sequences(lengths, seed=0):
    lengths = np.asarray(lengths)
    return np.random.default_rng(seed).integers(5, 5 + WORDS, lengths.sum()), lengths


def outputs_and_gradients(model, forward, ids, lengths, pooling="mean"):
    model.zero_grad()
    batch = pack(ids, lengths)
    embeddings = pool(forward(model, batch), batch, pooling)
    mixing = torch.linspace(-1, 1, embeddings.numel(), dtype=embeddings.dtype).view_as(embeddings)
    (embeddings * mixing).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return embeddings.detach(), gradients


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_padded_forward_in_float64(family, pooling, monkeypatch):
    monkeypatch.setattr(forward, "ROWS", 50)  # the layers' second half in several parts
    model = build(family).double().eval()
    rng = np.random.default_rng(len(family))
    ids, lengths = sequences([1, LONGEST, *rng.integers(1, LONGEST + 1, 20)])
    mine, my_gradients = outputs_and_gradients(model, packed_hidden_states, ids, lengths, pooling)
    theirs, their_gradients = outputs_and_gradients(model, padded_hidden_states, ids, lengths, pooling)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)
    assert my_gradients.keys() == their_gradients.keys()
    for name, gradient in my_gradients.items():
        torch.testing.assert_close(gradient, their_gradients[name], rtol=1e-10, atol=1e-10, msg=name)
    if family == "mpnet":
        assert my_gradients["encoder.relative_attention_bias.weight"].abs().max() > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_padded_forward_in_fp32(family):
    """With the faster layers on our side, as a run has them, beside the model as it comes."""
    model = build(family).eval()
    lean = copy.deepcopy(model)
    make_lean(lean)
    ids, lengths = sequences(np.random.default_rng(3).integers(1, LONGEST + 1, 30))
    mine, my_gradients = outputs_and_gradients(lean, packed_hidden_states, ids, lengths)
    theirs, their_gradients = outputs_and_gradients(model, padded_hidden_states, ids, lengths)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)
    assert my_gradients.keys() == their_gradients.keys()
    for name, gradient in my_gradients.items():
        # Sums of many terms in another order: as close as fp32 is at the size of the largest.
        allowed = 1e-5 * max(1.0, their_gradients[name].abs().max().item())
        torch.testing.assert_close(gradient, their_gradients[name], rtol=0, atol=allowed, msg=name)


MODEL = build("mpnet").double().eval()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, LONGEST), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_permuting_a_batch_permutes_its_embeddings(lengths, random):
    ids, lengths = sequences(lengths)
    order = list(range(len(lengths)))
    random.shuffle(order)
    ends = np.cumsum(lengths)
    shuffled = np.concatenate([ids[ends[i] - lengths[i] : ends[i]] for i in order])
    with torch.no_grad():
        batch = pack(ids, lengths)
        straight = pool(packed_hidden_states(MODEL, batch), batch, "mean")
        batch = pack(shuffled, lengths[order])
        permuted = pool(packed_hidden_states(MODEL, batch), batch, "mean")
    torch.testing.assert_close(permuted, straight[order], rtol=0, atol=1e-10)


def test_no_sequence_sees_another(monkeypatch):
    ids, lengths = sequences([9, 8, 3, 30])
    changed = ids.copy()
    changed[:9] = (changed[:9] - 5 + 1) % WORDS + 5  # the first sequence only

    def embeddings(tokens):
        with torch.no_grad():
            batch = pack(tokens, lengths)
            return pool(packed_hidden_states(MODEL, batch), batch, "mean")

    assert torch.equal(embeddings(ids)[1:], embeddings(changed)[1:])
    assert not torch.equal(embeddings(ids)[0], embeddings(changed)[0])
    # Negative control: with the padding of a group unmasked, neighbours of other lengths do change the result.
    honest = embeddings(ids)
    whole = pack
    monkeypatch.setattr(packed, "group_by_length", lambda lengths: [])

    def unmasked(tokens):
        batch = whole(tokens, lengths)
        group = packed.Group(0, len(tokens), 1, len(tokens))
        return packed.TokenBatch(**{**batch.__dict__, "groups": (group,), "max_length": len(tokens)})

    with torch.no_grad():
        batch = unmasked(ids)
        leaking = pool(packed_hidden_states(MODEL, batch), batch, "mean")
    assert (leaking - honest).abs().max() > 1e-6


DRAWS = 300


@pytest.mark.slow
def test_dropout_has_the_distribution_of_the_padded_path():
    """Same mean and spread of the embeddings over many draws, hidden and attention dropout on."""
    model = build("bert", hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3).double().train()
    ids, lengths = sequences([1, 2, 11, 12])
    batch = pack(ids, lengths)
    torch.manual_seed(0)
    with torch.no_grad():
        draws = {
            forward: torch.stack([pool(forward(model, batch), batch, "mean") for _ in range(DRAWS)])
            for forward in (packed_hidden_states, padded_hidden_states)
        }
    mine, theirs = draws[packed_hidden_states], draws[padded_hidden_states]
    standard_error = ((mine.var(0) + theirs.var(0)) / DRAWS).sqrt()
    z_scores = (mine.mean(0) - theirs.mean(0)) / standard_error
    assert z_scores.abs().max() < 5 and 0.7 < z_scores.square().mean() < 1.4
    assert 0.9 < (mine.std(0) / theirs.std(0)).mean() < 1.1
    # Attention dropout alone must show, too: it is the part that packing owns.
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    with torch.no_grad():
        a, b = (packed_hidden_states(model, batch) for _ in range(2))
    assert not torch.equal(a, b)


def test_groups_cover_the_run_in_order_within_the_tolerance():
    _, lengths = sequences(np.random.default_rng(5).integers(1, 200, 300))
    batch = pack(np.zeros(lengths.sum(), dtype=np.int64), lengths)
    assert [g.start for g in batch.groups] == [0, *(g.stop for g in batch.groups[:-1])]
    assert batch.groups[-1].stop == batch.token_count and sum(g.count for g in batch.groups) == len(lengths)
    slots = sum(g.count * g.length for g in batch.groups)
    assert batch.token_count <= slots <= batch.token_count / packed.GROUP_TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_a_padding_token_that_a_text_spells_out_is_treated_as_hugging_face_does(family):
    model = build(family).double().eval()
    ids, lengths = sequences([5, 9, 9, 2])
    ids[[1, 7, 8, 20]] = model.config.pad_token_id
    mine, _ = outputs_and_gradients(model, packed_hidden_states, ids, lengths)
    theirs, _ = outputs_and_gradients(model, padded_hidden_states, ids, lengths)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("length", [1, 7, LONGEST])
def test_the_bias_by_position_is_that_of_hugging_face_and_its_buckets_are_made_once(length, monkeypatch):
    model, made = build("mpnet"), []
    bucket_of = model.encoder.relative_position_bucket

    def counted(positions):
        made.append(positions.shape)
        return bucket_of(positions)

    expected = model.encoder.compute_position_bias(torch.empty(1, length, 1))
    monkeypatch.setattr(model.encoder, "relative_position_bucket", counted)
    ids, lengths = sequences([length])
    with torch.inference_mode():  # what it makes first must serve gradients later
        packed_hidden_states(model, pack(ids, lengths))
    assert torch.equal(forward._position_bias(model, length), expected)
    packed_hidden_states(model, pack(ids, lengths)).sum().backward()
    assert len(made) == 1
