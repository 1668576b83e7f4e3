"""Configs: what is wrong is refused in one line with place, key and fix; what is right comes back from its own dump."""

from __future__ import annotations

import dataclasses
import doctest
import json
import math
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from trainer import config as config_module
from trainer import config_file
from trainer.config import (
    Config,
    DataConfig,
    EvalConfig,
    LoraConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    OutputConfig,
    TrainConfig,
    setting_keys,
)
from trainer.config_data import SourceConfig
from trainer.config_file import dump_config, load_config, resolve_config, suggest, to_tree
from trainer.config_rules import RULES, settings_of
from trainer.errors import InputError

ROOT = Path(__file__).parents[1]
TRAIN = 'data.train="pairs.json"'  # the one key without a default that passes


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path: Path, overrides: list[str] | None = None) -> str:
    with pytest.raises(InputError) as caught:
        load_config(path, overrides or [])
    message = str(caught.value)
    assert "\n" not in message
    return message


def as_file(tmp_path: Path, *settings_: str) -> Path:
    """A config file of settings written as overrides are."""
    tree: dict[str, list[str]] = {}
    for text in settings_:
        key, raw = text.split("=", 1)
        section, name = key.split(".")
        tree.setdefault(section, []).append(f"{name} = {raw}")
    return write(tmp_path, "\n".join(line for section, rows in tree.items() for line in (f"[{section}]", *rows)))


def build(setting: str) -> Any:
    """The section that holds one setting, built in Python."""
    key, raw = setting.split("=", 1)
    section, name = key.split(".")
    return settings_of(Config)[section](**{name: tomllib.loads(f"value = {raw}")["value"]})


def build_refusal(setting: str) -> str:
    with pytest.raises(InputError) as caught:
        build(setting)
    return str(caught.value)


# ---- rules

