"""`trainer build-pairs` from the command line: what it writes, what it says, what it refuses."""

from __future__ import annotations

import csv
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from trainer.data.identifiers import clean_id
from trainer.data.pairs import read_pairs
from trainer.data.split import check_overlap
from trainer.data.ticket_table import Columns
from trainer.data.tickets import Filter, load_tickets
from trainer.main import cli
from trainer.mining import build_pairs as builder
from trainer.text.canonical import canonical_form

BANDS = (
    "--easy-positives", "0.55:0.95:same", "--easy-negatives", "0:0.2:other",
    "--medium-positives", "0.4:0.95:other", "--medium-negatives", "0.05:0.35:same",
    "--hard-positives", "0.35:0.6:same", "--hard-negatives", "0.1:0.5:any",
)  # fmt: skip
GUESSED = ("--sources", "similarity")
SMALL = (*GUESSED, "--sizes", "40,40,40", "--dev-share", "0.2", "--test-share", "0.2", "--max-group", "10", *BANDS)
SYLLABLES = [f"{a}{b}{c}" for a in "bdfgklm" for b in "aeiou" for c in ("rt", "ns", "lk", "mp")]


def ticket_rows(seed: int = 0, count: int = 600) -> list[dict[str, str]]:
    """Tickets about 50 problems, as mails, some of them copies."""
    rng = random.Random(seed)
    problems = [rng.sample(SYLLABLES, 7) for _ in range(50)]
    rows = []
    for number in range(count):
        problem = rng.randrange(50)
        words = rng.sample(problems[problem], 5) + rng.sample(SYLLABLES, rng.randint(0, 3))
        rows.append(
            {
                "number": f"INC{number:07}",
                "short_description": " ".join(words),
                "description": f"received from: <email> hello team, {' '.join(words)} user{number}@corp.com",
                "assignment_group": f"team {problem % 3 if rng.random() < 0.7 else rng.randrange(3)}",
            }
        )
    return rows + [{**row, "number": f"COPY{i}"} for i, row in enumerate(rows[:20])]


@pytest.fixture(scope="module")
def tickets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tickets") / "tickets.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["number", "short_description", "description", "assignment_group"])
        writer.writeheader()
        writer.writerows(ticket_rows())
    return path


Files = dict[str, dict[str, list[Any]]]
"""Part -> columns."""


def read(output: Path) -> Files:
    return {part: json.loads((output / f"{part}.json").read_text()) for part in ("train", "dev", "test")}


def build(tickets: Path, output: Path, *options: str) -> Files:
    assert cli(["build-pairs", "--tickets", str(tickets), "--output", str(output), *SMALL, *options]) == 0
    return read(output)


@pytest.fixture(scope="module")
def plain(tickets: Path) -> Path:
    """What comes of the tickets without more options; not to be written to."""
    build(tickets, tickets.parent / "plain")
    return tickets.parent / "plain"


def refused(capfd, *arguments: str) -> str:
    assert cli(["build-pairs", *arguments]) == 2
    said = capfd.readouterr().err
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and said.rstrip().splitlines()[-1] == errors[0]
    return errors[0]


