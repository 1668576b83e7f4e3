"""`Encoder.encode` against sentence-transformers and one text at a time; a new family is an entry of FAMILIES alone."""

from __future__ import annotations

import doctest
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trainer.errors import InputError
from trainer.model import encoder as encoder_module
from trainer.model import loading, tiny
from trainer.model.encoder import Encoder
from trainer.model.families import FAMILIES
from trainer.model.fast_layers import Linear
from trainer.model.loading import load_encoder
from trainer.model.lora import resolve_targets
from trainer.model.tiny import build_tiny_mpnet
from trainer.system.console import console

WIDTH = 64  # of the tiny models
TEXTS = [
    "vpn drops every hour",
    "",
    "the printer on floor 2 is jammed " * 9,
    "Größe 日本",
    "vpn",
    "mail bounces",
    "vpn",
]


@pytest.fixture(scope="module")
def encoder(tiny_model: Callable[[str], Path]) -> Encoder:
    return load_encoder(str(tiny_model("mpnet")))


@pytest.mark.slow
@pytest.mark.parametrize("dims", [None, 64])
@pytest.mark.parametrize("normalize", [None, True])
def test_it_equals_sentence_transformers(dims: int | None, normalize: bool | None, real_encoder: Path) -> None:
    from sentence_transformers import SentenceTransformer

    peer = SentenceTransformer(str(real_encoder), device="cpu", truncate_dim=dims)
    expected = peer.encode(TEXTS, normalize_embeddings=bool(normalize), show_progress_bar=False)
    ours = load_encoder(str(real_encoder)).encode(TEXTS, dims=dims, normalize=normalize)
    assert ours.dtype == np.float32 and ours.shape == expected.shape
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tokens_per_batch", [1, 40, 8192])
def test_rows_stand_in_the_order_of_the_texts(encoder: Encoder, tokens_per_batch: int) -> None:
    rows = encoder.encode(TEXTS, tokens_per_batch=tokens_per_batch)
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(rows, alone, rtol=0, atol=1e-5)
    assert np.abs(rows[0] - rows[1]).max() > 1e-2  # so that another order would not pass


def test_dims_cut_and_normalize_comes_after_the_cut(encoder: Encoder) -> None:
    rows = encoder.encode(TEXTS)
    np.testing.assert_array_equal(encoder.encode(TEXTS, dims=16), rows[:, :16])
    np.testing.assert_array_equal(encoder.encode(TEXTS, normalize=False), rows)
    expected = rows[:, :16] / np.linalg.norm(rows[:, :16], axis=1, keepdims=True)
    np.testing.assert_allclose(encoder.encode(TEXTS, dims=16, normalize=True), expected, rtol=0, atol=1e-6)


def test_any_iterable_of_strings_will_do_and_none_give_no_rows(encoder: Encoder) -> None:
    rows = encoder.encode(TEXTS)
    for texts in (tuple(TEXTS), np.array(TEXTS), (text for text in TEXTS)):
        np.testing.assert_array_equal(encoder.encode(texts), rows)
    assert encoder.encode([]).shape == (0, WIDTH)
    assert encoder.encode((), dims=16).shape == (0, 16)


def test_nothing_but_the_result_remains(
    tiny_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINER_CACHE", str(tmp_path / "cache"))
    encoder = load_encoder(str(tiny_model("mpnet")))
    expected, state = encoder.encode(TEXTS), torch.get_rng_state()
    encoder.train()  # dropout is on
    with torch.autocast("cpu", torch.bfloat16):  # and is of no concern here
        rows = encoder.encode(TEXTS)
    assert encoder.training and torch.equal(torch.get_rng_state(), state) and not (tmp_path / "cache").exists()
    np.testing.assert_array_equal(rows, expected)


@pytest.mark.parametrize(
    ("texts", "complaint"),
    [
        ("vpn drops", "encode: texts is one string, not a list; write encode([text])"),
        (None, "encode: texts is None, not a list of strings"),
        (["a", float("nan")], "encode: texts[1] is nan, not a string"),
        ([b"a"], "encode: texts[0] is b'a', not a string"),
        (["a", "b", "\ud800"], "encode: texts[2] holds half a surrogate pair, which is no text; take it out"),
    ],
)
def test_what_is_no_list_of_strings_is_refused(encoder: Encoder, texts: Any, complaint: str) -> None:
    with pytest.raises(InputError) as caught:
        encoder.encode(texts)
    assert str(caught.value) == complaint


@pytest.mark.parametrize("dims", [0, -1, WIDTH + 1, 16.0, "16"])
@pytest.mark.parametrize("texts", [["a"], []])
def test_dims_beyond_the_width_are_refused(encoder: Encoder, dims: Any, texts: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        encoder.encode(texts, dims=dims)
    assert str(caught.value) == f"encode: dims = {dims!r}: use a whole number from 1 to {WIDTH}, the model's width"
    with pytest.raises(InputError, match="tokens_per_batch = 0: use 1 or more"):
        encoder.encode(texts, tokens_per_batch=0)


def test_layers_are_replaced_where_the_model_is_loaded(encoder: Encoder, tiny_model: Callable[[str], Path]) -> None:
    from transformers import AutoModel

    assert any(type(module) is Linear for module in encoder.modules())
    plain = AutoModel.from_pretrained(tiny_model("mpnet"), add_pooling_layer=False)
    by_hand = Encoder(plain, encoder.tokenizer, encoder.spec).eval()
    assert not any(type(module) is Linear for module in by_hand.modules())
    np.testing.assert_allclose(by_hand.encode(TEXTS), encoder.encode(TEXTS), rtol=0, atol=1e-5)


def test_a_new_family_is_an_entry_of_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CamemBERT, which is built as RoBERTa is: its tiny model, packing, length, and what LoRA means by "attention"."""
    monkeypatch.setitem(FAMILIES, "camembert", FAMILIES["roberta"])
    folder = build_tiny_mpnet(tmp_path / "tiny", TEXTS, family="camembert")
    with console.capture() as captured:
        encoder = load_encoder(str(folder))
    assert captured.get() == "" and encoder.path.startswith("packed") and encoder.spec.max_length == 128
    assert len(resolve_targets(encoder.model, ("attention",))) == 4 * 2  # projections, layers
    packed = encoder.encode(TEXTS)
    monkeypatch.delitem(FAMILIES, "camembert")
    assert encoder.path == "padded"
    np.testing.assert_allclose(packed, encoder.encode(TEXTS), rtol=0, atol=1e-5)


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for module in (tiny, loading, encoder_module):  # in this order: the first builds the folder that the others load
        failed, attempted = doctest.testmod(module)
        assert attempted and not failed