# Key -> values just outside its rule, values just inside, as TOML.
OUTSIDE_AND_INSIDE: dict[str, tuple[list[str], list[str]]] = {
    "model.name": (['""'], ['"x"']),
    "model.max_length": (["-1", "1", "2"], ["0", "3", "512"]),
    "model.pooling": (['"max"', '""', '"Mean"'], ['"auto"', '"mean"', '"cls"']),
    "model.prompts": (["[]", '["a", "b", "c"]', '["auto", "b"]'], ['["auto"]', '[""]', '["query: ", "passage: "]']),
    "lora.start": (['"resume"'], ['"continue"', '"merge"']),
    "lora.rank": (["-1", "-4"], ["0", "1"]),
    "lora.alpha": (["-16", "-0.5"], ["0", "0.5"]),
    "lora.dropout": (["1", "-0.1", "1.5"], ["0", "0.99"]),
    "data.batches": (['"phased"'], ['"mixed"', '"by_source"']),
    "data.dev_fraction": (["0", "1", "-0.1"], ["0.01", "0.99"]),
    "data.label_scale": (["0", "-5"], ["5"]),
    "data.positive_threshold": (["-0.1"], ["0", "0.3"]),
    "data.allow_overlap": (["-0.1", "1.1", "5"], ["0", "0.05", "1"]),
    "data.limit": (["-1"], ["0", "1"]),
    "curriculum.mode": (['"linear"'], ['"auto"', '"phased"', '"mixed"']),
    "curriculum.phases": (["[]", "[1, 2, 1]"], ["[3]", "[3, 1]"]),
    "curriculum.epochs": (["0", "-1"], ["1"]),
    "curriculum.replay": (["-0.1", "1.1"], ["0", "1"]),
    "train.batch_size": (["1", "0", "-8"], ["2"]),
    "train.compile": (['"maybe"', '"true"'], ['"on"', '"off"']),
    "train.precision": (['"fp64"', '"FP32"'], ['"auto"', '"fp32"', '"bf16"', '"fp16"']),
    "train.tokens_per_chunk": (["-1"], ["0", "4096"]),
    "train.seed": (["-1", "4294967296"], ["0", "4294967295"]),
    "optim.lr": (["-1e-5"], ["0", "1e-3"]),
    "optim.floor_lr": (["-1e-9"], ["0"]),
    "optim.weight_decay": (["-0.01"], ["0"]),
    "optim.warmup_ratio": (["-0.1", "1.1"], ["0", "0.8"]),
    "optim.hold_ratio": (["-0.1", "1.1"], ["0", "0.85"]),
    "optim.clip_norm": (["-1"], ["0"]),
    "loss.dims": (["[64, 0]", "[64, -8]", "[64, 32, 64]"], ["[]", "[64]", "[32, 64]"]),
    "loss.weights": (["[1, 0, 1, 1, 1]", "[1, -1, 1, 1, 1]"], ["[]", "[1, 0.5, 2, 1, 1]"]),
    "loss.scale": (["0", "-20"], ["0.1"]),
    "loss.guide_margin": (["-2.1", "1.1"], ["-2", "-0.5", "0", "1"]),
    "loss.pair_weight": (["-0.1"], ["0", "0.5"]),
    "loss.distillation_weight": (["-0.1"], ["0", "10"]),
    "loss.teacher_scale": (["0", "-1"], ["0.5", "20"]),
    "eval.every": (["-1"], ["0"]),
    "eval.largest_strength": (["0.9", "2.1"], ["1", "1.5", "2"]),
    "eval.forgetting_limit": (["-0.01"], ["0"]),
    "early_stopping.patience": (["-1"], ["0"]),
    "checkpoint.every": (["-1"], ["0"]),
    "checkpoint.minutes": (["-0.5"], ["0", "0.5"]),
    "train.timeout": (["0.5", "1e8"], ["1", "86400"]),
    "log.every": (["0", "-1"], ["1"]),
    "log.trackers": (['["tensorbord"]', '["wandb", "wandb"]'], ["[]", '["tensorboard", "mlflow"]']),
}
# Rules of the tables of data.sources; how they are told stands in a test of its own.
OF_SOURCES = {f"data.sources.{name}" for name in ("path", "weight", "label_scale", "positive_threshold")}
OUTSIDE = [f"{key}={raw}" for key, (bad, _) in OUTSIDE_AND_INSIDE.items() for raw in bad]
INSIDE = [f"{key}={raw}" for key, (_, good) in OUTSIDE_AND_INSIDE.items() for raw in good]


def test_every_rule_is_tried() -> None:
    assert OUTSIDE_AND_INSIDE.keys() | OF_SOURCES == RULES.keys()


def test_every_rule_is_about_a_key_that_exists() -> None:
    known = {f"{section}.{name}" for section, values in to_tree(Config()).items() for name in values}
    assert RULES.keys() - OF_SOURCES <= known == set(setting_keys())


@pytest.mark.parametrize("setting", OUTSIDE)
def test_a_value_outside_its_rule_is_refused_with_place_key_value_and_fix(setting: str, tmp_path: Path) -> None:
    key = setting.split("=")[0]
    path = as_file(tmp_path, setting, TRAIN)
    built = build_refusal(setting)
    assert built.startswith(f"{key} = ") and built.endswith(f": {RULES[key].fix}")
    assert refusal(path) == f"{path}: {built}"
    assert refusal(as_file(tmp_path, TRAIN), [setting]) == f"--set {setting}: {built}"


@pytest.mark.parametrize("setting", INSIDE)
def test_a_value_just_inside_its_rule_is_taken(setting: str, tmp_path: Path) -> None:
    section, name = setting.split("=")[0].split(".")
    config = load_config(write(tmp_path, ""), [TRAIN, setting])
    expected = tomllib.loads(f"value = {setting.split('=', 1)[1]}")["value"]
    assert to_tree(config)[section][name] == expected
    assert getattr(build(setting), name) == getattr(getattr(config, section), name)


