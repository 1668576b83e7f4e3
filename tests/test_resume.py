"""Resuming: what may differ and what must not, one run a folder, cadences, kills.

Each guard has its negative control: a broken twin of a public function takes its place, and the test must turn red.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import pty
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from oracles import Killed, until_finish, watch_disk
from safetensors.torch import load_file, save_file

from trainer.checkpoint import content as state
from trainer.checkpoint import identity as run_identity
from trainer.checkpoint import sealed_folder as checkpoint
from trainer.checkpoint.identity import differences, identity, require_same_run
from trainer.checkpoint.sealed_folder import KEEP, has_checkpoints, newest_checkpoint, save_checkpoint
from trainer.data.incidents import generate_pairs
from trainer.errors import CheckpointError, Stopped, StorageError
from trainer.main import cli
from trainer.system import distributed, processor
from trainer.system import files as storage
from trainer.system.files import find_damage, only_writer, remove_debris, remove_folder, write_manifest
from trainer.system.signals import NUMBERS, Signals
from trainer.training import finish, loop, resume, run_folder, strength
from trainer.training import log as logbook
from trainer.training.log import Timer
from trainer.training.step import Stepper

ROOT = Path(__file__).parents[1]
SETTINGS = {
    "train.batch_size": 8,
    "train.precision": "auto",
    "curriculum.epochs": 1,
    "optim.lr": 1e-3,
    "loss.dims": [64, 16],
    "lora.enabled": "false",
    "eval.every": 2,
    "eval.choose_strength": "false",
    "checkpoint.every": 1,
    "early_stopping.patience": 5,  # more than there are evaluations
}


@pytest.fixture(scope="module")
def start(tiny_model, blank_report, tmp_path_factory):
    """start(folder, *options, **changes) -> exit code of a run of 9 steps."""
    root = tmp_path_factory.mktemp("data")
    for part, rows in (("train", 72), ("dev", 36)):
        (root / f"{part}.json").write_text(json.dumps(generate_pairs(rows, 0, part)))
    (root / "empty.toml").write_text("")
    paths = {"model.name": tiny_model("mpnet"), "data.train": root / "train.json", "data.dev": root / "dev.json"}

    def run(folder: Path, *options: str, **changes: Any) -> int:
        settings = {**SETTINGS, **paths, **{key.replace("__", "."): value for key, value in changes.items()}}
        sets = [f"--set={key}={value}" for key, value in settings.items()]
        return cli(["--config", str(root / "empty.toml"), "--output-dir", str(folder), *sets, *options])

    return run


@pytest.fixture(scope="module")
def undisturbed(start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert start(folder) == 0
    return outcome(folder)


def outcome(folder: Path) -> dict[str, Any]:
    """What must be equal of two runs to their last step and, where they were finished, of their ends."""
    clocks = {"tokens_per_s", "waiting", "peak_memory"}
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    last = sorted((folder / "checkpoints").glob("step-*"))[-1]
    tensors, values = load_file(last / "tensors.safetensors"), json.loads((last / "state.json").read_text())
    equal = {
        "log": [{key: value for key, value in line.items() if key not in clocks} for line in lines],
        "tensors": {name: tensor.numpy().tobytes() for name, tensor in tensors.items()},
        "values": {key: value for key, value in values.items() if key not in ("seconds", "resumed_at", "log")},
        "plan": (folder / "plan.json").read_bytes(),
        "kept": sorted(path.name for path in (folder / "checkpoints").iterdir()),
    }
    if (folder / "metrics.json").exists():
        equal["metrics"] = (folder / "metrics.json").read_bytes()
        equal["model"] = (folder / "model" / "model.safetensors").read_bytes()
    return equal


def unlike(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """What of one outcome differs in another: pytest's own comparison of such dicts takes hours under CI=true."""
    return [key for key in one if one[key] != other[key]]


def kill_after(patch: pytest.MonkeyPatch, steps: int) -> None:
    real = Stepper.train_step

    def step(self: Stepper, number: int, *rest: Any) -> Any:
        if number == steps:
            raise Killed
        return real(self, number, *rest)

    patch.setattr(Stepper, "train_step", step)


def killed(start: Any, folder: Path, steps: int = 5, **changes: Any) -> None:
    """A run that dies before its update of that number."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_after(patch, steps)
        start(folder, **changes)


@pytest.fixture(scope="module")
def killed_at_3(start, tmp_path_factory):
    """The folder of a run that died in its fourth step; not to be written to."""
    folder = tmp_path_factory.mktemp("at 3") / "run"
    killed(start, folder, 3)
    return folder


# ---- equality, and mutants that must break it


@pytest.mark.slow
@pytest.mark.parametrize("steps", [3, 8])  # 5 is the control of the mutants below
def test_from_any_step_the_result_is_the_undisturbed_one(steps, start, undisturbed, tmp_path):
    killed(start, tmp_path / "run", steps)  # 3 ends a phase, 8 is the last
    assert start(tmp_path / "run", "--resume") == 0
    assert unlike(outcome(tmp_path / "run"), undisturbed) == []


def forget(key: str, value: Any = None):
    """A mutant of `restore`: a field of the run's state comes back empty."""

    def mutant(patch: pytest.MonkeyPatch) -> None:
        real = resume.restore

        def restore(*arguments: Any) -> Any:
            restored = real(*arguments)
            setattr(restored, key, value(getattr(restored, key)) if callable(value) else value)
            return restored

        patch.setattr(resume, "restore", restore)

    return mutant


