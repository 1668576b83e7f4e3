"""What a config comes to: open settings by model and pairs, what differs from the defaults, what has no effect."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from trainer.config import Config, LossConfig, setting_keys
from trainer.config_file import load_config, resolve_config
from trainer.config_rules import SettingError
from trainer.data.pairs import PairTable, pairs_from_columns
from trainer.errors import InputError
from trainer.training import plan, settled
from trainer.training.command import choose_config, default_config, train_parser
from trainer.training.plan import print_graded_labels, print_teacher
from trainer.training.schedule import learning_rates
from trainer.training.settled import (
    EFFECTS,
    Conditions,
    changed_settings,
    ignored_settings,
    little_movement,
    print_settings,
    settle,
)


def config_of(*settings: str) -> Config:
    return resolve_config({}, ["data.train=pairs.json", *settings])


def pairs_of(phases: list[int], labels: list[float] | None = None, **options: float) -> PairTable:
    columns = {"texts1": [f"a {i}" for i in range(len(phases))], "texts2": [f"b {i}" for i in range(len(phases))]}
    columns |= {"labels": labels or [i % 2 for i in range(len(phases))], "phase_indicators": phases}
    return pairs_from_columns(columns, "pairs.json", **options)


def said_by(monkeypatch: pytest.MonkeyPatch, action) -> str:
    out = io.StringIO()
    for module in (plan, settled):
        monkeypatch.setattr(module, "console", Console(file=out, width=500, soft_wrap=True))
    action()
    return out.getvalue()


# ---- settled by the model, the pairs and the way of training


@pytest.mark.parametrize(
    ("width", "dims"),
    [
        (1024, (1024, 512, 256, 128, 64)),
        (768, (768, 512, 256, 128, 64)),
        (512, (512, 256, 128, 64)),
        (384, (384, 256, 128, 64)),
        (64, (64,)),
        (48, (48,)),
    ],
)
def test_dims_go_down_from_the_width_unless_they_are_set(width: int, dims: tuple[int, ...]) -> None:
    assert settle(config_of(), width, pairs_of([1, 1])).loss.dims == dims
    assert settle(config_of("loss.dims=[32, 8]"), width, pairs_of([1, 1])).loss.dims == (32, 8)


def test_the_rate_goes_by_the_way_of_training_unless_it_is_set() -> None:
    rates = [
        settle(config_of(*settings), 384, pairs_of([1, 1])).optim.lr
        for settings in ([], ["lora.enabled=true"], ["lora.enabled=false"], ["optim.lr=3e-5"])
    ]
    assert rates == [1e-3, 1e-3, 1e-4, 3e-5]


def test_what_does_not_go_with_what_was_settled_is_refused() -> None:
    for settings in (["optim.floor_lr=5e-3"], ["loss.weights=[1, 2]"], ["lora.enabled=false", "optim.floor_lr=5e-4"]):
        with pytest.raises(SettingError, match=r"optim\.floor_lr|loss\.weights has 2 values for 4"):
            settle(config_of(*settings), 384, pairs_of([1, 1]))


@pytest.mark.parametrize(
    ("phases", "settings", "mode"),
    [
        ([1, 1], [], "mixed"),
        ([3, 3], [], "mixed"),
        ([1, 2], [], "phased"),
        ([1, 1], ["curriculum.phases=[1]"], "phased"),
        ([1, 1], ["curriculum.phases=[1, 2]"], "phased"),  # where it is refused: phase 2 has no rows
        ([1, 1], ["curriculum.mode=phased"], "phased"),
        ([1, 2], ["curriculum.mode=mixed"], "mixed"),
    ],
)
def test_pairs_of_one_phase_are_mixed_unless_phases_are_asked_for(
    phases: list[int], settings: list[str], mode: str
) -> None:
    assert settle(config_of(*settings), 64, pairs_of(phases)).curriculum.mode == mode


def test_settled_again_it_stays() -> None:
    once = settle(config_of(), 384, pairs_of([1, 2]))
    assert settle(once, 384, pairs_of([1, 2])) == once


# ---- without --config


@pytest.mark.parametrize(
    ("arguments", "is_quickstart"),
    [
        ([], True),
        (["--set", "train.seed=1"], True),
        (["--set", "model.name=x"], False),
        (["--set", "train.seed=1", "--set", "data.train=x"], False),
        (["--set= model.name =x"], False),
    ],
)
def test_the_quickstart_is_for_nothing_but_the_toy(arguments: list[str], is_quickstart: bool) -> None:
    assert choose_config(train_parser().parse_args(arguments)) == (default_config() if is_quickstart else None)


def test_what_is_the_toys_is_not_in_the_built_in_settings() -> None:
    toy, real = load_config(default_config()), settle(config_of("model.name=x"), 384, pairs_of([1, 1]))
    assert toy.optim.lr == 2e-3 and toy.loss.dims == (64, 32, 16) and not toy.lora.enabled
    assert real.optim.lr == 1e-3 and real.loss.dims == (384, 256, 128, 64) and real.lora.enabled


def test_a_folder_without_a_run_is_not_resumed(tmp_path) -> None:
    options = train_parser().parse_args(["--resume", "--output-dir", str(tmp_path)])
    with pytest.raises(InputError, match="leave out --resume"):
        choose_config(options)


# ---- what has no effect

# Setting -> settings with which it has an effect, and with which it has none; a run of 10 steps on one process.
CASES: dict[str, tuple[list[str], list[str]]] = {
    "lora.rank=4": ([], ["lora.enabled=false"]),
    "lora.alpha=4": ([], ["lora.enabled=false"]),
    "lora.dropout=0": ([], ["lora.enabled=false"]),
    'lora.targets=["ffn"]': ([], ["lora.enabled=false"]),
    "lora.rslora=true": ([], ["lora.enabled=false"]),
    "lora.dora=true": ([], ["lora.enabled=false"]),
    "lora.start=merge": (["model.name=run/adapter"], ["model.name=run/model"]),
    "data.dev_fraction=0.2": ([], ["data.dev=dev.json"]),
    'data.batches="by_source"': (['data.sources=[{path="a.json"}, {path="b.json"}]', 'data.train=""'], []),
    "data.label_scale=5": (["data.train=incidents", "data.test=t.json"], ["data.train=incidents"]),
    "data.positive_threshold=0.7": ([], ["data.train=incidents"]),
    'data.columns=["label=same"]': ([], ["data.train=incidents"]),
    "data.encoding=cp1252": (["data.train=incidents", "data.corpus=t.csv"], ["data.train=incidents"]),
    "data.separator=tab": ([], ["data.train=incidents"]),
    "data.allow_overlap=0.05": (["data.test=test.json"], []),
    "curriculum.phases=[4]": ([], ["curriculum.mode=mixed"]),
    "curriculum.replay=0.1": ([], ["curriculum.phases=[2]"]),
    "train.timeout=60": ([], []),
    "optim.floor_lr=0": ([], ["optim.warmup_ratio=0.15", "optim.hold_ratio=0.83"]),  # 9.8 steps are all 10
    "loss.pair_weight=0.5": ([], ["data.train=positives.json"]),
    "loss.distillation_weight=1": ([], ["data.train=positives.json"]),
    "data.limit=9": ([], ["data.train=positives.json"]),
    "loss.teacher_scale=20": (["loss.distillation_weight=1"], []),
    "eval.largest_strength=1.5": ([], ["eval.choose_strength=false"]),
    "early_stopping.patience=2": (["eval.every=3"], ["eval.every=4"]),
    "checkpoint.every=9": ([], ["checkpoint.every=10"]),
}


def conditions_of(config: Config) -> Conditions:
    """Of pairs of both labels without a teacher, ten steps in one process."""
    return Conditions(
        config,
        10,
        planned_steps=10,
        processes=1,
        has_negatives=True,
        has_soft_targets=False,
        has_teacher=False,
        is_limited=False,
        from_adapter=False,
    )


def ignored(settings: list[str], processes: int = 1, planned_steps: int = 10) -> list[str]:
    asked = config_of(*settings)
    is_rich = "data.train=positives.json" not in settings  # it has negatives, and a teacher's scores
    run = Conditions(
        settle(asked, 64, pairs_of([1, 2])),
        10,
        planned_steps,
        processes,
        has_negatives=is_rich,
        has_soft_targets=is_rich,
        has_teacher=is_rich,
        is_limited=is_rich,
        from_adapter="/adapter" in asked.model.name,
    )
    return [line.split(" ")[0] for line in ignored_settings(asked, run)]


def test_every_setting_with_a_condition_exists_and_is_tried() -> None:
    tried = [text.split("=")[0] for text in CASES]
    assert sorted(tried) == sorted(EFFECTS) and set(tried) <= set(setting_keys())


@pytest.mark.parametrize("setting", CASES)
def test_a_setting_without_effect_is_named_and_one_with_effect_is_not(setting: str) -> None:
    key, (effective, idle) = setting.split("=")[0], CASES[setting]
    assert key not in ignored([setting, *effective], processes=2)
    assert key in ignored([setting, *idle])
    assert key not in ignored(idle) or setting.startswith("checkpoint")  # what nobody set is not talked about


@pytest.mark.parametrize(
    ("setting", "own"),
    [
        ("data.label_scale=5", "label_scale=5"),
        ("data.positive_threshold=0.7", "label_scale=5"),  # on another scale it means nothing
        ("data.positive_threshold=0.7", "positive_threshold=0.6"),
        ('data.columns=["label=same"]', 'columns=["label=equal"]'),
    ],
)
def test_how_files_are_read_is_named_where_every_source_has_its_own_and_no_other_file_is_read(
    setting: str, own: str
) -> None:
    def is_ignored(sources: str, *settings: str) -> bool:
        return setting.split("=")[0] in ignored([setting, 'data.train=""', f"data.sources=[{sources}]", *settings])

    both = f'{{path="a.json", {own}}}, {{path="b.json", {own}}}'
    assert is_ignored(both)
    assert not is_ignored(f'{both}, {{path="c.json"}}')
    assert not is_ignored(both, "data.dev=dev.json") and not is_ignored(both, "data.test=test.json")


def test_a_floor_that_a_cut_run_does_not_come_to_is_named() -> None:
    """By default the rate comes down after 35 % of the plan."""
    assert "optim.floor_lr" in ignored(["optim.floor_lr=0"], planned_steps=40)
    assert "optim.floor_lr" not in ignored(["optim.floor_lr=0"], planned_steps=20)


@pytest.mark.parametrize(
    ("settings", "stops"),
    [
        (["curriculum.mode=mixed", "early_stopping.patience=1"], False),  # one evaluation, at the end
        (["early_stopping.patience=1"], True),  # three phases
        (["early_stopping.patience=2"], False),  # the first evaluation is the best, so the third would have to stop it
    ],
)
def test_patience_that_cannot_run_out_is_named(settings: list[str], stops: bool) -> None:
    assert ("early_stopping.patience" in ignored(settings)) is not stops


# ---- what the plan says


def test_the_plan_says_what_was_set_settled_and_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = config_of("model.name=x", "curriculum.mode=mixed", "curriculum.phases=[4]", "output.dir=out")
    real = settle(asked, 384, pairs_of([1, 2]))
    said = said_by(
        monkeypatch,
        lambda: print_settings(asked, conditions_of(real), width=384),
    )
    assert said.splitlines() == [
        'Settings that differ from the defaults: model.name = "x", data.train = "pairs.json", '
        'curriculum.mode = "mixed", curriculum.phases = [4]',
        "Settled by the model and the pairs: optim.lr = 0.001, loss.dims = [384, 256, 128, 64]",
        'Ignored: curriculum.phases (curriculum.mode = "mixed" trains all phases at once)',
    ]
    assert changed_settings(Config()) == {}


def test_a_largest_dim_below_the_width_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = config_of("loss.dims=[64, 32]")
    for width, is_said in ((384, True), (64, False)):
        real = settle(asked, width, pairs_of([1, 1]))
        run = conditions_of(real)
        said = said_by(monkeypatch, lambda run=run, width=width: print_settings(asked, run, width))
        assert ("largest of loss.dims, 64, is below the model's width, 384" in said) is is_said


@pytest.mark.parametrize(
    ("labels", "options", "line"),
    [
        ([0, 0.5, 1, 0.5], {}, "2 of 4 labels lie between 0 and data.label_scale: 2 train as full positives"),
        ([0, 2, 5, 4], {"label_scale": 5.0}, "2 of 4 labels lie between 0 and data.label_scale: 1 train as"),
        ([0, 0.5, 1, 0.5], {"positive_threshold": 0.6}, "0 train as full positives, 2 as negatives"),
        ([0, 1, 1, 0], {}, ""),
        ([0, 5, 5, 0], {"label_scale": 5.0}, ""),
    ],
)
def test_graded_labels_are_counted_in_one_line(
    labels: list[float], options: dict[str, float], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = said_by(monkeypatch, lambda: print_graded_labels(pairs_of([1] * 4, labels, **options)))
    assert line in said and said.count("\n") == bool(line)


# ---- a plan that is known to move nothing


@pytest.mark.parametrize(
    ("lora", "rate", "steps", "fix"),
    [
        (True, 5e-6, 50, "raise optim.lr (measured: 0.001)"),
        (True, 1e-4, 10, ""),
        (True, 1e-3, 178, ""),
        (True, 1e-3, 0.4, "train for more steps"),
        (False, 1e-6, 10, "raise optim.lr (measured: 0.0001)"),
        (False, 5e-6, 50, ""),  # all weights move where adapters do not
        (False, 1e-4, 178, ""),
    ],
)
def test_a_plan_whose_rate_times_steps_moves_nothing_says_so(lora: bool, rate: float, steps: float, fix: str) -> None:
    config = config_of(f"lora.enabled={str(lora).lower()}", f"optim.lr={rate}", "optim.floor_lr=0.0")
    rates = learning_rates(config.optim, int(steps)) if steps >= 1 else [rate * steps]
    said = little_movement(config, rates)
    assert bool(said) is bool(fix) and said.endswith(fix)
    if fix:
        assert f"optim.lr = {rate:g} for {len(rates)} steps" in said and "\n" not in said


def test_a_teachers_scores_that_nobody_learns_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = {"text1": ["a", "b"], "text2": ["c", "d"], "label": [1, 0], "teacher": [7.5, None]}
    table = pairs_from_columns(columns)
    for weight, line in (
        (0.0, "1 of 2 pairs have a teacher's score; these are not learned"),
        (1.0, "these are learned"),
    ):
        loss = LossConfig(distillation_weight=weight)
        assert line in said_by(monkeypatch, lambda loss=loss: print_teacher(table, loss))
    del columns["teacher"]
    assert said_by(monkeypatch, lambda: print_teacher(pairs_from_columns(columns), LossConfig())) == ""
