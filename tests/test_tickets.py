"""Tickets in: every row is kept or dropped for a reason that is told; clusters follow links; bad files are one line."""

from __future__ import annotations

import csv
import datetime
import io
import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from trainer.data.readers import Reading
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
    assert {drop.reason for drop in tickets.dropped} == REASONS.keys() - {"left-out"}
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
    missing = float("nan")  # as pandas has it
    rows.append((19, missing, "it is jammed", missing, missing, missing))
    tickets = load_tickets(write(path, rows), COLUMNS, Filter())
    assert tickets.numbers == ["17", "18", "19"] and tickets.duplicate[0] == tickets.duplicate[1]
    assert tickets.texts[2] == "it is jammed" and tickets.category[2] == -1 and tickets.categories == ["a", "b"]
    tickets.texts[0].encode()
    assert "\0" not in tickets.texts[0]


def test_tickets_of_a_pair_file_are_left_out_whatever_unit_its_labels_have(tmp_path: Path) -> None:
    (tmp_path / "held.csv").write_text("text1,text2,label\nno sound at all,other,4.5\nother,one more,0\n")
    rows = [("1", "mail is gone", "", "a", "", ""), ("2", "no sound at all", "", "b", "", "")]
    tickets = load(tmp_path, rows, Filter(leave_out=(str(tmp_path / "held.csv"),)))
    assert reasons(tickets) == {"2": ("left-out", "")} and tickets.numbers == ["1"]


def test_pair_files_to_leave_out_are_read_as_the_tickets_are(tmp_path: Path) -> None:
    (tmp_path / "held.csv").write_bytes("text1^text2^label\nнет звука^другое^0\n".encode("koi8-r"))
    (tmp_path / "t.csv").write_bytes("number^description\n1^почта не приходит\n2^нет звука\n".encode("koi8-r"))
    quality = Filter(leave_out=(str(tmp_path / "held.csv"),), min_words=1)
    tickets = load_tickets(tmp_path / "t.csv", Columns(), quality, Reading("koi8-r", "^"))
    assert reasons(tickets) == {"2": ("left-out", "")} and tickets.numbers == ["1"]


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        (Columns(category="team"), ("column team is missing", "assignment_group")),
        (Columns(texts=("description", "body")), ("column body is missing", "short_description")),
        (Columns(duplicate_of="parent"), ("column parent is missing",)),
        (Columns(number="number", texts=("description", "number")), ("column number is named for two purposes",)),
    ],
)
def test_columns_that_are_not_there_are_named_beside_those_that_are(
    tmp_path: Path, columns: Columns, told: tuple[str, ...]
) -> None:
    with pytest.raises(InputError) as error:
        load_tickets(write(tmp_path / "t.csv", ROWS), columns, Filter())
    assert all(part in str(error.value) for part in told) and "\n" not in str(error.value)


@pytest.mark.parametrize("cell", [{"id": 7}, [[{"id": 7}]]])
def test_a_cell_that_says_nothing_is_named(tmp_path: Path, cell: Any) -> None:
    path = write(tmp_path / "t.jsonl", [("1", cell, "", "x")])
    with pytest.raises(InputError, match="row 1, short_description: an object is not a text"):
        load_tickets(path, COLUMNS, Filter())