def lose(prefix: str):
    """A mutant of `restore`: tensors of a kind are as they were before."""

    def mutant(patch: pytest.MonkeyPatch) -> None:
        real = resume.load_checkpoint

        def load(folder: Path) -> Any:
            tensors, values = real(folder)
            return {n: torch.zeros_like(t) if n.startswith(prefix) else t for n, t in tensors.items()}, values

        patch.setattr(resume, "load_checkpoint", load)

    return mutant


def other_random_states(patch: pytest.MonkeyPatch) -> None:
    real = resume.load_checkpoint

    def load(folder: Path) -> Any:
        tensors, values = real(folder)
        return {**tensors, "random/0/torch": torch.get_rng_state()}, values

    patch.setattr(resume, "load_checkpoint", load)


def whole_log(patch: pytest.MonkeyPatch) -> None:
    """Nothing that a killed run left behind its checkpoint is dropped."""
    real = loop.open_log
    patch.setattr(loop, "open_log", lambda folder, accelerator, step: real(folder, accelerator, 99))


MUTANTS = {
    "random states": other_random_states,
    "cursor": forget("step", lambda step: step - 1),
    "best": forget("best"),
    "best weights": lose("best/"),
    "weights": lose("weight/"),
    "first moments": lose("optimizer/exp_avg/"),
    "second moments": lose("optimizer/exp_avg_sq/"),
    "optimizer's step": lose("optimizer/step/"),
    "evaluations": forget("evaluations", lambda entries: []),
    "early stopping": forget("without_best", 7),
    "log not cut": whole_log,
}


@pytest.fixture(scope="module")
def killed_before_saving(start, tmp_path_factory):
    """A run killed between update and save: behind the checkpoint of step 5, its log has a line too many."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    killed(start, folder, 5)
    lines = (folder / "log.jsonl").read_text().splitlines()
    last = next(line for line in map(json.loads, reversed(lines)) if "loss" in line)
    with (folder / "log.jsonl").open("a") as log:
        log.write(json.dumps({**last, "step": 5}) + "\n")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", [*MUTANTS, pytest.param(None, marks=pytest.mark.numbers)])
def test_a_mutant_of_the_resume_is_seen(name, start, killed_before_saving, undisturbed, tmp_path, monkeypatch):
    folder = shutil.copytree(killed_before_saving, tmp_path / "run")
    if name is None:  # the control
        assert start(folder, "--resume") == 0 and unlike(outcome(folder), undisturbed) == []
        return
    MUTANTS[name](monkeypatch)
    monkeypatch.setattr(loop, "finish", lambda *_: None)
    code = start(folder, "--resume")  # where it breaks down instead, nothing of ours has noticed
    assert code == CheckpointError.exit_code or (code == 0 and unlike(outcome(folder), undisturbed) != [])


@pytest.mark.slow
def test_a_checkpoint_holds_no_step_that_the_log_on_disk_lacks_and_the_verdict_comes_last(start, tmp_path, monkeypatch):
    events = watch_disk(monkeypatch, tmp_path)
    assert start(tmp_path / "run") == 0
    require_synced_logs(events)
    names = [event for event in events if event.startswith("name ")]
    assert names.index("name model") < names.index("name metrics.json") == len(names) - 1


def require_synced_logs(events: list[str]) -> None:
    named = [place for place, event in enumerate(events) if event.startswith("name step-")]
    assert len(named) == 10
    for before, place in itertools.pairwise(named):
        assert "sync log.jsonl" in events[before:place]


@pytest.mark.slow
def test_a_log_that_is_not_on_disk_is_seen(start, tmp_path, monkeypatch):
    """Negative control of the test above."""
    monkeypatch.setattr(logbook.RunLog, "sync", lambda self: None)
    events = watch_disk(monkeypatch, tmp_path)
    until_finish(start, tmp_path / "run")
    with pytest.raises(AssertionError, match="sync log"):
        require_synced_logs(events)


def test_a_mutant_scaler_is_seen():
    """fp16 needs a GPU: the scaler's state goes through `snapshot` and `restore` with one that only notes it."""
    notes: list[Any] = []
    scaler = SimpleNamespace(state_dict=lambda: {"scale": 512.0, "growth": 3}, load_state_dict=notes.append)
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.AdamW([parameter])
    run = state.RunState(baseline={})
    tensors, values = state.snapshot(run, {"w": parameter}, optimizer, scaler, {}, {"size": 0, "sha256": ""})
    state.restore(tensors, json.loads(json.dumps(values)), {"w": parameter}, optimizer, scaler)
    assert notes == [{"scale": 512.0, "growth": 3}]


def test_every_random_state_comes_back():
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.AdamW([parameter])
    saved = state.snapshot(
        state.RunState(baseline={}), {"w": parameter}, optimizer, None, {}, {"size": 0, "sha256": ""}
    )

    def draw() -> list[float]:
        drawn = [torch.rand(1).item(), torch.randn(1).item()]
        return [*drawn, torch.rand(1, device="cuda").item()] if torch.cuda.is_available() else drawn

    first = draw()
    assert draw() != first
    state.restore(*saved, {"w": parameter}, optimizer, None)
    assert draw() == first


