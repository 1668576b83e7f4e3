"""Files as other programs write them: each goes in with the right pairs, or is refused in one line that helps."""

from __future__ import annotations

import io
import json
import zipfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from trainer.data import text_files
from trainer.data.pairs import PairTable, graded_labels, pairs_from_columns, read_pairs
from trainer.data.readers import Reading
from trainer.data.run_data import read_general
from trainer.errors import InputError
from trainer.main import cli

Rows = list[tuple[str, str, bool]]
PAIRS: Rows = [("vpn is down", "no vpn", True), ("vpn is down", "no mail", False)]


def rows_of(table: PairTable) -> Rows:
    sides = (table.text1.tolist(), table.text2.tolist(), table.label.tolist())
    return [(table.texts[a], table.texts[b], label) for a, b, label in zip(*sides, strict=True)]


def write(folder: Path, name: str, content: str | bytes | list[Any] | dict[str, Any]) -> Path:
    """A file of text, of bytes, of JSON, or of a JSON value a line."""
    path = folder / name
    if name.endswith(".jsonl") and isinstance(content, list):
        content = "".join(json.dumps(value) + "\n" for value in content)
    elif isinstance(content, list | dict):
        content = json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refusal(path: Path, reading: Reading | None = None) -> str:
    with pytest.raises(InputError) as caught:
        read_pairs(path, reading=reading)
    message = str(caught.value)
    assert message.isprintable() and message.startswith(f"{path}: ") and len(message) < 600, message
    return message.removeprefix(f"{path}: ")


ROWS = "vpn is down,no vpn,{}\nvpn is down,no mail,{}\n"
RECORDS = [{"text1": a, "text2": b, "label": int(label)} for a, b, label in PAIRS]
TRIPLET = {"anchor": "vpn is down", "positive": "no vpn", "negative": "no mail"}
BGE = {"query": "vpn is down", "pos": ["no vpn"], "neg": ["no mail"], "prompt": "Find", "pos_scores": [1.0]}
COLUMNS = {"text1": ["vpn is down"] * 2, "text2": ["no vpn", "no mail"], "label": [1, 0]}

