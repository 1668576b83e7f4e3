"""Encoders of every folder layout against sentence-transformers; what cannot be honoured is refused; LoRA as asked."""

from __future__ import annotations

import errno
import json
import math
import pickle
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracles import LAYERS, LONGEST, WIDTH, Payload, edit_json, other_model, write_old_layout
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerFast

from trainer.config import LoraConfig
from trainer.errors import InputError, StorageError
from trainer.mining.augment import load_translator
from trainer.model import export
from trainer.model.embedding import embed, tokenize_sides
from trainer.model.encoder import Encoder, weights_fingerprint
from trainer.model.families import FAMILIES
from trainer.model.loading import load_encoder
from trainer.model.lora import add_lora
from trainer.system.console import console
from trainer.system.files import find_damage, write_manifest

Build = Callable[[str], Path]

TOLERANCE = 1e-5
TEXTS = [
    "the printer on floor 2 is jammed",
    "  the printer\ton  floor 2\r\nis jammed \n",
    "THE PRINTER On Floor 2 Is Jammed",
    "",
    " ",
    "\n\t\u00a0\u2003",
    "\u200b",
    ".",
    "vpn",
    "vpn " * 700,
    "x" * 3000,
    "Drucker: Papierstau, Größe A4 – straße ÅÄÖ",
    "日本語のテキスト 🙂 \ufffd",
    "[SEP] [CLS] </s> [MASK] <s>",
    "query: vpn drops every hour",
]


def embeddings(encoder: Encoder, texts: list[str] | None = None) -> np.ndarray:
    """What the trainer makes of texts, at length one where the folder says so."""
    rows = embed(encoder, tokenize_sides(encoder, texts or TEXTS))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True) if encoder.spec.normalize else rows


def assert_equals_peer(encoder: Encoder, folder: Path, texts: list[str] | None = None) -> None:
    from sentence_transformers import SentenceTransformer

    peer = SentenceTransformer(str(folder), device="cpu").encode(texts or TEXTS, show_progress_bar=False)
    np.testing.assert_allclose(embeddings(encoder, texts), peer, rtol=0, atol=TOLERANCE)


