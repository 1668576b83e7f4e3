"""Filling batches so that labelled negatives ride with their anchor's positive and no text stands twice in a batch."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from trainer.data.pairs import PairTable

# How many units ahead, in batches' worth, a batch may look for one that fits and repeats no text of it.
LOOKAHEAD = 8
# How many units of other batches are looked at to exchange for one: all within reach at a batch of 64.
SEARCH = 1024


@dataclass(frozen=True)
class Unit:
    """Rows that stay in one batch: a positive with the labelled negatives of its anchor, or a single row."""

    rows: tuple[int, ...]
    texts: frozenset[int]  # canonical
    cut_off: bool = False  # from a unit that had no room in its batch: negatives without their anchor


def make_units(table: PairTable, rows: np.ndarray) -> list[Unit]:
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
    return [Unit(tuple(unit), frozenset(side[row] for row in unit for side in (first, second))) for unit in members]


def draw_units(units: list[Unit], weight: float, epoch: int, seed: Sequence[int]) -> list[Unit]:
    """The units that an epoch, from 0, shows: `weight` times their rows, in the order of `units`.

    They are dealt from a pack that is shuffled anew each time it is through: no unit comes again before all others have
    come, within an epoch or over several. With weight 1 that is all of them in every epoch.
    """
    sizes = np.array([len(unit.rows) for unit in units])
    total = int(sizes.sum())
    first, last = round(weight * total * epoch), round(weight * total * (epoch + 1))  # rows dealt before, and after
    drawn: list[Unit] = []
    for deal in range(first // total, -(-last // total)):
        order = np.random.default_rng((*seed, deal, 1)).permutation(len(units))
        begins = deal * total + np.cumsum(sizes[order]) - sizes[order]
        drawn += [units[i] for i in np.sort(order[(first <= begins) & (begins < last)])]
    return drawn


def take_batch(queue: deque[Unit], size: int, table: PairTable) -> list[Unit]:
    """Take units of `size` rows together off the front of the queue.

    Whole units that share no text with the batch come first. Where none within reach fits, the room goes to rows that
    were cut off other units, once these are enough to fill it; until then another unit is cut (what is cut off is put
    back), so that few negatives lose their anchor. Only then is a text repeated. What was passed over keeps its place.
    """
    batch: list[Unit] = []
    used: set[int] = set()
    passed: list[Unit] = []
    room = size

    def add(unit: Unit) -> list[Unit]:
        nonlocal room
        head, tail = unit.rows[:room], unit.rows[room:]
        batch.append(Unit(head, _texts_of(table, head)) if tail else unit)
        used.update(batch[-1].texts)
        room -= len(head)
        return [Unit(tail, _texts_of(table, tail), cut_off=True)] if tail else []

    while queue and room and len(passed) < LOOKAHEAD * size:
        unit = queue.popleft()
        if not unit.cut_off and len(unit.rows) <= room and used.isdisjoint(unit.texts):
            add(unit)
        else:
            passed.append(unit)
    enough = sum(len(unit.rows) for unit in passed if unit.cut_off and used.isdisjoint(unit.texts)) >= room
    for clean, kinds in ((True, (enough,)), (True, (not enough,)), (False, (True, False))):
        waiting, passed = passed, []
        for unit in waiting:
            fits = room and unit.cut_off in kinds and (not clean or used.isdisjoint(unit.texts))
            passed += add(unit) if fits else [unit]
    queue.extendleft(reversed(passed))
    return batch


def _texts_of(table: PairTable, rows: Sequence[int]) -> frozenset[int]:
    sides = [side[list(rows)] for side in (table.text1, table.text2)]
    return frozenset(table.canonical[np.concatenate(sides)].tolist())


def spread_repeats(batches: list[list[Unit]]) -> int:
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


def _swap(batches: list[list[Unit]], counts: list[Counter[int]], number: int, place: int, others: list[int]) -> None:
    """Exchange a unit with one as large of another batch, if there is one so that neither repeats a text for it."""

    def fits(unit: Unit, batch: int, leaving: Unit) -> bool:
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


def sample_units(units: list[Unit], weights: np.ndarray, rows: int, rng: np.random.Generator) -> list[Unit]:
    """Random units, each at most once, until they hold `rows` rows; the next one is drawn in proportion to the weights.

    The order is that of exponential times over the weights (Efraimidis and Spirakis 2006).
    """
    order = np.argsort(rng.exponential(size=len(units)) / weights) if rows else np.empty(0, np.int64)
    sizes = np.cumsum([len(units[i].rows) for i in order])
    return [units[i] for i in order[: np.searchsorted(sizes, rows) + 1]]
