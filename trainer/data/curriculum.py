"""The curriculum: which rows make up which batch of the run, decided before the first step.

The plan is a pure function of the pairs, the settings, the seed and the number of devices, so a position in the run is
one integer, every rank knows every batch, and a resumed run continues exactly where it was.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from trainer.config import CurriculumConfig
from trainer.data.pairs import PairTable
from trainer.errors import InputError

# How many units ahead, in batches' worth, a batch may look for one that fits and repeats no text of it.
LOOKAHEAD = 8
# How many units of other batches are looked at to exchange for one: all within reach at a batch of 64.
SEARCH = 1024


@dataclass(frozen=True)
class _Unit:
    """Rows that stay in one batch: a positive with the labelled negatives of its anchor, or a single row."""

    rows: tuple[int, ...]
    texts: frozenset[int]  # canonical


@dataclass(frozen=True)
class PhasePlan:
    """One phase of the run, in figures."""

    name: str
    rows: int
    positives: int
    negatives: int
    epochs: int
    first_step: int
    steps: int
    replayed: int  # rows of earlier phases shown again, all epochs together
    riding: int  # negatives shown in a batch with a positive of their anchor
    extra: int  # negatives shown without one
    repeats: int  # batches that hold some text in two unrelated rows
    left_over: int  # rows at the end of the phase that filled no batch
    negatives_per_anchor: float  # candidates of a batch other than the anchor's own positive, on average


class PhasedBatchSampler(Sequence[np.ndarray]):
    """Batches of row numbers for a whole run: phases in order, each for some epochs, reshuffled every epoch.

    Item `step` is the global batch [world_size * batch_size]; `local` cuts out a rank's equal share. Rows that do not
    fill a batch at the end of an epoch open the next epoch of their phase.

    >>> from trainer.data.incidents import generate_pairs
    >>> from trainer.data.pairs import pairs_from_columns
    >>> table = pairs_from_columns(generate_pairs(60, seed=0, split="train"))
    >>> sampler = PhasedBatchSampler(table, CurriculumConfig(epochs=2), batch_size=8, seed=0)
    >>> len(sampler), [(phase.name, phase.steps) for phase in sampler.phases]
    (15, [('1', 5), ('2', 5), ('3', 5)])
    >>> sampler[0].shape, sampler.phase_at(7).name
    ((8,), '2')

    Raises:
        InputError: a phase that is empty, unknown, without positives, or smaller than one global batch.
    """

    def __init__(
        self, table: PairTable, config: CurriculumConfig, *, batch_size: int, seed: int, world_size: int = 1
    ) -> None:
        self.batch_size = batch_size
        self.global_size = batch_size * world_size
        self.phases: list[PhasePlan] = []
        self.epochs: list[int] = []  # of each step, from 1 within its phase
        self._batches: list[np.ndarray] = []
        earlier: list[_Unit] = []
        for number, (name, rows) in enumerate(_phase_rows(table, config, self.global_size)):
            units = _make_units(table, rows)
            wanted = round(config.replay * len(rows)) if earlier else 0
            self._add_phase(table, name, rows, units, earlier, wanted, config.epochs, (seed, number))
            earlier = earlier + units

    def _add_phase(
        self,
        table: PairTable,
        name: str,
        rows: np.ndarray,
        units: list[_Unit],
        earlier: list[_Unit],
        wanted: int,
        epochs: int,
        seed: tuple[int, int],
    ) -> None:
        first_step, replayed, repeats = len(self), 0, 0
        queue: deque[_Unit] = deque()
        waiting = 0  # rows in the queue
        for epoch in range(1, epochs + 1):
            rng = np.random.default_rng((*seed, epoch))
            replay = _sample(earlier, wanted, rng)
            fresh = units + replay
            queue.extend(fresh[i] for i in rng.permutation(len(fresh)))
            waiting += sum(len(unit.rows) for unit in fresh)
            replayed += sum(len(unit.rows) for unit in replay)
            filled = [_take(queue, self.global_size) for _ in range(waiting // self.global_size)]
            waiting %= self.global_size
            repeats += _spread_repeats(filled)
            self._batches += [np.array([row for unit in batch for row in unit.rows]) for batch in filled]
            self.epochs += [epoch] * len(filled)
        batches = self._batches[first_step:]
        riding, extra = _count_riders(table, batches)
        positives = int(table.label[rows].sum())
        self.phases.append(
            PhasePlan(
                name=name,
                rows=len(rows),
                positives=positives,
                negatives=len(rows) - positives,
                epochs=epochs,
                first_step=first_step,
                steps=len(batches),
                replayed=replayed,
                riding=riding,
                extra=extra,
                repeats=repeats,
                left_over=waiting,
                negatives_per_anchor=_negatives_per_anchor(table, batches),
            )
        )

    def __len__(self) -> int:
        """Steps of the whole run."""
        return len(self._batches)

    def __getitem__(self, step: int) -> np.ndarray:  # type: ignore[override]  # no slices
        """Row numbers of the global batch of a step."""
        return self._batches[step]

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self._batches)

    def local(self, step: int, rank: int) -> np.ndarray:
        """Row numbers [batch_size] that a rank handles in a step."""
        return self._batches[step][rank * self.batch_size : (rank + 1) * self.batch_size]

    def phase_at(self, step: int) -> PhasePlan:
        """The phase that a step belongs to."""
        return next(phase for phase in self.phases if phase.first_step <= step < phase.first_step + phase.steps)

    def ends_phase(self, step: int) -> bool:
        """Whether a step is the last of its phase."""
        phase = self.phase_at(step)
        return step == phase.first_step + phase.steps - 1


def _phase_rows(table: PairTable, config: CurriculumConfig, size: int) -> list[tuple[str, np.ndarray]]:
    """(name, row numbers) of each phase, checked."""
    if config.mode == "mixed":
        phases = [("mixed", np.arange(len(table)))]
    else:
        present = [int(phase) for phase in np.unique(table.phase)]
        if unknown := [phase for phase in present if phase not in config.phases]:
            row = int(table.row[table.phase == unknown[0]][0])
            raise InputError(
                f"{table.source}: row {row}: phase {unknown[0]} is not in curriculum.phases = {list(config.phases)}; "
                "add it there or mend the row"
            )
        phases = [(str(phase), np.flatnonzero(table.phase == phase)) for phase in config.phases]
        if empty := [name for name, rows in phases if len(rows) == 0]:
            raise InputError(
                f"{table.source}: phase {empty[0]} has no rows (the file has {', '.join(map(str, present))}); "
                "set curriculum.phases to what is there, or curriculum.mode to mixed"
            )
    for name, rows in phases:
        if len(rows) < size:
            raise InputError(
                f"{table.source}: phase {name} has {len(rows)} rows, fewer than one batch of {size}; "
                "lower train.batch_size or add pairs"
            )
        if not table.label[rows].any():
            raise InputError(f"{table.source}: phase {name} has no positive pair; add some, or drop the phase")
    return phases


def _make_units(table: PairTable, rows: np.ndarray) -> list[_Unit]:
    """Tie each labelled negative to a positive of its anchor, evenly where there are several."""
    first, second = table.canonical[table.text1].tolist(), table.canonical[table.text2].tolist()
    labels = table.label.tolist()
    members = [[row] for row in rows.tolist() if labels[row]]
    of_anchor: dict[int, deque[list[int]]] = {}
    for unit in members:
        of_anchor.setdefault(first[unit[0]], deque()).append(unit)
    for row in rows.tolist():
        if labels[row]:
            continue
        hosts = of_anchor.get(first[row]) or of_anchor.get(second[row])
        if hosts:
            hosts[0].append(row)
            hosts.rotate(-1)
        else:
            members.append([row])
    return [_unit(first, second, unit) for unit in members]


def _unit(first: list[int], second: list[int], rows: list[int]) -> _Unit:
    return _Unit(tuple(rows), frozenset(first[row] for row in rows) | frozenset(second[row] for row in rows))


def _take(queue: deque[_Unit], size: int) -> list[_Unit]:
    """Take units of `size` rows together off the front of the queue.

    Whole units that share no text with the batch come first. Where none within reach fits, a unit is split (what is
    cut off is put back as single rows), and only then is a text repeated. What was passed over keeps its place.
    """
    batch: list[_Unit] = []
    used: set[int] = set()
    passed: list[_Unit] = []
    room = size

    def add(unit: _Unit) -> list[_Unit]:
        nonlocal room
        head, tail = unit.rows[:room], unit.rows[room:]
        batch.append(_Unit(head, unit.texts))
        used.update(unit.texts)
        room -= len(head)
        return [_Unit((row,), unit.texts) for row in tail]

    while queue and room and len(passed) < LOOKAHEAD * size:
        unit = queue.popleft()
        if len(unit.rows) <= room and used.isdisjoint(unit.texts):
            add(unit)
        else:
            passed.append(unit)
    for clean in (True, False):
        waiting, passed = passed, []
        for unit in waiting:
            passed += add(unit) if room and (not clean or used.isdisjoint(unit.texts)) else [unit]
    queue.extendleft(reversed(passed))
    return batch


def _spread_repeats(batches: list[list[_Unit]]) -> int:
    """Swap units that repeat a text of their batch with units of other batches of the epoch, in place.

    The last batches of an epoch get what the others passed over, so repeats gather there. Returns how many batches
    still repeat a text.
    """
    counts = [Counter(text for unit in batch for text in unit.texts) for batch in batches]
    remaining = 0
    for number, batch in enumerate(batches):
        reach = range(max(number - LOOKAHEAD, 0), min(number + LOOKAHEAD + 1, len(batches)))
        for place, unit in enumerate(batch):
            if any(counts[number][text] > 1 for text in unit.texts):
                _swap(batches, counts, number, place, [other for other in reach if other != number])
        remaining += max(counts[number].values()) > 1
    return remaining


def _swap(batches: list[list[_Unit]], counts: list[Counter[int]], number: int, place: int, others: list[int]) -> None:
    """Exchange a unit with one as large of another batch, if there is one so that neither repeats a text for it."""

    def fits(unit: _Unit, batch: int, leaving: _Unit) -> bool:
        return all(counts[batch][text] == (text in leaving.texts) for text in unit.texts)

    mine = batches[number][place]
    # Where a text stands twice, one unit less would not make room; where it is everywhere this saves the search.
    roomy = (other for other in others if all(counts[other][text] <= 1 for text in mine.texts))
    within_reach = ((other, position) for other in roomy for position in range(len(batches[other])))
    for other, position in islice(within_reach, SEARCH):
        theirs = batches[other][position]
        if len(theirs.rows) == len(mine.rows) and fits(theirs, number, mine) and fits(mine, other, theirs):
            batches[number][place], batches[other][position] = theirs, mine
            for batch, comes, goes in ((number, theirs, mine), (other, mine, theirs)):
                counts[batch].subtract(goes.texts)
                counts[batch].update(comes.texts)
            return


def _sample(units: list[_Unit], rows: int, rng: np.random.Generator) -> list[_Unit]:
    """Random units, each at most once, until they hold `rows` rows."""
    chosen: list[_Unit] = []
    for i in rng.permutation(len(units)) if rows else ():
        if rows <= 0:
            break
        chosen.append(units[i])
        rows -= len(units[i].rows)
    return chosen


def _count_riders(table: PairTable, batches: list[np.ndarray]) -> tuple[int, int]:
    """(negatives shown with a positive of their anchor, negatives shown without)."""
    first, second = table.canonical[table.text1], table.canonical[table.text2]
    riding = negatives_seen = 0
    for batch in batches:
        negatives, anchors = batch[~table.label[batch]], first[batch[table.label[batch]]]
        riding += int((np.isin(first[negatives], anchors) | np.isin(second[negatives], anchors)).sum())
        negatives_seen += len(negatives)
    return riding, negatives_seen - riding


def _negatives_per_anchor(table: PairTable, batches: list[np.ndarray]) -> float:
    counts = [len(np.unique(table.text2[batch])) - 1 for batch in batches]
    return float(np.mean(counts))
