"""Held-out pairs that share no text with the training pairs: splitting one table, and checking two."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csgraph, csr_matrix

from trainer.data.pairs import IntArray, PairTable, canonical_count
from trainer.data.raw_table import brief
from trainer.data.sources import by_source
from trainer.errors import InputError
from trainer.text.canonical import canonical_form

SPLIT_ATTEMPTS = 20  # of either way to split
SPLIT_TOLERANCE = 0.25  # how far, of the rows asked for, a split may miss
MOST_LEFT_OUT = 0.20  # share of the rows that a split may leave out


class Split(NamedTuple):
    """A table in two parts that share no text."""

    rest: PairTable
    held_out: PairTable
    left_out: int
    """Rows with a text on either side, which are in neither part."""


def has_both_labels(table: PairTable) -> bool:
    """Whether the table holds positives and negatives, which thresholds, Spearman, ROC-AUC and the like need."""
    return 0 < int(table.label.sum()) < len(table)


def require_positives(table: PairTable) -> None:
    """Raise InputError unless some row is a positive pair of two texts that are not copies of each other."""
    if not table.label.any():
        highest = table.score.max()
        told = f", the highest at {highest:.0%} of data.label_scale" if highest else ""
        fix = f"add positive pairs, or correct data.positive_threshold{' or data.label_scale' if told else ''}"
        raise InputError(f"{table.source}: label: all {len(table)} rows are negative{told}: {fix}")
    copies = table.canonical[table.text1] == table.canonical[table.text2]
    if copies[table.label].all():
        fix = "add pairs of two different texts"
        raise InputError(f"{table.source}: every positive pair is a text and its own copy: {fix}")


def connect(first: NDArray[Any], second: NDArray[Any], size: int) -> IntArray:
    """[size] component, from 0, of each of `size` nodes under the edges first[i] - second[i]."""
    graph = csr_matrix((np.ones(len(first), dtype=np.bool_), (first, second)), shape=(size, size))
    components: IntArray = csgraph.connected_components(graph, directed=False)[1]
    return components


def connected_components(table: PairTable) -> IntArray:
    """[N] number of the component each row belongs to, where pairs (of either label) connect canonical texts."""
    first, second = table.canonical[table.text1], table.canonical[table.text2]
    return connect(first, second, canonical_count(table))[first]


def hold_out(table: PairTable, fraction: float, seed: int) -> Split:
    """Split rows into the rest and a held-out part, about `fraction` of each source, so that no text is on both sides.

    Seeded. Whole components of connected texts are held out where that gives both parts both labels. Where it does
    not, a set of texts is held out, and the rows that connect it with the others are left out: of SPLIT_ATTEMPTS sets,
    the one that leaves out the fewest. Such a set favours texts that are in few pairs. A table of positives alone, or
    with too few negatives for both parts, gives parts that hold positives at least. Both keep the order of rows.

    Raises InputError where no part within SPLIT_TOLERANCE of the size asked for (or one row) of every source leaves
    positives on both sides, or where more than MOST_LEFT_OUT of the rows would be left out.
    """
    if not 0 < fraction < 1:
        raise InputError(
            f"{table.source}: the held-out fraction {fraction} is not between 0 and 1: choose one, such as 0.1"
        )
    sizes, found = np.bincount(table.part), []
    targets = fraction * sizes
    tolerances = np.maximum(1.0, SPLIT_TOLERANCE * targets)
    for texts in _text_sets_of_sources(table, targets, tolerances, np.random.default_rng(seed)):
        first, second = texts[table.canonical[table.text1]], texts[table.canonical[table.text2]]
        held, rest = first & second, ~(first | second)
        too_far = np.abs(np.bincount(table.part[held], minlength=len(sizes)) - targets) > tolerances
        if too_far.any() or not (table.label[held].any() and table.label[rest].any()):
            continue
        lost = int((first != second).sum())
        lacks_label = not table.label.all() and bool(table.label[held].all() or table.label[rest].all())
        found.append(((lost > MOST_LEFT_OUT * len(table), lacks_label, lost), held, rest))
        if not lost and not lacks_label:
            break
    wanted = f"{table.source}: cannot hold out {fraction:.1%} of {len(table)} rows"
    if not found:
        groups = np.bincount(connected_components(table))
        of_each = " of each file" if len(sizes) > 1 else ""
        raise InputError(
            f"{wanted}{of_each} with positives, and no text, on both sides: they form {len(groups)} groups of "
            f"connected texts, the largest of {groups.max(initial=0)} rows: give a file of its own as data.dev"
        )
    (too_many, _, lost), held, rest = min(found, key=lambda each: each[0])
    if too_many:
        raise InputError(
            f"{wanted}: {lost} rows ({100 * lost / len(table):.0f} %) connect both sides and would be lost, more than "
            f"{100 * MOST_LEFT_OUT:.0f} %: give a file of its own as data.dev"
        )
    names = tuple(f"{source} (held-out part)" for source in (table.source, *table.sources))
    return Split(table.take(rest), replace(table.take(held), source=names[0], sources=names[1:]), lost)


def sample_pairs(table: PairTable, limit: int, seed: int) -> PairTable:
    """A seeded sample of `limit` rows, or all where there are no more, in their order.

    Sources, phases and labels keep their shares, to a row each. The canonical first texts are drawn in one order for
    all of them, so that a positive tends to come with the negatives of its anchor.
    """
    if limit >= len(table):
        return table
    anchors = table.canonical[table.text1]
    drawn = np.random.default_rng(seed).permutation(canonical_count(table))[anchors]
    kinds = np.unique(np.stack([table.part, table.phase, table.label]), axis=1, return_inverse=True)[1].ravel()
    order = np.lexsort((drawn, kinds))  # by kind, and within it as drawn
    sizes = np.bincount(kinds)
    within = np.arange(len(table)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    place = (within + 0.5) / np.repeat(sizes, sizes)  # 0 to 1 in every kind: below a line lies the same share of each
    chosen = order[np.argsort(place, kind="stable")[:limit]]
    return replace(table.take(np.sort(chosen)), source=f"{table.source} (a sample of {limit}: data.limit)")


def _text_sets_of_sources(
    table: PairTable, targets: NDArray[Any], tolerances: NDArray[Any], random: np.random.Generator
) -> Iterator[NDArray[np.bool_]]:
    """Masks [C] of canonical texts with about `targets` rows of each source among them: a set of each, joined."""
    numbers, sets = [], []
    for part in np.unique(table.part):
        rows = np.flatnonzero(table.part == part)
        source = table.take(rows)
        number = np.empty(canonical_count(source), dtype=np.int64)  # in the whole table, of its canonical texts
        for own, whole in ((source.text1, table.text1), (source.text2, table.text2)):
            number[source.canonical[own]] = table.canonical[whole[rows]]
        numbers.append(number)
        sets.append(_text_sets(source, float(targets[part]), float(tolerances[part]), random))
    for masks in zip(*sets, strict=True):
        texts = np.zeros(canonical_count(table), dtype=np.bool_)
        for number, mask in zip(numbers, masks, strict=True):
            texts[number[mask]] = True
        yield texts


def _text_sets(
    table: PairTable, target: float, tolerance: float, random: np.random.Generator
) -> Iterator[NDArray[np.bool_]]:
    """Masks [C] of canonical texts with about `target` rows among them: whole components, then grown sets."""
    first, second, size = table.canonical[table.text1], table.canonical[table.text2], canonical_count(table)
    component = connect(first, second, size)
    rows = np.bincount(component[first])
    for _ in range(SPLIT_ATTEMPTS):
        yield _fill(rows, target, random.permutation(len(rows)))[component]
    selves, across = first == second, first != second
    sides = np.concatenate([first[across], second[across]]), np.concatenate([second[across], first[across]])
    links = csr_matrix((np.ones(len(sides[0]), dtype=np.int64), sides), shape=(size, size))
    links.sum_duplicates()
    own = np.bincount(first[selves], minlength=size)
    for _ in range(SPLIT_ATTEMPTS):
        yield _grow(links, own, target, tolerance, random.permutation(size))


def _fill(sizes: NDArray[Any], target: float, order: NDArray[Any]) -> NDArray[np.bool_]:
    """Mask of the components chosen: in `order` what fits within `target`, then one more if that is nearer."""
    chosen = np.zeros(len(sizes), dtype=np.bool_)
    room = target
    for component, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        if size <= room:
            chosen[component] = True
            room -= size
    left = np.flatnonzero(~chosen)
    if len(left):
        nearest = left[np.argmin(sizes[left])]
        chosen[nearest] = sizes[nearest] < 2 * room
    return chosen


def _grow(
    links: csr_matrix, own: NDArray[Any], target: float, tolerance: float, order: NDArray[Any]
) -> NDArray[np.bool_]:
    """Mask [C] of texts with about `target` rows among them, grown so that few rows cross its border.

    Greedy graph growing (Karypis and Kumar 1998, "A fast and high quality multilevel scheme for partitioning irregular
    graphs"): the next text is that of the border which adds the fewest crossing rows, and the next of `order` where
    there is no border. Of the sets on the way that are near enough to the target, the one with the fewest crossing rows
    is taken. O(rows log rows), in plain Python: 4 us a row that is held out.

    Args:
        links: [C, C] symmetric, the rows between two texts; own: [C] rows of a text with its copy.
    """
    starts, neighbours, weights = links.indptr.tolist(), links.indices.tolist(), links.data.tolist()
    degree = np.asarray(links.sum(axis=1)).ravel().tolist()
    place = np.argsort(order).tolist()
    inside, touching = [False] * len(degree), [0] * len(degree)  # touching: rows from a text into the set
    border: list[tuple[int, int, int]] = []  # crossing rows it adds, place in the order, text; stale entries stay
    unseen, rows, crossing = iter(order.tolist()), 0, 0
    grown: list[int] = []
    fewest, best_count = np.inf, 0
    while rows < target + tolerance:
        text = -1
        while border and text < 0:
            added, _, candidate = heapq.heappop(border)
            if not inside[candidate] and added == degree[candidate] - 2 * touching[candidate]:
                text = candidate
        if text < 0 and (text := next((text for text in unseen if not inside[text]), -1)) < 0:
            break
        inside[text] = True
        grown.append(text)
        rows += touching[text] + int(own[text])
        crossing += degree[text] - 2 * touching[text]
        if abs(rows - target) <= tolerance and crossing < fewest:
            fewest, best_count = crossing, len(grown)
        for link in range(starts[text], starts[text + 1]):
            other = neighbours[link]
            touching[other] += weights[link]
            if not inside[other]:
                heapq.heappush(border, (degree[other] - 2 * touching[other], place[other], other))
    chosen = np.zeros(len(degree), dtype=np.bool_)
    chosen[grown[:best_count]] = True
    return chosen


def check_overlap(train: PairTable, held_out: PairTable, allowed: float) -> int:
    """The number of canonical texts both tables hold.

    Args:
        allowed: the share of the held-out pairs that may hold such a text; 1 allows all.

    Raises:
        InputError: more do; it shows three of the texts, and says which share to allow.
    """
    known = set(map(canonical_form, train.texts))
    is_shared = np.array([canonical_form(text) in known for text in held_out.texts], dtype=np.bool_)
    _, first = np.unique(held_out.canonical[is_shared], return_index=True)  # the first text of each form
    shared = np.flatnonzero(is_shared)[np.sort(first)]
    pairs = int((is_shared[held_out.text1] | is_shared[held_out.text2]).sum())
    if pairs / len(held_out) > allowed:
        examples = ", ".join(brief(held_out.texts[text]) for text in shared[:3])
        forms = {canonical_form(held_out.texts[text]) for text in shared}
        files = [part.source for part in by_source(train) if forms.intersection(map(canonical_form, part.texts))]
        enough = math.ceil(100 * pairs / len(held_out)) / 100
        raise InputError(
            f"{held_out.source}: {pairs} of its {len(held_out)} pairs ({pairs / len(held_out):.1%}) hold one of "
            f"{len(shared)} texts that are also in {' and '.join(files)} (such as {examples}): remove them from one, "
            f"or set data.allow_overlap = {enough:g}"
        )
    return len(shared)
