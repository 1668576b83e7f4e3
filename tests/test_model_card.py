"""The model card on records of a few figures: the dim of its snippet, both verdicts, what it says and leaves out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trainer.config import Config, DataConfig, LossConfig, ModelConfig, OptimConfig
from trainer.training.model_card import CardFacts, fit_dims, licence_in, model_card, smallest_fit_dim

FACTS = CardFacts(
    sources={"folder/pairs.json": {"rows": 1200, "weight": 1.0}},
    date="2026-01-02",
    max_length=96,
    licence="",
    sided=False,
    steps=60,
    planned_steps=60,
)
SIZES = Config(loss=LossConfig(dims=(64, 16)))


def record(ends: dict[str, list[Any]], worse: list[Any] | None = None) -> dict[str, Any]:
    """A judgement by Spearman, and search, whose paired intervals at each dim are given."""
    figures = {
        dim: {"spearman": 0.5, "roc_auc": 0.7, "f1": 0.7, "success@5": 0.5, "success@10": 0.6, "map@100": 0.4}
        for dim in ends
    }
    searched = {"success@10": [-0.1, 0.1], "map@100": [-0.2, -0.1]}
    return {
        "question": {"metric": "spearman", "dev": "dev.json", "baseline": "/models/start"},
        "pairs": 36,
        "baseline": figures,
        "final": figures,
        "intervals": {"difference": {dim: {"spearman": each, **searched} for dim, each in ends.items()}},
        "verdicts": dict.fromkeys(ends, "UNCLEAR"),
        "sentences": ["UNCLEAR: the right ticket is among the first five."],
        "surely_worse": worse or [],
        "thresholds": {},
        "forgetting": None,
    }


def metrics_of(judged: dict[str, Any], pairs: str = "test", **others: Any) -> dict[str, Any]:
    """What metrics.json holds of a run whose verdict goes by a record."""
    usual = {"strength": 0.7, "verdict_on": pairs, "evaluations": [{}]}
    return {"dev": judged, pairs: judged} | usual | others


@pytest.mark.parametrize(
    ("ends", "worse", "dim"),
    [
        ({"64": [0.1, 0.2], "32": [0.0, 0.1], "16": [-0.1, 0.1]}, [], "32"),
        ({"64": [0.1, 0.2], "32": [0.0, 0.1], "16": [-0.1, 0.1]}, [["map@100", "32"]], "64"),
        ({"64": [-0.1, 0.2], "32": [-0.2, 0.1]}, [], "64"),
        ({"64": [None, None], "32": [float("nan"), float("nan")]}, [], "64"),
        ({"64": [0.0, 0.0], "16": [0.0, 0.0]}, [], "16"),  # untouched
    ],
)
def test_the_snippet_takes_the_smallest_dim_that_surely_lost_nothing(
    ends: dict[str, list[Any]], worse: list[Any], dim: str
) -> None:
    judged = record(ends, worse)
    assert smallest_fit_dim(judged) == dim
    card = model_card(SIZES, metrics_of(judged), FACTS)
    assert f"truncate_dim={dim})" in card
    assert ("the smallest at which it surely lost nothing" in card) == bool(fit_dims(judged))


def test_the_card_does_not_say_that_nothing_was_lost_where_search_lost_at_every_dim() -> None:
    judged = record({"64": [0.1, 0.2], "32": [0.1, 0.2]}, [["success@10", "64"], ["map@100", "32"]])
    card = model_card(SIZES, metrics_of(judged), FACTS)
    assert "At 64 dims, the largest, since at none it is sure that nothing was lost" in card


def test_the_card_answers_a_manager_and_an_engineer(tmp_path: Path) -> None:
    base = tmp_path / "all-base"
    base.mkdir()
    (base / "README.md").write_text("---\ntags: [x]\nlicense: apache-2.0\n---\n# Base\nlicense: none\n")
    config = Config(
        model=ModelConfig(name=str(base)),
        data=DataConfig(train="/secret/pairs.json"),
        optim=OptimConfig(lr=3e-4),
        loss=LossConfig(dims=(64, 16)),
    )
    judged = record({"64": [0.1, 0.2], "16": [-0.3, -0.1]})
    judged["original"] = record({"64": [0.1, 0.2], "16": [0.1, 0.2]})
    row = {"dims": 64, "type": "binary", "bytes": 8, "success@10": 0.5, "recall@10": 0.25}
    forgetting = {"64": {"spearman": {"before": 0.8, "after": 0.7, "difference": [-0.2, -0.05]}}}
    axes = {"turned": True, "forgetting_share": 0.25, "texts": 1500}
    metrics = metrics_of(judged | {"forgetting": forgetting}, "dev", index_types=[row], principal_axes=axes)
    card = model_card(config, metrics, replace(FACTS, licence=licence_in(base)))
    head = card.split("---")[1]
    assert "license: apache-2.0" in head and "base_model" not in head  # a folder is no name on a hub
    for said in (
        "# start, fine-tuned",
        "1,200 of pairs.json",
        "Made on 2026-01-02 by trainer ",
        "optim.lr = 0.0003",
        "Licence: apache-2.0, as the folder of all-base says; the training pairs",
        "by spearman on 36 held-out pairs (dev)",
        "- By pairs (Spearman): BETTER at 64 dims; NOT BETTER at 16 dims.",
        "NOT BETTER at 64, 16 dims.",
        "Beside the original, start",
        "- By pairs (Spearman): BETTER at 64, 16 dims.",
        "0.8000 -> 0.7000 at 64 dims (95 % of the difference -0.200 to -0.050)",
        "| 64 | binary | 8 | 0.5000 | 0.2500 |",
        "onto the principal axes of 1,500 training texts (25% by texts of the forgetting set), so that",
        "Texts are cut at 96 tokens.",
        "less than 16 dims",
        "- Dev has also picked the model, so expect a little less on other pairs.",
        "At 64 dims, the smallest at which it surely lost nothing",
    ):
        assert said in card, said
    judged_once = replace(config, eval=replace(config.eval, choose_strength=False))
    for told in (metrics, {name: value for name, value in metrics.items() if name != "principal_axes"}):
        assert ("Dev has also picked" in model_card(judged_once, told, FACTS)) is (told is metrics)  # the turn alone
    cut = model_card(judged_once, metrics, replace(FACTS, steps=6))
    assert "It ended early, after 6 of 60 planned steps." in cut and "ended early" not in card
    assert "/secret" not in card and str(tmp_path) not in card
    hub = replace(SIZES, model=ModelConfig(name="team/encoder"))  # what its card states there was not read
    card = model_card(hub, metrics_of(judged, principal_axes=axes | {"turned": False}), FACTS)
    assert "Dense" not in card
    assert "base_model: team/encoder" in card and "Licence: that of encoder; the training pairs" in card
    assert "has also" not in card and "General similarity" not in card and "bytes a ticket" not in card


@pytest.mark.parametrize("text", [None, "", "# no head\nlicense: mit", "---\ntags: [x]\n---\nlicense: mit"])
def test_a_licence_that_is_not_stated_is_not_guessed(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "README.md").write_text(text)
    assert licence_in(tmp_path) == ""