@pytest.mark.parametrize("name", ["weight/w", "optimizer/exp_avg/w", "optimizer/exp_avg_sq/w"])
def test_a_tensor_of_another_shape_is_refused(name):
    """One value would be copied into all of a parameter."""
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    run = state.RunState(baseline={})
    tensors, values = state.snapshot(run, {"w": parameter}, optimizer, None, {}, {"size": 0, "sha256": ""})
    with pytest.raises(ValueError, match=re.escape("w is [1], not [2]")):
        state.restore({**tensors, name: torch.ones(1)}, values, {"w": parameter}, optimizer, None)


# ---- a plan that is cut


@pytest.mark.slow
def test_a_cut_run_makes_the_first_steps_of_the_plan_and_goes_on_to_its_end(start, tmp_path, capfd):
    def steps_of(folder: Path) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        return [{key: line[key] for key in ("step", "lr", "loss", "grad_norm")} for line in lines if "loss" in line]

    until_finish(start, tmp_path / "whole")
    killed(start, tmp_path / "cut", 3)
    run, state = until_finish(start, tmp_path / "cut", "--resume", "--max-steps=5")
    assert state.step == run.steps == state.evaluations[-1]["step"] == 5 and state.best is not None
    assert steps_of(tmp_path / "cut") == steps_of(tmp_path / "whole")[:5]
    plan = json.loads((tmp_path / "cut" / "plan.json").read_text())
    assert plan == json.loads((tmp_path / "whole" / "plan.json").read_text()) | {"stops_after": 5}
    metadata = finish.metadata(run, state, 1.0, {})
    assert (metadata["steps"], metadata["planned_steps"]) == (5, 9)

    capfd.readouterr()
    assert start(tmp_path / "cut", "--resume", "--max-steps=4") == 2
    assert f"--max-steps 4: {tmp_path / 'cut'} has made 5 steps already" in capfd.readouterr().err
    run, state = until_finish(start, tmp_path / "cut", "--resume", "--max-steps=99")
    assert state.step == run.steps == 9 and steps_of(tmp_path / "cut") == steps_of(tmp_path / "whole")


@pytest.mark.slow
def test_a_run_that_is_cut_where_it_stands_is_judged_there(start, tmp_path):
    killed(start, tmp_path / "run", 1)
    _, state = until_finish(start, tmp_path / "run", "--resume", "--max-steps=1")
    assert state.step == 1 and [each["step"] for each in state.evaluations] == [1] and state.best is not None


@pytest.mark.slow
def test_a_cut_run_that_goes_on_is_the_undisturbed_one(start, undisturbed, tmp_path):
    """Cut where the plan has no evaluation, and stopped before its end, as often as one likes."""
    folder = tmp_path / "run"
    for options in ((), ("--resume",), ("--resume",)):
        _, state = until_finish(start, folder, "--max-steps=5", *options)
        evaluated = [line["step"] for line in outcome(folder)["log"] if "evaluation" in line]
        assert evaluated == [1, 3, 4] and [each["step"] for each in state.evaluations] == [2, 4, 5]
    assert start(folder, "--resume") == 0
    assert unlike(outcome(folder), undisturbed) == []


# ---- what may change, and what is refused


@pytest.mark.slow
def test_cadences_change_nothing(start, undisturbed, tmp_path):
    changes = {"checkpoint__every": 4, "checkpoint__minutes": 1e-9, "log__every": 1, "train__timeout": 99}
    killed(start, tmp_path / "run", 5, **changes)
    until_finish(start, tmp_path / "run", "--resume", checkpoint__every=2)
    assert set(unlike(outcome(tmp_path / "run"), undisturbed)) <= {"kept"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optim__lr": 2e-3}, ["optim.lr was 0.001, is 0.002"]),
        ({"loss__scale": 10, "optim__clip_norm": 2}, ["loss.scale was 20.0, is 10.0", "optim.clip_norm was 1.0, is 2"]),
        ({"train__batch_size": 4}, ["train.batch_size of all processes was 8, is 4"]),
        ({"train__tokens_per_chunk": 300}, ["train.tokens_per_chunk was 0, is 300", "--allow-inexact-resume"]),
    ],
)
def test_a_different_run_is_refused_field_by_field(changes, said, start, killed_at_3, capfd):
    capfd.readouterr()
    assert start(killed_at_3, "--resume", **changes) == 4
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and all(words in errors[0] for words in said)


def flip_label(path: Path) -> None:
    columns = json.loads(path.read_text())
    columns["labels"][0] = 1 - columns["labels"][0]
    path.write_text(json.dumps(columns))


def change_weight(path: Path) -> None:
    tensors = load_file(path)
    next(iter(tensors.values())).view(-1)[0] += 1
    save_file(tensors, path, metadata={"format": "pt"})


def swap_words(path: Path) -> None:
    tree = json.loads(path.read_text())
    words = tree["model"]["vocab"]
    words["printer"], words["vpn"] = words["vpn"], words["printer"]
    path.write_text(json.dumps(tree))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("train.json", flip_label, "train_data"),
        ("dev.json", flip_label, "dev_data"),
        ("test.json", flip_label, "test_data"),
        ("model/model.safetensors", change_weight, "base_weights"),
        ("model/tokenizer.json", swap_words, "tokens"),
    ],
)
def test_a_file_that_changed_is_refused(file, change, said, start, tiny_model, tmp_path, capfd):
    """Under the same name, so that the config is the same."""
    for name, rows in (("train", 72), ("dev", 36), ("test", 36)):
        (tmp_path / f"{name}.json").write_text(json.dumps(generate_pairs(rows, 0, name)))
    shutil.copytree(tiny_model("mpnet"), tmp_path / "model")
    paths = {
        "data__train": tmp_path / "train.json",
        "data__dev": tmp_path / "dev.json",
        "data__test": tmp_path / "test.json",
        "model__name": tmp_path / "model",
    }
    killed(start, tmp_path / "run", 1, **paths)
    change(tmp_path / file)
    assert start(tmp_path / "run", "--resume", **paths) == 4
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and re.findall(r"(\w+) was", errors[0]) == [said]


