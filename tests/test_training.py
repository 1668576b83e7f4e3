"""Whole runs with the tiny MPNet: what they leave behind, what they refuse, what they survive."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import PartialState
from oracles import tickets_of_pairs, until_finish, write_tickets
from safetensors.torch import load_file

from trainer.checkpoint.content import RunState
from trainer.config import (
    Config,
    CurriculumConfig,
    DataConfig,
    EvalConfig,
    LoraConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    OutputConfig,
    TrainConfig,
)
from trainer.config_file import load_config
from trainer.data.incidents import generate_pairs
from trainer.data.pairs import pairs_from_columns
from trainer.data.run_data import load_data, require_other_pairs
from trainer.data.ticket_table import Columns
from trainer.errors import CheckpointError, InputError
from trainer.evaluation.judge import Question, judge, judgement_record
from trainer.evaluation.metric_choice import SEARCH_METRICS
from trainer.evaluation.question import SearchQuestion
from trainer.evaluation.scoring import PairSet
from trainer.evaluation.search_judge import judge_search
from trainer.main import cli
from trainer.model import export
from trainer.model.embedding import embed, tokenize_sides
from trainer.model.loading import load_encoder
from trainer.model.lora import adapters_merged, add_lora, resolve_targets
from trainer.report.plots import draw_strength
from trainer.system.files import find_damage, json_ready
from trainer.system.processor import multiplies_bf16
from trainer.system.run_files import METRICS
from trainer.system.signals import Signals
from trainer.training import finish, strength
from trainer.training import loop as train
from trainer.training.run_folder import choose_folder
from trainer.training.setup import Inputs, Run
from trainer.training.step import Stepper

pytestmark = pytest.mark.usefixtures("blank_report")

SMALL = {
    "train.batch_size": "8",
    "train.precision": "fp32",
    "curriculum.epochs": "1",
    "optim.lr": "1e-3",
    "loss.dims": "[64, 16]",
    "loss.pair_weight": "0.5",
    "lora.enabled": "false",
    "eval.choose_strength": "false",
}
CHOOSING = {"eval.choose_strength": "true"}
PICKED = "Dev has also picked the model, so expect a little less on other pairs"


@pytest.fixture(scope="module")
def pair_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    paths = {}
    for part, count in (("train", 72), ("dev", 36), ("test", 36)):
        paths[part] = folder / f"{part}.json"
        paths[part].write_text(json.dumps(generate_pairs(count, 0, part)))
    return paths


@pytest.fixture(scope="module")
def few(pair_files):
    """Changes that make a run of 3 steps in one phase."""
    columns = json.loads(pair_files["train"].read_text())
    path = pair_files["train"].with_name("few.json")
    path.write_text(json.dumps({key: values[:24] for key, values in columns.items()}))
    return {"data.train": str(path), "curriculum.mode": "mixed"}


@pytest.fixture(scope="module")
def start(blank_report, tiny_model, pair_files, tmp_path_factory):
    """start(folder, {key: value}, *options) -> exit code of a run of 9 steps in 3 phases."""
    config = tmp_path_factory.mktemp("config") / "small.toml"
    config.write_text(
        f'[model]\nname = "{tiny_model("mpnet")}"\n'
        f'[data]\ntrain = "{pair_files["train"]}"\ndev = "{pair_files["dev"]}"\n'
    )

    def run(folder, changes=None, *options):
        settings = [f"{key}={value}" for key, value in {**SMALL, **(changes or {})}.items()]
        sets = [word for setting in settings for word in ("--set", setting)]
        return cli(["train", "--config", str(config), "--output-dir", str(folder), *sets, *options])

    return run


@pytest.fixture
def run_small(start, tmp_path):
    """run_small(name, {key: value}, *options) -> (exit code, folder of the run)."""
    return lambda name, changes=None, *options: (start(tmp_path / name, changes, *options), tmp_path / name)


def finished(trained, folder, **choices) -> dict:
    """The metrics.json of a run that ends in another folder, by other choices of [eval], its embeddings not turned."""
    run, state = trained
    folder.mkdir()
    model = replace(run.config.model, principal_axes=False)
    config = replace(run.config, model=model, eval=replace(run.config.eval, **choices))
    with Signals() as signals:
        finish.finish(replace(run, folder=folder, config=config), state, signals)
    return json.loads((folder / "metrics.json").read_text())


def first_loss(start, folder, changes) -> float:
    """The loss of a run's first update; there it is cut off."""
    real = Stepper.train_step

    def step(self, number, *rest):
        return raise_interrupt() if number else real(self, number, *rest)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Stepper, "train_step", step)
        start(folder, changes)
    return steps_of(folder)[0]["loss"]


@pytest.fixture(scope="module")
def whole(start, pair_files, tmp_path_factory):
    """Whether with LoRA -> (exit code, folder) of a whole run; not to be written to."""

    @cache
    def run(lora: bool):
        changes = {"lora.enabled": str(lora).lower(), "lora.rank": 4, "optim.lr": 5e-3, "data.test": pair_files["test"]}
        folder = tmp_path_factory.mktemp("whole") / "run"
        return start(folder, changes | CHOOSING), folder

    return run


@pytest.fixture(scope="module")
def trained(start, tiny_model, tmp_path_factory):
    """Whether with LoRA -> a run that has made its last step, and its state; its forgetting set is scored by its base,
    so that it forgets."""
    root = tmp_path_factory.mktemp("trained")
    texts = [f"{number} {word}" for number in range(20) for word in ("vpn", "mail", "screen")]
    pairs = [f"a {text}" for text in texts], [f"no {text[::-1]}" for text in texts]
    base = load_encoder(str(tiny_model("mpnet")))
    first, second = (base.encode(side, normalize=True) for side in pairs)
    rows = zip(*pairs, 2.5 + 2.5 * (first * second).sum(1), strict=True)
    (root / "sts.csv").write_text("".join(f"{a},{b},{score:.6f}\n" for a, b, score in rows))

    @cache
    def run(lora: bool):
        changes = {"lora.enabled": str(lora).lower(), "optim.lr": 5e-3, "data.forgetting": root / "sts.csv"}
        return until_finish(start, root / str(lora), {**changes, **CHOOSING, "curriculum.mode": "mixed"})

    return run


