"""Exported graphs: the model's own embeddings without torch, judged before they are kept, used like any other model."""

from __future__ import annotations

import importlib.util
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from oracles import edit_json

pytest.importorskip("onnxruntime", reason="the extra `serve` is not installed")
pytest.importorskip("onnxscript", reason="the extra `serve` is not installed")

from trainer.data.incidents import generate_pairs
from trainer.data.pairs import pairs_from_columns
from trainer.errors import CheckpointError, InputError, LostTooMuch, StorageError
from trainer.evaluation.question import EncoderQuestion, asked_of_export
from trainer.main import cli
from trainer.model.encoder import Encoder, embedding_conditions, weights_fingerprint
from trainer.model.export import save_model
from trainer.model.loading import load_encoder
from trainer.model.runtime import EMBEDDING, GRAPHS, HIDDEN, ONNX, SERVING, open_graph
from trainer.model.tiny import build_tiny_mpnet
from trainer.serving import export as exporting
from trainer.serving import graph as graphs
from trainer.serving import judging
from trainer.serving.export import ExportRequest, export
from trainer.serving.graph import require_family
from trainer.serving.judging import PairsToJudge, judge_export, pairs_to_judge
from trainer.serving.proof import differences, probe_texts, require_equal
from trainer.system.files import write_manifest

Build = Callable[[str], Path]
TOLERANCE = 1e-5
TEXTS = ["the printer on floor 2 is jammed", "", "paper", "vpn " * 200, "cannot send mail, it bounces <pad> [PAD]"]
KINDS = {  # family -> pooling, normalise, cut
    "mpnet": ("mean", True, 64),
    "bert": ("cls", False, 64),
    "roberta": ("mean", False, 40),
    "distilbert": ("cls", True, 40),
}


def source_of(family: str, folder: Path) -> Path:
    """The folder of a model of one layer that has prompts of its own, and pools as KINDS says."""
    plain = build_tiny_mpnet(folder.with_name(f"{family}-plain"), filter(None, TEXTS), family=family, layers=1)
    encoder = load_encoder(str(plain), prompts=("query: ", "passage: "))
    pooling, normalize, _ = KINDS[family]
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)  # norms and biases that do something
    encoder.spec = replace(encoder.spec, pooling=pooling, normalize=normalize)
    if pooling == "mean":
        encoder.dense = torch.linalg.qr(torch.randn(encoder.width, encoder.width)).Q
    save_model(encoder, folder, "# A card\n")
    return folder


def write_pairs(path: Path, rows: int = 40) -> Path:
    path.write_text(json.dumps(generate_pairs(rows, 0, "dev")), encoding="utf-8")
    return path


def write_words(path: Path) -> Path:
    """Pairs of one length: the same two words the other way round, or two others."""
    words = ["printer", "floor", "paper", "vpn", "mail", "bounces"]
    twos = list(zip(words, words[1:] + words[:1], strict=True))
    columns: dict[str, list[Any]] = {"texts1": [], "texts2": [], "labels": []}
    for place, (first, second) in enumerate(twos):
        for text, label in ((f"{second} {first}", 1), (" ".join(twos[place - 3]), 0)):
            for name, value in zip(columns, (f"{first} {second}", text, label), strict=True):
                columns[name].append(value)
    path.write_text(json.dumps(columns), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], tuple[Path, Path]]]:
    """Family -> (folder of the model, folder of its export); one export a family, as each takes seconds."""
    root, known = tmp_path_factory.mktemp("exports"), dict[str, tuple[Path, Path]]()

    def make(family: str) -> tuple[Path, Path]:
        if family not in known:
            source, pairs = source_of(family, root / family), write_pairs(root / f"{family}.json")
            request = ExportRequest(str(source), dim=KINDS[family][2], pairs=str(pairs))
            known[family] = source, export(request)
        return known[family]

    yield make


def expected(encoder: Encoder, dim: int, texts: list[str]) -> np.ndarray:
    """What a service gets: pooled, cut, then of length one where the model normalises."""
    rows = encoder.embed(encoder.tokenize(texts, ("",)))[:, :dim]
    return (torch.nn.functional.normalize(rows, dim=1) if encoder.spec.normalize else rows).numpy()


