"""Judging an encoder: each text once, nothing disturbed, the real encoder's known figures."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
import torch

from trainer.data.incidents import generate_pairs
from trainer.data.pairs import pairs_from_columns, read_pairs
from trainer.errors import InputError, NumericError
from trainer.evaluation.judge import Question, judge, judgement_record
from trainer.evaluation.metric_choice import SEARCH_METRICS
from trainer.evaluation.scoring import PairSet, evaluate, metrics_at, pair_cosines
from trainer.evaluation.search_set import SearchedTexts
from trainer.main import cli
from trainer.model.embedding import embed, embed_cached, tokenize_sides
from trainer.model.loading import load_encoder
from trainer.system.console import console
from trainer.system.files import json_ready


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


@pytest.mark.slow
def test_each_unique_text_is_encoded_once_and_in_its_place(encoder, table, monkeypatch):
    seen = []
    real = type(encoder).forward

    def counting(self, batch):
        seen.append(len(batch.lengths))
        return real(self, batch)

    monkeypatch.setattr(type(encoder), "forward", counting)
    tokens = tokenize_sides(encoder, table.texts)
    monkeypatch.setattr("trainer.model.embedding.TOKENS_PER_BATCH", 100)
    together = embed(encoder, tokens)
    assert sum(seen) == len(table.texts) and len(seen) > 1
    alone = np.concatenate([embed(encoder, tokenize_sides(encoder, [text])) for text in table.texts[::3]])
    np.testing.assert_allclose(together[::3], alone, atol=1e-6)


def test_metrics_are_those_of_the_cosines(encoder, table):
    metrics = evaluate(encoder, PairSet.build(table, encoder), (16, 64))
    rows = embed(encoder, tokenize_sides(encoder, table.texts)).astype(np.float64)
    for dim in (16, 64):
        a, b = rows[table.text1, :dim], rows[table.text2, :dim]
        cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        gap = cosines[table.label].mean() - cosines[~table.label].mean()
        assert metrics[str(dim)]["separability"] == pytest.approx(gap, abs=1e-6)


def test_a_threshold_from_elsewhere_is_applied_as_it_is(encoder, table):
    pairs = PairSet.build(table, encoder)
    fitted = evaluate(encoder, pairs, (64,))["64"]
    cosines = pair_cosines(embed(encoder, pairs.tokens), table, (64,))
    strict = metrics_at(cosines, table, {"64": 2.0})["64"]
    assert strict["recall"] == 0 and strict["f1"] == 0 and strict["threshold"] == 2.0
    assert strict["roc_auc"] == fitted["roc_auc"] and fitted["f1"] > 0
    assert metrics_at(cosines, table, {"64": fitted["threshold"]})["64"]["f1"] == fitted["f1"]


def test_a_broken_encoder_is_a_numeric_error(tiny_model, table):
    broken = load_encoder(str(tiny_model("mpnet")))
    with torch.no_grad():
        broken.model.encoder.layer[1].output.LayerNorm.bias.fill_(float("nan"))
    with pytest.raises(NumericError):
        evaluate(broken, PairSet.build(table, broken), (64,))


def test_nan_is_null_in_json():
    assert json.loads(json.dumps(json_ready({"a": [math.nan, 1.0, math.inf], "b": "x"}))) == {
        "a": [None, 1.0, None],
        "b": "x",
    }


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRAINER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "embeddings"


@pytest.fixture
def encoded(monkeypatch):
    """Counts how many texts went through an encoder."""
    counted = []
    real = embed

    def counting(encoder, tokens, *rest, **options):
        counted.append(len(tokens.lengths))
        return real(encoder, tokens, *rest, **options)

    monkeypatch.setattr("trainer.model.embedding.embed", counting)
    return counted


@pytest.mark.slow
def test_the_same_texts_are_not_embedded_twice_by_the_same_model(tiny_model, table, cache, encoded, tmp_path):
    first = load_encoder(str(tiny_model("mpnet")))
    tokens = tokenize_sides(first, table.texts)
    rows = embed_cached(first, tokens)
    assert np.array_equal(rows, embed(first, tokens)) and len(encoded) == 1
    copy = tmp_path / "copy"
    shutil.copytree(tiny_model("mpnet"), copy)
    assert np.array_equal(embed_cached(load_encoder(str(copy)), tokens), rows) and len(encoded) == 1
    # Whatever changes embeddings changes the key.
    assert len(embed_cached(first, tokenize_sides(first, table.texts[1:]))) == len(rows) - 1 and len(encoded) == 2
    assert not np.array_equal(embed_cached(load_encoder(str(copy), pooling="cls"), tokens), rows)
    with torch.no_grad():
        first.model.encoder.layer[1].output.LayerNorm.bias[0] += 0.1
    assert not np.array_equal(embed_cached(first, tokens), rows)
    settings = json.loads((copy / "config.json").read_text()) | {"layer_norm_eps": 0.5}
    (copy / "config.json").write_text(json.dumps(settings))
    assert not np.array_equal(embed_cached(load_encoder(str(copy)), tokens), rows)
    assert len(encoded) == 5 == len(list(cache.iterdir()))


@pytest.mark.parametrize(
    "damage", [lambda data: b"", lambda data: data[:-1], lambda data: data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]]
)
def test_damaged_embeddings_are_made_again(damage, encoder, table, cache, encoded):
    tokens = tokenize_sides(encoder, table.texts)
    rows = embed_cached(encoder, tokens)
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    with console.capture() as captured:
        assert np.array_equal(embed_cached(encoder, tokens), rows)
    assert f"{path}: damaged; embedding again" in captured.get() and len(encoded) == 2
    assert path.read_bytes() == whole


@pytest.fixture
def files(tmp_path):
    paths = {part: tmp_path / f"{part}.json" for part in ("dev", "test")}
    for part, path in paths.items():
        path.write_text(json.dumps(generate_pairs(120, 3, part)))
    paths["sts"] = tmp_path / "sts.csv"
    rng = np.random.default_rng(0)
    rows = [f"a vpn {i},no mail {i * 7 % 60},{rng.integers(51) / 10}" for i in range(60)]
    paths["sts"].write_text("\n".join(rows) + "\n")
    return paths


@pytest.fixture
def model(tiny_model, tmp_path):
    """A folder that thresholds may be kept in."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model("mpnet"), folder)
    return folder


