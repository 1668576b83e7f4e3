"""Tickets in: every row is kept or dropped for a reason that is told; clusters follow links; bad files are one line."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from trainer.data.tickets import REASONS, Columns, Filter, Tickets, load_tickets
from trainer.errors import InputError

COLUMNS = Columns(duplicate_of="duplicate_of", cluster="cluster")
NAMES = ("number", "short_description", "description", "assignment_group", "duplicate_of", "cluster")


def write(path: Path, rows: list[tuple[Any, ...]]) -> Path:
    """Rows of NAMES, shorter ones filled with nothing."""
    filled = [(*row, *[""] * (len(NAMES) - len(row))) for row in rows]
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(dict(zip(NAMES, row, strict=True))) + "\n" for row in filled), "utf-8")
        return path
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",").writerows([NAMES, *filled])
    return path


def load(folder: Path, rows: list[tuple[Any, ...]], quality: Filter | None = None) -> Tickets:
    return load_tickets(write(folder / "tickets.csv", rows), COLUMNS, quality or Filter())


ROWS = [
    ("T1", "vpn drops every hour", "hello team, vpn drops every hour", "net"),
    ("T2", "VPN drops  every hour", "", "net"),  # a copy, but for case and spacing
    ("T1", "printer on floor two is jammed", "", "net"),  # T1 again
    ("T3", "help", "", "net"),
    ("T4", "", "received from: <email> hello, best regards Jo Doe", "net"),
    ("T5", "server srv01 ran out of disk", "", "net"),
    ("T6", "server srv02 ran out of disk", "", "net"),
    ("T7", "der Drucker ist kaputt und ich kann nicht drucken", "", "net"),
    ("T8", "打印机坏了,请帮忙看看, the printer is broken and it does not work, please help us when you can", "", ""),
    *[
        (f"A{i}", f"reset passwords for {name}qx using the password tool", "", "alert")
        for i, name in enumerate("abcdefg")
    ],
]


def reasons(tickets: Tickets) -> dict[str, tuple[str, str]]:
    return {drop.number: (drop.reason, drop.kept) for drop in tickets.dropped}


def test_every_row_is_kept_or_dropped_for_its_reason(tmp_path: Path) -> None:
    tickets = load(tmp_path, ROWS, Filter(languages=("en",), per_template=3))
    assert reasons(tickets) == {
        "T1": ("repeated-number", "T1"),
        "T2": ("copy", "T1"),
        "T3": ("near-empty", ""),
        "T4": ("boilerplate", ""),
        "T6": ("ids-only", "T5"),
        "T7": ("other-language", ""),
        "T8": ("mixed-language", ""),
        **{f"A{i}": ("template", "A0") for i in range(3, 7)},
    }
    assert {drop.reason for drop in tickets.dropped} == REASONS.keys()
    assert tickets.numbers == ["T1", "T5", "A0", "A1", "A2"]
    assert len(tickets) + len(tickets.dropped) == tickets.facts["read"] == len(ROWS)
    assert sum(tickets.facts["dropped"].values()) == len(tickets.dropped)
    assert [drop.row for drop in tickets.dropped][:2] == [2, 3]  # as in the file, from 1
    assert len(set(tickets.template.tolist())) == 3  # T1, T5, the alert


def test_reasons_can_be_turned_off(tmp_path: Path) -> None:
    kept = Filter(per_template=1, keep=("mixed-language", "ids-only", "template"), min_words=1)
    assert set(reasons(load(tmp_path, ROWS, kept))) == {"T1", "T2", "T4"}


def test_texts_are_joined_without_saying_the_title_twice(tmp_path: Path) -> None:
    rows = [
        ("1", "mail is gone", "Mail is gone since monday", "a"),
        ("2", "cannot print here", "the big printer hums", "b"),
        ("3", "no sound since noon", "hi, i hear nothing. no sound", "b"),
    ]
    tickets = load(tmp_path, rows)
    assert tickets.texts == [
        "Mail is gone since monday",
        "cannot print here\nthe big printer hums",
        "no sound since noon\ni hear nothing. no sound",
    ]
    assert tickets.raw[2] == "no sound since noon\nhi, i hear nothing. no sound"


def test_texts_can_be_cut_and_masked(tmp_path: Path) -> None:
    rows = [("1", "ask jo@corp.com about the printer on floor two", "", "a"), ("2", "no sound at all", "", "b")]
    tickets = load(tmp_path, rows, Filter(max_words=4, mask=True))
    assert tickets.texts[0] == "ask <email> about the"
    assert tickets.raw[0] == "ask <email> about the printer on floor two"


def test_links_are_followed_through_dropped_and_unknown_tickets(tmp_path: Path) -> None:
    words = (
        "red lamp blinks",
        "green door squeaks",
        "blue chair wobbles",
        "old clock stopped",
        "new phone rings",
        "big fan hums",
    )
    rows: list[tuple[Any, ...]] = [(f"T{i}", f"the {text}", "", "x") for i, text in enumerate(words)]
    rows[0] += ("M",)  # M is dropped, but T0 and T1 are its duplicates
    rows[1] += ("M",)
    rows[2] += ("GONE",)  # not in the file, but T2 and T3 are its duplicates
    rows[3] += ("GONE", "storm")
    rows[4] += ("", "storm")
    tickets = load(tmp_path, [*rows, ("M", "help", "", "x")])
    zero, one, two, three, four, five = tickets.duplicate.tolist()
    assert zero == one and two == three == four and len({zero, two, five}) == 3
    assert tickets.named.tolist() == [False, False, False, True, True, False]
    assert tickets.facts["links_to_unknown_tickets"] == 2 and tickets.facts["linked"] == 5


def linked(folder: Path, numbers: list[str], links: list[Any], column: str = "duplicate_of") -> Tickets:
    """Tickets of different texts with these numbers and links; JSON, so that a link may be a number or null."""
    words = ["red lamp blinks", "green door squeaks", "blue chair wobbles", "old clock stopped", "new phone rings"]
    path = folder / "t.jsonl"
    rows = zip(numbers, links, words, strict=False)
    path.write_text(
        "".join(
            json.dumps({**dict.fromkeys(NAMES), "number": number, "short_description": text, column: link}) + "\n"
            for number, link, text in rows
        ),
        "utf-8",
    )
    return load_tickets(path, COLUMNS, Filter())


@pytest.mark.parametrize(
    ("numbers", "link"),
    [
        (["35040", "35041", "35042"], 35040.0),  # as a data frame with missing values writes integers
        (["35040.0", "35041.0", "35042.0"], "35040"),
        (["35040", "35041", "35042"], "35040,0"),  # where the decimal sign is a comma
        (["35040", "35041", "35042"], "35,040"),
        (["INC0001", "INC0002", "INC0003"], " inc0001\u00a0"),
        (["INC0001", "INC0002", "INC0003"], "'INC0001"),
        (["'00123", "'00124", "'00125"], '="00123"'),
        (["00123", "00124", "00125"], "123"),  # a column that was read as numbers
        (["OPS-1", "OPS-2", "OPS-3"], "OPS\u20111"),
        (["12", "13", "14"], "#12"),
        (["12345678901234567", "13", "14"], "1.2345678901234567E+16"),
        (["5003000000D8cuI", "5003000000D8cui", "x"], "5003000000D8cuI"),  # two ids, though they differ in case alone
    ],
)
def test_a_link_finds_its_ticket_in_whatever_spelling(tmp_path: Path, numbers: list[str], link: Any) -> None:
    tickets = linked(tmp_path, numbers, [None, None, link])
    zero, one, two = tickets.duplicate.tolist()
    assert zero == two != one
    assert tickets.facts["links_to_unknown_tickets"] == 0 and tickets.facts["known_duplicates"] == 2


@pytest.mark.parametrize(
    ("numbers", "link", "together"),
    [
        (["OPS-1", "OPS-2", "OPS-3", "OPS-4"], "OPS-1, OPS-2", [0, 1, 3]),
        (["OPS-1", "OPS-2", "OPS-3", "OPS-4"], "ops-1;\nOPS-3", [0, 2, 3]),
        (["OPS-1", "OPS-2", "OPS-3", "OPS-4"], "OPS-1 OPS-2", [0, 1, 3]),
        (["OPS-1", "OPS-2", "OPS-3", "OPS-4"], "['OPS-1', 'OPS-2']", [0, 1, 3]),
        (["123", "456", "123456", "9"], "123,456", [2, 3]),  # one number that stands there, not two
        (["123", "456", "7", "9"], "123,456", [0, 1, 3]),
    ],
)
def test_a_cell_may_name_several_tickets(tmp_path: Path, numbers: list[str], link: str, together: list[int]) -> None:
    duplicate = linked(tmp_path, numbers, [None, None, None, link]).duplicate.tolist()
    assert [row for row, cluster in enumerate(duplicate) if cluster == duplicate[3]] == together


@pytest.mark.parametrize("nothing", ["nan", "None", "<NA>", "N/A", "-", "0", 0, "", None, float("nan")])
def test_what_says_that_there_is_no_link_ties_nothing(tmp_path: Path, nothing: Any) -> None:
    tickets = linked(tmp_path, ["a", "b", "c"], [nothing] * 3)
    assert len(set(tickets.duplicate.tolist())) == 3 and tickets.facts["linked"] == 0


def test_zeros_in_front_are_part_of_a_number(tmp_path: Path) -> None:
    tickets = linked(tmp_path, ["INC0001", "INC1", "7", "007"], ["INC1", None, "007", None])
    zero, one, two, three = tickets.duplicate.tolist()
    assert zero == one != two == three and not tickets.dropped
    tickets = linked(tmp_path, ["INC0001", "INC1", "7", "007"], [None, None, None, "7"])
    assert len(set(tickets.duplicate.tolist())) == 3 and tickets.facts["known_duplicates"] == 2


def test_clusters_categories_and_repeated_numbers_are_compared_in_one_spelling(tmp_path: Path) -> None:
    tickets = linked(tmp_path, ["1", "2", "3", "4", "5"], ["PRB01", "prb01 ", 35.0, "35", "nan"], "cluster")
    one, two, three, four, five = tickets.duplicate.tolist()
    assert one == two != three == four != five and tickets.named.tolist() == [True] * 4 + [False]
    tickets = linked(tmp_path, ["1", "2", "3"], ["3", 3.0, "nan"], "assignment_group")
    assert tickets.categories == ["3"] and tickets.category.tolist() == [0, 0, -1]
    tickets = linked(tmp_path, ["INC1", "inc1", "5.0", "5"], [None] * 4)
    assert [drop.reason for drop in tickets.dropped] == ["repeated-number"] * 2 and tickets.numbers == ["INC1", "5"]


def test_most_links_that_miss_are_an_error_that_shows_both_sides_and_some_are_counted(tmp_path: Path) -> None:
    numbers = ["INC1", "INC2", "INC3", "INC4", "INC5"]
    for links in (["x77", "x78", "INC1"], ["x77", "x77", "INC1"]):  # the second tie, but look like no number here
        with pytest.raises(InputError) as error:
            linked(tmp_path, numbers, [None, *links, None])
        message = str(error.value)
        assert "2 of 3 links" in message and "'x77'" in message and "'INC1'" in message and "--number-column" in message
    some = linked(tmp_path, numbers, [None, "INC77", "INC1", "INC1", None])
    assert some.facts["links_to_unknown_tickets"] == 1 and some.facts["unknown_link"] == "INC77"
    shared = linked(tmp_path, numbers, [None, "INC77", "INC77", None, None])  # both are duplicates of one elsewhere
    assert shared.duplicate[1] == shared.duplicate[2] and shared.facts["links_to_unknown_tickets"] == 2


def test_a_number_that_lost_its_digits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"row 2, number: '1.23457E\+11' has lost digits in a spreadsheet"):
        linked(tmp_path, ["123456789012", "1.23457E+11"], [None, None])


def test_a_ticket_without_number_or_category_is_kept_and_categories_differ_in_more_than_case(tmp_path: Path) -> None:
    rows = [("", "mail is gone", "", "Net"), ("", "no sound at all", "", "net "), ("7", "screen stays black", "", "")]
    tickets = load(tmp_path, rows)
    assert tickets.numbers == ["row 1", "row 2", "7"]
    assert tickets.categories == ["Net"] and tickets.category.tolist() == [0, 0, -1]
    assert tickets.facts["without_category"] == 1


def test_formats_hold_the_same(tmp_path: Path) -> None:
    loaded = [
        load_tickets(write(tmp_path / f"t{suffix}", ROWS), COLUMNS, Filter()) for suffix in (".csv", ".tsv", ".jsonl")
    ]
    assert loaded[0].texts == loaded[1].texts == loaded[2].texts


def test_json_numbers_and_nulls_are_read_and_control_characters_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    rows = [(17, "mail is\0 gone \ud800 now", None, "a", None, None), (18, "no sound at all", None, "b", 17, None)]
    tickets = load_tickets(write(path, rows), COLUMNS, Filter())
    assert tickets.numbers == ["17", "18"] and tickets.duplicate[0] == tickets.duplicate[1]
    tickets.texts[0].encode()
    assert "\0" not in tickets.texts[0]


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        (Columns(category="team"), ("column team is missing", "assignment_group")),
        (Columns(texts=("description", "body")), ("column body is missing", "short_description")),
        (Columns(duplicate_of="parent"), ("column parent is missing",)),
        (Columns(texts=("description", "number")), ("column number is named for two purposes",)),
    ],
)
def test_columns_that_are_not_there_are_named_beside_those_that_are(
    tmp_path: Path, columns: Columns, told: tuple[str, ...]
) -> None:
    with pytest.raises(InputError) as error:
        load_tickets(write(tmp_path / "t.csv", ROWS), columns, Filter())
    assert all(part in str(error.value) for part in told) and "\n" not in str(error.value)


def test_a_cell_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    write(path, [("1", ["a"], "", "x")])
    with pytest.raises(InputError, match=r"row 1, short_description: a list is not a text"):
        load_tickets(path, COLUMNS, Filter())


@pytest.mark.slow
def test_the_real_tickets_add_up(shared_data: Path) -> None:
    tickets = load_tickets(shared_data / "tickets.csv", Columns(), Filter())
    assert tickets.facts["read"] == len(tickets) + len(tickets.dropped) == 7142
    assert len(tickets) > 5000 and len(set(tickets.texts)) == len(tickets)
    assert not any(text.startswith(("received from", "hello", "hi,")) for text in tickets.texts)
