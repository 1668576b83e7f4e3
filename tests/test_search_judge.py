"""Judging by search: corpora from files, the verdict, the command."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from trainer.data.pairs import pairs_from_columns
from trainer.data.search_corpus import corpus_of_pairs
from trainer.data.ticket_corpus import corpus_of_tickets, read_texts
from trainer.data.ticket_table import Columns
from trainer.errors import InputError
from trainer.evaluation.assessment import assess_search, surely_below_zero
from trainer.evaluation.search_metrics import NAMES
from trainer.evaluation.verdict import Verdict, decide
from trainer.main import cli

LINKED = Columns(duplicate_of="duplicate_of")
TICKETS = [  # number, title, body, duplicate_of, opened, site
    ("T1", "printer jam", "paper stuck on floor 2", "", "2024-01-05 10:00", "a"),
    ("T2", "printer is jammed", "the paper is stuck", "T1", "2024-01-03 10:00", "a"),
    ("T3", "vpn drops", "every hour", "", "2024-01-01 10:00", "b"),
    ("T4", "PRINTER  jam", "Paper stuck on floor 2", "T1", "2024-01-07 10:00", "b"),  # a copy of T1
    ("T5", "vpn is gone", "again", "T3", "2024-01-01 10:00", "a"),  # opened with T3
    ("T6", "mail bounces", "", "T99", "2024-01-02 10:00", "a"),
    ("T7", "mail comes back", "to me", "T99", "2024-01-09 10:00", "a"),
    ("T8", "screen is black", "after the update", "", "2024-01-04 10:00", "b"),
    ("", "", "", "", "2024-01-04 10:00", "b"),  # says nothing
    ("T8", "screen is black", "still, after the update", "", "2024-01-06 10:00", "b"),  # T8 once more
]
HEADER = ("number", "short_description", "description", "duplicate_of", "opened_at", "site")


def write(path: Path, rows: list[tuple[str, ...]] = TICKETS, header: tuple[str, ...] = HEADER) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def right_answers(path: Path, columns: Columns, queries: str = "") -> dict[str, tuple[set[str], set[str]]]:
    """Of each query's text: the texts that are right, and those that are no candidates."""
    corpus = corpus_of_tickets(path, columns, queries)
    read = {}
    for q, query in enumerate(corpus.queries):
        right, barred = (
            {corpus.texts[text] for text in links[q].nonzero()[1]} for links in (corpus.relevant, corpus.excluded)
        )
        late = set(corpus.texts[corpus.limits[q] :]) if corpus.limits is not None else set()
        read[corpus.texts[query]] = right, barred | late
    return read


J1, J2, J4 = (
    "printer jam\npaper stuck on floor 2",
    "printer is jammed\nthe paper is stuck",
    "PRINTER  jam\nPaper stuck on floor 2",
)
V3, V5, M6, M7 = "vpn drops\nevery hour", "vpn is gone\nagain", "mail bounces", "mail comes back\nto me"


def test_who_searches_for_what(tmp_path: Path) -> None:
    """Chains and links to tickets that are not there tie; copies are neither right nor candidates."""
    assert right_answers(write(tmp_path / "t.csv"), LINKED) == {
        J1: ({J2}, {J1, J4}),
        J2: ({J1, J4}, {J2}),
        J4: ({J2}, {J1, J4}),
        V3: ({V5}, {V3}),
        V5: ({V3}, {V5}),
        M6: ({M7}, {M6}),
        M7: ({M6}, {M7}),
    }
    corpus = corpus_of_tickets(tmp_path / "t.csv", LINKED)
    expected = {
        "read": 10,
        "without_text": 1,
        "repeated_numbers": 1,
        "texts": 8,
        "links": 5,
        "links_to_unknown_tickets": 2,
    }
    assert {name: corpus.facts[name] for name in expected} == expected


