"""The curriculum: which rows make up which batch of the run, decided before the first step.

The plan is a pure function of the pairs, the settings, the seed and the number of devices, so a position in the run is
one integer, every rank knows every batch, and a resumed run continues exactly where it was.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from trainer.config import CurriculumConfig
from trainer.data.batch_filling import Unit, draw_units, make_units, sample_units, spread_repeats, take_batch
from trainer.data.batch_layout import candidates_of, related_among, related_of
from trainer.data.pairs import PairTable, positives_of
from trainer.data.sources import rows_by_source
from trainer.errors import InputError

MIXED = "mixed"  # the way of training, and the one phase that it has
COUNTED_BATCHES = 100  # of a phase, evenly spread


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
    rows_by_source: dict[str, int]  # of its batches, by file
    negatives_per_anchor: float  # candidates of a batch but those masked, on average over up to COUNTED_BATCHES


class PhasedBatchSampler(Sequence[np.ndarray]):
    """Batches of row numbers for a whole run: phases in order, each for some epochs, reshuffled every epoch.

    Item `step` is the global batch [world_size * batch_size]; `local` cuts out a rank's equal share. Rows that do not
    fill a batch at the end of an epoch open the next epoch of their phase. Of a table of several sources an epoch
    shows `weights` times the rows of each (`draw_units`). Rows of phase 0 are in every phase.

    >>> from trainer.data.incidents import generate_pairs
    >>> from trainer.data.pairs import pairs_from_columns
    >>> table = pairs_from_columns(generate_pairs(60, seed=0, split="train"))
    >>> sampler = PhasedBatchSampler(table, CurriculumConfig(epochs=2), batch_size=8, seed=0)
    >>> len(sampler), [(phase.name, phase.steps) for phase in sampler.phases]
    (15, [('1', 5), ('2', 5), ('3', 5)])
    >>> sampler[0].shape, sampler.phase_at(7).name
    ((8,), '2')

    Raises InputError: a phase that is empty, unknown, without positives, or smaller than one global batch.
    """

    def __init__(
        self,
        table: PairTable,
        config: CurriculumConfig,
        *,
        batch_size: int,
        seed: int,
        world_size: int = 1,
        weights: Sequence[float] = (),
        by_source: bool = False,
    ) -> None:
        """
        Args:
            weights: of the table's sources; empty weighs each 1.
            by_source: fill each batch from one source; batches of all stand in random order within an epoch.
        """
        self._table, self._config, self._seed = table, config, seed
        self._weights = tuple(weights) or (1.0,) * len(table.sources)
        self._by_source = by_source and len(table.sources) > 1
        self.batch_size = batch_size
        self.global_size = batch_size * world_size
        self.phases: list[PhasePlan] = []
        self.epochs: list[int] = []  # of each step, from 1 within its phase
        self._batches: list[np.ndarray] = []
        earlier: list[Unit] = []
        for number, (name, rows) in enumerate(_phase_rows(table, config)):
            earlier = earlier + self._add_phase(name, rows, earlier, number)

    def _add_phase(self, name: str, rows: np.ndarray, earlier: list[Unit], number: int) -> list[Unit]:
        """Plan a phase; returns its own units, which later ones may replay."""
        table, config = self._table, self._config
        self._check_rows(name, rows)
        is_own = (table.phase[rows] > 0) | (name == MIXED)
        weights = np.array(self._weights)[table.part]
        replay_rows = round(config.replay * weights[rows[is_own]].sum()) if earlier else 0
        own = self._units_by_source(rows[is_own])
        every = self._units_by_source(rows[~is_own])
        first_step, replayed, repeats = len(self), 0, 0
        queues: list[deque[Unit]] = [deque() for _ in (table.sources if self._by_source else "1")]
        for epoch in range(config.epochs):
            rng = np.random.default_rng((self._seed, number, epoch + 1))
            replay = sample_units(earlier, weights[[unit.rows[0] for unit in earlier]], replay_rows, rng)
            drawn = [
                *self._draw(own, epoch, number + 1),
                *self._draw(every, number * config.epochs + epoch, 0),  # goes on where the phase before ended
                *replay,
            ]
            for i in rng.permutation(len(drawn)):
                queues[table.part[drawn[i].rows[0]] if self._by_source else 0].append(drawn[i])
            replayed += sum(len(unit.rows) for unit in replay)
            filled: list[list[Unit]] = []
            for queue in queues:
                waiting = sum(len(unit.rows) for unit in queue)
                filled_here = [take_batch(queue, self.global_size, table) for _ in range(waiting // self.global_size)]
                repeats += spread_repeats(filled_here)
                filled += filled_here
            if self._by_source:
                filled = [filled[i] for i in rng.permutation(len(filled))]
            self._batches += [np.array([row for unit in batch for row in unit.rows]) for batch in filled]
            self.epochs += [epoch + 1] * len(filled)
        left_over = sum(len(unit.rows) for queue in queues for unit in queue)
        self.phases.append(self._plan_of(name, rows, first_step, replayed, repeats, left_over))
        return list(chain.from_iterable(own.values()))

    def _check_rows(self, name: str, rows: np.ndarray) -> None:
        """Raise InputError where the rows that share batches in a phase are too few for one, or all negative."""
        table, size = self._table, self.global_size
        for source, of_source in self._batch_mates(rows):
            if len(of_source) < size:
                raise InputError(
                    f"{source}: phase {name} has {len(of_source)} rows, fewer than one batch of {size}; "
                    f"lower train.batch_size or add pairs{self._or_mix}"
                )
            if not table.label[of_source].any():
                raise InputError(
                    f"{source}: phase {name} has no positive pair; add some, or drop the phase{self._or_mix}"
                )

    def _check_batches(self, name: str, rows: np.ndarray, batches: list[np.ndarray]) -> None:
        """Raise InputError where weights show too few rows for a batch."""
        parts = {int(self._table.part[batch[0]]) for batch in batches}
        for source, of_source in self._batch_mates(rows):
            if not batches or (self._by_source and int(self._table.part[of_source[0]]) not in parts):
                raise InputError(
                    f"{source}: its weight shows phase {name} fewer rows than one batch of {self.global_size}; "
                    f"raise it in data.sources, or lower train.batch_size{self._or_mix}"
                )

    def _batch_mates(self, rows: np.ndarray) -> list[tuple[str, np.ndarray]]:
        """(name, rows) of what fills batches together: all of some rows, or those of each source."""
        if not self._by_source:
            return [(self._table.source, rows)]
        parts = self._table.part[rows]
        return [(self._table.sources[part], rows[parts == part]) for part in np.unique(parts)]

    @property
    def _or_mix(self) -> str:
        return ', or set data.batches = "mixed"' if self._by_source else ""

    def _units_by_source(self, rows: np.ndarray) -> dict[int, list[Unit]]:
        """Number of the source -> its units among some rows."""
        parts = self._table.part[rows]
        return {int(part): make_units(self._table, rows[parts == part]) for part in np.unique(parts)}

    def _draw(self, units: dict[int, list[Unit]], epoch: int, stock: int) -> list[Unit]:
        """The units of each source that an epoch, from 0, shows; `stock` tells the phases apart."""
        return [
            unit
            for part, of_part in units.items()
            for unit in draw_units(of_part, self._weights[part], epoch, (self._seed, stock, part))
        ]

    def _plan_of(
        self, name: str, rows: np.ndarray, first_step: int, replayed: int, repeats: int, left_over: int
    ) -> PhasePlan:
        """A phase in figures, once its batches are there. Raises InputError where there is none."""
        table, batches = self._table, self._batches[first_step:]
        self._check_batches(name, rows, batches)
        riding, extra = _count_riders(table, batches)
        positives = int(table.label[rows].sum())
        return PhasePlan(
            name=name,
            rows=len(rows),
            positives=positives,
            negatives=len(rows) - positives,
            epochs=self._config.epochs,
            first_step=first_step,
            steps=len(batches),
            replayed=replayed,
            riding=riding,
            extra=extra,
            repeats=repeats,
            left_over=left_over,
            rows_by_source=rows_by_source(table, np.concatenate(batches)),
            negatives_per_anchor=_negatives_per_anchor(table, batches),
        )

    def __len__(self) -> int:
        """Steps of the whole run."""
        return len(self._batches)

    def __getitem__(self, step: int) -> np.ndarray:  # type: ignore[override]  # no slices
        """Row numbers of the global batch of a step."""
        return self._batches[step]

    def rows_shown(self, steps: int) -> dict[str, int]:
        """Training file -> how many rows of it the first steps show."""
        return rows_by_source(self._table, np.concatenate(self._batches[:steps]))

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


def training_mode(table: PairTable, config: CurriculumConfig) -> str:
    """ "phased" or "mixed": what `curriculum.mode` says, or what its "auto" comes to for these pairs."""
    if config.mode != "auto":
        return config.mode
    one_phase = len(np.unique(table.phase[table.phase > 0])) == 1
    return "mixed" if one_phase and config.phases == CurriculumConfig().phases else "phased"


def _phase_rows(table: PairTable, config: CurriculumConfig) -> list[tuple[str, np.ndarray]]:
    """(name, row numbers) of each phase, checked."""
    if training_mode(table, config) == MIXED:
        return [(MIXED, np.arange(len(table)))]
    present = [int(phase) for phase in np.unique(table.phase) if phase]
    if unknown := [phase for phase in present if phase not in config.phases]:
        place = table.place(int(np.flatnonzero(table.phase == unknown[0])[0]))
        raise InputError(
            f"{place}: phase {unknown[0]} is not in curriculum.phases = {list(config.phases)}; "
            "add it there or mend the row"
        )
    if empty := [phase for phase in config.phases if phase not in present]:
        raise InputError(
            f"{table.source}: phase {empty[0]} has no rows (the file has {', '.join(map(str, present))}); "
            "set curriculum.phases to what is there, or curriculum.mode to mixed"
        )
    return [(str(phase), np.flatnonzero(np.isin(table.phase, (0, phase)))) for phase in config.phases]


def _negatives_per_anchor(table: PairTable, batches: list[np.ndarray]) -> float:
    """Candidates that are not masked, as known positives or copies, a query; the mean over some of the batches."""
    related, counts = related_of(positives_of(table)), []
    for step in np.unique(np.linspace(0, len(batches) - 1, COUNTED_BATCHES).astype(int)):
        batch = batches[step]
        queries, candidates = table.text1[batch][table.label[batch]], np.unique(candidates_of(table, batch))
        masked = related_among(related, table.canonical[queries], table.canonical[candidates])
        counts.append(len(candidates) - masked.nnz / max(len(queries), 1))
    return float(np.mean(counts))


def _count_riders(table: PairTable, batches: list[np.ndarray]) -> tuple[int, int]:
    """(negatives shown with a positive of their anchor, negatives shown without)."""
    first, second = table.canonical[table.text1], table.canonical[table.text2]
    riding = negatives_seen = 0
    for batch in batches:
        negatives, anchors = batch[~table.label[batch]], first[batch[table.label[batch]]]
        riding += int((np.isin(first[negatives], anchors) | np.isin(second[negatives], anchors)).sum())
        negatives_seen += len(negatives)
    return riding, negatives_seen - riding
