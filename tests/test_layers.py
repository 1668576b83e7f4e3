"""Imports inside `trainer` point strictly down, and no module takes a name that means something else."""

from __future__ import annotations

import ast
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import trainer

PACKAGE = Path(trainer.__file__).parent
MODULES = {path.stem: path for path in PACKAGE.rglob("*.py")}

LAYERS = (
    {"console", "errors", "masking", "mnrl_kernel", "onednn", "process"},
    {"cleaning", "distributed", "flash", "lean", "readers", "signals", "storage", "tiled", "transfer"},
    {"bootstrap", "checkpoint", "config", "fused", "incidents", "metrics", "packed", "pairs"}
    | {"retrieval", "ring", "schedule", "strength"},
    {"curriculum", "encoder", "figures", "findings", "layout", "loss", "optim", "similarity", "thresholds", "tickets"}
    | {"tiny", "tokens"},
    {"augment", "checks", "difficulty", "evaluation", "mining", "objective", "pages", "sources"},
    {"assess", "build_options", "build_report", "export", "gradcache", "lint", "logbook", "negatives", "report"}
    | {"state", "summary"},
    {"builder", "judge", "run"},
    {"finish"},
    {"train"},
    {"main"},
    {"__main__"},
)
HEIGHT = {module: height for height, layer in enumerate(LAYERS) for module in layer}
BELOW = {module: {other for other in HEIGHT if HEIGHT[other] < HEIGHT[module]} for module in HEIGHT}
BELOW |= {"__init__": set(), "launcher": {"errors"}}  # both are imported before anything heavy may be

HUGGING_FACE = {"accelerate", "datasets", "diffusers", "evaluate", "optimum", "peft", "safetensors", "tokenizers"}
HUGGING_FACE |= {"huggingface_hub", "sentence_transformers", "setfit", "transformers", "trl"}


def imported(source: str) -> set[str]:
    """The modules of `trainer` that a source imports, anywhere in it and in any form."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or "trainer" if not node.level else ".".join(filter(None, ["trainer", node.module]))
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("trainer.")} & (MODULES.keys() | HEIGHT.keys())


def upward(module: str, source: str) -> set[str]:
    assert module in BELOW, f"trainer/{module}.py has no layer: give it one in tests/test_layers.py"
    return imported(source) - BELOW[module]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_only_what_lies_below_it(module: str) -> None:
    wrong = upward(module, MODULES[module].read_text(encoding="utf-8"))
    assert not wrong, f"trainer/{module}.py imports {sorted(wrong)}, which do not lie in a layer below it"


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("loss", "from trainer.train import train"),  # up
        ("pairs", "import trainer.metrics"),  # a sibling
        ("pairs", "from trainer import metrics as m, __version__"),
        ("pairs", "from . import metrics"),
        ("pairs", "def late():\n    from .metrics import spearman"),
        ("launcher", "from trainer.console import console"),
    ],
)
def test_each_form_of_a_wrong_import_is_seen(module: str, source: str) -> None:
    assert len(upward(module, source)) == 1
    assert not upward(
        module, "import torch.loss\nfrom trainer import __version__\nfrom trainer.errors import InputError"
    )


def test_a_module_without_a_layer_is_told_to_get_one() -> None:
    with pytest.raises(AssertionError, match="give it one"):
        upward("novelty", "")


def test_no_module_shadows_the_standard_library_or_an_installed_package() -> None:
    # `accelerate launch trainer/main.py` puts trainer/ first on sys.path, where our names would win.
    others = {name for name, owners in packages_distributions().items() if set(owners) - {"matryoshka-trainer"}}
    taken = set(sys.stdlib_module_names) | others | HUGGING_FACE
    assert {"tokenize", "torch", "evaluate"} <= taken  # or the check checks nothing
    assert not (MODULES.keys() - {"__init__", "__main__"}) & taken