def test_the_evaluate_command(model, tiny_model, files, tmp_path, capfd):
    baseline, out = tiny_model("bert"), tmp_path / "out.json"
    arguments = ["--model", model, "--pairs", files["test"], "--dev", files["dev"], "--baseline", baseline]
    arguments += ["--dims", "64,16", "--json", out, "--resamples", "100", "--forgetting", files["sts"]]
    assert cli(["evaluate", *map(str, arguments)]) == 0
    found = json.loads(out.read_text())
    dims = {"64", "16"}
    for part in ("model", "baseline", "verdicts", "diagnostic", "forgetting"):
        assert set(found[part]) == dims
    assert set(found["intervals"]) == {"model", "baseline", "difference"}
    assert found["verdict"] in ("BETTER", "NOT BETTER", "UNCLEAR") and found["spearman_ceiling"] > 0.8
    assert found["thresholds_from"]["model"] == f"{files['dev']} by f1, where 50 % are positive"
    for system in ("model", "baseline"):
        assert found["thresholds"][system]["values"].keys() == dims
        assert {dim: found[system][dim]["threshold"] for dim in dims} == found["thresholds"][system]["values"]
    said = capfd.readouterr().err
    for word in ("ndcg@10", "Verdict by spearman", "INSUFFICIENT", "Highest Spearman", "general similarity"):
        assert word in said
    assert (
        f"Thresholds kept in {model}" in said
        and " at the dims 64, 16 alone" in said
        and not (baseline / "thresholds.json").exists()
    )