def refusal(folder: Path | str, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        load_encoder(str(folder), **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def plain(tiny_model: Build, tmp_path: Path) -> Path:
    """A plain Hugging Face folder to spoil."""
    return shutil.copytree(tiny_model("bert"), tmp_path / "model")


def save_with_peer(source: Path, folder: Path, pooling: str = "mean", normalize: bool = True, **options: Any) -> Path:
    """The folder that sentence-transformers itself writes for a backbone."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules as parts

    backbone = parts.Transformer(str(source))
    modules = [backbone, parts.Pooling(WIDTH, pooling_mode=pooling), *([parts.Normalize()] if normalize else [])]
    SentenceTransformer(modules=modules, device="cpu", **options).save(str(folder))
    return folder


@pytest.fixture
def packaged(tiny_model: Build, tmp_path: Path) -> Path:
    """A sentence-transformers folder to spoil."""
    return write_old_layout(tiny_model("bert"), tmp_path / "model")


# ---- layouts


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_plain_folder_is_mean_pooled_at_its_own_length(family: str, tiny_model: Build) -> None:
    encoder = load_encoder(str(tiny_model(family)))
    assert (encoder.spec.pooling, encoder.spec.max_length, encoder.width) == ("mean", LONGEST, WIDTH)
    assert not encoder.spec.normalize
    assert not encoder.training
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
    assert not any("pooler" in name for name, _ in encoder.named_parameters())
    assert_equals_peer(encoder, tiny_model(family))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "pooling", "normalize"), [("mpnet", "mean", True), ("bert", "cls", True), ("bert", "mean", False)]
)
def test_a_folder_that_sentence_transformers_wrote(
    family: str, pooling: str, normalize: bool, tiny_model: Build, tmp_path: Path
) -> None:
    folder = save_with_peer(tiny_model(family), tmp_path / "saved", pooling, normalize)
    assert "sentence_transformers.base" in (folder / "modules.json").read_text()  # the layout of version 6
    encoder = load_encoder(str(folder))
    assert (encoder.spec.pooling, encoder.spec.normalize, encoder.spec.max_length) == (pooling, normalize, LONGEST)
    assert_equals_peer(encoder, folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "pooling", "inner"),
    [("mpnet", "mean", ""), ("mpnet", "cls", "0_Transformer"), ("roberta", "mean", "0_Transformer")],
)
def test_a_folder_in_the_older_layout(family: str, pooling: str, inner: str, tiny_model: Build, tmp_path: Path) -> None:
    folder = write_old_layout(tiny_model(family), tmp_path / "old", pooling, inner)
    encoder = load_encoder(str(folder))
    assert (encoder.spec.pooling, encoder.spec.normalize, encoder.spec.max_length) == (pooling, True, 20)
    assert_equals_peer(encoder, folder)


@pytest.mark.slow
def test_the_comparison_can_fail(tiny_model: Build, tmp_path: Path) -> None:
    folder = write_old_layout(tiny_model("bert"), tmp_path / "old", "cls")
    with pytest.raises(AssertionError):
        assert_equals_peer(load_encoder(str(folder), pooling="mean"), folder)
    with pytest.raises(AssertionError):
        assert_equals_peer(load_encoder(str(folder), max_length=19), folder)


@pytest.mark.numbers
@pytest.mark.slow
def test_the_pretrained_encoder_equals_its_peer(real_encoder: Path) -> None:
    encoder = load_encoder(str(real_encoder))
    assert (encoder.spec.pooling, encoder.spec.normalize, encoder.spec.max_length) == ("mean", True, 256)
    assert_equals_peer(encoder, real_encoder)


@pytest.mark.slow
def test_the_pretrained_encoder_saved_anew_equals_itself(real_encoder: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    SentenceTransformer(str(real_encoder), device="cpu").save(str(tmp_path / "saved"))
    old, new = load_encoder(str(real_encoder)), load_encoder(str(tmp_path / "saved"))
    assert (old.spec.pooling, old.spec.normalize, old.spec.max_length) == ("mean", True, new.spec.max_length)
    assert weights_fingerprint(old) == weights_fingerprint(new)
    np.testing.assert_array_equal(embeddings(old), embeddings(new))


@pytest.mark.slow
def test_a_vocabulary_alone_is_tokenizer_enough(real_encoder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(real_encoder, tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    np.testing.assert_array_equal(embeddings(load_encoder(str(folder))), embeddings(load_encoder(str(real_encoder))))


def byte_level(folder: Path) -> None:
    """Give a folder a tokenizer to which a space is part of the word, as RoBERTa's is."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    vocabulary = {token: i for i, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), special, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=LONGEST, **names).save_pretrained(folder)
    config = AutoConfig.for_model(
        "roberta",
        vocab_size=len(vocabulary),
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=WIDTH,
        max_position_embeddings=LONGEST + 2,
        pad_token_id=1,
    )
    torch.manual_seed(5)
    AutoModel.from_config(config, add_pooling_layer=False).save_pretrained(folder)


def test_a_byte_level_tokenizer_sees_case_and_inner_spaces(tmp_path: Path) -> None:
    byte_level(tmp_path)
    texts = sorted({text.strip() for text in TEXTS})
    assert_equals_peer(load_encoder(str(tmp_path)), tmp_path, texts)


# ---- pooling, prompts, case, length


def test_a_pooling_that_is_asked_for_wins(packaged: Path) -> None:
    encoder = load_encoder(str(packaged), pooling="cls")
    assert encoder.spec.pooling == "cls"
    edit_json(packaged / "1_Pooling" / "config.json", pooling_mode_cls_token=True, pooling_mode_mean_tokens=False)
    np.testing.assert_array_equal(embeddings(encoder), embeddings(load_encoder(str(packaged))))


def test_cls_is_the_first_token_of_the_models_own_forward(tiny_model: Build) -> None:
    folder = tiny_model("mpnet")
    encoder = load_encoder(str(folder), pooling="cls")
    model, tokenizer = AutoModel.from_pretrained(folder, add_pooling_layer=False), AutoTokenizer.from_pretrained(folder)
    for text, row in zip(TEXTS, embeddings(encoder), strict=True):
        inputs = tokenizer(text, truncation=True, return_tensors="pt")
        with torch.no_grad():
            hidden = model(input_ids=inputs["input_ids"]).last_hidden_state[0]
        np.testing.assert_allclose(row, hidden[0].numpy(), rtol=0, atol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("default", ["query", "passage", None])
def test_the_default_prompt_is_put_before_every_text(default: str | None, tiny_model: Build, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    prompts = {"query": "query: ", "passage": "passage: ", "document": ""}
    folder = save_with_peer(tiny_model("bert"), tmp_path / "saved", prompts=prompts, default_prompt_name=default)
    encoder = load_encoder(str(folder))
    assert encoder.spec.prompt == (prompts[default] if default else "")
    assert dict(encoder.spec.prompts) == prompts
    peer, rows = SentenceTransformer(str(folder), device="cpu"), encoder.encode(TEXTS)
    np.testing.assert_allclose(rows, peer.encode(TEXTS), rtol=0, atol=TOLERANCE)
    moved = np.abs(rows - load_encoder(str(tiny_model("bert"))).encode(TEXTS, normalize=True)).max()
    assert (moved > TOLERANCE) or default is None


def test_a_prompt_that_is_null_is_no_prompt(packaged: Path) -> None:
    edit_json(packaged / "config_sentence_transformers.json", default_prompt_name="query")
    (packaged / "config_sentence_transformers.json").write_text(
        '{"prompts": {"query": null}, "default_prompt_name": "query"}'
    )
    assert load_encoder(str(packaged)).spec.prompt == ""


def test_lower_case_is_done_before_a_tokenizer_that_does_not(tiny_model: Build, tmp_path: Path) -> None:
    folders = [
        write_old_layout(tiny_model("bert"), tmp_path / str(lower), do_lower_case=lower) for lower in (True, False)
    ]
    for folder in folders:
        text = (folder / "tokenizer.json").read_text(encoding="utf-8")
        assert '"lowercase": true' in text
        (folder / "tokenizer.json").write_text(text.replace('"lowercase": true', '"lowercase": false'))
    texts = [text for text in TEXTS if "[" not in text]  # upper-case special tokens are the one thing told apart
    lower, cased = (load_encoder(str(folder)) for folder in folders)
    assert_equals_peer(lower, folders[0], texts)
    assert_equals_peer(cased, folders[1], texts)
    assert np.abs(embeddings(lower, texts) - embeddings(cased, texts)).max() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "own", "tokenizers", "asked", "expected"),
    [
        ("mpnet", 20, 128, 0, 20),  # the folder's own before the tokenizer's
        ("mpnet", 20, 128, 100, 100),  # what is asked for before the folder's own, also upwards
        ("mpnet", 20, 128, 3, 3),
        ("mpnet", None, 50, 0, 50),
        ("mpnet", None, 10**30, 0, LONGEST),  # the tokenizer knows of none: the positions
        ("distilbert", None, 10**30, 0, LONGEST),
        ("mpnet", 500, 128, 0, LONGEST),  # more than there are positions
        ("distilbert", None, 128, LONGEST, LONGEST),
    ],
)
def test_which_max_length_holds(
    family: str, own: int | None, tokenizers: int, asked: int, expected: int, tiny_model: Build, tmp_path: Path
) -> None:
    folder = write_old_layout(tiny_model(family), tmp_path / "model", max_seq_length=own)
    edit_json(folder / "tokenizer_config.json", model_max_length=tokenizers)
    encoder = load_encoder(str(folder), max_length=asked)
    assert encoder.spec.max_length == expected
    assert tokenize_sides(encoder, ["vpn " * 700]).lengths.tolist() == [expected]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_length_beyond_the_positions_is_refused_and_the_last_one_works(family: str, tiny_model: Build) -> None:
    folder = tiny_model(family)
    message = refusal(folder, max_length=LONGEST + 1)
    assert message == f"model.max_length = {LONGEST + 1}: {folder} has positions for {LONGEST} tokens; lower it"
    assert np.isfinite(embeddings(load_encoder(str(folder), max_length=LONGEST), ["vpn " * 700])).all()


# ---- a folder of our own


def test_a_saved_model_is_sealed_and_loads_as_it_was(tiny_model: Build, tmp_path: Path) -> None:
    encoder = load_encoder(str(tiny_model("mpnet")), max_length=20)
    export.save_model(encoder, tmp_path / "saved", "# A card\n")
    assert find_damage(tmp_path / "saved") is None
    assert load_encoder(str(tmp_path / "saved")).spec.max_length == 20
    np.testing.assert_array_equal(embeddings(load_encoder(str(tmp_path / "saved"))), embeddings(encoder))


def test_a_saved_model_without_its_seal_is_seen(
    tiny_model: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control of the test above."""
    monkeypatch.setattr(export, "write_manifest", lambda folder: None)
    with pytest.raises(AssertionError):
        test_a_saved_model_is_sealed_and_loads_as_it_was(tiny_model, tmp_path)


# ---- refused: no model


@pytest.mark.parametrize("name", ["/no/such/folder", "./nowhere", "../nowhere", "~/nowhere", "a/b/c"])
def test_a_folder_that_is_not_there(name: str) -> None:
    assert refusal(name) == f"model.name = {name}: no such folder; name a model folder or a hub model"


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    assert "no such folder" in refusal(tmp_path / "model.safetensors")


@pytest.mark.parametrize("name", ["no-organisation/no-model", "no-such-model", "not a name!"])
def test_a_hub_name_without_a_network(name: str) -> None:
    message = refusal(name)
    assert message.startswith(f"model.name = {name}: no such folder, and not to be had from the hub (")
    assert message.endswith("; check the name and the network, or name a local folder")


def fail_downloads(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def download(*args: Any, **options: Any) -> str:
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("Data processing error: I/O error: No space left on device (os error 28)"),
    ],
    ids=["space", "quota", "rust"],
)
def test_a_disk_that_a_download_fills_is_an_error_of_storage(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_downloads(monkeypatch, error)
    with pytest.raises(StorageError, match=r"^model\.name = an/encoder: no space"):
        load_encoder("an/encoder")
    with pytest.raises(StorageError, match=r"^--translators a/translator: no space"):
        load_translator("a/translator")


def test_any_other_failure_of_a_download_is_none_of_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control; and what nobody foresaw is not called a missing model."""
    fail_downloads(monkeypatch, ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"))
    assert "not to be had from the hub (ConnectionResetError)" in refusal("an/encoder")
    fail_downloads(monkeypatch, RuntimeError("unforeseen"))
    with pytest.raises(RuntimeError, match=r"^unforeseen$"):
        load_encoder("an/encoder")


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    assert "no config.json in" in refusal(tmp_path)


@pytest.mark.parametrize("folder", ["plain", "packaged"])
def test_the_folders_that_are_spoilt_below_load_as_they_are(folder: str, request: pytest.FixtureRequest) -> None:
    assert load_encoder(str(request.getfixturevalue(folder))).width == WIDTH


# ---- refused: code and pickles


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_a_pickle_is_not_opened(name: str, plain: Path, tmp_path: Path) -> None:
    (plain / "model.safetensors").unlink()
    (plain / name).write_bytes(pickle.dumps(Payload(tmp_path / "canary")))
    assert refusal(plain) == (
        f"model.name = {plain}: only {name}, a pickle, which is not loaded; save the model as safetensors"
    )
    assert not (tmp_path / "canary").exists()
    pickle.loads((plain / name).read_bytes())
    assert (tmp_path / "canary").exists()  # it would have


def test_a_pickle_beside_safetensors_is_not_opened_either(plain: Path, tmp_path: Path) -> None:
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt"):
        (plain / name).write_bytes(pickle.dumps(Payload(tmp_path / "canary")))
    load_encoder(str(plain))
    assert not (tmp_path / "canary").exists()


def test_a_pickle_is_not_opened_for_want_of_the_right_safetensors(plain: Path, tmp_path: Path) -> None:
    (plain / "model.safetensors").rename(plain / "model_of_another_kind.safetensors")
    (plain / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(tmp_path / "canary")))
    assert "cannot load the model" in refusal(plain)
    assert not (tmp_path / "canary").exists()


def add_code(folder: Path, canary: Path) -> None:
    (folder / "own.py").write_text(f"open({str(canary)!r}, 'w')\nclass Own: pass\n")


def test_a_config_with_code_of_its_own_is_refused(plain: Path, tmp_path: Path) -> None:
    add_code(plain, tmp_path / "canary")
    edit_json(plain / "config.json", auto_map={"AutoConfig": "own.Own", "AutoModel": "own.Own"}, model_type="own")
    assert "asks to run code of its own (auto_map)" in refusal(plain)
    assert not (tmp_path / "canary").exists()


def test_the_code_of_a_tokenizer_is_not_run(plain: Path, tmp_path: Path) -> None:
    add_code(plain, tmp_path / "canary")
    edit_json(plain / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "own.Own"]}, tokenizer_class="Own")
    load_encoder(str(plain))
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "kind",
    [
        "own.Transformer",
        "sentence_transformers_fork.models.Transformer",
        "sentence_transformers.models.CLIP",
    ],
)
def test_a_foreign_module_is_refused(kind: str, packaged: Path, tmp_path: Path) -> None:
    add_code(packaged, tmp_path / "canary")
    modules = json.loads((packaged / "modules.json").read_bytes())
    modules[0]["type"] = kind
    (packaged / "modules.json").write_text(json.dumps(modules))
    message = refusal(packaged)
    assert message.endswith("; only Transformer, Pooling, Dense, Normalize, in this order, can be honoured")
    assert kind.removeprefix("sentence_transformers.models.") in message
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "order",
    [[0, 1, 2, 3], [0, 3, 1], [0, 3], [1, 0], [0, 2, 1], [0, 0, 1], [1], [0, 1, 1], [0, 1, 3, 3]],
    ids=lambda order: "-".join("TPND"[i] for i in order),
)
def test_modules_that_cannot_be_honoured_are_refused(order: list[int], packaged: Path) -> None:
    modules = json.loads((packaged / "modules.json").read_bytes())
    modules.append({"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"})
    (packaged / "modules.json").write_text(json.dumps([modules[i] for i in order]))
    assert "can be honoured" in refusal(packaged)


