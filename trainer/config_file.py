"""A config as text: read from TOML, changed with `--set section.key=value`, written back.

>>> config = resolve_config({"data": {"train": "pairs.json"}}, ["train.batch_size=32"])
>>> config.train.batch_size
32
"""

from __future__ import annotations

import dataclasses
import tomllib
import typing
from pathlib import Path
from typing import Any

from trainer.config import Config, setting_keys
from trainer.config_rules import SettingError, settings_of
from trainer.errors import InputError
from trainer.system.values import ALIKE, likeness, toml_value

SUCCESSORS = {"log.tensorboard": 'log.trackers = ["tensorboard"]'}
"""Settings that are gone, and what to write instead."""
ALWAYS = {"loss.symmetric": False, "loss.learn_scale": False}
"""Settings that are gone since another value never paid, and the value that holds: a config that names it is read."""


def load_config(path: Path, overrides: typing.Sequence[str] = ()) -> Config:
    """Read a TOML file, apply `section.key=value` overrides in order, check everything.

    Raises:
        InputError: the file is missing or no TOML, or a key or value is wrong.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot read the config: {error.strerror}; check --config") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}; save the config as UTF-8") from error
    try:
        tree = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a plain ValueError is a number of thousands of digits
        raise InputError(f"{path}: not valid TOML: {error}".replace("\n", " ")) from error
    return resolve_config(tree, overrides, str(path))


def resolve_config(tree: dict[str, Any], overrides: typing.Sequence[str] = (), source: str = "config") -> Config:
    """Turn nested mappings and overrides into a checked `Config` that names its training pairs.

    Args:
        source: what to blame for a wrong setting that no override has set.

    Raises:
        InputError: an override that cannot be read, an unknown or wrong setting.
    """
    origin: dict[str, str] = {}
    for text in overrides:
        _apply_override(tree, text, origin)
    try:
        sections: dict[str, Any] = {name: _build_section(name, values) for name, values in tree.items()}
        config = Config(**sections)
        config.data.require_train()
    except SettingError as error:
        place = next((origin[key] for key in error.keys if key in origin), source)
        raise InputError(f"{place}: {error}") from None
    return config


def _apply_override(tree: dict[str, Any], text: str, origin: dict[str, str]) -> None:
    key, equals, raw = text.partition("=")
    section, dot, name = key.strip().partition(".")
    label = f"--set {text}"
    if not (equals and dot and section and name):
        raise InputError(f"{label}: write it as section.key=value, as in --set train.seed=1")
    try:
        value = tomllib.loads(f"value = {raw}")["value"]
    except (ValueError, RecursionError):
        value = raw  # a bare word or a path: the quotes that TOML wants are the shell's business
    if not isinstance(tree.setdefault(section, {}), dict):
        raise InputError(f"{label}: {section} is no section")
    tree[section][name] = value
    origin[section] = origin[f"{section}.{name}"] = label


def _build_section(section: str, values: Any) -> Any:
    sections = settings_of(Config)
    if section not in sections:
        name = next(iter(values), "") if isinstance(values, dict) else section
        hint = suggest(section, name) or f"known are {', '.join(sorted(sections))}"
        raise SettingError(f"unknown section {section!r}; {hint}", section)
    if not isinstance(values, dict):
        raise SettingError(f"{section} must be a section, as in [{section}]", section)
    known = settings_of(sections[section])
    values = {name: value for name, value in values.items() if ALWAYS.get(f"{section}.{name}") is not value}
    for name in values:
        if name not in known:
            key = f"{section}.{name}"
            if key in ALWAYS:
                raise SettingError(f"{key} is gone: it gained nothing (bench/LOG.md); leave it out", key)
            if key in SUCCESSORS:
                raise SettingError(f"{key} is gone: write {SUCCESSORS[key]} instead, or leave it out", key)
            hint = suggest(section, name) or f"known are {', '.join(sorted(known))}"
            raise SettingError(f"unknown key {key}; {hint}", key)
    return sections[section](**values)


def suggest(section: str, name: str) -> str:
    """What an unknown section.name may have meant, over all sections: "did you mean optim.lr?", or "" for no idea."""
    scores = {key: likeness(name, key.split(".")[1]) for key in setting_keys()}
    closest = [key for key in scores if scores[key] == max(scores.values()) >= ALIKE]
    closest = [key for key in closest if likeness(section, key.split(".")[0]) >= ALIKE] or closest
    if not closest and section not in settings_of(Config):
        closest = [known for known in settings_of(Config) if likeness(section, known) >= ALIKE]
    return f"did you mean {' or '.join(closest)}?" if closest else ""


def to_tree(config: Config) -> dict[str, dict[str, Any]]:
    """The config as nested mappings of TOML and JSON types: {"train": {"batch_size": 64, ...}, ...}."""
    return {
        section: {name: _as_tree(value) for name, value in vars(values).items()}
        for section, values in vars(config).items()
    }


def _as_tree(value: Any) -> Any:
    """A value in TOML's types; of a table, what differs from its defaults."""
    if isinstance(value, tuple):
        return [_as_tree(one) for one in value]
    if dataclasses.is_dataclass(value):
        pairs = [(field, getattr(value, field.name)) for field in dataclasses.fields(value)]
        return {field.name: _as_tree(setting) for field, setting in pairs if setting != field.default}
    return value


def dump_config(config: Config) -> str:
    """The config as TOML that `load_config` reads back to an equal one."""
    lines = []
    for section, values in to_tree(config).items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {toml_value(value)}" for key, value in values.items()]
        lines.append("")
    return "\n".join(lines)