@pytest.fixture(scope="module")
def often(start, tmp_path_factory):
    """A whole run that evaluates after every other step; not to be written to."""
    folder = tmp_path_factory.mktemp("often") / "run"
    assert start(folder, {"eval.every": 2, "log.trackers": '["tensorboard"]'}, "--full-strength") == 0
    return folder


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def steps_of(folder: Path) -> list[dict]:
    return [line for line in lines(folder) if "loss" in line]


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
def test_a_run_leaves_what_it_promises(start, whole, lora, pair_files, capfd):
    code, folder = whole(lora)
    assert code == 0
    expected = {"config.toml", "plan.json", "log.jsonl", "metrics.json", "training_metadata.json", "model"}
    expected |= {"lint.json"}
    expected |= {"strength.json", "scores.json", "report.html"}
    assert expected | {"checkpoints"} | ({"adapter"} if lora else set()) == {
        p.name for p in folder.iterdir() if p.name[0] != "."
    }
    for exported in ("model", "adapter")[: 1 + lora]:
        assert find_damage(folder / exported) is None, exported

    plan = json.loads((folder / "plan.json").read_text())
    assert [phase["name"] for phase in plan["phases"]] == ["1", "2", "3"]
    logged = steps_of(folder)
    assert [line["step"] for line in logged] == list(range(plan["steps"]))
    assert [line["lr"] for line in logged] == plan["learning_rates"]
    needed = {"phase", "epoch", "lr", "loss", "loss_by_dim", "grad_norm", "tokens_per_s", "waiting", "tokens"}
    assert all(needed <= set(line) for line in logged)

    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(metrics["baseline"]) == set(metrics["final"]) == set(metrics["test"]["final"]) == {"64", "16"}
    assert metrics["verdict"] in ("BETTER", "UNCLEAR", "NOT BETTER") and metrics["verdict_on"] == "test"
    assert metrics["verdict"] == metrics["test"]["verdict"]
    # Frozen thresholds: those of test are dev's.
    assert metrics["test"]["final"]["64"]["threshold"] == metrics["final"]["64"]["threshold"]
    assert metrics["test"]["baseline"]["64"]["threshold"] == metrics["baseline"]["64"]["threshold"]

    meta = json.loads((folder / "training_metadata.json").read_text())
    trained = meta["trained"]
    assert all(".lora_" in name for name in trained) if lora else len(trained) > 30
    assert meta["versions"]["torch"] == torch.__version__ and set(meta["overlapping_texts"].values()) == {0}
    assert meta["rows"] == {"train": 72, "beyond data.limit": 0, "dev": 36, "left out": 0}
    # The config on record is the config that ran.
    assert load_config(folder / "config.toml").lora.enabled is lora
    # A finished run is not overwritten.
    before = (folder / "metrics.json").read_bytes()
    assert start(folder) == 5 and (folder / "metrics.json").read_bytes() == before
    assert "finished run" in capfd.readouterr().err
    text = (folder / "model" / "README.md").read_text()
    texts = json.loads(pair_files["train"].read_text())
    assert not any(example in text for example in texts["texts1"] + texts["texts2"])


@pytest.mark.slow
@pytest.mark.numbers
def test_bf16_trains_on_any_processor(run_small, start, few, tmp_path, capfd):
    """On one without AVX-512, LoRA ended in the first step; all weights are trained in bf16 in a test below."""
    changes = {**few, "lora.enabled": "true", "lora.rank": 4}
    code, folder = run_small("run", {"train.precision": "bf16", **changes})
    assert code == 0
    said = capfd.readouterr().err
    assert "Precision: bf16, as train.precision says" in said
    assert said.index(f"Folder of the run: {folder}") < said.index("Encoder on cpu")  # before the first step
    assert multiplies_bf16() or "times as long as in fp32" in said
    metadata = json.loads((folder / "training_metadata.json").read_text())
    assert metadata["precision"] == "bf16" and set(metadata["products"]) == {"fp32", "bf16"}
    until_finish(start, tmp_path / "fp32", changes)
    losses, expected = ([line["loss"] for line in steps_of(path)] for path in (folder, tmp_path / "fp32"))
    assert losses == pytest.approx(expected, rel=0.03)


@pytest.mark.slow
def test_the_exported_model_is_the_best_and_loads_in_sentence_transformers(often, tiny_model):
    import sentence_transformers

    folder = often
    assert not (folder / "strength.json").exists()
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["strength"] == 1.0
    values = {entry["step"]: entry["metrics"]["64"]["spearman"] for entry in metrics["evaluations"]}
    assert metrics["best_step"] == max(values, key=values.get) and metrics["final"]["64"]["spearman"] == pytest.approx(
        max(values.values()), abs=1e-6
    )
    texts = ["VPN is down", "cannot  connect from home ", "x"]
    peer = sentence_transformers.SentenceTransformer(str(folder / "model"), device="cpu")
    ours = load_encoder(str(folder / "model"))
    mine = embed(ours, tokenize_sides(ours, texts))
    np.testing.assert_allclose(mine, peer.encode(texts), atol=1e-5)
    truncated = sentence_transformers.SentenceTransformer(str(folder / "model"), device="cpu", truncate_dim=16)
    np.testing.assert_allclose(mine[:, :16], truncated.encode(texts), atol=1e-5)
    base = load_encoder(str(tiny_model("mpnet")))
    assert np.abs(mine - embed(base, tokenize_sides(base, texts))).max() > 1e-3


