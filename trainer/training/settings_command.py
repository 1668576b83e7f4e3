"""The command `trainer settings`: every setting with its default, type and meaning."""

from __future__ import annotations

import argparse
import ast
import inspect
import sys
import typing
from typing import Any, NamedTuple

from trainer import config
from trainer.config_file import suggest
from trainer.config_rules import settings_of
from trainer.errors import InputError
from trainer.system.arguments import Parser
from trainer.system.values import KINDS, toml_value


class Setting(NamedTuple):
    """A key of the config as `trainer settings` shows it."""

    key: str  # section.name
    default: str  # as TOML
    kind: str  # its type, in words
    meaning: str  # one line


def settings_parser() -> argparse.ArgumentParser:
    """Options of `trainer settings`."""
    parser = Parser(
        prog="trainer settings",
        description="Print every setting with its default, type and meaning; piped, a tab-separated line a setting.",
        allow_abbrev=False,
    )
    parser.add_argument("section", nargs="?", metavar="SECTION", help="one section, or one setting as section.name")
    return parser


def run_settings(options: argparse.Namespace) -> None:
    """Print settings on standard output. Raises InputError for a section or setting that is unknown."""
    asked = options.section
    settings = [one for one in all_settings() if not asked or asked in (one.key, one.key.split(".")[0])]
    if not settings:
        section, _, name = asked.rpartition(".")
        hint = suggest(section or asked, name or asked)
        known = ", ".join(settings_of(config.Config))
        raise InputError(f"unknown section or setting {asked!r}; {hint or 'known are ' + known}")
    show(settings)


def show(settings: list[Setting]) -> None:
    """Print settings: a table on a terminal, elsewhere a tab-separated line each."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, force_terminal=sys.stdout.isatty())
    if not console.is_terminal:
        for setting in settings:
            print("\t".join(setting))
        return
    table = Table("setting", "default", "type", "meaning", box=box.SIMPLE_HEAD)
    for setting in settings:
        table.add_row(*setting)
    console.print(table, markup=False)


def all_settings() -> list[Setting]:
    """All settings in the order of the config; their meanings are the docstrings under the fields."""
    sections = settings_of(config.Config)
    meanings = field_docstrings("\n".join(map(inspect.getsource, sections.values())))
    settings = []
    for section, cls in sections.items():
        for name, kind in settings_of(cls).items():
            default, meaning = toml_value(getattr(cls(), name)), meanings[cls.__name__, name]
            settings.append(Setting(f"{section}.{name}", default, kind_in_words(kind), meaning))
    return settings


def field_docstrings(source: str) -> dict[tuple[str, str], str]:
    """(class, field) -> the string that stands under an annotated field of a class, in one line."""
    return {
        (node.name, field.target.id): " ".join(text.value.value.split())
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ClassDef)
        for field, text in zip(node.body, node.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }


def kind_in_words(kind: Any) -> str:
    """A field's type in words: "a number", "a list, each a whole number"."""
    items = typing.get_args(kind)
    if items and items[0] not in KINDS:
        return f"a list of tables: {', '.join(settings_of(items[0]))}"
    return f"a list, each {KINDS[items[0]]}" if items else KINDS[kind]