# What it is -> name, content, what is said of how it was read ("": nothing).
LAYOUTS: dict[str, tuple[str, Any, str]] = {
    "sentence1, sentence2": ("a.csv", "sentence1,sentence2,label\n" + ROWS.format(1, 0), "text1=sentence1"),
    "of Quora": (
        "a.csv",
        "id,qid1,qid2,question1,question2,is_duplicate\n1,1,2,vpn is down,no vpn,1\n2,3,4,vpn is down,no mail,0\n",
        "text1=question1, text2=question2, label=is_duplicate",
    ),
    "of STS": (
        "a.csv",
        "split,sentence1,sentence2,score\nmain,vpn is down,no vpn,0.8\nmain,vpn is down,no mail,0.1\n",
        "label=score",
    ),
    "names in any case": ("a.csv", "Text 1,TEXT_2,Label\n" + ROWS.format(1, 0), ""),
    "yes and no": ("a.csv", "text1,text2,label\n" + ROWS.format("Yes", "no"), ""),
    "true and false": ("a.csv", "text1,text2,label\n" + ROWS.format("TRUE", "False"), ""),
    "decimal commas": ("a.csv", "text1;text2;label\nvpn is down;no vpn;0,9\nvpn is down;no mail;0,2\n", "separator ;"),
    "decimal commas alone": ("a.csv", "vpn is down;no vpn;0,9\nvpn is down;no mail;0,2\n", "separator ;"),
    "a line sep=": ("a.csv", "sep=|\r\ntext1|text2|label\r\n" + ROWS.replace(",", "|").format(1, 0), "separator |"),
    "tabs in .csv": ("a.csv", "text1\ttext2\tlabel\n" + ROWS.replace(",", "\t").format(1, 0), "separator tab"),
    "commas in .tsv": ("a.tsv", "text1,text2,label\n" + ROWS.format(1, 0), "separator ,"),
    "a text file": ("a.txt", "text1,text2,label\n" + ROWS.format(1, 0), ""),
    "an index": ("a.csv", ",text1,text2,label\n0,vpn is down,no vpn,1\n1,vpn is down,no mail,0\n", ""),
    "label first": ("a.csv", "1,vpn is down,no vpn\n0,vpn is down,no mail\n", ""),
    "empty cells at the end": ("a.csv", "text1,text2,label\nvpn is down,no vpn,1,,\nvpn is down,no mail,0\n", ""),
    "records": ("a.json", RECORDS, ""),
    "records, a line each, in .json": ("a.json", "\n".join(map(json.dumps, RECORDS)), ""),
    "a list in .jsonl": ("a.jsonl", json.dumps(RECORDS, indent=1), ""),
    "records in .csv": ("a.csv", json.dumps(RECORDS), ""),
    "records in an object": ("a.json", {"count": 2, "data": RECORDS}, 'the list "data"'),
    "records far inside": ("a.json", {"ok": True, "data": {"page": {"rows": RECORDS}}}, 'the list "data.page.rows"'),
    "records beside others": ("a.json", {"users": [{"id": 1}], "pairs": RECORDS}, 'the list "pairs"'),
    "columns beside lists of objects": ("a.json", COLUMNS | {"meta": [{"by": "jo"}, {"by": "al"}]}, ""),
    "records by the names of rows": ("a.json", {"r1": RECORDS[0], "r2": RECORDS[1]}, ""),
    "columns as pandas writes them": ("a.json", {k: dict(enumerate(v)) for k, v in COLUMNS.items()}, ""),
    "texts that are numbers": ("a.jsonl", [row | {"label": str(row["label"])} for row in RECORDS], ""),
    "triplets": ("a.jsonl", [TRIPLET], "text1=anchor, negative=negative, positive=positive"),
    "triplets in CSV": ("a.csv", "query,positive,negative\nvpn is down,no vpn,no mail\n", "text1=query"),
    "triplets of several negatives": (
        "a.csv",
        "anchor,positive,negative_1,negative_2\nvpn is down,no vpn,no mail,\n",
        "negative=negative_1",
    ),
    "query, pos, neg": ("a.jsonl", [BGE], "text1=query, negative=neg, positive=pos"),
    "of Windows": ("a.csv", ("text1,text2,label,who\n" + ROWS.format("1,Zoë", "0,José")).encode("cp1252"), "cp1252"),
    "UTF-16": ("a.csv", ("text1,text2,label\n" + ROWS.format(1, 0)).encode("utf-16"), "utf-16"),
    "UTF-16, big end first": (
        "a.csv",
        b"\xfe\xff" + ("text1,text2,label\n" + ROWS.format(1, 0)).encode("utf-16-be"),
        "utf-16",
    ),
    "UTF-16 without mark": ("a.json", json.dumps(RECORDS).encode("utf-16-le"), "utf-16-le"),
    "UTF-16 without mark, big end first": ("a.json", json.dumps(RECORDS).encode("utf-16-be"), "utf-16-be"),
    "quotes that are texts": (
        "a.tsv",
        'text1\ttext2\tlabel\tby\nvpn is down\tno vpn\t1\t"jo\nvpn is down\tno mail\t0\tal"\n',
        "quotes as they are",
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_says_the_same_pairs(tmp_path: Path, capfd: pytest.CaptureFixture[str], layout: str) -> None:
    name, content, said = LAYOUTS[layout]
    path = write(tmp_path, name, content)
    assert rows_of(read_pairs(path)) == PAIRS
    heard = capfd.readouterr().err
    if said:
        assert heard.startswith(f"{path}: read as ") and said in heard and heard.count("\n") == 1, heard
    else:
        assert not heard


def test_letters_of_other_encodings_are_right(tmp_path: Path) -> None:
    text = "text1,text2,label\nDrucker für Zoë – 5 €,Tür,1\nЗависает,Не печатает,0\n"
    western = text.splitlines(keepends=True)
    for content, reading, row in (
        ("".join(western[:2]).encode("cp1252"), None, ("Drucker für Zoë – 5 €", "Tür", True)),
        (text.encode("utf-16"), None, ("Drucker für Zoë – 5 €", "Tür", True)),
        ((western[0] + western[2]).encode("utf-16-le"), None, ("Зависает", "Не печатает", False)),
        ((western[0] + western[2] * 9).encode("cp1251"), Reading("cp1251"), ("Зависает", "Не печатает", False)),
        ((western[0] + "Tür,für,1\n").encode("mac_roman"), Reading("mac_roman"), ("Tür", "für", True)),
    ):
        assert rows_of(read_pairs(write(tmp_path, "a.csv", content), reading=reading))[0] == row


def test_a_separator_can_be_given(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "text1^text2^label\nvpn is down^no vpn^1\nvpn is down^no mail^0\n")
    assert rows_of(read_pairs(path, reading=Reading(separator="^"))) == PAIRS
    assert "columns text1, text2, label are missing" in refusal(path)
    assert "one character" in refusal(path, Reading(separator="::"))
    path = write(tmp_path, "b.csv", "text1,text2,label\n" + ROWS.replace(",", "\t").format(1, 0))
    assert "columns text1, text2, label are missing" in refusal(path, Reading(separator="tab"))


def test_names_of_columns_do_not_command_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, "a.jsonl", [{"text1": "a", "text2": "b", "is\x1b[2J\nduplicate" + "_" * 999: 1}])
    assert len(read_pairs(path, reading=Reading(columns=("label=is[2Jduplicate",)))) == 1
    heard = capfd.readouterr().err
    assert heard[:-1].isprintable() and "label=is\\x1b[2J\\nduplicate" in heard and len(heard) < len(str(path)) + 500


# ---- triplets and lists


def test_positives_and_negatives_are_rows_of_their_own_and_keep_their_number(tmp_path: Path) -> None:
    rows = [
        {"query": "a", "pos": ["b", "c"], "neg": ["d"], "phase": 1},
        {"query": "e", "pos": "f", "neg": [], "phase": 2},
        {"query": "g", "pos": ["h"], "phase": 2},
    ]
    table = read_pairs(write(tmp_path, "a.jsonl", rows))
    assert rows_of(table) == [
        ("a", "b", True), ("a", "c", True), ("a", "d", False), ("e", "f", True), ("g", "h", True)
    ]  # fmt: skip
    assert table.row.tolist() == [1, 1, 1, 2, 3]
    assert table.phase.tolist() == [1, 1, 1, 2, 2]
    rows[1]["pos"] = ["", None]
    assert refusal(write(tmp_path, "b.jsonl", rows)).startswith("row 2, pos: is blank")
    rows[0]["neg"] = ["d", 5]
    assert refusal(write(tmp_path, "b.jsonl", rows)).startswith("row 1, neg: 5 is not a text")
    assert "no positives" in refusal(write(tmp_path, "c.jsonl", [{"query": "a", "pos": [], "neg": []}]))


def test_rows_that_say_nothing_are_refused(tmp_path: Path) -> None:
    rows = [{"query": "a", "pos": ["b"], "neg": []}, {"query": "c", "pos": [], "neg": []}, {"query": "d", "pos": []}]
    path = write(tmp_path, "a.jsonl", rows)
    assert refusal(path) == "rows 2, 3, pos: no positives and no negatives: add some, or remove the row"
    rows[1]["neg"], rows[2]["neg"] = ["e"], "f"
    assert len(read_pairs(write(tmp_path, "b.jsonl", rows))) == 3


def test_a_key_that_is_misspelt_in_some_rows_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows: list[dict[str, Any]] = [
        {"query": "a", "pos": ["b"], "neg": ["c"], "id": 1},
        {"query": "d", "pos": ["e"], "negs": ["f"], "id": 2},
        {"query": "g", "pos": ["h"], "id": 3},  # which just has none
        {"query": "i", "pos": ["j"], "negs": ["k"]},
    ]
    path = write(tmp_path, "a.jsonl", rows)
    assert len(read_pairs(path)) == 5
    said = "read as utf-8, 2 rows without 'neg' ('negs' there is not read), text1=query, negative=neg, positive=pos"
    assert capfd.readouterr().err == f"{path}: {said}\n"
    del rows[1], rows[2]
    read_pairs(write(tmp_path, "b.jsonl", rows))
    assert "without" not in capfd.readouterr().err
    nested = [{"query": "a", "hits": [{"text": "b", "n": 1}]}, {"query": "c", "hits": [{"text": "d"}], "extra": 1}]
    read_pairs(write(tmp_path, "c.jsonl", nested), reading=Reading(columns=("positive=hits.text",)))
    assert "without" not in capfd.readouterr().err


def test_n_tuples_may_have_several_positives(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    head = "anchor,positive_1,positive_2,negative_1,negative_2,negative_3\n"
    path = write(tmp_path, "a.csv", head + "a,b,c,d,,e\nf,g,,h,i,j\n")
    assert rows_of(read_pairs(path)) == [
        ("a", "b", True), ("a", "c", True), ("a", "d", False), ("a", "e", False),
        ("f", "g", True), ("f", "h", False), ("f", "i", False), ("f", "j", False),
    ]  # fmt: skip
    assert "positive=positive_1 ... positive_2" in capfd.readouterr().err
    labelled = write(tmp_path, "b.csv", "text1,text2,label,positive_1\na,b,0,c\n")  # ours win
    assert rows_of(read_pairs(labelled)) == [("a", "b", False)]


def test_lists_in_a_table_of_texts_are_json(tmp_path: Path) -> None:
    head, row = "query,pos,neg,neg_scores\n", '"[""b"", ""c, \u00fc""]"," [""d""]\n",[0.5]\n'
    table = read_pairs(write(tmp_path, "a.csv", head + "a," + row))
    assert rows_of(table) == [("a", "b", True), ("a", "c, \u00fc", True), ("a", "d", False)]
    assert table.teacher[-1] == 0.5
    for cell in ("['b', 'c']", "['b' 'c']", "[ 'b'\n]"):
        told = refusal(write(tmp_path, "b.csv", f'{head}a,x,,\na,"{cell}",,\n'))
        assert told.startswith("row 2 (line 3), pos: is a list, but not as JSON writes one")
    for cell in ("[2019]", "[urgent] printer [floor 2]", "[" * 10**5, "it's ['x']"):  # texts
        assert rows_of(read_pairs(write(tmp_path, "c.csv", f"anchor,positive\na,{cell}\n"))) == [("a", cell, True)]


def test_positives_alone_are_positive(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "anchor,positive\na,b\nc,d\n")
    assert rows_of(read_pairs(path)) == [("a", "b", True), ("c", "d", True)]
    assert read_pairs(path, label_scale=5).score.tolist() == [1.0, 1.0]
    path = write(tmp_path, "b.csv", "question,answer\na,b\n")  # which may be alike or not
    assert "column label is missing" in refusal(path)
    assert rows_of(read_pairs(path, reading=Reading(columns=("positive=answer",)))) == [("a", "b", True)]


@pytest.mark.parametrize(
    ("name", "content", "advice"),
    [
        ("a.csv", "question,answer\nvpn is down,no vpn\n", ["anchor=question", "positive=answer"]),
        ("a.csv", "sentence1,sentence2\nvpn is down,no vpn\n", ["anchor=sentence1", "positive=sentence2"]),
        ("a.csv", "text1,text2,teacher\nvpn is down,no vpn,0.9\n", ["label=teacher"]),
        (
            "a.csv",
            "query,like,unlike\nvpn is down,no vpn,no mail\n",
            ["anchor=query", "positive=NAME", "negative=NAME"],
        ),
        ("a.tsv", "vpn is down\tno vpn\tno mail\n", ["anchor=NAME", "positive=NAME", "negative=NAME"]),
    ],
)
def test_the_advice_for_files_without_labels_works(tmp_path: Path, name: str, content: str, advice: list[str]) -> None:
    path = write(tmp_path, name, content)
    message = refusal(path)
    given = json.loads(message.rpartition("data.columns = ")[2])
    assert given == advice, message
    if "NAME" in advice[-1]:
        columns = ["1", "2", "3"] if name == "a.tsv" else ["query", "like", "unlike"]
        given = [f"{mapped.partition('=')[0]}={column}" for mapped, column in zip(given, columns, strict=True)]
    assert rows_of(read_pairs(path, reading=Reading(columns=tuple(given)))) == PAIRS[: 1 + ("negative" in message)]


def test_columns_in_memory_go_by_the_same_names() -> None:
    table = pairs_from_columns({"anchor": ["a", "b"], "positive": ["c", "d"], "negative": [["e", "f"], None]}, "memory")
    assert rows_of(table) == [("a", "c", True), ("a", "e", False), ("a", "f", False), ("b", "d", True)]
    assert rows_of(pairs_from_columns({"sentence1": ["a"], "sentence2": ["b"], "score": [0.5]})) == [("a", "b", True)]


# ---- names


def test_columns_can_be_mapped(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    columns = ("text1=Titel A", "text2=Titel B", "label=Gleich?")
    path = write(tmp_path, "a.csv", "Titel A,Titel B,Gleich?,label\n" + ROWS.format("1,x", "0,y"))
    assert rows_of(read_pairs(path, reading=Reading(columns=columns))) == PAIRS
    assert "text1=Titel A, text2=Titel B, label=Gleich?" in capfd.readouterr().err
    other = write(tmp_path, "b.json", RECORDS)
    assert rows_of(read_pairs(other, reading=Reading(columns=columns))) == PAIRS
    assert "none of the columns that were named" in capfd.readouterr().err
    message = refusal(path, Reading(columns=("text1=Titel A", "label=Gleihc")))
    assert "column Gleihc is missing" in message and "nearest: 'Gleich?'" in message and "data.columns" in message


def test_a_margin_that_is_not_learned_is_no_secret(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It is of triplets, and one of two ways to say the same."""
    labelled = write(tmp_path, "a.csv", "text1,text2,label,margin\n" + ROWS.format("1,2.5", "0,1.5"))
    table = read_pairs(labelled)
    assert rows_of(table) == PAIRS and not table.teacher_group.any()
    assert capfd.readouterr().err == f"{labelled}: margin is not read, as it goes with positive and negative\n"
    named = refusal(labelled, Reading(columns=("margin=margin",)))
    assert named.startswith(
        "margin of data.columns goes with positive and negative: name these too, as in data.columns"
    )
    assert rows_of(read_pairs(labelled, reading=Reading(columns=("teacher=margin",)))) == PAIRS
    both = write(tmp_path, "b.jsonl", [TRIPLET | {"teacher": [3, 1], "margin": 2.5}])
    assert "as 'teacher' and as 'margin'" in refusal(both)
    for column, teacher in (("teacher=teacher", [3, 1]), ("margin=margin", [0, -2.5])):
        assert read_pairs(both, reading=Reading(columns=(column,))).teacher.tolist() == teacher


def test_columns_without_header_are_mapped_by_number(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    triples = write(tmp_path, "triples.tsv", "vpn is down\tno vpn\tno mail\n")
    assert "data.columns" in refusal(triples)
    assert rows_of(read_pairs(triples, reading=Reading(columns=("anchor=1", "positive=2", "negative=3")))) == PAIRS
    assert capfd.readouterr().err == f"{triples}: read as text1=1, positive=2, negative=3\n"
    blank = write(tmp_path, "b.tsv", "vpn is down\tno vpn\na\t \n")
    assert refusal(blank, Reading(columns=("anchor=1", "positive=2"))).startswith("row 2, column 2: is blank")
    named = write(tmp_path, "c.jsonl", [TRIPLET])
    assert rows_of(read_pairs(named, reading=Reading(columns=("anchor=1", "positive=2", "negative=3")))) == PAIRS
    assert "none of the columns that were named" in capfd.readouterr().err
    assert "column 4 is missing" in refusal(triples, Reading(columns=("anchor=1", "positive=4")))
    assert "column text1 is missing" in refusal(triples, Reading(columns=("positive=2",)))


@pytest.mark.parametrize("columns", [("title=x",), ("text1",), ("text1=",), ("text1=a", "anchor=b")])
def test_a_mapping_that_is_none_is_refused(tmp_path: Path, columns: tuple[str, ...]) -> None:
    path = write(tmp_path, "a.json", RECORDS)
    with pytest.raises(InputError, match=r"^data\.columns"):
        read_pairs(path, reading=Reading(columns=columns))


# What it is -> name, content, what the one line says.
REFUSED: dict[str, tuple[str, Any, list[str]]] = {
    "two candidates": (
        "a.csv",
        "text1,text2,score,similarity\na,b,1,0\n",
        ["label could be any of 'score', 'similarity'", 'data.columns = ["label=score"]'],
    ),
    "two of ours": ("a.jsonl", [{"text1": "a", "texts1": "b", "text2": "c", "label": 1}], ["text1 could be any of"]),
    "a label and negatives": ("a.jsonl", [TRIPLET | {"score": 0.3}], ["has a label ('score') and negatives"]),
    "words for labels": (
        "snli.csv",
        "premise,hypothesis,gold_label\na,b,entailment\nc,d,contradiction\ne,f,neutral\n",
        ["rows 1, 2, 3 (the first on line 2), gold_label: 'entailment' is not a number: write 1 for pairs that are"],
    ),
    "tabs without header, and more commas": (
        "a.tsv",
        "a, b, c, d\te\tf\ng\th\ti\n",
        ["columns text1, text2, label are missing (found: 'a, b, c, d', 'e', 'f')"],
    ),
    "objects for texts": (
        "a.jsonl",
        [{"query": "a", "positive": [{"id": 1, "text": "b"}], "negative": []}],
        ["positive: an object is not a text: name a key inside it, such as positive.id, positive.text"],
    ),
    "negative labels": (
        "a.csv",
        "text1,text2,label\na,b,1\nc,d,-1\n",
        ["row 2 (line 3), label: -1.0 is not between 0 and 1: write 1 for pairs that are alike, 0 for others"],
    ),
    "labels above the scale": (
        "a.csv",
        "text1,text2,label\na,b,1\nc,d,2\n",
        ["2.0 is not between 0 and 1: correct it, or set data.label_scale (now 1) to the highest label; 0 is"],
    ),
    "tickets": ("t.csv", "Number,Short description,Description\n1,a,b\n", ["holds tickets", "trainer build-pairs"]),
    "tickets in JSON": ("t.json", {"result": [{"number": "1", "summary": "a"}]}, ["holds tickets", "t.json --output"]),
    "nothing alike": (
        "a.csv",
        "Quality,#1 String,#2 String\n1,a,b\n",
        [
            "columns text1, text2, label are missing (found: 'Quality', '#1 String', '#2 String'",
            'data.columns = ["text1=NAME", "text2=NAME", "label=NAME"], by numbers from 1 where the file has no header',
        ],
    ),
    "two lists": ("a.json", {"a": RECORDS, "b": RECORDS}, ["several lists ('a', 'b'), and several of them have"]),
    "no list that fits": ("a.json", {"a": [{"x": 1}], "b": [{"y": 1}]}, ["none of them has the columns"]),
    "an empty list": ("a.json", {"records": []}, ["columns text1, text2, label are missing (found: 'records')"]),
    "lines of cells": ("a.jsonl", '["a", "b", 1]\n["c", "d", 0]\n', ["row 1 is a list: make it an object"]),
    "rows of cells": ("a.json", [["text1", "text2", "label"], ["a", "b", 1]], ["row 1 is a list: make it an object"]),
    "ragged rows": (
        "a.csv",
        "text1,text2,label\n" + "a,b,1\na,b\n" * 9,
        ["rows 2, 4, 6, 8, 10 and 4 more (the first on line 3): 2, ... cell(s) where the first row has 3"],
    ),
    "blank texts": (
        "a.csv",
        "text1,text2,label\n" + "a,b,1\n ,b,1\n" * 20,
        ["rows 2, 4, 6, 8, 10 and 15 more (the first on line 3), text1: is blank"],
    ),
    "texts that are missing": (
        "a.jsonl",
        [{"text1": "a", "text2": "b", "label": 1}] + [{"text1": "a", "label": 1}] * 3,
        ["rows 2, 3, 4, text2: is missing"],
    ),
    "an unnamed encoding": (
        "a.csv",
        "text1,text2,label\nпринтер,экран,1\n".encode("koi8-r"),
        ["western", "set data.encoding"],
    ),
}


def test_a_fixed_scale_is_not_advised_to_be_set(tmp_path: Path) -> None:
    path = write(tmp_path, "sts.csv", "a,b,5\nc,d,50\n")
    with pytest.raises(InputError, match=r"50.0 is not between 0 and 5: write 5 for pairs .*between$") as error:
        read_general(str(path))
    assert "label_scale" not in str(error.value)


def test_what_stands_in_lists_of_objects_has_a_name(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"question": "a", "hits": [{"text": "b", "n": 1}, {"text": "c"}], "misses": [{"text": "d"}]},
        {"question": "e", "hits": [{"text": "f"}], "misses": []},
    ]
    path = write(tmp_path, "a.jsonl", rows)
    table = read_pairs(path, reading=Reading(columns=("positive=hits.text", "negative=misses.text")))
    pairs = [(table.texts[one], table.texts[two]) for one, two in zip(table.text1, table.text2, strict=True)]
    assert pairs == [("a", "b"), ("a", "c"), ("a", "d"), ("e", "f")]
    assert table.label.tolist() == [True, True, False, True]
    assert "positive=hits.text, negative=misses.text" in capfd.readouterr().err


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_go_in_is_refused_in_one_line_that_helps(tmp_path: Path, case: str) -> None:
    name, content, words = REFUSED[case]
    message = refusal(write(tmp_path, name, content))
    assert all(part in message for part in words), message


def test_an_unknown_encoding_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "a.json", RECORDS)
    for name in ("utf-9", "zip", "rot13"):
        assert f"unknown encoding '{name}'" in refusal(path, Reading(encoding=name))
    assert "is not ascii at byte 12 (line 2)" in refusal(write(tmp_path, "b.csv", "text1,text2\né,"), Reading("ascii"))


def test_a_named_encoding_is_of_files_that_do_not_tell_it(tmp_path: Path) -> None:
    rows = [{"text1": "Drucker für Zoë", "text2": "Tür", "label": 1}]
    table, records = "text1,text2,label\nDrucker für Zoë,Tür,1\n", json.dumps(rows, ensure_ascii=False)
    for name, content in (
        ("a.json", records.encode()),
        ("b.jsonl", records[1:-1].encode()),
        ("c.json", records.encode("mac_roman")),  # against the standard, so that only a name helps
        ("d.csv", records.encode()),  # JSON, whatever it is called
        ("e.csv", table.encode("utf-8-sig")),
        ("f.csv", table.encode("utf-16")),
        ("g.csv", table.encode("mac_roman")),
    ):
        read = read_pairs(write(tmp_path, name, content), reading=Reading("mac_roman"))
        assert rows_of(read) == [("Drucker für Zoë", "Tür", True)], name


def test_a_title_above_the_header_is_said(tmp_path: Path) -> None:
    """That of a workbook has one cell, and so would what stands below it."""
    advice = "line 4 looks like the header ('text1', 'text2', 'label'): remove the lines above it"
    title = [["Export"], ["of 2024", "by us"], [], *SHEET]
    assert refusal(workbook(tmp_path / "a.xlsx", title)) == advice
    assert (
        refusal(write(tmp_path, "b.csv", "Export\nof 2024,by us\n\ntext1,text2,label\n" + ROWS.format(1, 0))) == advice
    )
    assert refusal(write(tmp_path, "c.csv", "Export;;\n\n\ntext1;text2;label\na;b;1\n")) == advice
    more = "; or, where the first row is a title, remove it"
    unknown = [["Export"], ["one", "two", "alike"], *SHEET[1:]]
    assert refusal(workbook(tmp_path / "d.xlsx", unknown)).endswith(more)
    assert not refusal(workbook(tmp_path / "e.xlsx", unknown[1:])).endswith(more)
    assert not refusal(write(tmp_path, "f.csv", 'Export\n"of\n')).endswith(more)
    beside = [[*row, *["a note"] * (place == 1)] for place, row in enumerate(SHEET)]
    assert rows_of(read_pairs(workbook(tmp_path / "g.xlsx", beside))) == PAIRS


def test_labels_between_the_ends_are_counted() -> None:
    columns = {"text1": ["a", "b", "c"], "text2": ["d", "e", "f"]}
    assert graded_labels(pairs_from_columns(columns | {"label": [0, 0.5, 1]})).sum() == 1
    assert graded_labels(pairs_from_columns(columns | {"label": [0, 5, 1]}, label_scale=5)).sum() == 1
    assert graded_labels(pairs_from_columns(columns | {"label": [0, True, False]})).sum() == 0


# ---- workbooks and Parquet


def workbook(path: Path, *sheets: list[list[Any]]) -> Path:
    book = pytest.importorskip("openpyxl", reason="needs the extra `data`").Workbook()
    for number, rows in enumerate(sheets):
        sheet = book.worksheets[0] if number == 0 else book.create_sheet()
        sheet.title = f"Page {number + 1}"
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path


SHEET = [["text1", "text2", "label"], ["vpn is down", "no vpn", 1], [None], ["vpn is down", "no mail", 0.0]]


def test_a_workbook_is_read_by_its_first_sheet_with_rows(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert rows_of(read_pairs(workbook(tmp_path / "a.xlsx", SHEET))) == PAIRS
    assert not capfd.readouterr().err
    path = workbook(tmp_path / "named.dat", [], [[None], *SHEET])
    assert rows_of(read_pairs(path)) == PAIRS
    assert 'read as the sheet "Page 2"' in capfd.readouterr().err
    sheet = [["text1", "text2", "label"], [404, True, 1], ["a", "b", None]]
    assert refusal(workbook(tmp_path / "b.xlsx", sheet)).startswith("row 2 (line 3), label: '' is not a number")
    assert "is empty" in refusal(workbook(tmp_path / "c.xlsx", []))


def test_cells_of_a_workbook_are_texts_and_formulas_stay_what_was_saved(tmp_path: Path) -> None:
    path = workbook(tmp_path / "a.xlsx", [["text1", "text2", "label"], [404, True, 1], ["a", '=CONCAT("b")', 1]])
    assert "row 2 (line 3), text2: is blank" in refusal(path)  # never computed: nothing was saved for it
    path = workbook(tmp_path / "b.xlsx", [["text1", "text2", "label"], [404, True, 1]])
    assert rows_of(read_pairs(path)) == [("404", "true", True)]


def test_a_workbook_that_expands_too_far_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = workbook(tmp_path / "a.xlsx", [*SHEET[:2], *[["x" * 500, "y" * 500, 1]] * 400])
    assert len(read_pairs(path)) == 401
    monkeypatch.setattr(text_files, "EXPANSION_ALWAYS_BYTES", 1000)
    monkeypatch.setattr(text_files, "EXPANSION_MAX_RATIO", 2)
    assert "expands to more than" in refusal(path)


def test_a_sheet_of_one_far_cell_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of a few bytes may claim 16,384 cells, a sheet a million rows."""
    path = workbook(tmp_path / "a.xlsx", SHEET)
    far = '<row r="5"><c r="XFD5"><v>1</v></c></row>' + "".join(
        f'<row r="{row}"><c r="XFD{row}"><v>1</v></c></row>' for row in range(6, 500)
    )
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    sheet = "xl/worksheets/sheet1.xml"
    members[sheet] = members[sheet].replace(b"</sheetData>", far.encode() + b"</sheetData>")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    assert len(read_pairs(path)) == 2
    monkeypatch.setattr(text_files, "EXPANSION_ALWAYS_BYTES", 10**6)
    monkeypatch.setattr(text_files, "EXPANSION_MAX_RATIO", 10)
    assert len(read_pairs(path)) == 2  # what the far cells claim is not kept
    wide = [*SHEET[0], *(f"column {i}" for i in range(1900))]
    rows = [["vpn is down", "no vpn", 1]] * 400  # each is as long as the first: 1,903 cells
    assert "expands to more than" in refusal(workbook(tmp_path / "wide.xlsx", [wide, *rows]))


def test_many_short_rows_of_a_workbook_are_no_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library fills each row up to the most columns; what is there is three cells."""
    monkeypatch.setattr(text_files, "EXPANSION_ALWAYS_BYTES", 10**6)
    path = workbook(tmp_path / "a.xlsx", [SHEET[0], *([f"vpn {i}", f"no vpn {i}", 1] for i in range(1000))])
    assert len(read_pairs(path)) == 1000


@pytest.mark.slow
def test_spoilt_workbooks_and_parquet_files_are_rows_or_one_line(tmp_path: Path) -> None:
    frame = pyarrow.table(COLUMNS)
    stream = io.BytesIO()
    parquet.write_table(frame, stream)
    for name, whole in (
        ("a.xlsx", workbook(tmp_path / "w.xlsx", SHEET).read_bytes()),
        ("a.parquet", stream.getvalue()),
    ):
        for place in range(4, len(whole), max(1, len(whole) // 60)):
            path = tmp_path / name
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
            try:
                assert len(read_pairs(path)) > 0
            except InputError as error:
                assert str(error).startswith(f"{path}: ")
            path.write_bytes(whole[:place])
            assert refusal(path)


def write_parquet(path: Path, columns: dict[str, Any]) -> Path:
    parquet.write_table(pyarrow.table(columns), path)
    return path


def test_parquet_holds_pairs_triplets_and_lists(tmp_path: Path) -> None:
    assert rows_of(read_pairs(write_parquet(tmp_path / "a.parquet", COLUMNS | {"when": [None, 1.5]}))) == PAIRS
    decimals = COLUMNS | {"label": [Decimal("0.90"), Decimal("0.10")]}
    assert rows_of(read_pairs(write_parquet(tmp_path / "b.dat", decimals))) == PAIRS
    lists = {name: [cell] for name, cell in BGE.items()}
    assert rows_of(read_pairs(write_parquet(tmp_path / "c.parquet", lists))) == PAIRS
    assert "text1, text2, label are missing" in refusal(write_parquet(tmp_path / "d.parquet", {"x": [1]}))
    assert "no rows" in refusal(write_parquet(tmp_path / "e.parquet", {name: [] for name in COLUMNS}))


def test_dotted_names_are_those_of_json_in_parquet_and_arrow(tmp_path: Path) -> None:
    rows = [
        {
            "query": "a",
            "hits": [{"id": 1, "text": "b"}, {"id": 2, "text": "c"}],
            "miss": {"far": {"text": "d"}},
            "n.o": 1,
        },
        {"query": "e", "hits": [{"id": 3, "text": "f"}], "miss": None, "n.o": 2},
    ]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    reading = Reading(columns=("positive=hits.text", "negative=miss.far.text", "phase=n.o"))
    expected = read_pairs(write(tmp_path, "a.jsonl", rows), reading=reading)
    assert rows_of(expected) == [("a", "b", True), ("a", "c", True), ("a", "d", False), ("e", "f", True)]
    for path in (write_parquet(tmp_path / "a.parquet", columns), write_arrow(tmp_path / "saved", columns)):
        assert read_pairs(path, reading=reading).fingerprint() == expected.fingerprint()
        assert "column hits.txet is missing" in refusal(path, Reading(columns=("positive=hits.txet", "anchor=query")))
    deep = {"query": "a", "hits": {"1": {"2": {"3": {"4": "b"}}}}}  # of which JSON names no more levels either
    levels = write_parquet(tmp_path / "deep.parquet", {name: [cell] for name, cell in deep.items()})
    for path in (levels, write(tmp_path, "b.jsonl", [deep])):
        assert "hits.1.2.3.4 is missing" in refusal(path, Reading(columns=("positive=hits.1.2.3.4", "anchor=query")))
        assert "1.2.3: an object is not" in refusal(path, Reading(columns=("positive=hits.1.2.3", "anchor=query")))


def test_a_column_that_stands_twice_in_parquet_is_refused(tmp_path: Path) -> None:
    twice = pyarrow.table([["a"], ["b"], ["c"], [1]], names=["text1", "Other", "Other", "label"])
    parquet.write_table(twice, tmp_path / "a.parquet")
    assert "exists 2 times" in refusal(tmp_path / "a.parquet", Reading(columns=("text2=Other",)))


def test_parquet_that_expands_too_far_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = {"text1": ["x" * 1000] * 4000, "text2": ["y"] * 4000, "label": [1] * 4000}  # 4 MB as a few bytes
    path = write_parquet(tmp_path / "a.parquet", columns)
    assert path.stat().st_size < 20_000 and len(read_pairs(path)) == 4000
    monkeypatch.setattr(text_files, "EXPANSION_ALWAYS_BYTES", 10**6)
    assert "expands to more than" in refusal(path)


# ---- everywhere that pairs are read


@pytest.mark.slow
def test_lint_takes_the_options(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = "".join(f"frage {i} geht nicht;antwort {i} für alle;{i % 2}\n" for i in range(40))
    path = write(tmp_path, "a.csv", ("Frage;Antwort;Gleich\n" + rows).encode("cp1252"))
    columns = ["--columns", "text1=Frage", "text2=Antwort", "label=Gleich"]
    assert cli(["lint", "--pairs", str(path), *columns, "--encoding", "latin-1", "--separator", ";"]) in (0, 1)
    assert "read as latin-1, separator ;, text1=Frage" in capfd.readouterr().err
    assert cli(["lint", "--pairs", str(path), *columns[:2]]) == 2
    assert "columns text2, label are missing" in capfd.readouterr().err


CASES = Path(__file__).resolve().parents[2] / "shared" / "cases" / "pairs"
COUNTS = {"anchor_positive.csv": (120, 120), "dev.csv": (53, 40), "pos_only.csv": (80, 80)}


def test_the_sample_pair_files_go_in() -> None:
    if not CASES.is_dir():
        pytest.skip("the folder of samples ../shared/cases is not here")
    for path in CASES.iterdir():
        table = read_pairs(path)
        assert (len(table), int(table.label.sum())) == COUNTS.get(path.name, (240, 120)), path.name


# ---- folders of datasets


def saved_datasets(root: Path) -> dict[str, Path]:
    """What the library `datasets` writes: three shards, several splits, one split, and the hub's Parquet shards."""
    datasets = pytest.importorskip("datasets", reason="the library datasets is not here")
    classes = datasets.ClassLabel(names=["not_duplicate", "duplicate"])
    columns = {"sentence1": datasets.Value("string"), "sentence2": datasets.Value("string"), "label": classes}
    rows = {"sentence1": [f"a {i}" for i in range(5)], "sentence2": ["b"] * 5, "label": [1, 0, 1, 0, 1]}
    data = datasets.Dataset.from_dict(rows, features=datasets.Features(columns))
    data.save_to_disk(root / "saved", num_shards=3)
    datasets.DatasetDict(train=data, test=data).save_to_disk(root / "splits")
    datasets.DatasetDict(train=data).save_to_disk(root / "split")
    (root / "hub" / "data").mkdir(parents=True)
    for number in range(2):
        shard = data.shard(2, number, contiguous=True)
        shard.to_parquet(root / "hub" / "data" / f"train-0000{number}-of-00002.parquet")
    data.to_parquet(root / "hub" / "data" / "test-00000-of-00001.parquet")
    return {name: root / name for name in ("saved", "splits/train", "split", "hub/train", "hub/test")}


@pytest.mark.slow
def test_folders_of_datasets_are_read_shard_after_shard(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folders = saved_datasets(tmp_path)
    expected = [(f"a {i}", "b", i % 2 == 0) for i in range(5)]
    for path in folders.values():
        assert rows_of(read_pairs(path)) == expected, path
    for name in ("splits", "hub"):
        message = refusal(tmp_path / name)
        assert all(f"{tmp_path / name / split}" in message for split in ("train", "test")), message
    assert "file not found" in refusal(tmp_path / "hub" / "dev")
    assert "none of a dataset" in refusal(tmp_path)
    assert cli(["lint", "--pairs", str(folders["saved"]), "--eval", str(folders["hub/test"])]) in (0, 1)
    # A folder that is not whole, names that lead out of it, a shard that is damaged: one line each.
    saved = folders["saved"]
    shard = saved / "data-00001-of-00003.arrow"
    whole = shard.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:200] + bytes(200) + whole[400:]):
        shard.write_bytes(content)
        assert any(words in refusal(saved) for words in ("cannot be read as Arrow", "its files differ"))
    shard.unlink()
    assert "data-00001-of-00003.arrow, which state.json names, is missing" in refusal(saved)
    for state in ('{"_data_files": [{"filename": "../x.arrow"}]}', "[]", "{", '{"_data_files": []}'):
        (saved / "state.json").write_text(state)
        with pytest.raises(InputError, match="does not name the files"):
            read_pairs(saved)


def test_a_folder_of_shards_is_read_whole_or_not_at_all(tmp_path: Path) -> None:
    """Names say how many there are; each may end in a hash of its own."""
    hub, data = tmp_path / "hub", tmp_path / "hub" / "data"
    data.mkdir(parents=True)
    for number in range(3):
        write_parquet(data / f"train-0000{number}-of-00003.parquet", COLUMNS)
    write_parquet(data / "test-00001-of-00009.parquet", COLUMNS)  # which is not asked for
    assert rows_of(read_pairs(hub / "train")) == 3 * PAIRS
    assert refusal(hub / "test").startswith(
        "test-00000-of-00009.parquet (and 7 more) is missing: copy the whole folder"
    )
    (data / "test-00001-of-00009.parquet").unlink()
    stale = write_parquet(data / "train-00000-of-00001.parquet", COLUMNS)
    both = "holds its rows more than once, as train-...-of-00001 and train-...-of-00003: remove the older files"
    assert refusal(hub) == refusal(hub / "train") == both
    stale.rename(data / "train-00000-of-00003-0a1b.parquet")
    assert refusal(hub) == "has 4 files of train whose names say 3: remove the older ones"
    (data / "train-00000-of-00003.parquet").unlink()
    assert rows_of(read_pairs(hub)) == 3 * PAIRS
    (data / "train-00001-of-00003.parquet").unlink()
    assert refusal(hub) == "train-00001-of-00003.parquet is missing: copy the whole folder again"


def write_arrow(folder: Path, columns: dict[str, Any], features: dict[str, Any] | None = None) -> Path:
    """A saved dataset of one shard, its classes noted as `datasets` does."""
    noted = {name: {"names": names, "_type": "ClassLabel"} for name, names in (features or {}).items()}
    table = pyarrow.table(columns).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": noted}})})
    folder.mkdir()
    with pyarrow.ipc.new_stream(folder / "data.arrow", table.schema) as stream:
        stream.write_table(table)
    write(folder, "state.json", {"_data_files": [{"filename": "data.arrow"}]})
    return folder


def test_classes_are_their_names_and_two_of_a_label_0_and_1(tmp_path: Path) -> None:
    pairs = {"text1": ["a", "b"], "text2": ["c", "d"], "label": [0, 1]}
    categories = {"category1": [1, 0], "category2": [0, -1]}
    names = {"category1": ["net", "mail"], "category2": ["x", "y"]}
    table = read_pairs(write_arrow(tmp_path / "two", pairs | categories, names | {"label": ["other", "same"]}))
    assert table.label.tolist() == [False, True]
    assert table.categories1 == ["mail", "net"] and table.categories2 == ["x", ""]
    named = read_pairs(write_arrow(tmp_path / "words", pairs, {"label": ["yes", "no"]}))
    assert named.label.tolist() == [True, False]  # by what they say, not by their order
    three = write_arrow(tmp_path / "three", pairs, {"label": ["entailment", "neutral", "contradiction"]})
    assert "label has 3 classes ('entailment', 'neutral', 'contradiction')" in refusal(three)
    unnamed = read_pairs(write_arrow(tmp_path / "unnamed", pairs, {"label": None}))
    assert unnamed.label.tolist() == [False, True]  # a damaged note is none
    lists = {"query": ["q"], "pos": [["p", "r"]], "neg": [["n"]]}
    assert rows_of(read_pairs(write_arrow(tmp_path / "lists", lists))) == [
        ("q", "p", True),
        ("q", "r", True),
        ("q", "n", False),
    ]


@pytest.mark.parametrize(
    ("zero", "one", "is_inverted"),
    [
        ("entailment", "not_entailment", True),
        ("same", "different", True),
        ("Similar", "Dissimilar", True),
        ("duplicate", "non-duplicate", True),
        ("dup", "not_duplicate", True),
        ("match", "NoMatch", True),
        ("related", "Unrelated", True),
        ("not_duplicate", "duplicate", False),
        ("not_equivalent", "equivalent", False),
        ("different", "not_different", False),
        ("other", "notable", False),
    ],
)
def test_which_class_is_alike_is_said_and_never_against_its_name(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], zero: str, one: str, is_inverted: bool
) -> None:
    path = write_arrow(
        tmp_path / "x", {"text1": ["a", "b"], "text2": ["c", "d"], "label": [0, 1]}, {"label": [zero, one]}
    )
    if is_inverted:
        fault = f"label has '{zero}' as class 0, '{one}' as class 1, but 1 is alike"
        assert refusal(path) == f"{fault}: write the labels anew, 1 for '{zero}' and 0 for '{one}'"
    else:
        assert read_pairs(path).label.tolist() == [False, True]
        assert capfd.readouterr().err == f"{path}: read as label: '{zero}' is 0, '{one}' is 1\n"


def test_a_list_among_the_features_hides_no_classes(tmp_path: Path) -> None:
    """As `datasets` notes a column of lists."""
    noted = {"label": {"names": ["same", "different"], "_type": "ClassLabel"}, "tags": [{"dtype": "string"}]}
    table = pyarrow.table(COLUMNS).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": noted}})})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert "but 1 is alike" in refusal(tmp_path / "a.parquet")


def test_arrow_that_stands_for_more_than_it_holds_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = pyarrow.array(["x" * 100] * 50)
    encoded = {"text1": texts.dictionary_encode(), "text2": texts, "label": [1] * 50}
    assert "text1 is of the type dictionary" in refusal(write_arrow(tmp_path / "dictionary", encoded))
    plain = write_arrow(tmp_path / "plain", encoded | {"text1": texts})
    assert len(read_pairs(plain)) == 50
    monkeypatch.setattr(text_files, "EXPANSION_ALWAYS_BYTES", 1000)
    monkeypatch.setattr(text_files, "EXPANSION_MAX_RATIO", 0.5)
    assert "expands to more than" in refusal(plain)