@pytest.mark.slow
def test_the_quickstart_visibly_learns(tmp_path, capfd):
    """In three of its eight epochs; the first command of the README makes all of them."""
    code = cli(["--output-dir", str(tmp_path / "quick"), "--set=curriculum.epochs=3"])
    assert code == 0
    metrics = json.loads((tmp_path / "quick" / "metrics.json").read_text())
    for dim, final in metrics["final"].items():
        assert final["roc_auc"] > metrics["baseline"][dim]["roc_auc"] + 0.1
    assert metrics["verdict"] == "BETTER"
    said = capfd.readouterr().err
    assert "Plan" in said and "BETTER" in said and "SentenceTransformer" in said


@pytest.mark.slow
def test_a_run_ends_with_what_trainer_evaluate_finds(whole, tiny_model, pair_files):
    code, folder = whole(True)
    metrics = json.loads((folder / "metrics.json").read_text())
    question = Question(
        str(folder / "model"), str(pair_files["test"]), baseline=str(tiny_model("mpnet")), dims=(64, 16)
    )
    found = judge(question)
    assert code == 0 and "kept in" in found.thresholds_from["model"]
    assert found.thresholds["model"].source == str(pair_files["dev"])
    record = json.loads(json.dumps(json_ready(judgement_record(found))))
    for dim, values in record["model"].items():  # a turn by another product rounds otherwise
        assert values == pytest.approx(metrics["test"]["final"][dim], abs=1e-6)
    for part in ("verdicts", "groups", "queries", "data_fingerprint"):
        assert record[part] == metrics["test"][part]
    # The baseline's own thresholds are in no folder; every figure that needs none is the same.
    for dim, values in record["baseline"].items():
        assert all(metrics["test"]["baseline"][dim][name] == values[name] for name in ("spearman", "roc_auc", "mrr@10"))
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["set"] == "test" and len(scores["final"]["64"]) == len(scores["labels"]) == 36
    assert len(scores["worst"]) == 20
    # The pair that is most wrong comes first.
    at = scores["thresholds"]["final"]["64"]
    wrong = [(1 if pair["label"] else -1) * (at - pair["final"]) for pair in scores["worst"]]
    assert wrong == sorted(wrong, reverse=True) and wrong[0] > 0


@pytest.mark.slow
def test_harmful_training_cannot_lose_to_the_start(start, pair_files, tmp_path, capfd):
    """Trained on the dev pairs themselves, every label turned round."""
    columns = json.loads(pair_files["dev"].read_text())
    path = tmp_path / "poisoned.json"
    path.write_text(json.dumps({**columns, "labels": [1 - label for label in columns["labels"]]}))
    settings = {"optim.lr": "5e-3", "curriculum.mode": "mixed", "curriculum.epochs": "4", "loss.pair_weight": "2.0"}
    settings |= {"data.train": path, "data.allow_overlap": 1, "lora.enabled": "true"}
    trained = until_finish(start, tmp_path / "steps", settings)

    metrics = finished(trained, tmp_path / "chosen", choose_strength=True)
    strength = json.loads((tmp_path / "chosen" / "strength.json").read_text())
    alphas = [point["alpha"] for point in strength["curve"]]
    assert alphas == sorted(set(alphas)) and {0.0, 0.5, 1.0} <= set(alphas)
    for dim, before in metrics["baseline"].items():
        assert metrics["final"][dim]["spearman"] >= before["spearman"]
        values = {point["alpha"]: point["metric"][dim] for point in strength["curve"]}
        assert values[0.0] == before["spearman"] and values[strength["chosen"]] == metrics["final"][dim]["spearman"]
        assert values[1.0] < values[0.0]  # the trained weights are worse
    said = capfd.readouterr().err
    assert f"Chosen: {strength['chosen']:.1f}" in said and metrics["strength"] == strength["chosen"]
    assert PICKED in said and PICKED in (tmp_path / "chosen" / "model" / "README.md").read_text()
    # Negative control: with the switch off the loss is exported.
    metrics = finished(trained, tmp_path / "full", choose_strength=False)
    for dim, before in metrics["baseline"].items():
        assert metrics["final"][dim]["spearman"] < before["spearman"]
    # Judged once, at the end: dev had nothing to choose from.
    assert len(metrics["evaluations"]) == 1 and PICKED not in capfd.readouterr().err
    assert PICKED not in (tmp_path / "full" / "model" / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_at_strength_0_the_untouched_model_is_exported(trained, tiny_model, monkeypatch, tmp_path, lora):
    monkeypatch.setattr(strength, "best_strength", lambda *_: 0.0)
    metrics = finished(trained(lora), tmp_path / "run")
    assert metrics["final"] == metrics["baseline"] and metrics["verdict"] != "BETTER"
    base = load_file(tiny_model("mpnet") / "model.safetensors")
    assert all(torch.equal(value, base[name]) for name, value in weights(tmp_path / "run").items())


@pytest.mark.slow
def test_a_strength_between_scales_the_adapter_and_both_exports(trained, tiny_model, monkeypatch, tmp_path):
    half, whole = tmp_path / "half", tmp_path / "whole"
    monkeypatch.setattr(strength, "best_strength", lambda *_: 0.5)
    finished(trained(True), half)
    finished(trained(True), whole, choose_strength=False)
    base = load_file(tiny_model("mpnet") / "model.safetensors")
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(half)[name] - base[name], (value - base[name]) / 2, rtol=0, atol=1e-6)
    adapters = [load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (half, whole)]
    for name, value in adapters[1].items():
        torch.testing.assert_close(adapters[0][name], value / 2 if "lora_B" in name else value)