@pytest.mark.slow
@pytest.mark.parametrize("family", KINDS)
def test_a_graph_gives_the_models_embeddings(family: str, exported: Callable[[str], tuple[Path, Path]]) -> None:
    source, folder = exported(family)
    encoder, served, dim = load_encoder(str(source)), load_encoder(str(folder)), KINDS[family][2]
    for side in (None, "query", "document"):
        ours, theirs = (each.encode(TEXTS, side=side, dims=32, normalize=True) for each in (encoder, served))
        np.testing.assert_allclose(theirs, ours, atol=TOLERANCE)
    alone = np.concatenate([served.embed(served.tokenize([text], ("",))) for text in TEXTS])
    wanted = expected(encoder, dim, TEXTS)
    np.testing.assert_allclose(alone, wanted, atol=TOLERANCE * np.abs(wanted).max())
    assert served.width == dim and folder.name == f"{family}-onnx{'' if dim == encoder.width else f'-{dim}'}"
    assert weights_fingerprint(served) != weights_fingerprint(encoder)
    assert replace(embedding_conditions(served), weights_fingerprint="") == replace(
        embedding_conditions(encoder), weights_fingerprint=""
    )


@pytest.mark.slow
@pytest.mark.parametrize("family", KINDS)
def test_a_graph_is_the_models_own_forward_at_every_length(
    family: str, exported: Callable[[str], tuple[Path, Path]]
) -> None:
    source, folder = exported(family)
    model, graph = load_encoder(str(source)).model.eval(), open_graph(folder, ONNX)
    # To the longest: MPNet's buckets by distance change at 8, 16, 32 and 64 tokens.
    for count, length in ((1, 1), (3, 1), (1, 2), (2, 17), (3, 33), (2, 128)):
        ids, mask = torch.randint(5, 30, (count, length)), torch.ones(count, length, dtype=torch.int64)
        ids[0, length // 2 + 1 :], mask[0, length // 2 + 1 :] = model.config.pad_token_id, 0
        with torch.no_grad():
            wanted = model(input_ids=ids, attention_mask=mask).last_hidden_state.numpy()
        hidden, embeddings = graph((HIDDEN, EMBEDDING), ids.numpy(), mask.numpy())
        np.testing.assert_allclose(hidden[mask.numpy() == 1], wanted[mask.numpy() == 1], atol=TOLERANCE)
        assert embeddings.shape == (count, KINDS[family][2])


@pytest.mark.slow
def test_a_folder_says_what_it_is_and_serves_without_torch(exported: Callable[[str], tuple[Path, Path]]) -> None:
    source, folder = exported("mpnet")
    facts = json.loads((folder / SERVING).read_bytes())
    assert facts["dims"] == [64] and facts["opset"] >= 18 and facts["max_length"] == 128 and facts["normalize"]
    assert facts["model"]["weights_fingerprint"] == weights_fingerprint(load_encoder(str(source)))
    assert facts["versions"]["torch"] and facts["judgement"]["metric"] == "spearman"
    assert 0 < max(facts["differences"][name] for name in ("hidden", "embeddings", "batched")) < TOLERANCE
    assert str(Path(graphs.__file__).parent).encode() not in (folder / GRAPHS[ONNX]).read_bytes()
    # As in trainer/serving/README.md.
    code = """
import sys, numpy, onnxruntime, tokenizers
tokenizer = tokenizers.Tokenizer.from_file(sys.argv[1] + "/tokenizer.json")
session = onnxruntime.InferenceSession(sys.argv[1] + "/model.onnx")
batch = tokenizer.encode_batch(["vpn drops", "paper " * 300])
inputs = {"input_ids": [each.ids for each in batch], "attention_mask": [each.attention_mask for each in batch]}
embeddings = session.run(["sentence_embedding"], {name: numpy.array(rows) for name, rows in inputs.items()})[0]
print(embeddings.tolist())
"""
    ended = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    wanted = expected(load_encoder(str(source)), 64, ["vpn drops", "paper " * 300])
    np.testing.assert_allclose(np.array(json.loads(ended.stdout)), wanted, atol=TOLERANCE)


@pytest.mark.slow
def test_weights_in_int8_are_close_and_judged(
    exported: Callable[[str], tuple[Path, Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, folder = exported("mpnet")
    # The graph in fp32 is at hand; what is under test begins behind it.
    monkeypatch.setattr(
        exporting,
        "write_onnx",
        lambda encoder, dim, to: (to / GRAPHS[ONNX]).write_bytes((folder / GRAPHS[ONNX]).read_bytes()) and 20,
    )
    pairs = write_words(tmp_path / "pairs.json")
    arguments = ["export", "--model", str(source), "--int8", "--pairs", str(pairs), "--output"]
    assert cli([*arguments, str(tmp_path / "int8"), "--allow-loss", "0.1"]) == 0
    served, encoder = load_encoder(str(tmp_path / "int8")), load_encoder(str(source))
    cosines = (served.encode(TEXTS) * encoder.encode(TEXTS)).sum(1)
    assert 0.9 < cosines.min() < 1 - 1e-6
    assert json.loads((tmp_path / "int8" / SERVING).read_bytes())["int8"]
    assert (tmp_path / "int8" / GRAPHS[ONNX]).stat().st_size < 0.6 * (folder / GRAPHS[ONNX]).stat().st_size

    def spoil(to: Path, _: str) -> None:
        """Zeros in place of the token embeddings, as if all of them were rounded away."""
        import onnx

        model = onnx.load(to / GRAPHS[ONNX])
        for tensor in model.graph.initializer:
            if len(tensor.dims) == 2 and tensor.raw_data and "word_embeddings" in tensor.name:
                tensor.raw_data = bytes(len(tensor.raw_data))
        onnx.save(model, to / GRAPHS[ONNX])

    monkeypatch.setattr(exporting, "quantize", spoil)
    assert cli([*arguments, str(tmp_path / "spoiled"), "--allow-loss", "0"]) == 1
    shown = capsys.readouterr().err
    assert "more than --allow-loss 0" in shown and "model -> exported" in shown
    assert not list(tmp_path.glob("*spoiled*"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_nothing_behind(
    number: int, tiny_model: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    begun = []

    def forward(self: object, input_ids: object, attention_mask: object) -> None:
        """What raises an Exception here does not end torch's exporter."""
        begun.extend(tmp_path.iterdir())
        signal.raise_signal(number)

    monkeypatch.setattr(graphs.EmbeddingGraph, "forward", forward)
    assert cli(["export", "--model", str(tiny_model("bert")), "--output", str(tmp_path / "graph")]) == 75
    assert len(begun) == 1 and not list(tmp_path.iterdir())
    assert "error: stopped by a signal; nothing is exported" in capfd.readouterr().err


@pytest.mark.slow
def test_a_graph_that_differs_is_not_kept(
    exported: Callable[[str], tuple[Path, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, folder = exported("mpnet")
    encoder = load_encoder(str(source))
    texts = probe_texts(encoder, TEXTS)
    gaps = differences(encoder, 64, folder, texts)
    require_equal(gaps)
    with torch.no_grad():
        encoder.model.encoder.relative_attention_bias.weight[3] += 1  # one bucket of MPNet's distances
    with pytest.raises(CheckpointError, match="differ from the model's by"):
        require_equal(differences(encoder, 64, folder, texts))
    encoder.tokenizer.backend_tokenizer.normalizer = None
    with pytest.raises(CheckpointError, match="other tokens"):
        differences(encoder, 64, folder, ["The PRINTER"])


@pytest.mark.slow
def test_an_export_is_a_model_of_every_command_but_train(
    exported: Callable[[str], tuple[Path, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, folder = exported("mpnet")
    assert asked_of_export(str(folder)) == {"dims": (64,), "baseline": str(source.resolve())}
    assert asked_of_export(str(source)) == {}
    pairs, out = write_pairs(tmp_path / "pairs.json"), tmp_path / "out.json"
    assert (
        cli(["evaluate", "--model", str(folder), "--pairs", str(pairs), "--json", str(out), "--resamples", "100"]) == 0
    )
    record = json.loads(out.read_bytes())
    assert record["model"]["64"]["spearman"] == pytest.approx(record["baseline"]["64"]["spearman"], abs=1e-4)
    assert np.abs(record["intervals"]["difference"]["64"]["spearman"]).max() < 1e-3
    tickets = tmp_path / "tickets.csv"
    tickets.write_text("number,short_description\nINC1,vpn drops every hour\nINC2,paper stuck in printer\n")
    index = ["--output", str(tmp_path / "index")]
    assert cli(["index", "--model", str(folder), "--tickets", str(tickets), *index]) == 0
    assert (
        cli(["search", "--index", str(tmp_path / "index"), "--text", "vpn drops every hour", "--format", "jsonl"]) == 0
    )
    assert json.loads(capsys.readouterr().out)["results"][0]["id"] == "INC1"
    assert (
        cli(["index", "--model", str(source), "--tickets", str(tickets), *index]) == 2
    )  # of the same weights, in torch
    assert cli(["train", "--set", f"model.name={folder}", "--set", f"data.train={pairs}"]) == 2
    assert "an exported graph is not trained" in capsys.readouterr().err


@pytest.mark.slow
def test_a_damaged_folder_is_one_line(exported: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    _, folder = exported("mpnet")
    for name in (GRAPHS[ONNX], "tokenizer.json", SERVING):
        broken = Path(shutil.copytree(folder, tmp_path / name))
        content = bytearray((broken / name).read_bytes())
        content[len(content) // 2] ^= 1
        (broken / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name} is not what was written; copy or export it again"):
            load_encoder(str(broken))
    older = Path(shutil.copytree(folder, tmp_path / "older"))
    edit_json(older / SERVING, opset=None)
    write_manifest(older)
    with pytest.raises(InputError, match="of another version"):
        load_encoder(str(older))
    with pytest.raises(InputError, match="fixed; name what it was made of"):
        load_encoder(str(folder), max_length=16)


def test_what_cannot_be_is_said_before_any_work(tiny_model: Build, tmp_path: Path) -> None:
    model = str(tiny_model("mpnet"))
    asked = ExportRequest(model, output=tmp_path / "new")
    kind, spec = SimpleNamespace(model_type="t5"), SimpleNamespace(name="t5")
    stranger: Any = SimpleNamespace(model=SimpleNamespace(config=kind), spec=spec)
    for change, message in (
        ({"allow_loss": float("nan")}, "--allow-loss nan"),
        ({"dim": 65}, "--dims 65: embeddings of .* have 64"),
        ({"pairs": str(tmp_path / "none.json")}, "none.json"),
    ):
        with pytest.raises(InputError, match=message):
            export(replace(asked, **change))
    with pytest.raises(InputError, match="--dims 0"):
        export(replace(asked, dim=0))
    with pytest.raises(InputError, match="is none of bert"):
        require_family(stranger)
    with pytest.raises(StorageError, match="exists already"):
        export(replace(asked, output=tmp_path))
    assert not list(tmp_path.iterdir())
    shutil.copytree(model, tmp_path / "own")
    (tmp_path / "own-onnx").mkdir()  # the export of all dims, which is none of 32
    beside = ExportRequest(str(tmp_path / "own"), pairs=str(tmp_path / "none.json"))
    with pytest.raises(InputError, match="file not found"):
        export(replace(beside, dim=32))
    with pytest.raises(StorageError, match="own-onnx: exists already"):
        export(beside)


def test_more_loss_than_is_allowed_is_an_error(
    tiny_model: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load_encoder(str(tiny_model("mpnet")))
    other = load_encoder(str(tiny_model("bert")))
    monkeypatch.setattr(judging, "load_encoder", lambda name: other)
    table = pairs_from_columns(generate_pairs(60, 0, "dev"), "dev")
    pairs = PairsToJudge(table, "spearman", (64, 16))
    figures = judge_export(encoder, tmp_path, pairs, allowed=2.0)["dims"]
    lost = {dim: each["model"] - each["exported"] for dim, each in figures.items()}
    assert max(map(abs, lost.values())) > 1e-3
    worst = max(lost, key=lambda dim: lost[dim])
    judge_export(encoder, tmp_path, pairs, allowed=lost[worst] + 1e-6)
    with pytest.raises(LostTooMuch, match=f"at {worst} dims"):
        judge_export(encoder, tmp_path, pairs, allowed=lost[worst] - 1e-6)


def test_an_export_is_judged_in_the_corpus_of_its_run(
    tiny_model: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Path(shutil.copytree(tiny_model("mpnet"), tmp_path / "model"))
    table, other = generate_pairs(30, 0, "dev"), generate_pairs(40, 0, "test")["texts1"]
    (tmp_path / "dev.json").write_text(json.dumps(table))
    (tmp_path / "tickets.csv").write_text("description\n" + "\n".join(json.dumps(text) for text in other))
    data = f'[data]\ntrain = "incidents"\ndev = "{tmp_path}/dev.json"\ncorpus = "{tmp_path}/tickets.csv"\n'
    asked = EncoderQuestion(str(model))
    (tmp_path / "config.toml").write_text(f'{data}[eval]\nmetric = "spearman"\n[loss]\ndims = [64, 32]\n')
    by_labels = pairs_to_judge(asked, 64)
    assert by_labels and by_labels.metric == "spearman" and by_labels.corpus is None
    (tmp_path / "config.toml").write_text(f"{data}[loss]\ndims = [64, 32]\n")
    pairs = pairs_to_judge(asked, 64)
    assert pairs and pairs.metric == "mrr@10" and pairs.dims == (64, 32)
    corpus = pairs.corpus
    assert corpus and set(other) <= set(corpus.texts)
    encoder, spoiled = load_encoder(str(model)), load_encoder(str(model))
    with torch.no_grad():
        spoiled.model.embeddings.word_embeddings.weight[::2] = 0
    monkeypatch.setattr(judging, "load_encoder", lambda name: spoiled)
    figures = judge_export(encoder, tmp_path, pairs, allowed=1.0)["dims"]
    for system, each in (("model", encoder), ("exported", spoiled)):
        rows = each.encode(corpus.texts, dims=32, normalize=True)
        scores = np.where(corpus.excluded.toarray(), -np.inf, rows[corpus.queries] @ rows.T)
        right = np.where(corpus.relevant.toarray(), scores, -np.inf).max(axis=1, keepdims=True)
        rank = 1 + (scores > right + 1e-6).sum(axis=1)
        assert figures["32"][system] == pytest.approx(np.where(rank <= 10, 1 / rank, 0).mean(), abs=0.02)
    assert figures["32"]["model"] > figures["32"]["exported"] + 0.02
    with pytest.raises(LostTooMuch, match=r"of mrr@10, more than --allow-loss 0\.01"):
        judge_export(encoder, tmp_path, pairs, allowed=0.01)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed")
def test_openvino_gives_the_same_and_reports_nothing(tmp_path: Path) -> None:
    source, pairs = source_of("bert", tmp_path / "bert"), write_words(tmp_path / "pairs.json")
    folder = export(ExportRequest(str(source), "openvino", pairs=str(pairs)))
    encoder = load_encoder(str(source))
    wanted = encoder.encode(TEXTS, normalize=True)
    np.testing.assert_allclose(load_encoder(str(folder)).encode(TEXTS, normalize=True), wanted, atol=TOLERANCE)
    assert json.loads((folder / SERVING).read_bytes())["versions"]["openvino"]
    assert sys.modules["openvino_telemetry"] is None  # by which OpenVINO and NNCF would report to their maker
    if importlib.util.find_spec("nncf") is None:
        with pytest.raises(InputError, match="nncf is not installed; pip install nncf"):
            export(ExportRequest(str(source), "openvino", int8=True))
        return
    smaller = export(ExportRequest(str(source), "openvino", int8=True, pairs=str(pairs), allow_loss=0.1))
    cosines = (load_encoder(str(smaller)).encode(TEXTS, normalize=True) * wanted).sum(1)
    assert smaller.name == "bert-openvino-int8" and 0.95 < cosines.min() < 1 - 1e-7
    weights = [(place / "openvino_model.bin").stat().st_size for place in (folder, smaller)]
    assert weights[1] < 0.5 * weights[0] and not (smaller / "int8").exists()
