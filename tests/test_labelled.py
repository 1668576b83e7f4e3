"""Pairs of what tickets say of themselves: columns found by name, leaks cut, who may be a negative, phases, parts."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainer.data.pairs import read_pairs
from trainer.data.split import check_overlap
from trainer.data.ticket_table import Columns
from trainer.data.tickets import Filter, load_tickets
from trainer.lint.linter import lint_tables
from trainer.main import cli
from trainer.mining.sources import read_sources
from trainer.text.leaks import without_title

WORDS = [f"{a}{b}{c}" for a in "bdfgklm" for b in "aeiou" for c in ("rt", "ns", "lk", "mp")]
SEEK = Columns(duplicate_of="", resolution="", notes="", date="")
Rows = list[dict[str, str]]


def ticket_rows(count: int = 300) -> Rows:
    """Tickets of 60 problems, of which each has words of its own; a title, which the body repeats, and more of them."""
    rng = random.Random(0)
    problems = [rng.sample(WORDS, 12) for _ in range(60)]
    rows = []
    for number in range(count):
        problem = number % 60
        words = problems[problem]
        title = " ".join(rng.sample(words, 4))
        body = " ".join(rng.sample(words, 6) + rng.sample(WORDS, 4))
        rows.append(
            {
                "number": f"INC{number:04}",
                "short_description": title,
                "description": f"{title.upper()}!\n{body}" if number % 2 else f"{body} {title}, since today",
                "assignment_group": f"team {problem % 3}",
                "parent_incident": f"INC{problem:04}" if number >= 60 and number % 7 == 0 else "",
                "close_notes": "closed by phone now" if number % 3 else f"RE: {title}: replaced {words[0]} {words[1]}",
                "opened_at": f"2024-01-{1 + number % 28:02} 10:00",
                "part": "held" if number % 10 == 3 else "free",
            }
        )  # fmt: skip
    return rows


def build(folder: Path, rows: Rows, *options: str) -> dict[str, dict[str, list[Any]]]:
    path = folder / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = folder / "out"
    assert cli(["build-pairs", "--tickets", str(path), "--output", str(output), "--max-group", "10", *options]) == 0
    return {file.stem: json.loads(file.read_text()) for file in output.glob("*.json")}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, list[Any]]]]:
    folder = tmp_path_factory.mktemp("built")
    return folder / "out", build(folder, ticket_rows(), "--dev-share", "0.2", "--test-share", "0.2")


@pytest.mark.parametrize(
    ("title", "body", "left"),
    [
        ("vpn is down", "Hello, VPN is down!! - VPN is  down since Monday", "Hello, since Monday"),
        ("outlook", "Outlook: no new mail in outlook", "no new mail in outlook"),
        ("print", "printer broken", "printer broken"),
        ("space low on /data/er", "space low on /data/erp7/: 98 %", "98 %"),  # cut off by the form
        ("login issue", "Login issue", ""),
        ("login issue", "there is a login issue", "there is a login issue"),
        ("", "a body", "a body"),
    ],
)
def test_a_title_is_cut_from_its_body(title: str, body: str, left: str) -> None:
    assert without_title(body, title) == left


@pytest.mark.parametrize(
    ("header", "fields"),
    [
        ("Number,Short description,Description,Close notes,Work notes,Opened,Parent Incident,Problem",
         {"resolution": (3,), "notes": (4,), "date": (5,), "duplicate_of": (6, 7)}),
        ("Nummer,Kurzbeschreibung,Beschreibung,Zuweisungsgruppe,Lösungshinweise,Arbeitsnotizen,Geöffnet",
         {"number": (0,), "text1": (1,), "text2": (2,), "category": (3,), "resolution": (4,), "notes": (5,),
          "date": (6,)}),
        ("Numéro,Brève description,Description,Notes de résolution,Notes de travail,Incident parent",
         {"number": (0,), "text1": (1,), "text2": (2,), "resolution": (3,), "notes": (4,), "duplicate_of": (5,)}),
        ("Issue key,Summary,Description,Resolution,Comment,Comment,Created,Outward issue link (Duplicate)",
         {"text1": (1,), "notes": (4, 5), "date": (6,), "duplicate_of": (7,)}),
        ("ID,Subject,Description,Problem ID,Created at",
         {"number": (0,), "text1": (1,), "duplicate_of": (3,), "date": (4,)}),
        ("number,title,body,created_at,labels", {"text1": (1,), "text2": (2,), "date": (3,), "category": (4,)}),
    ],
)  # fmt: skip
def test_columns_are_found_by_the_names_that_exports_write(header: str, fields: dict[str, tuple[int, ...]]) -> None:
    found = SEEK.find(header.split(","), "t.csv")
    assert {field: found.get(field) for field in fields} == fields
    assert "resolution" not in Columns().find(header.split(","), "t.csv")  # not looked for where it is of no use


def test_each_source_gives_its_pairs_and_links_can_be_withheld(built: tuple[Path, Any], tmp_path: Path) -> None:
    files = built[1]
    rows = {row["number"]: row for row in ticket_rows()}
    train = files["train"]
    origins = Counter(zip(train["origins"], train["labels"], strict=True))
    assert {origin for origin, label in origins if label} == {"known", "resolution", "title-body"}
    assert {origin for origin, label in origins if not label} == {"duplicates", "resolution", "title-body"}
    columns = ("texts1", "texts2", "labels", "origins", "numbers1", "numbers2")
    for text1, text2, label, origin, one, two in zip(*(train[name] for name in columns), strict=True):
        if origin == "title-body":
            assert (
                text1.casefold() == rows[one]["short_description"]
                and text2[0].isalnum()
                and (one == two) == bool(label)
            )
            assert rows[two]["short_description"].casefold() not in text2.casefold()
        elif origin == "resolution":
            assert text2.startswith("replaced") and rows[two]["short_description"] not in text2
        elif label:
            assert (
                rows[one]["parent_incident"] in (two, rows[two]["parent_incident"])
                or rows[two]["parent_incident"] == one
            )
    assert files["report"]["sources"].keys() == {"duplicates", "resolution", "title-body"}
    assert files["report"]["shortcuts_by_source"].keys() == files["report"]["sources"].keys()
    tickets = load_tickets(tmp_path.parent / built[0].parent / "t.jsonl", Columns(), Filter())
    assert [source.name for source in read_sources(tickets, ("duplicates", "title-body"), Filter(), 0)[1]] == [
        "title-body"
    ]


def test_negatives_are_of_others_and_score_below_their_positive(built: tuple[Path, Any]) -> None:
    files = built[1]
    rows = {row["number"]: row for row in ticket_rows()}
    cluster = {number: row["parent_incident"] or number for number, row in rows.items()}
    train, best = files["train"], {}
    columns = ("texts1", "labels", "origins", "numbers1", "numbers2", "tfidf_cosines")
    table = list(zip(*(train[name] for name in columns), strict=True))
    for text1, label, origin, *_, cosine in table:
        if label and origin == "title-body":
            best[text1] = max(cosine, best.get(text1, 0))
    negatives = [row for row in table if not row[1]]
    assert len(negatives) > 100
    for text1, _, origin, one, two, cosine in negatives:
        assert one != two and cluster[one] != cluster[two]
        if origin == "title-body" and best[text1] > 0.1:
            assert cosine <= 0.7 * best[text1] + 1e-3
    assert files["report"]["shortcuts"]["same_category"] == pytest.approx(0.5, abs=0.1)
    assert files["report"]["shortcuts"]["length"] == pytest.approx(0.5, abs=0.15)


def test_phases_go_by_difficulty_and_parts_share_nothing(built: tuple[Path, Any]) -> None:
    output, files = built
    train = files["train"]
    phases, labels = np.array(train["phase_indicators"]), np.array(train["labels"])
    cosines = np.array(train["tfidf_cosines"])
    clear = [
        cosines[(phases == p) & (labels == 1)].mean() - cosines[(phases == p) & (labels == 0)].mean() for p in (1, 2, 3)
    ]
    assert clear[0] > clear[1] > clear[2]
    assert all(labels[phases == phase].mean() == 0.5 for phase in (1, 2, 3))
    tables = [read_pairs(output / f"{part}.json") for part in ("train", "dev", "test")]
    for one, two in ((0, 1), (0, 2), (1, 2)):
        assert check_overlap(tables[one], tables[two], 0) == 0
    report = lint_tables(tables[:1])
    assert not report.serious()


def pairs_by_people(rows: Rows) -> dict[str, list[Any]]:
    """Bodies of two tickets of each problem among the rows, then of two problems."""
    bodies: dict[int, list[str]] = {}
    for row in rows:
        bodies.setdefault(int(row["number"][3:]) % 60, []).append(row["description"])
    groups = list(bodies.values())
    same = [(one, two, 1) for group in groups for one, two in combinations(group, 2)]
    other = [(one, two, 0) for group, next_ in pairwise([*groups, groups[0]]) for one in group for two in next_[:2]]
    return dict(zip(("texts1", "texts2", "labels"), map(list, zip(*same, *other, strict=True)), strict=True))


@pytest.mark.slow
@pytest.mark.usefixtures("blank_report")
def test_from_raw_tickets_to_a_verdict_of_people(tmp_path: Path, tiny_model) -> None:
    """The walk of trainer/mining/README.md: pairs of titles and bodies, a training on them, a verdict on pairs that
    people labelled; of what these are about nothing is trained on."""
    rows, people, held, run = ticket_rows(), tmp_path / "people.json", tmp_path / "held.json", tmp_path / "run"
    people.write_text(json.dumps(pairs_by_people([row for row in rows if row["part"] == "held"])))
    texts = [rows[17]["short_description"], rows[40]["description"]]
    held.write_text(json.dumps({"texts1": texts, "texts2": ["other a b", "other c d"], "labels": [1, 0]}))
    options = ("--sources", "title-body", "--leave-out", str(held), "--leave-out-rows", "part=held")
    files = build(tmp_path, rows, *options, "--dev-share", "0.1", "--test-share", "0")
    used = {number for part in ("train", "dev") for side in "12" for number in files[part][f"numbers{side}"]}
    assert not used & {"INC0017", "INC0040", *(row["number"] for row in rows if row["part"] == "held")}
    assert set(files["train"]["origins"]) == {"title-body"} and len(used) > 200  # no links though the file has some
    assert files["report"]["tickets"]["dropped"]["left-out"] == 32

    settings = {"model.name": tiny_model("mpnet"), "data.train": tmp_path / "out" / "train.json"}
    settings |= {"data.dev": tmp_path / "out" / "dev.json", "curriculum.mode": "mixed", "loss.dims": [64, 32]}
    settings |= {
        "lora.enabled": "false",
        "optim.lr": 1e-3,
        "train.batch_size": 32,
        "curriculum.epochs": 1,
        "output.dir": run,
        "eval.every": 0,
    }
    said = [f"--set={key}={value}" for key, value in settings.items()]
    assert cli(["train", *said, "--full-strength"]) == 0
    judged = ["--model", str(run / "model"), "--baseline", str(tiny_model("mpnet")), "--pairs", str(people)]
    assert cli(["evaluate", *judged, "--dims", "64,32", "--resamples", "200", "--json", str(tmp_path / "j.json")]) == 0
    judgement = json.loads((tmp_path / "j.json").read_text())
    by_dim = {name: [judgement[name][dim]["spearman"] for dim in ("64", "32")] for name in ("baseline", "model")}
    assert min(by_dim["baseline"]) > 0.3 and by_dim["model"] != by_dim["baseline"]  # labels that texts bear out
    assert judgement["verdict"] in judgement["verdicts"].values() and judgement["verdicts"].keys() == {"64", "32"}


@pytest.mark.slow
def test_similarity_fills_up_where_it_is_asked_for_and_an_encoder_tells_what_is_hard(
    tmp_path: Path, tiny_model
) -> None:
    options = ("--sources", "similarity,title-body", "--sizes", "200", "--dev-share", "0", "--test-share", "0")
    files = build(
        tmp_path, ticket_rows(), *options, "--model", str(tiny_model("mpnet")), "--medium-positives", "0.3:1:any"
    )
    train = files["train"]
    assert {"title-body", "tfidf"} <= set(train["origins"]) and "encoder_cosines" in train


def test_tickets_of_one_day_and_category_are_no_negatives_where_they_are_alike(tmp_path: Path) -> None:
    rows = ticket_rows(120)
    for row in rows:
        row["assignment_group"] = "one"
    options = ("--sources", "title-body", "--dev-share", "0", "--test-share", "0")

    def alike(day: str) -> float:
        for number, row in enumerate(rows):
            row["opened_at"] = f"2024-01-{1 + (number % 28 if day == 'other' else 0):02} 10:00"
        (tmp_path / day).mkdir()
        train = build(tmp_path / day, rows, *options)["train"]
        return max(c for c, label in zip(train["tfidf_cosines"], train["labels"], strict=True) if not label)

    assert alike("same") < alike("other")


def test_words_that_say_nothing_of_said_labels_are_told_as_that(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Titles and bodies without a common word: no band is wrong, as none was asked for."""
    names = ("title", "more", "body", "long", "last")
    rows = [
        {
            "number": f"INC{number}",
            "short_description": f"{WORDS[number]}title {WORDS[number]}more",
            "description": " ".join(f"{WORDS[number]}{name}s" for name in names),
            "assignment_group": "team",
        }
        for number in range(60)
    ]
    build(tmp_path, rows, "--sources", "title-body", "--dev-share", "0.2", "--test-share", "0")
    said = " ".join(capfd.readouterr().err.split())
    assert "(mean 0.000 over 0.000): most of these labels are what tickets say, whatever their words" in said
    assert "labels and bands disagree" not in said