@pytest.mark.slow
def test_a_model_that_changes_while_it_is_trained_is_refused_at_the_end(
    start, undisturbed, tiny_model, tmp_path, monkeypatch, capfd
):
    """It is read again there, and would be the baseline, and what the strength is measured from."""
    model = shutil.copytree(tiny_model("mpnet"), tmp_path / "model")
    train_steps = loop.train_steps

    def train_and_change(*given: Any) -> None:
        train_steps(*given)
        change_weight(model / "model.safetensors")

    monkeypatch.setattr(loop, "train_steps", train_and_change)
    assert start(tmp_path / "run", model__name=model) == 4
    said = f"{model}: its weights have changed since training began; restore the model, then go on with --resume"
    assert said in capfd.readouterr().err and not (tmp_path / "run" / "metrics.json").exists()
    monkeypatch.undo()
    shutil.copytree(tiny_model("mpnet"), model, dirs_exist_ok=True)
    assert start(tmp_path / "run", "--resume", model__name=model) == 0
    assert outcome(tmp_path / "run")["model"] == undisturbed["model"]


@pytest.mark.slow
def test_a_resume_that_compares_nothing_is_seen(start, tiny_model, tmp_path, capfd, monkeypatch):
    """Negative control: the test above sees that the runs are not compared."""
    monkeypatch.setattr(run_identity, "differences", lambda saved, current: [])
    kill_after(monkeypatch, 1)
    with pytest.raises(Killed):  # it goes on
        test_a_file_that_changed_is_refused("train.json", flip_label, "train_data", start, tiny_model, tmp_path, capfd)


@pytest.mark.slow
def test_an_inexact_resume_is_allowed_where_asked_for_and_on_record(start, tmp_path):
    killed(start, tmp_path / "run", 5)
    _, state = until_finish(start, tmp_path / "run", "--resume", "--allow-inexact-resume", train__tokens_per_chunk=300)
    records = [line for line in outcome(tmp_path / "run")["log"] if "inexact_resume" in line]
    assert records == [{"step": 5, "inexact_resume": ["step 5: train.tokens_per_chunk was 0, is 300"]}]
    assert state.inexact == records[0]["inexact_resume"]


@pytest.mark.slow
@pytest.mark.numbers
def test_a_resumed_run_takes_its_products_again_or_is_refused_as_inexact(start, tmp_path, monkeypatch, capfd):
    """`auto` and the measurement are of the run's start, not of the day it is resumed."""
    monkeypatch.delenv(processor.SWITCH, raising=False)
    processor.forget()
    if not processor.works("onednn", torch.float32):
        pytest.skip("torch was built without oneDNN's operators")
    processor.take_products({"fp32": "onednn"})
    killed(start, tmp_path / "run", 5)
    shutil.copytree(tmp_path / "run", tmp_path / "lesser")
    processor.take_products({"fp32": "torch"})  # as if the measurement came out otherwise today
    run, state = until_finish(start, tmp_path / "run", "--resume")
    assert run.numerics.products["fp32"] == "onednn" and state.inexact == []

    processor.forget()
    monkeypatch.setenv("TRAINER_ONEDNN", "off")
    capfd.readouterr()
    assert start(tmp_path / "lesser", "--resume") == 4
    said = capfd.readouterr().err
    assert (
        re.search(r"products was {'fp32': 'onednn'.*}, is {'fp32': 'torch'", said) and "--allow-inexact-resume" in said
    )
    assert start(tmp_path / "lesser", "--resume", "--allow-inexact-resume") == 0
    metadata = json.loads((tmp_path / "lesser" / "training_metadata.json").read_text())
    assert metadata["products"]["fp32"] == "torch"
    assert any("products was" in difference for difference in metadata["inexact_resumes"])
    monkeypatch.undo()
    processor.forget()


def test_processes_may_be_redistributed_but_not_the_batch(monkeypatch):
    """2 x 8 pairs on two processes are 16 on one: another setting of the same run."""
    tree = {
        "train": {"batch_size": 8, "precision": "fp32", "tokens_per_chunk": 0, "compile": "auto"},
        "log": {"every": 1},
    }
    monkeypatch.setattr(run_identity, "world_size", lambda: 2)
    two = identity(tree, {"train_data": "x"}, {"processes": 2})
    monkeypatch.setattr(run_identity, "world_size", lambda: 1)
    one = identity({**tree, "train": {**tree["train"], "batch_size": 16}}, {"train_data": "x"}, {"processes": 1})
    assert differences(two["run"], one["run"]) == []
    assert require_same_run(Path("c"), two, one, True) == [
        "train.batch_size was 8, is 16",
        "processes was 2, is 1",
    ]
    with pytest.raises(CheckpointError, match="processes was 2, is 1"):
        require_same_run(Path("c"), two, one, False)
    half = identity(tree, {"train_data": "x"}, {"processes": 1})
    with pytest.raises(CheckpointError, match="of all processes was 16, is 8"):
        require_same_run(Path("c"), two, half, True)


