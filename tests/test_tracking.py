"""Trackers: a stand-in for each package that is not installed, what is missing or will not start, names of numbers."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from accelerate.utils import LoggerType

from trainer.config import Config, DataConfig, LogConfig
from trainer.config_file import resolve_config
from trainer.errors import InputError
from trainer.training import tracking
from trainer.training.accelerator import make_accelerator
from trainer.training.tracking import scalars, track, track_end, tracked


class Service:
    """What stands for wandb and mlflow: it notes what it is given."""

    def __init__(self) -> None:
        self.started: list[dict[str, Any]] = []
        self.settings: dict[str, Any] = {}
        self.numbers: list[tuple[int | None, dict[str, float]]] = []
        self.ended = 0
        self.refuses = ""

    def start(self, **how: Any) -> Any:
        if self.refuses:
            raise RuntimeError(self.refuses)
        self.started.append(how)
        return SimpleNamespace(log=self.log, finish=self.end)

    def log(self, values: dict[str, float], step: int | None = None) -> None:
        self.numbers.append((step, values))

    def end(self) -> None:
        self.ended += 1


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch) -> dict[str, Service]:
    wandb, mlflow = Service(), Service()
    kinds = [LoggerType.WANDB, LoggerType.MLFLOW]
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: kinds)
    of_wandb: Any = ModuleType("wandb")
    of_wandb.init = wandb.start
    of_wandb.config = SimpleNamespace(update=lambda values, **_: wandb.settings.update(values))
    of_mlflow: Any = ModuleType("mlflow")
    of_mlflow.search_experiments = lambda **_: []
    of_mlflow.create_experiment = lambda **_: "1"
    of_mlflow.start_run, of_mlflow.log_metrics = mlflow.start, mlflow.log
    of_mlflow.log_params, of_mlflow.end_run = mlflow.settings.update, mlflow.end
    validation = SimpleNamespace(MAX_PARAM_VAL_LENGTH=500, MAX_PARAMS_TAGS_PER_BATCH=100)
    of_mlflow.utils = SimpleNamespace(validation=validation)
    monkeypatch.setitem(sys.modules, "wandb", of_wandb)
    monkeypatch.setitem(sys.modules, "mlflow", of_mlflow)
    return {"wandb": wandb, "mlflow": mlflow}


def settings(*names: str) -> Config:
    return Config(data=DataConfig(train="pairs.json"), log=LogConfig(trackers=names))


def test_settings_every_number_and_the_judgement_arrive(services: dict[str, Service], tmp_path: Path) -> None:
    config = settings("wandb", "mlflow")
    accelerator = make_accelerator(config, tmp_path / "first")
    with tracked(config, accelerator):
        track(accelerator, {"step": 3, "loss": 0.5, "evaluation": {"64": {"success@10": 0.25}}, "note": "text"}, 3)
        record = {"baseline": {"64": {"mrr@10": 0.1}}, "final": {"64": {"mrr@10": 0.2}}, "sentences": ["text"]}
        searched = {"bm25+final": {"64": {"map@100": 0.3}}, "intervals": {"final": {"64": {"map@100": [0, 1]}}}}
        track_end(accelerator, {"dev": record, "search": searched | {"facts": {"texts": 9}}, "strength": 0.7}, 8)
        track_end(accelerator, None, 8)  # another rank
    for service in services.values():
        assert service.settings["train.batch_size"] == config.train.batch_size and service.ended == 1
        assert service.settings["log.trackers"] == '["wandb", "mlflow"]'
        assert service.numbers == [
            (3, {"step": 3, "loss": 0.5, "evaluation/64/success_at_10": 0.25}),
            (
                8,
                {
                    "end/dev/baseline/64/mrr_at_10": 0.1,
                    "end/dev/final/64/mrr_at_10": 0.2,
                    "end/search/bm25_and_final/64/map_at_100": 0.3,
                    "end/strength": 0.7,
                },
            ),
        ]
    assert services["wandb"].started == [{"project": "matryoshka-trainer", "name": "first"}]
    assert services["mlflow"].started[0]["run_name"] == "first"


def test_what_is_missing_or_will_not_start_is_one_line(services: dict[str, Service], tmp_path: Path) -> None:
    with pytest.raises(InputError, match='"tensorboard" is not installed: install the extra `track`'):
        make_accelerator(settings("tensorboard"), tmp_path)
    services["wandb"].refuses = "no account\nlog in"
    config = settings("wandb")
    with (
        pytest.raises(InputError, match=r'log\.trackers = \["wandb"\]: cannot start: no account$'),
        tracked(config, make_accelerator(config, tmp_path)),
    ):
        pytest.fail("it began")
    with (
        pytest.raises(InputError, match="tracker"),
        tracked(settings(), make_accelerator(settings(), tmp_path)) as accelerator,
    ):
        track(accelerator, {"loss": 1.0}, 0)  # nobody listens, and nothing breaks
        raise InputError("tracker")


def test_a_setting_that_is_gone_names_its_successor() -> None:
    with pytest.raises(InputError, match=r'log\.tensorboard is gone: write log\.trackers = \["tensorboard"\] instead'):
        resolve_config({"data": {"train": "pairs.json"}, "log": {"tensorboard": False}})


def test_numbers_alone_have_names_that_trackers_take() -> None:
    assert scalars({"a": {"b@1": 2, "c": [1]}, "d": "e", "f+g": 1.5, "h": None}) == {"a/b_at_1": 2, "f_and_g": 1.5}


def test_no_gradient_is_divided_by_what_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert make_accelerator(settings(), tmp_path).gradient_accumulation_steps == 1
