"""Exports in others' hands: sentence-transformers makes of them what the trainer does, or there is one line before."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from oracles import LONGEST, WIDTH, Killed, edit_json, kill_before_update, other_model, write_old_layout
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from trainer.config import Config, DataConfig, LoraConfig, LossConfig, ModelConfig
from trainer.data.batch_layout import LayoutBuilder
from trainer.data.incidents import generate_pairs
from trainer.data.pairs import PairTable, pairs_from_columns, positives_of
from trainer.errors import CheckpointError, InputError
from trainer.evaluation.scoring import PairSet, evaluate, pair_cosines
from trainer.evaluation.search_set import SearchedTexts
from trainer.evaluation.thresholds import fit_thresholds
from trainer.main import cli
from trainer.model import export, loading, proof
from trainer.model.embedding import embed, tokenize_sides
from trainer.model.encoder import Encoder, embedding_conditions, weights_fingerprint
from trainer.model.loading import load_encoder
from trainer.model.lora import add_lora, resolve_targets, settled_by_adapter, start_adapters
from trainer.model.tiny import build_tiny_mpnet
from trainer.system.console import console
from trainer.system.files import MANIFEST
from trainer.system.run_files import ADAPTER, METADATA, MODEL
from trainer.training.base_model import load_original, origin_of_run
from trainer.training.model_card import usage
from trainer.training.strength import set_strength

Build = Callable[[str], Path]

TOLERANCE = 5e-6
DIMS = (16, WIDTH)
TEXTS = [
    "the printer on floor 2 is jammed",
    "paper",
    "vpn drops every hour and cannot send mail, it bounces",
    "Screen is BLACK after the update",
    "vpn " * 200,
]
QUERY, PASSAGE = "query: ", "passage: "


def trained(folder: Path, lora: bool = False, **options: Any) -> Encoder:
    """An encoder that has moved away from its folder's weights."""
    encoder = load_encoder(str(folder), **options)
    if lora:
        family = encoder.model.config.model_type
        add_lora(encoder, LoraConfig(rank=4, targets=("q", "v") if family == "t5" else ("attention",)))
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in encoder.trainable().values():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return encoder


def exported(source: Path, run: Path, lora: bool = False, **options: Any) -> Encoder:
    """The trained encoder, exported into a run's folder."""
    encoder = trained(source, lora, **options)
    proof.check_padding(encoder, TEXTS)
    run.mkdir()
    base = load_encoder(str(source), announce=False, **options)
    export.export(encoder, base, run, "# A card\n", TEXTS, dims=DIMS)
    return encoder


def peer_of(folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(folder), device="cpu", local_files_only=True)


def assert_peer_agrees(folder: Path, encoder: Encoder) -> None:
    """Padded batches of both sides, at every dim, at length 1."""
    peer = peer_of(folder)
    for side, encode in (("query", peer.encode_query), ("document", peer.encode_document)):
        for dim in DIMS:
            theirs = encode(TEXTS, normalize_embeddings=True, truncate_dim=dim)
            np.testing.assert_allclose(np.linalg.norm(theirs, axis=1), 1, atol=1e-5)
            ours = encoder.encode(TEXTS, side=side, dims=dim, normalize=True)
            np.testing.assert_allclose(theirs, ours, rtol=0, atol=TOLERANCE)


def without_padding_token(folder: Path) -> Path:
    edit_json(folder / "tokenizer_config.json", pad_token=None)
    return folder


