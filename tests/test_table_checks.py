"""Each check names what was put into a set and is silent on the same set without it."""

from __future__ import annotations

import random
from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from trainer.data.pairs import PairTable, pairs_from_columns
from trainer.lint import table_checks as checks
from trainer.lint.findings import parts_of
from trainer.lint.limits import SERIOUS, WARNING, Limit, worst

WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("lan", "ric", "tos", "ven", "mud", "sip")]
COLUMNS = ("texts1", "texts2", "labels", "phase_indicators", "categories1", "categories2")

Row = tuple[str, str, int, int, str, str]


def make_rows(count: int = 300, seed: int = 0, prefix: str = "") -> list[Row]:
    """Pairs of random sentences: each text in one pair, labels in turn, three phases, categories that say nothing."""
    draw = random.Random(seed)

    def text() -> str:
        return prefix + " ".join(draw.choices(WORDS, k=9))

    return [
        (text(), text(), row % 2, 1 + row % 3, f"G{draw.randrange(4)}", f"G{draw.randrange(4)}") for row in range(count)
    ]


def table_of(rows: list[Row], source: str = "pairs.json") -> PairTable:
    return pairs_from_columns(
        {name: list(cells) for name, cells in zip(COLUMNS, zip(*rows, strict=True), strict=True)}, source
    )


def part_of(rows: list[Row]):
    return parts_of([table_of(rows)])[0]


def all_checks(rows: list[Row]):
    part = part_of(rows)
    tokens = checks.estimated_tokens(part.table.texts)
    own = (checks.contradictions, checks.broken_chains, checks.repeats, checks.dominance, checks.near_empty)
    found = [finding for check in (*own, checks.balance, checks.telling_categories) for finding in check(part)]
    return found + checks.truncation(part, tokens, checks.ASSUMED_LENGTH, True)


def contradict(rows: list[Row]) -> None:
    one, two, label, *rest = rows[10]
    rows += [(two.upper(), f" {one}", 1 - label, *rest)]  # either order, another case


def chain(rows: list[Row]) -> None:
    a, b, c, d = (rows[row][0] for row in (3, 4, 5, 6))
    rows += [(a, b, 1, *rows[0][3:]), (b, c, 1, *rows[0][3:]), (d, c, 1, *rows[0][3:]), (a, d, 0, *rows[0][3:])]


def pair_with_itself(rows: list[Row]) -> None:
    rows += [(rows[20][0], rows[20][0].title(), 1, *rows[20][3:])]


def repeat(rows: list[Row]) -> None:
    rows += rows[30:60]


def fill_a_template(rows: list[Row]) -> None:
    for number in range(60):
        alert = f"job run_{number} aborted on the nightly scheduler at {number}:00"
        rows += [(alert, f"scheduler reports that run_{number} is gone since {number} minutes", *rows[number][2:])]


def use_one_text_everywhere(rows: list[Row]) -> None:
    rows += [(rows[0][0], rows[row][0], 0, *rows[row][3:]) for row in range(100, 200)]
    rows += [(rows[row][0], rows[row + 100][1], 1, *rows[row][3:]) for row in range(1, 100)]  # keeps the balance


def empty(rows: list[Row]) -> None:
    for row in range(0, 300, 20):
        rows[row] = ("hello team, 12 !\nkind regards,\nA. Person", *rows[row][1:])


def lengthen(rows: list[Row]) -> None:
    for row in range(0, 300, 5):
        rows[row] = (" ".join([rows[row][0]] * 40), *rows[row][1:])


def unbalance(rows: list[Row]) -> None:
    del rows[1:250:2]


def unbalance_a_phase(rows: list[Row]) -> None:
    rows[:] = [row for place, row in enumerate(rows) if row[3] != 2 or row[2] or place % 5 == 0]


def shrink_a_phase(rows: list[Row]) -> None:
    kept = iter(row for row in rows if row[3] == 3)
    rows[:] = [row for row in rows if row[3] != 3] + [next(kept) for _ in range(6)]