def with_dense(folder: Path, weights: torch.Tensor, **config: Any) -> Path:
    """A sentence-transformers folder with a Dense module behind its pooling."""
    (folder / "3_Dense").mkdir()
    save_file({"linear.weight": weights}, folder / "3_Dense" / "model.safetensors")
    plain = {"in_features": WIDTH, "out_features": WIDTH, "bias": False}
    plain |= {"activation_function": "torch.nn.modules.linear.Identity"}
    (folder / "3_Dense" / "config.json").write_text(json.dumps(plain | config))
    modules = json.loads((folder / "modules.json").read_bytes())
    modules.insert(2, {"idx": 2, "name": "2", "path": "3_Dense", "type": "sentence_transformers.models.Dense"})
    named = [module | {"idx": i, "name": str(i)} for i, module in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(named))
    return folder


def test_a_dense_module_is_applied_behind_the_pooling(packaged: Path) -> None:
    plain = load_encoder(str(packaged))
    weights = torch.randn(WIDTH, WIDTH)
    encoder = load_encoder(str(with_dense(packaged, weights)))
    expected = plain.encode(TEXTS, normalize=False) @ weights.numpy().T
    np.testing.assert_allclose(encoder.encode(TEXTS, normalize=False), expected, rtol=0, atol=1e-5)
    assert encoder.trainable().keys() == plain.trainable().keys()
    assert weights_fingerprint(encoder) != weights_fingerprint(plain)
    theirs = SentenceTransformer(str(packaged), device="cpu", local_files_only=True)
    for dim in (8, WIDTH):
        np.testing.assert_allclose(
            theirs.encode(TEXTS, normalize_embeddings=True, truncate_dim=dim),
            encoder.encode(TEXTS, dims=dim, normalize=True),
            rtol=0,
            atol=1e-5,
        )