@pytest.mark.slow
def test_kept_thresholds_are_applied_frozen_and_in_sample_ones_are_named(model, tiny_model, files):
    def asked(**options):
        return judge(Question(str(model), str(files["test"]), dims=(64, 16), resamples=100, **options))

    loose = asked()
    assert loose.thresholds_from["model"] == f"{files['test']} by f1, where 50 % are positive (in-sample)"
    arguments = ["--model", model, "--pairs", files["test"], "--dev", files["dev"], "--dims", "64,16"]
    assert cli(["evaluate", *map(str, arguments), "--threshold", "false_positive_rate=0.2"]) == 0
    kept = asked(baseline=str(tiny_model("bert")))
    assert kept.thresholds["model"].values != loose.thresholds["model"].values
    assert "dev.json by false_positive_rate=0.2, where 50 % are positive, kept in" in kept.thresholds_from["model"]
    assert kept.in_sample("baseline") and not kept.in_sample("model")
    # Another rule than theirs would do nothing without pairs to fit on.
    with pytest.raises(
        InputError, match=r"--threshold f1: .*thresholds.json keeps those by false_positive_rate=0.2: name"
    ):
        asked(rule="f1")
    assert asked(rule="false_positive_rate=0.2").thresholds_from == {"model": kept.thresholds_from["model"]}
    # What was fitted on the judged pairs themselves is in-sample wherever it was kept.
    own = judge(Question(str(model), str(files["dev"]), dims=(16,), resamples=100))
    assert "kept in" in own.thresholds_from["model"] and own.in_sample("model")


@pytest.mark.slow
def test_tables_are_judged_as_their_files_are(model, files):
    asked = [
        Question(str(model), pairs, dev=dev, dims=(64, 16), resamples=100)
        for pairs, dev in (
            (str(files["test"]), str(files["dev"])),
            (read_pairs(files["test"]), read_pairs(files["dev"])),
        )
    ]
    from_files, from_tables = (json_ready(judgement_record(judge(question))) for question in asked)
    assert from_files == from_tables and from_files["question"]["pairs"] == str(files["test"])


def test_a_metric_that_is_none_ends_a_training_run_before_any_work(tmp_path, capfd):
    assert cli(["--set", "eval.metric=accuracy", "--output-dir", str(tmp_path / "run")]) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and 'eval.metric = "accuracy": use one of auto, spearman, ' in said
    assert not (tmp_path / "run" / "plan.json").exists()


@pytest.mark.slow
def test_a_model_beside_itself_is_not_better_and_encodes_nothing_new(model, files, cache, encoded):
    question = Question(str(model), str(files["test"]), baseline=str(model), dims=(64, 8), resamples=100)
    found = judge(question)
    assert found.assessment.metrics["model"] == found.assessment.metrics["baseline"] and found.verdict == "NOT BETTER"
    # `judge` has its own name for `embed`: what is counted here is what the cache could not give.
    assert len(encoded) == 1
    again = judge(question)
    assert (
        again.assessment.metrics == found.assessment.metrics
        and again.assessment.intervals == found.assessment.intervals
    )
    assert len(encoded) == 1


@pytest.mark.slow
def test_positives_alone_are_judged_by_search(model, tiny_model, files, tmp_path, capfd):
    """Also beside thresholds that are fitted on dev; what needs negatives is one line."""
    columns, pairs, out = json.loads(files["test"].read_text()), tmp_path / "ones.json", tmp_path / "out.json"
    kept = [row for row, label in enumerate(columns["labels"]) if label]
    pairs.write_text(json.dumps({name: [cells[row] for row in kept] for name, cells in columns.items()}))
    arguments = ["--model", model, "--pairs", pairs, "--baseline", tiny_model("bert"), "--dims", "64,16"]
    arguments += ["--resamples", "100", "--json", out]
    assert cli(["evaluate", *map(str, arguments), "--threshold", "precision=0.9"]) == 2
    assert f"--threshold precision=0.9: {pairs} holds positives alone: name pairs of both" in capfd.readouterr().err
    assert cli(["evaluate", *map(str, arguments), "--dev", str(files["dev"])]) == 0
    found, said = json.loads(out.read_text()), capfd.readouterr().err
    assert set(found["model"]["16"]) == set(found["intervals"]["difference"]["16"]) == set(SEARCH_METRICS)
    assert found["question"]["metric"] == "mrr@10" and found["verdict"] and found["spearman_ceiling"] is None
    assert "positives alone" in said and "Verdict by mrr@10" in said and "nan" not in said and "spearman" not in said
    assert json.loads((model / "thresholds.json").read_text())["source"] == str(files["dev"])
    expected = evaluate(load_encoder(str(model)), PairSet.build(read_pairs(pairs), load_encoder(str(model))), (64, 16))
    assert found["model"] == {dim: pytest.approx(values) for dim, values in expected.items()}
    for option, word in (("--metric", "f1"), ("--dev", str(pairs))):
        assert cli(["evaluate", *map(str, arguments), option, word]) == 2
        said = capfd.readouterr().err
        assert said.count("\n") == 1 and f"{option} {word}: " in said and "holds positives alone" in said