def test_it_writes_pairs_that_the_trainer_reads_and_a_report_that_adds_up(tickets: Path, tmp_path: Path, capfd) -> None:
    files = build(tickets, tmp_path / "out")
    tables = {part: read_pairs(tmp_path / "out" / f"{part}.json") for part in files}
    assert check_overlap(tables["train"], tables["dev"], 0) == check_overlap(tables["train"], tables["test"], 0) == 0
    assert check_overlap(tables["dev"], tables["test"], 0) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    titles = {row["number"]: row["short_description"] for row in ticket_rows()}
    for part, rows in files.items():
        counts = Counter(zip(rows["phase_indicators"], rows["labels"], strict=True))
        assert {phase for phase, _ in counts} == {1, 2, 3}
        for number, figures in enumerate(report["parts"][part].values(), start=1):
            assert counts[number, 0] == counts[number, 1] == figures["written_of_each"] <= figures["wanted_of_each"]
            for label, name in ((1, "positives"), (0, "negatives")):
                own = [
                    cosine
                    for cosine, *key in zip(
                        rows["tfidf_cosines"], rows["phase_indicators"], rows["labels"], strict=True
                    )
                    if key == [number, label]
                ]
                low, high = map(float, figures[name]["band"].split(":")[:2])
                achieved = figures[name]["achieved"]["tfidf"]
                assert low - 1e-4 <= min(own) == achieved["min"] and max(own) == achieved["max"] <= high + 1e-4
        texts = zip([*rows["texts1"], *rows["texts2"]], [*rows["numbers1"], *rows["numbers2"]], strict=True)
        assert all(text.startswith(titles[number]) for text, number in texts)
    assert report["parts"]["train"]["easy"]["written_of_each"] == 20
    assert report["tickets"]["dropped"]["copy"] == 20
    dropped = list(csv.DictReader((tmp_path / "out" / "dropped.csv").open()))
    assert {row["number"]: row["kept_instead"] for row in dropped}["COPY3"] == "INC0000003"
    said = capfd.readouterr().err
    assert "train" in said and "same category" in said
    assert "similarity alone was asked for: every label is a guess" in said and "no body" not in said  # they have one


def test_no_id_in_the_table_of_dropped_rows_is_a_formula(tmp_path: Path) -> None:
    names = ["=cmd|' /C calc'!A0", "+1 2", "-1-2", "@SUM(A1)", "INC-1"]
    table = "".join(f'"{name}",vpn drops every single hour\n' for name in names)
    (tmp_path / "t.csv").write_text(f"number,description\n{table}")
    written = builder._dropped_table(load_tickets(tmp_path / "t.csv", Columns(), Filter()))
    rows = list(csv.DictReader(written.splitlines()))
    assert [row["number"] for row in rows] == ["'+1 2", "'-1-2", "'@SUM(A1)", "INC-1"]
    assert {row["kept_instead"] for row in rows} == {"'=cmd|' /C calc'!A0"}
    assert [clean_id(row["number"]) for row in rows] == names[1:]


@pytest.mark.slow
def test_texts_in_the_report_are_masked_and_in_the_pairs_where_asked(
    tickets: Path, plain: Path, tmp_path: Path
) -> None:
    build(tickets, tmp_path / "masked", "--mask", "--texts", "raw")
    assert "@corp.com" in (plain / "train.json").read_text()
    masked = (tmp_path / "masked" / "train.json").read_text()
    assert "@corp.com" not in masked and "<email>" in masked and "hello team" in masked  # raw
    for folder in (plain, tmp_path / "masked"):
        assert "@corp.com" not in (folder / "report.json").read_text()


@pytest.mark.slow
def test_the_same_seed_writes_the_same_bytes(tickets: Path, plain: Path, tmp_path: Path) -> None:
    for name, seed in (("same", "0"), ("other", "1")):
        build(tickets, tmp_path / name, "--seed", seed)
    first, same, other = (
        (folder / "train.json").read_bytes() for folder in (plain, tmp_path / "same", tmp_path / "other")
    )
    assert first == same != other


