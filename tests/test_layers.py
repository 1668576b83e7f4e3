"""Imports inside `trainer` point down from floor to floor; names mean one thing, and stand in one place."""

from __future__ import annotations

import ast
import re
import sys
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import trainer
from trainer.system import run_files

PACKAGE = Path(trainer.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
ROOMS = sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file())

FLOORS = (
    {"errors"},
    {"system"},
    {"config_rules"},
    {"config_data"},
    {"config"},
    {"config_file"},
    {"model", "text"},
    {"data"},
    {"evaluation", "loss"},
    {"checkpoint", "labelling", "lint", "mining", "report", "search", "serving"},
    {"training"},
    {"main"},
    {"__main__"},
)
FLOOR = {room: number for number, floor in enumerate(FLOORS) for room in floor}
HUGGING_FACE = {"accelerate", "datasets", "diffusers", "evaluate", "optimum", "peft", "safetensors", "tokenizers"}
HUGGING_FACE |= {"huggingface_hub", "sentence_transformers", "setfit", "transformers", "trl"}


def place(path: Path) -> tuple[str, str]:
    """(room, module) of a file: ("loss", "tiled"); a file of the top floor is a room of its own."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0], parts[-1]


parsed = cache(ast.parse)


@cache
def imported(source: str, room: str) -> set[tuple[str, str]]:
    """(room, module or name) of all that a source of a room imports of `trainer`, anywhere in it and in any form."""
    names: set[str] = set()
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = ["trainer", room][: 3 - node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            names |= {base} if len(base.split(".")) > 2 else {f"{base}.{alias.name}" for alias in node.names}
    parts = [name.split(".") for name in names if name.startswith("trainer.")]
    return {(part[1], part[2] if len(part) > 2 else part[1]) for part in parts if part[1] in FLOOR}


def wrong_imports(room: str, source: str) -> set[str]:
    """Rooms that a source of a room must not import: its own floor's others, and higher ones."""
    if room in ("__init__", "launcher"):  # imported before anything heavy may be
        allowed = {"errors"}
    else:
        assert room in FLOOR, f"trainer/{room} has no floor: give it one in tests/test_layers.py"
        allowed = {room} | {other for other in FLOOR if FLOOR[other] < FLOOR[room]}
    return {other for other, _ in imported(source, room)} - allowed


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_floors_below_its_own(path: Path) -> None:
    assert not wrong_imports(place(path)[0], path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("loss", "from trainer.training.loop import train"),  # up
        ("loss", "import trainer.evaluation.judge"),  # a sibling
        ("model", "from trainer.data import pairs as p, readers"),
        ("model", "from ..text import masking"),
        ("text", "def late():\n    from trainer.model.encoder import Encoder"),
        ("launcher", "from trainer.system.console import console"),
    ],
)
def test_each_form_of_a_wrong_import_is_seen(room: str, source: str) -> None:
    assert len(wrong_imports(room, source)) == 1
    right = "import torch.loss\nfrom trainer import __version__\nfrom trainer.errors import InputError"
    assert not wrong_imports(room, right)


def test_a_room_without_a_floor_is_told_to_get_one() -> None:
    with pytest.raises(AssertionError, match="give it one"):
        wrong_imports("novelty", "")


def cycle(imports: dict[str, set[str]]) -> list[str]:
    """Modules of a room that import each other in a circle; [] where there is none."""
    left = dict(imports)
    while free := [module for module, others in left.items() if not others & left.keys() - {module}]:
        for module in free:
            del left[module]
    return sorted(left)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_has_no_circle(room: str) -> None:
    imports = {
        path.stem: {module for other, module in imported(path.read_text(encoding="utf-8"), room) if other == room}
        for path in (PACKAGE / room).glob("*.py")
    }
    assert len(imports) > 2 and not cycle(imports)


def test_a_circle_is_seen() -> None:
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["a", "b", "c"]


def missing_in_map(room: str, modules: set[str]) -> set[str]:
    """Modules of a room that its docstring does not name."""
    docstring = ast.get_docstring(parsed((PACKAGE / room / "__init__.py").read_text(encoding="utf-8"))) or ""
    return {module for module in modules if not re.search(rf"\b{module}\b", docstring)}


@pytest.mark.parametrize("room", ROOMS)
def test_the_docstring_of_a_room_is_its_map(room: str) -> None:
    assert not missing_in_map(room, {path.stem for path in (PACKAGE / room).glob("*.py")} - {"__init__"})
    assert missing_in_map(room, {"novelty"})


def file_names(source: str) -> set[str]:
    """The strings of a source that are the name of a file of a run."""
    names = {value for name, value in vars(run_files).items() if name.isupper() and "." in value}
    return names & {node.value for node in ast.walk(parsed(source)) if isinstance(node, ast.Constant)}


def test_the_files_of_a_run_have_their_names_from_one_place() -> None:
    owner = Path(run_files.__file__)
    assert len(file_names(owner.read_text(encoding="utf-8"))) > 9
    for path in set(FILES) - {owner}:
        assert not file_names(path.read_text(encoding="utf-8")), path


@pytest.mark.slow
def test_no_name_shadows_the_standard_library_or_an_installed_package() -> None:
    # `accelerate launch trainer/main.py` puts trainer/ first on sys.path, where our names would win.
    others = {name for name, owners in packages_distributions().items() if set(owners) - {"matryoshka-trainer"}}
    taken = set(sys.stdlib_module_names) | others | HUGGING_FACE
    assert {"tokenize", "torch", "evaluate"} <= taken  # or the check checks nothing
    assert not ({place(path)[0] for path in FILES} - {"__init__", "__main__"}) & taken