@pytest.mark.parametrize(
    ("config", "shape", "said"),
    [
        ({"bias": True}, (WIDTH, WIDTH), "has a bias, an activation or another input"),
        ({"bias": None}, (WIDTH, WIDTH), "has a bias, an activation or another input"),
        ({"activation_function": "torch.nn.modules.activation.Tanh"}, (WIDTH, WIDTH), "has a bias, an activation"),
        ({"module_input_name": "token_embeddings"}, (WIDTH, WIDTH), "another input, which cannot be honoured"),
        ({}, (WIDTH // 2, WIDTH), f"3_Dense makes [{WIDTH // 2}, {WIDTH}] of {WIDTH} values"),
    ],
)
def test_a_dense_module_of_another_kind_is_refused(
    config: dict[str, Any], shape: tuple[int, int], said: str, packaged: Path
) -> None:
    assert said in refusal(with_dense(packaged, torch.zeros(shape), **config))


def test_a_dense_module_without_its_weights_is_refused(packaged: Path) -> None:
    file = with_dense(packaged, torch.zeros(WIDTH, WIDTH)) / "3_Dense" / "model.safetensors"
    save_file({"weight": torch.zeros(WIDTH, WIDTH)}, file)
    assert "cannot load 3_Dense" in refusal(packaged)
    save_file({"linear.weight": torch.zeros(WIDTH, WIDTH), "linear.bias": torch.zeros(WIDTH)}, file)
    assert "3_Dense has weights beside linear.weight, first linear.bias" in refusal(packaged)
    file.rename(file.with_name("pytorch_model.bin"))
    assert "3_Dense has no model.safetensors; save the model as safetensors" in refusal(packaged)


@pytest.mark.parametrize("path", ["..", "../other", "1_Pooling/../../other", "/tmp", "..\\other", "a\\..\\b"])
@pytest.mark.parametrize("module", [0, 1])
def test_a_module_outside_the_folder_is_refused(module: int, path: str, packaged: Path, plain_outside: Path) -> None:
    modules = json.loads((packaged / "modules.json").read_bytes())
    modules[module]["path"] = path
    (packaged / "modules.json").write_text(json.dumps(modules))
    assert "modules.json points outside the model folder" in refusal(packaged)


@pytest.fixture
def plain_outside(tiny_model: Build, tmp_path: Path) -> Path:
    """A good model where a path out of the folder would find it."""
    return shutil.copytree(tiny_model("bert"), tmp_path / "other")


# ---- refused: what is in the files


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": True}, "pooling_mode_max_tokens"),
        ({"pooling_mode_cls_token": True}, "cls + mean"),
        ({"pooling_mode_mean_tokens": False}, "of no kind"),
        ({"pooling_mode": "lasttoken"}, "lasttoken"),
        ({"pooling_mode": ["mean", "max"]}, "mean + max"),
        ({"pooling_mode": 3}, "3"),
        ({"pooling_mode": [None]}, "None"),
    ],
)
def test_a_pooling_that_cannot_be_honoured_is_refused(changes: dict[str, Any], shown: str, packaged: Path) -> None:
    edit_json(packaged / "1_Pooling" / "config.json", **changes)
    assert refusal(packaged) == (f"model.name = {packaged}: pooling {shown} cannot be honoured; set model.pooling")
    assert load_encoder(str(packaged), pooling="mean").spec.pooling == "mean"