@pytest.mark.slow
def test_forgetting_is_measured_along_the_curve(trained, tmp_path):
    metrics = finished(trained(False), tmp_path / "run")
    strength = json.loads((tmp_path / "run" / "strength.json").read_text())
    for dim, curve in metrics["dev"]["forgetting"].items():
        values = {point["alpha"]: point["forgetting"][dim] for point in strength["curve"]}
        assert curve["spearman"]["before"] == values[0.0]
        assert curve["spearman"]["after"] == values[strength["chosen"]]


@pytest.mark.slow
def test_the_forgetting_set_is_on_record_and_no_part_of_what_a_resume_compares(trained):
    run, state = trained(False)
    recorded = finish.metadata(run, state, 1.0, {})["fingerprints"]
    assert recorded == run.fingerprints | {"forgetting": run.data.general.fingerprint()}
    # Without data.test the same as ever, or runs begun before it was compared could not go on.
    assert run.data.test is None and set(run.fingerprints) == {"train_data", "dev_data", "base_weights", "tokens"}


@pytest.mark.slow
def test_a_limit_on_forgetting_rules_strengths_out_and_says_so(trained, tmp_path):
    free, strict = tmp_path / "free", tmp_path / "strict"
    finished(trained(False), free)
    curve = json.loads((free / "strength.json").read_text())["curve"]
    limit = (curve[0]["forgetting"]["64"] - curve[-1]["forgetting"]["64"]) / 2
    finished(trained(False), strict, forgetting_limit=limit)
    found = [json.loads((folder / "strength.json").read_text()) for folder in (free, strict)]
    curves = [{point["alpha"]: point for point in strength["curve"]} for strength in found]
    assert len(common := curves[0].keys() & curves[1].keys()) >= 3
    assert all(curves[0][alpha] == curves[1][alpha] for alpha in common)
    curve = {str(point["alpha"]): point for point in found[1]["curve"]}
    falls = {
        alpha
        for alpha, point in curve.items()
        if any(point["forgetting"][dim] < value - limit for dim, value in curve["0.0"]["forgetting"].items())
    }
    assert falls and falls <= found[1]["ruled_out"].keys() and str(found[1]["chosen"]) not in falls
    assert any(f"forgets more than {limit:g}" in reason for reason in found[1]["ruled_out"].values())
    assert not any("forgets" in reason for reason in found[0]["ruled_out"].values())
    panels = draw_strength(found[1]).axes
    assert [len(panel.patches) for panel in panels] == [len(found[1]["ruled_out"])] * 2  # on grey, beside both curves


@pytest.mark.slow
def test_an_adapter_that_is_not_applied_fails_the_run(trained, tmp_path, monkeypatch):
    """Negative control of the reload proof: the export forgets the adapters."""
    honest = export.merged

    def forgetful(encoder):
        plain = honest(encoder)
        base = load_encoder(encoder.spec.name)
        plain.backbone.load_state_dict(base.backbone.state_dict())
        return plain

    monkeypatch.setattr(export, "merged", forgetful)
    with pytest.raises(CheckpointError, match="not what was trained"):
        finished(trained(True), tmp_path / "run", choose_strength=False)
    assert not (tmp_path / "run" / "metrics.json").exists()


@pytest.mark.slow
def test_a_run_that_changes_nothing_fails(trained, tmp_path):
    run, state = trained(True)
    zeros = {name: torch.zeros_like(value) if "lora_B" in name else value for name, value in state.best.weights.items()}
    with pytest.raises(CheckpointError, match="training changed nothing"):
        finished((run, replace(state, best=replace(state.best, weights=zeros))), tmp_path / "run")


@pytest.mark.slow
def test_the_same_seed_gives_the_same_losses_whatever_the_cadence(start, whole, tmp_path):
    losses = {line["step"]: line["loss"] for line in steps_of(whole(False)[1])}
    changes = {"optim.lr": 5e-3}
    until_finish(start, tmp_path / "two", {**changes, "eval.every": 1, "log.every": 2, "checkpoint.every": 3})
    logged = steps_of(tmp_path / "two")
    assert [line["step"] for line in logged] == [0, 2, 4, 6, 8]
    assert all(losses[line["step"]] == line["loss"] for line in logged)
    assert first_loss(start, tmp_path / "three", {**changes, "train.seed": 1}) != losses[0]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


@pytest.mark.slow
def test_a_signal_with_or_after_the_last_file_changes_nothing(run_small, few, monkeypatch):
    write_json, print_summary = finish.write_json, finish.print_summary

    def with_the_last_file(path, value):
        if path.name == METRICS:
            signal.raise_signal(signal.SIGTERM)
        write_json(path, value)

    def after_it(*args):
        signal.raise_signal(signal.SIGTERM)
        print_summary(*args)

    monkeypatch.setattr(finish, "write_json", with_the_last_file)
    monkeypatch.setattr(finish, "print_summary", after_it)
    code, folder = run_small("run", few)
    assert code == 0 and (folder / "metrics.json").exists()
    assert (folder / "report.html").exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.slow
def test_a_signal_that_is_not_ignored_is_seen(run_small, few, monkeypatch):
    """Negative control of the test above."""
    monkeypatch.setattr(Signals, "ignore", lambda self: None)
    with pytest.raises(AssertionError):
        test_a_signal_with_or_after_the_last_file_changes_nothing(run_small, few, monkeypatch)


