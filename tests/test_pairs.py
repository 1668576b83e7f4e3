"""Pair files of every format say the same; bad and hostile ones are refused in one line with place and fix."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import io
import json
import random
import re
import time
import unicodedata
from collections import Counter, deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from oracles import EDITS, Edits, edited

from trainer.config import DataConfig
from trainer.data import text_files
from trainer.data.incidents import generate_pairs
from trainer.data.pair_cells import SCORES
from trainer.data.pairs import PairTable, pairs_from_columns, positives_of, read_pairs
from trainer.data.run_data import load_data
from trainer.data.split import (
    MOST_LEFT_OUT,
    Split,
    check_overlap,
    connected_components,
    has_both_labels,
    hold_out,
    require_positives,
    sample_pairs,
)
from trainer.errors import InputError
from trainer.system.console import console
from trainer.text.canonical import canonical_form

# A field's name as a column of columns -> in rows.
FIELDS = {
    "texts1": "text1",
    "texts2": "text2",
    "labels": "label",
    "phase_indicators": "phase",
    "categories1": "category1",
    "categories2": "category2",
}
GOOD: dict[str, list[Any]] = {
    "texts1": ["printer is jammed", "vpn drops", "mail bounces"],
    "texts2": ["paper stuck in printer", "screen is black", "cannot send mail"],
    "labels": [1, 0, 1],
    "phase_indicators": [1, 1, 2],
    "categories1": ["print", "net", "mail"],
    "categories2": ["print", "desk", "mail"],
}


# ---- writing the formats


def as_records(columns: dict[str, list[Any]]) -> list[dict[str, Any]]:
    rows = zip(*columns.values(), strict=True)
    return [dict(zip((FIELDS[column] for column in columns), row, strict=True)) for row in rows]


def delimited(records: list[dict[str, Any]], delimiter: str) -> str:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, records[0].keys(), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


WRITERS = {
    ".json": lambda columns: json.dumps(columns),
    ".jsonl": lambda columns: "\n".join(json.dumps(r, ensure_ascii=False) for r in as_records(columns)),
    ".csv": lambda columns: delimited(as_records(columns), ","),
    ".tsv": lambda columns: delimited(as_records(columns), "\t"),
}


def write(folder: Path, suffix: str, columns: dict[str, list[Any]], *, bom: bool = False) -> Path:
    data = WRITERS[suffix.removesuffix(".gz")](columns).encode("utf-8-sig" if bom else "utf-8")
    path = folder / f"pairs{suffix}"
    path.write_bytes(gzip.compress(data) if suffix.endswith(".gz") else data)
    return path


def assert_same(a: PairTable, b: PairTable) -> None:
    """Equal in all but where the rows come from."""
    for field in dataclasses.fields(PairTable):
        if field.name in ("source", "sources", "row", "has_phases"):
            continue
        one, other = getattr(a, field.name), getattr(b, field.name)
        if isinstance(one, np.ndarray):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other, err_msg=field.name)
        else:
            assert one == other, field.name
    assert a.fingerprint() == b.fingerprint()


ALL_SUFFIXES = [suffix + gz for suffix in WRITERS for gz in ("", ".gz")]
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12).filter(str.strip)


@st.composite
def columns_of_pairs(draw: st.DrawFn) -> dict[str, list[Any]]:
    pool = draw(st.lists(texts, min_size=1, max_size=8))
    row = st.tuples(
        st.sampled_from(pool),
        st.sampled_from(pool),
        st.one_of(st.booleans(), st.integers(0, 1), st.floats(0, 1)),
        st.integers(1, 5),
        st.one_of(texts, st.just("")),
        texts,
    )
    rows = draw(st.lists(row, min_size=1, max_size=12))
    kept = len(FIELDS) if draw(st.booleans()) else 3
    return {name: list(cells) for name, cells in list(zip(FIELDS, zip(*rows, strict=True), strict=True))[:kept]}


@pytest.mark.slow
@given(columns=columns_of_pairs(), bom=st.booleans())
@example(columns={"texts1": ['"', "a\r\nb"], "texts2": [",\t", "\u2028x"], "labels": [True, 0.25]}, bom=True)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_all_formats_hold_the_same_table(tmp_path: Path, columns: dict[str, list[Any]], bom: bool) -> None:
    expected = pairs_from_columns(columns, "generated")
    told = expected.columns()
    assert (told["texts1"], told["texts2"]) == (columns["texts1"], columns["texts2"])
    assert told["labels"] == expected.score.tolist() == [float(label) for label in columns["labels"]]
    assert told["phase_indicators"] == expected.phase.tolist() == columns.get("phase_indicators", [1] * len(expected))
    assert expected.categories1 == columns.get("categories1")
    for suffix in ALL_SUFFIXES:
        path = write(tmp_path, suffix, columns, bom=bom)
        table = read_pairs(path)
        assert_same(table, expected)
        assert table.source == str(path)
        assert table.row.tolist() == list(range(1, len(expected) + 1))


def test_texts_are_unique_and_in_order_of_first_appearance() -> None:
    table = pairs_from_columns({"texts1": ["b", "a", "b"], "texts2": ["a", "c", "B "], "labels": [1, 0, 1]}, "x")
    assert table.texts == ["b", "a", "c", "B "]
    assert table.text1.tolist() == [0, 1, 0]
    assert table.text2.tolist() == [1, 2, 3]
    assert table.canonical.tolist() == [0, 1, 2, 0]
    assert table.phase.tolist() == [1, 1, 1]
    assert table.categories1 is None


def test_json_lines_may_leave_out_categories_and_hold_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = ['{"text1":"a","text2":"b","label":1,"category1":"x"}', "", '{"text1":"c","text2":"d","label":false}', ""]
    path.write_bytes("\r\n".join(rows).encode())
    table = read_pairs(path)
    assert table.categories1 == ["x", ""]
    assert table.categories2 is None
    assert table.label.tolist() == [True, False]


def test_csv_ignores_other_columns_and_reads_words_as_labels(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id, label ,text2,text1,owner\n7,TRUE,b,a,me\n8, 0.0 ,d,c,\n")
    table = read_pairs(path)
    assert table.texts == ["a", "b", "c", "d"]
    assert table.label.tolist() == [True, False]


# ---- labels


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [(None, [False, False, True, True]), (3, [False, False, False, True]), (2.4, [False, True, True, True])],
)
def test_graded_labels_are_scaled_and_the_threshold_is_in_their_own_unit(
    tmp_path: Path, threshold: float | None, expected: list[bool]
) -> None:
    path = tmp_path / "sts.csv"  # no header, as the STS benchmark has none
    path.write_text("a,b,0\nc,d,2.4\ne,f,2.5\ng,h,5\n")
    table = read_pairs(path, label_scale=5, positive_threshold=threshold)
    np.testing.assert_array_equal(table.score, np.array([0, 2.4, 2.5, 5]) / 5)
    assert table.label.tolist() == expected


def test_categories_are_compared_in_one_spelling_on_both_sides() -> None:
    columns = {"text1": list("abcd"), "text2": list("efgh"), "label": [1, 0, 1, 0]}
    table = pairs_from_columns(
        columns | {"category1": ["Net", "net ", " ", "Café"], "category2": ["NET", "mail", "", "café"]}
    )
    assert table.categories1 == ["Net", "Net", "", "Café"] and table.categories2 == ["Net", "mail", "", "Café"]


def test_booleans_are_the_ends_of_any_scale() -> None:
    table = pairs_from_columns(
        {"texts1": ["a", "b"], "texts2": ["c", "d"], "labels": [True, False]}, "x", label_scale=5
    )
    assert table.score.tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("scale", "threshold", "key"),
    [
        (0, None, "label_scale"),
        (-1, None, "label_scale"),
        (float("nan"), None, "label_scale"),
        (float("inf"), None, "label_scale"),
        (1, 0, "positive_threshold"),
        (5, 5.5, "positive_threshold"),
        (1, float("nan"), "positive_threshold"),
    ],
)
def test_a_scale_or_threshold_without_sense_names_its_key(scale: float, threshold: float | None, key: str) -> None:
    with pytest.raises(InputError, match=f"data.{key}"):
        pairs_from_columns(GOOD, "x", label_scale=scale, positive_threshold=threshold)


def test_positives_are_required_and_negatives_are_not() -> None:
    with pytest.raises(InputError, match=r"^here.csv: label: all 3 rows are negative: add positive pairs"):
        require_positives(pairs_from_columns(GOOD | {"labels": [0] * 3}, "here.csv"))
    with pytest.raises(
        InputError, match=r"are negative, the highest at 20% of data\.label_scale: .* or data\.label_scale$"
    ):
        require_positives(pairs_from_columns(GOOD | {"labels": [1, 0, 1]}, "here.csv", label_scale=5))
    copies = {"texts1": ["vpn down", "a"], "texts2": ["VPN  down", "b"], "labels": [1, 0]}
    with pytest.raises(InputError, match=r"^here.csv: every positive pair is a text and its own copy: add pairs"):
        require_positives(pairs_from_columns(copies, "here.csv"))
    for labels, both in (([1, 1, 1], False), ([1, 0, 1], True)):
        table = pairs_from_columns(GOOD | {"labels": labels}, "here.csv")
        require_positives(table)
        assert has_both_labels(table) == both
    assert not has_both_labels(pairs_from_columns(GOOD | {"labels": [0] * 3}, "here.csv"))


# ---- canonical forms


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("VPN  Down", " vpn down\n"),
        ("Stra\u00dfe", "STRASSE"),
        ("caf\u00e9", "Cafe\u0301"),
        ("\u212bngstr\u00f6m", "\u00c5NGSTRO\u0308M"),
        ("a\u00a0\u2003b", "A B"),
        ("\u1fb3", "\u0391\u0345"),
        ("\ud55c", "\u1112\u1161\u11ab"),
    ],
)
def test_copies_share_a_canonical_form(one: str, other: str) -> None:
    assert canonical_form(one) == canonical_form(other)
    table = pairs_from_columns({"texts1": [one], "texts2": [other], "labels": [1]}, "x")
    assert table.canonical.tolist() == [0, 0]
    assert len(table.texts) == 2


@pytest.mark.parametrize(("one", "other"), [("vpn down", "vpndown"), ("cafe", "caf\u00e9"), ("error 1", "error 2")])
def test_different_texts_do_not(one: str, other: str) -> None:
    assert canonical_form(one) != canonical_form(other)


@given(text=st.text(max_size=30))
@example(text="\u01f0\u0345\u0301")
@settings(max_examples=300, deadline=None)
def test_canonical_form_is_the_definition_written_out(text: str) -> None:
    decomposed = unicodedata.normalize("NFD", text)
    plain = " ".join(unicodedata.normalize("NFC", decomposed.casefold()).split())
    assert canonical_form(text) == plain
    assert canonical_form(plain) == canonical_form(decomposed) == canonical_form(f"\t{text}\n") == plain


@pytest.mark.parametrize("marks", ["\u0301\u0316", "\u0f73", "\U0001e944\U0001e948\U000101fd"])
def test_a_long_run_of_combining_marks_takes_linear_time(marks: str) -> None:
    start = time.process_time()
    canonical_form("a" + marks * 100_000)  # unicodedata alone needs half a minute or more for these
    assert time.process_time() - start < 10


def test_long_words_of_a_supplementary_script_stay_whole() -> None:
    word = "\U00011103\U00011131\U00011127" * 40  # Chakma: two of the three compose, and none is cut off
    assert canonical_form(word) == unicodedata.normalize("NFC", word)


# ---- sub-tables, components, splits


def random_table(seed: int, rows: int = 400, pool: int = 300) -> PairTable:
    rng = random.Random(seed)

    def ticket() -> str:
        text = f"ticket {rng.randrange(pool)}"
        return rng.choice([text, text.upper(), text.replace(" ", "  ")])

    columns: dict[str, list[Any]] = {
        "texts1": [ticket() for _ in range(rows)],
        "texts2": [ticket() for _ in range(rows)],
        "labels": [rng.randrange(2) for _ in range(rows)],
        "phase_indicators": [rng.randrange(1, 4) for _ in range(rows)],
        "categories1": [rng.choice("ab") for _ in range(rows)],
    }
    return pairs_from_columns(columns, f"random-{seed}")


def rows_of(table: PairTable) -> list[tuple[Any, ...]]:
    categories = table.categories1 or [""] * len(table)
    pairs = zip(table.text1, table.text2, table.label, table.score, table.phase, categories, strict=True)
    return [(table.texts[a], table.texts[b], *rest) for a, b, *rest in pairs]


def canonical_texts(table: PairTable) -> set[str]:
    return {canonical_form(text) for text in table.texts}


@pytest.mark.parametrize("seed", range(3))
def test_take_is_reading_a_file_of_just_those_rows(seed: int) -> None:
    table = random_table(seed)
    rows = np.random.default_rng(seed).permutation(len(table))[:50]
    part = table.take(rows)
    chosen = [rows_of(table)[row] for row in rows]
    a, b, labels, _, phases, categories = map(list, zip(*chosen, strict=True))
    again = pairs_from_columns(
        {"texts1": a, "texts2": b, "labels": [float(x) for x in labels], "phase_indicators": list(map(int, phases))}
        | {"categories1": categories},
        "again",
    )
    assert_same(part, again)
    assert part.row.tolist() == (rows + 1).tolist()
    assert part.take(np.array([3, 1])).row.tolist() == [rows[3] + 1, rows[1] + 1]
    mask = np.isin(np.arange(len(table)), rows)
    assert_same(table.take(mask), table.take(np.sort(rows)))
    assert_same(table.take(np.arange(len(table))), table)
    assert len(table.take(rows[:0])) == 0


CHANGES: dict[str, tuple[str, Any]] = {
    "text": ("texts1", "printer is jammed "),
    "label": ("labels", 0),
    "graded label": ("labels", 0.9),
    "phase": ("phase_indicators", 3),
    "first category": ("categories1", "other"),
    "second category": ("categories2", "other"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_fingerprint_sees_every_field(change: str) -> None:
    column, value = CHANGES[change]
    changed = GOOD | {column: [value, *GOOD[column][1:]]}
    assert pairs_from_columns(changed, "x").fingerprint() != pairs_from_columns(GOOD, "x").fingerprint()


def test_fingerprint_sees_order_and_sides_but_not_the_source_or_how_a_number_is_written() -> None:
    print_of = pairs_from_columns(GOOD, "x").fingerprint()
    assert pairs_from_columns({name: cells[::-1] for name, cells in GOOD.items()}, "x").fingerprint() != print_of
    swapped = GOOD | {"texts1": GOOD["texts2"], "texts2": GOOD["texts1"]}
    assert pairs_from_columns(swapped, "x").fingerprint() != print_of
    assert pairs_from_columns(GOOD | {"labels": [True, -0.0, 1.0]}, "y").fingerprint() == print_of
    without = {name: cells for name, cells in GOOD.items() if not name.startswith("categories")}
    assert pairs_from_columns(without, "x").fingerprint() != print_of


@pytest.mark.parametrize("seed", range(5))
def test_components_are_those_of_a_breadth_first_walk(seed: int) -> None:
    table = random_table(seed)
    neighbours: dict[str, set[str]] = {}
    for a, b, *_ in rows_of(table):
        one, other = canonical_form(a), canonical_form(b)
        neighbours.setdefault(one, set()).add(other)
        neighbours.setdefault(other, set()).add(one)
    component: dict[str, str] = {}
    for start in neighbours:
        queue = deque([start] if start not in component else [])
        while queue:
            text = queue.popleft()
            if component.setdefault(text, start) is start:
                queue.extend(other for other in neighbours[text] if other not in component)
    expected = [component[canonical_form(a)] for a, *_ in rows_of(table)]
    ours = connected_components(table).tolist()
    assert len(set(zip(expected, ours, strict=True))) == len(set(expected)) == len(set(ours))


def check_split(table: PairTable, split: Split, fraction: float) -> None:
    """What holds of every split, of tables whose rows all differ."""
    rest, held_out, left_out = split
    assert not canonical_texts(rest) & canonical_texts(held_out) and check_overlap(rest, held_out, allowed=0) == 0
    kept = Counter(rows_of(rest) + rows_of(held_out))
    assert kept <= Counter(rows_of(table)) and kept.total() == len(table) - left_out
    sides = {text: part for part in (rest, held_out) for text in canonical_texts(part)}
    for a, b, *_ in (Counter(rows_of(table)) - kept).elements():  # only what crosses, or hangs on what does, is lost
        assert sides.get(canonical_form(a)) is not sides.get(canonical_form(b)) or canonical_form(a) not in sides
    assert abs(len(held_out) - fraction * len(table)) <= max(1, 0.25 * fraction * len(table))
    assert rest.label.any() and held_out.label.any()


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
@pytest.mark.parametrize("seed", range(5))
def test_a_split_shares_no_text_loses_no_row_and_repeats(seed: int, fraction: float) -> None:
    table = random_table(seed, pool=1600)
    rest, held_out, left_out = hold_out(table, fraction, seed)
    check_split(table, Split(rest, held_out, left_out), fraction)
    assert left_out == 0 and abs(len(held_out) - fraction * len(table)) <= 1
    assert has_both_labels(rest) and has_both_labels(held_out)
    again = hold_out(table, fraction, seed)
    assert [part.fingerprint() for part in again[:2]] == [rest.fingerprint(), held_out.fingerprint()]
    assert hold_out(table, fraction, seed + 1).held_out.fingerprint() != held_out.fingerprint()


@pytest.mark.parametrize("labels", [[0, 1], [1, 1]])
@pytest.mark.parametrize("seed", range(3))
def test_where_all_pairs_hang_together_the_few_that_cross_are_left_out(seed: int, labels: list[int]) -> None:
    """A chain is cut at one place or two; a random graph, and a chain with chords, at few."""
    table = pairs_from_columns(chain(100) | {"labels": labels * 50}, "chain")
    split = hold_out(table, 0.3, seed)
    check_split(table, split, 0.3)
    assert 1 <= split.left_out <= 2
    rng = np.random.default_rng(seed)
    chords = {"texts1": [f"t{i}" for i in rng.integers(100, size=30)], "texts2": [f"t{i}" for i in range(0, 60, 2)]}
    columns = {name: cells + chords.get(name, labels * 15) for name, cells in chain(100).items()}
    table = pairs_from_columns(columns, "chords")
    split = hold_out(table, 0.2, seed)
    check_split(table, split, 0.2)
    again = hold_out(table, 0.2, seed)
    assert [part.fingerprint() for part in again[:2]] == [part.fingerprint() for part in split[:2]]
    # A random set of texts of that size loses far more.
    held = canonical_texts(split.held_out)
    drawn = set(rng.permutation(sorted(canonical_texts(table)))[: len(held)].tolist())
    crossing = sum((canonical_form(a) in drawn) != (canonical_form(b) in drawn) for a, b, *_ in rows_of(table))
    assert split.left_out <= 20 and split.left_out < crossing / 2


@pytest.mark.parametrize("seed", range(5))
def test_as_few_rows_are_left_out_as_any_set_of_texts_could(seed: int) -> None:
    """All sets of twelve texts are tried. (Growing is greedy: of a hundred such tables two are split less well.)"""
    size, rows, target = 12, 16, 0.3 * 16
    first = np.arange(rows) % size
    second = (first + np.random.default_rng(seed).choice([1, 2, 5], size=rows)) % size
    columns = {"texts1": [f"t{i}" for i in first], "texts2": [f"t{i}" for i in second], "labels": [1] * rows}
    sets = np.arange(2**size)[:, None]
    on_side = [(sets >> side & 1).astype(bool) for side in (first, second)]
    held, lost = (on_side[0] & on_side[1]).sum(1), (on_side[0] != on_side[1]).sum(1)
    fits = (abs(held - target) <= 0.25 * target) & (~on_side[0] & ~on_side[1]).any(1)
    table, fewest = pairs_from_columns(columns, "small"), lost[fits].min()
    if fewest > MOST_LEFT_OUT * rows:
        with pytest.raises(InputError, match="would be lost"):
            hold_out(table, 0.3, 0)
    else:
        assert hold_out(table, 0.3, 0).left_out == fewest


def test_too_few_negatives_for_both_parts_give_parts_of_positives_at_least() -> None:
    table = pairs_from_columns(
        {"texts1": [f"a{i}" for i in range(40)], "texts2": [f"b{i}" for i in range(40)], "labels": [1] * 39 + [0]}, "x"
    )
    split = hold_out(table, 0.2, 0)
    check_split(table, split, 0.2)
    assert split.left_out == 0 and len(split.held_out) == 8


def test_a_split_row_by_row_would_share_texts() -> None:
    """The negative control of the test above: these tables cannot be cut anywhere."""
    table = random_table(0, pool=1600)
    held = np.random.default_rng(0).random(len(table)) < 0.25
    assert check_overlap(table.take(~held), table.take(held), allowed=1) > 0


def chain(rows: int) -> dict[str, list[Any]]:
    """Pairs that all hang together."""
    return {
        "texts1": [f"t{i}" for i in range(rows)],
        "texts2": [f"t{i + 1}" for i in range(rows)],
        "labels": [0, 1] * (rows // 2),
    }


STAR = {"texts1": ["hub"] * 60, "texts2": [f"t{i}" for i in range(60)], "labels": [0, 1] * 30}
PAIRS = [(i, j) for i in range(12) for j in range(i)]
CLIQUE = {"texts1": [f"t{i}" for i, _ in PAIRS], "texts2": [f"t{j}" for _, j in PAIRS], "labels": [1] * len(PAIRS)}


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (STAR, "1 groups of connected texts, the largest of 60 rows"),
        (CLIQUE, r"of 66 rows: 3\d rows \(\d\d %\) connect both sides and would be lost, more than 20 %"),
        (GOOD | {"labels": [1, 0, 0]}, "with positives, and no text, on both sides"),
    ],
)
def test_a_split_that_cannot_be_is_refused_with_the_reason(columns: dict[str, list[Any]], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        hold_out(pairs_from_columns(columns, "here.csv"), 0.3, 0)
    assert_one_line(caught.value, "here.csv", "data.dev")


def test_a_run_says_what_its_split_leaves_out(tmp_path: Path) -> None:
    table = pairs_from_columns(chain(100), "chain")
    path = tmp_path / "chain.json"
    path.write_text(json.dumps(chain(100)))
    with console.capture() as captured:
        data = load_data(DataConfig(train=str(path), dev_fraction=0.2), 0)
    dev, lost = len(data.dev), data.left_out
    assert 15 <= dev <= 25 and 1 <= lost <= 2 and len(data.train) + dev + lost == len(table)
    said = "".join(captured.get().splitlines())
    assert said == f"{path}: held out {dev} of 100 rows as dev; {lost} rows that connect both sides are left out"
    ones = tmp_path / "ones.json"
    ones.write_text(json.dumps(chain(100) | {"labels": [1] * 100}))
    data = load_data(DataConfig(train=str(ones), dev_fraction=0.2), 0)
    assert data.train.label.all() and data.dev.label.all() and data.overlap == {"dev": 0}
    path.write_text(json.dumps(chain(100) | {"labels": [0] * 100}))
    for config in (DataConfig(train=str(path)), DataConfig(train=str(ones), dev=str(path))):
        with pytest.raises(InputError, match=r"chain\.json: label: all 100 rows are negative: add positive pairs"):
            load_data(config, 0)


@pytest.mark.parametrize("limit", [37, 200, 399])
def test_a_sample_keeps_the_shares_of_phases_and_labels(limit: int) -> None:
    table = random_table(1)
    kinds = Counter(zip(table.phase.tolist(), table.label.tolist(), strict=True))
    sample = sample_pairs(table, limit, 0)
    assert len(sample) == limit and sample.row.tolist() == sorted(sample.row.tolist())
    assert Counter(rows_of(sample)) <= Counter(rows_of(table))
    for kind, count in Counter(zip(sample.phase.tolist(), sample.label.tolist(), strict=True)).items():
        assert abs(count - kinds[kind] * limit / 400) <= 1
    assert sample_pairs(table, limit, 0).row.tolist() == sample.row.tolist()
    assert sample_pairs(table, limit, 1).row.tolist() != sample.row.tolist()


def test_a_sample_keeps_anchors_together_and_all_is_all() -> None:
    anchors = [f"anchor {number % 50}" for number in range(200)]
    columns = {"texts1": anchors, "texts2": [f"text {i}" for i in range(200)], "labels": [1] * 50 + [0] * 150}
    table = pairs_from_columns(columns, "triplets.json")
    sample = sample_pairs(table, 40, 0)
    positives, negatives = ({sample.texts[i] for i in sample.text1[sample.label == label]} for label in (True, False))
    assert len(sample) == 40 and len(positives) == 10 and negatives == positives
    assert sample_pairs(table, 200, 0) is table


def test_a_limit_changes_what_is_trained_and_nothing_that_judges(tmp_path: Path) -> None:
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps(generate_pairs(120, 0, "train")))
    whole, small = (load_data(DataConfig(train=str(path), limit=limit), 0) for limit in (0, 30))
    assert len(small.train) == 30 and small.beyond_limit == len(whole.train) - 30 and whole.beyond_limit == 0
    assert small.dev.fingerprint() == whole.dev.fingerprint() and small.overlap == whole.overlap
    assert "(a sample of 30: data.limit)" in small.train.source


def test_positives_that_a_limit_leaves_out_stay_known(tmp_path: Path) -> None:
    """Each of ten texts with each of ten others: all candidates of a batch belong together."""
    path, dev = tmp_path / "pairs.json", tmp_path / "dev.json"
    crossed = {"texts1": [f"a{i // 10}" for i in range(100)], "texts2": [f"B{i % 10} " for i in range(100)]}
    path.write_text(json.dumps(crossed | {"labels": [1] * 100}))
    dev.write_text(json.dumps(generate_pairs(24, 0, "dev")))
    for limit in (0, 12):
        data = load_data(DataConfig(train=str(path), dev=str(dev), limit=limit), 0)
        first, second = (np.unique(data.train.canonical[side]) for side in (data.train.text1, data.train.text2))
        known = data.known_positives.toarray()
        assert known[np.ix_(first, second)].all() and known.sum() == 2 * len(first) * len(second)
    assert positives_of(data.train).sum() < known.sum()  # the control


@pytest.mark.parametrize("fraction", [0, 1, -0.1, float("nan")])
def test_a_fraction_outside_0_and_1_is_refused(fraction: float) -> None:
    with pytest.raises(InputError, match="fraction"):
        hold_out(random_table(0), fraction, 0)


def test_overlap_counts_copies_and_shows_three() -> None:
    train = pairs_from_columns(GOOD, "train.csv")
    copies = ["Printer  is JAMMED", "vpn drops", "vpn drops", "screen is black", "mail bounces " + " " * 200]
    other = pairs_from_columns({"texts1": copies, "texts2": [f"n{i}" for i in range(5)], "labels": [1] * 5}, "dev.csv")
    with pytest.raises(InputError, match=r"one of 4 texts that are also in train\.csv") as caught:
        check_overlap(train, other, allowed=0)
    assert_one_line(
        caught.value, "dev.csv", "'Printer  is JAMMED', 'vpn drops', 'screen is black')", "data.allow_overlap = 1"
    )
    assert "mail" not in str(caught.value)
    assert check_overlap(train, other, allowed=1) == 4


@pytest.mark.parametrize("seed", range(3))
def test_known_positives_are_every_positive_pair_both_ways(seed: int) -> None:
    table = random_table(seed)
    size = table.canonical.max() + 1
    matrix, expected = positives_of(table), np.zeros((size, size), dtype=bool)
    for a, b, label in zip(table.text1, table.text2, table.label, strict=True):
        if label:
            one, other = table.canonical[a], table.canonical[b]
            expected[one, other] = expected[other, one] = True
    assert matrix.dtype == bool
    np.testing.assert_array_equal(matrix.toarray(), expected)
    some = np.arange(0, size, 7)
    np.testing.assert_array_equal(matrix[some][:, some].toarray(), expected[np.ix_(some, some)])


# ---- bad input


def assert_one_line(error: InputError, *parts: str) -> None:
    message = str(error)
    assert message.isprintable(), repr(message)  # so it is one line, and any terminal can show it
    assert len(message) < 600
    for part in parts:
        assert part in message, message


def assert_refused(path: Path, *parts: str) -> None:
    with pytest.raises(InputError) as caught:
        read_pairs(path)
    assert_one_line(caught.value, str(path), *parts)


# Cells that no file may hold: column, value, words of the message. First those only JSON can spell.
BAD_VALUES: list[tuple[str, Any, str]] = [
    ("texts1", None, "is missing: write a string"),
    ("texts2", 7, "7 is not a text"),
    ("texts1", True, "true is not a text"),
    ("texts1", ["a"], "a list is not a text"),
    ("texts2", {"a": 1}, "an object is not a text"),
    ("texts1", "bad \ud800 half", "half a surrogate pair (\\ud800) at character 5"),
    ("categories2", "\udfff", "half a surrogate pair (\\udfff)"),
    ("categories1", 3, "3 is not a category"),
    ("labels", None, "is missing: write 0, 1 or a score"),
    ("labels", [1], "a list is not a number"),
    ("labels", 10**30, "a huge integer is not between 0 and 1"),
    ("phase_indicators", None, "null is not a phase"),
    ("phase_indicators", True, "true is not a phase"),
    ("phase_indicators", 10**30, "a huge integer is not a phase"),
]
BAD_CELLS: list[tuple[str, Any, str]] = [
    ("texts1", "", "is blank"),
    ("texts2", " \t\u3000", "is blank"),
    ("texts1", "a\0b", "holds a NUL at character 2"),
    ("categories1", "\0", "holds a NUL at character 1"),
    ("labels", 2, "is not between 0 and 1"),
    ("labels", -0.5, "is not between 0 and 1"),
    ("labels", float("nan"), "nan is not between 0 and 1"),
    ("labels", float("inf"), "inf is not between 0 and 1"),
    ("labels", "similar", "'similar' is not a number"),
    ("labels", "", "'' is not a number"),
    ("labels", "1_0", "'1_0' is not a number"),
    ("phase_indicators", 0, "is not a phase"),
    ("phase_indicators", -1, "is not a phase"),
    ("phase_indicators", 1.0, "is not a phase"),
    ("phase_indicators", 2**31, "is not a phase"),
    ("phase_indicators", "one\nhundred", "'one\\nhundred' is not a phase"),
]


@pytest.mark.parametrize(
    ("suffix", "column", "value", "words"),
    [(suffix, *bad) for suffix in (".json", ".jsonl") for bad in BAD_VALUES + BAD_CELLS]
    + [(suffix, *bad) for suffix in (".csv", ".tsv") for bad in BAD_CELLS],
)
def test_a_bad_cell_is_named_by_row_field_and_fault(
    tmp_path: Path, suffix: str, column: str, value: Any, words: str
) -> None:
    columns = GOOD | {column: [*GOOD[column][:2], value]}
    path = tmp_path / f"pairs{suffix}"
    if suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, as_records(columns))))
    else:
        path.write_bytes(WRITERS[suffix](columns).encode())
    field = column if suffix == ".json" else FIELDS[column]
    row = "row 3 (line 4)" if suffix in (".csv", ".tsv") else "row 3"
    assert_refused(path, f"{row}, {field}: ", words)
    with pytest.raises(InputError, match=r"^here: row 3, "):
        pairs_from_columns(columns, "here")


ROW = '{"text1":"a","text2":"b","label":1}\n'
HEAD = "text1,text2,label,phase\n"
SMALL = '{"texts1":["a"],"texts2":["b"],"labels":[1]}'

# name of the file, its bytes, words of the message
BAD_FILES: dict[str, tuple[str, str | bytes, list[str]]] = {
    "empty": ("a.json", "", ["is empty"]),
    "empty but for a BOM": ("a.csv", b"\xef\xbb\xbf", ["is empty"]),
    "white space": ("a.jsonl", "\n \n", ["is empty"]),
    "header alone": ("a.csv", HEAD, ["no rows"]),
    "columns without rows": ("a.json", '{"texts1":[],"texts2":[],"labels":[]}', ["no rows"]),
    "unknown format": ("a.xls", "x", ["'.xls'", ".jsonl"]),
    "no suffix": ("pairs", "x", ["unknown format", ".json"]),
    "gz alone": ("pairs.gz", gzip.compress(b"x"), ["unknown format"]),
    "bad JSON": ("a.json", '{"texts1": ["a"],\n "texts2": [}', ["line 2, column 13", "mend"]),
    "a record and more": ("a.json", ROW + "oops", ["line 2, column 1"]),
    "bad JSON line": ("a.jsonl", ROW + "\n" + '{"text1": oops}', ["line 3, column 11"]),
    "raw NUL in JSON": ("a.json", SMALL.replace("b", "\0"), ["line 1, column 28"]),
    "list on top": ("a.json", "[1]", ["row 1 is 1", "an object"]),
    "list of nothing": ("a.json", "[]", ["holds no records"]),
    "number on top": ("a.json", "NaN", ["top level is nan"]),
    "line not an object": ("a.jsonl", ROW + "[1]", ["row 2 is a list"]),
    "ragged": ("a.json", '{"texts1":["a","b"],"texts2":["c","d"],"labels":[1]}', ["texts1 2", "texts2 2", "labels 1"]),
    "ragged phases": ("a.json", SMALL[:-1] + ',"phase_indicators":[]}', ["labels 1", "phase_indicators 0"]),
    "column not a list": ("a.json", '{"texts1":"a","texts2":["b"],"labels":[1]}', ["texts1 is 'a'", "list"]),
    "missing column": (
        "a.json",
        '{"texts1":["a"],"texst2":["b"],"labels":[1]}',
        ["text2 is missing", "nearest: 'texst2'"],
    ),
    "missing CSV column": ("a.csv", "text1,text2,lable\na,b,1\n", ["column label is missing", "'lable'"]),
    "two unnamed columns": ("a.csv", "a,1\n", ["columns text1, text2, label are missing", "'a', '1'"]),
    "missing key": ("a.jsonl", ROW + "\n" + '{"text1":"a","label":1}', ["row 2 (line 3), text2: is missing"]),
    "phase in some rows": ("a.jsonl", ROW[:-2] + ',"phase":1}\n' + ROW, ["row 2, phase: null"]),
    "duplicate key": ("a.json", SMALL[:-1] + ',"labels":[0]}', ["'labels' stands twice"]),
    "duplicate key in a line": ("a.jsonl", ROW + '{"label":1,"label":0}', ["'label' stands twice", "line 2"]),
    "duplicate key inside": ("a.json", SMALL[:-1] + ',"meta":{"a\\n":1,"a\\n":2}}', ["'a\\n' stands twice"]),
    "duplicate CSV column": ("a.csv", "text1,text2,label,label\na,b,1,0\n", ["column label stands twice"]),
    "NaN label": ("a.json", SMALL.replace("1]", "NaN]"), ["row 1, labels: nan"]),
    "huge integer label": ("a.json", SMALL.replace("1]", "9" * 5000 + "]"), ["row 1, labels: inf"]),
    "huge integer line": ("a.jsonl", ROW + ROW.replace(":1", ":" + "9" * 5000), ["row 2, label: inf"]),
    "huge integer cell": ("a.csv", HEAD + "a,b,1," + "9" * 5000 + "\n", ["row 1 (line 2), phase: '9999"]),
    "NaN in a bare CSV": ("a.csv", "a,b,1\nc,d,nan\n", ["row 2, label: nan"]),
    "short row": ("a.csv", HEAD + 'a,"b\n\nb",1,1\nc,d,1\n', ["row 2 (line 5)", "3 cell(s)", "4"]),
    "long row": ("a.tsv", "a\tb\t1\na\tb\tc\t1\n", ["row 2: 4 cell(s) where the first row has 3", "'\\t'"]),
    "unclosed quote": ("a.csv", HEAD + 'a,b,1,1\n\nc,"d,1,1\ne,f,1,1\n', ["line 4 is broken", "never closed"]),
    "text after a quote": ("a.csv", HEAD + 'a,"b"c,1,1\n', ["line 2 is broken", "double each quote"]),
    "text after a quote, tabs": ("a.tsv", 'a\t"b"c\t1\nb\t1\n', ["line 1 is broken", "text follows a closing quote"]),
    "unclosed quote in the header": ("a.csv", '"text1,text2\n', ["line 1 is broken", "never closed"]),
    "Cyrillic in a byte a letter": (
        "a.csv",
        HEAD.encode() + ("нет связи," * 20).encode("cp1251"),
        ["byte 24 (line 2)", "western", "set data.encoding"],
    ),
    "UTF-8 that was damaged": (
        "a.csv",
        (HEAD + "für die Tür,b,1,1\n").encode() + b"\xfc\n",
        ["byte 44 (line 3)", "not UTF-8"],
    ),
    "half of UTF-16": ("a.csv", HEAD.encode("utf-16")[:-1], ["is not utf-16 at byte"]),
    "zeros": ("a.json", bytes(1000), ["line 1, column 1"]),
    "a web page": ("a.csv", "<!DOCTYPE html><table>", ["is a web page", "CSV"]),
    "old Excel": ("a.xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", ["old Excel", ".xlsx"]),
    "zip": ("a.xlsx", b"PK\x03\x04" + bytes(30), ["zip archive", "unpack"]),
    "no workbook": ("a.xlsx", b"PK\x03\x04 xl/workbook.xml", ["cannot be read as XLSX"]),
    "text for a workbook": ("a.xlsx", HEAD, ["is named .xlsx and holds something else"]),
    "Parquet of nothing": ("a.parquet", b"PAR1", ["cannot be read as Parquet"]),
    "deep nesting": ("a.json", "[" * 10**6, ["nested too deeply"]),
    "deep nesting in a line": ("a.jsonl", ROW + '{"a":' * 10**6, ["nested too deeply", "line 2"]),
    "deep nesting in a cell": ("a.json", SMALL.replace('"a"', "[" * 500 + "]" * 500), ["row 1, texts1: a list"]),
    "not gzip": ("a.csv.gz", HEAD, ["gzip data is damaged"]),
    "cut gzip": ("a.csv.gz", gzip.compress(HEAD.encode())[:-3], ["gzip data ends too early"]),
    "gzip checksum": ("a.csv.gz", gzip.compress(HEAD.encode())[:-8] + bytes(8), ["gzip data is damaged"]),
    "gzip and more": ("a.csv.gz", gzip.compress(HEAD.encode()) + b"more", ["gzip data is damaged"]),
    "gzip of nothing": ("a.csv.gz", gzip.compress(b""), ["is empty"]),
    "no bytes as gzip": ("a.csv.gz", b"", ["is empty"]),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_refused_in_one_line_with_place_and_fix(tmp_path: Path, case: str) -> None:
    if case == "no workbook":
        pytest.importorskip("openpyxl", reason="needs the extra `data`")
    name, content, words = BAD_FILES[case]
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert_refused(path, *words)


def test_the_bad_files_are_bad_only_where_they_mean_to_be(tmp_path: Path) -> None:
    for name, content in {"a.json": SMALL, "a.jsonl": ROW, "a.csv": HEAD + "a,b,1,1\n", "a.tsv": "a\tb\t1\n"}.items():
        (tmp_path / name).write_text(content)
        assert_same(read_pairs(tmp_path / name), pairs_from_columns(json.loads(SMALL), "x"))


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    assert_refused(tmp_path / "none.json", "file not found")
    assert_refused(tmp_path, "is a folder")
    assert_refused(tmp_path / ("x" * 300 + ".csv"), "cannot be found")
    assert_refused(Path("/dev/null"), "not a regular file")
    for name in ("two\nlines.json", "nul\0.json"):
        with pytest.raises(InputError) as caught:
            read_pairs(tmp_path / name)
        assert_one_line(caught.value, repr(name)[1:-1])


def test_a_gzip_bomb_is_refused_at_the_bound_and_a_file_within_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = GOOD | {"texts1": ["x" * 300_000, "b", "c"]}
    path = write(tmp_path, ".csv.gz", columns)
    assert path.stat().st_size * text_files.EXPANSION_MAX_RATIO < 300_000
    assert len(read_pairs(path)) == 3  # small enough to be allowed any ratio
    monkeypatch.setattr(text_files, "EXPANSION_ALWAYS_BYTES", 1000)
    assert_refused(path, "expands to more than", "uncompressed")
    monkeypatch.setattr(text_files, "EXPANSION_MAX_RATIO", 1000)
    assert len(read_pairs(path)) == 3


def test_a_gzip_of_several_members_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.csv.gz"
    path.write_bytes(b"".join(gzip.compress(part) for part in (b"text1,text2,label\n", b"", b"a,b,1\n", b"c,d,0\n")))
    assert read_pairs(path).label.tolist() == [True, False]


LARGE = 2 * 10**6
COSTLY: dict[str, tuple[str, Any]] = {
    "one cell": ("a.csv", lambda: f"text1,text2,label\n{'x' * LARGE},b,1\n"),
    "a cell of quotes": ("a.csv", lambda: 'text1,text2,label\n"' + '""' * (LARGE // 2) + '",b,1\n'),
    "a cell of lines": ("a.tsv", lambda: 'text1\ttext2\tlabel\n"x' + "\n" * LARGE + '"\tb\t1\n'),
    "commas": ("a.csv", lambda: "text1,text2,label\n" + "," * LARGE),
    "unclosed": ("a.csv", lambda: 'text1,text2,label\n"' + "a\n" * (LARGE // 2)),
    "blank lines": ("a.jsonl", lambda: "\n" * LARGE + "x"),
    "marks": ("a.json", lambda: SMALL.replace("a", "a" + "\u0301\u0316" * (LARGE // 4))),
    "digits": ("a.json", lambda: SMALL.replace("1]", "9" * LARGE + "]")),
    "keys": ("a.json", lambda: "{" + '"a":1,' * (LARGE // 6) + '"a":1}'),
    "brackets": ("a.jsonl", lambda: "[" * LARGE),
    "gzip members": ("a.csv.gz", lambda: gzip.compress(b"") * (LARGE // 20)),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", COSTLY)
def test_megabytes_of_the_worst_are_read_or_refused_in_linear_time(tmp_path: Path, case: str) -> None:
    name, build = COSTLY[case]
    content = build()
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    start = time.process_time()
    assert_rows_or_refusal(path)
    assert time.process_time() - start < 20


def assert_rows_or_refusal(path: Path) -> None:
    try:
        assert len(read_pairs(path)) > 0
    except InputError as error:
        assert_one_line(error, str(path))


@pytest.mark.slow
@given(suffix=st.sampled_from(ALL_SUFFIXES), data=st.binary(max_size=200), squeeze=st.booleans())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_give_rows_or_a_refusal(tmp_path: Path, suffix: str, data: bytes, squeeze: bool) -> None:
    path = tmp_path / f"any{suffix}"
    path.write_bytes(gzip.compress(data) if squeeze and suffix.endswith(".gz") else data)
    assert_rows_or_refusal(path)


@pytest.mark.slow
@given(suffix=st.sampled_from(list(WRITERS)), edits=EDITS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_good_file_with_a_few_bytes_changed_gives_rows_or_a_refusal(
    tmp_path: Path, suffix: str, edits: Edits
) -> None:
    path = tmp_path / f"edited{suffix}"
    path.write_bytes(edited(WRITERS[suffix](GOOD).encode(), edits))
    assert_rows_or_refusal(path)


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=6,
)


@pytest.mark.slow
@given(columns=st.fixed_dictionaries({}, optional={name: st.lists(json_values, max_size=3) for name in FIELDS}))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_json_values_in_the_columns_give_rows_or_a_refusal(tmp_path: Path, columns: dict[str, list[Any]]) -> None:
    path = tmp_path / "values.json"
    path.write_text(json.dumps(columns))
    assert_rows_or_refusal(path)


# ---- real data


@pytest.mark.parametrize(
    ("name", "phases", "positives"),
    [("itsm_pairs_train.json", {1: 1280, 2: 1280, 3: 1278}, 1919), ("itsm_pairs_dev.json", {3: 818}, 409)],
)
def test_real_pairs_have_the_expected_counts(
    name: str, phases: dict[int, int], positives: int, shared_data: Path
) -> None:
    table = read_pairs(shared_data / name)
    assert Counter(table.phase.tolist()) == phases
    assert int(table.label.sum()) == positives
    assert table.categories1 is not None


def test_real_graded_pairs_without_header(shared_data: Path) -> None:
    table = read_pairs(shared_data / "stsb-en-dev.csv", label_scale=5)
    assert len(table) == 1500
    assert table.score.min() >= 0
    assert table.score.max() == 1
    with pytest.raises(
        InputError, match=r"rows 1, 2, 3, .* more, label: 5\.0 is not between 0 and 1: .*data\.label_scale"
    ):
        read_pairs(shared_data / "stsb-en-dev.csv")


def test_real_pairs_that_hang_together_lose_few_rows(shared_data: Path) -> None:
    """784 of these 818 rows are connected."""
    table = read_pairs(shared_data / "itsm_pairs_dev.json")
    split = hold_out(table, 0.1, 0)
    check_split(table, split, 0.1)
    assert 0 < split.left_out <= 10 and has_both_labels(split.rest) and has_both_labels(split.held_out)


def test_texts_that_the_real_train_and_dev_share_are_found(shared_data: Path) -> None:
    """17 short titles ("erp access issue") stand on both sides, by a plain set intersection as well."""
    train, dev = (read_pairs(shared_data / f"itsm_pairs_{part}.json") for part in ("train", "dev"))
    plain = [{" ".join(text.casefold().split()) for text in table.texts} for table in (train, dev)]
    assert check_overlap(train, dev, allowed=1) == len(plain[0] & plain[1]) == 17
    with pytest.raises(InputError, match=r"33 of its 818 pairs \(4\.0%\) hold one of 17 texts .*_overlap = 0\.05$"):
        check_overlap(train, dev, allowed=0.04)
    assert check_overlap(train, dev, allowed=0.05) == 17


# ---- columns in memory


class Frame(dict):
    """As pandas: names on the outside, and columns that only know `tolist`."""


class Series:
    def __init__(self, values: list[Any]) -> None:
        self.values = np.array(values, dtype=object)

    def tolist(self) -> list[Any]:
        return self.values.tolist()


SINGULAR = tuple(FIELDS.values())


def columns_of(kind: Any, names: tuple[str, ...]) -> dict[str, Any]:
    columns = (["a", "b", "c"], ["d", "e", "f"], [1, 0, 1], [1, 1, 2], ["x", "y", "x"], ["x", "x", "z"])
    return {name: kind(values) for name, values in zip(names, columns, strict=True)}


@pytest.mark.parametrize("names", [tuple(FIELDS), SINGULAR], ids=["plural", "singular"])
@pytest.mark.parametrize("kind", [list, tuple, np.array, Series, lambda values: [*np.array(values)]])
def test_columns_of_every_kind_are_the_same_pairs(kind: Any, names: tuple[str, ...]) -> None:
    expected = pairs_from_columns(columns_of(list, SINGULAR))
    table = pairs_from_columns(Frame(columns_of(kind, names)), "frame")
    assert table.fingerprint() == expected.fingerprint() and (expected.source, table.source) == ("pairs", "frame")
    assert table.phase.tolist() == [1, 1, 2] and table.categories2 == ["x", "x", "z"]


def test_a_data_frame_is_read_as_it_is() -> None:
    import pandas  # of the extra `test`, by way of datasets

    columns = columns_of(list, SINGULAR) | {"category1": ["x", None, float("nan")]}
    table = pairs_from_columns(pandas.DataFrame(columns))
    assert table.categories1 == ["x", "", ""] and table.label.tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"label": [1, 7, 0]}, ["frame: row 2, label: 7 is not between 0 and 1"]),
        ({"text2": ["d", None, "f"]}, ["frame: row 2, text2: is missing"]),
        ({"text1": np.array([1, 2, 3])}, ["frame: rows 1, 2, 3, text1: 1 is not a text"]),
        ({"phase": [1.0, 1.0, float("nan")]}, ["rows 1, 2, 3, phase: 1.0 is not a phase"]),
        ({"label": [1, 0]}, ["differ in length"]),
        ({"label": "110"}, ["'110'", "make it a list"]),
    ],
)
def test_errors_in_columns_name_source_row_and_field(change: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        pairs_from_columns(columns_of(list, SINGULAR) | change, "frame")
    assert_one_line(caught.value, *words)


@pytest.mark.parametrize(
    ("columns", "teacher", "groups"),
    [
        ({"teacher": ["0,5", ""], "label": [1, 0], "text2": ["p", "q"]}, [0.5, None], [0, 0]),
        ({"positive": ["p", "q"], "teacher_scores": [3, 2]}, [3, 2], [0, 0]),
        ({"pos": [["p"], ["q"]], "neg": [["n", "m"], []], "pos_scores": [[3], [2]]}, [3, None, None, 2], [0] * 4),
        ({"positive": ["p", "q"], "negative": ["n", "m"], "teacher": [[3, 1], [2, -1.5]]}, [3, 1, 2, -1.5], [0] * 4),
        ({"positive": ["p", "q"], "negative": ["n", "m"], "margin": ["2.5", " "]}, [0, -2.5, None, None], [1, 1, 2, 2]),
    ],
)
def test_a_teachers_scores_are_read(columns, teacher, groups):
    table = pairs_from_columns({"anchor": ["a", "b"], **columns})
    assert [None if score != score else score for score in table.teacher.tolist()] == teacher
    assert table.teacher_group.tolist() == groups
    last = table.take([len(table) - 1])
    assert np.array_equal(last.teacher, table.teacher[-1:], equal_nan=True) and last.teacher_group[0] == groups[-1]
    others = {name: cells for name, cells in columns.items() if name not in SCORES and name != "teacher_scores"}
    assert pairs_from_columns({"anchor": ["a", "b"], **others}).fingerprint() != table.fingerprint()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"teacher": [["x", 1], [1, 2]]}, "row 1, teacher: 'x' is not a score"),
        ({"teacher": [[1, 1], [2e15, 2]]}, "row 2, teacher: 2000000000000000.0 is not a score"),
        ({"teacher": [[1, 2], [1]]}, "row 2, teacher: does not fit its 2 positives and negatives"),
        ({"margin": [1, [2, 3]]}, "row 2, margin: does not fit its 2 positives and negatives: give as many margins"),
        ({"neg_scores": [1, [2, 3]]}, "row 2, neg_scores: does not fit its negatives (1): give as many scores"),
        ({"pos_scores": [1, [2, 3]], "neg_scores": [1, []]}, "row 2, pos_scores: does not fit its positives (1)"),
        (
            {"teacher": [[1, 1], [1, 2]], "margins": [1, 2]},
            "has a teacher's scores as 'teacher' and as 'margins': say which count, as in data.columns = "
            '["teacher=teacher"]',
        ),
        ({"margin": [1, 1], "neg_score": [1, 2]}, "has a teacher's scores as 'margin' and as 'neg_score'"),
    ],
)
def test_scores_that_cannot_be_a_teachers_are_refused(columns, message):
    with pytest.raises(InputError, match=re.escape(message)):
        pairs_from_columns({"anchor": ["a", "b"], "positive": ["p", "q"], "negative": ["n", "m"], **columns})