def test_only_earlier_tickets_are_found_where_there_is_a_date(tmp_path: Path) -> None:
    columns = Columns(duplicate_of="duplicate_of", date="opened_at")
    read = right_answers(write(tmp_path / "t.csv"), columns)
    assert {query: right for query, (right, _) in read.items()} == {J1: {J2}, J4: {J2}, M7: {M6}}
    assert read[J1][1] == {J1, J4, M7}  # itself, its copy, and what came later


@pytest.mark.parametrize(
    "dates",
    [
        ["2024-01-05T10:00:00Z", "2024-01-03T12:00:00+02:00", "2024-01-06"],
        ["05.01.2024 10:00", "03.01.2024 10:00", "06.01.2024 00:00"],
        ["01/25/2024", "01/03/2024", "02/06/2024"],
        ["1704448800", "1704276000", "1704499200.0"],
        ["5 Jan 2024", "3 Jan 2024", "6 Jan 2024"],
        ["05/Jan/24 10:00 AM", "03/Jan/24 1:15 PM", "06/Jan/24 12:00 AM"],  # Jira
        ["05-JAN-24", "03-JAN-24", "06-JAN-24"],  # Oracle
        ["2024-01-05 10:00:00 UTC", "2024-01-05 10:00:00 +0200", "2024-01-05 10:00:00 -01:00"],
    ],
)
def test_dates_are_read_as_they_are_written(tmp_path: Path, dates: list[str]) -> None:
    rows = [(f"T{i}", f"text {i}", "", "T1" if i else "", date, "") for i, date in enumerate(dates)]
    corpus = corpus_of_tickets(write(tmp_path / "t.csv", rows), Columns(duplicate_of="duplicate_of", date="opened_at"))
    assert corpus.texts == ["text 1", "text 0", "text 2"]


