"""`trainer label`: which pairs are asked, the dialogue on a terminal and in lines, what is in the file, who agrees."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracles import edit_json, write_tickets
from sklearn.metrics import cohen_kappa_score

from trainer.data.pairs import read_pairs
from trainer.errors import InputError
from trainer.labelling import pool
from trainer.labelling.agreement import compare
from trainer.labelling.answers import Answers, Pair
from trainer.labelling.choice import Scores, choose, settle_rules
from trainer.labelling.screen import readable
from trainer.main import cli

QUESTION = b"q quit "  # at the end of every question


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A file of twelve pairs, every other one positive."""
    columns = {
        "texts1": [f"printer {i} is jammed on floor two" for i in range(12)],
        "texts2": [f"paper {i} stuck in printer again" for i in range(12)],
        "labels": [i % 2 for i in range(12)],
        "phase_indicators": [1 + i % 3 for i in range(12)],
    }
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps(columns))
    return path


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run a command with these lines on its standard input."""

    def run(lines: str, *arguments: object) -> int:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
        return cli(["label", *map(str, arguments)])

    return run


def order(pairs: Path, output: Path, labeller: str = "anna") -> tuple[object, ...]:
    return "--pairs", pairs, "--output", output, "--choose", "order", "--labeller", labeller


def on_terminal(arguments: Sequence[object], keys: Sequence[bytes], end: int = 0) -> tuple[str, int]:
    """What a forked process shows on a terminal of its own when each key is pressed at a question, and its exit code.

    Args:
        end: a signal to send at the question after the last key.
    """
    child, terminal = pty.fork()
    if child == 0:
        os.environ["COLUMNS"] = "120"
        sys.stdin = os.fdopen(0, closefd=False)  # pytest has closed its own
        sys.stderr = os.fdopen(2, "w", closefd=False)
        os._exit(cli(["label", *map(str, arguments)]))
    shown = b""
    try:
        for number in range(1, len(keys) + 1 + bool(end)):
            while shown.count(QUESTION) < number:
                shown += os.read(terminal, 65536)
            if number <= len(keys):
                os.write(terminal, keys[number - 1])
            else:
                os.kill(child, end)
        while chunk := os.read(terminal, 65536):
            shown += chunk
    except OSError:  # the other end is closed
        pass
    os.close(terminal)
    return shown.decode(), os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# ---- the dialogue


def test_a_session_in_lines_leaves_pairs_that_are_read_as_they_are(pairs: Path, tmp_path: Path, say, capfd) -> None:
    output = tmp_path / "labels.json"
    # Said wrongly and taken back: the second pair is positive in the end; "maybe" is no answer, skipped is no row.
    assert say("y\nNo\nu\nmaybe\nyes\ns\nn\n", *order(pairs, output), "--count", 4) == 0
    table = read_pairs(output)
    assert table.label.tolist() == [True, True, False] and table.phase.tolist() == [1, 2, 1]
    assert table.texts == [text for i in (0, 1, 3) for text in read_pairs(pairs).texts[2 * i : 2 * i + 2]]
    record = json.loads(output.read_text())
    assert record["votes"] == [{"anna": 1}, {"anna": 1}, {"anna": 0}] and record["chosen_by"] == ["order"] * 3
    assert record["labels_before"] == [0, 1, 1] and all(when[:2] == "20" for when in record["labelled_at"])
    assert record["unsettled"]["votes"] == [{"anna": None}]
    assert "3 labelled pairs, 2 of them positive; left open 1, divided on 0" in capfd.readouterr().err


def test_the_same_command_goes_on_where_it_was(pairs: Path, tmp_path: Path, say, capfd) -> None:
    output = tmp_path / "labels.json"
    assert say("y\n", *order(pairs, output), "--count", 1) == 0
    said = capfd.readouterr().err
    assert "1 pair for anna" in said and "1 labelled pair, 1 of them" in said
    for lines, done in (("q\n", 1), ("n\n", 2), ("s\ny\n", 4), ("", 4)):
        assert say(lines, *order(pairs, output)) == 0
        assert len(Answers.open(output).rows) == done
    assert [row.pair.text1 for row in Answers.open(output).rows.values()] != []
    assert {row.pair.text1[:9] for row in Answers.open(output).rows.values()} == {f"printer {i}" for i in range(4)}
    capfd.readouterr()
    assert say("", *order(pairs, output), "--count", 0) == 0
    assert "Nothing left to ask anna" in capfd.readouterr().err


def test_undo_reaches_back_to_the_first_answer_and_no_further(pairs: Path, tmp_path: Path, say, capfd) -> None:
    output = tmp_path / "labels.json"
    assert say("y\ny\nu\nu\nu\nn\n", *order(pairs, output), "--count", 2) == 0
    assert json.loads(output.read_text())["labels"] == [0]
    assert "nothing to undo" in capfd.readouterr().err
    assert say("y\nu\ns\nq\n", *order(pairs, output), "--count", 1) == 0  # the last answer can be taken back too
    assert [row.votes for row in Answers.open(output).rows.values()] == [{"anna": 0}, {"anna": None}]


def test_on_a_terminal_a_key_is_enough_and_no_other_input_is_an_answer(pairs: Path, tmp_path: Path) -> None:
    output = tmp_path / "labels.json"
    arrow, pasted = b"\x1b[A", b"yyyy"
    shown, code = on_terminal([*order(pairs, output), "--count", 3], [b"y", arrow, pasted, b"N", b"u", b"s", b"q"])
    assert code == 0 and [row.votes for row in Answers.open(output).rows.values()] == [{"anna": 1}, {"anna": None}]
    lines = [line for line in shown.splitlines() if "printer 0 is" in line]
    assert len(lines) == 1 and "paper 0 stuck" in lines[0]  # side by side


@pytest.mark.usefixtures("hears_hang_ups")
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 75), (signal.SIGHUP, 75), (signal.SIGKILL, -9)]
)
def test_no_answer_is_lost_when_the_session_is_stopped(pairs: Path, tmp_path: Path, number: int, code: int) -> None:
    output = tmp_path / "labels.json"
    shown, ended = on_terminal(order(pairs, output), [b"y", b"n"], end=number)
    assert ended == code and json.loads(output.read_text())["labels"] == [1, 0]
    unseen = (signal.SIGHUP, signal.SIGKILL)
    assert number in unseen or "\nerror: stopped by a signal; all answers are saved" in shown  # on a line of its own
    assert on_terminal([*order(pairs, output), "--count", 1], [b"y", b"q"])[1] == 0  # and nobody holds the file
    assert json.loads(output.read_text())["labels"] == [1, 0, 1]


def test_two_sessions_do_not_write_one_file(pairs: Path, tmp_path: Path, say, capfd) -> None:
    from trainer.system.files import only_writer_of

    with only_writer_of(tmp_path / "labels.json"):
        assert say("y\n", *order(pairs, tmp_path / "labels.json")) == 5
    assert "another process writes it" in capfd.readouterr().err and not (tmp_path / "labels.json").exists()


# ---- what is shown

HOSTILE = "\x1b[2J\x1b]0;owned\x07 [red]name[/red]: \u202egnp.exe \x9b31m \r call betty.miller@corp.com \x08\x08"


def test_a_text_cannot_command_the_terminal_and_is_masked(tmp_path: Path, say, capfd) -> None:
    path = tmp_path / "hostile.json"
    path.write_text(json.dumps({"texts1": [HOSTILE], "texts2": ["x " * 5000], "labels": [1]}))
    assert say("y\n", *order(path, tmp_path / "labels.json")) == 0
    shown = capfd.readouterr().err
    assert all(sign.isprintable() or sign == "\n" for sign in shown)
    assert "[red]name[/red]" in shown and "<email>" in shown and "betty" not in shown
    assert "[8,000 more characters]" in shown
    assert read_pairs(tmp_path / "labels.json").texts[0] == HOSTILE  # what is trained on is the text itself
    edit_json(
        tmp_path / "labels.json", votes=[{"anna": 1, "\x1b[2Jben": 0, "carl": 1}]
    )  # names of people are of a file too
    assert say("", *order(path, tmp_path / "labels.json")) == 0
    assert "\\x1b[2Jben and anna agree on 0 of 1 pairs" in (said := capfd.readouterr().err) and "\x1b" not in said
    assert readable("one\ntwo\tthree") == "one\ntwo\\tthree"


# ---- two people


def test_who_labelled_the_same_pairs_is_compared(pairs: Path, tmp_path: Path, say, capfd) -> None:
    output = tmp_path / "labels.json"
    assert say("y\nn\ny\nn\n", *order(pairs, output), "--count", 4) == 0
    assert say("y\ny\ny\ns\n", "--output", output, "--choose", "agreement", "--labeller", "ben") == 0
    said = capfd.readouterr().err
    assert "anna and ben agree on 2 of 3 pairs (67%); Cohen's kappa 0.00" in said and "divided on 1" in said
    assert read_pairs(output).label.tolist() == [True, True, False]  # what they are divided on is no row
    assert say("n\n", "--output", output, "--choose", "agreement", "--labeller", "carl", "--count", 2) == 0
    assert [row.label for row in Answers.open(output).rows.values()].count(None) == 1
    assert say("", "--output", output, "--choose", "agreement", "--labeller", "ben") == 0
    assert "Nothing left to ask ben" in capfd.readouterr().err


def test_a_pair_that_stands_twice_keeps_the_votes_of_both_rows(tmp_path: Path) -> None:
    output = tmp_path / "labels.json"
    answers = Answers(output)
    answers.vote(Pair("vpn is down", "no vpn"), "anna", 1)
    answers.save()
    record = json.loads(output.read_text())  # as when the lists of two files are put together
    record = {name: cells if name == "unsettled" else 2 * cells for name, cells in record.items()}
    output.write_text(json.dumps(record | {"votes": [{"anna": 1}, {"ben": 1}]}))
    assert [row.votes for row in Answers.open(output).rows.values()] == [{"anna": 1, "ben": 1}]


def test_agreement_is_that_of_scikit_learn() -> None:
    random = np.random.default_rng(3)
    votes = [
        {"a": int(x), "b": int(x ^ (y < 0.3))}
        for x, y in zip(random.integers(0, 2, 50), random.random(50), strict=True)
    ]
    (both,) = compare([*votes, {"a": 1}, {"b": None, "a": 0}])
    a, b = ([vote[name] for vote in votes] for name in "ab")
    assert both.kappa == pytest.approx(cohen_kappa_score(a, b)) and both.pairs == 50
    assert both.share == pytest.approx(np.mean(np.equal(a, b)))
    assert "cannot be told" in str(compare([{"a": 1, "b": 1}])[0]) and compare([{"a": 1}, {"b": 1}]) == []


# ---- which pairs


def test_each_rule_asks_first_what_it_is_named_for() -> None:
    label = np.array([True, True, False, False, True])
    cosine, words = np.array([0.9, 0.1, 0.8, 0.2, 0.51]), np.array([0.8, 0.2, 0.1, 0.3, 0.9])
    scores = Scores(5, label, cosine, 0.5, words)
    first = {rule: choose([rule], scores, (), 1, 0)[0][0] for rule in ("threshold", "disagree", "wrong", "order")}
    assert first == {"threshold": 4, "disagree": 2, "wrong": 1, "order": 0}
    assert sorted(pair for pair, _ in choose(["random"], scores, {2}, 9, 0)) == [0, 1, 3, 4]
    draws = {choose(["random"], scores, (), 1, seed)[0][0] for seed in range(40)}
    assert draws == set(range(5))
    mixed = choose(["threshold", "wrong"], scores, {4}, 4, 0)
    assert sorted(pair for pair, _ in mixed) == [0, 1, 2, 3] and {rule for _, rule in mixed} == {"threshold", "wrong"}


def test_what_a_rule_lacks_is_said() -> None:
    unlabelled = Scores(3, cosine=np.zeros(3))
    rules, left_out = settle_rules((), unlabelled)
    assert rules == ("random",) and len(left_out) == 3
    with pytest.raises(InputError, match="--choose threshold needs a threshold"):
        settle_rules(("threshold",), unlabelled)
    with pytest.raises(InputError, match="--choose hardest: use some of random, threshold"):
        settle_rules(("hardest",), unlabelled)


def test_pairs_without_a_model_go_by_tfidf(pairs: Path, tmp_path: Path, say, capfd) -> None:
    assert say("q\n", "--pairs", pairs, "--output", tmp_path / "l.json", "--labeller", "anna", "--count", 6) == 0
    said = capfd.readouterr().err
    assert "Without --model TF-IDF stands in its place" in said and "disagree needs a model" in said
    assert "2 random, 2 threshold, 2 wrong" in said


@pytest.mark.parametrize(
    ("more", "weighed"),
    [
        (("--choose", "random"), False),
        (("--choose", "random", "--model", "nowhere"), False),
        (("--choose", "threshold"), True),  # negative control
    ],
)
def test_nothing_is_worked_out_that_no_rule_goes_by(
    more: tuple[str, ...], weighed: bool, pairs: Path, tmp_path: Path, say, capfd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words are not weighed, and a model is not even looked for."""
    calls = []
    whole = pool.tfidf_matrix
    monkeypatch.setattr(pool, "tfidf_matrix", lambda texts: calls.append(len(texts)) or whole(texts))
    assert say("y\n", "--pairs", pairs, "--output", tmp_path / "l.json", "--labeller", "anna", *more) == 0
    said = capfd.readouterr().err
    assert bool(calls) is weighed is ("TF-IDF" in said)
    assert ("--model nowhere is not looked at" in said) is ("nowhere" in more)
    assert len(read_pairs(tmp_path / "l.json")) == 1


