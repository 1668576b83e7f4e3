"""Several training files: joined as one table, shown by weight, each batch from all of them or from one."""

from __future__ import annotations

import json
from collections import Counter, deque
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import until_finish

from trainer.checkpoint.identity import SOURCE, differences
from trainer.config import Config, CurriculumConfig, DataConfig, LossConfig
from trainer.config_data import SourceConfig
from trainer.data.batch_filling import Unit, draw_units, make_units
from trainer.data.batch_layout import LayoutBuilder
from trainer.data.curriculum import PhasedBatchSampler
from trainer.data.incidents import generate_pairs
from trainer.data.pairs import PairTable, pairs_from_columns, positives_of, soft_targets
from trainer.data.run_data import load_data
from trainer.data.sources import by_source, join, rows_by_source
from trainer.data.split import check_overlap, hold_out
from trainer.errors import InputError
from trainer.lint.linter import lint_tables
from trainer.main import cli
from trainer.text.canonical import canonical_form
from trainer.training.plan import source_record
from trainer.training.setup import layout_builder


def table(name: str, count: int, phases: list[int] | None = None, **columns: list[Any]) -> PairTable:
    """`count` rows of a file, every third a negative, with texts of its own."""
    cells: dict[str, Any] = {
        "text1": [f"{name} one {i}" for i in range(count)],
        "text2": [f"{name} two {i}" for i in range(count)],
        "label": [int(i % 3 < 2) for i in range(count)],
    }
    phase = {"phase": [phases[i % len(phases)] for i in range(count)]} if phases else {}
    return pairs_from_columns(cells | phase | columns, f"{name}.json")


def rows_of(pairs: PairTable) -> list[tuple[Any, ...]]:
    return [
        (pairs.place(i), pairs.texts[pairs.text1[i]], pairs.texts[pairs.text2[i]], pairs.score[i], pairs.label[i])
        for i in range(len(pairs))
    ]


# ---- one table


def test_positives_alone_as_test_are_refused_beside_a_corpus(tmp_path: Path) -> None:
    """The corpus would be judged in their name."""
    (tmp_path / "pairs.json").write_text(json.dumps(generate_pairs(96, 0, "train")))
    (tmp_path / "dev.json").write_text(json.dumps(generate_pairs(48, 0, "dev")))
    (tmp_path / "test.csv").write_text("anchor,positive\n" + "\n".join(f"ask {i},answer {i}" for i in range(20)))
    (tmp_path / "corpus.csv").write_text("number,text\n" + "\n".join(f"{i},ticket {i}" for i in range(20)))
    data = DataConfig(train=str(tmp_path / "pairs.json"), dev=str(tmp_path / "dev.json"))
    data = replace(data, test=str(tmp_path / "test.csv"))
    load_data(data, seed=0)
    with pytest.raises(InputError, match=r"data\.test = .*test\.csv: it holds positives alone"):
        load_data(replace(data, corpus=str(tmp_path / "corpus.csv")), seed=0)


def test_labels_are_soft_targets_where_those_of_their_own_file_are_graded() -> None:
    graded = pairs_from_columns({"text1": ["a", "b"], "text2": ["c", "d"], "label": [4.0, 0.0]}, label_scale=5.0)
    taught = table("t", 3, teacher=[0.25, 0.75, None])
    targets = soft_targets(join([table("own", 3), replace(graded, source="g.csv", sources=("g.csv",)), taught]))
    np.testing.assert_allclose(targets, [np.nan] * 3 + [0.8, 0.0] + [0.25, 0.75, np.nan])
    # A teacher's unit is no one else's, and a run's setting.
    encoder: Any = SimpleNamespace(spec=SimpleNamespace(side_prompts=("",)))
    config, tokens = Config(loss=LossConfig(distillation_weight=1, teacher_scale=5)), np.empty(0)
    data: Any = SimpleNamespace(train=taught, known_positives=positives_of(taught))
    assert np.nanmax(layout_builder(config, data, encoder, tokens).teacher) == pytest.approx(0.15)  # type: ignore[arg-type]
    in_fifths = soft_targets(join([table("own", 3), replace(graded, source="g.csv", sources=("g.csv",)), taught]), 5.0)
    np.testing.assert_allclose(in_fifths, [np.nan] * 3 + [0.8, 0.0] + [0.05, 0.15, np.nan])