def test_some_tickets_search_among_all(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv")
    assert set(right_answers(path, LINKED, "site=b")) == {V3, J4}
    assert set(right_answers(path, Columns(cluster="site"), "duplicate_of=T1")) == {J2, J4}


def test_what_a_pair_labels_as_not_alike_is_no_right_answer() -> None:
    """Although both are like a third; it stays a candidate, which a search should not bring up."""
    pairs = [("a", "b", 1), ("b", "c", 1), ("a", "c", 0), ("c", "d", 1), ("d", "c", 0)]
    columns = dict(zip(("text1", "text2", "label"), map(list, zip(*pairs, strict=True)), strict=True))
    corpus = corpus_of_pairs(pairs_from_columns(columns, "p.json"))
    right = {
        corpus.texts[query]: {corpus.texts[place] for place in corpus.relevant[row].indices}
        for row, query in enumerate(corpus.queries)
    }
    # A pair that is labelled both ways stays one.
    assert right == {"a": {"b", "d"}, "b": {"a", "c", "d"}, "c": {"b", "d"}, "d": {"a", "b", "c"}}
    assert not any(
        corpus.excluded[row, corpus.texts.index("c")] for row, query in enumerate(corpus.queries) if query == 0
    )


def test_a_corpus_of_pairs_has_the_texts_of_both_files_once() -> None:
    columns = {"texts1": ["a b", "b c", "x y", "A  B"], "texts2": ["b c", "c d", "q r", "z z"], "labels": [1, 1, 0, 0]}
    corpus = corpus_of_pairs(pairs_from_columns(columns, "p.json"), ["C D", "new one", "x  y"], "more.csv")
    assert corpus.source == "p.json among more.csv"
    assert sorted(corpus.texts) == ["a b", "b c", "c d", "new one", "q r", "x y", "z z"]
    right = {
        corpus.texts[query]: {corpus.texts[text] for text in corpus.relevant[q].nonzero()[1]}
        for q, query in enumerate(corpus.queries)
    }
    assert right == {"a b": {"b c", "c d"}, "b c": {"a b", "c d"}, "c d": {"a b", "b c"}}
    assert (corpus.excluded.toarray() == np.eye(7)[corpus.queries]).all()


@pytest.mark.parametrize(
    ("columns", "queries", "message"),
    [
        (Columns(duplicate_of="Duplicate_off"), "", r"column Duplicate_off is missing .*nearest: 'duplicate_of'.*"),
        (Columns(cluster="sites"), "", r"column sites is missing .*nearest: 'site'.*--cluster-column"),
        (Columns(duplicate_of="duplicate_of", date="opened"), "", r"column opened is missing .*nearest: 'opened_at'.*"),
        (Columns(), "", "which tickets are the same problem.*--duplicate-column"),
        (Columns(duplicate_of="site"), "", "10 of 10 links name tickets that are not in the file"),
        (LINKED, "site", "--queries site: write COLUMN=VALUE"),
        (LINKED, "site=c", "no row has site = 'c'; it has 'a', 'b'"),
        (LINKED, "sit=c", "column sit is missing .*nearest: 'site'.*--queries"),
        (Columns(duplicate_of="duplicate_of", date="site"), "", "row 1 .*, site: 'a' is no date"),
    ],
)
def test_what_cannot_be_judged_is_said_in_one_line(
    tmp_path: Path, columns: Columns, queries: str, message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        corpus_of_tickets(write(tmp_path / "t.csv"), columns, queries)
    assert "\n" not in str(caught.value)


def test_no_query_with_an_answer_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", [TICKETS[0], TICKETS[3]])  # a ticket and its copy
    with pytest.raises(InputError, match="no ticket has a known duplicate that is another text, so nothing"):
        corpus_of_tickets(path, LINKED)
    for link, said in (
        ("", "(0 of 2 cells filled)"),
        (None, "(2 of 2 cells filled); 2 of 2 links name the ticket itself"),
    ):
        rows = [(n, f"text {n}", "", n if link is None else link, "", "") for n in ("T1", "T2")]
        with pytest.raises(InputError, match=re.escape(f"check duplicate_of {said}")):
            corpus_of_tickets(write(tmp_path / "t.csv", rows), LINKED)
    path = write(tmp_path / "t.csv", [TICKETS[2], TICKETS[4]])  # both opened at once
    assert len(corpus_of_tickets(path, LINKED).queries) == 2
    with pytest.raises(InputError, match=r"another text and earlier, so nothing.*column of dates, opened_at"):
        corpus_of_tickets(path, Columns(duplicate_of="duplicate_of", date="opened_at"))


def test_links_that_miss_are_counted_unless_all_do_and_may_be_web_addresses(tmp_path: Path, capfd) -> None:
    links = ["", "https://bugs.example.org/show_bug.cgi?id=T1", "https://b.example/browse/X9", "X8", "T4"]
    rows = [(f"T{i}", f"text {i}", "", link, "", "") for i, link in enumerate(links)]
    corpus = corpus_of_tickets(write(tmp_path / "t.csv", [*rows, ("T5", "text 5", "", links[1], "", "")]), LINKED)
    assert corpus.facts["links_to_unknown_tickets"] == 2 and corpus.facts["links_to_themselves"] == 2
    assert len(corpus.queries) == 2 and "category" not in "".join(capfd.readouterr())
    rows = [(f"T{i}", f"text {i}", "", f"https://bugs.example.org/show_bug.cgi?id=171669{i}", "", "") for i in range(2)]
    with pytest.raises(InputError, match=r"2 of 2 links .*id=1716690' beside"):
        corpus_of_tickets(write(tmp_path / "t.csv", rows), LINKED)


@pytest.mark.parametrize("columns", [Columns(), LINKED])
def test_pairs_are_no_tickets(tmp_path: Path, columns: Columns) -> None:
    path = write(tmp_path / "p.csv", [("a", "b", "1")], ("text1", "text2", "label"))
    with pytest.raises(InputError, match="holds pairs, not tickets: name a file of tickets"):
        read_texts(path, columns)


def test_an_ambiguous_date_is_refused(tmp_path: Path) -> None:
    rows = [(f"T{i}", f"text {i}", "", "T1", f"0{i + 1}/02/2024", "") for i in range(3)]
    with pytest.raises(InputError, match=r"row 1 .*, opened_at: '01/02/2024' may be day first or month first"):
        corpus_of_tickets(write(tmp_path / "t.csv", rows), Columns(duplicate_of="duplicate_of", date="opened_at"))


# ---- the verdict

CORPUS = {"texts": 1000, "source": "tickets.csv"}


def values(count: int, **shares: float) -> dict[str, dict[str, np.ndarray]]:
    """System -> metric -> [2, Q], 1 for a share of the queries; a smaller share is part of a larger one."""
    order = np.random.default_rng(0).permutation(count)
    rows = {system: np.tile((order < share * count).astype(float), (2, 1)) for system, share in shares.items()}
    return {system.replace("_and_", "+"): dict.fromkeys(NAMES, row) for system, row in rows.items()}


def test_intervals_are_those_of_drawing_whole_clusters() -> None:
    """Of equal clusters of 4: four times the width that single queries would give, over 2."""
    clusters = np.repeat(np.arange(150), 4)
    row = np.repeat(np.random.default_rng(1).random(150) < 0.5, 4).astype(float)[None]
    assessment = assess_search({"model": dict.fromkeys(NAMES, row)}, clusters, (8,), **CORPUS, resamples=2000)
    low, high = assessment.intervals["model"]["8"]["mrr@10"]
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.25 / 150), rel=0.1)
    assert assessment.metrics["model"]["8"]["mrr@10"] == pytest.approx(row.mean())
    assert assessment.groups["count"] == 150 and decide(assessment, "mrr@10").verdict is None
    single = assess_search({"model": dict.fromkeys(NAMES, row)}, np.arange(600), (8,), **CORPUS, resamples=2000)
    assert np.diff(single.intervals["model"]["8"]["mrr@10"])[0] == pytest.approx((high - low) / 2, rel=0.1)