def test_search_is_measured_in_training_where_it_is_asked_for(encoder, table):
    plain = evaluate(encoder, PairSet.build(table, encoder), (64, 16))
    searched = evaluate(encoder, PairSet.build(table, encoder, searched=True), (64, 16))
    assert not plain["16"].keys() & set(SEARCH_METRICS)
    assert (
        searched["16"].keys() - plain["16"].keys() == set(SEARCH_METRICS)
        and searched["16"].items() > plain["16"].items()
    )
    rows = embed(encoder, tokenize_sides(encoder, table.texts))
    values = SearchedTexts.of_pairs(table).search("model", rows, (64, 16))["model"]
    assert searched["16"]["mrr@10"] == pytest.approx(values["mrr@10"][1].mean())


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"--dims": "128"}, "64 wide"),
        ({"--dims": "x"}, "--dims"),
        ({"--model": "no/such-model"}, "no/such-model"),
        ({"--pairs": "nowhere.csv"}, "nowhere.csv"),
        ({"--dev": "same"}, "texts are also in"),
        ({"--threshold": "precision=2"}, "precision=2"),
        ({"--metric": "false_positive_rate"}, "--metric"),
        ({"--forgetting": "sts"}, "--baseline"),
        ({"--forgetting": "nowhere.csv", "--baseline": "model"}, "nowhere.csv"),
        ({"--resamples": "10"}, "--resamples"),
        ({"--resamples": "many"}, "--resamples"),
        ({"--seed": "-1"}, "--seed"),
        ({"--fewest": "0"}, "--fewest"),
    ],
)
def test_bad_input_of_evaluate(tiny_model, files, changes, word, capfd):
    model = str(tiny_model("mpnet"))
    meant = {"same": str(files["test"]), "sts": str(files["sts"]), "model": model}
    arguments = {"--model": model, "--pairs": str(files["test"])}
    arguments |= {option: meant.get(value, value) for option, value in changes.items()}
    assert cli(["evaluate", *[part for pair in arguments.items() for part in pair]]) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and word in said


def test_damaged_or_foreign_thresholds_are_one_line(model, tiny_model, files, capfd):
    arguments = ["--model", str(model), "--pairs", str(files["test"]), "--dims", "64"]
    (model / "thresholds.json").write_text("{")
    assert cli(["evaluate", *arguments]) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "thresholds.json" in said and "--dev" in said


@pytest.mark.slow
def test_models_of_different_widths_need_common_dims(tiny_model, tmp_path, files):
    from trainer.model.tiny import build_tiny_mpnet

    narrow = str(build_tiny_mpnet(tmp_path / "narrow", ["a"], hidden=32))
    wide, pairs = str(tiny_model("mpnet")), str(files["test"])
    with pytest.raises(InputError, match=r"32 wide: name dims that fit both, such as --dims 32"):
        judge(Question(wide, pairs, baseline=narrow))
    for model, baseline in ((wide, narrow), (narrow, wide)):
        with pytest.raises(InputError, match=r"--dims 64: .*narrow is 32 wide; use dims up to 32"):
            judge(Question(model, pairs, baseline=baseline, dims=(64, 32)))
        found = judge(Question(model, pairs, baseline=baseline, dims=(32,), resamples=100))
        assert found.verdicts.keys() == {"32"}


@pytest.mark.slow
def test_the_real_encoder_has_its_known_figures(real_encoder, shared_data):
    """Values that others computed: any slip in pooling, tokenising or metrics moves them."""
    model = load_encoder(str(real_encoder))
    sts = read_pairs(shared_data / "stsb-en-dev.csv", label_scale=5.0).take(np.arange(150))
    metrics = evaluate(model, PairSet.build(sts, model), (384, 64))
    # By sentence-transformers and scipy; of all 1,500 rows 0.8672 and 0.8385, as published.
    assert metrics["384"]["spearman"] == pytest.approx(0.93897, abs=1e-4)
    assert metrics["64"]["spearman"] == pytest.approx(0.92959, abs=1e-4)