@pytest.mark.slow
def test_a_stopped_run_resumes_to_the_same_result(start, run_small, tmp_path, monkeypatch):
    """As far as to its end, which reads nothing but what is compared here."""
    changes = {"lora.enabled": "true", "train.tokens_per_chunk": 200}
    until_finish(start, tmp_path / "whole", changes)
    real = Stepper.train_step

    def signalled(self, step, batch, *asks):
        if step == 4:
            signal.raise_signal(signal.SIGTERM)
        return real(self, step, batch, *asks)

    monkeypatch.setattr(Stepper, "train_step", signalled)
    code, folder = run_small("stopped", changes)
    assert code == 75 and {p.name for p in (folder / "checkpoints").iterdir()} == {
        "step-000000",
        "step-000003",
        "step-000005",
    }
    monkeypatch.setattr(Stepper, "train_step", real)
    until_finish(start, folder, changes, "--resume")
    for key in ("step", "loss"):
        assert [line[key] for line in steps_of(folder)] == [line[key] for line in steps_of(tmp_path / "whole")]
    last = "checkpoints/step-000009/tensors.safetensors"  # weights, the best ones, optimizer, random states
    assert (folder / last).read_bytes() == (tmp_path / "whole" / last).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(("asked", "lag"), [(0, 0), (2, 1)])  # the last step's numbers come late
def test_a_stop_that_another_rank_was_asked_for_stops_this_one(asked, lag, run_small, few, monkeypatch):
    """Else it would wait for that one in its next step."""
    asks = (step == asked for step in range(3))

    def summed(parts):
        parts[2] += next(asks)  # where `stop` stands
        return parts

    monkeypatch.setattr(train.ranks, "sum_over_ranks", summed)
    monkeypatch.setattr(train, "Stepper", lambda run: Stepper(run, lag))
    assert run_small("run", few)[0] == 75