@pytest.mark.parametrize("name", ["symmetric", "learn_scale"])
def test_a_setting_that_is_gone_is_read_at_the_value_that_holds_and_else_refused(name: str, tmp_path: Path) -> None:
    """Folders of earlier runs hold configs that name it."""
    config = load_config(write(tmp_path, f"[loss]\n{name} = false\nscale = 10\n"), [TRAIN])
    assert config == load_config(write(tmp_path, "[loss]\nscale = 10\n"), [TRAIN])
    for wrong in ("true", "0", '"false"'):
        message = refusal(write(tmp_path, f"[loss]\n{name} = {wrong}\n"), [TRAIN])
        assert f"loss.{name} is gone" in message and "leave it out" in message


SOURCES = """
[[data.sources]]
path = "a.json"

[[data.sources]]
path = "sts.csv"
weight = 0.2
label_scale = 5
columns = ["text1=Title"]
"""


def test_sources_are_tables_in_a_file_on_the_command_line_and_in_python(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, SOURCES))
    line = 'data.sources=[{path="a.json"}, {path="sts.csv", weight=0.2, label_scale=5, columns=["text1=Title"]}]'
    assert config == resolve_config({}, [line]) == resolve_config(to_tree(config))
    assert config.data.sources == (SourceConfig("a.json"), SourceConfig("sts.csv", 0.2, 5.0, 0.0, ("text1=Title",)))
    assert 'sources = [{path = "a.json"}, {path = "sts.csv", weight = 0.2, label_scale = 5.0,' in dump_config(config)


def test_a_source_is_read_by_what_it_says_and_else_as_all_files_are() -> None:
    sources = [{"path": "a"}, {"path": "b", "label_scale": 5}]
    data = DataConfig(label_scale=4, positive_threshold=3, columns=["label=L"], sources=sources)
    assert data.training_files() == (
        SourceConfig("a", 1.0, 4.0, 3.0, ("label=L",)),
        SourceConfig("b", 1.0, 5.0, 0.0, ("label=L",)),  # half of its own scale
    )
    assert DataConfig(train="x", label_scale=4).training_files() == (SourceConfig("x", 1.0, 4.0),)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ('data.sources="a.json"', ["must be a list of tables", "[[data.sources]]", "--set 'data.sources=[{path"]),
        ('data.sources=["a.json"]', ["must be a list of tables"]),
        ('data.sources=[{path="a"}, {weight=2}]', ["table 2", 'data.sources.path = ""', "name the file"]),
        ('data.sources=[{path="a", weight=0}]', ["table 1", "data.sources.weight = 0.0", "above 0"]),
        ('data.sources=[{path="a", weight="x"}]', ["table 1", "data.sources.weight must be a number"]),
        ('data.sources=[{path="a", label_scale=-1}]', ["data.sources.label_scale = -1.0"]),
        ('data.sources=[{path="a", positive_threshold=-1}]', ["data.sources.positive_threshold = -1.0"]),
        ('data.sources=[{path="a", positive_threshold=3}]', ["no pair would be positive"]),
        ('data.sources=[{path="a", wight=1}]', ["unknown key wight", "known are path, weight"]),
        ('data.sources=[{path="a"}, {path="a"}]', ["names a twice"]),
    ],
)
def test_a_source_that_is_none_is_told_by_its_number_and_the_fix(setting: str, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        resolve_config({}, [setting])
    message = str(caught.value)
    assert message.startswith(f"--set {setting}: ") and all(word in message for word in words), message


def test_one_file_and_several_exclude_each_other(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, SOURCES), [TRAIN])
    assert 'data.train = "pairs.json" and data.sources exclude each other' in message


def test_training_pairs_must_be_named(tmp_path: Path) -> None:
    complaint = 'data.train = "": name the file of training pairs, as in --set data.train=pairs.json'
    path = write(tmp_path, "")
    assert refusal(path) == f"{path}: {complaint}"
    assert refusal(path, ["data.train="]) == f"--set data.train=: {complaint}"
    with pytest.raises(InputError) as caught:
        DataConfig().require_train()
    assert str(caught.value) == complaint
    assert load_config(path, ["data.train=incidents"]).data.train == "incidents"


