"""How a section of settings checks itself: what a value must satisfy, and what to do where it does not."""

from __future__ import annotations

import typing
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Any, ClassVar

from trainer.errors import InputError
from trainer.system.values import convert, toml_value


class SettingError(InputError):
    """A setting that is unknown or wrong: `keys` are those that the message is about, the one to blame first."""

    def __init__(self, message: str, *keys: str) -> None:
        super().__init__(message)
        self.keys = keys


class Section:
    """A section of a `Config`, a dataclass. Building one converts its values to their types and checks them.

    Lists pass as tuples, whole numbers as floats, paths as strings.

    Raises:
        SettingError: a value of the wrong type or out of range.
    """

    section: ClassVar[str]
    """Its name: "train" of `TrainConfig`."""

    def __init_subclass__(cls, name: str) -> None:
        cls.section = name

    def __post_init__(self) -> None:
        section: Any = type(self)
        for name, kind in settings_of(section).items():
            key = f"{self.section}.{name}"
            object.__setattr__(self, name, checked(getattr(self, name), kind, key))  # the dataclass is frozen
        self.check_together()

    def check_together(self) -> None:
        """Check the settings of the section that depend on each other. Raises SettingError."""


@cache
def settings_of(section: Any) -> dict[str, Any]:
    """Name -> type of the settings of a section; of `Config`, of the sections."""
    kinds = typing.get_type_hints(section)
    return {field.name: kinds[field.name] for field in fields(section)}


def checked(value: Any, kind: Any, key: str) -> Any:
    """A setting's value in its type. Raises SettingError where it is of another type, or breaks the key's rule."""
    items = typing.get_args(kind)
    try:
        value = _tables(value, items[0], key) if items and is_dataclass(items[0]) else convert(value, kind, key)
    except SettingError:
        raise
    except InputError as error:
        raise SettingError(str(error), key) from None
    if key in RULES and not RULES[key].holds(value):
        raise SettingError(f"{key} = {toml_value(value)}: {RULES[key].fix}", key)
    return value


def _tables(value: Any, kind: Any, key: str) -> tuple[Any, ...]:
    """A list of tables as sections of a kind. Raises SettingError."""
    known = ", ".join(settings_of(kind))
    if not isinstance(value, list | tuple) or not all(isinstance(one, dict | kind) for one in value):
        example = f"""'{key}=[{{path = "a.json"}}, {{path = "b.json", weight = 0.3}}]'"""
        message = f"{key} must be a list of tables, not {value!r}: write a [[{key}]] each, or --set {example}"
        raise SettingError(message, key)
    sections = []
    for number, one in enumerate(value, start=1):
        values = vars(one) if isinstance(one, kind) else one
        if unknown := [name for name in values if name not in settings_of(kind)]:
            raise SettingError(f"{key}, table {number}: unknown key {unknown[0]}; known are {known}", key)
        try:
            sections.append(kind(**values))
        except SettingError as error:
            raise SettingError(f"{key}, table {number}: {error}", key, *error.keys) from None
    return tuple(sections)


@dataclass(frozen=True)
class Rule:
    """What a value must satisfy beyond its type, and what to do where it does not."""

    holds: Callable[[Any], bool]
    fix: str


def _one_of(*choices: str) -> Rule:
    return Rule(lambda value: value in choices, "use one of " + ", ".join(f'"{choice}"' for choice in choices))


_NOT_NEGATIVE = Rule(lambda value: value >= 0, "use 0 or more")
_POSITIVE = Rule(lambda value: value > 0, "use a value above 0")
_SHARE = Rule(lambda value: 0 <= value <= 1, "use a share from 0 to 1")

RULES = {
    "model.name": Rule(bool, "name a model folder or a hub model"),
    "model.max_length": Rule(lambda value: value == 0 or value >= 3, "use 3 or more, or 0 for the model's own"),
    "model.pooling": _one_of("auto", "mean", "cls"),
    "model.prompts": Rule(
        lambda value: len(value) in (1, 2) and (len(value) == 1 or "auto" not in value),
        'use ["auto"], one prompt, or two: the query\'s and the document\'s, as in ["query: ", "passage: "]',
    ),
    "lora.start": _one_of("continue", "merge"),
    "lora.rank": _NOT_NEGATIVE,
    "lora.alpha": _NOT_NEGATIVE,
    "lora.dropout": Rule(lambda value: 0 <= value < 1, "use a share from 0 up to, not including, 1"),
    "data.batches": _one_of("mixed", "by_source"),
    "data.dev_fraction": Rule(lambda value: 0 < value < 1, "use a share between 0 and 1"),
    "data.label_scale": _POSITIVE,
    "data.positive_threshold": _NOT_NEGATIVE,
    "data.allow_overlap": _SHARE,
    "data.limit": _NOT_NEGATIVE,
    "data.sources.path": Rule(bool, 'name the file, as in [{path = "pairs.json"}]'),
    "data.sources.weight": _POSITIVE,
    "data.sources.label_scale": _NOT_NEGATIVE,
    "data.sources.positive_threshold": _NOT_NEGATIVE,
    "curriculum.mode": _one_of("auto", "phased", "mixed"),
    "curriculum.phases": Rule(lambda value: value and len(set(value)) == len(value), "list each phase once"),
    "curriculum.epochs": _POSITIVE,
    "curriculum.replay": _SHARE,
    "train.batch_size": Rule(lambda value: value >= 2, "use 2 or more: one pair has nothing to be told apart from"),
    "train.precision": _one_of("auto", "fp32", "bf16", "fp16"),
    "train.tokens_per_chunk": _NOT_NEGATIVE,
    "train.compile": _one_of("on", "off"),
    "train.timeout": Rule(lambda value: 1 <= value <= 10**7, "use seconds from 1 to 10000000"),
    "train.seed": Rule(lambda value: 0 <= value < 2**32, "use a whole number from 0 to 4294967295"),
    "optim.lr": Rule(lambda value: value >= 0, "use a rate above 0, or 0 for the measured one"),
    "optim.floor_lr": _NOT_NEGATIVE,
    "optim.weight_decay": _NOT_NEGATIVE,
    "optim.warmup_ratio": _SHARE,
    "optim.hold_ratio": _SHARE,
    "optim.clip_norm": _NOT_NEGATIVE,
    "loss.dims": Rule(
        lambda value: not value or (min(value) > 0 and len(set(value)) == len(value)), "list each dim once, all above 0"
    ),
    "loss.weights": Rule(lambda value: all(weight > 0 for weight in value), "use weights above 0"),
    "loss.scale": _POSITIVE,
    "loss.guide_margin": Rule(lambda value: -2 <= value <= 1, "use a value from -2, which masks none, up to 1"),
    "loss.pair_weight": _NOT_NEGATIVE,
    "loss.distillation_weight": _NOT_NEGATIVE,
    "loss.teacher_scale": _POSITIVE,
    "eval.every": _NOT_NEGATIVE,
    "eval.largest_strength": Rule(lambda value: 1 <= value <= 2, "use 1 (the trained model) up to 2"),
    "eval.forgetting_limit": _NOT_NEGATIVE,
    "early_stopping.patience": _NOT_NEGATIVE,
    "checkpoint.every": _NOT_NEGATIVE,
    "checkpoint.minutes": _NOT_NEGATIVE,
    "log.every": _POSITIVE,
    "log.trackers": Rule(
        lambda value: set(value) <= {"tensorboard", "wandb", "mlflow"} and len(set(value)) == len(value),
        'list some of "tensorboard", "wandb", "mlflow", each once',
    ),
}
