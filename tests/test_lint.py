"""`trainer lint` as a whole: on files, on real pairs and poisoned copies of them, from the command line, in a run."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracles import Killed, kill_before_update

from trainer.data.incidents import generate_pairs
from trainer.data.pairs import PairTable, pairs_from_columns, read_pairs
from trainer.evaluation.scoring import pair_cosines
from trainer.lint import linter as lint
from trainer.lint.limits import EXPECTED, SERIOUS, WARNING
from trainer.lint.linter import Report, Tokens, lint_tables, measure_by
from trainer.main import cli
from trainer.model.embedding import embed_cached, tokenize_sides
from trainer.model.loading import load_encoder
from trainer.text.canonical import canonical_form

TRAIN, DEV = "itsm_pairs_train.json", "itsm_pairs_dev.json"
Columns = dict[str, list[Any]]


@pytest.fixture(scope="module")
def real(shared_data) -> dict[str, Columns]:
    return {name: json.loads((shared_data / name).read_text(encoding="utf-8")) for name in (TRAIN, DEV)}


@pytest.fixture(scope="module")
def real_report(real) -> Report:
    return lint_tables(tables(real[TRAIN], real[DEV]))


@pytest.fixture(scope="module")
def control(real) -> dict[str, Columns]:
    """The real files without the rows that lint names in them."""
    return clean(real[TRAIN], real[DEV])


def take(columns: Columns, rows: list[int]) -> Columns:
    return {name: [values[row] for row in rows] for name, values in columns.items()}


def names(report: lint.Report) -> dict[tuple[str, str], str]:
    """(file, finding) -> severity."""
    return {(finding.source, finding.name): finding.severity for finding in report.findings}


def tables(train: Columns, dev: Columns) -> list[PairTable]:
    return [pairs_from_columns(train, TRAIN), pairs_from_columns(dev, DEV)]


def clean(train: Columns, dev: Columns) -> dict[str, Columns]:
    """Of train: less of the easy phases (that words solve), and of phase 3 no pair whose words say the opposite.

    Of dev: no row that shares a text, ticket or template with train, and fewer negatives across categories.
    """
    pairs = tables(train, dev)
    words = lint.tfidf_scores(pairs, [])[0]
    share = {1: 0.25, 2: 0.45, 3: 1.0}
    draw = random.Random(0)
    kept = [
        row
        for row, (phase, label) in enumerate(zip(train["phase_indicators"], train["labels"], strict=True))
        if draw.random() < share[phase] and (phase < 3 or (words[row] >= 0.09 if label else words[row] <= 0.20))
    ]
    known = lint.parts_of(pairs)
    touched = np.zeros(len(pairs[1]), dtype=bool)
    for numbers in ("form", "template"):
        shared = np.isin(getattr(known[1], numbers), getattr(known[0], numbers))
        touched |= shared[pairs[1].text1] | shared[pairs[1].text2]
    # A ticket's title and body: what is left of it, when one of the two is gone, goes too.
    gone = {form for row in np.flatnonzero(touched) for form in (dev["texts1"][row], dev["texts2"][row])}
    left = [
        row
        for row in range(len(pairs[1]))
        if not gone & {dev["texts1"][row], dev["texts2"][row]}
        and (dev["labels"][row] or dev["categories1"][row] == dev["categories2"][row] or draw.random() < 0.4)
    ]
    return {TRAIN: take(train, kept), DEV: take(dev, left)}


@pytest.mark.slow
def test_nothing_is_named_on_a_clean_control(control):
    assert len(control[TRAIN]["labels"]) > 1200 and len(control[DEV]["labels"]) > 400
    report = lint_tables(tables(control[TRAIN], control[DEV]))
    assert report.findings == [] and report.notes == []


def flip_labels(train: Columns, dev: Columns) -> None:
    for row in random.Random(1).sample(range(len(train["labels"])), len(train["labels"]) // 20):
        train["labels"][row] = 1 - train["labels"][row]


def leak(train: Columns, dev: Columns) -> None:
    for row in random.Random(1).sample(range(len(dev["labels"])), len(dev["labels"]) // 10):
        for name in train:
            train[name].append(dev[name][row])


def tell_by_category(train: Columns, dev: Columns) -> None:
    train["categories2"] = [
        one if label else one + " (other)" for one, label in zip(train["categories1"], train["labels"], strict=True)
    ]


def swap_phases(train: Columns, dev: Columns) -> None:
    train["phase_indicators"] = [4 - phase for phase in train["phase_indicators"]]


def multiply(train: Columns, dev: Columns) -> None:
    draw = random.Random(1)
    for row in 3 * draw.sample(range(len(train["labels"])), len(train["labels"]) // 10):
        for name in train:
            mark = f" ref INC{draw.randrange(10**7):07d}" if name.startswith("texts") else ""
            train[name].append(train[name][row] + mark if mark else train[name][row])


POISONS: dict[Callable[[Columns, Columns], None], dict[tuple[str, str], str]] = {
    flip_labels: {(TRAIN, "suspect labels"): WARNING},  # by TF-IDF
    leak: {(DEV, "text overlap"): SERIOUS, (DEV, "ticket overlap"): SERIOUS},
    tell_by_category: {
        (TRAIN, "shortcut: same category"): SERIOUS,
        (TRAIN, "category predicts the label"): SERIOUS,  # "... (other)" is always negative
    },
    swap_phases: {(TRAIN, "phase easier than the one before"): WARNING},  # by TF-IDF
    multiply: {(TRAIN, "templated duplicates"): SERIOUS},
}


def copied(columns: Columns) -> Columns:
    return {name: list(values) for name, values in columns.items()}


@pytest.mark.slow
@pytest.mark.parametrize("poison", POISONS, ids=lambda poison: poison.__name__)
def test_each_poison_is_named_and_nothing_else(poison, control):
    train, dev = (copied(control[name]) for name in (TRAIN, DEV))
    poison(train, dev)
    assert names(lint_tables(tables(train, dev))) == POISONS[poison]


@pytest.mark.slow
def test_all_poisons_are_named_in_the_whole_real_file_too(real, real_report):
    train, dev = (copied(real[name]) for name in (TRAIN, DEV))
    for poison in POISONS:
        poison(train, dev)
    after = lint_tables(tables(train, dev))
    for key in (key for keys in POISONS.values() for key in keys):
        rows = [
            max((f.values.get("rows", 1) for f in report.findings if (f.source, f.name) == key), default=0)
            for report in (real_report, after)
        ]
        assert rows[0] < rows[1], key  # the real dev file does share texts with the real train file, only fewer


@pytest.mark.slow
def test_what_is_wrong_with_the_real_files(real, real_report):
    report = real_report
    assert names(report) == {
        (DEV, "text overlap"): SERIOUS,
        (DEV, "ticket overlap"): SERIOUS,
        (DEV, "template overlap"): WARNING,
        (DEV, "shortcut: same category"): WARNING,
        (TRAIN, "negatives above positives"): WARNING,  # phase 3, by TF-IDF
    }
    texts = {canonical_form(text) for side in ("texts1", "texts2") for text in real[TRAIN][side]}
    shared = [
        row
        for row, pair in enumerate(zip(real[DEV]["texts1"], real[DEV]["texts2"], strict=True), start=1)
        if texts & set(map(canonical_form, pair))
    ]
    overlap = next(finding for finding in report.findings if finding.name == "text overlap")
    assert overlap.values["rows"] == len(shared) and overlap.rows == shared[:4]


@pytest.fixture(scope="module")
def judged(real, real_encoder):
    """Columns of some real rows of each phase, and their cosines under the pretrained encoder."""
    phases = np.array(real[TRAIN]["phase_indicators"])
    rows = np.concatenate([np.flatnonzero(phases == phase)[:count] for phase, count in ((1, 250), (2, 50), (3, 120))])
    columns = take(real[TRAIN], rows.tolist())
    table = pairs_from_columns(columns, TRAIN)
    encoder = load_encoder(str(real_encoder), max_length=24)  # enough to judge by, and quick
    embeddings = embed_cached(encoder, tokenize_sides(encoder, table.texts))
    return columns, pair_cosines(embeddings, table, (encoder.width,))[0]


def by_model(columns: Columns, cosines: np.ndarray) -> dict[str, str]:
    """Findings that the encoder makes -> severity."""
    report = lint_tables([pairs_from_columns(columns, TRAIN)], None, [cosines])
    assert {own.by for own in report.figures} >= {"model", "TF-IDF", "same category", "length difference"}
    return {finding.name: finding.severity for finding in report.findings if finding.values.get("by") == "model"}


@pytest.mark.slow
def test_the_encoder_orders_the_real_phases_and_finds_the_last_at_chance(judged):
    assert by_model(*judged) == {"labels at chance": WARNING}


@pytest.mark.slow
def test_swapped_phases_are_serious_by_the_encoder(judged):
    columns, cosines = copied(judged[0]), judged[1]
    swap_phases(columns, {})
    assert by_model(columns, cosines) == {"labels at chance": WARNING, "phase easier than the one before": SERIOUS}


@pytest.mark.slow
def test_flipped_labels_are_named_by_the_encoder(judged):
    columns, cosines = copied(judged[0]), judged[1]
    flip_labels(columns, {})
    assert "suspect labels" in by_model(columns, cosines)  # serious on the whole file, where there are more of them


def write(folder: Path, name: str, columns: Columns) -> str:
    path = folder / name
    path.write_text(json.dumps(columns), encoding="utf-8")
    return str(path)


def sentences(count: int, seed: int) -> Columns:
    """Pairs of random sentences; positives share words more often than negatives, less so from phase to phase."""
    draw = random.Random(seed)
    words = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("lan", "ric", "tos", "ven", "mud", "sip")]
    columns: Columns = {"texts1": [], "texts2": [], "labels": [], "phase_indicators": []}
    for row in range(count):
        label, phase = row % 2, 1 + row % 3
        one, two = (draw.choices(words, k=9) for _ in range(2))
        if draw.random() < (0.95 - 0.12 * phase if label else 0.2):
            two[:4] = draw.sample(one, 4)
        for values, value in zip(columns.values(), (" ".join(one), " ".join(two), label, phase), strict=True):
            values.append(value)
    return columns


@pytest.fixture
def files(tmp_path) -> dict[str, str]:
    """Pair files with which nothing is wrong."""
    return {part: write(tmp_path, f"{part}.json", sentences(240, seed)) for seed, part in enumerate(("train", "dev"))}


def test_exit_codes_and_what_is_shown(files, tmp_path, capfd):
    assert cli(["lint", "--pairs", files["train"], "--json", str(tmp_path / "found.json")]) == 0
    said = capfd.readouterr().err
    assert "0 serious findings, 0 warnings" in said and "ROC-AUC by file and phase" in said and "error" not in said
    assert json.loads((tmp_path / "found.json").read_text())["serious"] == 0

    columns = json.loads(Path(files["train"]).read_text())
    bad = write(tmp_path, "bad.json", {name: values + values for name, values in columns.items()})
    assert cli(["lint", "--pairs", bad, "--eval", files["dev"], "--json", str(tmp_path / "found.json")]) == 1
    said = capfd.readouterr().err
    assert said.splitlines()[-1].startswith(f"error: {bad}: 1 serious finding")
    assert "duplicates" in said and "keep one of each" in said
    record = json.loads((tmp_path / "found.json").read_text())
    (finding,) = [finding for finding in record["findings"] if finding["severity"] == SERIOUS]
    assert finding["name"] == "duplicates" and finding["rows"] == [241, 242, 243, 244]
    assert finding["values"] == {"rows": 240, "share": 0.5}
    assert record["sources"] == {bad: 480, files["dev"]: 240}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--pairs"),
        (["--pairs", "nowhere.json"], "nowhere.json"),
        (["--pairs", "{train}", "--eval"], "--eval"),
        (["--pairs", "{train}", "--eval", "nowhere.json"], "nowhere.json"),
        (["--pairs", "{train}", "--model", "nowhere"], "nowhere"),
        (["--pairs", "{train}", "--label-scale", "0.5"], "row"),
        (["--pairs", "{train}", "--positive-threshold", "7"], "--positive-threshold is 7"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(arguments, said, files, capfd):
    assert cli(["lint", *(argument.format(**files) for argument in arguments)]) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and said in lines[0]


@pytest.mark.slow
def test_with_a_model_lengths_and_difficulty_are_the_models(files, tiny_model, monkeypatch):
    monkeypatch.setattr(lint, "find_spec", lambda name: None)  # as without scikit-learn
    table = read_pairs(files["train"])
    without = lint_tables([table])
    assert without.notes == [lint.NO_TFIDF] and {own.by for own in without.figures} == {"length difference"}
    both = [table, read_pairs(files["dev"])]
    report = lint_tables(both, *measure_by(str(tiny_model("mpnet")), both))
    encoder = load_encoder(str(tiny_model("mpnet")))
    lengths = tokenize_sides(encoder, table.texts).lengths
    own = [own for own in report.figures if own.by == "model" and own.source == files["train"]]
    assert [figures.phase for figures in own] == ["all", "1", "2", "3"] and own[0].pairs == len(table)
    long = lint_tables([table], Tokens([lengths], int(np.median(lengths))))
    truncated = next(finding for finding in long.findings if finding.name == "truncated texts")
    assert truncated.severity == SERIOUS and not truncated.values["estimated"]


def test_texts_without_a_word_in_common_are_no_trouble():
    columns = {"texts1": ["!", "?"], "texts2": ["...", ":"], "labels": [1, 0]}
    report = lint_tables([pairs_from_columns(columns, "x")])
    assert report.notes == ["TF-IDF was not looked at: the texts share no words"] and report.figures == []


def test_negatives_alone_are_serious_and_positives_alone_a_note():
    columns = generate_pairs(60, 0, "train")
    negatives, positives = (
        lint_tables([pairs_from_columns(columns | {"labels": [label] * 60}, "x")]) for label in (0, 1)
    )
    assert names(negatives)["x", "label balance"] == SERIOUS and not negatives.figures and not negatives.notes
    assert ("x", "label balance") not in names(positives) and not positives.figures
    assert [note.partition(";")[0] for note in positives.notes] == ["x: positives alone"]
    columns |= {"labels": [2 - row % 2 for row in range(60)]}  # 1 and 2, of which the lower is half of the higher
    halves = lint_tables([pairs_from_columns(columns, "x", label_scale=2)])
    told = "x: 30 of 60 labels lie between 0 and the full scale and count as positive, and none is negative"
    assert [note.partition(";")[0] for note in halves.notes] == ["x: positives alone", told]


def test_many_negatives_of_each_anchor_are_no_imbalance():
    """Of n-tuples; the control: of the same texts with anchors that have no positive they are."""
    negatives = [(f"anchor {row}", f"negative {row} {number}", 0) for row in range(9) for number in range(19)]
    positives = [(f"anchor {row}", f"positive {row}", 1) for row in range(9)]
    for rows in (positives + negatives, [(f"other {a}", b, 1) for a, b, _ in positives] + negatives):
        texts1, texts2, labels = map(list, zip(*rows, strict=True))
        report = lint_tables([pairs_from_columns({"texts1": texts1, "texts2": texts2, "labels": labels}, "x")])
        assert (("x", "label balance") in names(report)) == (rows[0][0] != "anchor 0")


def test_a_single_row_is_no_crash():
    for label in (0, 1):
        report = lint_tables([pairs_from_columns({"texts1": ["vpn is"], "texts2": ["down"], "labels": [label]}, "x")])
        assert (("x", "label balance") in names(report)) == (label == 0)


def built(count: int, origins: list[str]) -> Columns:
    """Pairs that their words give away, as those are that TF-IDF chose, with an origin each."""
    columns = sentences(count, 7)
    for row, label in enumerate(columns["labels"]):
        one = columns["texts1"][row].split()
        columns["texts2"][row] = " ".join(one[:7]) if label else columns["texts2"][row - 1][::-1]
    return {**columns, "origins": origins}


@pytest.mark.slow
def test_what_the_rules_of_build_pairs_bring_about_is_expected(tmp_path, capfd):
    labelled = {name: values for name, values in built(240, ["tfidf"] * 240).items() if name != "origins"}
    pairs = write(tmp_path, "built.json", built(240, ["TFIDF "] * 200 + ["known"] * 20 + ["edit"] * 20))
    assert cli(["lint", "--pairs", pairs, "--json", str(tmp_path / "found.json")]) == 0
    said = capfd.readouterr().err
    assert "0 serious findings" in said and "1 expected" in said and "nothing to mend" in " ".join(said.split())
    assert "mend the data" not in said
    record = json.loads((tmp_path / "found.json").read_text())
    assert {finding["name"]: finding["severity"] for finding in record["findings"]}["shortcut: TF-IDF"] == EXPECTED

    def severity(columns: Columns) -> str:
        return names(lint_tables([pairs_from_columns(columns, "x")]))["x", "shortcut: TF-IDF"]

    assert severity(labelled) == WARNING or severity(labelled) == SERIOUS  # by people: it does say something
    assert severity(built(240, ["encoder"] * 240)) != EXPECTED  # chosen by other than words
    assert severity(built(240, ["tfidf"] * 120 + ["desk"] * 120)) != EXPECTED  # the others are as easy
    assert severity(built(240, ["tfidf"] * 220 + [""] * 20)) == EXPECTED  # too few others to tell


@pytest.mark.slow
def test_hard_phases_are_expected_where_known_duplicates_or_an_encoder_made_them_so():
    columns = built(240, ["tfidf"] * 240)
    for row in range(240):
        columns["labels"][row] = 1 - columns["labels"][row] if columns["phase_indicators"][row] == 3 else row % 2
    hard = [row for row in range(240) if columns["phase_indicators"][row] == 3]

    def upside_down(origins: list[str]) -> str:
        table = pairs_from_columns({**columns, "origins": origins}, "x")
        return names(lint_tables([table]))["x", "negatives above positives"]

    known = ["known" if row in hard and columns["labels"][row] else "tfidf" for row in range(240)]
    assert upside_down(known) == EXPECTED
    assert upside_down(["tfidf"] * 240) == WARNING
    scores = np.array([0.0 if label else 1.0 for label in columns["labels"]])
    for origin, expected in (("model", EXPECTED), ("tfidf", SERIOUS)):
        table = pairs_from_columns({**columns, "origins": [origin] * 240}, "x")
        findings = [each for each in lint_tables([table], None, [scores]).findings if each.values.get("by") == "model"]
        assert {each.severity for each in findings if each.name == "negatives above positives"} == {expected}


def test_one_page_however_many_rows_are_wrong(files, tmp_path, capfd):
    columns = json.loads(Path(files["train"]).read_text())
    for name, values in columns.items():
        values *= 30
        if name == "labels":
            values[:] = [row % 7 % 2 for row in range(len(values))]
    assert cli(["lint", "--pairs", write(tmp_path, "bad.json", columns)]) == 1
    lines = capfd.readouterr().err.splitlines()
    assert 20 < len(lines) < 60 and max(map(len, lines[:-1])) <= 132  # the last is the error's one line


@pytest.mark.slow
def test_a_run_shows_and_keeps_what_lint_finds(files, tiny_model, tmp_path, capfd, monkeypatch):
    columns = json.loads(Path(files["train"]).read_text())
    bad = write(tmp_path, "bad.json", {name: values + values for name, values in columns.items()})
    settings = {
        "model.name": str(tiny_model("mpnet")),
        "data.train": bad,
        "data.dev": files["dev"],
        "loss.dims": "[64]",
        "lora.enabled": "false",
        "output.dir": str(tmp_path / "run"),
    }
    kill_before_update(monkeypatch, 0)
    with pytest.raises(Killed):  # training does go on
        cli(["train", *(word for key, value in settings.items() for word in ("--set", f"{key}={value}"))])
    record = json.loads((tmp_path / "run" / "lint.json").read_text())
    assert record["serious"] == 1 and record["sources"] == {bad: 480, files["dev"]: 240}
    said = capfd.readouterr().err
    assert re.search("1 serious finding.*Training goes on.*Plan", said, re.DOTALL)