CROSS_CHECKS = {
    "optim.warmup_ratio=0.81": "optim.warmup_ratio + optim.hold_ratio = 101%: at most 100 %",
    "optim.hold_ratio=0.9": "optim.warmup_ratio + optim.hold_ratio = 105%: at most 100 %",
    "optim.lr=1e-8": "optim.floor_lr = 1e-06 is above optim.lr = 1e-08: lower it",
    "eval.forgetting_limit=0.01": "eval.forgetting_limit is for the choice of the strength: name data.forgetting, and "
    "let dev choose",
    'data.duplicates="dup"': "data.duplicates is about the tickets to search among: name their file as data.corpus",
    'data.corpus_columns=["text=a"]': "data.corpus_columns is about the tickets to search among: name their file as "
    "data.corpus",
    "data.positive_threshold=2": "data.positive_threshold is above data.label_scale: no pair would be positive",
}


@pytest.mark.parametrize(("setting", "complaint"), CROSS_CHECKS.items())
def test_two_keys_that_do_not_go_together_are_refused(setting: str, complaint: str, tmp_path: Path) -> None:
    path = as_file(tmp_path, setting, TRAIN)
    assert refusal(path) == f"{path}: {complaint}"
    assert refusal(write(tmp_path, ""), [TRAIN, setting]) == f"--set {setting}: {complaint}"


@pytest.mark.parametrize(("setting", "complaint"), CROSS_CHECKS.items())
def test_two_values_that_do_not_go_together_are_refused_in_python(setting: str, complaint: str) -> None:
    with pytest.raises(InputError) as caught:
        section = build(setting)
        Config(**{section.section: section})
    assert str(caught.value) == complaint


@pytest.mark.parametrize("pair", [(warm / 100, (100 - warm) / 100) for warm in range(0, 101, 7)])
def test_warm_up_and_hold_may_fill_the_whole_run(pair: tuple[float, float], tmp_path: Path) -> None:
    warmup, hold = pair
    optim = load_config(write(tmp_path, ""), [TRAIN, f"optim.warmup_ratio={warmup}", f"optim.hold_ratio={hold}"]).optim
    assert (optim.warmup_ratio, optim.hold_ratio) == pair


# ---- unknown names


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("optim.warmup=0.1", "unknown key optim.warmup; did you mean optim.warmup_ratio?"),
        ("train.batchsize=8", "unknown key train.batchsize; did you mean train.batch_size?"),
        ("lora.targest=['ffn']", "unknown key lora.targest; did you mean lora.targets?"),
        ("train.epochs=3", "unknown key train.epochs; did you mean curriculum.epochs?"),
        ("optm.lr=1", "unknown section 'optm'; did you mean optim.lr?"),
        ("training.num_train_epochs=1", "unknown section 'training'; did you mean curriculum.epochs?"),
        ("optimizer.zzz=1", "unknown section 'optimizer'; did you mean optim?"),
        ("early_stopping.zzz=1", "unknown key early_stopping.zzz; known are patience"),
        ("model.Name='x'", "unknown key model.Name; did you mean model.name?"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_known_one(setting: str, complaint: str, tmp_path: Path) -> None:
    path = as_file(tmp_path, setting, TRAIN)
    assert refusal(path) == f"{path}: {complaint}"
    assert refusal(write(tmp_path, ""), [TRAIN, setting]) == f"--set {setting}: {complaint}"


@pytest.mark.parametrize(
    ("key", "meant"),
    {
        "optim.learning_rate": "optim.lr",
        "train.lr": "optim.lr",
        "lora.lora_alpha": "lora.alpha",
        "lora.target_modules": "lora.targets",
        "lora.r": "lora.rank or lora.rslora",
        "model.max_seq_length": "model.max_length",
        "train.per_device_train_batch_size": "train.batch_size",
        "evl.every": "eval.every",
        "train.every": "eval.every or checkpoint.every or log.every",
    }.items(),
)
def test_a_name_from_elsewhere_is_looked_for_in_all_sections(key: str, meant: str) -> None:
    assert suggest(*key.split(".")) == f"did you mean {meant}?"


@pytest.mark.parametrize("key", ["train.zzz", "zzz.", "loss.hinge"])
def test_what_is_like_nothing_suggests_nothing(key: str) -> None:
    assert suggest(*key.split(".")) == ""


def test_a_setting_outside_all_sections_is_told_where_it_belongs(tmp_path: Path) -> None:
    assert refusal(write(tmp_path, "epochs = 3")).endswith("unknown section 'epochs'; did you mean curriculum.epochs?")


def test_a_section_with_no_like_lists_them_all(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, "[zzz]\n"))
    assert all(item.name in message for item in dataclasses.fields(Config))


