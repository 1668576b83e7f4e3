"""Figures and findings that rest on scores, against scipy, scikit-learn, simulation and known distributions."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import ks_2samp, norm
from sklearn.metrics import roc_auc_score

from trainer.data.pairs import pairs_from_columns, read_pairs
from trainer.lint.doubtful import write_doubtful
from trainer.lint.findings import parts_of
from trainer.lint.limits import SERIOUS, TFIDF, WARNING
from trainer.lint.score_checks import (
    auc_error,
    easier_than,
    figures_of,
    inverted,
    phase_order,
    shortcut_scores,
    shortcuts,
    suspect_labels,
)
from trainer.main import cli


def make(gaps: tuple[float, ...], rows: int = 800, seed: int = 0, source: str = "pairs.json"):
    """A part, and normal scores whose classes lie `gaps[k]` standard deviations apart in phase k + 1."""
    draw = np.random.default_rng(seed)
    labels = np.tile([0, 1], len(gaps) * rows // 2)
    phases = np.repeat(np.arange(len(gaps)) + 1, rows)
    columns = {
        "texts1": [f"left {row}" for row in range(len(labels))],
        "texts2": [f"right {row}" for row in range(len(labels))],
        "labels": labels.tolist(),
        "phase_indicators": phases.tolist(),
    }
    scores = draw.normal(size=len(labels)) + labels * np.array(gaps)[phases - 1]
    return parts_of([pairs_from_columns(columns, source)])[0], scores


def flip(part, share: float, seed: int = 0):
    """The part with a share of the labels of either kind turned."""
    labels = part.table.label
    for rows in (np.flatnonzero(labels), np.flatnonzero(~labels)):
        chosen = np.random.default_rng(seed).permutation(rows)[: round(share * len(rows))]
        labels = np.where(np.isin(np.arange(len(labels)), chosen), ~labels, labels)
    columns = part.table.columns() | {"labels": labels.astype(int).tolist()}
    return parts_of([pairs_from_columns(columns, part.table.source)])[0]


@pytest.mark.parametrize("seed", range(3))
def test_figures_agree_with_peers(seed):
    part, scores = make((2.0, 0.5), seed=seed)
    scores = scores.round(1)  # ties
    everything, first, second = figures_of(part.table, "model", scores)
    for own, rows in ((everything, slice(None)), (first, slice(0, 800)), (second, slice(800, None))):
        values, labels = scores[rows], part.table.label[rows]
        assert own.roc_auc == pytest.approx(roc_auc_score(labels, values))
        assert own.overlap == pytest.approx(1 - ks_2samp(values[labels], values[~labels]).statistic)
        assert (own.pairs, own.positives) == (len(values), labels.sum())
    assert (everything.phase, first.phase, second.phase) == ("all", "1", "2")


@pytest.mark.slow
def test_overlap_is_that_of_the_densities():
    part, scores = make((1.5,), rows=200_00)
    (own,) = figures_of(part.table, "model", scores)
    assert own.overlap == pytest.approx(2 * norm.cdf(-0.75), abs=0.02)  # of two normals: Schmid and Schmidt 2006


@pytest.mark.slow
def test_the_error_of_a_roc_auc_is_that_of_simulated_sets():
    draw = np.random.default_rng(0)
    labels = np.arange(300) < 100
    values = [roc_auc_score(labels, draw.normal(size=300) + 1.2 * labels) for _ in range(200)]
    assert auc_error(float(np.mean(values)), 100, 200) == pytest.approx(np.std(values), rel=0.15)


def test_phases_with_too_few_of_a_label_have_no_figures():
    part, scores = make((1.0, 1.0), rows=36)
    assert [own.phase for own in figures_of(part.table, "model", scores)] == ["all"]  # 18 of each in a phase
    part, scores = make((1.0,), rows=36)
    assert figures_of(part.table, "model", scores) == []


def test_negatives_above_positives_and_labels_at_chance():
    part, scores = make((3.0, -0.5, 0.05))
    figures = figures_of(part.table, "model", scores)
    found = {finding.name: finding for finding in inverted(part, figures, scores)}
    assert set(found) == {"negatives above positives", "labels at chance"}
    above, chance = found["negatives above positives"], found["labels at chance"]
    assert (above.severity, above.values["phase"]) == (SERIOUS, "2") and (chance.severity, chance.values["phase"]) == (
        WARNING,
        "3",
    )
    highest = np.argsort(-np.where((part.table.phase == 2) & ~part.table.label, scores, -np.inf))[:4]
    assert above.rows == (highest + 1).tolist()
    # Words are not meaning: by TF-IDF it is a warning.
    by_words = inverted(part, figures_of(part.table, TFIDF, scores), scores)
    assert {finding.severity for finding in by_words} == {WARNING}
    part, scores = make((3.0, 1.0, 0.5))
    assert inverted(part, figures_of(part.table, "model", scores), scores) == []


def test_the_one_phase_of_a_file_is_looked_at_too():
    part, scores = make((-0.5,))
    (finding,) = inverted(part, figures_of(part.table, "model", scores), scores)
    assert finding.severity == SERIOUS


@pytest.mark.slow
def test_a_phase_easier_than_the_one_before():
    for gaps, expected in (((3, 2, 1), []), ((1, 2, 3), ["2", "3"]), ((2, 1, 1.5), ["3"]), ((1.0, 1.0, 1.0), [])):
        part, scores = make(gaps, rows=2000)
        found = phase_order(part, figures_of(part.table, "model", scores))
        assert [finding.values["phase"] for finding in found] == expected
        assert all(finding.severity == SERIOUS for finding in found)


@pytest.mark.slow
def test_a_difference_that_luck_explains_is_no_finding():
    easier = named = 0
    for seed in range(100):
        part, scores = make((1.0, 1.0), rows=60, seed=seed)
        figures = figures_of(part.table, "model", scores)
        easier += figures[2].roc_auc - figures[1].roc_auc > 0.02
        named += len(phase_order(part, figures))
    assert easier > 30 and named < 5


def test_training_pairs_easier_than_held_out_ones():
    train, scores = make((3.0, 2.5))
    own = figures_of(train.table, "model", scores)
    for gap, expected in ((0.5, [SERIOUS]), (1.8, [WARNING]), (2.4, []), (4.0, [])):
        held, values = make((gap,), source="dev", seed=1)
        found = easier_than(train, own, figures_of(held.table, "model", values))
        assert [finding.severity for finding in found] == expected
    assert easier_than(train, own, []) == [] and easier_than(train, [], own) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_flipped_labels_are_seen_at_the_ends(seed):
    part, scores = make((5.0, 2.0, 0.3), rows=2000, seed=seed)
    assert suspect_labels(part, "model", scores) == []
    flipped = flip(part, 0.05, seed)
    (finding,) = suspect_labels(flipped, "model", scores)
    assert finding.severity == SERIOUS and finding.values["share"] == pytest.approx(0.05, abs=0.02)
    rows = np.array(finding.rows) - 1
    assert (flipped.table.label[rows] != part.table.label[rows]).all()
    assert [finding.severity for finding in suspect_labels(flipped, TFIDF, scores)] == [WARNING]


def test_doubtful_pairs_are_written_for_people_and_nothing_where_none_is(tmp_path, capfd):
    parts = [make((5.0,), rows=400, seed=seed, source=f"{seed}.json") for seed in (0, 1)]
    tables, scores = [flip(part, 0.05).table for part, _ in parts], [of_part for _, of_part in parts]
    path = tmp_path / "in doubt.json"
    write_doubtful(path, tables, scores)
    doubted = json.loads(path.read_text())
    turned = [table.label != part.table.label for table, (part, _) in zip(tables, parts, strict=True)]
    for source, row, label in zip(doubted["files"], doubted["rows"], doubted["labels"], strict=True):
        number = int(source[0])
        assert turned[number][row - 1] and tables[number].label[row - 1] == label
    assert len(doubted["rows"]) > 0.3 * sum(map(np.sum, turned))  # two fifths of the rows are at the ends
    assert read_pairs(path).texts[0] == f"left {doubted['rows'][0] - 1}"
    assert f"--pairs '{path}' --choose order --output labels.json" in capfd.readouterr().err
    write_doubtful(tmp_path / "none.json", [part.table for part, _ in parts], scores)
    said = capfd.readouterr().err
    assert "No label is doubted" in said and "apart too little" not in said and not (tmp_path / "none.json").exists()
    hard, of_hard = make((0.5,), rows=400, source="hard.json")
    write_doubtful(tmp_path / "none.json", [hard.table], [of_hard])
    assert "hard.json: the model tells its labels apart too little to doubt any" in capfd.readouterr().err
    assert cli(["lint", "--pairs", "p.json", "--doubtful", "d.json"]) == 2  # by words nothing is doubted
    assert "name an untouched encoder with --model" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("gap", [0.5, 1.3, 2.0, 2.5, 3.0])
def test_hard_pairs_are_not_taken_for_wrong_labels(gap):
    for seed in range(3):
        part, scores = make((gap,), rows=4000, seed=seed)
        assert suspect_labels(part, "model", scores) == []


def test_constant_scores_are_no_trouble():
    part, scores = make((5.0,))
    for constant in (np.zeros(len(scores)), part.table.label.astype(float)):
        assert suspect_labels(part, "model", constant) == []


def test_shortcut_scores_are_what_they_say():
    columns = {
        "texts1": ["a", "bbb", "c", "d"],
        "texts2": ["aaaa", "bbb", "cc", "dd"],
        "labels": [1, 0, 1, 0],
        "categories1": ["x", "x", "", ""],
        "categories2": ["x", "y", "", "x"],
    }
    table = pairs_from_columns(columns, "x")
    scores = shortcut_scores(table)
    assert scores["length difference"].tolist() == [-3, 0, -1, -1]
    assert scores["same category"].tolist() == [1, 0, 0, 0]  # unknown is no match
    for name in ("categories1", "categories2"):
        del columns[name]
    assert set(shortcut_scores(pairs_from_columns(columns, "x"))) == {"length difference"}


@pytest.mark.parametrize("name", ["same category", TFIDF, "length difference"])
def test_a_file_that_a_shortcut_solves_either_way(name):
    part, scores = make((0.1,))
    assert shortcuts(part, figures_of(part.table, name, scores)) == []
    for direction in (1, -1):
        solved = figures_of(part.table, name, direction * (scores + 4.0 * part.table.label))
        (finding,) = shortcuts(part, solved)
        assert finding.severity == SERIOUS and finding.name == f"shortcut: {name}"
    assert shortcuts(part, figures_of(part.table, "model", scores + 9 * part.table.label)) == []