@pytest.mark.slow
def test_an_output_named_json_gets_its_companions_beside_it(tickets: Path, tmp_path: Path) -> None:
    output = tmp_path / "pairs.json"
    assert cli(["build-pairs", "--tickets", str(tickets), "--output", str(output), *SMALL, "--test-share", "0"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        "pairs.json", "pairs-dev.json", "pairs-report.json", "pairs-dropped.csv",
    }  # fmt: skip
    assert len(read_pairs(output)) > 60


def test_what_is_there_is_not_overwritten(tickets: Path, tmp_path: Path, capfd) -> None:
    output = tmp_path / "pairs.json"
    output.write_text("mine")
    assert cli(["build-pairs", "--tickets", str(tickets), "--output", str(output), *SMALL]) == 5
    assert output.read_text() == "mine" and "not overwritten" in capfd.readouterr().err
    output.unlink()
    (beside := tmp_path / "pairs-test.json").write_text("mine")  # would be taken for a part of the new split
    assert cli(["build-pairs", "--tickets", str(tickets), "--output", str(output), *SMALL]) == 5
    assert f"{beside}: exists already" in capfd.readouterr().err and not output.exists()


@pytest.mark.slow
def test_augmented_rows_are_marked_balanced_and_in_train_alone(tickets: Path, plain: Path, tmp_path: Path) -> None:
    before = read(plain)
    files = build(tickets, tmp_path / "more", "--augment", "deletion=0.5,edit=0.25")
    assert files["dev"] == before["dev"] and files["test"] == before["test"]
    count = len(before["train"]["labels"])
    train = files["train"]
    assert {key: column[:count] for key, column in train.items()} == before["train"]
    added = list(zip(*(train[key][count:] for key in ("phase_indicators", "labels", "origins")), strict=True))
    counts = Counter(added)
    assert {kind for *_, kind in added} == {"deletion", "edit"}
    assert all(counts[phase, 0, kind] == counts[phase, 1, kind] > 0 for phase, _, kind in counts)
    known = {canonical_form(text) for part in before.values() for side in "12" for text in part[f"texts{side}"]}
    originals = set(zip(before["train"]["texts1"], before["train"]["numbers2"], before["train"]["labels"], strict=True))
    for row in range(count, len(train["labels"])):
        assert canonical_form(train["texts2"][row]) not in known
        assert (train["texts1"][row], train["numbers2"][row], train["labels"][row]) in originals
        assert train["tfidf_cosines"][row] is None
    read_pairs(tmp_path / "more" / "train.json")


@pytest.mark.slow
def test_an_altered_text_that_is_another_tickets_is_left_out(
    tickets: Path, plain: Path, tmp_path: Path, monkeypatch
) -> None:
    held_out = read(plain)["dev"]["texts1"][0]
    monkeypatch.setattr(builder, "delete_span", lambda text, random: held_out.upper())
    assert "deletion" not in build(tickets, tmp_path / "more", "--augment", "deletion=0.5")["train"]["origins"]


@pytest.mark.slow
def test_round_trips_are_marked_and_only_of_the_language_that_is_read(
    tickets: Path, plain: Path, tmp_path: Path, monkeypatch
) -> None:
    asked: list[str] = []

    def load(name: str):
        def translate(texts):
            asked.extend(texts if name == "there" else [])
            return [" ".join(reversed(text.split())) if name == "there" else f"{text} again" for text in texts]

        return translate

    monkeypatch.setattr(builder, "load_translator", load)
    monkeypatch.setattr(builder, "language", lambda text: "de" if text.startswith("b") else "")
    options = ("--augment", "translation=0.5", "--translators", "there", "back")
    train = build(tickets, tmp_path / "out", *options)["train"]
    added = [text for text, origin in zip(train["texts2"], train["origins"], strict=True) if origin == "translation"]
    assert len(added) == len(train["labels"]) - len(read(plain)["train"]["labels"]) > 20
    assert all(text.endswith(" again") for text in added) and not any(text.startswith("b") for text in asked)


@pytest.mark.slow
def test_known_duplicates_come_first_and_are_marked(tmp_path: Path) -> None:
    rows = ticket_rows()
    rng = random.Random(0)
    linked = [tuple(rng.sample(range(600), 2)) for _ in range(10)]
    for one, two in linked:
        rows[one]["dup"] = rows[two]["number"]
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps({"dup": None, **row}) + "\n" for row in rows))
    files = build(path, tmp_path / "out", "--duplicate-column", "dup", "--sources", "duplicates,similarity")
    labels = {}
    for part in files.values():
        for one, two, label, origin in zip(
            part["numbers1"], part["numbers2"], part["labels"], part["origins"], strict=True
        ):
            labels[frozenset((one, two))] = (label, origin)
    for one, two in linked:
        assert labels[frozenset((rows[one]["number"], rows[two]["number"]))] == (1, "known")