def test_booleans_and_moments_are_texts_as_csv_has_them(tmp_path: Path) -> None:
    moment = datetime.datetime(2024, 12, 31, 13, 45, tzinfo=datetime.UTC)
    texts = ["vpn drops every hour", "printer on floor two is jammed"]
    rows = [{"number": i, "short_description": text, "closed": i > 0, "at": moment} for i, text in enumerate(texts)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    tickets = load_tickets(tmp_path / "t.parquet", Columns(date="at"), Filter(leave_out_rows="closed=true"))
    assert tickets.numbers == ["0"] and tickets.dates is not None and tickets.dates.tolist() == [moment.timestamp()]


def test_a_row_without_text_does_not_take_its_tickets_number(tmp_path: Path) -> None:
    rows = [("T1", "", "", "net"), ("T1", "vpn drops every hour", "", "net"), ("T1", "printer is jammed", "", "net")]
    tickets = load(tmp_path, rows)
    assert tickets.texts == ["vpn drops every hour"]
    assert [drop.reason for drop in tickets.dropped] == ["near-empty", "repeated-number"]


# ---- exports of service desks


TITLES = ["mail is gone since noon", "printer on floor two is jammed", "vpn drops every hour", "no sound at all today"]
BODIES = [f"{title} and I need help" for title in TITLES]


def csv_of(rows: list[list[str]], separator: str = ",") -> str:
    out = io.StringIO()
    csv.writer(out, delimiter=separator).writerows(rows)
    return out.getvalue()


def rows_of(*columns: Any) -> list[list[Any]]:
    """Rows of the four tickets: a column is a constant, or a function of the ticket's place and texts."""
    return [
        [column(place, title, body) if callable(column) else column for column in columns]
        for place, (title, body) in enumerate(zip(TITLES, BODIES, strict=True))
    ]


def number(place: int, title: str, body: str) -> str:
    return f"{7 + place}"


def title(place: int, title: str, body: str) -> str:
    return title


def body(place: int, title: str, body: str) -> str:
    return body


def team(place: int, title: str, body: str) -> str:
    return "net" if place % 2 else "desk"


def of_first(place: int, title: str, body: str) -> str:
    """The number of the first ticket, for the second."""
    return "7" if place == 1 else ""


def objects(names: list[str], *columns: Any) -> list[dict[str, Any]]:
    return [dict(zip(names, row, strict=True)) for row in rows_of(*columns)]


# What writes it -> name, content, options, what is said of how it was read.
DESKS: dict[str, tuple[str, Any, Columns, str]] = {
    "ServiceNow, REST": (
        "a.json",
        {"result": objects(
            ["number", "short_description", "description", "assignment_group", "problem_id"],
            number, title, body, lambda *it: {"link": "https://x/1", "value": team(*it)},
            lambda *it: {"link": "https://x/7", "display_value": of_first(*it), "value": "sys"} if it[0] == 1 else "",
        )},
        Columns(duplicate_of="problem_id"),
        'the list "result"',
    ),
    "ServiceNow, Excel's CSV": (
        "a.csv",
        "sep=;\r\n" + csv_of([["Number", "Short description", "Description", "Assignment group", "Duplicate of"],
                              *rows_of(number, title, body, team, of_first)], ";"),
        Columns(duplicate_of="duplicate_of"),
        "separator ;",
    ),
    "Jira, CSV": (
        "a.csv",
        csv_of([["Summary", "Issue key", "Issue id", "Description", "Component/s", "Component/s",
                 "Outward issue link (Duplicate)", "Outward issue link (Duplicate)"],
                *rows_of(title, number, "9", body, team, "", "", of_first)]),
        Columns(duplicate_of="Outward issue link (Duplicate)"),
        "texts Summary + Description, number Issue key, category Component/s",
    ),
    "Jira, REST": (
        "a.json",
        {"startAt": 0, "names": {}, "issues": objects(
            ["id", "key", "fields"], "9", number,
            lambda *it: {
                "summary": it[1],
                "description": {"type": "doc", "content": [
                    {"type": "paragraph", "content": [{"type": "text", "text": it[2]}]}]},
                "components": [{"name": team(*it)}],
                "duplicates": [{"key": of_first(*it)}] if it[0] == 1 else [],
            },
        )},
        Columns(texts=("fields.summary", "fields.description"), category="fields.components",
                duplicate_of="fields.duplicates"),
        'the list "issues", number key',
    ),
    "GitHub": (
        "a.json",
        objects(["number", "title", "body", "labels", "duplicate"], lambda *it: 7 + it[0], title, body,
                lambda *it: [{"name": team(*it)}], lambda *it: 7 if it[0] == 1 else None),
        Columns(duplicate_of="duplicate"),
        "texts title + body, category labels",
    ),
    "GitLab": (
        "a.json",
        objects(["id", "iid", "title", "description", "labels", "author", "moved_to_id"], lambda *it: 900 + it[0],
                lambda *it: 7 + it[0], title, body, lambda *it: [team(*it)], {"username": "jo"}, of_first),
        Columns(duplicate_of="moved_to_id"),
        "texts title + description, number iid, category labels",
    ),
    "Zendesk, CSV": (
        "a.csv",
        csv_of([["Id", "Subject", "Description", "Group", "Problem id"],
                *rows_of(number, title, body, team, of_first)]),
        Columns(duplicate_of="problem_id"),
        "texts Subject + Description, number Id, category Group",
    ),
    "Zendesk, REST": (
        "a.json",
        {"tickets": objects(["id", "subject", "description", "group_id", "tags", "problem_id"],
                            lambda *it: 7 + it[0], title, body, lambda *it: it[0] % 2, ["a", "b"], of_first),
         "users": [{"id": 1, "name": "jo"}], "count": 4},
        Columns(duplicate_of="problem_id"),
        'the list "tickets", texts subject + description, number id, category group_id',
    ),
    "Freshdesk, CSV": (
        "a.csv",
        ("Ticket ID,Subject,Description Text,Group,Agent,Parent\n" + csv_of(
            rows_of(number, title, body, team, "José", of_first))).encode("cp1252"),
        Columns(duplicate_of="Parent"),
        "cp1252, texts Subject + Description Text, number Ticket ID, category Group",
    ),
    "Redmine": (
        "a.csv",
        "\ufeff" + csv_of([["#", "Project", "Tracker", "Subject", "Description", "Parent task"],
                           *rows_of(number, "p", team, title, body, of_first)]),
        Columns(duplicate_of="Parent task"),
        "texts Subject + Description, number #, category Tracker",
    ),
    "Bugzilla": (
        "a.csv",
        csv_of([["Bug ID", "Product", "Component", "Assignee", "Status", "Summary", "dup_of"],
                *rows_of(number, "p", team, "jo", "NEW", body, of_first)]),
        Columns(duplicate_of="dup_of"),
        "texts Summary, number Bug ID, category Component",
    ),
    "OTRS, tabs and UTF-16": (
        "a.csv",
        csv_of([["Ticket#", "Title", "Queue", "Article", "Linked"],
                *rows_of(number, title, team, body, of_first)], "\t").encode("utf-16"),
        Columns(number="Ticket#", texts=("Title", "Article"), duplicate_of="Linked"),
        "utf-16, separator tab, category Queue",
    ),
    "Azure DevOps, whose keys hold dots": (
        "a.json",
        {"count": 4, "value": [
            {"id": n, "fields": {"System.Id": n, "System.Title": body_, "System.AreaPath": team_},
             "relations": [{"rel": "Duplicate-Of", "attributes": {"to.id": link}}] if link else None}
            for n, body_, team_, link in rows_of(number, body, team, of_first)]},
        Columns(texts=("fields.System.Title",), category="fields.System.AreaPath",
                duplicate_of="relations.attributes.to.id"),
        'the list "value", number id',
    ),
    "Jira's REST, with lists of links": (
        "a.json",
        {"issues": [
            {"key": n, "fields": {"summary": title_, "description": body_, "components": [{"id": "1", "name": team_}],
             "issuelinks": [{"type": {"name": "Duplicate"}, "outwardIssue": {"key": link}}] if link else []}}
            for n, title_, body_, team_, link in rows_of(number, title, body, team, of_first)]},
        Columns(texts=("fields.summary", "fields.description"), category="fields.components",
                duplicate_of="fields.issuelinks.outwardIssue.key"),
        'the list "issues", number key',
    ),
    "pandas, of Jira's columns": (
        "a.csv",
        csv_of([["", "Issue key", "Summary", "Description", "Component", "Link", "Link.1"],
                *rows_of("0", number, title, body, team, "", of_first)]),
        Columns(duplicate_of="Link"),
        "number Issue key",
    ),
}  # fmt: skip


@pytest.mark.parametrize("desk", DESKS)
def test_exports_go_in(tmp_path: Path, capfd: pytest.CaptureFixture[str], desk: str) -> None:
    name, content, columns, said = DESKS[desk]
    path = tmp_path / name
    text = json.dumps(content) if isinstance(content, dict | list) else content
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    tickets = load_tickets(path, columns, Filter())
    assert tickets.numbers == ["7", "8", "9", "10"]
    assert tickets.texts == BODIES
    assert len(tickets.categories) == 2 and tickets.category[0] == tickets.category[2] != tickets.category[1]
    one, two, *others = tickets.duplicate.tolist()
    assert one == two and len({one, *others}) == 3
    heard = capfd.readouterr().err.splitlines()[0]
    assert heard.startswith(f"{path}: read as ") and said in heard


def test_a_workbook_of_tickets_goes_in(tmp_path: Path) -> None:
    book = pytest.importorskip("openpyxl", reason="needs the extra `data`").Workbook()
    header = ["Number", "Short description", "Description", "Assignment group", "Opened"]
    for row in [header, *rows_of(lambda *it: 7 + it[0], title, body, team, datetime.datetime(2024, 1, 2))]:
        book.worksheets[0].append(row)
    book.save(tmp_path / "a.xlsx")
    tickets = load_tickets(tmp_path / "a.xlsx", Columns(), Filter())
    assert (
        tickets.numbers == ["7", "8", "9", "10"] and tickets.texts == BODIES and tickets.categories == ["desk", "net"]
    )


def test_a_table_of_parquet_goes_in(tmp_path: Path) -> None:
    names = ["id", "subject", "description", "tags"]
    rows = objects(names, lambda *it: 7 + it[0], title, body, lambda *it: [team(*it), "all"])
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    tickets = load_tickets(tmp_path / "a.parquet", Columns(), Filter())
    assert tickets.numbers == ["7", "8", "9", "10"] and tickets.categories == ["desk, all", "net, all"]


def test_texts_of_repeated_columns_are_joined_and_said_once(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    comments = [
        ["Summary", "Comment", "Comment"],
        ["mail is gone", "since noon", "since noon"],
        ["no sound", "", "none"],
    ]
    path.write_text(csv_of([*comments, ["vpn drops here", "every hour", "and at night"]]))
    tickets = load_tickets(path, Columns(texts=("Summary", "Comment")), Filter())
    assert tickets.texts == [
        "mail is gone\nsince noon", "no sound\nnone", "vpn drops here\nevery hour\nand at night"
    ]  # fmt: skip


def test_numbers_and_categories_may_be_missing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.csv"
    path.write_text(csv_of([["Subject"], *rows_of(body)]))
    tickets = load_tickets(path, Columns(), Filter())
    assert tickets.numbers == ["row 1", "row 2", "row 3", "row 4"] and tickets.categories == []
    said = f"{path}: read as texts Subject; no number column: rows are numbered; no category column"
    assert capfd.readouterr().err.splitlines()[0] == said


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        (
            Columns(number="Numer"),
            "column Numer is missing (found: 'Number', 'Title', 'Text', 'Titel'; nearest: 'Number'): "
            "name one of these with --number-column",
        ),
        (Columns(texts=("Title", "Body")), "one of these with --text-columns"),
        (Columns(category="Group"), "one of these with --category-column"),
        (Columns(duplicate_of="Dup"), "one of these with --duplicate-column"),
        (Columns(cluster="Problem"), "one of these with --cluster-column"),
    ],
)  # fmt: skip
def test_a_missing_column_names_its_option_and_the_nearest(tmp_path: Path, columns: Columns, told: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text("Number,Title,Text,Titel\n1,a,b,c\n")
    with pytest.raises(InputError) as error:
        load_tickets(path, columns, Filter())
    assert told in str(error.value)


def test_a_file_without_texts_is_told_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    for content, told in (
        ("Nr,Emne,Beskrivelse\n1,a,b\n", "name yours with --text-columns"),
        ("sentence1,sentence2,label\na,b,1\n", f"train on it, trainer train --set data.train={path}"),
        (
            "Nr,fields.Summary,fields.description.text\n1,a,b\n",
            "--text-columns, as in --text-columns fields.Summary,fields.description.text",
        ),
    ):
        path.write_text(content)
        with pytest.raises(InputError) as error:
            load_tickets(path, Columns(), Filter())
        assert told in str(error.value)


CASES = Path(__file__).resolve().parents[2] / "shared" / "cases" / "exports"


def test_the_sample_exports_go_in() -> None:
    if not CASES.is_dir():
        pytest.skip("the folder of samples ../shared/cases is not here")
    for path in CASES.iterdir():
        tickets = load_tickets(path, Columns(), Filter())
        assert tickets.facts["read"] == (120 if "pandas" in path.name else 40)
        assert len(tickets) >= 0.7 * tickets.facts["read"] and len(tickets.categories) > 2, path.name


@pytest.mark.slow
def test_the_real_tickets_add_up(shared_data: Path) -> None:
    tickets = load_tickets(shared_data / "tickets.csv", Columns(), Filter())
    assert tickets.facts["read"] == len(tickets) + len(tickets.dropped) == 7142
    assert len(tickets) > 5000 and len(set(tickets.texts)) == len(tickets)
    assert not any(text.startswith(("received from", "hello", "hi,")) for text in tickets.texts)
