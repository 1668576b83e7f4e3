"""`trainer evaluate` at another share of positives and in alerts a ticket; the alerts that a model card counts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainer.data.pairs import PairTable, pairs_from_columns
from trainer.errors import InputError
from trainer.evaluation.alerts import alerts_in_words
from trainer.evaluation.judge import Question, judge, judgement_record, keep_thresholds
from trainer.evaluation.show import print_judgement
from trainer.evaluation.thresholds import fit_thresholds
from trainer.main import cli
from trainer.model.encoder import EmbeddingConditions, embedding_conditions
from trainer.model.loading import load_encoder
from trainer.system.console import console
from trainer.training import card_alerts
from trainer.training.card_alerts import alerts_on_training

WORDS = ["printer", "vpn", "mail", "screen", "paper", "jammed", "black", "drops", "bounces", "slow", "update", "floor"]


def texts(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [f"{' '.join(rng.choice(WORDS, 6))} {i}" for i in range(count)]


def pairs(count: int, seed: int) -> dict[str, list[Any]]:
    first, labels = texts(count, seed), [i % 2 for i in range(count)]
    rows = zip(first, labels, texts(count, seed + 99), strict=True)
    second = [text + " again" if label else other for text, label, other in rows]
    return {"texts1": first, "texts2": second, "labels": labels}


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[[str], Path]) -> dict[str, Any]:
    """What questions have in common: a tiny model, pairs of both labels, a file of tickets with a copy."""
    folder = tmp_path_factory.mktemp("deployment")
    tickets = texts(60, 5)
    lines = ["number,short_description", *(f"T{i},{text}" for i, text in enumerate([*tickets, tickets[0].upper()]))]
    (folder / "tickets.csv").write_text("\n".join(lines))
    table = pairs_from_columns(pairs(80, 0), "judged.json")
    common = {"model": str(tiny_model("mpnet")), "pairs": table, "dims": (16,), "resamples": 100}
    return {"question": common, "tickets": str(folder / "tickets.csv"), "folder": folder, "texts": tickets}


def rows_of(asked: dict[str, Any], **options: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    deployment = judge(Question(**asked["question"], **options)).deployment
    assert deployment is not None
    return deployment["systems"]["model"]["16"], deployment


def test_nothing_is_added_where_nothing_is_asked(asked: dict[str, Any]) -> None:
    assert judge(Question(**asked["question"])).deployment is None


@pytest.mark.slow
def test_alerts_are_those_of_all_pairs_of_different_tickets(asked: dict[str, Any]) -> None:
    rows, deployment = rows_of(asked, tickets=asked["tickets"], alerts_per_ticket=3.0)
    assert deployment["tickets"] == {"source": asked["tickets"], "count": 60}  # the copy is no ticket of its own
    encoder = load_encoder(asked["question"]["model"])
    embeddings = encoder.encode(asked["texts"])[:, :16].astype(np.float64)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    cosines = (embeddings @ embeddings.T)[~np.eye(60, dtype=bool)]
    in_use, chosen = rows
    for row in rows:
        low, high = ((cosines >= row["threshold"] + shift).sum() / 60 for shift in (2e-5, -2e-5))
        assert low <= row["alerts"] <= high
        assert row["share_of_pairs"] == pytest.approx(row["alerts"] / 59)
        assert row["alerts_interval"][0] <= row["alerts"] <= row["alerts_interval"][1]
        assert row["recall_interval"][0] <= row["recall"] <= row["recall_interval"][1]
    assert in_use["chosen"] == "f1 on judged.json, where 50 % are positive (in-sample)"
    assert chosen["chosen"] == f"3 alerts a ticket on {asked['tickets']}" and 2 < chosen["alerts"] <= 3
    assert chosen["threshold_interval"][0] <= chosen["threshold"] <= chosen["threshold_interval"][1]
    assert any("3 alerts a ticket are 5.1 % of all pairs. 40 negatives cannot tell rates under 7.5 %" in note
               for note in deployment["notes"])  # fmt: skip


def test_the_threshold_at_a_share_is_fitted_kept_and_refitted(
    asked: dict[str, Any], tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """With dev, what is kept is for the share; without, the kept one stands beside one fitted on the judged pairs."""
    model = tmp_path / "model"
    shutil.copytree(tiny_model("mpnet"), model)
    question = asked["question"] | {"model": str(model), "dev": pairs_from_columns(pairs(80, 7), "dev.json")}
    judgement = judge(Question(**question, prevalence=0.05))
    keep_thresholds(judgement)
    assert judgement.deployment is not None
    (row,) = judgement.deployment["systems"]["model"]["16"]
    assert row["chosen"] == "f1 on dev.json, where 5 % are positive"
    assert "where 5 % are positive" in judgement.thresholds_from["model"]
    assert row["threshold"] == judgement.thresholds["model"].values["16"]
    recall, rate = row["recall"], row["false_positive_rate"]
    if rate > 3 / 40:
        assert row["precision"] == pytest.approx(0.05 * recall / (0.05 * recall + 0.95 * rate))
    again = judge(Question(**question | {"dev": None}, prevalence=0.2)).deployment
    assert again is not None
    kept, refitted = again["systems"]["model"]["16"]
    assert kept["threshold"] == row["threshold"] and kept["threshold_interval"] is None
    assert refitted["chosen"] == "f1 on judged.json, where 20 % are positive (in-sample)"
    assert refitted["threshold_interval"][0] <= refitted["threshold"] <= refitted["threshold_interval"][1]


@pytest.mark.slow
def test_the_threshold_for_alerts_is_kept_with_what_it_belongs_to(
    asked: dict[str, Any], tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """With dev and no other rule; a later judgement finds it, and a rule that is named goes before it."""
    model = tmp_path / "model"
    shutil.copytree(tiny_model("mpnet"), model)
    question = asked["question"] | {"model": str(model), "dev": pairs_from_columns(pairs(80, 7), "dev.json")}
    of_tickets = {"tickets": asked["tickets"], "alerts_per_ticket": 3.0}
    judgement = judge(Question(**question, **of_tickets))
    assert judgement.deployment is not None
    by_f1, for_alerts = judgement.deployment["systems"]["model"]["16"]
    assert by_f1["chosen"] == "f1 on dev.json, where 50 % are positive" and 2 < for_alerts["alerts"] <= 3
    keep_thresholds(judgement)
    record = json.loads((model / "thresholds.json").read_text())
    assert record["values"] == {"16": for_alerts["threshold"]} != {"16": by_f1["threshold"]}
    assert record["rule"] == "alerts_per_ticket=3" and (record["source"], record["tickets"]) == (asked["tickets"], 60)
    assert record["positive_share"] == pytest.approx(3 / 59) and len(record["data_fingerprint"]) == 64
    assert judgement.assessment.metrics["model"]["16"]["threshold"] == for_alerts["threshold"]
    later = judge(Question(**question | {"dev": None}))
    assert later.assessment.metrics["model"]["16"]["recall"] == pytest.approx(for_alerts["recall"])
    words = f"{asked['tickets']} by alerts_per_ticket=3, which 5.1 % of all pairs of these 60 tickets reach, kept in"
    assert later.thresholds_from["model"].startswith(words)
    named = judge(Question(**question, **of_tickets, rule="f1"))
    assert named.thresholds["model"].rule == "f1" and named.thresholds["model"].tickets == 0


@pytest.mark.slow
def test_too_few_negatives_are_said_and_tickets_are_the_tail(asked: dict[str, Any]) -> None:
    """At a share of 0.001 a threshold above all 40 negatives looks perfect; it is not called so."""
    rule = {"prevalence": 0.001, "rule": "false_positive_rate=0"}
    (row,), deployment = rows_of(asked, **rule)
    assert row["false_positive_rate"] == 0
    if row["recall"]:
        assert row["precision"] == 1.0 and row["precision_interval"][0] < 0.02  # the rule of three: 3 / 40
    assert any(
        "40 negatives cannot tell rates under 7.5 %: a threshold that calls 0 of them" in n for n in deployment["notes"]
    )
    (row, *_), deployment = rows_of(asked, tickets=asked["tickets"], **rule)
    assert row["rate_from"] == asked["tickets"] and any("from the pairs of" in note for note in deployment["notes"])
    rate = max(0.0, (row["share_of_pairs"] - 0.001 * row["recall"]) / 0.999)
    assert row["f1"] == pytest.approx(0.002 * row["recall"] / (0.001 + 0.001 * row["recall"] + 0.999 * rate))


@pytest.mark.slow
def test_positives_alone_have_alerts_but_no_precision(asked: dict[str, Any]) -> None:
    columns = {name: values[1::2] for name, values in pairs(80, 0).items()}
    question = asked["question"] | {"pairs": pairs_from_columns(columns, "alike.json")}
    deployment = judge(Question(**question, tickets=asked["tickets"], alerts_per_ticket=2)).deployment
    assert deployment is not None
    (row,) = deployment["systems"]["model"]["16"]
    assert row["alerts"] <= 2 and 0 <= row["recall"] <= 1 and "precision" not in row
    with pytest.raises(InputError, match=r"--prevalence: alike\.json holds positives alone"):
        judge(Question(**question, prevalence=0.1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prevalence", "0"], "--prevalence 0: write a share of positives between 0 and 1"),
        (["--prevalence", "1"], "--prevalence 1: write"),
        (["--prevalence", "nan"], "--prevalence nan: write"),
        (["--alerts-per-ticket", "5"], "name the tickets to count alerts on as --tickets FILE"),
        (["--alerts-per-ticket", "0", "--tickets", "TICKETS"], "--alerts-per-ticket 0: write a number above 0"),
        (["--alerts-per-ticket", "60", "--tickets", "TICKETS"], "60 tickets raise more than 0 and at most 59 alerts"),
        (["--alerts-per-ticket", "0.001", "--tickets", "TICKETS"], "no threshold raises so few"),
        (["--tickets", "missing.csv"], "missing.csv"),
        (["--tickets", "ONE"], "different texts: 1; alerts need two tickets or more"),
        (["--tickets", "ODD"], "name yours with --text-columns"),
        (["--tickets", "ODD", "--text-columns", "Was"], "different texts: 1; alerts need two tickets or more"),
        (["--text-columns", "Was"], "--text-columns means nothing for pairs"),
    ],
)
def test_bad_input_is_one_line(
    options: list[str], message: str, asked: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    file, one = asked["folder"] / "judged.json", asked["folder"] / "one.csv"
    file.write_text(json.dumps(pairs(80, 0)))
    one.write_text("number,short_description\n1,printer is jammed\n2,Printer is  jammed\n")
    odd = asked["folder"] / "odd.csv"
    odd.write_text(one.read_text().replace("short_description", "Was"))
    named = {"TICKETS": asked["tickets"], "ONE": str(one), "ODD": str(odd)}
    arguments = ["evaluate", "--model", asked["question"]["model"], "--pairs", str(file), "--dims", "16"]
    arguments += ["--resamples", "100"]
    assert cli([*arguments, *(named.get(option, option) for option in options)]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and message in error[0]


def test_thresholds_that_do_not_fit_are_said_before_tickets_are_embedded(
    asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shutil.copytree(asked["question"]["model"], tmp_path / "model")
    (model / "thresholds.json").write_text("{}")
    monkeypatch.setattr("trainer.evaluation.judge.count_for", None)
    question = asked["question"] | {"model": str(model), "dev": None, "tickets": asked["tickets"]}
    with pytest.raises(InputError, match="cannot be read as thresholds"):
        judge(Question(**question))


@pytest.mark.slow
def test_the_terminal_says_where_a_threshold_belongs(asked: dict[str, Any]) -> None:
    options = {"prevalence": 0.02, "tickets": asked["tickets"], "alerts_per_ticket": 3.0}
    judgement = judge(Question(**asked["question"], **options))
    judgement = replace(judgement, question=replace(judgement.question, model="a[/b]/[final]"))  # no markup
    with console.capture() as capture:
        print_judgement(judgement)
    shown = " ".join(capture.get().split())
    assert "thresholds where 2 % of the pairs are positive, alerts on the 60 different tickets of" in shown
    assert "model: a[/b]/[final]; thresholds" in shown
    assert "alerts a ticket" in shown and "cannot tell rates under" in shown
    json.dumps(judgement_record(judgement))


def test_thresholds_take_the_tail_of_tickets_where_negatives_are_few() -> None:
    class Tail:
        """Alerts of tickets half of whose pairs lie above 0.5."""

        def flagged(self, thresholds: np.ndarray) -> np.ndarray:
            return np.where(np.asarray(thresholds) > 0.8, 0.0, 0.5)

    table = pairs_from_columns(pairs(40, 0), "dev.json")
    scores = np.where(table.label, np.linspace(0.6, 0.95, 40), 0.1)[None]
    conditions = EmbeddingConditions("weights", "mean", 128, "", "")
    alone = fit_thresholds(scores, table, (8,), "f1", conditions, 0.01)
    assert alone.values["8"] < 0.6 and alone.positive_share == 0.01 and alone.tail == ()
    with_tail = fit_thresholds(scores, table, (8,), "f1", conditions, 0.01, {"8": Tail()})  # type: ignore[dict-item]
    assert 0.78 < with_tail.values["8"] < 0.82 and with_tail.tail == ("8",)


@pytest.fixture
def table() -> PairTable:
    columns = pairs(60, 3)
    columns["texts2"][0] = columns["texts1"][1].upper()  # a copy
    return pairs_from_columns(columns, "train.json")


@pytest.mark.parametrize("most", [2000, 50])
def test_the_card_says_how_many_alerts_a_ticket(
    most: int, table: PairTable, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(card_alerts, "MOST_TEXTS", most)
    encoder = load_encoder(asked["question"]["model"])
    labels = np.where(table.label, 0.9, 0.5)[None]
    thresholds = fit_thresholds(labels, table, (16,), "f1", embedding_conditions(encoder))  # 0.7
    counted = alerts_on_training(encoder, table, thresholds, seed=0)
    assert counted is not None and counted["texts"] == 119 and counted["counted"] == min(119, most)
    entry = counted["by_dim"]["16"]
    assert entry["alerts_per_ticket"] == pytest.approx(118 * entry["share_of_pairs"])
    unique = {text.casefold(): text for text in reversed(table.texts)}.values()
    rows = encoder.encode(list(unique))[:, :16].astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    share = (rows @ rows.T >= 0.7)[~np.eye(119, dtype=bool)].mean()
    assert entry["share_of_pairs"] == pytest.approx(share, abs=1e-3 if most > 119 else 0.25)
    assert entry["alerts_interval"][0] < entry["alerts_per_ticket"] < entry["alerts_interval"][1]


def test_words_that_nobody_misreads() -> None:
    entry = {"threshold": 0.5514, "share_of_pairs": 0.12, "alerts_per_ticket": 107.88, "alerts_interval": [96.6, 121.2]}
    words = alerts_in_words({"texts": 900, "counted": 900, "by_dim": {"384": entry}})
    assert (
        "each of the 900 training texts, compared with all the others, is on average called the same problem as 108 of "
        "them at 384 dims (95 % interval 97 to 121; 12 % of all pairs). Most of these can be false alarms: "
    ) in words
    unsure = entry | {"alerts_interval": [None, None], "alerts_per_ticket": 0.317}
    words = alerts_in_words({"texts": 90_000, "counted": 2000, "by_dim": {"384": unsure}})
    assert "of the 90,000 training texts, " in words and not alerts_in_words(None)
    assert " as 0.32 of them at 384 dims (12 % of all pairs), estimated from 2,000 of them. Most" in words
