"""Judging an encoder: each text once, nothing disturbed, the real encoder's known figures."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from trainer.encoder import load_encoder
from trainer.errors import InputError, NumericError
from trainer.evaluation import PairSet, embed, evaluate, evaluate_at, json_ready, tokenize_for, verdict
from trainer.incidents import generate_pairs
from trainer.judge import judge
from trainer.main import cli
from trainer.pairs import pairs_from_columns, read_pairs


@pytest.fixture(scope="module")
def encoder(tiny_model):
    return load_encoder(str(tiny_model("mpnet")))


@pytest.fixture(scope="module")
def table():
    return pairs_from_columns(generate_pairs(48, 3, "dev"), "dev")


def test_evaluation_leaves_mode_and_random_state_alone(encoder, table):
    encoder.train()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = evaluate(encoder, PairSet.build(table, encoder), (64, 8))
    assert torch.equal(torch.get_rng_state(), before) and encoder.training
    assert evaluate(encoder, PairSet.build(table, encoder), (64, 8)) == first  # dropout was off
    encoder.eval()


def test_each_unique_text_is_encoded_once_and_in_its_place(encoder, table, monkeypatch):
    seen = []
    real = type(encoder).forward

    def counting(self, batch):
        seen.append(len(batch.lengths))
        return real(self, batch)

    monkeypatch.setattr(type(encoder), "forward", counting)
    tokens = tokenize_for(encoder, table.texts)
    monkeypatch.setattr("trainer.evaluation.TOKENS_PER_BATCH", 100)
    together = embed(encoder, tokens)
    assert sum(seen) == len(table.texts) and len(seen) > 1
    alone = np.concatenate([embed(encoder, tokenize_for(encoder, [text])) for text in table.texts])
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_metrics_are_those_of_the_cosines(encoder, table):
    metrics = evaluate(encoder, PairSet.build(table, encoder), (16, 64))
    rows = embed(encoder, tokenize_for(encoder, table.texts)).astype(np.float64)
    for dim in (16, 64):
        a, b = rows[table.text1, :dim], rows[table.text2, :dim]
        cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        gap = cosines[table.label].mean() - cosines[~table.label].mean()
        assert metrics[str(dim)]["separability"] == pytest.approx(gap, abs=1e-6)


def test_a_threshold_from_elsewhere_is_applied_as_it_is(encoder, table):
    pairs = PairSet.build(table, encoder)
    fitted = evaluate(encoder, pairs, (64,))["64"]
    strict = evaluate_at(encoder, pairs, {"64": 2.0})["64"]
    assert strict["recall"] == 0 and strict["f1"] == 0 and strict["threshold"] == 2.0
    assert strict["roc_auc"] == fitted["roc_auc"] and fitted["f1"] > 0
    assert evaluate_at(encoder, pairs, {"64": fitted["threshold"]})["64"]["f1"] == pytest.approx(fitted["f1"])


def test_a_broken_encoder_is_a_numeric_error(tiny_model, table):
    broken = load_encoder(str(tiny_model("mpnet")))
    with torch.no_grad():
        broken.model.encoder.layer[1].output.LayerNorm.bias.fill_(float("nan"))
    with pytest.raises(NumericError):
        evaluate(broken, PairSet.build(table, broken), (64,))


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((0.5, 0.4), (0.6, 0.5), "BETTER"),
        ((0.5, 0.4), (0.6, 0.4), "MIXED"),
        ((0.5, 0.4), (0.5, 0.9), "NOT BETTER"),
        ((math.nan, 0.4), (0.5, 0.5), "NOT BETTER"),
    ],
)
def test_verdict(before, after, expected):
    baseline, final = ({"64": {"spearman": v[0]}, "8": {"spearman": v[1]}} for v in (before, after))
    assert verdict(baseline, final, "spearman") == expected


def test_nan_is_null_in_json():
    assert json.loads(json.dumps(json_ready({"a": [math.nan, 1.0, math.inf], "b": "x"}))) == {
        "a": [None, 1.0, None],
        "b": "x",
    }


@pytest.fixture
def files(tmp_path):
    paths = {part: tmp_path / f"{part}.json" for part in ("dev", "test")}
    for part, path in paths.items():
        path.write_text(json.dumps(generate_pairs(48, 3, part)))
    return paths


def test_the_evaluate_command(tiny_model, files, tmp_path, capfd):
    model, out = str(tiny_model("mpnet")), tmp_path / "out.json"
    arguments = ["--model", model, "--pairs", str(files["test"]), "--dev", str(files["dev"]), "--baseline", model]
    assert cli(["evaluate", *arguments, "--dims", "64,16", "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["model"] == found["baseline"] and set(found["model"]) == {"64", "16"}
    assert found["verdict"] == "NOT BETTER" and "dev.json" in found["thresholds_from"]
    assert "Thresholds fitted on" in capfd.readouterr().err
    assert "in-sample" in judge(model, str(files["test"])).thresholds_from


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"--dims": "128"}, "64 wide"),
        ({"--dims": "x"}, "--dims"),
        ({"--model": "no/such-model"}, "no/such-model"),
        ({"--pairs": "nowhere.csv"}, "nowhere.csv"),
        ({"--dev": "same"}, "texts are also in"),
    ],
)
def test_bad_input_of_evaluate(tiny_model, files, changes, word, capfd):
    arguments = {"--model": str(tiny_model("mpnet")), "--pairs": str(files["test"]), **changes}
    if arguments.get("--dev") == "same":
        arguments["--dev"] = str(files["test"])
    assert cli(["evaluate", *[part for pair in arguments.items() for part in pair]]) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and word in said


def test_models_of_different_widths_are_not_compared(tiny_model, tmp_path, files):
    from trainer.tiny import build_tiny_mpnet

    other = build_tiny_mpnet(tmp_path / "narrow", ["a"], hidden=32)
    with pytest.raises(InputError, match="32 wide"):
        judge(str(tiny_model("mpnet")), str(files["test"]), baseline=str(other))


def test_the_real_encoder_has_its_known_figures(real_encoder, shared_data):
    """Published or independently computed values: any slip in pooling, tokenising or metrics moves them."""
    model = load_encoder(str(real_encoder))
    incidents = read_pairs(shared_data / "itsm_pairs_dev.json")
    metrics = evaluate(model, PairSet.build(incidents, model), (384,))["384"]
    assert metrics["spearman"] == pytest.approx(0.5575, abs=1e-4)
    assert metrics["roc_auc"] == pytest.approx(0.8219, abs=1e-4)
    sts = read_pairs(shared_data / "stsb-en-dev.csv", label_scale=5.0)
    metrics = evaluate(model, PairSet.build(sts, model), (384, 64))
    assert metrics["384"]["spearman"] == pytest.approx(0.8672, abs=1e-4)
    assert metrics["64"]["spearman"] == pytest.approx(0.8385, abs=1e-4)