@pytest.mark.slow
def test_a_run_killed_in_its_first_step_or_in_its_export_is_resumed(run_small, few, monkeypatch, tmp_path):
    monkeypatch.setattr(Stepper, "train_step", raise_interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_small("run", few)
    monkeypatch.undo()
    monkeypatch.setattr(export, "check_exports", raise_interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_small("run", few, "--resume")
    monkeypatch.undo()
    assert cli(["--output-dir", str(tmp_path / "run"), "--resume"]) == 0  # with the run's own config
    assert sorted(p.name for p in (tmp_path / "run").iterdir() if p.is_dir()) == ["checkpoints", "model"]


@pytest.mark.parametrize("content", ["model/config.json", "notes.txt"])
def test_a_folder_that_holds_something_is_refused_before_any_work(run_small, tmp_path, content, capfd):
    path = tmp_path / "run" / content
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    code, _ = run_small("run")
    assert code == 5 and "no empty folder" in capfd.readouterr().err


@pytest.mark.slow
def test_a_dry_run_shows_the_plan_judges_nothing_and_leaves_nothing(run_small, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(Inputs, "judge_untouched", raise_interrupt)
    before = sorted(tmp_path.rglob("*"))
    code, folder = run_small("run", {"log.trackers": '["tensorboard"]'}, "--dry-run", "--max-steps=4")
    said = " ".join(capfd.readouterr().err.split())
    assert code == 0 and not folder.exists() and sorted(tmp_path.rglob("*")) == before
    assert "9 steps, training" in said and "Lint of the run's pairs" in said and "Dry run: nothing was" in said
    assert "the first 4 of these 9 steps are made" in said and "The steps take less than a minute" in said
    assert run_small("run", {"data.dev": "nowhere.json"}, "--dry-run")[0] == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--dry-run", "--resume"], "--dry-run is about a run that has not begun: leave out --resume"),
        (["--max-steps=0"], "--max-steps 0: use 1 or more, or leave it out to make all steps"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, said, run_small, capfd):
    code, folder = run_small("run", {}, *options)
    assert code == 2 and capfd.readouterr().err == f"error: {said}\n" and not folder.exists()


@pytest.mark.slow
def test_tensorboard_gets_the_metrics(often):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = {path.parent for path in often.rglob("events.*")}  # those of the settings lie in a folder within
    accumulator = EventAccumulator(str(min(events, key=lambda folder: len(folder.parts))))
    accumulator.Reload()
    wanted = {"loss", "lr", "loss_by_dim/64", "evaluation/64/spearman", "end/dev/final/64/success_at_10"}
    assert wanted <= set(accumulator.Tags()["scalars"])
    (settings,) = often.rglob("hparams.yml")
    assert "train.batch_size: " in settings.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("CUDA out of memory."), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
)
def test_out_of_memory_names_the_setting(run_small, monkeypatch, error, capfd):
    def exhausted(*_):
        raise error

    monkeypatch.setattr(Stepper, "train_step", exhausted)
    code, _ = run_small("run")
    assert code == 2 and "train.tokens_per_chunk" in capfd.readouterr().err


def test_a_full_disk_is_exit_5(run_small, monkeypatch, capfd):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Stepper, "train_step", full)
    code, _ = run_small("run")
    assert code == 5 and "No space left" in capfd.readouterr().err


def test_dev_and_test_must_differ(run_small, pair_files, capfd):
    code, folder = run_small("run", {"data.test": pair_files["dev"]})
    assert code == 2 and "dev.json" in capfd.readouterr().err and not folder.exists()


def test_lora_targets_that_are_not_known_name_the_endings_there_are(tiny_model):
    model = load_encoder(str(tiny_model("mpnet"))).model
    with pytest.raises(InputError, match=r"'q_proj' matches no linear layer; there are attention\.attn\.k, "):
        resolve_targets(model, ("q_proj",))
    model.config.model_type = "novel"
    with pytest.raises(InputError, match=r"not known for novel; name endings .*: attention\.attn\.k, "):
        resolve_targets(model, ("attention",))


def test_a_finished_run_says_how_to_go_on_from_its_model(tmp_path):
    (tmp_path / METRICS).write_text("{}")
    with pytest.raises(InputError, match=f"start a new run with --set model.name={tmp_path / 'model'}"):
        choose_folder(Config(output=OutputConfig(dir=tmp_path)), "x", True)
    with pytest.raises(InputError, match=r"no run there, nothing to resume; .* leave out --resume"):
        choose_folder(Config(output=OutputConfig(dir=tmp_path / "none")), "x", True)


def raise_interrupt(*_):
    raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_number_that_is_none_stops_the_run_before_the_update(run_small, monkeypatch, what, capfd):
    real = Run.prepare

    def poisoned(self, step):
        if step == 2:
            parameter = next(iter(self.parameters.values()))
            if what == "loss":
                parameter.data.view(-1)[0] = float("nan")
                parameter.data.mul_(float("nan"))
            else:
                parameter.register_hook(lambda gradient: gradient * float("inf"))
        return real(self, step)

    # Without the thread that works ahead, so that the poison strikes at step 2 exactly.
    monkeypatch.setattr(Run, "prepare", poisoned)
    code, folder = run_small("run")
    said = capfd.readouterr().err
    assert code == 3 and "phase 1" in said and "rows " in said and what in said
    assert len(steps_of(folder)) <= 2 and not (folder / "model").exists()


@pytest.mark.slow
def test_label_0_pairs_change_the_run(start, pair_files, tmp_path):
    """Taking labelled negatives for positives, as the notebook did, is another training."""
    columns = json.loads(pair_files["train"].read_text())
    flipped = tmp_path / "flipped.json"
    flipped.write_text(json.dumps({**columns, "labels": [1] * 71 + [0]}))
    honest = first_loss(start, tmp_path / "honest", {})
    assert first_loss(start, tmp_path / "notebook", {"data.train": flipped}) != honest


@pytest.mark.slow
@pytest.mark.numbers
def test_two_runs_of_one_process_in_python_each_get_their_precision(tiny_model, pair_files, few, tmp_path):
    """accelerate keeps one setting for a whole process."""
    metadata = {}
    for precision in ("bf16", "fp32"):
        config = Config(
            model=ModelConfig(name=str(tiny_model("mpnet"))),
            data=DataConfig(train=few["data.train"], dev=str(pair_files["dev"])),
            lora=LoraConfig(enabled=False),
            curriculum=CurriculumConfig(mode="mixed", epochs=1),
            train=TrainConfig(batch_size=8, precision=precision),
            optim=OptimConfig(lr=5e-3),
            loss=LossConfig(dims=[64, 16]),  # a list, as a person writes it
            output=OutputConfig(dir=str(tmp_path / precision)),
        )
        result = train.train(config)
        assert result.folder == tmp_path / precision and result.verdict == result.metrics["verdict"]
        written = json.loads((result.folder / "metrics.json").read_text())
        assert written == json.loads(json.dumps(json_ready(result.metrics)))
        metadata[precision] = json.loads((result.folder / "training_metadata.json").read_text())["precision"]
    assert metadata == {"bf16": "bf16", "fp32": "fp32"}
    losses = [[line["loss"] for line in steps_of(tmp_path / precision)] for precision in metadata]
    assert losses[0] != losses[1]


def test_a_config_made_in_python_is_checked_as_a_file_is():
    with pytest.raises(InputError, match=r"data\.train"):
        train.train(Config())
    with pytest.raises(InputError, match=r"optim\.lr must be a number"):
        train.train(Config(data=DataConfig(train="x"), optim=OptimConfig(lr="1e-3")))


@pytest.mark.parametrize(
    "lora", [{"enabled": False}, {"rank": 4}, {"rank": 4, "dora": True}], ids=["full", "lora", "dora"]
)
def test_an_encoder_merged_in_place_is_its_merged_copy_and_then_itself_again(tiny_model, lora):
    config = LoraConfig(**lora)
    encoder = load_encoder(str(tiny_model("mpnet"))).eval()
    if config.enabled:
        add_lora(encoder, config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in encoder.trainable().values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    tokens = tokenize_sides(encoder, ["vpn is down", "mail", "the printer on floor 2 is jammed and it smells"])
    state = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    trained, before = list(encoder.trainable()), embed(encoder, tokens)
    expected = embed(export.merged(encoder), tokens)
    for _ in range(2):
        with adapters_merged(encoder) as same:
            assert same is encoder
            np.testing.assert_array_equal(embed(encoder, tokens), expected)
        assert list(encoder.trainable()) == trained
        assert all(torch.equal(state[name], tensor) for name, tensor in encoder.state_dict().items())
        np.testing.assert_array_equal(embed(encoder, tokens), before)
    with pytest.raises(KeyError), adapters_merged(encoder):
        raise KeyError
    np.testing.assert_array_equal(embed(encoder, tokens), before)


@pytest.mark.slow
def test_early_stopping_ends_the_run(start, tmp_path, monkeypatch):
    real = Inputs.judge_on_dev
    values = iter([0.5, 0.4, 0.3, 0.2, 0.1, 0.0, -0.1])

    def falling(self):
        metrics = real(self)
        metrics["64"]["spearman"] = next(values)
        return metrics

    monkeypatch.setattr(Inputs, "judge_on_dev", falling)
    _, state = until_finish(start, tmp_path / "run", {"eval.every": 1, "early_stopping.patience": 2})
    assert len(steps_of(tmp_path / "run")) == state.step == 3 and state.best.step == 1


def test_any_number_beats_a_first_best_that_is_none():
    """Dev scores that are all equal have no correlation."""
    values = iter([np.nan, np.nan, -0.5, np.nan, -0.6])
    log, state = SimpleNamespace(write=lambda line: None), RunState(baseline={"8": {"spearman": np.nan}})
    config = Config(loss=LossConfig(dims=(8,)), eval=EvalConfig(metric="spearman"))
    run = SimpleNamespace(config=config, judged_on="dev", parameters={})
    run.judge_on_dev = lambda: {"8": {"spearman": next(values)}}
    for state.step in range(5):
        train.note_evaluation(run, state, log)
    assert (state.best.step, state.best.value, state.without_best) == (2, -0.5, 2)


BAD = {
    "missing file": ({"data.train": "nowhere.json"}, ["nowhere.json"]),
    "dims wider than the model": ({"loss.dims": "[128, 64]"}, ["loss.dims", "64"]),
    "max length beyond the positions": ({"model.max_length": "4000"}, ["model.max_length", "4000"]),
    "unknown model": ({"model.name": "no/such-model"}, ["model.name", "no/such-model"]),
    "batch larger than a phase": ({"train.batch_size": "600"}, ["train.batch_size", "600"]),
    "batch of one": ({"train.batch_size": "1"}, ["train.batch_size"]),
    "unknown key": ({"optim.learning_rate": "1"}, ["optim.learning_rate", "lr"]),
    "number in quotes": ({"optim.lr": '"1e-5"'}, ["optim.lr", "write 1e-05"]),
    "negative rate": ({"optim.lr": "-1.0"}, ["optim.lr"]),
    "warm-up and hold over 100 %": ({"optim.hold_ratio": "0.9"}, ["optim.hold_ratio", "100 %"]),
    "fp16 without a GPU": ({"train.precision": "fp16"}, ["train.precision"]),
    "target that matches nothing": (
        {"lora.enabled": "true", "lora.targets": '["q_proj"]'},
        ["lora.targets", "q_proj", "attn.q"],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_exit_2_and_no_folder(run_small, name, capfd):
    changes, words = BAD[name]
    if name == "fp16 without a GPU" and torch.cuda.is_available():
        pytest.skip("a GPU is there")
    code, folder = run_small("run", changes)
    said = capfd.readouterr().err
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(errors) == 1 and "Traceback" not in said
    assert all(word in errors[0] for word in words), errors[0]
    assert not folder.exists()


@pytest.mark.parametrize(
    ("label", "changes", "words"),
    [
        (0, {}, ["ones.json", "all 72 rows are negative", "add positive pairs"]),
        (1, {"data.dev": '""', "eval.metric": "roc_auc"}, ['eval.metric = "roc_auc"', "positives alone", "mrr@10"]),
    ],
)
def test_what_one_label_cannot_do_is_refused(label, changes, words, run_small, pair_files, tmp_path, capfd):
    columns = json.loads(pair_files["train"].read_text())
    path = tmp_path / "ones.json"
    path.write_text(json.dumps({**columns, "labels": [label] * 72}))
    code, folder = run_small("run", {"data.train": path, **changes})
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(errors) == 1 and all(word in errors[0] for word in words) and not folder.exists()


@pytest.mark.slow
def test_overlap_is_refused_or_recorded(run_small, pair_files, tmp_path):
    train_pairs, dev_pairs = (json.loads(pair_files[part].read_text()) for part in ("train", "dev"))
    path = tmp_path / "mixed.json"
    path.write_text(json.dumps({key: train_pairs[key][:30] + dev_pairs[key] for key in dev_pairs}))
    code, folder = run_small("run", {"data.dev": path})
    assert code == 2 and not folder.exists()
    data = load_data(DataConfig(train=str(pair_files["train"]), dev=str(path), allow_overlap=1), 0)
    assert data.overlap["dev"] > 20


@pytest.mark.slow
def test_without_a_config_a_model_and_pairs_take_the_built_in_settings(
    tiny_model, pair_files, tmp_path, monkeypatch, capfd
):
    """Not the toy's: a rate of 2e-3 on all weights, dims that are not the model's, a folder of its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "finish", lambda *_: None)
    sets = {"model.name": tiny_model("mpnet"), "data.train": pair_files["train"], "data.dev": pair_files["dev"]}
    sets |= {"train.batch_size": 24, "curriculum.mode": "mixed", "curriculum.phases": "[4]", "curriculum.epochs": 1}
    assert cli(["train", *(f"--set={key}={value}" for key, value in sets.items())]) == 0
    config = load_config(tmp_path / "runs" / "train" / "config.toml")
    assert config.optim.lr == 1e-3 and config.loss.dims == (64,) and config.lora.enabled
    said = capfd.readouterr().err
    assert "Ignored: curriculum.phases (" in said
    assert "Settled by the model and the pairs: lora.rank = 16, " in said and ", optim.lr = 0.001, " in said
    assert "Settings that differ from the defaults: model.name = " in said


@pytest.mark.slow
def test_a_held_out_file_that_is_the_training_file_is_refused_whatever_is_allowed(run_small, pair_files, capfd):
    train_file, dev_file = pair_files["train"], pair_files["dev"]
    for key, path in (("data.dev", train_file), ("data.test", train_file), ("data.test", dev_file)):
        code, folder = run_small("run", {key: path, "data.allow_overlap": 1})
        said = capfd.readouterr().err
        assert code == 2 and not folder.exists() and f"error: {key} = {path}: " in said and "of its" in said


def test_rows_are_counted_in_either_order_of_texts_and_with_their_label(pair_files, tmp_path):
    columns = json.loads(pair_files["train"].read_text())
    turned = {**columns, "texts1": columns["texts2"], "texts2": [text.upper() for text in columns["texts1"]]}
    flipped = {**columns, "labels": [1 - label for label in columns["labels"]]}
    train_table = pairs_from_columns(columns, "train")
    with pytest.raises(InputError, match=r"data\.dev = turned: 72 of its 72 rows are also in data\.train"):
        require_other_pairs("data.dev", pairs_from_columns(turned, "turned"), "data.train", train_table)
    require_other_pairs("data.dev", pairs_from_columns(flipped, "flipped"), "data.train", train_table)
    dev = json.loads(pair_files["dev"].read_text())
    for own, refused in ((2, True), (6, False)):  # rows of its own beside 36 of train: a tenth is the line
        mixed = {key: columns[key][:36] + dev[key][:own] for key in columns}
        table = pairs_from_columns(mixed, "mixed")
        with pytest.raises(InputError) if refused else nullcontext():
            require_other_pairs("data.test", table, "data.train", train_table)


def test_a_large_forgetting_set_is_sampled_by_the_seed(tiny_model, monkeypatch, capfd):
    columns = {"texts1": [f"vpn {i}" for i in range(30)], "texts2": [f"mail {i}" for i in range(30)]}
    table = pairs_from_columns(columns | {"labels": [i / 30 for i in range(30)]}, "sts.csv")
    encoder = load_encoder(str(tiny_model("mpnet")))
    general = PairSet.build(table, encoder)

    def sample(seed: int, most: int) -> PairSet:
        monkeypatch.setattr(strength, "FORGETTING_ROWS", most)
        config = Config(train=TrainConfig(seed=seed))
        return strength.forgetting_sample(SimpleNamespace(general=general, config=config, encoder=encoder))

    assert sample(0, 30) is general and "random pairs" not in capfd.readouterr().err
    rows = [sample(seed, 10).table.row.tolist() for seed in (0, 0, 1)]
    assert len(rows[0]) == 10 and rows[0] == rows[1] != rows[2]
    assert "on 10 random pairs of the 30 of sts.csv" in capfd.readouterr().err
    monkeypatch.setattr(strength, "LIMITING_ROWS", 20)  # more, where they decide
    limited = Config(data=DataConfig(forgetting="sts.csv"), eval=EvalConfig(forgetting_limit=0.1))
    run = SimpleNamespace(general=general, config=limited, encoder=encoder)
    assert len(strength.forgetting_sample(run).table) == 20


@pytest.mark.slow
def test_runs_without_a_folder_are_numbered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config(Path(__file__).parent.parent / "configs" / "quickstart.toml")
    assert choose_folder(config, "quick", False) == Path("runs/quick")
    (tmp_path / "runs" / "quick").mkdir(parents=True)
    assert choose_folder(config, "quick", False) == Path("runs/quick-2")
    assert choose_folder(config, "quick", True) == Path("runs/quick")


def on_ranks(count: int, work: Callable[[], int]) -> list[int]:
    """Exit codes of `count` forked ranks of a run: new processes would import for longer than they work."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    children = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                group = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
                os.environ.update(group, MASTER_ADDR="127.0.0.1", MASTER_PORT=port, ACCELERATE_USE_CPU="true")
                PartialState._reset_state()  # of the runs before, in the parent
                code = work()
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


@pytest.mark.slow
def test_two_processes_train_as_one_with_twice_the_batch(start, tiny_model, pair_files, tmp_path, capfd):
    """Dropout off: the same plan, the same losses, the same model."""
    model = tmp_path / "model"
    shutil.copytree(tiny_model("mpnet"), model)
    config = json.loads((model / "config.json").read_text())
    zero = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (model / "config.json").write_text(json.dumps({**config, **zero}))
    tickets = write_tickets(tmp_path / "tickets.csv", tickets_of_pairs(pair_files))
    changes = {"model.name": model, "curriculum.replay": 0.2, **CHOOSING}
    changes |= {"data.corpus": tickets, "data.duplicates": "duplicate_of", "eval.metric": "spearman"}
    one, two = tmp_path / "one", tmp_path / "two"
    capfd.readouterr()
    until_finish(start, one, changes)
    said = [capfd.readouterr().err]
    assert on_ranks(2, lambda: start(two, {**changes, "train.batch_size": 4})) == [0, 0]
    said.append(capfd.readouterr().err)
    plans = [json.loads((folder / "plan.json").read_text()) for folder in (one, two)]
    assert plans[0] == plans[1]
    # Lint speaks once, and finds what it finds alone.
    findings, again = (json.loads((folder / "lint.json").read_text()) for folder in (one, two))
    assert findings == again and findings["findings"]
    assert [errors.count("Lint of the run's pairs") for errors in said] == [1, 1]
    for mine, theirs in zip(steps_of(one), steps_of(two), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4) and mine["tokens"] <= theirs["tokens"]
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
    last = "checkpoints/step-000009/tensors.safetensors"
    expected, tensors = (load_file(folder / last) for folder in (one, two))
    for name in expected.keys() - {"random/0/torch"}:
        torch.testing.assert_close(tensors[name], expected[name], rtol=0, atol=2e-4, msg=name)
    # What two ranks measured together is what one finds in their model.
    metrics = json.loads((two / "metrics.json").read_text())
    question = Question(str(two / "model"), str(pair_files["dev"]), baseline=str(model), dims=(64, 16))
    found = judge(question)
    for dim, values in found.assessment.metrics["model"].items():
        # Those of search are the corpus's.
        of_pairs = {name: value for name, value in values.items() if name not in SEARCH_METRICS}
        theirs = {name: metrics["final"][dim][name] for name in of_pairs}
        assert theirs == pytest.approx(of_pairs, abs=1e-6, nan_ok=True)
    columns = Columns(duplicate_of="duplicate_of")
    search = SearchQuestion(str(two / "model"), baseline=str(model), dims=(64, 16), columns=columns)
    search = replace(search, tickets=str(tickets))
    by_part = [judge_search(replace(search, queries=f"part={part}")).assessment for part in ("dev", "test")]
    count = sum(found.queries for found in by_part)
    assert count == metrics["search"]["queries"]
    for system, by_dim in by_part[0].metrics.items():
        for dim in by_dim:
            mean = sum(found.queries * found.metrics[system][dim]["map@100"] for found in by_part) / count
            assert metrics["search"][system.replace("model", "final")][dim]["map@100"] == pytest.approx(mean, abs=1e-6)
    metadata = json.loads((two / "training_metadata.json").read_text())
    assert metadata["processes"] == 2