@pytest.mark.parametrize(
    ("before", "after", "verdict", "words"),
    [
        (0.5, 0.62, Verdict.BETTER, "deploy: yes, because mrr@10 is surely better at every dim"),
        (0.5, 0.5, Verdict.NOT_BETTER, "deploy: no, because mrr@10 is not better at 8, 64 dims"),
        (0.5, 0.503, Verdict.UNCLEAR, "deploy: not on this evidence"),
        (0.62, 0.5, Verdict.NOT_BETTER, "at finding the right ticket: success@10 0.620 -> 0.500 [-0.1"),
    ],
)
def test_the_verdict_and_its_sentence(before: float, after: float, verdict: Verdict, words: str) -> None:
    assessment = assess_search(values(400, model=after, baseline=before), np.arange(400), (8, 64), **CORPUS)
    decision = decide(assessment, "mrr@10")
    said = decision.sentences
    assert decision.verdict == verdict and said[0].startswith(f"{verdict}: ") and words in " ".join(said)
    figures = f"first five for {100 * before:.0f} -> {100 * after:.0f} of 100 tickets ["
    assert figures in " ".join(said)
    noticed = {Verdict.BETTER: "users will notice that 12 more of 100", Verdict.UNCLEAR: "is not shown"}
    assert noticed.get(verdict, "") in " ".join(said)


@pytest.mark.parametrize(
    ("after", "words", "both", "deploy", "beside"),
    [
        (
            0.6,
            0.8,
            0.7,
            "deploy: no, because BM25, a search by words without any model, finds more; ",
            "are worse than BM25",
        ),
        (0.6, 0.8, 0.8, "deploy: no, because BM25", "It adds nothing to BM25 that is sure"),
        (
            0.6,
            0.8,
            0.9,
            "deploy: beside BM25, a search by words, not in its place",
            "together are better than the model",
        ),
        (0.6, 0.6, 0.6, "deploy: yes, because mrr@10 is surely better", "It adds nothing to BM25 that is sure"),
    ],
)
def test_a_model_that_loses_to_words_is_told_so_where_it_says_deploy(
    after: float, words: float, both: float, deploy: str, beside: str
) -> None:
    found = values(400, model=after, baseline=0.5, bm25=words, bm25_and_model=both)
    said = decide(assess_search(found, np.arange(400), (8, 64), **CORPUS), "mrr@10").sentences
    assert said[0].startswith("BETTER: ") and deploy in said[0] and beside in " ".join(said[1:])