# ---- families


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that draw none."""
    monkeypatch.setattr("trainer.training.finish.write_report", lambda folder, metrics: None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "lora"), [("bert", True), ("mpnet", True), ("distilbert", True), ("t5", True), ("mpnet", False)]
)
def test_model_and_adapter_are_in_others_hands_what_was_trained(
    family: str, lora: bool, tiny_model: Build, tmp_path: Path
) -> None:
    source = other_model("t5", tmp_path / "t5", tiny_model("bert")) if family == "t5" else tiny_model(family)
    encoder = exported(source, tmp_path / "run", lora, max_length=20)
    for folder in (MODEL, ADAPTER)[: 1 + lora]:
        assert_peer_agrees(tmp_path / "run" / folder, encoder)
        assert peer_of(tmp_path / "run" / folder).max_seq_length == 20


@pytest.mark.slow
@pytest.mark.parametrize("family", ["albert", "camembert", "gpt2", "modernbert"])
def test_families_on_the_padded_path_too(family: str, tiny_model: Build, tmp_path: Path) -> None:
    source = other_model(family, tmp_path / "source", tiny_model("bert"))
    assert_peer_agrees(tmp_path / "run" / MODEL, exported(source, tmp_path / "run"))


@pytest.mark.slow
def test_the_real_encoder_exported_with_an_adapter(real_encoder: Path, tmp_path: Path) -> None:
    encoder = exported(real_encoder, tmp_path / "run", lora=True, max_length=64)
    for folder in (MODEL, ADAPTER):
        peer = peer_of(tmp_path / "run" / folder)
        ours = encoder.encode(TEXTS, dims=128, normalize=True)
        theirs = peer.encode(TEXTS, truncate_dim=128, normalize_embeddings=True)
        np.testing.assert_allclose(theirs, ours, rtol=0, atol=TOLERANCE)


def test_an_encoder_decoder_that_is_not_known_by_its_encoder_is_refused(tiny_model: Build, tmp_path: Path) -> None:
    folder = other_model("bart", tmp_path / "bart", tiny_model("bert"))
    with pytest.raises(InputError, match=r"bart is an encoder-decoder model, of which only the T5 kind") as caught:
        load_encoder(str(folder))
    assert "\n" not in str(caught.value)


# ---- padding


def left_padded(folder: Path) -> Path:
    edit_json(folder / "tokenizer_config.json", padding_side="left")
    return folder


@pytest.mark.slow
def test_padding_on_the_left_becomes_padding_on_the_right(tiny_model: Build, tmp_path: Path) -> None:
    source = left_padded(shutil.copytree(tiny_model("bert"), tmp_path / "source"))
    theirs, ours = peer_of(source).encode(TEXTS), load_encoder(str(source)).encode(TEXTS)
    assert np.abs(theirs - ours).max() > 1e-3  # what their library makes of the source
    assert_peer_agrees(tmp_path / "run" / MODEL, exported(source, tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "mpnet", "gpt2"])
def test_a_tokenizer_without_a_padding_token_gets_one_that_changes_no_text(
    family: str, tiny_model: Build, tmp_path: Path
) -> None:
    known = family in ("bert", "mpnet")
    whole = tiny_model(family) if known else other_model(family, tmp_path / "whole", tiny_model("bert"))
    source = without_padding_token(shutil.copytree(whole, tmp_path / "source"))
    with console.capture() as captured:
        encoder = load_encoder(str(source))
    assert "its tokenizer has no padding token; " in captured.get()
    texts = [*TEXTS, "[SEP] </s> <unk> [UNK] [PAD] <pad>"]
    assert [row["input_ids"] for row in map(encoder.tokenizer, TEXTS)] == [
        row["input_ids"] for row in map(AutoTokenizer.from_pretrained(whole), TEXTS)
    ]
    assert encoder.encode(texts).shape == (len(texts), WIDTH)
    assert_peer_agrees(tmp_path / "run" / MODEL, exported(source, tmp_path / "run"))


def test_a_padding_token_without_an_embedding_is_replaced(tiny_model: Build, tmp_path: Path) -> None:
    source = shutil.copytree(tiny_model("bert"), tmp_path / "source")
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.add_special_tokens({"pad_token": "[NEW]"})
    tokenizer.save_pretrained(source)
    encoder = load_encoder(str(source))
    assert encoder.tokenizer.pad_token_id < encoder.model.get_input_embeddings().num_embeddings
    proof.check_padding(encoder, TEXTS)


def test_no_token_that_could_pad_is_refused(tiny_model: Build, tmp_path: Path) -> None:
    source = shutil.copytree(tiny_model("bert"), tmp_path / "source")
    names = [f"{name}_token" for name in ("pad", "eos", "unk", "sep", "cls", "bos", "mask")]
    edit_json(source / "tokenizer_config.json", **dict.fromkeys(names))
    with pytest.raises(InputError, match=r"no padding token, nor another special one that could serve"):
        load_encoder(str(source))


def test_a_padded_batch_that_is_not_the_texts_alone_is_refused_before_training(
    tiny_model: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: without the repair of padding, the check before training ends the run."""
    source = left_padded(shutil.copytree(tiny_model("bert"), tmp_path / "source"))
    monkeypatch.setattr(loading, "make_padding_safe", lambda tokenizer, backbone: "")
    with pytest.raises(InputError, match=r"embeddings of a padded batch differ by .* from those of the same texts"):
        proof.check_padding(load_encoder(str(source)), TEXTS)
    without_padding_token(source)
    with pytest.raises(InputError, match="does not take a padded batch"):
        proof.check_padding(load_encoder(str(source)), TEXTS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (left_padded, r"\(in sentence-transformers\) gives embeddings that differ"),
        (without_padding_token, r"sentence-transformers cannot use it"),
    ],
)
def test_an_export_that_others_read_otherwise_ends_the_run(
    spoil: Callable[[Path], Path],
    complaint: str,
    tiny_model: Build,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Negative control of the proof by sentence-transformers: our own loader repairs what theirs does not."""
    honest = export.save_tokenizer

    def careless(encoder: Encoder, folder: Path) -> None:
        honest(encoder, folder)
        spoil(folder)

    monkeypatch.setattr(export, "save_tokenizer", careless)
    with pytest.raises(CheckpointError, match=complaint) as caught:
        exported(tiny_model("bert"), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / MODEL).exists()


# ---- what a folder's other files say


@pytest.mark.slow
def test_baked_truncation_and_padding_are_neither_followed_nor_exported(tmp_path: Path) -> None:
    """As in the tokenizer.json of all-mpnet-base-v2: cut at 128 tokens and padded to 128, in a model of length 384."""
    source = build_tiny_mpnet(tmp_path / "source", TEXTS, max_length=384)
    values = json.loads((source / "tokenizer.json").read_bytes())
    values["truncation"] = {"direction": "Right", "max_length": 128, "strategy": "LongestFirst", "stride": 0}
    values["padding"] = {"strategy": {"Fixed": 128}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 1}
    values["padding"] |= {"pad_type_id": 0, "pad_token": "<pad>"}
    (source / "tokenizer.json").write_text(json.dumps(values))
    edit_json(source / "sentence_bert_config.json", max_seq_length=384)
    baked = AutoTokenizer.from_pretrained(source).backend_tokenizer
    assert [len(baked.encode(text).ids) for text in TEXTS[-2:]] == [128, 128]  # the trap: what these fields do
    encoder = exported(source, tmp_path / "run")
    for folder in (source, tmp_path / "run" / MODEL):
        read = load_encoder(str(folder))
        tokens = read.tokenize([*TEXTS, "vpn " * 500], ("",), cached=True)
        assert tokens.lengths[[1, 4, 5]].tolist() == [3, 202, 384]
        assert read.tokenizer.pad_token_id not in tokens.ids
    late = ["vpn " * 300 + end for end in ("mail", "paper")]
    assert np.abs(np.subtract(*encoder.encode(late))).max() > 1e-4  # tokens behind the 128th count
    assert np.array_equal(*load_encoder(str(source), max_length=128).encode(late))  # the control: where they are cut
    assert_peer_agrees(tmp_path / "run" / MODEL, encoder)
    theirs = peer_of(tmp_path / "run" / MODEL).encode(late)
    np.testing.assert_allclose(theirs, encoder.encode(late), rtol=0, atol=TOLERANCE)
    saved = json.loads((tmp_path / "run" / MODEL / "tokenizer.json").read_bytes())
    assert saved["truncation"] is None and saved["padding"] is None


@pytest.mark.slow
@pytest.mark.parametrize("file", ["sentence_bert_config.json", "sentence_roberta_config.json"])
def test_length_and_case_under_the_names_of_old_versions(file: str, tiny_model: Build, tmp_path: Path) -> None:
    source = write_old_layout(tiny_model("bert"), tmp_path / "source", max_seq_length=9, do_lower_case=True)
    text = (source / "tokenizer.json").read_text(encoding="utf-8")
    (source / "tokenizer.json").write_text(text.replace('"lowercase": true', '"lowercase": false'))
    (source / "sentence_bert_config.json").rename(source / file)
    ours = load_encoder(str(source))
    assert (ours.spec.max_length, ours.spec.lower_case) == (9, True)
    texts = [*TEXTS, "[SEP] The PRINTER ΟΔΟΣ [CLS]"]
    np.testing.assert_allclose(ours.encode(texts), peer_of(source).encode(texts), rtol=0, atol=TOLERANCE)
    assert_peer_agrees(tmp_path / "run" / MODEL, exported(source, tmp_path / "run", max_length=20))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"query_length": 8}, "query_length of its Transformer module"),
        ({"processing_kwargs": {"text": {"max_length": 4}}}, "processing_kwargs of its Transformer module"),
        ({"transformer_task": "fill-mask"}, "a model for fill-mask"),
    ],
)
def test_settings_that_cannot_be_honoured_are_refused(
    changes: dict[str, Any], complaint: str, tiny_model: Build, tmp_path: Path
) -> None:
    source = write_old_layout(tiny_model("bert"), tmp_path / "source", **changes)
    with pytest.raises(InputError, match=complaint):
        load_encoder(str(source))


def test_normalising_something_else_is_refused(tiny_model: Build, tmp_path: Path) -> None:
    source = write_old_layout(tiny_model("bert"), tmp_path / "source")
    (source / "2_Normalize").mkdir()
    edit_json(source / "2_Normalize" / "config.json", module_input_name="token_embeddings")
    with pytest.raises(InputError, match="normalising something else"):
        load_encoder(str(source))


def test_a_text_of_no_token_is_named(tiny_model: Build, tmp_path: Path) -> None:
    source = other_model("gpt2", tmp_path / "source", tiny_model("bert"))
    values = json.loads((source / "tokenizer.json").read_bytes())
    (source / "tokenizer.json").write_text(json.dumps(values | {"post_processor": None}))
    encoder = load_encoder(str(source))
    with pytest.raises(InputError, match=r"no token comes of the text '\\u200b'; remove it"):
        encoder.encode(["vpn", "\u200b"])


@pytest.mark.slow
@pytest.mark.parametrize("base_has_it", [True, False])
def test_nothing_is_missing_of_an_export(
    base_has_it: bool, tiny_model: Build, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = shutil.copytree(tiny_model("bert"), tmp_path / "source")
    if base_has_it:
        pooler = {"bert.pooler.dense.weight": torch.rand(WIDTH, WIDTH), "bert.pooler.dense.bias": torch.rand(WIDTH)}
        save_file(load_file(source / "model.safetensors") | pooler, source / "model.safetensors", {"format": "pt"})
    exported(source, tmp_path / "run")
    weights = load_file(tmp_path / "run" / MODEL / "model.safetensors")
    assert ("pooler.dense.weight" in weights) is base_has_it
    if base_has_it:
        assert torch.equal(weights["pooler.dense.bias"], pooler["bert.pooler.dense.bias"])
    _, report = AutoModel.from_pretrained(tmp_path / "run" / MODEL, output_loading_info=True)
    assert bool(report["missing_keys"]) is not base_has_it
    peer = peer_of(tmp_path / "run" / MODEL)
    assert (getattr(peer[0].model, "pooler", None) is not None) is base_has_it  # theirs makes up no pooler


# ---- adapters and runs as models


@pytest.mark.slow
def test_an_adapter_folder_is_read_with_its_base(tiny_model: Build, tmp_path: Path) -> None:
    encoder = exported(tiny_model("mpnet"), tmp_path / "run", lora=True, max_length=30, pooling="cls")
    adapter = tmp_path / "run" / ADAPTER
    read = load_encoder(str(adapter))
    assert (read.spec.max_length, read.spec.pooling, read.spec.name) == (30, "cls", str(adapter))
    np.testing.assert_allclose(read.encode(TEXTS), encoder.encode(TEXTS), rtol=0, atol=TOLERANCE)
    assert read.trainable().keys() == load_encoder(str(tmp_path / "run" / MODEL)).trainable().keys() != set()
    # One that says nothing but its base, as PEFT writes it.
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(adapter / name, bare / name)
    plain = load_encoder(str(bare), max_length=30, pooling="cls")
    np.testing.assert_allclose(plain.encode(TEXTS), encoder.encode(TEXTS), rtol=0, atol=TOLERANCE)


@pytest.mark.slow
def test_an_adapter_of_dora_is_read_by_all(tiny_model: Build, tmp_path: Path) -> None:
    """By sentence-transformers, which loads adapters through transformers, and by PEFT."""
    base, adapter = tiny_model("bert"), tmp_path / "adapter"
    encoder = load_encoder(str(base))
    add_lora(encoder, LoraConfig(rank=4, dora=True))
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in encoder.trainable().values():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    export.save_adapter(encoder, adapter, str(base))
    assert_peer_agrees(adapter, encoder)
    read = peft.PeftModel.from_pretrained(AutoModel.from_pretrained(base), adapter)
    trained_weights, read_weights = (peft.get_peft_model_state_dict(model) for model in (encoder.backbone, read))
    assert trained_weights.keys() == read_weights.keys()
    assert all(torch.equal(value, read_weights[name]) for name, value in trained_weights.items())


@pytest.mark.slow
@pytest.mark.usefixtures("no_report")
def test_all_weights_are_trained_on_from_an_adapter_as_from_its_merged_model(tiny_model: Build, tmp_path: Path) -> None:
    """The two differ by the rounding of the merge, which AdamW enlarges."""
    exported(tiny_model("bert"), tmp_path / "first", lora=True)
    pairs, cosines = tmp_path / "pairs.json", []
    pairs.write_text(json.dumps(generate_pairs(48, 0, "train")))
    for kind in (ADAPTER, MODEL):
        data = (f"model.name={tmp_path / 'first' / kind}", f"data.train={pairs}", "data.dev_fraction=0.4")
        train(tmp_path / kind, *data, "lora.enabled=false", "train.precision=fp32")
        assert not (tmp_path / kind / ADAPTER).exists()
        assert_peer_agrees(tmp_path / kind / MODEL, load_encoder(str(tmp_path / kind / MODEL)))
        cosines.append(json.loads((tmp_path / kind / "scores.json").read_text())["final"][str(WIDTH)])
    np.testing.assert_allclose(*cosines, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"peft_type": "LORA"}, "names no base model"),
        ({"peft_type": "LORA", "base_model_name_or_path": "/no/such/base"}, "an adapter without adapter_model"),
        ({"peft_type": "IA3", "base_model_name_or_path": "x"}, "an adapter of kind 'IA3'"),
        (
            {"peft_type": "LORA", "base_model_name_or_path": "x", "megatron_config": {"a": 1}, "megatron_core": "evil"},
            "asks to import a module of its own",
        ),
    ],
)
def test_an_adapter_that_cannot_be_read_is_told_from_a_missing_config(
    config: dict[str, str], complaint: str, tmp_path: Path
) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=complaint):
        load_encoder(str(tmp_path))


def test_the_base_of_an_adapter_that_is_gone_is_named(tmp_path: Path) -> None:
    config = {"peft_type": "LORA", "base_model_name_or_path": "/no/such/base"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "adapter_model.safetensors").touch()
    with pytest.raises(InputError, match=r"holds an adapter whose base cannot be used: .*/no/such/base"):
        load_encoder(str(tmp_path))


@pytest.fixture(scope="module")
def adapter_run(tiny_model: Build, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Encoder]:
    """An exported adapter of rank 4 around BERT's attention, and the encoder it came of; not to be written to."""
    run = tmp_path_factory.mktemp("adapter") / "run"
    return run / ADAPTER, exported(tiny_model("bert"), run, lora=True)


def continued(adapter: Path, **settings: Any) -> tuple[Encoder, Encoder]:
    """The encoder that an adapter's folder is loaded as, and one that goes on from it by lora.*."""
    start, encoder = (load_encoder(str(adapter)) for _ in range(2))
    start_adapters(encoder, settled_by_adapter(LoraConfig(**settings), encoder))
    return start, encoder


@pytest.mark.slow
@pytest.mark.parametrize("way", ["continue", "merge"])
def test_an_adapter_is_trained_on_from_where_it_was(
    way: str, adapter_run: tuple[Path, Encoder], tiny_model: Build, tmp_path: Path
) -> None:
    """At strength 0 to the bit what it was loaded as; what is exported names a base that holds what it is for."""
    start, encoder = continued(adapter_run[0], start=way)
    assert {parameter.shape[0] for name, parameter in encoder.trainable().items() if "lora_A" in name} == {
        4 if way == "continue" else 16
    }
    np.testing.assert_array_equal(proof.merged(encoder).encode(TEXTS), start.encode(TEXTS))
    began = {name: value.detach().clone() for name, value in encoder.trainable().items()}
    drawn = {name: value for name, value in began.items() if way == "continue" or "lora_A" not in name}
    with torch.no_grad():
        for parameter in encoder.trainable().values():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    trained = {name: value.detach().clone() for name, value in encoder.trainable().items()}
    set_strength(encoder.trainable(), drawn, trained, 0.0)
    np.testing.assert_array_equal(proof.merged(encoder).encode(TEXTS), start.encode(TEXTS))
    set_strength(encoder.trainable(), drawn, trained, 0.5)
    export.export(encoder, start, tmp_path, "# A card\n", TEXTS, dims=DIMS)
    base = json.loads((tmp_path / ADAPTER / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert base == str(tiny_model("bert") if way == "continue" else tmp_path / "base")
    assert (tmp_path / "base").exists() is (way == "merge")
    read = load_encoder(str(tmp_path / ADAPTER))
    np.testing.assert_allclose(read.encode(TEXTS), encoder.encode(TEXTS), rtol=0, atol=TOLERANCE)


def test_an_adapter_settles_what_is_not_set_and_refuses_what_is_set_otherwise(
    adapter_run: tuple[Path, Encoder], tmp_path: Path
) -> None:
    adapter, _ = adapter_run
    encoder = load_encoder(str(adapter))
    assert settled_by_adapter(LoraConfig(dropout=0.2), encoder) == LoraConfig(
        rank=4, alpha=32, targets=("attention",), dropout=0.2
    )
    merged_first = LoraConfig(rank=8, alpha=4, targets=("ffn",), start="merge")
    assert settled_by_adapter(merged_first, encoder) == merged_first
    # 16 is what is usual, and yet not what was left open.
    attention = ("targets", ("ffn",), r'\["attention"\]')
    for key, value, has in (("rank", 16, "4"), ("alpha", 16, "32.0"), attention, ("dora", True, "false")):
        shown = rf"lora.{key} = .*: the adapter of model.name = {adapter} has {has}; leave it out, or set lora.start"
        with pytest.raises(InputError, match=shown):
            settled_by_adapter(LoraConfig(**{key: value}), encoder)
    other = shutil.copytree(adapter, tmp_path / ADAPTER)
    edit_json(other / "adapter_config.json", rank_pattern={"query": 4})
    (other / MANIFEST).unlink()
    with pytest.raises(InputError, match="has more than factors of one rank"):
        settled_by_adapter(LoraConfig(), load_encoder(str(other)))
    # With biases (lora_bias), which no step of ours would train.
    biased = shutil.copytree(adapter, tmp_path / "biased")
    weights = load_file(biased / "adapter_model.safetensors")
    factor = next(name for name in weights if name.endswith("lora_B.weight"))
    weights[factor.replace("weight", "bias")] = torch.zeros(len(weights[factor]))
    encoder = load_encoder(str(biased))
    save_file(weights, biased / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"more than factors of one rank \(.*lora_B\.bias\); set lora.start"):
        settled_by_adapter(LoraConfig(), encoder)


def test_an_adapter_that_does_not_fit_its_base_is_refused(
    adapter_run: tuple[Path, Encoder], tiny_model: Build, tmp_path: Path
) -> None:
    """Of another family; and one whose weights PEFT would leave out, with a warning and no effect."""
    other = shutil.copytree(adapter_run[0], tmp_path / ADAPTER)
    (other / MANIFEST).unlink()
    edit_json(other / "adapter_config.json", base_model_name_or_path=str(tiny_model("mpnet")))
    with pytest.raises(InputError, match=r"cannot load the adapter: .*not found in the base model"):
        load_encoder(str(other))
    edit_json(other / "adapter_config.json", base_model_name_or_path=str(tiny_model("bert")))
    assert resolve_targets(load_encoder(str(other)).model, ("attention",))  # the control: its own base
    weights = load_file(other / "adapter_model.safetensors")
    renamed = {name.replace("layer.0", "layer.7"): value for name, value in weights.items()}
    save_file(renamed, other / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"the adapter does not fit its base: 16 weights of one only"):
        load_encoder(str(other))


@pytest.mark.slow
@pytest.mark.usefixtures("no_report")
def test_a_run_that_continues_another_is_compared_with_the_original_too(
    adapter_run: tuple[Path, Encoder], tiny_model: Build, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Killed and resumed, its adapter is that of the undisturbed run."""
    pairs = tmp_path / "pairs.json"
    pairs.write_text(json.dumps(generate_pairs(48, 0, "train")))
    asked = (f"model.name={adapter_run[0]}", f"data.train={pairs}", "data.dev_fraction=0.4", "train.precision=fp32")
    train(tmp_path / "whole", *asked)
    said = capfd.readouterr().err
    assert f"Original of model.name = {adapter_run[0]}: {tiny_model('bert')}" in " ".join(said.split())
    record = json.loads((tmp_path / "whole" / "metrics.json").read_text())["dev"]
    beside = record["original"]
    assert beside["question"]["baseline"] == str(tiny_model("bert")) and beside["final"] == record["final"]
    sentence = next(said for said in record["sentences"] if "beside the original" in said)
    assert sentence.startswith(
        f"{record['verdict']} beside run/adapter, which training began with, and {beside['verdict']}"
    )
    card = (tmp_path / "whole" / MODEL / "README.md").read_text()
    assert sentence in card and "Beside the original, bert, with its figures" in card
    assert sentence in " ".join(said.split()) and "original -> final" in said
    metadata = json.loads((tmp_path / "whole" / METADATA).read_text())
    assert metadata["original"]["name"] == str(tiny_model("bert"))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_before_update(patch, 2)
        train(tmp_path / "killed", *asked)
    train(tmp_path / "killed", *asked, options=("--resume",))
    weights = [load_file(tmp_path / run / ADAPTER / "adapter_model.safetensors") for run in ("whole", "killed")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_the_original_is_what_the_first_run_began_with(
    adapter_run: tuple[Path, Encoder], tiny_model: Build, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Told by the run's metadata, checked by its weights; what cannot be had is a line, or, where named, an error."""
    model = shutil.copytree(adapter_run[0].parent / MODEL, tmp_path / MODEL)
    start, base = load_encoder(str(model)), tiny_model("bert")
    config = Config(data=DataConfig(train="pairs.json"), loss=LossConfig(dims=(64, 16)))

    def original(named: str = "auto", **recorded: str) -> Encoder | None:
        if recorded:
            edit_json(tmp_path / METADATA, model={"name": "x"}, fingerprints={"base_weights": ""}, original=recorded)
        return load_original(replace(config, model=ModelConfig(original=named)), start, announce=True)

    assert original() is None  # nobody knows where it came from
    weights = weights_fingerprint(load_encoder(str(base)))
    for options in ({"name": str(base), "weights": weights}, {"name": str(base)}):
        found = original(**options)
        assert found is not None and weights_fingerprint(found) == weights
    assert origin_of_run(start.spec, "of the start").name == str(base)  # the chain's first, not its last
    assert original("") is None and original(str(model)) is None  # none is wanted; the start itself is no other
    capfd.readouterr()
    assert original(name=str(base), weights="another") is None and original(name=str(tmp_path / "gone")) is None
    said = " ".join(capfd.readouterr().err.split())
    assert "its weights are not what they were" in said and "gone: no such folder" in said
    began = {"model": {"name": "x"}, "fingerprints": {"base_weights": ""}}
    malformed = [{"name": 5}, {"name": None}, {"name": "x", "weights": []}, {"name": ["x"]}, {}, [], 5]
    nameless = began | {"model": {"name": 5}}
    for text in map(json.dumps, ({}, nameless, *(began | {"original": one} for one in (None, *malformed)))):
        (tmp_path / METADATA).write_text(text)
        assert original() is None, text
        assert "does not tell the original" in " ".join(capfd.readouterr().err.split()), text
    with pytest.raises(InputError, match=r"^model.original = .*gone: no such folder"):
        original(str(tmp_path / "gone"))


def test_a_run_is_told_of_its_model(tiny_model: Build, tmp_path: Path) -> None:
    shutil.copytree(tiny_model("bert"), tmp_path / "run" / MODEL)
    with pytest.raises(InputError, match=r"is the folder of a run; its model is .*run/model$"):
        load_encoder(str(tmp_path / "run"))


# ---- what a folder's weights and its cut were


@pytest.mark.slow
@pytest.mark.parametrize(("stored", "lora"), [(torch.float16, True), (torch.bfloat16, False)])
def test_half_weights_are_trained_and_exported_as_float32(
    stored: torch.dtype, lora: bool, tiny_model: Build, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The adapter too makes its base float32, whatever its files hold."""
    base = tmp_path / "half"
    shutil.copytree(tiny_model("bert"), base)
    AutoModel.from_pretrained(base).to(stored).save_pretrained(base)
    encoder = exported(base, tmp_path / "run", lora)
    said = capfd.readouterr().err
    assert f"its weights are {str(stored).removeprefix('torch.')}; they are trained, judged and exported in" in said
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
    for folder in (MODEL, ADAPTER)[: 1 + lora]:
        assert_peer_agrees(tmp_path / "run" / folder, encoder)
    stored_types = {value.dtype for value in load_file(tmp_path / "run" / MODEL / "model.safetensors").values()}
    assert stored_types == {torch.float32}


@pytest.mark.parametrize(("cut", "usual"), [(16, 16), (WIDTH + 1, WIDTH), (None, WIDTH)])
def test_where_a_folder_cuts_embeddings_is_read(cut: int | None, usual: int, prompted: Path) -> None:
    edit_json(prompted / "config_sentence_transformers.json", truncate_dim=cut)
    encoder = load_encoder(str(prompted))
    assert encoder.usual_dim == usual == encoder.encode([]).shape[1]
    np.testing.assert_allclose(encoder.encode(TEXTS), peer_of(prompted).encode(TEXTS), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("cut", [0, -1, "16", 16.0, True, [16]])
def test_a_cut_that_is_no_number_of_values_is_refused(cut: Any, prompted: Path) -> None:
    edit_json(prompted / "config_sentence_transformers.json", truncate_dim=cut)
    with pytest.raises(InputError, match=r"truncate_dim = .* in config_sentence_transformers\.json is no whole number"):
        load_encoder(str(prompted))


def train(run: Path, *settings: str, options: tuple[str, ...] = ()) -> None:
    """A run of one short epoch."""
    settings += ("curriculum.epochs=1", "train.batch_size=8", "optim.lr=1e-3", "eval.choose_strength=false")
    assert cli(["train", "--output-dir", str(run), *(f"--set={setting}" for setting in settings), *options]) == 0


def judged_dims(model: Path, pairs: Path, record: Path) -> list[int]:
    """What `trainer evaluate` judges that is told of no dim."""
    assert cli(["evaluate", "--model", str(model), "--pairs", str(pairs), "--json", str(record)]) == 0
    return json.loads(record.read_text())["question"]["dims"]


@pytest.mark.slow
@pytest.mark.usefixtures("no_report")
def test_an_export_cuts_where_its_base_did(prompted: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Thresholds, what others get who name no dim, and what `trainer evaluate` judges are for the same dim."""
    edit_json(prompted / "config_sentence_transformers.json", truncate_dim=16)
    pairs, run = tmp_path / "pairs.json", tmp_path / "run"
    pairs.write_text(json.dumps(generate_pairs(48, 0, "train")))
    train(run, f"model.name={prompted}", f"data.train={pairs}", "data.dev_fraction=0.4")
    assert "cuts embeddings to" not in capfd.readouterr().err.replace("\n", " ")
    assert list(json.loads((run / MODEL / "thresholds.json").read_text())["values"]) == ["16"]
    for folder in (MODEL, ADAPTER):
        assert peer_of(run / folder).encode(TEXTS[:1]).shape[1] == 16
    assert judged_dims(run / MODEL, pairs, tmp_path / "record.json") == [16]


# ---- prompts


@pytest.fixture
def prompted(tiny_model: Build, tmp_path: Path) -> Path:
    """A folder with a prompt for each side and no default one."""
    folder = write_old_layout(tiny_model("bert"), tmp_path / "prompted", max_seq_length=LONGEST)
    edit_json(folder / "config_sentence_transformers.json", prompts={"query": QUERY, "passage": PASSAGE})
    return folder


@pytest.fixture
def table() -> PairTable:
    """Pairs of which some texts stand on both sides, copies among them."""
    first = ["the printer is jammed", "vpn drops", "paper stuck", "VPN drops", "mail", "screen"]
    second = ["paper stuck", "vpn drops every hour", "screen is black", "mail", "cannot send mail", "paper stuck"]
    return pairs_from_columns({"text1": first, "text2": second, "label": [1, 1, 0, 0, 1, 0]}, "pairs.json")


@pytest.mark.parametrize(
    ("prompts", "default", "expected"),
    [
        ({"query": QUERY, "passage": PASSAGE}, None, (QUERY, PASSAGE)),
        ({"query": QUERY, "passage": PASSAGE}, "query", (QUERY, PASSAGE)),
        ({"query": QUERY, "document": PASSAGE, "passage": "x"}, None, (QUERY, PASSAGE)),
        ({"query": QUERY, "corpus": PASSAGE}, None, (QUERY, PASSAGE)),
        ({"query": QUERY}, None, (QUERY, "")),
        ({"query": QUERY}, "query", (QUERY, QUERY)),
        ({"similarity": "s: "}, "similarity", ("s: ", "s: ")),
        ({"similarity": "s: "}, None, ("", "")),
        ({"query": None, "document": ""}, None, ("", "")),
        ({}, None, ("", "")),
    ],
)
def test_the_prompts_that_a_folder_names(
    prompts: dict[str, Any], default: str | None, expected: tuple[str, str], tiny_model: Build, tmp_path: Path
) -> None:
    folder = write_old_layout(tiny_model("bert"), tmp_path / "model")
    (folder / "config_sentence_transformers.json").write_text(
        json.dumps({"prompts": prompts, "default_prompt_name": default})
    )
    spec = load_encoder(str(folder)).spec
    assert (spec.query_prompt, spec.document_prompt) == expected


SHAPES = {
    "e5": ({"query": QUERY, "passage": PASSAGE}, None, {"query": "query", "document": "passage"}),
    "bge": ({"query": "Represent this sentence for searching relevant passages: "}, None, {"query": "query"}),
    "nomic": (
        {"search_query": "search_query: ", "search_document": "search_document: ", "query": "search_query: "}
        | {"document": "search_document: "},
        "search_document",
        {"query": "search_query", "document": "search_document", None: "search_document"},
    ),
}
"""Prompts by name, the default one, and which of them each side takes."""


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_each_side_is_what_its_prompt_gives_in_a_padded_batch(shape: str, tiny_model: Build, tmp_path: Path) -> None:
    """By name in sentence-transformers, at each dim, before and after an export."""
    prompts, default, sides = SHAPES[shape]
    pooling = "cls" if shape == "bge" else "mean"
    source = write_old_layout(tiny_model("bert"), tmp_path / "source", pooling, max_seq_length=LONGEST)
    edit_json(source / "config_sentence_transformers.json", prompts=prompts, default_prompt_name=default)
    encoder = load_encoder(str(source))
    export.save_model(encoder, tmp_path / MODEL, "# A card\n")
    for folder in (source, tmp_path / MODEL):
        peer = peer_of(folder)
        for side in ("query", "document", None):
            options = {"prompt_name": sides[side]} if side in sides else {"prompt": ""}
            for dim in DIMS:
                theirs = peer.encode(TEXTS, normalize_embeddings=True, truncate_dim=dim, **options)
                ours = encoder.encode(TEXTS, side=side, dims=dim, normalize=True)
                np.testing.assert_allclose(theirs, ours, rtol=0, atol=TOLERANCE)
    apart = np.abs(encoder.encode(TEXTS, side="query") - encoder.encode(TEXTS, side="document")).max()
    assert apart > 1e-3  # the control: the sides are not the same


def test_prompts_of_no_side_are_told_of(
    tiny_model: Build, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "width", 300)
    folder = write_old_layout(tiny_model("bert"), tmp_path / "source")
    for names, is_said in ((("search_query", "search_document"), True), (("search_query", "document"), False)):
        edit_json(folder / "config_sentence_transformers.json", prompts={name: f"{name}: " for name in names})
        load_encoder(str(folder))
        assert (f"none of its prompts ({', '.join(names)}) is of a side" in capfd.readouterr().err) is is_said
    load_encoder(str(folder), prompts=("q: ", "d: "))
    assert "with model.prompts before training too" in capfd.readouterr().err
    load_encoder(str(folder))  # the control: its own
    assert "model.prompts before" not in capfd.readouterr().err


def test_prompts_that_are_asked_for_win(prompted: Path) -> None:
    edit_json(prompted / "config_sentence_transformers.json", default_prompt_name="query")
    asked = load_encoder(str(prompted), prompts=("q ", "d ")).spec
    assert (asked.query_prompt, asked.document_prompt, asked.prompt) == ("q ", "d ", "")
    same = load_encoder(str(prompted), prompts=("s ",)).spec
    assert (same.side_prompts, same.prompt) == (("s ",), "s ")
    none = load_encoder(str(prompted), prompts=("",)).spec
    assert (none.side_prompts, none.prompt, none.prompts) == (("",), "", ())


def test_a_prompt_that_is_no_text_is_refused(prompted: Path) -> None:
    (prompted / "config_sentence_transformers.json").write_text('{"prompts": {"query": "\\ud800"}}')
    with pytest.raises(InputError, match="a prompt holds half a surrogate pair"):
        load_encoder(str(prompted))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "lora"), [(("auto",), False), (("question: ", ""), True), (("both: ",), False), (("",), False)]
)
def test_prompts_are_used_and_exported(asked: tuple[str, ...], lora: bool, prompted: Path, tmp_path: Path) -> None:
    encoder = exported(prompted, tmp_path / "run", lora, prompts=asked)
    sides = (QUERY, PASSAGE) if asked == ("auto",) else (asked[0], asked[-1])
    peer = peer_of(tmp_path / "run" / MODEL)
    plain = load_encoder(str(tmp_path / "run" / MODEL), prompts=("",))
    for side, prompt in zip(("query", "document"), sides, strict=True):
        rows = encoder.encode(TEXTS, side=side)
        np.testing.assert_allclose(rows, plain.encode([prompt + text for text in TEXTS]), rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(peer.encode(TEXTS), encoder.encode(TEXTS), rtol=0, atol=TOLERANCE)
    for folder in (MODEL, ADAPTER)[: 1 + lora]:
        assert_peer_agrees(tmp_path / "run" / folder, encoder)
        assert load_encoder(str(tmp_path / "run" / folder)).spec.side_prompts == encoder.spec.side_prompts


@pytest.mark.slow
def test_pairs_are_judged_with_the_prompt_of_each_side(prompted: Path, table: PairTable) -> None:
    encoder, peer = load_encoder(str(prompted)), peer_of(prompted)
    rows = embed(encoder, tokenize_sides(encoder, table.texts))
    assert len(rows) == 2 * len(table.texts)
    first = peer.encode([table.texts[i] for i in table.text1], prompt=QUERY, normalize_embeddings=True)
    second = peer.encode([table.texts[i] for i in table.text2], prompt=PASSAGE, normalize_embeddings=True)
    expected = (first * second).sum(1)
    cosines = pair_cosines(rows, table, (WIDTH,))[0]
    np.testing.assert_allclose(cosines, expected, rtol=0, atol=TOLERANCE)
    unprompted = load_encoder(str(prompted), prompts=("",))
    without = pair_cosines(embed(unprompted, tokenize_sides(unprompted, table.texts)), table, (WIDTH,))[0]
    assert np.abs(without - cosines).max() > 1e-3  # negative control
    fitted = fit_thresholds(cosines[None], table, (WIDTH,), "f1", embedding_conditions(encoder))
    assert (fitted.model.query_prompt, fitted.model.document_prompt) == (QUERY, PASSAGE)
    threshold = evaluate(encoder, PairSet.build(table, encoder), (WIDTH,))[str(WIDTH)]["threshold"]
    assert threshold == pytest.approx(fitted.values[str(WIDTH)], abs=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("no_report")
def test_decisions_of_a_whole_run_are_the_same_in_others_hands(
    prompted: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also where it is trained for other dims than its base's cut: then it cuts no more."""
    edit_json(prompted / "config_sentence_transformers.json", truncate_dim=16)
    files, parts = {part: tmp_path / f"{part}.json" for part in ("train", "dev", "test")}, {}
    for part, file in files.items():
        parts[part] = generate_pairs(48, 0, part)
        file.write_text(json.dumps(parts[part]))
    run, data = tmp_path / "run", [f"data.{part}={file}" for part, file in files.items()]
    train(run, f"model.name={prompted}", "loss.dims=[64, 16]", "train.precision=fp32", "lora.enabled=true", *data)
    assert "cuts embeddings to 16 values (truncate_dim)" in capfd.readouterr().err.replace("\n", " ")
    fitted = json.loads((run / MODEL / "thresholds.json").read_text())
    assert fitted["model"]["query_prompt"] == QUERY and fitted["model"]["document_prompt"] == PASSAGE
    assert list(fitted["values"]) == ["64", "16"]
    metrics = json.loads((run / "metrics.json").read_text())["test"]["final"]
    labels = np.array(parts["test"]["labels"], dtype=bool)
    for folder in (MODEL, ADAPTER):
        peer = peer_of(run / folder)
        assert peer.encode(TEXTS[:1]).shape[1] == 64
        for dim in DIMS:
            first = peer.encode_query(parts["test"]["texts1"], normalize_embeddings=True, truncate_dim=dim)
            second = peer.encode_document(parts["test"]["texts2"], normalize_embeddings=True, truncate_dim=dim)
            called = (first * second).sum(1) >= fitted["values"][str(dim)]
            assert (called & labels).sum() / labels.sum() == pytest.approx(metrics[str(dim)]["recall"])
            false_positive_rate = (called & ~labels).sum() / (~labels).sum()
            assert false_positive_rate == pytest.approx(metrics[str(dim)]["false_positive_rate"])
    assert judged_dims(run / MODEL, files["test"], tmp_path / "record.json") == [64]


def test_search_finds_documents_by_queries() -> None:
    table = pairs_from_columns({"text1": ["a", "b", "c"], "text2": ["d", "e", "f"], "label": [1, 1, 1]})
    rows = np.random.default_rng(0).normal(size=(12, 8)).astype(np.float32)
    partner = np.empty(6, dtype=int)
    partner[table.text1], partner[table.text2] = table.text2, table.text1
    values = SearchedTexts.of_pairs(table).search("model", rows, (8, 4))["model"]
    for m, dim in enumerate((8, 4)):
        unit = rows[:, :dim] / np.linalg.norm(rows[:, :dim], axis=1, keepdims=True)
        cosines = unit[:6] @ unit[6:].T
        np.fill_diagonal(cosines, -np.inf)
        ranks = 1 + (cosines > cosines[np.arange(6), partner][:, None]).sum(axis=1)
        assert values["mrr@10"][m] == pytest.approx(1 / ranks)


@pytest.mark.parametrize("all_pairs", [False, True])
def test_a_batch_encodes_each_text_on_its_side_and_masks_copies_whatever_the_side(
    all_pairs: bool, table: PairTable
) -> None:
    count = len(table.texts)
    rows = np.arange(len(table))
    options: dict[str, Any] = {"rank": 0, "all_pairs": all_pairs}
    layout = LayoutBuilder(table, positives_of(table), two_prompts=True, **options).build([rows])
    plain = LayoutBuilder(table, positives_of(table), **options).build([rows])
    (ids,) = layout.texts
    queries, candidates = ids[layout.queries], ids[layout.candidates]
    positive = table.label
    assert queries.tolist() == table.text1[positive].tolist()
    assert candidates[layout.targets].tolist() == (table.text2[positive] + count).tolist()
    assert (candidates >= count).all()  # the candidate of a label-0 row too, whichever of its texts that is
    assert set(table.canonical[candidates - count]) == set(table.canonical[plain.texts[0][plain.candidates]])
    if all_pairs:
        assert ids[layout.pair1].tolist() == table.text1.tolist()
        assert ids[layout.pair2].tolist() == (table.text2 + count).tolist()
    related = positives_of(table).toarray() | np.eye(table.canonical.max() + 1, dtype=bool)
    for query, excluded in zip(queries, layout.excluded, strict=True):
        masked = {int(column) for column in excluded if column >= 0}
        assert masked == {
            column
            for column, candidate in enumerate(candidates)
            if related[table.canonical[query], table.canonical[candidate - count]]
        }


# ---- length 1 after the cut


@pytest.mark.slow
def test_the_code_on_the_card_gives_the_cosines_that_thresholds_are_for(
    prompted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = exported(prompted, tmp_path / "run")
    code = usage(tmp_path / "run" / MODEL, "16", sided=True)
    names: dict[str, Any] = {}
    exec(code, names)
    shown = float(capsys.readouterr().out.strip().removeprefix("tensor([[").removesuffix("]])"))
    for rows in (names["first"], names["second"]):
        assert rows.shape == (1, 16) and np.linalg.norm(rows) == pytest.approx(1, abs=1e-5)
    first = encoder.encode(["vpn is down"], side="query", dims=16, normalize=True)
    second = encoder.encode(["cannot connect from home"], side="document", dims=16, normalize=True)
    assert shown == pytest.approx(float(first[0] @ second[0]), abs=1e-4)
    assert "model.encode([" in usage(tmp_path / "run" / MODEL, "16", sided=False)


@pytest.mark.slow
def test_their_library_says_nothing_of_an_export(
    tiny_model: Build, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    exported(tiny_model("bert"), tmp_path / "run")
    with caplog.at_level(logging.WARNING):
        peer_of(tmp_path / "run" / MODEL)
    assert not [record for record in caplog.records if "MISSING" in record.getMessage()]