@pytest.mark.parametrize("text", ["model = 3", "[[model]]\nname = 'x'", "model = 'all-mpnet'"])
def test_a_section_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    assert refusal(write(tmp_path, text)).endswith("model must be a section, as in [model]")
    assert "model" in refusal(write(tmp_path, text), ["model.name=x"])


# ---- types


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ('optim.lr="1e-5"', "optim.lr must be a number, not '1e-5' (write 1e-05)"),
        ('train.seed="1"', "train.seed must be a whole number, not '1' (write 1)"),
        ('lora.enabled="true"', "lora.enabled must be true or false, not 'true' (write true)"),
        ("lora.enabled=1", "lora.enabled must be true or false, not 1"),
        ("train.seed=1.0", "train.seed must be a whole number, not 1.0 (write 1)"),
        ("train.seed=true", "train.seed must be a whole number, not True"),
        ("optim.lr=true", "optim.lr must be a number, not True"),
        ("optim.lr=[1]", "optim.lr must be a number, not [1]"),
        ("optim.lr=nan", "optim.lr must be a finite number, not nan"),
        ("optim.clip_norm=inf", "optim.clip_norm must be a finite number, not inf"),
        (f"optim.lr={'9' * 400}", "optim.lr must be a finite number, not inf"),
        (f"loss.weights=[1, -{'9' * 309}]", "loss.weights must be a finite number, not inf"),
        ("output.dir=3", "output.dir must be a string, not 3"),
        ("loss.dims=64", "loss.dims must be a list, not 64 (write [64])"),
        *(
            (
                f'loss.dims="{dims}"',
                f"loss.dims must be a list, not '{dims}' (write [256, 128], on a command line between single quotes)",
            )
            for dims in ("256,128", "[256, 128")
        ),
        ('loss.dims="many"', "loss.dims must be a list, not 'many'"),
        ('lora.enabled="True"', "lora.enabled must be true or false, not 'True' (write true)"),
        ('lora.enabled="No"', "lora.enabled must be true or false, not 'No' (write false)"),
        ('lora.enabled="maybe"', "lora.enabled must be true or false, not 'maybe'"),
        ('train.seed="1.0"', "train.seed must be a whole number, not '1.0' (write 1)"),
        ('train.seed="1.5"', "train.seed must be a whole number, not '1.5'"),
        ('optim.lr="fast"', "optim.lr must be a number, not 'fast'"),
        ('optim.lr="nan"', "optim.lr must be a number, not 'nan'"),
        ('model.name="a\\u0000b"', "model.name holds a NUL: take it out"),
        ("loss.dims=[64.0]", "loss.dims must be a whole number, not 64.0 (write 64)"),
        ('loss.dims=["64"]', "loss.dims must be a whole number, not '64' (write 64)"),
        (
            'lora.targets="ffn"',
            "lora.targets must be a list, not 'ffn' (write [\"ffn\"], on a command line between single quotes)",
        ),
        (
            'model.prompts="ask: "',
            "model.prompts must be a list, not 'ask: ' (write [\"ask: \"], on a command line between single quotes)",
        ),
        ("lora.targets=[1]", "lora.targets must be a string, not 1"),
        ("loss.weights=[true]", "loss.weights must be a number, not True"),
        (
            "data.allow_overlap=true",
            "data.allow_overlap = true: name the share of held-out pairs that may share texts, as in 0.05",
        ),
        ("data.allow_overlap=false", "data.allow_overlap = false: write 0"),
    ],
)
def test_a_wrong_type_is_refused(setting: str, complaint: str, tmp_path: Path) -> None:
    path = as_file(tmp_path, setting, TRAIN)
    assert refusal(path) == f"{path}: {complaint}"
    assert refusal(write(tmp_path, ""), [TRAIN, setting]) == f"--set {setting}: {complaint}"
    assert build_refusal(setting) == complaint