def test_a_forgetting_set_that_is_trained_on_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It would measure what was learned, and let every strength through."""
    rows = [f"sentence {i},phrase {i},{i % 6}" for i in range(40)]
    (tmp_path / "sts.csv").write_text("\n".join(rows))
    (tmp_path / "others.csv").write_text("\n".join(row.replace("sentence", "clause") for row in rows))
    (tmp_path / "pairs.json").write_text(json.dumps(generate_pairs(96, 0, "train")))
    (tmp_path / "dev.json").write_text(json.dumps(generate_pairs(48, 0, "dev")))
    general = SourceConfig(str(tmp_path / "sts.csv"), label_scale=5.0, positive_threshold=4.0)  # of its own
    sources = SourceConfig(str(tmp_path / "pairs.json")), general
    data = DataConfig(sources=sources, dev=str(tmp_path / "dev.json"), forgetting=str(tmp_path / "others.csv"))
    assert load_data(data, seed=0).overlap == {"dev": 0, "forgetting": 40}  # the second sides
    assert "40 of its texts are trained on" in capfd.readouterr().err
    with pytest.raises(InputError, match=r"data\.forgetting = .*sts\.csv: 40 of its 40 rows are also in data\.sources"):
        load_data(replace(data, forgetting=str(tmp_path / "sts.csv")), seed=0)


def test_teachers_of_two_files_are_not_compared() -> None:
    one, other = (table(name, 3, teacher=[1.0, 0.5, None]) for name in "ab")
    margins = pairs_from_columns(
        {"anchor": ["p", "q"], "positive": ["r", "s"], "negative": ["t", "u"], "margin": [2, 3]}
    )
    both = join([one, other, margins])
    assert both.teacher.tolist()[:2] == [1.0, 0.5] and np.isnan(both.teacher[2])
    groups = both.teacher_group.tolist()
    assert len(set(groups[:3])) == len(set(groups[3:6])) == 1 and len(set(groups)) == 4
    assert groups[6] == groups[7] != groups[8] == groups[9]  # margins: a row with itself alone
    assert both.take(np.arange(6, 10)).teacher.tolist() == margins.teacher.tolist()


def test_a_joined_table_has_the_rows_of_all_and_one_number_a_form() -> None:
    one = table("a", 5, [1, 2], text1=["Same  text", "x", "y", "z", "w"], category1=list("vwxyz"))
    other = table("b", 4, text2=["same text", "x", "q", "r"])
    both = join([one, other])
    assert rows_of(both) == rows_of(one) + rows_of(other)
    assert both.phase.tolist() == [*one.phase.tolist(), 0, 0, 0, 0]  # of all phases
    assert both.categories1 == [*"vwxyz", "", "", "", ""] and both.categories2 is None
    numbers = {canonical_form(text): int(number) for text, number in zip(both.texts, both.canonical, strict=True)}
    assert [numbers[canonical_form(text)] for text in both.texts] == both.canonical.tolist()
    assert sorted(numbers.values()) == list(range(len(numbers)))
    assert numbers[canonical_form("Same  text")] == both.canonical[both.text2[5]]
    assert [rows_of(part) for part in by_source(both)] == [rows_of(one), rows_of(other)]
    assert rows_by_source(both) == {"a.json": 5, "b.json": 4}
    known = positives_of(both)  # of either file
    assert known[both.canonical[both.text1[0]], both.canonical[both.text2[0]]]
    assert known[both.canonical[both.text1[5]], both.canonical[both.text2[5]]]
    # Which file a row is from decides the plan, so it is of the fingerprint; of one file it is not.
    assert join([one]) is one
    assert both.fingerprint() != as_of_one_file(both).fingerprint()


def as_of_one_file(pairs: PairTable) -> PairTable:
    """The same rows as of one file."""
    return replace(pairs, sources=("a.json",), part=np.zeros(len(pairs), dtype=np.int32))


# ---- rows by weight


def dealt(units: list[Unit], weight: float, epochs: int, seed: tuple[int, ...]) -> list[list[Unit]]:
    """Slow reference: a pack, shuffled when it is through, dealt a unit at a time until an epoch has its rows."""
    total, rows, deals, shown = sum(len(unit.rows) for unit in units), 0, 0, []
    pack: deque[int] = deque()
    for epoch in range(epochs):
        hand: list[tuple[int, int]] = []
        while rows < round(weight * total * (epoch + 1)):
            if not pack:
                pack.extend(np.random.default_rng((*seed, deals, 1)).permutation(len(units)).tolist())
                deals += 1
            hand.append((deals, pack.popleft()))
            rows += len(units[hand[-1][1]].rows)
        shown.append([units[i] for _, i in sorted(hand)])
    return shown


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=25),
    st.sampled_from([0.05, 0.3, 0.5, 1.0, 1.7, 2.0, 3.25]),
    st.integers(0, 2**32 - 1),
)
def test_units_are_dealt_as_from_a_pack(sizes: list[int], weight: float, seed: int) -> None:
    starts = np.cumsum([0, *sizes]).tolist()
    units = [Unit(tuple(range(a, b)), frozenset()) for a, b in pairwise(starts)]
    drawn = [draw_units(units, weight, epoch, (seed, 7)) for epoch in range(6)]
    assert drawn == dealt(units, weight, 6, (seed, 7))
    shown = Counter(unit for epoch in drawn for unit in epoch)
    counts = [shown[unit] for unit in units]
    assert max(counts) - min(counts) <= 1  # none comes again before all others came
    assert abs(sum(len(unit.rows) * count for unit, count in shown.items()) - 6 * weight * starts[-1]) <= max(sizes) + 1
    if weight == int(weight):
        assert all(Counter(epoch) == Counter(units * int(weight)) for epoch in drawn)


# ---- dev, split off


@pytest.mark.parametrize("seed", range(3))
def test_dev_is_a_share_of_each_source(seed: int) -> None:
    """Also of one whose pairs all hang together, beside one of many loose pairs; a text of both is on one side."""
    count = 200
    chain = {"texts1": [f"t{i}" for i in range(count)], "texts2": [f"t{i + 1}" for i in range(count)]}
    loose = {"texts1": [f"a{i}" for i in range(count)], "texts2": [f"b{i}" for i in range(count)]}
    loose["texts1"][:3] = ["t5", "t50", "t150"]
    labels = {"labels": [0, 1] * (count // 2)}
    table = join([pairs_from_columns(each | labels, name) for each, name in ((chain, "chain"), (loose, "loose"))])
    rest, held, left_out = hold_out(table, 0.2, seed)
    assert all(30 <= rows <= 50 for rows in rows_by_source(held).values())
    assert len(rest) + len(held) + left_out == 2 * count and left_out <= 6
    assert check_overlap(rest, held, allowed=0) == 0


# ---- the plan

FILES = [table("a", 60, [1, 2]), table("b", 45, [1, 2]), table("general", 40)]
WEIGHTS = (1.0, 0.4, 0.2)


def plan(tables: list[PairTable], **options: Any) -> tuple[PairTable, PhasedBatchSampler]:
    config = options.pop("config", CurriculumConfig(phases=(1, 2), epochs=5))
    arguments: dict[str, Any] = {"batch_size": 4, "seed": 3, "weights": WEIGHTS} | options
    joined = join(tables)
    return joined, PhasedBatchSampler(joined, config, **arguments)


@pytest.mark.parametrize("by_source", [False, True])
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_phase_shows_its_files_by_weight_and_the_general_one_in_every_phase(by_source: bool, world_size: int) -> None:
    pairs, sampler = plan(FILES, by_source=by_source, world_size=world_size)
    again = plan(FILES, by_source=by_source, world_size=world_size)[1]
    assert all(np.array_equal(one, other) for one, other in zip(sampler, again, strict=True))
    size, seen_general = 4 * world_size, Counter[int]()
    for phase in sampler.phases:
        batches = [sampler[step] for step in range(phase.first_step, phase.first_step + phase.steps)]
        assert all(len(batch) == size for batch in batches)
        shown = np.concatenate(batches)
        assert set(pairs.phase[shown].tolist()) == {int(phase.name), 0}
        assert phase.rows_by_source == rows_by_source(pairs, shown)
        # 30 rows of a, 22 or 23 of b a phase, 40 of the general file, five epochs each.
        expected = {"a.json": 150, "b.json": 0.4 * 5 * (23 if phase.name == "1" else 22), "general.json": 40}
        for name, rows in phase.rows_by_source.items():
            assert expected[name] - (size if by_source else phase.left_over) - 1 <= rows <= expected[name] + 1
        assert sum(phase.rows_by_source.values()) + phase.left_over == pytest.approx(sum(expected.values()), abs=2)
        seen_general.update(int(row) for row in shown if pairs.phase[row] == 0)
    assert len(seen_general) >= 40 - size * by_source - 5  # what phase 2 shows is not what phase 1 has shown
    parts = [{int(part) for part in pairs.part[batch]} for batch in sampler]
    assert all(len(of_batch) == 1 for of_batch in parts) == by_source  # negative control: mixed batches are not
    order = [next(iter(of_batch)) for of_batch in parts][: sampler.phases[0].steps]
    assert not by_source or order != sorted(order)  # files do not come one after the other
    for step, batch in enumerate(sampler):
        assert np.array_equal(np.concatenate([sampler.local(step, rank) for rank in range(world_size)]), batch)


def test_a_run_that_ends_early_shows_the_rows_of_its_steps() -> None:
    pairs, sampler = plan(FILES)
    files = [SimpleNamespace(weight=weight) for weight in WEIGHTS]
    data: Any = SimpleNamespace(train=pairs, training_files=lambda: files)
    run: Any = SimpleNamespace(data=data, sampler=sampler, config=SimpleNamespace(data=data))
    record = source_record(run, 3)
    assert [each["rows"] for each in record.values()] == [60, 45, 40]
    assert {name: each["shown"] for name, each in record.items()} == rows_by_source(pairs, np.concatenate(sampler[:3]))


def test_a_negative_does_not_ride_with_a_positive_of_another_file() -> None:
    anchors = [f"anchor {i}" for i in range(24)]
    tables = [table(name, 24, text1=anchors, label=labels) for name, labels in (("a", [1] * 24), ("b", [1, 0] * 12))]
    pairs, sampler = plan(tables, config=CurriculumConfig(mode="mixed"), weights=(1, 1), by_source=True)
    assert all(len(set(pairs.part[batch].tolist())) == 1 for batch in sampler)


def test_one_file_of_weight_1_is_planned_as_ever() -> None:
    only, config = FILES[0], CurriculumConfig(phases=(1, 2), epochs=2)
    plain = PhasedBatchSampler(only, config, batch_size=4, seed=3)
    for options in ({"weights": [1.0]}, {"by_source": True}):
        other = PhasedBatchSampler(only, config, batch_size=4, seed=3, **options)
        assert all(np.array_equal(one, two) for one, two in zip(plain, other, strict=True))


def test_replay_is_of_earlier_phases_and_never_of_the_general_file() -> None:
    config = CurriculumConfig(phases=(1, 2), epochs=4, replay=0.5)
    pairs, sampler = plan(FILES, config=config)
    assert sampler.phases[1].replayed == pytest.approx(4 * 0.5 * (30 + 0.4 * 22), abs=8)
    shown = np.concatenate([sampler[step] for step in range(sampler.phases[1].first_step, len(sampler))])
    assert (pairs.phase[shown] == 0).sum() <= 4 * 0.2 * 40 + 1
    assert (pairs.phase[shown] == 1).sum() > 0


@pytest.mark.parametrize(
    ("tables", "options", "words"),
    [
        ([table("a", 9), table("b", 3)], {"by_source": True}, ["b.json: phase mixed has 3 rows", "data.batches"]),
        ([table("a", 9), table("b", 8)], {"weights": (1, 0.01), "by_source": True}, ["b.json: its weight", "raise it"]),
        ([table("a", 9)], {"weights": (0.01,)}, ["a.json: its weight shows phase mixed fewer rows"]),
        ([table("a", 9), table("b", 4, label=[0] * 4)], {"by_source": True}, ["b.json", "no positive", "data.batches"]),
        ([table("a", 9, [1, 2]), table("b", 9, [1, 5])], {}, ["b.json: row 2: phase 5 is not in"]),
    ],
)
def test_a_source_that_fills_no_batch_is_an_error_with_its_name(
    tables: list[PairTable], options: dict[str, Any], words: list[str]
) -> None:
    config = CurriculumConfig(epochs=1, mode="phased" if tables[0].has_phases else "mixed", phases=(1, 2))
    with pytest.raises(InputError) as caught:
        plan(tables, config=config, **({"weights": (1,) * len(tables)} | options))
    assert all(word in str(caught.value) for word in words), str(caught.value)


# ---- a run's data


def write(folder: Path, name: str, pairs: list[tuple[str, str, Any]], header: str = "text1,text2,label") -> str:
    path = folder / name
    path.write_text("\n".join([header, *(f"{a},{b},{label}" for a, b, label in pairs)]))
    return str(path)


def of(name: str, count: int, full: int = 1) -> list[tuple[str, str, Any]]:
    return [(f"{name} one {i}", f"{name} two {i}", full * int(i % 3 < 2)) for i in range(count)]


def test_dev_is_split_off_all_sources_and_shares_no_text_with_any(tmp_path: Path) -> None:
    own = write(tmp_path, "own.csv", of("own", 60))
    # Every text of its first rows stands in the other file too, written otherwise.
    general = write(
        tmp_path, "sts.csv", [(a.upper(), b + " ", 5 * label) for a, b, label in of("own", 20)] + of("sts", 40, 5)
    )
    config = DataConfig(sources=[{"path": own}, {"path": general, "label_scale": 5, "weight": 0.2}], dev_fraction=0.2)
    data = load_data(config, seed=1)
    held = {f"{source} (held-out part)" for source in (own, general)}
    assert rows_by_source(data.dev).keys() == held and min(rows_by_source(data.dev).values()) >= 9
    assert not set(map(canonical_form, data.train.texts)) & set(map(canonical_form, data.dev.texts))
    assert len(data.train) + len(data.dev) == 120 and data.train.score.max() == 1.0
    limited = load_data(DataConfig(**{**vars(config), "limit": 48}), seed=1)
    shares = [np.array(list(rows_by_source(each.train).values())) / len(each.train) for each in (data, limited)]
    assert len(limited.train) == 48 and np.abs(shares[0] - shares[1]).max() < 0.03
    assert limited.dev.fingerprint() == data.dev.fingerprint()


def test_overlap_with_dev_names_the_file_that_holds_it(tmp_path: Path) -> None:
    own, general = write(tmp_path, "own.csv", of("own", 30)), write(tmp_path, "sts.csv", of("sts", 30))
    sources = [{"path": own}, {"path": general}]
    dev = write(tmp_path, "dev.csv", of("dev", 20) + of("sts", 2))
    with pytest.raises(InputError) as caught:
        load_data(DataConfig(sources=sources, dev=dev), seed=0)
    assert f"also in {general} (such as" in str(caught.value) and own not in str(caught.value)
    copy = write(tmp_path, "copy.csv", of("own", 30))
    with pytest.raises(InputError) as caught:
        load_data(DataConfig(sources=sources, dev=copy), seed=0)
    assert f"also in data.sources ({own})" in str(caught.value)


def test_overlap_of_dev_with_test_is_refused_or_recorded(tmp_path: Path) -> None:
    train, dev = write(tmp_path, "train.csv", of("own", 30)), write(tmp_path, "dev.csv", of("dev", 20))
    data = DataConfig(train=train, dev=dev, test=write(tmp_path, "test.csv", of("test", 20) + of("dev", 2)))
    with pytest.raises(InputError, match=r"test\.csv: 2 of its 22 pairs .* also in .*dev\.csv"):
        load_data(data, seed=0)
    assert load_data(replace(data, allow_overlap=0.1), seed=0).overlap == {"dev": 0, "test": 0, "dev and test": 4}


@pytest.mark.slow
def test_lint_looks_at_each_file_and_at_what_they_say_of_the_same_texts() -> None:
    twice = {
        f"text{side}": [*(f"a {word} {i}" for i in range(30)), f"A {word}  0"]
        for side, word in ((1, "one"), (2, "two"))
    }
    one = table("a", 31, **twice)
    other = table("b", 30, text1=["a one 0", *(f"c {i}" for i in range(29))], text2=["a two 0"] + ["d"] * 29)
    contrary = pairs_from_columns(
        {"text1": ["x", "a two 0", "z"], "text2": ["y", "a one 0", "w"], "label": [1, 0, 1]}, "contrary.json"
    )
    report = lint_tables([one, other, contrary], training=3)
    assert report.sources == {"a.json": 31, "b.json": 30, "contrary.json": 3}
    found = [each for each in report.findings if "with" in each.values]
    assert [(each.source, each.values["with"], each.rows) for each in found] == [
        ("contrary.json", "a.json", [2]),
        ("contrary.json", "b.json", [2]),
    ]
    # Whoever corrected labels takes the old rows out, so these are named too.
    assert "1 of 3 (33.3 %) rows have the other label in a.json: there rows 1, 31" in found[0].message
    assert found[0].values["rows_there"] == [1, 31] and "in a.json" in found[0].fix
    assert "in b.json: there row 1" in found[1].message
    # Negative control: held out, the same texts are an overlap.
    assert "text overlap" in [each.name for each in lint_tables([one, other]).findings]


# ---- shapes of rows in batches


def tuples(anchors: int, negatives: int) -> PairTable:
    columns = {"anchor": [f"q {i}" for i in range(anchors)], "positive": [f"p {i}" for i in range(anchors)]}
    columns |= {f"negative_{k}": [f"n {i} {k}" for i in range(anchors)] for k in range(negatives)}
    return pairs_from_columns(columns, "tuples.json")


@pytest.mark.parametrize(
    ("negatives", "batch_size", "least"), [(1, 16, 1.0), (4, 16, 0.85), (8, 16, 0.85), (8, 18, 1.0)]
)
def test_negatives_of_an_n_tuple_ride_with_their_anchor(negatives: int, batch_size: int, least: float) -> None:
    pairs = tuples(120, negatives)
    assert len(pairs) == 120 * (1 + negatives) and int(pairs.label.sum()) == 120
    assert [len(unit.rows) for unit in make_units(pairs, np.arange(len(pairs)))] == [1 + negatives] * 120
    sampler = PhasedBatchSampler(pairs, CurriculumConfig(mode="mixed", epochs=2), batch_size=batch_size, seed=0)
    (phase,) = sampler.phases
    assert phase.riding >= least * (phase.riding + phase.extra) and phase.repeats == 0
    assert phase.negatives_per_anchor == batch_size - 1  # every row is a candidate of every anchor in its batch
    assert all(pairs.label[batch].any() for batch in sampler)


def test_negatives_that_name_their_anchor_second_count_as_candidates_too() -> None:
    pairs = tuples(24, 3)
    turned = {"texts1": [], "texts2": [], "labels": pairs.label.tolist()}
    for row in range(len(pairs)):
        sides = (pairs.texts[pairs.text1[row]], pairs.texts[pairs.text2[row]])
        for name, text in zip(("texts1", "texts2"), sides if pairs.label[row] else sides[::-1], strict=True):
            turned[name].append(text)
    config = CurriculumConfig(mode="mixed", epochs=1)
    for table in (pairs, pairs_from_columns(turned, "turned.json")):
        (phase,) = PhasedBatchSampler(table, config, batch_size=16, seed=0).phases
        assert phase.negatives_per_anchor == 15


def test_known_positives_do_not_count_as_negatives_of_an_anchor() -> None:
    config = CurriculumConfig(mode="mixed", epochs=1)
    for anchors, expected in ((1, 0.0), (2, 8.0)):
        columns = {"anchor": [f"q {i % anchors}" for i in range(64)], "positive": [f"p {i}" for i in range(64)]}
        table = pairs_from_columns(columns, "many.json")
        sampler = PhasedBatchSampler(table, config, batch_size=16, seed=0)
        builder = LayoutBuilder(table, positives_of(table), rank=0, all_pairs=False)
        layouts = [builder.build([batch]) for batch in sampler]
        seen = [len(each.candidates) - (each.excluded >= 0).sum() / len(each.queries) for each in layouts]
        assert sampler.phases[0].negatives_per_anchor == pytest.approx(np.mean(seen)) == pytest.approx(expected, abs=1)


def test_each_positive_of_an_anchor_is_a_target_and_they_are_masked_for_each_other() -> None:
    columns = {"query": [f"q {i}" for i in range(20)], "pos": [[f"p {i} {k}" for k in range(3)] for i in range(20)]}
    pairs = pairs_from_columns(columns, "lists.json")
    assert pairs.label.all() and len(pairs) == 60
    sampler = PhasedBatchSampler(pairs, CurriculumConfig(mode="mixed", epochs=1), batch_size=6, seed=0)
    assert sorted(np.concatenate(list(sampler)).tolist()) == list(range(60)) and sampler.phases[0].repeats == 0
    assert positives_of(pairs)[pairs.canonical[pairs.text1[0]]].indices.tolist() == sorted(
        pairs.canonical[pairs.text2[:3]].tolist()
    )


def test_a_changed_file_is_named_when_a_run_is_continued() -> None:
    before, now = ({SOURCE + "a.json": "1", SOURCE + "b.json": fingerprint} for fingerprint in "23")
    assert differences(before, now) == ["b.json has changed"] and not differences(now, now)


# ---- whole runs


def shapes(count: int) -> dict[str, list[dict[str, Any]]]:
    """Rows of each shape without labels, as the front page names them."""
    words = ["printer jams", "vpn drops", "mail bounces", "screen black", "disk full", "login fails"]
    one, two, other = ([f"{words[(i + k) % 6]} {form} {i}" for i in range(count)] for k, form in enumerate("abc"))
    pairs = [{"anchor": one[i], "positive": two[i]} for i in range(count)]
    return {
        "positives": pairs,
        "triplets": [row | {"negative": other[i]} for i, row in enumerate(pairs)],  # of the run of several files
        "tuples": [row | {f"negative_{k}": f"{other[i]} {k}" for k in range(1, 5)} for i, row in enumerate(pairs)],
        "lists": [
            {"query": one[i], "pos": [two[i], other[i]], "neg": [f"{two[i]} no"] * (i % 2)} for i in range(count)
        ],
    }


def arguments(model: Path, out: Path, *settings_: str) -> list[str]:
    given = [f"model.name={model}", "lora.enabled=false", "loss.dims=[64, 16]", "loss.pair_weight=0.1", *settings_]
    small = ["curriculum.epochs=1", "train.batch_size=16", "optim.lr=1e-3", f"output.dir={out}"]
    return ["train", *(word for setting in (*given, *small) for word in ("--set", setting))]


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["positives", "tuples", "lists"])
def test_each_shape_trains_without_labels(shape: str, tiny_model: Any, tmp_path: Path) -> None:
    path, rows = tmp_path / f"{shape}.jsonl", shapes(80 if shape == "positives" else 40)[shape]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run, state = until_finish(cli, arguments(tiny_model("mpnet"), tmp_path / "run", f"data.train={path}"))
    assert state.step == len(run.sampler) > 2 and state.best is not None
    losses = [json.loads(line).get("loss") for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [loss for loss in losses if loss is not None]
    assert len(losses) == state.step and np.isfinite(losses).all()
    assert np.mean(losses[len(losses) // 2 :]) < np.mean(losses[: len(losses) // 2])


@pytest.mark.slow
def test_a_row_of_dev_that_is_split_off_several_files_is_named_with_its_file(tiny_model: Any, tmp_path: Path) -> None:
    """In lint.json, scores.json and the report; a run that ended early says what it has shown."""
    own, general = write(tmp_path, "own.csv", of("own", 60)), write(tmp_path, "general.csv", of("general", 60))
    sources = f'data.sources=[{{path="{own}"}}, {{path="{general}"}}]'
    run = tmp_path / "run"
    command = arguments(tiny_model("mpnet"), run, sources, "data.dev_fraction=0.3")
    assert cli([*command, "--max-steps", "1"]) == 0
    held = {f"{path} (held-out part)" for path in (own, general)}
    assert json.loads((run / "lint.json").read_text())["sources"].keys() == held | {own, general}
    worst = json.loads((run / "scores.json").read_text())["worst"]
    assert {pair["file"] for pair in worst} == held
    first = f"{worst[0]['row']} of {Path(worst[0]['file']).name}"
    assert first in (run / "report.html").read_text()
    metadata = json.loads((run / "training_metadata.json").read_text())
    assert sum(source["shown"] for source in metadata["sources"].values()) == 16
    early = f"It ended early, after 1 of {metadata['planned_steps']} planned steps."
    assert early in (run / "model" / "README.md").read_text()


@pytest.mark.slow
def test_a_phase_without_a_single_negative_is_told_of(
    tiny_model: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    dev = write(tmp_path, "dev.csv", of("dev", 40))
    for anchors, is_said in ((1, True), (30, False)):
        train = tmp_path / f"{anchors}.csv"
        train.write_text("anchor,positive\n" + "".join(f"q {i % anchors},p {i}\n" for i in range(60)))
        command = arguments(tiny_model("mpnet"), tmp_path / "run", f"data.train={train}", f"data.dev={dev}")
        assert cli([*command, "--dry-run"]) == 0
        assert ("no anchor has a negative in its batch" in capfd.readouterr().err) is is_said


@pytest.mark.slow
@pytest.mark.usefixtures("blank_report")
def test_a_run_of_several_files_says_what_each_gave(tiny_model: Any, tmp_path: Path) -> None:
    own = tmp_path / "own.jsonl"
    own.write_text("".join(json.dumps(row) + "\n" for row in shapes(60)["triplets"]))
    general = write(tmp_path, "general.csv", of("general", 100, 5))
    dev = write(tmp_path, "dev.csv", of("dev", 40))
    sources = f'data.sources=[{{path="{own}"}}, {{path="{general}", label_scale=5, weight=0.4}}]'
    run = tmp_path / "run"
    command = arguments(tiny_model("mpnet"), run, sources, f"data.dev={dev}", "data.batches=by_source")
    assert cli(command) == 0
    (phase,) = json.loads((run / "plan.json").read_text())["phases"]
    assert phase["rows_by_source"] == {str(own): 112, general: 32}
    metadata = json.loads((run / "training_metadata.json").read_text())
    assert metadata["sources"] == {
        str(own): {"rows": 120, "shown": 112, "weight": 1.0},
        general: {"rows": 100, "shown": 32, "weight": 0.4},
    }
    card = (run / "model" / "README.md").read_text()
    assert "Training pairs: 120 of own.jsonl, 100 of general.csv (weight 0.4)." in card
    assert json.loads((run / "lint.json").read_text())["sources"] == {str(own): 120, general: 100, dev: 40}
