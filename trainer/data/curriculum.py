"""The curriculum: which rows make up which batch of the run, decided before the first step.

The plan is a pure function of the pairs, the settings, the seed and the number of devices, so a position in the run is
one integer, every rank knows every batch, and a resumed run continues exactly where it was.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainer.config import CurriculumConfig
from trainer.data.batch_filling import Unit, make_units, sample_units, spread_repeats, take_batch
from trainer.data.pairs import PairTable
from trainer.errors import InputError


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

    Raises InputError: a phase that is empty, unknown, without positives, or smaller than one global batch.
    """

    def __init__(
        self, table: PairTable, config: CurriculumConfig, *, batch_size: int, seed: int, world_size: int = 1
    ) -> None:
        self._table, self._config = table, config
        self.batch_size = batch_size
        self.global_size = batch_size * world_size
        self.phases: list[PhasePlan] = []
        self.epochs: list[int] = []  # of each step, from 1 within its phase
        self._batches: list[np.ndarray] = []
        earlier: list[Unit] = []
        for number, (name, rows) in enumerate(_phase_rows(table, config, self.global_size)):
            earlier = earlier + self._add_phase(name, rows, earlier, (seed, number))

    def _add_phase(self, name: str, rows: np.ndarray, earlier: list[Unit], seed: tuple[int, int]) -> list[Unit]:
        """Plan a phase; returns its units."""
        table, config, units = self._table, self._config, make_units(self._table, rows)
        replay_rows = round(config.replay * len(rows)) if earlier else 0
        first_step, replayed, repeats = len(self), 0, 0
        queue: deque[Unit] = deque()
        waiting = 0  # rows in the queue
        for epoch in range(1, config.epochs + 1):
            rng = np.random.default_rng((*seed, epoch))
            replay = sample_units(earlier, replay_rows, rng)
            fresh = units + replay
            queue.extend(fresh[i] for i in rng.permutation(len(fresh)))
            waiting += sum(len(unit.rows) for unit in fresh)
            replayed += sum(len(unit.rows) for unit in replay)
            filled = [take_batch(queue, self.global_size) for _ in range(waiting // self.global_size)]
            waiting %= self.global_size
            repeats += spread_repeats(filled)
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
                epochs=config.epochs,
                first_step=first_step,
                steps=len(batches),
                replayed=replayed,
                riding=riding,
                extra=extra,
                repeats=repeats,
                left_over=waiting,
                negatives_per_anchor=float(np.mean([len(np.unique(table.text2[batch])) - 1 for batch in batches])),
            )
        )
        return units

    def __len__(self) -> int:
        """Steps of the whole run."""
        return len(self._batches)

    def __getitem__(self, step: int) -> np.ndarray:  # type: ignore[override]  # no slices
        """Row numbers of the global batch of a step."""
        return self._batches[step]

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
    one_phase = len(np.unique(table.phase)) == 1
    return "mixed" if one_phase and config.phases == CurriculumConfig().phases else "phased"


def _phase_rows(table: PairTable, config: CurriculumConfig, size: int) -> list[tuple[str, np.ndarray]]:
    """(name, row numbers) of each phase, checked."""
    if training_mode(table, config) == "mixed":
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


def _count_riders(table: PairTable, batches: list[np.ndarray]) -> tuple[int, int]:
    """(negatives shown with a positive of their anchor, negatives shown without)."""
    first, second = table.canonical[table.text1], table.canonical[table.text2]
    riding = negatives_seen = 0
    for batch in batches:
        negatives, anchors = batch[~table.label[batch]], first[batch[table.label[batch]]]
        riding += int((np.isin(first[negatives], anchors) | np.isin(second[negatives], anchors)).sum())
        negatives_seen += len(negatives)
    return riding, negatives_seen - riding