@pytest.mark.slow
@pytest.mark.parametrize("similarity", ["tfidf", "encoder", "both"])
def test_an_encoder_mines_hard_negatives_and_measures(
    tickets: Path, tmp_path: Path, tiny_model, similarity: str
) -> None:
    options = ["--model", str(tiny_model("mpnet")), "--similarity", similarity, "--margin", "0.02"]
    if similarity != "tfidf":  # random weights: unrelated texts have a cosine of 0.75
        low = "0.9" if similarity == "encoder" else "0.4"
        for phase, negatives in (("easy", "0:0.7:other"), ("medium", "0.7:0.8:same"), ("hard", "-1:1:any")):
            category = "other" if phase == "medium" else "same"
            options += [f"--{phase}-positives", f"{low}:1:{category}", f"--{phase}-negatives={negatives}"]
    rows = build(tickets, tmp_path / "out", *options)["train"]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    kinds = Counter(zip(rows["phase_indicators"], rows["labels"], rows["origins"], strict=True))
    assert set(kinds) == {(phase, 1, similarity) for phase in (1, 2, 3)} | {
        (1, 0, similarity), (2, 0, similarity), (3, 0, "model"),
    }  # fmt: skip
    assert sum(kinds.values()) > 60
    measured = {"tfidf", "encoder"} - ({"tfidf"} if similarity == "encoder" else set())
    hard, medium = (report["parts"]["train"][phase]["negatives"] for phase in ("hard", "medium"))
    assert hard["achieved"].keys() == measured
    assert hard["band"] == "model, to 0.98 x positive:any" and "model" not in medium["band"]
    assert {name for name in rows if name.endswith("_cosines")} == {f"{name}_cosines" for name in measured}


@pytest.mark.slow
def test_a_short_band_is_told_with_numbers_and_an_empty_one_or_a_strict_run_is_refused(
    tickets: Path, tmp_path: Path, capfd
) -> None:
    report = (
        build(tickets, tmp_path / "a", "--sizes", "40,600,40", "--medium-positives", "0.7:0.95:other"),
        json.loads((tmp_path / "a/report.json").read_text()),
    )[1]
    medium = report["parts"]["train"]["medium"]
    assert medium["written_of_each"] < medium["wanted_of_each"] == 300
    (line,) = (line for line in report["warnings"] if line.startswith("train, medium: "))
    assert f"{medium['written_of_each']} positives" in line and "of 300 each" in line and "0.7:0.95:other" in line
    assert line in capfd.readouterr().err

    arguments = ["--tickets", str(tickets), "--output", str(tmp_path / "b"), *SMALL]
    assert "train, medium" in refused(
        capfd, *arguments, "--sizes", "40,600,40", "--medium-positives", "0.7:0.95:other", "--strict"
    )
    assert "train, hard: 0 positives" in refused(capfd, *arguments, "--hard-positives", "0.99:0.9901:same")
    assert not (tmp_path / "b").exists()