def tell_by_category(rows: list[Row]) -> None:
    for place, row in enumerate(rows):
        if row[2] and place < 100:
            rows[place] = (*row[:4], "GIVEAWAY", row[5])


POISONS = {
    contradict: {"contradictory labels": [11, 301]},
    chain: {"contradiction through a chain": [304]},
    pair_with_itself: {"self pairs": [301]},
    repeat: {"duplicates": [301, 302, 303, 304]},
    fill_a_template: {"templated duplicates": [303, 304, 305, 306]},  # 301 and 302 are the first of either label
    use_one_text_everywhere: {"one text in many pairs": [1, 301, 302, 303]},
    empty: {"near-empty texts": [1, 21, 41, 61]},
    lengthen: {"truncated texts": [1, 6, 11, 16]},
    unbalance: {"label balance": None},
    unbalance_a_phase: {"label balance": None},
    shrink_a_phase: {"phase balance": [201, 202, 203, 204]},
    tell_by_category: {"category predicts the label": [2, 4, 6, 8]},
}


@pytest.mark.slow
def test_nothing_is_named_on_a_clean_set():
    for seed in range(20):
        assert all_checks(make_rows(seed=seed)) == []


@pytest.mark.parametrize("poison", POISONS, ids=lambda poison: poison.__name__)
def test_each_fault_is_named_and_nothing_else(poison):
    rows = make_rows(seed=7)
    poison(rows)
    found = all_checks(rows)
    expected = POISONS[poison]
    assert {finding.name for finding in found} == set(expected)
    for finding in found:
        assert expected[finding.name] in (None, finding.rows)
        assert (
            finding.source == "pairs.json" and finding.fix and finding.values and any(map(str.isdigit, finding.message))
        )


def test_severity_grows_with_the_share():
    rows = make_rows(3000)
    contradict(rows)
    assert [finding.severity for finding in checks.contradictions(part_of(rows))] == [WARNING]  # 2 of 3001
    rows += [(one, two, 1 - label, *rest) for one, two, label, *rest in rows[100:110]]
    assert [finding.severity for finding in checks.contradictions(part_of(rows))] == [SERIOUS]
    limit = Limit(0, 0.1)
    assert [limit.severity(value) for value in (0.0, 1e-9, 0.0999, 0.1)] == [None, WARNING, WARNING, SERIOUS]
    assert worst(None, WARNING, SERIOUS) == SERIOUS and worst(None, WARNING) == WARNING and worst(None) is None


def test_a_negative_of_a_text_with_itself_is_a_contradiction():
    rows = make_rows(300)
    rows += [(rows[0][0], rows[0][0], 0, *rows[0][3:])]
    (finding,) = checks.contradictions(part_of(rows))
    assert finding.name == "self pairs" and finding.severity == SERIOUS and finding.values["negatives"] == 1


@pytest.mark.parametrize("seed", range(10))
def test_chains_and_repeats_agree_with_the_slow_definition(seed):
    draw = random.Random(seed)
    rows: list[Row] = [
        (f"text {chr(97 + draw.randrange(12)) * 3}", f"text {chr(97 + draw.randrange(12)) * 3}", label, 1, "", "")
        for label in draw.choices((0, 0, 1), k=25)
    ]
    linked = {frozenset(row[:2]) for row in rows if row[2]}
    reach = {row[side]: {row[side]} for row in rows for side in (0, 1)}
    for _ in range(len(reach)):
        for pair in linked:
            joined = set().union(*(reach[text] for text in pair))
            for text in joined:
                reach[text] = reach[text] | joined
    broken = [
        number
        for number, (one, two, label, *_) in enumerate(rows, start=1)
        if not label and one != two and two in reach[one] and frozenset((one, two)) not in linked
    ]
    found = {finding.name: finding for finding in all_checks(rows)}
    chained = found.get("contradiction through a chain")
    assert (chained.values["rows"], chained.rows) == (len(broken), broken[:4]) if broken else chained is None
    copies = sum(count - 1 for count in Counter((frozenset(row[:2]), row[2]) for row in rows).values())
    assert found["duplicates"].values["rows"] == copies if copies else "duplicates" not in found