def test_python_has_more_types_for_the_same_values() -> None:
    loss = LossConfig(dims=[np.int64(64), 32], weights=(1, np.float32(0.5)))
    assert (loss.dims, loss.weights) == ((64, 32), (1.0, 0.5))
    assert [type(value) for value in (*loss.dims, *loss.weights)] == [int, int, float, float]
    assert DataConfig(train=Path("a/b.json")).train == str(Path("a/b.json"))
    assert type(ModelConfig(name=np.str_("x")).name) is str
    assert type(LoraConfig(targets=[np.str_("ffn")]).targets[0]) is str
    for wrong in ({"lr": True}, {"lr": None}, {"lr": 1j}, {"lr": 10**400}):
        with pytest.raises(InputError, match=r"optim\.lr must be a"):
            OptimConfig(**wrong)


def test_a_section_of_another_kind_is_refused() -> None:
    for wrong in ({"batch_size": 2}, LossConfig(), TrainConfig, None):
        with pytest.raises(InputError, match=r"^train must be a TrainConfig, not "):
            Config(train=wrong)


def test_a_config_changed_is_checked_again() -> None:
    config = Config(eval=EvalConfig(forgetting_limit=0.1), data=DataConfig(forgetting="sts.csv"))
    with pytest.raises(InputError, match="forgetting_limit"):
        dataclasses.replace(config, data=DataConfig())
    with pytest.raises(InputError, match="batch_size = 1"):
        dataclasses.replace(config.train, batch_size=1)


def test_the_examples_run() -> None:
    assert doctest.testmod(config_module) == (0, 3)
    assert doctest.testmod(config_file) == (0, 2)


def test_whole_numbers_pass_as_floats(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "[lora]\nalpha = 16\n[loss]\nweights = [1, 2, 3, 4, 5]"), [TRAIN])
    assert type(config.lora.alpha) is float
    assert config.lora.alpha == 16
    assert config.loss.weights == (1.0, 2.0, 3.0, 4.0, 5.0)
    assert {type(weight) for weight in config.loss.weights} == {float}


@pytest.mark.parametrize("setting", ["a\nb=1", "optim.\nlr=1", "optim.l\x1br=1", "train.seed=1.5\n", "\r", "a\n.b=1"])
def test_what_a_line_cannot_hold_is_shown_spelt_out(setting: str, tmp_path: Path) -> None:
    message = refusal(write(tmp_path, ""), [TRAIN, setting])
    assert message.isprintable() and message.startswith(f"--set {repr(setting)[1:-1]}: ")
    assert refusal(write(tmp_path, '[optim]\n"l\\nr" = 1\n')).isprintable()


# ---- overrides


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("model.pooling=cls", "cls"),
        ('model.pooling="cls"', "cls"),
        ("model.name=org/model-v2", "org/model-v2"),
        ("data.train=/data/my pairs.json", "/data/my pairs.json"),
        (r"data.train=C:\new\table.csv", r"C:\new\table.csv"),
        ("data.train=../a=b.json", "../a=b.json"),
        ("data.dev=", ""),
        ("loss.dims=[64, 32]", (64, 32)),
        ('lora.targets=["attention", "ffn"]', ("attention", "ffn")),
        ("optim.lr=3e-4", 3e-4),
        ("optim.lr=1", 1.0),
        ("train.seed=7", 7),
        (" train.seed =7", 7),
        ("lora.dora=true", True),
    ],
)
def test_an_override_is_toml_or_a_bare_string(setting: str, expected: Any, tmp_path: Path) -> None:
    config = load_config(write(tmp_path, ""), [TRAIN, setting])
    section, name = setting.split("=")[0].strip().split(".")
    value = getattr(getattr(config, section), name)
    assert value == expected
    assert type(value) is type(expected)