@pytest.mark.slow
def test_negatives_above_positives_are_told(tickets: Path, tmp_path: Path, capfd) -> None:
    build(tickets, tmp_path / "out", "--hard-positives", "0.3:0.36:same", "--hard-negatives", "0.36:0.9:other")
    assert "train, hard: negatives score as high as positives by tfidf" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--category-column", "team"], ("column team is missing", "'assignment_group'")),
        (["--text-columns", "body"], ("column body is missing", "'short_description'")),
        (["--sizes", "5000,40,40"], ("620 tickets for a phase of 5000", "--sizes to 620")),
        (["--sizes", "41,40,40"], ("--sizes 41,40,40", "even")),
        (["--sizes", "0"], ("--sizes", "all phases are 0")),
        (["--sizes", "4,5"], ("--sizes 4,5",)),
        (["--seed", "-1"], ("--seed -1: write a whole number from 0",)),
        (["--hard-negatives", "0.5:0.3:any"], ("--hard-negatives 0.5:0.3:any", "LOW:HIGH:CATEGORY")),
        (["--hard-negatives", "0.3:0.5"], ("--hard-negatives", "any")),
        (["--easy-positives", "0:0.5:same"], ("--easy-positives", "above 0")),
        (["--sizes", "40,40,0", "--hard-negatives", "0.3:0.4:any"], ("--sizes 40,40,0", "leaves out the hard phase")),
        (["--similarity", "both"], ("--similarity both", "--model")),
        (["--augment", "synonyms=0.1"], ("--augment synonyms=0.1", "deletion")),
        (["--augment", "translation=0.1"], ("--translators",)),
        (["--dev-share", "0.9"], ("--dev-share 0.9",)),
        (["--margin", "1", "--model", "nobody/nothing"], ("--margin 1:",)),
        (["--margin", "0.05", "--sources", "similarity"], ("--margin 0.05 needs an encoder", "--model")),
        (["--sources", "titles"], ("--sources titles", "title-body")),
        (["--sources", "title-body"], ("bands say what similarity makes pairs of", "--sources")),
        (["--sources", "similarity,notes"], ("--sources notes: has no column", "--notes-column")),
        (["--sources", "similarity", "--duplicate-column", "d"], ("--duplicate-column d", "--sources ...,duplicates")),
        (["--leave-out-rows", "part"], ("--leave-out-rows part: write COLUMN=VALUE",)),
        (["--leave-out-rows", "part=dev"], ("column part is missing", "--leave-out-rows")),
        (["--translate-language", "en"], ("--translate-language en needs --translators",)),
        (["--min-words", "0"], ("--min-words 0",)),
        (["--min-words", "50"], ("0 of 620 tickets are usable", "near-empty")),
        (["--model", "nobody/nothing"], ("nobody/nothing",)),
        (["--augment", "translation=1", "--translators", "nobody/there", "nobody/back"], ("nobody/there",)),
        (["--seed", "x"], ("--seed",)),
        (["--languages", "EN,english"], ("--languages english", "en, de")),
    ],
)
def test_bad_input_is_one_line(tickets: Path, tmp_path: Path, capfd, options: list[str], told: tuple[str, ...]) -> None:
    error = refused(capfd, "--tickets", str(tickets), "--output", str(tmp_path / "out"), *SMALL, *options)
    assert all(part in error for part in told), error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["x.csv", "x.JSON", "x.jsonl", "x.csv.gz", "x.parquet"])
def test_no_folder_is_called_as_a_file_of_pairs_is(name: str, tickets: Path, tmp_path: Path, capfd) -> None:
    error = refused(capfd, "--tickets", str(tickets), "--output", str(tmp_path / name), *SMALL)
    assert f"{name}: would be a folder, called as a file is: name a folder, or a file that ends in .json" in error


@pytest.mark.slow
def test_one_category_only_is_refused_unless_no_band_asks(tmp_path: Path, capfd) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps({**row, "assignment_group": "all"}) + "\n" for row in ticket_rows()))
    arguments = ["--tickets", str(path), "--output", str(tmp_path / "out"), *SMALL]
    assert "only the category 'all'" in refused(capfd, *arguments)
    bands = [option.rpartition(":")[0] + ":any" if ":" in option else option for option in BANDS]
    assert cli(["build-pairs", *arguments, *bands]) == 0


@pytest.mark.slow
def test_without_categories_the_default_bands_do_without(tmp_path: Path, capfd) -> None:
    rows = [{key: row[key] for key in ("number", "description")} for row in ticket_rows()]
    path = tmp_path / "t.csv"
    path.write_bytes("".join(f"{row['number']}|{row['description']}|für\n" for row in rows).encode("cp1252"))
    path.write_bytes(b"Ref|Was|Extra\n" + path.read_bytes())
    given = ["--tickets", str(path), "--output", str(tmp_path / "out"), "--sizes", "40", "--text-columns", "Was"]
    given += ["--number-column", "ref", "--encoding", "latin-1", "--separator", "|", "--max-group", "10"]
    assert cli(["build-pairs", *given]) == 0
    said = capfd.readouterr().err
    assert f"{path}: read as latin-1, separator |; no category column" in said
    assert "the tickets have no category: what the bands ask of categories is left out" in said
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["parts"]["train"]["easy"]["positives"]["band"] == "0.6:0.95:any"
    numbers = {row["number"] for row in rows}
    assert set(json.loads((tmp_path / "out" / "train.json").read_text())["numbers1"]) < numbers
    given[3] = str(tmp_path / "other")
    assert "no category: name another with --category-column" in refused(
        capfd, *given, "--hard-positives", "0.3:0.6:same"
    )