def test_a_field_that_is_new_or_gone_is_a_difference():
    assert differences({"a": 1, "b": None}, {"a": 1, "c": None}) == [
        "c was 'absent', is None",
        "b was None, is 'absent'",
    ]


def test_pairs_that_another_setting_reads_are_no_changed_file() -> None:
    saved = {"data.train": "p.json", "data.limit": 0, "train_data": "1" * 64}
    other = saved | {"train_data": "2" * 64}
    assert "data.train = p.json has changed" in differences(saved, other)[0]
    assert differences(saved, other | {"data.limit": 9}) == ["data.limit was 0, is 9"]


@pytest.mark.slow
def test_random_states_that_no_generator_has_are_refused(start, tmp_path, capfd):
    killed(start, tmp_path / "run", 1)
    folder = newest_checkpoint(tmp_path / "run" / "checkpoints")
    tensors = load_file(folder / "tensors.safetensors")
    tensors["random/0/torch"].fill_(255)
    save_file(tensors, folder / "tensors.safetensors")
    (folder / "manifest.json").unlink()
    write_manifest(folder)
    assert start(tmp_path / "run", "--resume") == 4
    assert "not a checkpoint of this version" in capfd.readouterr().err


@pytest.mark.slow
def test_where_all_checkpoints_are_bad_nothing_starts_again(start, killed_at_3, tmp_path):
    shutil.copytree(killed_at_3, tmp_path / "run")
    for folder in (tmp_path / "run" / "checkpoints").iterdir():
        (folder / "state.json").write_text("{}")
    for _ in range(2):  # also once they are set aside
        assert start(tmp_path / "run", "--resume") == 4
    assert not (tmp_path / "run" / "metrics.json").exists()


@pytest.mark.slow
def test_a_run_that_died_before_its_first_checkpoint_starts_at_step_0(start, undisturbed, tmp_path, monkeypatch, capfd):
    def die(*_: Any) -> None:
        raise Killed

    monkeypatch.setattr(resume, "save_checkpoint", die)
    with pytest.raises(Killed):
        start(tmp_path / "run")
    monkeypatch.undo()
    until_finish(start, tmp_path / "run", "--resume")
    assert "starting at step 0" in capfd.readouterr().err
    assert unlike(outcome(tmp_path / "run"), undisturbed) == []


