"""Values that people write: their types, how they are shown, and what an unknown name may have meant."""

from __future__ import annotations

import difflib
import json
import math
import numbers
import os
import types
import typing
from typing import Any

from trainer.errors import InputError

KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}
TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
NOT_FOR_SHELLS = {" ", '"'}  # they end a word there, or are taken away
ALIKE = 0.6  # likeness from which a name is suggested


def convert(value: Any, kind: Any, key: str) -> Any:
    """Check a value against a field's type and give it that type. Raises InputError naming `key`."""
    if isinstance(kind, types.GenericAlias):
        (item, _) = typing.get_args(kind)
        if not isinstance(value, list | tuple):
            raise InputError(f"{key} must be a list, not {value!r}{_list_hint(value, item)}")
        return tuple(convert(one, item, key) for one in value)
    if kind is str and isinstance(value, str | os.PathLike):
        value = str(os.fspath(value))
    elif kind is int and _is_number(value, numbers.Integral):
        value = int(value)  # of numpy
    elif kind is float and _is_number(value, numbers.Real):
        try:
            value = float(value)
        except OverflowError:
            value = math.inf
    if type(value) is not kind:
        meant = _meant(value if isinstance(value, str) else repr(value), kind) if type(value) in (str, float) else None
        hint = "" if meant is None else f" (write {toml_value(meant)})"
        raise InputError(f"{key} must be {KINDS[kind]}, not {value!r}{hint}")
    if kind is str and "\0" in value:
        raise InputError(f"{key} holds a NUL: take it out")
    if kind is float and not math.isfinite(value):
        raise InputError(f"{key} must be a finite number, not {value}")
    return value


def _is_number(value: Any, kind: type) -> bool:
    """Whether a value is a number of a kind; Python counts True among them."""
    return isinstance(value, kind) and not isinstance(value, bool)


def _meant(text: str, kind: Any) -> Any:
    """The value of a kind that a string may stand for: of "True", or "1e-5" in quotes; None where it is none."""
    if kind is bool:
        word = text.strip().lower()
        return True if word in TRUE else False if word in FALSE else None
    for read in (int, float):
        try:
            number = read(text)
        except ValueError:
            continue
        if kind is float or float(number).is_integer():
            return kind(number) if math.isfinite(number) else None
    return None


def _list_hint(value: Any, item: Any) -> str:
    """How to write the list that a value may stand for: "256,128", or a single value."""
    if not isinstance(value, str):
        return f" (write {toml_value([value])})" if type(value) is item else ""
    listed = value.strip().strip("[]") if value.strip().startswith("[") else value
    words = [word.lstrip().strip("\"'") for word in listed.split(",")]  # a prompt may end in a space
    items = [word if item is str else _meant(word, item) for word in words if word]
    if not items or None in items:
        return ""
    shown = toml_value(items)
    return f" (write {shown}{', on a command line between single quotes' if NOT_FOR_SHELLS & set(shown) else ''})"


def toml_value(value: Any) -> str:
    """A setting's value as TOML: true, 5e-06, "cls", [768, 64], {path = "a.json"}."""
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml_value(inner)}" for key, inner in value.items()) + "}"
    # JSON's strings and numbers are TOML's, but for DEL, which TOML wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def likeness(name: str, known: str) -> float:
    """How probably an unknown name means a known one, from 0 to 1: "learning_rate" and lr, "max_seq_length" and
    max_length."""
    name = name.lower()
    words = name.split("_")
    if set(known.split("_")) <= set(words):
        return ALIKE + (1 - ALIKE) * len(known) / len(name)
    if "".join(word[:1] for word in words) == known:
        return 1.0
    if name and known.startswith(name):
        return 0.95
    return difflib.SequenceMatcher(None, name, known).ratio()