def test_few_clusters_tell_nothing_with_a_baseline_and_without() -> None:
    found = values(5, model=0.6, baseline=0.5, bm25=0.4, bm25_and_model=0.4)
    for systems in (found, {name: each for name, each in found.items() if name != "baseline"}):
        said = decide(assess_search(systems, np.arange(5), (8, 64), **CORPUS), "mrr@10").sentences
        assert "cannot be told: " in said[-1] and not any("BM25" in sentence for sentence in said)


def test_gaining_by_the_metric_and_losing_on_search_is_not_better_and_said_first() -> None:
    figures = values(400, model=0.6, baseline=0.5)
    lost = values(400, model=0.45, baseline=0.5)
    for system in figures:
        figures[system] = figures[system] | {
            "success@10": np.stack([lost[system]["success@10"][0], figures[system]["mrr@10"][0]])
        }
    assessment = assess_search(figures, np.arange(400), (8, 64), **CORPUS)
    decision = decide(assessment, "mrr@10")
    assert set(decision.verdicts.values()) == {Verdict.BETTER}
    assert decision.verdict == Verdict.NOT_BETTER and assessment.surely_worse == [("success@10", "8")]
    first = decision.sentences[0]
    assert "success@10 0.500 -> 0.450 [-0." in first and first.endswith("] at 8 dims; deploy: no.")


def test_surely_below_zero_keeps_its_error_for_the_whole_family() -> None:
    """One of forty at 2 % is luck; Holm's procedure goes on where others are beyond doubt."""
    rng = np.random.default_rng(0)
    drawn = np.sort(rng.normal(size=1000))
    barely = drawn - drawn[980]  # 2 % are above zero
    nothing = {f"same{i}": rng.normal(size=1000) for i in range(39)}
    assert surely_below_zero({"one": barely}) == ["one"]
    assert surely_below_zero({"one": barely} | nothing) == []
    assert surely_below_zero({"sure": drawn - 10, "one": barely}) == ["sure", "one"]
    assert surely_below_zero({"unknown": np.full(1000, np.nan)}) == []
    # A hundred resamples that are all below zero cannot be sure of one in ten at a time.
    few = {f"one{i}": np.full(100, -1.0) for i in range(10)}
    assert surely_below_zero(few) == [] and surely_below_zero({"one": few["one0"]}) == ["one"]


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        ({"model": 0.4, "bm25": 0.6, "bm25_and_model": 0.6}, ("loses to BM25", "adds nothing to BM25")),
        ({"model": 0.6, "bm25": 0.6, "bm25_and_model": 0.6}, ("not surely better than BM25", "adds nothing to BM25")),
        (
            {"model": 0.4, "bm25": 0.6, "bm25_and_model": 0.7},
            ("loses to BM25", "together are better than the model alone"),
        ),
        ({"model": 0.7, "bm25": 0.5, "bm25_and_model": 0.6}, ("beats BM25", "together are worse than the model alone")),
        ({"model": 0.502, "bm25": 0.5, "bm25_and_model": 0.5}, ("not surely better than BM25", "adds nothing")),
    ],
)
def test_what_a_model_is_worth_beside_bm25(shares: dict[str, float], words: tuple[str, str]) -> None:
    assessment = assess_search(values(500, **shares), np.arange(500), (8, 64), **CORPUS)
    alone, both = decide(assessment, "mrr@10").sentences[-2:]
    assert words[0] in alone and words[1] in both