def cut_short(start, folder: Path, *options: str, **changes: Any) -> dict[str, Any]:
    """A run that dies when the strength is chosen and nothing exported; returns its strength.json."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finish, "export", raise_killed)
        with pytest.raises(Killed):
            start(folder, *options, eval__choose_strength="true", **changes)
    assert not (folder / "metrics.json").exists()
    return json.loads((folder / "strength.json").read_text())


@pytest.fixture(scope="module")
def chosen(start, tmp_path_factory):
    """The folder of a run that was cut short so, and its strength.json; not to be written to."""
    folder = tmp_path_factory.mktemp("chosen") / "run"
    return folder, cut_short(start, folder)


def raise_killed(*_, **__):
    raise Killed


def stale(folder: Path) -> set[str]:
    """What an earlier try left in a finished run."""
    left = {path.name for path in folder.iterdir() if path.is_file() and path.read_bytes() == b"of an earlier try"}
    return left | {name for name in ("adapter", "strength.json") if (folder / name).exists()}


@pytest.mark.slow
def test_what_an_earlier_end_left_does_not_outlive_it(start, chosen, tmp_path, monkeypatch):
    for name in ("run", "mutant"):
        folder = shutil.copytree(chosen[0], tmp_path / name)
        for file in ("scores.json", "training_metadata.json", "report.html"):
            (folder / file).write_text("of an earlier try")
        (folder / "adapter").mkdir()
    assert start(tmp_path / "run", "--resume", "--full-strength") == 0
    assert stale(tmp_path / "run") == set()
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["strength"] == 1.0
    # Negative control: where nothing is cleared, they stay.
    monkeypatch.setattr(finish, "clear_results", lambda *_, **__: None)
    assert start(tmp_path / "mutant", "--resume", "--full-strength") == 0
    assert stale(tmp_path / "mutant") == {"adapter", "strength.json"}


@pytest.mark.slow
def test_strengths_that_were_measured_are_kept_while_all_they_depend_on_is_the_same(
    start, chosen, tmp_path, monkeypatch
):
    folder, before = chosen
    real, measured = strength.measured_point, []

    def counted(run, general, alpha):
        measured.append(alpha)
        return real(run, general, alpha)

    monkeypatch.setattr(strength, "measured_point", counted)
    run, partial, other = (shutil.copytree(folder, tmp_path / name) for name in ("run", "partial", "other data"))
    assert cut_short(start, run, "--resume") == before and measured == []
    # Killed in the midst of it: what was measured is not measured again, and the choice is the same.
    (partial / "strength.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(
            strength, "measured_point", lambda *given: counted(*given) if len(measured) < 3 else raise_killed()
        )
        cut_short(start, partial, "--resume")
    assert len(measured) == 3 and cut_short(start, partial, "--resume") == before
    assert len(measured) == len(set(measured)) == len(before["curve"])
    measured.clear()
    # A forgetting set may come with the resume: then every point is of something else.
    sts = tmp_path / "sts.csv"
    sts.write_text("\n".join(f"vpn {i},mail {i * 7 % 30},{i * 13 % 51 / 10}" for i in range(30)) + "\n")
    again = cut_short(start, other, "--resume", data__forgetting=sts)
    assert len(measured) == len(again["curve"]) and "forgetting" in again["curve"][0]
    assert again["fingerprint"] != before["fingerprint"]


@pytest.mark.slow
def test_a_log_that_rotted_is_named(start, killed_before_saving, tmp_path, capfd):
    shutil.copytree(killed_before_saving, tmp_path / "run")
    log = tmp_path / "run" / "log.jsonl"
    log.write_bytes(log.read_bytes().replace(b'"step": 2', b'"step": 3', 1) + b'\xff\n{"step": 4\n[]\n7\n')
    until_finish(start, tmp_path / "run", "--resume")
    assert "log.jsonl: its lines before step 5 are not what was written" in capfd.readouterr().err


# ---- retention


def steps_in(root: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in root.glob("step-*") if "." not in path.name)


def save(root: Path, step: int, keep: tuple[int, ...] = ()) -> Path:
    return save_checkpoint(root, step, {"w": torch.ones(2)}, {"step": step}, keep)


def test_kept_are_the_last_three_and_those_named(tmp_path):
    for step in range(1, 9):
        save(tmp_path, step, (2, 4))
    assert steps_in(tmp_path) == [2, 4, 6, 7, 8]


def test_one_that_rotted_does_not_count(tmp_path):
    for step in range(1, 4):
        save(tmp_path, step)
    (tmp_path / "step-000003" / "state.json").write_text("rot")
    save(tmp_path, 4)
    assert steps_in(tmp_path) == [1, 2, 3, 4]
    assert len([f for f in tmp_path.iterdir() if find_damage(f) is None]) == KEEP


@pytest.mark.parametrize("broken", ["one is enough", "those named go too"])
def test_retention_that_drops_too_much_is_seen(broken, tmp_path, monkeypatch):
    """Negative controls of the test of what is kept."""
    real = checkpoint.drop_old
    if broken == "one is enough":
        monkeypatch.setattr(checkpoint, "KEEP", 1)
    else:
        monkeypatch.setattr(checkpoint, "drop_old", lambda root, keep: real(root, ()))
    with pytest.raises(AssertionError):
        test_kept_are_the_last_three_and_those_named(tmp_path)


def test_counting_a_rotten_checkpoint_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "find_damage", lambda *_: None)
    with pytest.raises(AssertionError):
        test_one_that_rotted_does_not_count(tmp_path)


def test_a_damaged_checkpoint_of_the_same_step_is_written_again(tmp_path):
    (save(tmp_path, 1) / "state.json").write_text("rot")
    assert find_damage(save(tmp_path, 1)) is None and newest_checkpoint(tmp_path).name == "step-000001"


def test_what_was_just_written_is_not_read_again(tmp_path, monkeypatch):
    hashed: list[str] = []
    real = checkpoint.find_damage
    monkeypatch.setattr(checkpoint, "find_damage", lambda folder, *rest: hashed.append(folder.name) or real(folder))
    for step in range(1, 7):
        save(tmp_path, step)
    assert hashed == [] and steps_in(tmp_path) == [4, 5, 6]
    # What another process wrote is read once; what has changed since, again.
    for step in (4, 5):
        shutil.copytree(tmp_path / f"step-00000{step}", tmp_path / "copy")
        shutil.rmtree(tmp_path / f"step-00000{step}")
        (tmp_path / "copy").rename(tmp_path / f"step-00000{step}")
    os.utime(tmp_path / "step-000006" / "state.json", ns=(1, 1))
    save(tmp_path, 7)
    assert sorted(hashed) == ["step-000005", "step-000006"]
    save(tmp_path, 8)
    assert sorted(hashed) == ["step-000005", "step-000006"] and steps_in(tmp_path) == [6, 7, 8]


def test_the_seal_of_a_log_is_that_of_its_file(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 4}\n{"step": 5}\n{"st')
    log = logbook.open_log(tmp_path, SimpleNamespace(is_main_process=True, trackers=[]), 5)
    for step in (4, 5, 6):
        data = (tmp_path / "log.jsonl").read_bytes()
        assert log.seal() == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        assert logbook.is_log_whole(tmp_path, log.seal())
        log.write({"step": step, "text": "ü", "value": float("nan")})
    assert not logbook.is_log_whole(tmp_path, {"size": len(data), "sha256": log.seal()["sha256"]})


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which Linux has")
def test_a_disk_that_is_full_is_told_with_the_log_that_it_cuts_short():
    log = logbook.RunLog(Path("/dev/full"), b"", SimpleNamespace(is_main_process=True, trackers=[]))
    with pytest.raises(StorageError, match="/dev/full: cannot write: No space left on device"):
        log.write({"step": 0})
    with pytest.raises(StorageError, match="/dev/full: cannot write: "):
        log.sync()  # a device has nothing to sync


def test_a_process_that_dies_while_it_removes_leaves_no_half_checkpoint(tmp_path, monkeypatch):
    folder = save(tmp_path, 1)

    def die(path: Path) -> None:
        (path / "state.json").unlink()
        raise Killed

    monkeypatch.setattr(storage.shutil, "rmtree", die)
    with pytest.raises(Killed):
        remove_folder(folder)
    monkeypatch.undo()
    assert not has_checkpoints(tmp_path) and len(list(tmp_path.iterdir())) == 1
    remove_debris(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_removing_under_its_own_name_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "rename", lambda self, target: self)
    with pytest.raises((AssertionError, FileNotFoundError)):
        test_a_process_that_dies_while_it_removes_leaves_no_half_checkpoint(tmp_path, monkeypatch)


def test_debris_is_only_what_bears_its_name(tmp_path):
    for name in (".a.tmp", "b.tmp", ".git", "step-000001"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").touch()
    (tmp_path / ".c.tmp").symlink_to(tmp_path / ".git")
    remove_debris(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"b.tmp", ".git", "step-000001"}
    assert (tmp_path / ".git" / "x").exists()


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname"])
def test_a_manifest_names_no_file_outside(name, tmp_path):
    (tmp_path / "outside").write_text("x")
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a").write_text("x")
    write_manifest(folder)
    entries = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**entries, name: entries["a"]}))
    assert find_damage(folder) == "manifest.json is not what was written"


@given(st.binary(max_size=60) | st.text(max_size=30).map(str.encode))
@example(b"[" * 100_000)
@example(b'{"state.json": {"size": 1e999, "sha256": null}}')
@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_bytes_as_manifest_are_damage(tmp_path, data):
    folder = tmp_path / "step-000001"
    if not folder.exists():
        save(tmp_path, 1)
    (folder / "manifest.json").write_bytes(data)
    assert find_damage(folder, checkpoint.FILES)


@pytest.mark.slow
@given(st.lists(st.binary(max_size=20) | st.integers(0, 9).map(lambda step: b'{"step": %d}' % step), max_size=8))
@example(
    [
        b'{"step": NaN}',
        b'{"step": [1]}',
        b'{"step": {}}',
        b"[" * 100_000,
        b"9" * 5000,
        b'{"step": 1' + b"0" * 400 + b"}",
    ]
)
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_bytes_in_a_log_are_cut_to_the_lines_before_the_step(tmp_path, lines):
    (tmp_path / "log.jsonl").write_bytes(b"\n".join(lines))
    logbook.open_log(tmp_path, SimpleNamespace(is_main_process=True, trackers=[]), 5)
    for line in (tmp_path / "log.jsonl").read_text().splitlines():
        assert json.loads(line)["step"] < 5


# ---- one run a folder


def hold(folder: Path) -> int:
    """A forked process that has a folder to itself until it is killed; returns its number."""
    told, tells = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with only_writer(folder):
                os.write(tells, b"in")
                time.sleep(60)
        finally:
            os._exit(0)
    assert os.read(told, 2) == b"in"
    return child


@pytest.mark.slow
def test_a_second_run_is_refused_while_the_first_lives(start, tmp_path, capfd):
    folder = tmp_path / "run"
    holder = hold(folder)
    try:
        assert start(folder) == 5
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "another process runs there" in errors[0]
    assert (folder / ".lock").exists()  # and holds nobody off
    until_finish(start, folder)


def test_a_run_that_came_in_before_the_lock_is_not_overwritten(start, tmp_path, monkeypatch):
    def late(folder: Path) -> Any:
        folder.mkdir()
        (folder / "config.toml").touch()  # by a process that has ended meanwhile
        return only_writer(folder)

    monkeypatch.setattr(run_folder, "only_writer", late)
    assert start(tmp_path / "run") == 5
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".lock", "config.toml"]


def test_a_lock_is_given_up_with_its_block_and_its_file_stays(tmp_path):
    """A file that was removed could still be locked by a process that had opened it, beside one with a new file."""
    with only_writer(tmp_path), pytest.raises(StorageError, match="another process"), only_writer(tmp_path):
        pass
    before = (tmp_path / ".lock").stat().st_ino
    with only_writer(tmp_path):
        assert (tmp_path / ".lock").stat().st_ino == before


@pytest.mark.slow
def test_a_second_run_without_a_lock_is_seen(start, tmp_path, monkeypatch, capfd):
    """Negative control of the test of a second run."""
    monkeypatch.setattr(run_folder, "only_writer", lambda folder: nullcontext())
    kill_after(monkeypatch, 0)
    with pytest.raises(Killed):  # it goes on
        test_a_second_run_is_refused_while_the_first_lives(start, tmp_path, capfd)


@pytest.mark.slow
def test_a_folder_that_nobody_looks_at_behind_the_lock_is_seen(start, tmp_path, monkeypatch):
    """Negative control of the test of a run that came in before the lock."""
    monkeypatch.setattr(run_folder, "check_folder", lambda folder, resume: None)
    kill_after(monkeypatch, 0)
    with pytest.raises(Killed):  # it goes on
        test_a_run_that_came_in_before_the_lock_is_not_overwritten(start, tmp_path, monkeypatch)


# ---- signals and timers


@pytest.mark.usefixtures("hears_hang_ups")
@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_between_updates_is_noted_and_elsewhere_stops(number):
    before = signal.getsignal(number)
    with Signals() as signals, pytest.raises(Stopped), signals.noted() as requested:
        assert not requested()
        signal.raise_signal(number)
        assert requested()
    with Signals(), pytest.raises(Stopped):
        signal.raise_signal(number)
    assert signal.getsignal(number) == before


SIGNALLED = """
import signal, sys, time
from trainer.errors import Stopped
from trainer.system.signals import NUMBERS, Signals
both = set(NUMBERS)
with Signals() as signals:
    {before}
    try:
        with signals.noted() as requested:
            {inside}
            print("went on", requested(), flush=True)
    except Stopped:
        print("stopped")