def test_pooling_without_the_prompt_is_refused(packaged: Path) -> None:
    edit_json(packaged / "1_Pooling" / "config.json", include_prompt=False)
    assert "include_prompt" in refusal(packaged)


@pytest.mark.parametrize(
    ("file", "text", "complaint"),
    [
        ("config.json", "{", "config.json is no valid JSON"),
        ("config.json", "[]", "config.json is no JSON object"),
        ("config.json", '{"model_type": "no-such-type"}', "cannot load the model"),
        ("config.json", "[" * 100_000, "config.json is no valid JSON"),
        ("modules.json", "{}", "modules.json is no list of modules"),
        ("modules.json", "[1]", "modules.json is no list of modules"),
        ("modules.json", '[{"type": 1, "path": ""}]', "modules.json is no list of modules"),
        ("modules.json", "\xff", "modules.json is no valid JSON"),
        ("1_Pooling/config.json", "[]", "config.json is no JSON object"),
        ("1_Pooling/config.json", "", "config.json is no valid JSON"),
        ("sentence_bert_config.json", "[]", "sentence_bert_config.json is no JSON object"),
        ("sentence_bert_config.json", '{"max_seq_length": "20"}', "max_seq_length = '20' is no whole number above 0"),
        ("sentence_bert_config.json", '{"max_seq_length": -1}', "max_seq_length = -1 is no whole number above 0"),
        (
            "sentence_bert_config.json",
            '{"max_seq_length": Infinity}',
            "max_seq_length = inf is no whole number above 0",
        ),
        ("config_sentence_transformers.json", '{"prompts": ["a"]}', "are no named texts"),
        ("config_sentence_transformers.json", '{"prompts": {"a": 1}}', "are no named texts"),
        ("config_sentence_transformers.json", '{"default_prompt_name": "a"}', "'a' is none of its prompts"),
        ("config_sentence_transformers.json", '{"default_prompt_name": ["a"]}', "['a'] is none of its prompts"),
        ("tokenizer.json", "{", "cannot load the tokenizer"),
        ("tokenizer.json", "[]", "cannot load the tokenizer"),
        ("tokenizer_config.json", "[]", "cannot load the tokenizer"),
        ("model.safetensors", "", "cannot load the model"),
        ("model.safetensors", "no safetensors at all", "cannot load the model"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(file: str, text: str, complaint: str, packaged: Path) -> None:
    (packaged / file).write_bytes(text.encode("latin-1"))
    message = refusal(packaged)
    assert message.startswith(f"model.name = {packaged}: ")
    assert complaint in message


@pytest.mark.parametrize(
    "changes", [{"hidden_size": 48}, {"hidden_size": "wide"}, {"num_attention_heads": 7}, {"vocab_size": 5}]
)
def test_a_config_that_does_not_fit_the_weights_is_refused(changes: dict[str, Any], plain: Path) -> None:
    edit_json(plain / "config.json", **changes)
    assert f"model.name = {plain}: cannot load the model: " in refusal(plain)


def test_an_adapter_for_another_base_is_refused(plain: Path, tiny_model: Build) -> None:
    """Transformers would load the model that the adapter names, instead of the folder's own weights."""
    edit_json(plain / "adapter_config.json", base_model_name_or_path=str(tiny_model("mpnet")), peft_type="LORA")
    assert refusal(plain) == f"model.name = {plain}: holds an adapter for another model; name a merged model"


@pytest.mark.parametrize("shard", ["../model.safetensors", "/tmp/x.safetensors", "a.bin", "x.safetensors/../a", 7, ""])
def test_an_index_of_shards_names_safetensors_of_its_own_folder_alone(shard: Any, plain: Path) -> None:
    edit_json(plain / "model.safetensors.index.json", weight_map={"a": "model-1.safetensors", "b": shard})
    assert "names other files than safetensors of its own folder" in refusal(plain)


@pytest.mark.parametrize("weight_map", [[], "x", None, 5])
def test_an_index_of_another_shape_is_refused(weight_map: Any, plain: Path) -> None:
    (plain / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert "names other files" in refusal(plain)


def test_a_flipped_bit_is_noticed_where_there_is_a_manifest(plain: Path) -> None:
    data = bytearray((plain / "model.safetensors").read_bytes())
    data[-3] ^= 1
    (plain / "model.safetensors").write_bytes(data)
    load_encoder(str(plain))  # safetensors has no checksum: a wrong number is a number
    data[-3] ^= 1
    (plain / "model.safetensors").write_bytes(data)
    write_manifest(plain)
    load_encoder(str(plain))
    data[-3] ^= 1
    (plain / "model.safetensors").write_bytes(data)
    assert "model.safetensors is not what was written; copy or export the model again" in refusal(plain)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KEYS = {
    "modules.json": ["idx", "name", "path", "type"],
    "sentence_bert_config.json": ["max_seq_length", "do_lower_case"],
    "config_sentence_transformers.json": ["prompts", "default_prompt_name"],
    "1_Pooling/config.json": ["pooling_mode", "pooling_mode_mean_tokens", "include_prompt"],
    "model.safetensors.index.json": ["weight_map"],
    "manifest.json": ["config.json", "../config.json"],
    "config.json": ["hidden_size", "model_type", "vocab_size", "num_hidden_layers", "auto_map", "hidden_act"],
}


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_json_in_a_model_folder_gives_an_encoder_or_a_refusal(data: st.DataObject, tiny_model: Build) -> None:
    name = data.draw(st.sampled_from(sorted(KEYS)))
    values = data.draw(st.dictionaries(st.sampled_from(KEYS[name]), JSON) | JSON)
    with tempfile.TemporaryDirectory() as root:
        folder = write_old_layout(tiny_model("bert"), Path(root) / "model")
        path = folder / name
        whole = json.loads(path.read_bytes()) if path.exists() else {}
        if isinstance(whole, list) and isinstance(values, dict):
            values = [{**whole[0], **values}, *whole[1:]]
        elif isinstance(values, dict):
            values = {**whole, **values}
        path.write_text(json.dumps(values))
        try:
            load_encoder(str(folder))
        except InputError as error:
            assert "\n" not in str(error)


def test_truncated_weights_are_refused(plain: Path) -> None:
    data = (plain / "model.safetensors").read_bytes()
    (plain / "model.safetensors").write_bytes(data[: len(data) // 2])
    assert f"model.name = {plain}: cannot load the model: " in refusal(plain)


def test_missing_weights_are_counted_and_named(plain: Path) -> None:
    edit_json(plain / "config.json", num_hidden_layers=LAYERS + 1)
    message = refusal(plain)
    assert "16 weights are missing from the file, first encoder.layer.2." in message
    edit_json(plain / "config.json", num_hidden_layers=LAYERS)
    weights = load_file(plain / "model.safetensors")
    del weights["embeddings.LayerNorm.weight"]
    save_file(weights, plain / "model.safetensors", metadata={"format": "pt"})
    assert "1 weights are missing from the file, first embeddings.LayerNorm.weight" in refusal(plain)


def test_weights_that_are_not_there(plain: Path) -> None:
    (plain / "model.safetensors").unlink()
    assert refusal(plain) == f"model.name = {plain}: no weights; save the model as safetensors"


def test_weights_that_are_too_many_are_left_out(plain: Path) -> None:
    """Published encoders carry heads and poolers of their pretraining."""
    before = weights_fingerprint(load_encoder(str(plain)))
    weights = load_file(plain / "model.safetensors") | {"pooler.dense.weight": torch.ones(2, 2), "cls.x": torch.ones(1)}
    save_file(weights, plain / "model.safetensors", metadata={"format": "pt"})
    assert weights_fingerprint(load_encoder(str(plain))) == before


@pytest.mark.parametrize("files", [["tokenizer.json"], ["tokenizer.json", "tokenizer_config.json"]])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_without_a_tokenizer_is_refused(
    family: str, files: list[str], tiny_model: Build, tmp_path: Path
) -> None:
    """Transformers makes an empty one for some families, to which every text is the same."""
    folder = shutil.copytree(tiny_model(family), tmp_path / "model")
    for file in files:
        (folder / file).unlink()
    assert "tokenizer" in refusal(folder)


# ---- LoRA

BERT_ATTENTION = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
ATTENTION = {
    "bert": BERT_ATTENTION,
    "roberta": BERT_ATTENTION,
    "xlm-roberta": BERT_ATTENTION,
    "mpnet": ("attention.attn.q", "attention.attn.k", "attention.attn.v", "attention.attn.o"),
    "distilbert": ("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin"),
}
FFN = dict.fromkeys(FAMILIES, ("intermediate.dense", "output.dense")) | {"distilbert": ("ffn.lin1", "ffn.lin2")}


def adapted(encoder: Encoder) -> set[str]:
    """Endings of the adapted modules, below their layer; each must be there in every layer."""
    prefix = "transformer.layer" if encoder.model.config.model_type == "distilbert" else "encoder.layer"
    names = {name.split(".lora_")[0].removeprefix("backbone.base_model.model.") for name in encoder.trainable()}
    layers = [
        {name.removeprefix(f"{prefix}.{i}.") for name in names if name.startswith(f"{prefix}.{i}.")} for i in (0, 1)
    ]
    assert layers[0] == layers[1]
    assert len(names) == len(layers[0]) * LAYERS
    return layers[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("targets", "rank", "dora"),
    [(("attention",), 4, False), (("ffn",), 8, True), (("ffn", "attention"), 4, True)],
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else None,
)
@pytest.mark.parametrize("family", FAMILIES)
def test_targets_of_a_family_and_the_number_of_parameters(
    family: str, targets: tuple[str, ...], rank: int, dora: bool, tiny_model: Build
) -> None:
    encoder = load_encoder(str(tiny_model(family)))
    add_lora(encoder, LoraConfig(rank=rank, targets=targets, dora=dora))
    expected = {"attention": ATTENTION[family], "ffn": FFN[family]}
    assert adapted(encoder) == {name for target in targets for name in expected[target]}
    count = 0
    if "attention" in targets:
        count += 4 * (rank * 2 * WIDTH + dora * WIDTH)
    if "ffn" in targets:
        count += 2 * rank * (WIDTH + 2 * WIDTH) + dora * (2 * WIDTH + WIDTH)
    assert sum(parameter.numel() for parameter in encoder.trainable().values()) == count * LAYERS


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (("query",), {"attention.self.query"}),
        (("self.query", "self.value"), {"attention.self.query", "attention.self.value"}),
        (("output.dense",), {"attention.output.dense", "output.dense"}),
        (("dense",), {"attention.output.dense", "output.dense", "intermediate.dense"}),
        (("attention", "intermediate.dense"), {*BERT_ATTENTION, "intermediate.dense"}),
        (("query", "attention"), set(BERT_ATTENTION)),
    ],
)
def test_a_target_is_the_ending_of_a_name(targets: tuple[str, ...], expected: set[str], tiny_model: Build) -> None:
    encoder = load_encoder(str(tiny_model("bert")))
    add_lora(encoder, LoraConfig(targets=targets))
    assert adapted(encoder) == expected


def test_a_target_may_be_a_single_module(tiny_model: Build) -> None:
    encoder = load_encoder(str(tiny_model("bert")))
    add_lora(encoder, LoraConfig(targets=("layer.1.attention.self.query",)))
    stem = "backbone.base_model.model.encoder.layer.1.attention.self.query."
    assert set(encoder.trainable()) == {stem + "lora_A.default.weight", stem + "lora_B.default.weight"}


@pytest.mark.parametrize(
    "targets",
    [("q_proj",), ("attention", "q_proj"), ("uery",), ("que.y",), (".*",), ("",), ("LayerNorm",), ("word_embeddings",)],
    ids=repr,
)
def test_a_target_that_matches_nothing_is_refused_with_what_there_is(
    targets: tuple[str, ...], tiny_model: Build
) -> None:
    encoder = load_encoder(str(tiny_model("bert")))
    with pytest.raises(InputError) as caught:
        add_lora(encoder, LoraConfig(targets=targets))
    there = ", ".join(sorted([*BERT_ATTENTION, "intermediate.dense", "output.dense"]))
    assert str(caught.value) == f"lora.targets: {targets[-1]!r} matches no linear layer; there are {there}"
    assert all(parameter.requires_grad for parameter in encoder.parameters())  # nothing was begun


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "options"),
    [("mpnet", {}), ("mpnet", {"rslora": True, "dora": True}), ("distilbert", {"dora": True})],
    ids=str,
)
def test_exactly_the_adapters_train_and_fresh_ones_change_nothing(
    family: str, options: dict[str, bool], tiny_model: Build
) -> None:
    encoder = load_encoder(str(tiny_model(family)))
    before, fingerprint = embeddings(encoder), weights_fingerprint(encoder)
    add_lora(encoder, LoraConfig(rank=4, alpha=6, dropout=0.1, **options))
    kinds = {"lora_A", "lora_B"} | ({"lora_magnitude_vector"} if options.get("dora") else set())
    assert {name.split(".lora_")[1].split(".")[0] for name in encoder.trainable()} == {
        kind.removeprefix("lora_") for kind in kinds
    }
    frozen = [parameter for parameter in encoder.parameters() if not parameter.requires_grad]
    assert len(frozen) == len(list(load_encoder(str(tiny_model(family))).parameters()))
    scales = {module.scaling["default"] for module in encoder.modules() if hasattr(module, "lora_A")}
    assert scales == {6 / math.sqrt(4) if options.get("rslora") else 6 / 4}
    np.testing.assert_allclose(embeddings(encoder), before, rtol=0, atol=1e-6)

    assert weights_fingerprint(encoder) != fingerprint  # the adapters count
    kept = [parameter.clone() for parameter in frozen]
    encoder.train()
    batch = tokenize_sides(encoder, TEXTS).batch(np.arange(len(TEXTS)))
    optimizer = torch.optim.SGD(encoder.trainable().values(), lr=1.0)
    encoder(batch).square().sum().backward()
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(frozen, kept, strict=True))
    assert np.abs(embeddings(encoder) - before).max() > 1e-3


# ---- other families


@pytest.mark.slow
@pytest.mark.parametrize("family", ["electra", "albert"])
def test_an_unknown_family_takes_the_padded_path_and_says_so(family: str, tiny_model: Build, tmp_path: Path) -> None:
    folder = other_model(family, tmp_path / family, tiny_model("bert"))
    with console.capture() as captured:
        encoder = load_encoder(str(folder))
    line = captured.get()
    assert line.startswith(f"{family} is none of ")
    assert line.endswith(": training on the padded path\n")
    assert line.count("\n") == 1

    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(TEXTS, truncation=True, padding=True, return_tensors="pt")
    mask = inputs["attention_mask"]
    with torch.no_grad():
        hidden = model(input_ids=inputs["input_ids"], attention_mask=mask).last_hidden_state
    expected = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    np.testing.assert_allclose(embeddings(encoder), expected.numpy(), rtol=0, atol=TOLERANCE)
    assert_equals_peer(encoder, folder)


def test_lora_in_an_unknown_family_asks_for_endings(tiny_model: Build, tmp_path: Path) -> None:
    folder = other_model("electra", tmp_path / "electra", tiny_model("bert"))
    with pytest.raises(InputError, match=r"not known for electra; name endings .*: attention\.output.*; or set lora\."):
        add_lora(load_encoder(str(folder)), LoraConfig())
    encoder = load_encoder(str(folder))
    add_lora(encoder, LoraConfig(targets=("query", "value")))
    assert adapted(encoder) == {"attention.self.query", "attention.self.value"}


def test_a_model_without_linear_layers_is_for_full_fine_tuning(tiny_model: Build, tmp_path: Path) -> None:
    folder = other_model("gpt2", tmp_path / "gpt2", tiny_model("bert"))
    with pytest.raises(InputError, match=r"^lora\.enabled: gpt2 has no linear layers .*; set lora\.enabled = false$"):
        add_lora(load_encoder(str(folder)), LoraConfig())


def test_nothing_warns_of_what_users_cannot_change(tiny_model: Build) -> None:
    """PEFT asks transformers for a property by its old name."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        encoder = load_encoder(str(tiny_model("bert")))
        add_lora(encoder, LoraConfig())
        assert not [warning for warning in caught if warning.category is FutureWarning]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_known_family_says_nothing(family: str, tiny_model: Build, capfd: pytest.CaptureFixture[str]) -> None:
    load_encoder(str(tiny_model(family)))
    assert capfd.readouterr() == ("", "")
