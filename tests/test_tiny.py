"""The tiny encoder: loads as published ones do, is a pure function of its arguments, appears whole or not at all."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from trainer.errors import InputError, StorageError
from trainer.model.families import FAMILIES, without_pooler
from trainer.model.tiny import build_tiny_mpnet

TEXTS = ["VPN drops on srv-417", "the printer, floor 2, is jammed", "café Wi-Fi is slow"]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def load(folder: Path, family: str = "mpnet") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    kind = MODEL_MAPPING[type(AutoConfig.from_pretrained(folder))]
    options = {"output_loading_info": True, "use_safetensors": True} | without_pooler(kind)
    model, told = AutoModel.from_pretrained(folder, **options)
    assert not any(told.values()), told
    return model.eval(), AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_loads_as_its_family_and_embeds_its_longest_sequence(tmp_path: Path, family: str) -> None:
    folder = build_tiny_mpnet(tmp_path / "tiny", TEXTS, family=family, layers=1, hidden=32, heads=2, max_length=24)
    model, tokenizer = load(folder, family)
    assert folder == tmp_path / "tiny"
    assert AutoConfig.from_pretrained(folder).model_type == family
    assert tokenizer.is_fast
    assert tokenizer.model_max_length == 24
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert model.config.vocab_size == len(tokenizer)
    batch = tokenizer(["printer " * 50, "vpn"], padding=True, truncation=True, return_tensors="pt")
    assert batch["input_ids"].shape == (2, 24)
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    assert hidden.shape == (2, 24, 32)
    assert torch.isfinite(hidden).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_does_not_reach_the_embeddings(tmp_path: Path, family: str) -> None:
    model, tokenizer = load(build_tiny_mpnet(tmp_path / "tiny", TEXTS, family=family), family)
    alone = tokenizer("vpn drops", return_tensors="pt")
    padded = tokenizer(["vpn drops", " ".join(TEXTS)], padding=True, return_tensors="pt")
    length = alone["input_ids"].shape[1]
    assert padded["attention_mask"].sum(1)[0] == length < padded["input_ids"].shape[1]
    with torch.no_grad():
        first, second = model(**alone).last_hidden_state[0], model(**padded).last_hidden_state[0, :length]
    torch.testing.assert_close(first, second, rtol=0, atol=1e-5)


def test_special_tokens_of_mpnet_stand_where_the_published_model_has_them(tmp_path: Path) -> None:
    _, tokenizer = load(build_tiny_mpnet(tmp_path / "tiny", TEXTS))
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 3, len(tokenizer) - 1]) == [
        "<s>",
        "<pad>",
        "</s>",
        "<unk>",
        "<mask>",
    ]
    assert (tokenizer.cls_token_id, tokenizer.pad_token_id, tokenizer.sep_token_id) == (0, 1, 2)
    assert (tokenizer.unk_token_id, tokenizer.mask_token_id) == (3, len(tokenizer) - 1)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Printer DROPS", ["printer", "drops"]),
        ("cafe CAFÉ", ["cafe", "cafe"]),
        ("srv-417", ["srv", "-", "4", "##1", "##7"]),
        ("srv-741", ["srv", "-", "7", "##4", "##1"]),  # a number that was not in the texts
        ("pins", ["p", "##i", "##n", "##s"]),  # nor was this word
        ("slow €", ["slow", "<unk>"]),
        ("", []),
    ],
)
def test_tokens_are_lower_case_words_or_characters_in_the_template(
    tmp_path: Path, text: str, tokens: list[str]
) -> None:
    _, tokenizer = load(build_tiny_mpnet(tmp_path / "tiny", TEXTS))
    assert tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"]) == ["<s>", *tokens, "</s>"]


@pytest.mark.parametrize("seed", [0, 5])
def test_same_arguments_same_bytes_whatever_the_order_of_texts(tmp_path: Path, seed: int) -> None:
    shuffled = TEXTS * 2
    random.Random(seed).shuffle(shuffled)
    first = files(build_tiny_mpnet(tmp_path / "first", TEXTS, seed=seed))
    torch.rand(3)
    second = files(build_tiny_mpnet(tmp_path / "second", iter(shuffled), seed=seed))
    assert first == second


def test_the_seed_is_in_the_weights_and_only_there(tmp_path: Path) -> None:
    first = files(build_tiny_mpnet(tmp_path / "first", TEXTS, seed=0))
    second = files(build_tiny_mpnet(tmp_path / "second", TEXTS, seed=1))
    assert {name for name in first if first[name] != second[name]} == {"model.safetensors"}


def test_random_state_is_left_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(123)
    before, python_before = torch.get_rng_state(), random.getstate()
    build_tiny_mpnet(tmp_path / "tiny", TEXTS)
    assert torch.equal(torch.get_rng_state(), before)
    assert random.getstate() == python_before


def test_parents_are_made_and_an_empty_folder_is_filled(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "tiny"
    folder.mkdir(parents=True)
    assert (build_tiny_mpnet(folder, TEXTS) / "model.safetensors").exists()
    assert (build_tiny_mpnet(tmp_path / "other" / "tiny", TEXTS) / "model.safetensors").exists()


def test_a_folder_with_something_in_it_is_refused_and_untouched(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(StorageError, match="name a new folder") as caught:
        build_tiny_mpnet(folder, TEXTS)
    assert str(folder) in str(caught.value)
    assert files(folder) == {"notes.txt": b"mine"}
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_a_build_that_fails_half_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainer.model.tiny.PreTrainedTokenizerFast.save_pretrained", fail)
    with pytest.raises(StorageError, match="No space left on device"):
        build_tiny_mpnet(tmp_path / "tiny", TEXTS)
    assert list(tmp_path.iterdir()) == []


def test_unknown_family_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="family is 'gpt2'; use one of bert, roberta, xlm-roberta, mpnet, distilbert"):
        build_tiny_mpnet(tmp_path / "tiny", TEXTS, family="gpt2")
    assert list(tmp_path.iterdir()) == []