"""
AT_ONCE = "signal.pthread_sigmask(signal.SIG_BLOCK, both); [signal.raise_signal(n) for n in both]; "
AT_ONCE += "signal.pthread_sigmask(signal.SIG_UNBLOCK, both)"
# Python swallows what a destructor raises, also the Stopped of a signal that came while it ran.
SWALLOWED = """
    class Dying:
        def __del__(self): signal.raise_signal(signal.SIGTERM)
    try:
        Dying()
        while True:  # not signal.pause, which would sleep on after a signal that came just before it
            time.sleep(0.01)
    except Stopped:
        sys.exit(0)
"""
FIRST, SECOND = "signal.raise_signal(signal.SIGINT)", "signal.raise_signal(signal.SIGTERM)"
HANG_UP = "signal.raise_signal(signal.SIGHUP)"


@pytest.mark.usefixtures("hears_hang_ups")
@pytest.mark.parametrize(
    ("before", "inside", "code", "said"),
    [
        ("", FIRST, 0, "went on True\nstopped\n"),
        ("", f"{FIRST}; {SECOND}", -signal.SIGTERM, ""),  # at once
        ("", AT_ONCE, 0, "went on True\nstopped\n"),  # two in one moment are one
        ("signals.ignore()", f"{FIRST}; {SECOND}", 0, "went on False\n"),
        (SWALLOWED, "pass", 0, ""),
        ("", f"{HANG_UP}; {HANG_UP}", 0, "went on True\nstopped\n"),  # what goes to a pipe still does
        ("", f"{HANG_UP}; {SECOND}", -signal.SIGTERM, ""),
    ],
)
def test_what_signals_do_to_a_process(before, inside, code, said):
    program = SIGNALLED.format(before=before or "pass", inside=inside)
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, said, "")


def test_in_another_thread_no_signal_is_looked_for():
    before = list(map(signal.getsignal, NUMBERS))

    def work():
        with Signals() as signals, signals.noted() as requested:
            inside = list(map(signal.getsignal, NUMBERS))
            signals.ignore()
            return inside, requested()

    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(work).result() == (before, False)
    assert list(map(signal.getsignal, NUMBERS)) == before


def test_under_nohup_a_hang_up_changes_nothing():
    program = SIGNALLED.format(before="pass", inside=f"{HANG_UP}; {HANG_UP}")
    program = f"import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN){program}"
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "went on False\n", "")


WITHOUT_TERMINAL = """
import sys, time
from pathlib import Path
from trainer.errors import Stopped
from trainer.system.signals import Signals
with Signals() as signals:
    try:
        with signals.noted() as requested:
            print("here", flush=True)
            while not requested():
                time.sleep(0.01)
            print("nobody reads this", flush=True)
    except Stopped:
        Path(sys.argv[1]).write_text("stopped")