def test_later_overrides_win_over_earlier_ones_and_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "[train]\nseed = 1\nbatch_size = 8")
    config = load_config(path, [TRAIN, "train.seed=2", "train.seed=3"])
    assert (config.train.seed, config.train.batch_size) == (3, 8)


@pytest.mark.parametrize("text", ["train.seed", "seed=1", "=1", ".seed=1", "train.=1", "", "train"])
def test_a_malformed_override_is_shown_how_to_be_written(text: str, tmp_path: Path) -> None:
    message = refusal(write(tmp_path, ""), [TRAIN, text])
    assert message == f"--set {text}: write it as section.key=value, as in --set train.seed=1"


def test_what_an_override_did_not_touch_is_blamed_on_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "[train]\nbatch_size = 1")
    assert refusal(path, [TRAIN, "train.seed=1"]).startswith(f"{path}: train.batch_size = 1: ")


# ---- the file


def test_a_byte_order_mark_is_read_over(tmp_path: Path) -> None:
    path = tmp_path / "bom.toml"
    path.write_bytes(b"\xef\xbb\xbf[train]\r\nseed = 5\r\n")
    assert load_config(path, [TRAIN]).train.seed == 5


def test_bad_toml_is_refused_with_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, "[train]\nseed = 1\nbatch_size = = 2\n")
    message = refusal(path)
    assert message.startswith(f"{path}: not valid TOML: ")
    assert "line 3" in message


@pytest.mark.parametrize(
    "text",
    [
        "[train]\nseed = 1\nseed = 2",
        "[train]\n[train]",
        "x",
        "\x00",
        "x = " + "[" * 100_000,
        "[train]\nseed = " + "9" * 10_000,
    ],
    ids=["key twice", "section twice", "word", "NUL", "deep", "long number"],
)
def test_hostile_toml_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    assert refusal(path).startswith(f"{path}: not valid TOML: ")


def test_a_number_too_long_to_read_is_refused_in_an_override_too(tmp_path: Path) -> None:
    assert "train.seed must be a whole number" in refusal(write(tmp_path, ""), [TRAIN, "train.seed=" + "9" * 10_000])


def test_a_file_that_is_missing_a_folder_or_not_utf8_is_refused(tmp_path: Path) -> None:
    missing = tmp_path / "no.toml"
    assert refusal(missing) == f"{missing}: cannot read the config: No such file or directory; check --config"
    assert refusal(tmp_path) == f"{tmp_path}: cannot read the config: Is a directory; check --config"
    latin = tmp_path / "latin.toml"
    latin.write_bytes("# Größe".encode("latin-1"))
    assert refusal(latin) == f"{latin}: not UTF-8 at byte 4; save the config as UTF-8"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.toml")), ids=lambda path: path.stem)
def test_the_configs_of_the_project_load_and_say_what_they_are(path: Path) -> None:
    assert load_config(path, [TRAIN]).data.train  # some leave the data to the command line
    assert all(f"# {word}:" in path.read_text() for word in ("Reproduces", "On", "How long", "Expect"))


