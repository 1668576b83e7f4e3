"""The plan of a run: what every batch must hold, whatever the pairs look like."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from trainer.config import CurriculumConfig
from trainer.data.batch_filling import Unit, spread_repeats
from trainer.data.curriculum import PhasedBatchSampler
from trainer.data.pairs import PairTable, pairs_from_columns
from trainer.data.sources import join
from trainer.errors import InputError


def table(rows: list[tuple[int, int, int, int]]) -> PairTable:
    """Pairs from (text, text, label, phase), texts named by numbers."""
    first, second, labels, phases = zip(*rows, strict=True)
    return pairs_from_columns(
        {
            "texts1": [f"text {i}" for i in first],
            "texts2": [f"text {i}" for i in second],
            "labels": list(labels),
            "phase_indicators": list(phases),
        },
        "pairs.json",
    )


def paired_table(anchors: int, phases: int = 1) -> PairTable:
    """As the real data: each anchor has a positive and a negative, and each body serves two anchors."""
    rows = []
    for phase in range(1, phases + 1):
        start = 10_000 * phase
        for i in range(anchors):
            rows += [(start + i, start + 5_000 + i, 1, phase)]
            rows += [(start + i, start + 5_000 + (i + 1) % anchors, 0, phase)]
    return table(rows)


def phased(phases, **changes):
    return CurriculumConfig(phases=tuple(phases), **changes)


random_rows = st.lists(
    st.tuples(st.integers(0, 40), st.integers(100, 140), st.integers(0, 1), st.integers(1, 2)), min_size=8, max_size=90
)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(random_rows, st.integers(2, 9), st.integers(1, 4), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_invariants(rows, batch_size, epochs, world_size, seed):
    pairs = table(rows)
    config = phased(sorted({row[3] for row in rows}), epochs=epochs)
    size = batch_size * world_size
    for phase in config.phases:
        labels = [row[2] for row in rows if row[3] == phase]
        assume(len(labels) >= size and any(labels))
    sampler = PhasedBatchSampler(pairs, config, batch_size=batch_size, seed=seed, world_size=world_size)
    again = PhasedBatchSampler(pairs, config, batch_size=batch_size, seed=seed, world_size=world_size)

    assert len(sampler) == len(list(sampler)) == len(sampler.epochs)
    assert all(np.array_equal(a, b) for a, b in zip(sampler, again, strict=True))
    assert sum(phase.steps for phase in sampler.phases) == len(sampler)
    for number, phase in enumerate(sampler.phases):
        own = np.flatnonzero(pairs.phase == config.phases[number])
        batches = [sampler[step] for step in range(phase.first_step, phase.first_step + phase.steps)]
        assert all(len(batch) == size for batch in batches)
        # Nothing is dropped, padded or repeated: every row is shown once an epoch, but for what is left over.
        assert phase.steps == len(own) * epochs // size
        assert phase.left_over == len(own) * epochs - phase.steps * size
        shown = Counter(row for batch in batches for row in batch.tolist())
        assert set(shown) <= set(own.tolist()) and max(shown.values()) <= epochs
        assert sum(epochs - shown[row] for row in own.tolist()) == phase.left_over
        negatives = sum(int((~pairs.label[batch]).sum()) for batch in batches)
        assert phase.riding + phase.extra == negatives
    for step in range(len(sampler)):
        parts = [sampler.local(step, rank) for rank in range(world_size)]
        assert {len(part) for part in parts} == {batch_size}
        assert np.array_equal(np.concatenate(parts), sampler[step])


def repeats_a_text(pairs: PairTable, batch: np.ndarray) -> bool:
    """Slow reference: whether two unrelated rows (other than a positive and its anchor's negatives) share a text."""
    owners: dict[int, set[int]] = {}
    for row in batch.tolist():
        unit = pairs.canonical[pairs.text1[row]]
        for text in (pairs.text1[row], pairs.text2[row]):
            owners.setdefault(int(pairs.canonical[text]), set()).add(int(unit))
    return any(len(units) > 1 for units in owners.values())


@pytest.mark.parametrize(("anchors", "batch_size"), [(40, 8), (40, 16), (64, 32), (33, 10)])
@pytest.mark.parametrize("seed", range(3))
def test_texts_are_not_repeated_and_negatives_ride_where_that_is_possible(anchors, batch_size, seed):
    pairs = paired_table(anchors)
    sampler = PhasedBatchSampler(pairs, phased([1]), batch_size=batch_size, seed=seed)
    (phase,) = sampler.phases
    assert phase.repeats == 0 and not any(repeats_a_text(pairs, batch) for batch in sampler)
    assert phase.extra == 0 and phase.riding == sum((~pairs.label[batch]).sum() for batch in sampler)
    # Negative control: plain shuffled batches do repeat texts.
    shuffled = np.random.default_rng(seed).permutation(len(pairs))[: batch_size * (len(pairs) // batch_size)]
    assert any(repeats_a_text(pairs, batch) for batch in shuffled.reshape(-1, batch_size))


def test_an_odd_batch_splits_one_unit_and_says_so():
    sampler = PhasedBatchSampler(paired_table(40), phased([1]), batch_size=9, seed=0)
    (phase,) = sampler.phases
    assert phase.repeats == 0 and 0 < phase.extra <= phase.steps


def test_a_batch_repeats_no_text_that_was_cut_off_it():
    rng, rows = np.random.default_rng(0), []
    for i in range(40):
        rows += [(i, 100 + i, 1, 1), *((i, int(text), 0, 1) for text in 200 + rng.permutation(60)[:4])]
    pairs = table(rows)
    sampler = PhasedBatchSampler(pairs, phased([1], epochs=1), batch_size=8, seed=0)
    (phase,) = sampler.phases
    assert phase.extra > 0  # some are cut
    assert phase.repeats == sum(repeats_a_text(pairs, batch) for batch in sampler)


def test_unavoidable_repeats_are_counted():
    pairs = table([(0, 100 + i, 1, 1) for i in range(12)])  # one anchor for all
    sampler = PhasedBatchSampler(pairs, phased([1], epochs=2), batch_size=4, seed=0)
    assert sampler.phases[0].repeats == len(sampler) == 6


def test_phases_come_in_the_order_of_the_config():
    pairs = paired_table(20, phases=3)
    sampler = PhasedBatchSampler(pairs, phased([3, 1, 2], epochs=2), batch_size=8, seed=0)
    order = [int(pairs.phase[batch[0]]) for batch in sampler]
    assert order == sorted(order, key=[3, 1, 2].index)
    assert [phase.name for phase in sampler.phases] == ["3", "1", "2"]
    assert all(len(set(pairs.phase[batch])) == 1 for batch in sampler)
    assert [step for step in range(len(sampler)) if sampler.ends_phase(step)] == [9, 19, 29]


def test_the_tail_of_an_epoch_opens_the_next():
    pairs = paired_table(10)  # 20 rows, batches of 8: tails of 4
    sampler = PhasedBatchSampler(pairs, phased([1], epochs=2), batch_size=8, seed=0)
    assert len(sampler) == 5 and sampler.epochs == [1, 1, 2, 2, 2]
    first_epoch = set(np.concatenate([sampler[0], sampler[1]]).tolist())
    tail = set(range(20)) - first_epoch
    assert tail <= set(np.concatenate([sampler[2], sampler[3], sampler[4]]).tolist())


def test_mixed_mode_takes_all_rows_and_ignores_phases():
    pairs = paired_table(20, phases=3)
    sampler = PhasedBatchSampler(pairs, CurriculumConfig(mode="mixed", epochs=1), batch_size=8, seed=0)
    assert sorted(np.concatenate(list(sampler)).tolist()) == list(range(len(pairs)))
    assert any(len(set(pairs.phase[batch])) > 1 for batch in sampler)


def test_replay_adds_rows_of_earlier_phases_only():
    pairs = paired_table(40, phases=3)
    sampler = PhasedBatchSampler(pairs, phased([1, 2, 3], epochs=3, replay=0.25), batch_size=8, seed=0)
    assert [phase.replayed for phase in sampler.phases] == [0, 60, 60]
    for number, phase in enumerate(sampler.phases, 1):
        shown = np.concatenate([sampler[step] for step in range(phase.first_step, phase.first_step + phase.steps)])
        assert pairs.phase[shown].max() == number
        assert (pairs.phase[shown] < number).sum() <= phase.replayed


def test_replay_goes_by_the_weights_of_files():
    """A quarter of what the phase shows comes again, and of each file its share of what was shown."""
    files = [replace(paired_table(60, phases=2), source=name, sources=(name,)) for name in ("often", "rarely")]
    pairs, weights = join(files), (1.0, 0.25)
    sampler = PhasedBatchSampler(pairs, phased([1, 2], epochs=8, replay=0.25), batch_size=10, seed=0, weights=weights)
    assert [phase.replayed for phase in sampler.phases] == [0, 8 * 38]  # 120 + 30 rows an epoch, units of two
    shown = np.concatenate([sampler[step] for step in range(sampler.phases[1].first_step, len(sampler))])
    rows = pairs.part[shown[pairs.phase[shown] == 1]]
    assert 0.1 < (rows == 1).mean() < 0.3  # a fifth; without weights it would be half


def test_seeds_differ_and_epochs_are_reshuffled():
    pairs = paired_table(20)
    one, two = (PhasedBatchSampler(pairs, phased([1]), batch_size=8, seed=seed) for seed in (0, 1))
    assert not all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    assert not np.array_equal(one[0], one[5])


@pytest.mark.parametrize(
    ("rows", "config", "words"),
    [
        ([(0, 100, 1, 1)] * 8, phased([1, 2]), ["pairs.json", "phase 2", "curriculum.phases"]),
        ([(0, 100, 1, 1)] * 8 + [(0, 100, 1, 4)], phased([1]), ["pairs.json", "row 9", "phase 4"]),
        ([(0, 100, 1, 1)] * 3, phased([1]), ["pairs.json", "3 rows", "batch of 4", "train.batch_size"]),
        ([(0, 100, 0, 1)] * 8, phased([1]), ["pairs.json", "phase 1", "no positive"]),
    ],
)
def test_impossible_phases_are_errors(rows, config, words):
    with pytest.raises(InputError) as caught:
        PhasedBatchSampler(table(rows), config, batch_size=4, seed=0)
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


def test_every_repeat_of_a_batch_is_looked_at():
    def unit(*texts, row=0):
        return Unit((row,), frozenset(texts))

    first = [Unit((0, 1), frozenset((1, 2, 3))), unit(1, 4), unit(5, 6), unit(7, 8), unit(7, 9)]
    second = [unit(10 + 2 * i, 11 + 2 * i) for i in range(6)]
    batches = [first, second]
    assert spread_repeats(batches) == 0
    for batch in batches:
        texts = [text for u in batch for text in u.texts]
        assert len(texts) == len(set(texts))


@pytest.mark.slow
def test_planning_is_fast_enough_for_many_rows():
    """Linear, not quadratic: a text that stands in half of all pairs is the worst case for the search ahead."""
    rows = [(0 if i % 2 else i, 100_000 + i, 1, 1) for i in range(8_000)]
    sampler = PhasedBatchSampler(table(rows), phased([1], epochs=1), batch_size=64, seed=0)
    assert len(sampler) == 125


def test_a_large_batch_that_must_repeat_does_not_search_all_others(monkeypatch):
    class Watched(list):
        looked = 0

        def __getitem__(self, position):
            Watched.looked += 1
            return super().__getitem__(position)

    monkeypatch.setattr("trainer.data.batch_filling.SEARCH", 16)
    # Every text stands twice in the first batch, and nothing that the others have would not.
    units = [Unit((row,), frozenset([row // 2])) for row in range(200)]
    assert spread_repeats([Watched(units), Watched(units[::2]), Watched(units[1::2])]) == 1
    assert Watched.looked <= (1 + 16) * len(units)  # itself, and what it might change places with