"""


@pytest.mark.usefixtures("hears_hang_ups")
@pytest.mark.parametrize("forgets", [True, False])  # False: the negative control, where printing is an error
def test_where_the_terminal_goes_away_what_is_printed_is_no_error(forgets, tmp_path):
    program = (
        WITHOUT_TERMINAL
        if forgets
        else f"import trainer.system.signals as s\ns.forget_terminal = int{WITHOUT_TERMINAL}"
    )
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "-c", program, str(tmp_path / "end")])
    assert b"here" in os.read(terminal, 100)
    os.close(terminal)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert ((tmp_path / "end").exists(), code == 0) == (forgets, forgets)


def test_a_timer_rings_after_its_minutes_and_never_at_0(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    timer, never = Timer(0.5), Timer(0)
    rings = []
    for now[0] in (29.0, 30.0, 31.0):
        rings.append(timer.rings())
    timer.set()
    assert rings == [False, True, True] and not timer.rings() and not never.rings()


def test_rank_0_fails_for_all(monkeypatch):
    def fail() -> None:
        raise StorageError("full")

    with pytest.raises(StorageError):
        distributed.on_first_rank(fail)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    monkeypatch.setattr(distributed, "share_object", lambda value: (None, 5))  # what rank 0 sent
    with pytest.raises(SystemExit) as ended:
        distributed.on_first_rank(fail)
    assert ended.value.code == 5


# ---- killed for good


@pytest.mark.slow
def test_a_process_that_is_killed_at_any_moment_resumes_to_the_same_result(start, undisturbed, tmp_path):
    """Forked, since a new process would import for longer than it runs. bench/ kills hundreds, at every named point."""
    for step in (1, 4, 8):
        folder = tmp_path / str(step)
        child = os.fork()
        if child == 0:
            try:
                start(folder)
            finally:
                os._exit(0)
        while not (folder / "checkpoints" / f"step-{step:06d}").exists() and os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(0.001)
        time.sleep(random.uniform(0, 0.1))
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        assert not (folder / "metrics.json").exists()
        if step == 8:  # perhaps beyond the last step
            assert start(folder, "--resume") == 0
        else:
            until_finish(start, folder, "--resume")
        assert unlike(outcome(folder), undisturbed) == []