# ---- writing back

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0")) | st.text(
    alphabet='\x07\t\r\n"\\#\x7f\x85\u2028\ufeff=[]é日🙂', max_size=8
)
ABOVE_ZERO = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
BY_TYPE: dict[Any, st.SearchStrategy[Any]] = {
    bool: st.booleans(),
    int: st.integers(3, 2**31),
    float: st.floats(0, 0.5, exclude_min=True),
    str: TEXT,
    tuple[str, ...]: st.lists(TEXT, min_size=1).map(tuple),
    tuple[SourceConfig, ...]: st.just(()),
    tuple[int, ...]: st.lists(st.integers(1, 10_000), min_size=1, unique=True).map(tuple),
}
BY_KEY = {
    "model.name": TEXT.filter(bool),
    "model.pooling": st.sampled_from(["auto", "mean", "cls"]),
    "model.prompts": st.lists(TEXT.filter(lambda text: text != "auto"), min_size=1, max_size=2).map(tuple),
    "lora.start": st.sampled_from(["continue", "merge"]),
    "data.train": TEXT.filter(bool),
    "data.label_scale": st.floats(0.5, allow_infinity=False),
    "data.batches": st.sampled_from(["mixed", "by_source"]),
    "curriculum.mode": st.sampled_from(["phased", "mixed"]),
    "train.compile": st.sampled_from(["on", "off"]),
    "train.precision": st.sampled_from(["auto", "fp32", "bf16", "fp16"]),
    "train.timeout": st.floats(1, 10**7),
    "optim.lr": st.floats(0.5, allow_infinity=False),
    "optim.weight_decay": ABOVE_ZERO,
    "loss.scale": ABOVE_ZERO,
    "eval.largest_strength": st.floats(1, 2),
    "log.trackers": st.lists(st.sampled_from(["tensorboard", "wandb", "mlflow"]), unique=True).map(tuple),
}


@st.composite
def configs(draw: st.DrawFn) -> Config:
    """Any config that passes its checks."""
    built: dict[str, Any] = {}
    for section, cls in settings_of(Config).items():
        hints = dict(settings_of(cls))
        hints.pop("weights", None)
        values = {name: draw(BY_KEY.get(f"{section}.{name}", BY_TYPE[kind])) for name, kind in hints.items()}
        if section == "data" and not values["corpus"]:
            values |= {"duplicates": "", "corpus_columns": ()}
        if section == "loss":
            count = len(values["dims"])
            values["weights"] = tuple(draw(st.just([]) | st.lists(ABOVE_ZERO, min_size=count, max_size=count)))
        if section == "eval" and not (values["choose_strength"] and built["data"].forgetting):
            values["forgetting_limit"] = 0.0
        built[section] = cls(**values)
    return Config(**built)


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(configs())
@example(
    Config(data=DataConfig(sources=(SourceConfig('a "b"', 0.3, 5.0, 3.0, ("text1=T", "label=l")), SourceConfig("c"))))
)
@example(Config(data=dataclasses.replace(Config().data, train='a"b\\c\x7f\n\r\t#\u2028')))
def test_what_is_dumped_reads_back_equal(tmp_path: Path, config: Config) -> None:
    path = tmp_path / "round.toml"
    path.write_bytes(dump_config(config).encode())
    assert load_config(path) == config
    assert resolve_config(json.loads(json.dumps(to_tree(config)))) == config


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(TEXT, st.floats(min_value=-0.0, allow_infinity=False))
def test_any_string_and_number_survives_toml(text: str, number: float) -> None:
    config = Config(output=OutputConfig(dir=text), optim=OptimConfig(weight_decay=number))
    tree = tomllib.loads(dump_config(config))
    assert tree == to_tree(config)
    assert math.copysign(1, tree["optim"]["weight_decay"]) == math.copysign(1, number)


def test_the_round_trip_can_fail() -> None:
    """JSON's way of writing DEL is no TOML; without the escape the file could not be read back."""
    with pytest.raises(tomllib.TOMLDecodeError):
        tomllib.loads(
            dump_config(Config(output=dataclasses.replace(Config().output, dir="\x7f"))).replace("\\u007f", "\x7f")
        )


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([item.name for item in dataclasses.fields(Config)]) | TEXT,
        st.dictionaries(
            st.sampled_from(["name", "lr", "dims", "enabled", "every", "seed", "weights"]) | TEXT,
            st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.lists(st.integers() | TEXT, max_size=3),
            max_size=3,
        )
        | TEXT,
        max_size=3,
    )
)
def test_any_tree_is_a_config_or_refused(tree: dict[str, Any]) -> None:
    try:
        assert isinstance(resolve_config(tree), Config)
    except InputError as error:
        assert str(error)