def test_a_smaller_dim_that_loses_to_bm25_is_named() -> None:
    figures = values(500, model=0.7, bm25=0.5, bm25_and_model=0.7)
    worse = values(500, model=0.3)["model"]["mrr@10"]
    figures["model"] = {name: np.stack([worse[0], row[1]]) for name, row in figures["model"].items()}
    said = decide(assess_search(figures, np.arange(500), (8, 64), **CORPUS), "mrr@10").sentences
    assert "beats BM25" in said[2] and said[3].startswith("Cut to 8 dims it loses to BM25: mrr@10 0.500 -> 0.300 [-0.")


def test_few_clusters_give_no_interval_and_no_verdict_that_is_sure() -> None:
    assessment = assess_search(values(30, model=0.9, baseline=0.1), np.arange(30) % 3, (8, 64), **CORPUS)
    decision, reason = decide(assessment, "mrr@10"), "there are 3.0 clusters of duplicates to draw from"
    assert reason in assessment.undefined["success@10"] and reason in decision.sentences[2]
    assert decision.verdict == Verdict.UNCLEAR and "(no interval)" in decision.sentences[0]


# ---- the command


def test_the_command_judges_tickets_and_pairs(
    tmp_path: Path, tiny_model: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    tickets, model = write(tmp_path / "t.csv"), str(tiny_model("mpnet"))
    asked = ["evaluate", "--model", model, "--baseline", model, "--resamples", "100", "--dims", "64,16"]
    given = ["--tickets", str(tickets), "--duplicate-column", "DUPLICATE_OF", "--json", str(tmp_path / "found.json")]
    assert cli([*asked, *given]) == 0
    record = json.loads((tmp_path / "found.json").read_text())
    assert record["metrics"].keys() == {"bm25", "model", "baseline", "bm25+model", "bm25+baseline"}
    assert record["metrics"]["model"].keys() == {"16", "64"} and record["metrics"]["model"]["64"].keys() == set(NAMES)
    assert record["metrics"]["model"] == record["metrics"]["baseline"]
    assert record["metrics"]["bm25"]["16"] == record["metrics"]["bm25"]["64"]
    assert record["metrics"]["bm25"]["64"]["success@5"] > 0.5
    shown = capsys.readouterr().err
    assert "7 queries among 8 texts" in shown and "2 of 5 links name tickets that are not in the file" in shown
    assert ": the right ticket is among the first five for" in shown and "BM25 and the model" in shown
    pairs = tmp_path / "p.json"
    pairs.write_text(json.dumps({"texts1": ["vpn drops", "mail"], "texts2": ["no vpn", "printer"], "labels": [1, 0]}))
    assert cli([*asked, "--pairs", str(pairs), "--corpus", str(tickets)]) == 0
    assert "2 queries among 12 texts" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--pairs FILE, or --tickets FILE with --duplicate-column"),
        (["--pairs", "p.json", "--queries", "part=dev"], "--queries means nothing for"),
        (["--tickets", "t.csv", "--prevalence", "0.01"], "--prevalence means nothing for"),
        (["--tickets", "t.csv", "--corpus", "t.csv"], "--corpus means nothing for"),
        (["--tickets", "t.csv", "--dev", "d.json"], "--dev means nothing for"),
        (["--tickets", "t.csv", "--threshold", "precision=0.9"], "--threshold means nothing for"),
        (["--pairs", "p.json", "--corpus", "t.csv", "--date-column", "opened"], "--date-column means nothing for"),
        (["--pairs", "p.json", "--date-column", "opened"], "--date-column means nothing for"),
        (["--tickets", "t.csv", "--columns", "label=same"], "--columns means nothing for tickets alone: leave it out"),
        (["--tickets", "t.csv", "--metric", "spearman"], "--metric spearman: a corpus is judged by search; use one of"),
        (["--tickets", "t.csv", "--resamples", "5"], "--resamples 5: use 100 or more"),
        (["--tickets", "missing.csv", "--duplicate-column", "x"], "missing.csv"),
    ],
)
def test_options_that_do_not_fit_are_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(["evaluate", "--model", "m", *arguments]) == 2
    said = capsys.readouterr().err.strip()
    assert message in said and said.startswith("error: ") and "\n" not in said
