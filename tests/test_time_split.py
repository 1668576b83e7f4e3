"""Parts by time: `trainer build-pairs --split-by time`."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from oracles import write_tickets

from trainer.data.pairs import read_pairs
from trainer.data.split import check_overlap
from trainer.data.ticket_table import Columns
from trainer.data.tickets import Filter, Tickets, load_tickets
from trainer.errors import InputError
from trainer.main import cli
from trainer.mining.time_split import parts_by_time

HEADER = ("number", "short_description", "description", "opened_at")
NO_COPIES = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)


def tickets_on(days: list[int], folder: Path) -> Tickets:
    words = ("alpha", "beta", "gamma", "delta")
    rows = [(f"T{i}", f"{words[i % 4]} {chr(97 + i)}qx broke", "", f"2024-03-{day:02}") for i, day in enumerate(days)]
    return load_tickets(write_tickets(folder / "t.csv", rows, HEADER), Columns(date="opened_at"), Filter())


@pytest.mark.parametrize(
    "written",
    [
        [1705276800, 1735603200],
        [1705276800000, 1735603200000],
        [45306, 45657],
        [20240115, 20241231],
    ],
    ids=["seconds", "milliseconds", "a spreadsheet's days", "year, month, day"],
)
def test_numbers_are_dates_as_systems_write_them(written: list[int], tmp_path: Path) -> None:
    rows = [(f"T{i}", f"alpha {chr(97 + i)}qx broke", "", moment) for i, moment in enumerate(written)]
    tickets = load_tickets(write_tickets(tmp_path / "t.csv", rows, HEADER), Columns(date="opened_at"), Filter())
    assert tickets.dates is not None and tickets.dates.tolist() == [1705276800, 1735603200]


def test_numbers_that_are_no_dates_are_refused(tmp_path: Path) -> None:
    rows = [(f"T{i}", f"alpha {chr(97 + i)}qx broke", "", moment) for i, moment in enumerate((45306, 20240115))]
    with pytest.raises(InputError, match="'45306' may be no date: write 2024-12-31 13:45"):
        load_tickets(write_tickets(tmp_path / "t.csv", rows, HEADER), Columns(date="opened_at"), Filter())


def test_train_is_before_dev_and_dev_before_test(tmp_path: Path) -> None:
    days = [7, 1, 10, 3, 2, 9, 4, 8, 6, 5]
    tickets = tickets_on(days, tmp_path)
    part = parts_by_time(tickets, (0.2, 0.1), NO_COPIES)
    assert [sorted(day for day, of in zip(days, part, strict=True) if of == number) for number in range(3)] == [
        [1, 2, 3, 4, 5, 6, 7],
        [8, 9],
        [10],
    ]
    assert parts_by_time(tickets, (0.0, 0.0), NO_COPIES).tolist() == [0] * 10
    assert parts_by_time(tickets, (0.0, 0.2), NO_COPIES).tolist() == [2 * (day > 8) for day in days]


def test_one_moment_is_not_divided_and_a_text_stands_in_one_part(tmp_path: Path) -> None:
    tickets = tickets_on([1, 2, 3, 3, 3, 4], tmp_path)
    assert parts_by_time(tickets, (0.5, 0.0), NO_COPIES).tolist() == [0, 0, 1, 1, 1, 1]  # the third day is the cut
    with pytest.raises(InputError, match="leaves dev without a ticket, as too many are of one moment"):
        parts_by_time(tickets, (0.3, 0.3), NO_COPIES)
    copies = np.array([0, 4, 2, 3]), np.array([7, 7, 5, 5])  # the fifth has a text of the first
    assert parts_by_time(tickets, (0.5, 0.0), copies).tolist() == [0, 0, 1, 1, -1, 1]


def test_a_ticket_without_a_date_is_in_no_part_and_shadows_no_copy(tmp_path: Path, capfd) -> None:
    tickets = replace(tickets_on([1, 2, 3, 4, 5, 6, 7], tmp_path), dates=np.array([np.nan, 2, 3, 4, 5, np.nan, 7]))
    copies = np.array([0, 6, 1, 3]), np.array([7, 7, 5, 5])  # the last has a text of the first, whose date is unknown
    assert parts_by_time(tickets, (0.4, 0.2), copies).tolist() == [-1, 0, 0, -1, 1, -1, 2]
    assert "1 that repeat an earlier text in none; 2 without a date in none" in capfd.readouterr().err
    rows = [(f"T{i}", f"word {chr(97 + i)}qx broke", "", "" if i == 1 else f"2024-03-0{i + 1}") for i in range(3)]
    dates = load_tickets(write_tickets(tmp_path / "t.csv", rows, HEADER), Columns(date="opened_at"), Filter()).dates
    assert dates is not None and np.isnan(dates).tolist() == [False, True, False]
    rows = [(*row[:3], "") for row in rows]
    with pytest.raises(InputError, match=r"row 1 .*opened_at: has no date: fill it in, or leave the row out"):
        load_tickets(write_tickets(tmp_path / "t.csv", rows, HEADER), Columns(date="opened_at"), Filter())


def test_without_dates_or_with_one_for_all_there_is_no_split(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="all tickets are of one moment"):
        parts_by_time(tickets_on([2, 2, 2], tmp_path), (0.2, 0.2), NO_COPIES)
    write_tickets(tmp_path / "t.csv", [(f"T{i}", f"some words {chr(97 + i)}x", "") for i in range(4)], HEADER[:3])
    arguments = ["--tickets", str(tmp_path / "t.csv"), "--sizes", "2,2,2", "--split-by", "time"]
    assert cli(["build-pairs", *arguments, "--output", str(tmp_path / "out")]) == InputError.exit_code


@pytest.mark.slow
def test_built_pairs_are_judged_on_later_tickets(tmp_path: Path) -> None:
    rng = random.Random(0)
    words = [f"{a}{b}{c}" for a in "bdfgklm" for b in "aeiou" for c in ("rt", "ns", "lk", "mp")]
    problems = [rng.sample(words, 7) for _ in range(40)]
    told = [rng.choice(problems) for _ in range(500)]
    rows = []
    for i, problem in enumerate(told):
        title, body = (" ".join(rng.sample(problem, 5) + rng.sample(words, more)) for more in (0, 4))
        rows.append((f"T{i}", title, body, f"2024-{1 + i // 50:02}-11"))
    rng.shuffle(rows)
    path = write_tickets(tmp_path / "t.csv", rows, HEADER)
    arguments = ["--tickets", str(path), "--output", str(tmp_path / "out"), "--sizes", "20,20,20"]
    arguments += ["--dev-share", "0.2", "--test-share", "0.2"]

    def months(part: str) -> list[int]:
        record = json.loads((tmp_path / "out" / f"{part}.json").read_text())
        return [1 + int(number[1:]) // 50 for side in "12" for number in record[f"numbers{side}"]]

    assert cli(["build-pairs", *arguments, "--split-by", "time"]) == 0
    train, dev, test = map(months, ("train", "dev", "test"))
    assert max(train) <= 6 < 7 <= min(dev) and max(dev) <= 8 and min(test) >= 9 and train and dev and test
    tables = [read_pairs(tmp_path / "out" / f"{part}.json") for part in ("train", "dev", "test")]
    assert check_overlap(tables[0], tables[1], 0.0) == check_overlap(tables[0], tables[2], 0.0) == 0
    (tmp_path / "out").rename(tmp_path / "by_time")
    assert cli(["build-pairs", *arguments]) == 0  # negative control: by groups, all months are in train
    assert len(set(months("train"))) > 6
