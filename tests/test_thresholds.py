"""Thresholds: fitted as asked on dev, kept beside the model, refused where they belong elsewhere."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainer.data.pairs import PairTable, pairs_from_columns
from trainer.errors import InputError
from trainer.evaluation.pair_metrics import best_f1, classify_at
from trainer.evaluation.prevalence import threshold_at_share
from trainer.evaluation.question import Question
from trainer.evaluation.thresholds import fit_thresholds, parse_rule, store_thresholds, stored_thresholds
from trainer.model.encoder import EmbeddingConditions
from trainer.system.run_files import THRESHOLDS

MODEL = EmbeddingConditions("weights", "mean", 128, "query: ", "passage: ")


def draw(n: int, levels: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.random(n) < 0.4
    labels[:2] = [True, False]
    scores = rng.normal(size=n) * 0.3 + 0.4 * labels
    return np.round(scores * levels) / levels if levels else scores, labels


@pytest.mark.parametrize("levels", [0, 4, 20])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_lowest_cut_that_keeps_what_was_asked_for(levels: int, seed: int, dtype: Any) -> None:
    scores, labels = draw(120, levels, seed)
    scores = scores.astype(dtype)
    cuts = [classify_at(scores, labels, float(cut)) | {"cut": float(cut)} for cut in np.unique(scores)]
    highest = max(cut["precision"] for cut in cuts)
    for target in (0.5, 0.8, highest):
        threshold = threshold_at_share(scores, labels, labels.mean(), ("precision", target))
        lowest = min((cut for cut in cuts if cut["precision"] >= target), key=lambda cut: cut["cut"])
        found = classify_at(scores, labels, threshold)
        assert found == {name: lowest[name] for name in found} and threshold <= lowest["cut"]
    for target in (0.0, 0.05, 0.3, 0.999):
        threshold = threshold_at_share(scores, labels, labels.mean(), ("false_positive_rate", target))
        found = classify_at(scores, labels, threshold)
        kept = [cut for cut in cuts if cut["false_positive_rate"] <= target]
        assert found["false_positive_rate"] <= target
        assert found["recall"] == max((cut["recall"] for cut in kept), default=0.0)


def test_a_negative_on_top() -> None:
    scores, labels = np.array([0.9, 0.8, 0.1]), np.array([False, True, False])
    threshold = threshold_at_share(scores, labels, 1 / 3, ("false_positive_rate", 0.0))
    assert threshold > 0.9 and classify_at(scores, labels, threshold)["recall"] == 0
    assert threshold_at_share(scores, labels, 1 / 3, ("precision", 0.5)) == pytest.approx(0.45)
    with pytest.raises(ValueError, match=r"precision of 0\.9 at a share of 0.333333: 0.5 does"):
        threshold_at_share(scores, labels, 1 / 3, ("precision", 0.9))


NO_RULES = ["", "F1", "f1=1", "precision", "precision=", "precision=x", "precision=0", "precision=1.1", "precision=nan"]
NO_RULES += ["recall=0.5", "false_positive_rate=1", "false_positive_rate=-0.1"]


@pytest.mark.parametrize("text", NO_RULES)
def test_rules_that_are_none(text: str) -> None:
    assert parse_rule("precision=0.9") == ("precision", 0.9)
    assert parse_rule("false_positive_rate=0") == ("false_positive_rate", 0.0)
    assert parse_rule("f1")[0] == "f1"
    with pytest.raises(InputError, match="is not known"):
        parse_rule(text)
    if text:  # before any work
        with pytest.raises(InputError, match="is not known"):
            Question(model="nowhere", pairs="nowhere.json", rule=text).check()


@pytest.mark.parametrize(
    ("rule", "labels", "called"),
    [
        ("f1", [1, 1, 0, 1], [True, True, True, True]),
        ("precision=0.5", [1, 1, 0, 1], [True, True, True, True]),
        ("false_positive_rate=0", [0, 1, 0, 1], [False, False, False, False]),
        ("f1", [1, 1, 0, 0], [True, True, False, False]),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_whoever_rounds_a_cosine_otherwise_decides_alike(
    rule: str, labels: list[int], called: list[bool], dtype: Any
) -> None:
    """Also where all or none are called positive, and no threshold lies halfway between two scores."""
    texts = {f"texts{side}": [f"{side} {i}" for i in range(4)] for side in (1, 2)}
    pairs = pairs_from_columns({**texts, "labels": labels}, "dev.json")
    cosines = np.array([0.9, 0.7, 0.5, 0.3], dtype=dtype)
    threshold = fit_thresholds(cosines[None], pairs, (64,), rule, MODEL).values["64"]
    for rounding in (-5e-6, 0.0, 5e-6):
        assert (cosines + rounding >= threshold).tolist() == called


@pytest.fixture
def table() -> PairTable:
    labels = (np.arange(40) % 2).tolist()
    texts = {f"texts{side}": [f"{side} {i}" for i in range(40)] for side in (1, 2)}
    return pairs_from_columns({**texts, "labels": labels}, "dev.json")


def test_each_dim_gets_its_own(table: PairTable, tmp_path: Path) -> None:
    cosines = np.random.default_rng(0).random((2, 40)) + 0.3 * table.label
    fitted = fit_thresholds(cosines, table, (64, 8), "f1", MODEL)
    assert fitted.values == {
        "64": best_f1(cosines[0], table.label)[1],
        "8": best_f1(cosines[1], table.label)[1],
    }
    rate = fit_thresholds(cosines[:1], table, (64,), "false_positive_rate=0.1", MODEL)
    assert classify_at(cosines[0], table.label, rate.values["64"])["false_positive_rate"] <= 0.1
    with pytest.raises(InputError, match=r"dev\.json: 64 dims: no threshold reaches a precision of 1"):
        fit_thresholds(-cosines, table, (64, 8), "precision=1", MODEL)

    path = store_thresholds(tmp_path, fitted)
    assert path == tmp_path / THRESHOLDS
    record = json.loads(path.read_text())
    assert record["data_fingerprint"] == table.fingerprint()
    assert (record["positive_share"], record["similarity"], record["normalize_embeddings"]) == (0.5, "cosine", True)
    assert record["model"] == {
        **{"weights_fingerprint": "weights", "pooling": "mean", "max_length": 128},
        **{"query_prompt": "query: ", "document_prompt": "passage: "},
    }
    assert stored_thresholds(tmp_path, (64, 8), MODEL) == fitted
    only = stored_thresholds(tmp_path, (8,), MODEL)
    assert only is not None and only.values == {"8": fitted.values["8"]}


def test_what_is_kept_is_checked(table: PairTable, tmp_path: Path) -> None:
    assert stored_thresholds(tmp_path, (64,), MODEL) is None
    cosines = np.random.default_rng(0).random((1, 40))
    path = store_thresholds(tmp_path, fit_thresholds(cosines, table, (64,), "f1", MODEL))
    with pytest.raises(InputError, match="other weights"):
        stored_thresholds(tmp_path, (64,), replace(MODEL, weights_fingerprint="trained further"))
    for change in ({"pooling": "cls"}, {"max_length": 64}, {"query_prompt": ""}, {"document_prompt": ""}):
        (name,) = change
        with pytest.raises(InputError, match=f"fitted at {name} .*fit them again with trainer evaluate --dev"):
            stored_thresholds(tmp_path, (64,), replace(MODEL, **change))
    with pytest.raises(InputError, match="no threshold for 8 dims; take --dims of 64, or fit"):
        stored_thresholds(tmp_path, (64, 8), MODEL)
    whole = path.read_text()
    for damage in ("", "[]", "{}", whole[:-5], whole.replace('"rule"', '"role"')):
        path.write_text(damage)
        with pytest.raises(InputError, match="cannot be read as thresholds"):
            stored_thresholds(tmp_path, (64,), MODEL)
    record = json.loads(whole)
    path.write_text(json.dumps({**record, "model": None, "weights_fingerprint": "weights"}))
    with pytest.raises(InputError, match="of an older version, which did not keep prompts and max length; fit them"):
        stored_thresholds(tmp_path, (64,), MODEL)
    for model in (None, [], {}, {"weights_fingerprint": "weights"}):
        path.write_text(json.dumps(record | {"model": model}))
        with pytest.raises(InputError, match="cannot be read as thresholds"):
            stored_thresholds(tmp_path, (64,), MODEL)
    path.write_text(json.dumps(record | {"similarity": "dot"}))
    with pytest.raises(InputError, match="for the similarity 'dot', not cosine"):
        stored_thresholds(tmp_path, (64,), MODEL)
    for damaged in (
        {"positive_share": "x"},
        {"positive_share": 2},
        {"positive_share": None},
        {"tail": 3},
        {"tail": [3]},
        {"tickets": "x"},
    ):
        path.write_text(json.dumps(record | damaged))
        with pytest.raises(InputError, match="cannot be read as thresholds"):
            stored_thresholds(tmp_path, (64,), MODEL)
    path.write_text(
        json.dumps({key: value for key, value in record.items() if key not in ("tail", "tickets")})
    )  # of an older version
    assert stored_thresholds(tmp_path, (64,), MODEL) is not None
    for values in ({"64": float("nan")}, {"64": "x"}, [0.5], None):
        path.write_text(json.dumps(record | {"values": values}))
        with pytest.raises(InputError, match="cannot be read as thresholds"):
            stored_thresholds(tmp_path, (64,), MODEL)