@pytest.mark.slow
@pytest.mark.parametrize("category", ["", "all"])
def test_without_categories_what_default_bands_ask_of_them_is_left_out_and_said(
    tmp_path: Path, capfd, category: str
) -> None:
    path, output = tmp_path / "t.jsonl", tmp_path / "out"
    path.write_text("".join(json.dumps({**row, "assignment_group": category}) + "\n" for row in ticket_rows()))
    arguments = ["--tickets", str(path), "--output", str(output), "--sizes", "20", "--max-group", "30", *GUESSED]
    assert cli(["build-pairs", *arguments]) == 0
    report = json.loads((output / "report.json").read_text())
    (line,) = (line for line in report["warnings"] if "left out" in line)
    assert "easy 0.6:0.95:same" in line and "--category-column" in line and line in capfd.readouterr().err
    assert report["parts"]["train"]["medium"]["positives"]["band"] == "0.45:0.95:any"
    train = json.loads((output / "train.json").read_text())
    assert Counter(train["phase_indicators"]) == {1: 20, 2: 20, 3: 20} and sum(train["labels"]) == 30
    assert ("categories1" in train) == ("same_category" in report["shortcuts"]) == bool(category)
    read_pairs(output / "train.json")


@pytest.mark.slow
def test_links_that_tie_nothing_are_told_and_no_duplicates_are_known(tmp_path: Path, capfd) -> None:
    rows = ticket_rows()
    for row, link in ((1, "INC0000002"), (2, "inc0000001"), (3, "INC7777777"), (4, "INC0000004")):
        rows[row]["dup"] = link
    path = tmp_path / "t.jsonl"

    def warnings(rows: list[dict[str, str]]) -> list[str]:
        path.write_text("".join(json.dumps({"dup": None, **row}) + "\n" for row in rows))
        output = tmp_path / f"out{len(rows)}"
        build(path, output, "--duplicate-column", "dup", "--sources", "duplicates,similarity")
        return json.loads((output / "report.json").read_text())["warnings"]

    said = warnings(rows)
    assert "1 of 4 links name tickets that are not in the file (such as 'INC7777777')" in said
    assert not any("no known duplicates" in line for line in said)
    path.write_text(
        "".join(json.dumps({"dup": None, **row}) + "\n" for row in rows if row.get("dup", "INC0000004") == "INC0000004")
    )
    options = ("--tickets", str(path), "--output", str(tmp_path / "none"), *SMALL, "--duplicate-column", "dup")
    said_of_none = refused(capfd, *options, "--sources", "duplicates,similarity")  # one names itself
    assert "--sources duplicates: dup gives no such pairs" in said_of_none


def test_help_says_every_default_band(capsys) -> None:
    with pytest.raises(SystemExit):
        cli(["build-pairs", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert all(option in said for option in ("--tickets", "--strict", "0.3:0.5:any", "0.45:0.95:other"))


@pytest.mark.slow
def test_the_real_tickets_give_three_full_phases(shared_data: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert cli(["build-pairs", "--tickets", str(shared_data / "tickets.csv"), "--output", str(output), *GUESSED]) == 0
    table = read_pairs(output / "train.json")
    for phase in (1, 2, 3):
        own = table.take(table.phase == phase)
        assert len(own) == 5000 and own.label.sum() == 2500
    for part in ("dev", "test"):
        assert check_overlap(table, read_pairs(output / f"{part}.json"), False) == 0
    report = json.loads((output / "report.json").read_text())
    assert report["shortcuts"]["same_category"] < 0.6 and report["shortcuts"]["length"] < 0.65
    means = [figures["mean_cosines"]["tfidf"] for figures in report["parts"]["train"].values()]
    assert all(above > below for above, below in means)
    assert means[0][1] < means[1][1] < means[2][1]  # negatives come nearer
