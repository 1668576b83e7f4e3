"""The examples in docstrings give what they say; those that need a model are run in test_encode.py."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import trainer

PACKAGE = Path(trainer.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8") and path.parent.name != "model"
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried and not failed


def test_the_public_faces_have_examples() -> None:
    assert {"trainer.data.pairs", "trainer.data.curriculum", "trainer.loss.matryoshka", "trainer.loss.cosent"} <= set(
        MODULES
    )