@pytest.mark.parametrize(("rule", "lacks"), [("wrong", "pairs that have labels"), ("disagree", "a model and TF-IDF")])
def test_a_rule_that_cannot_be_followed_is_said_before_any_work(
    rule: str, lacks: str, tmp_path: Path, say, capfd
) -> None:
    more = ["--model", "nowhere"] if rule == "wrong" else []
    arguments = ["--tickets", tmp_path / "unread.csv", "--output", tmp_path / "l.json", "--choose", rule, *more]
    assert say("", *arguments, "--labeller", "anna") == 2
    assert f"--choose {rule} needs {lacks}" in capfd.readouterr().err


PROBLEMS = [
    ("printer jam", "paper stuck inside printer", "jam of paper again"),
    ("vpn drop", "vpn tunnel drop at home", "home tunnel lost again"),
    ("mail bounce", "mail to partner bounce back", "partner gets no mail"),
    ("screen black", "black screen after update", "update left screen dark"),
    ("disk full", "server disk is full", "no space on server disk"),
    ("login fail", "login fail with password", "password does not work for login"),
]
WAYS = ("since {}", "please help with {}", "{} in the hall")


@pytest.mark.slow
@pytest.mark.parametrize("model", [False, True])
def test_candidates_out_of_tickets(model: bool, tmp_path: Path, tiny_model, say, capfd) -> None:
    rows = [
        (f"T{i}", PROBLEMS[i % 6][i // 6], WAYS[i // 6].format(PROBLEMS[i % 6][(i // 6 + 1) % 3]), "", "")
        for i in range(18)
    ]
    path = write_tickets(tmp_path / "tickets.csv", rows)
    more = ["--model", tiny_model("mpnet"), "--threshold", "0.5"] if model else []
    arguments = ["--tickets", path, "--output", tmp_path / "labels.json", "--labeller", "anna", *more]
    assert say("y\n" * 200, *arguments, "--count", 200) == 0
    record = json.loads((tmp_path / "labels.json").read_text())
    ends = [
        tuple(sorted((int(a[1:]), int(b[1:])))) for a, b in zip(record["numbers1"], record["numbers2"], strict=True)
    ]
    assert len(set(ends)) == len(ends) < 153 and all(one != two for one, two in ends)  # of all pairs of 18
    alike = {(i, j) for i in range(18) for j in range(i + 1, 18) if i % 6 == j % 6}
    assert alike <= set(ends) and set(record["chosen_by"]) == (
        {"random", "threshold", "disagree"} if model else {"random"}
    )
    assert set(record["labels_before"]) == {None} and len(read_pairs(tmp_path / "labels.json")) == len(ends)


@pytest.mark.slow
def test_a_model_chooses_pairs_and_its_kept_threshold_counts(
    pairs: Path, tmp_path: Path, tiny_model, say, capfd
) -> None:
    arguments = ["--pairs", pairs, "--output", tmp_path / "l.json", "--model", tiny_model("bert"), "--labeller", "anna"]
    assert say("q\n", *arguments, "--count", 8) == 0
    assert "2 random, 2 threshold, 2 disagree, 2 wrong" in capfd.readouterr().err


# ---- what is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name what to label"),
        (("--pairs", "{pairs}", "--choose", "agreement"), "--pairs means nothing for --choose agreement"),
        (("--choose", "agreement,random"), "agreement stands alone: leave out the other rules"),
        (("--choose", "agreement"), "is not there"),
        (("--pairs", "{pairs}", "--count", "-1"), "--count -1"),
        (("--pairs", "{pairs}", "--seed", "-1"), "--seed -1: write a whole number from 0"),
        (("--pairs", "{pairs}", "--threshold", "3"), "--threshold 3: write a cosine"),
        (("--pairs", "missing.json"), "missing.json: file not found"),
    ],
)
def test_a_wrong_command_is_one_line(arguments, message: str, pairs: Path, tmp_path: Path, say, capfd) -> None:
    given = [argument.format(pairs=pairs) for argument in arguments]
    assert say("", *given, "--output", tmp_path / "l.json", "--labeller", "anna") == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error and not (tmp_path / "l.json").exists()


