"""The generated pairs: their format, what each phase promises, and splits that share words but no text."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from itertools import combinations
from typing import NamedTuple

import pytest

from trainer.data.incidents import FORMS, FRAMES, GRAMMAR, SPLITS, generate_pairs
from trainer.errors import InputError

COLUMNS = ["texts1", "texts2", "labels", "phase_indicators", "categories1", "categories2"]


class Row(NamedTuple):
    text1: str
    text2: str
    label: int
    phase: int
    category1: str
    category2: str


def rows(count: int, seed: int, split: str) -> list[Row]:
    pairs = generate_pairs(count, seed, split)
    return [Row(*values) for values in zip(*pairs.values(), strict=True)]


def normalised(text: str) -> str:
    return " ".join(text.casefold().split())


def texts(count: int, seed: int, split: str) -> set[str]:
    return {normalised(text) for row in rows(count, seed, split) for text in (row.text1, row.text2)}


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z']+", text.casefold()))


def forms(line: str) -> list[str]:
    return [form.strip() for form in line.split("|")]


def overlap(row: Row) -> float:
    """Jaccard index of the words of the two texts."""
    first, second = words(row.text1), words(row.text2)
    return len(first & second) / len(first | second)


def meaning(text: str) -> tuple[str, str]:
    """The thing and the fault of a text, as lines of the grammar, found by looking for every way of saying each."""
    found = []
    for lists in zip(*GRAMMAR.values(), strict=True):
        ways = {form: line for lines in lists for line in lines.splitlines() for form in forms(line)}
        longest = max((way for way in ways if way in text.casefold()), key=len)
        found.append(ways[longest].strip())
    return found[0], found[1]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("seed", [0, 7, 2**40])
def test_labels_are_what_the_texts_mean(seed: int, split: str) -> None:
    for row in rows(300, seed, split):
        assert (meaning(row.text1) == meaning(row.text2)) == bool(row.label), row
        assert row.text1 != row.text2


@pytest.mark.parametrize("count", [6, 12, 360, 600])
def test_every_phase_is_half_positive(count: int) -> None:
    counted = Counter((row.phase, row.label) for row in rows(count, 3, "train"))
    assert counted == {(phase, label): count // 6 for phase in (1, 2, 3) for label in (0, 1)}


@pytest.mark.parametrize("count", [7, 8, 9, 10, 11, 101])
def test_any_count_is_met_and_balanced_to_within_one_anchor(count: int) -> None:
    table = rows(count, 3, "dev")
    counted = Counter((row.phase, row.label) for row in table)
    assert len(table) == count
    assert max(counted.values()) - min(counted[phase, label] for phase in (1, 2, 3) for label in (0, 1)) <= 1


def test_format_is_the_columnar_pair_file_ordered_by_phase() -> None:
    pairs = generate_pairs(60, 0, "train")
    assert list(pairs) == COLUMNS
    assert {len(column) for column in pairs.values()} == {60}
    assert json.loads(json.dumps(pairs)) == pairs
    assert pairs["phase_indicators"] == sorted(pairs["phase_indicators"])
    assert all(text.strip() == text and text for text in pairs["texts1"] + pairs["texts2"])


def test_an_anchor_has_a_positive_row_and_a_negative_one() -> None:
    table = rows(360, 1, "train")
    for positive, negative in zip(table[::2], table[1::2], strict=True):
        assert positive.text1 == negative.text1
        assert (positive.label, negative.label) == (1, 0)


def test_phases_choose_their_negatives_from_nearer_and_nearer() -> None:
    for row in rows(600, 2, "train"):
        (thing1, fault1), (thing2, fault2) = meaning(row.text1), meaning(row.text2)
        assert (row.category1 == row.category2) == (row.label == 1 or row.phase > 1)
        for category, thing in ((row.category1, thing1), (row.category2, thing2)):
            assert thing in {line.strip() for line in GRAMMAR[category][0].splitlines()}
        if row.phase == 3 and row.label == 0:
            assert (thing1 == thing2) != (fault1 == fault2)


def test_word_overlap_helps_in_the_easy_phase_and_misleads_in_the_hard_one() -> None:
    mean: dict[tuple[int, int], float] = {}
    grouped = defaultdict(list)
    for row in rows(600, 4, "dev"):
        grouped[row.phase, row.label].append(overlap(row))
    for key, values in grouped.items():
        mean[key] = sum(values) / len(values)
    assert mean[1, 1] > mean[1, 0] + 0.3
    assert abs(mean[2, 1] - mean[2, 0]) < 0.1
    assert mean[3, 0] > mean[3, 1] + 0.3


def test_hard_positives_swap_the_order_and_share_no_way_of_saying() -> None:
    for row in rows(360, 5, "train"):
        if (row.phase, row.label) != (3, 1):
            continue
        thing_first, said = [], []
        for text, lines in ((row.text1.casefold(), meaning(row.text1)), (row.text2.casefold(), meaning(row.text2))):
            thing, fault = (max((way for way in forms(line) if way in text), key=len) for line in lines)
            thing_first.append(text.index(thing) < text.index(fault))
            said.append((thing, fault))
        assert thing_first[0] != thing_first[1]
        assert said[0][0] != said[1][0]
        assert said[0][1] != said[1][1]


@pytest.mark.slow
@pytest.mark.parametrize(("one", "other"), list(combinations(SPLITS, 2)))
@pytest.mark.parametrize("seeds", [(0, 0), (1, 2)])
def test_splits_share_words_but_no_text(one: str, other: str, seeds: tuple[int, int]) -> None:
    first, second = texts(3000, seeds[0], one), texts(3000, seeds[1], other)
    assert not first & second
    assert words(" ".join(first)) == words(" ".join(second))


def test_within_a_split_seeds_do_share_texts() -> None:
    """The control of the test above: at that size it would see texts that the splits did not keep apart."""
    assert texts(3000, 1, "train") & texts(3000, 2, "train")


def test_every_text_shows_one_number_and_it_belongs_to_the_split() -> None:
    assert all("{number}" in frame and not re.search(r"\d", frame) for frame in FRAMES)
    for rank, split in enumerate(SPLITS):
        for text in texts(600, 6, split):
            (number,) = re.findall(r"\d+", text)
            assert int(number) % len(SPLITS) == rank


def test_grammar_says_everything_in_as_many_ways_and_none_means_two_things() -> None:
    every = []
    for things, faults in GRAMMAR.values():
        for line in (*things.splitlines(), *faults.splitlines()):
            ways = forms(line)
            assert len(ways) == FORMS
            every += ways
            for first, second in combinations(ways, 2):
                assert len(words(first) & words(second)) <= 1, (first, second)
    assert len(set(every)) == len(every)


def test_same_arguments_same_pairs_in_another_process_with_another_hash_seed() -> None:
    program = (
        "import json; from trainer.data.incidents import generate_pairs as g; print(json.dumps(g(120, 11, 'dev')))"
    )
    here = generate_pairs(120, 11, "dev")
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        run = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        assert json.loads(run.stdout) == here


def test_pairs_are_pinned() -> None:
    """Every version of Python gives these; a change of the grammar changes the records made with it, and this line."""
    digest = hashlib.sha256(json.dumps(generate_pairs(360, 0, "train")).encode()).hexdigest()
    assert digest[:16] == "694655f3a942b1bf"


def test_seeds_and_splits_give_different_pairs() -> None:
    tables = [generate_pairs(60, seed, split) for seed in (0, 1) for split in SPLITS]
    assert all(first != second for first, second in combinations(tables, 2))


@pytest.mark.parametrize(
    ("count", "split", "told"),
    [(5, "train", "count is 5"), (0, "dev", "at least 6"), (60, "eval", "use one of train, dev, test")],
)
def test_bad_arguments_are_one_line(count: int, split: str, told: str) -> None:
    with pytest.raises(InputError, match=told) as caught:
        generate_pairs(count, 0, split)
    assert "\n" not in str(caught.value)