def test_a_category_of_few_rows_or_of_both_labels_is_no_finding():
    rows = make_rows()
    for place in range(1, 31, 2):
        rows[place] = (*rows[place][:4], "RARE", "G0")  # 15 positives: luck would do it
    assert checks.telling_categories(part_of(rows)) == []
    tell_by_category(rows)
    assert len(checks.telling_categories(part_of(rows))) == 1
    for place in range(0, 100, 4):
        rows[place] = (*rows[place][:4], "GIVEAWAY", rows[place][5])
    assert checks.telling_categories(part_of(rows)) == []


def test_a_file_without_categories_has_no_telling_ones():
    columns = {"texts1": ["a b", "c d"], "texts2": ["e f", "g h"], "labels": [1, 0]}
    assert checks.telling_categories(parts_of([pairs_from_columns(columns, "x")])[0]) == []


def test_truncation_says_whether_it_is_an_estimate():
    rows = make_rows()
    lengthen(rows)
    part = part_of(rows)
    tokens = np.full(len(part.table.texts), 10)
    tokens[:100] = 128
    (measured,) = checks.truncation(part, tokens, 128, False)
    assert "by the tokenizer" in measured.message and measured.values["texts"] == 100
    (guessed,) = checks.truncation(part, checks.estimated_tokens(part.table.texts), 384, True)
    assert "estimate" in guessed.message and guessed.values["texts"] == 60
    assert checks.truncation(part, tokens, 129, False) == []


def held_out(change=None):
    train, held = make_rows(300, 1), make_rows(100, 2)
    if change:
        change(train, held)
    return {finding.name: finding for finding in checks.overlap(*parts_of([table_of(train), table_of(held, "dev")]))}


def share_text(train, held):
    held[4] = (train[9][1].upper(), *held[4][1:])


def share_ticket(train, held):
    # The second text of row 8 is in train; rows 5, 8 and 9 are one ticket by their positives.
    held[4] = (held[4][0], "bridge over the ticket", 1, *held[4][3:])
    held[7] = ("bridge over the ticket", train[9][1], 1, *held[7][3:])
    held[8] = (held[4][0], *held[8][1:])


def share_template(train, held):
    for number in range(10):
        rows = train if number < 5 else held
        rows[number] = (f"job run_{number} aborted on the nightly scheduler at {number}:00", *rows[number][1:])


def share_template_pairs(train, held):
    for number in range(10):
        rows = train if number < 5 else held
        one = f"job run_{number} aborted on the nightly scheduler at {number}:00"
        rows[number] = (one, f"scheduler reports that run_{number} is gone since {number} minutes", *rows[number][2:])


def test_separate_files_share_nothing():
    assert held_out() == {}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (share_text, {"text overlap": (SERIOUS, [5])}),
        (share_ticket, {"text overlap": (SERIOUS, [8]), "ticket overlap": (SERIOUS, [5, 9])}),
        (share_template, {"template overlap": (WARNING, [6, 7, 8, 9])}),
        (share_template_pairs, {"template overlap": (SERIOUS, [6, 7, 8, 9])}),
    ],
)
def test_overlap_is_named_by_its_kind(change, expected):
    found = held_out(change)
    assert {name: (finding.severity, finding.rows) for name, finding in found.items()} == expected
    assert all(finding.source == "dev" and finding.values["with"] == "pairs.json" for finding in found.values())


def test_parts_number_copies_and_templates_across_tables():
    rows = make_rows(20)
    again = [(two.upper(), one, *rest) for one, two, *rest in rows]
    one, two = parts_of([table_of(rows), table_of(again)])
    assert np.array_equal(one.keys(one.form), two.keys(two.form))
    texts = [*one.table.texts, *two.table.texts]
    numbers = [*one.form.tolist(), *two.form.tolist()]
    for a, b in combinations(range(len(texts)), 2):
        assert (numbers[a] == numbers[b]) == (texts[a].lower() == texts[b].lower())