@pytest.mark.parametrize(
    "change",
    [{"votes": [{}]}, {"texts1": None}, {"votes": [{"a": 2}]}, {"unsettled": None}, {"labels": [0]}, {"labels": []}],
)
def test_a_file_of_another_kind_is_not_overwritten(change: dict[str, Any], pairs: Path, tmp_path: Path, say) -> None:
    answers = Answers(tmp_path / "l.json")
    answers.vote(Pair("a b", "b c"), "anna", 1)
    answers.save()
    assert Answers.open(answers.path).rows.keys() == {("a b", "b c")}
    edit_json(answers.path, **change)
    before = answers.path.read_bytes()
    assert say("y\n", *order(pairs, answers.path)) == 2 and answers.path.read_bytes() == before
    assert not (tmp_path / ".l.json.lock").exists()


def test_a_label_that_a_hand_has_changed_is_not_put_back_unseen(pairs: Path, tmp_path: Path, say, capfd) -> None:
    output = tmp_path / "l.json"
    assert say("y\nn\nq\n", *order(pairs, output)) == 0
    edit_json(output, labels=[1, 1])
    assert say("y\n", *order(pairs, output)) == 2
    assert "l.json: row 2 is labelled 1 with the votes {'anna': 0}: correct the votes" in capfd.readouterr().err
    edit_json(output, votes=[{"anna": 1}, {"anna": 1}])
    assert say("y\nq\n", *order(pairs, output)) == 0 and json.loads(output.read_text())["labels"] == [1, 1, 1]


def test_a_folder_that_cannot_be_written_is_said_before_any_question(pairs: Path, tmp_path: Path, say, capfd) -> None:
    (tmp_path / "file").touch()
    assert say("y\n", *order(pairs, tmp_path / "file" / "l.json")) == 5
    error = f"error: {tmp_path}/file/l.json: cannot write there: {tmp_path}/file is no folder"
    assert capfd.readouterr().err.splitlines() == [error]
