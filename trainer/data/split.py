"""Held-out pairs that share no text with the training pairs: splitting one table, and checking two."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csgraph, csr_matrix

from trainer.data.pairs import IntArray, PairTable, canonical_count
from trainer.data.raw_table import brief
from trainer.errors import InputError
from trainer.text.canonical import canonical_form

SPLIT_ATTEMPTS = 20
SPLIT_TOLERANCE = 0.25  # how far, of the rows asked for, a split may miss


def require_both_classes(table: PairTable) -> None:
    """Raises InputError unless the table holds positives and negatives."""
    positives = int(table.label.sum())
    if positives in (0, len(table)):
        only, missing = ("negative", "positive") if positives == 0 else ("positive", "negative")
        fix = f"add {missing} pairs, or correct data.positive_threshold"
        raise InputError(f"{table.source}: label: all {len(table)} rows are {only}: {fix}")


def connect(first: NDArray[Any], second: NDArray[Any], size: int) -> IntArray:
    """[size] component, from 0, of each of `size` nodes under the edges first[i] - second[i]."""
    graph = csr_matrix((np.ones(len(first), dtype=np.bool_), (first, second)), shape=(size, size))
    components: IntArray = csgraph.connected_components(graph, directed=False)[1]
    return components


def connected_components(table: PairTable) -> IntArray:
    """[N] number of the component each row belongs to, where pairs (of either label) connect canonical texts."""
    first, second = table.canonical[table.text1], table.canonical[table.text2]
    return connect(first, second, canonical_count(table))[first]


def split_by_component(table: PairTable, fraction: float, seed: int) -> tuple[PairTable, PairTable]:
    """Split rows into (rest, held out), about `fraction` of them held out, so that no canonical text is on both sides.

    Seeded; whole components in random order fill the held-out part, then the one that brings it nearest completes it.
    Both parts keep the order of rows. Raises InputError where no part within SPLIT_TOLERANCE of the size asked for
    (or one row) leaves both labels on both sides.
    """
    if not 0 < fraction < 1:
        raise InputError(
            f"{table.source}: the held-out fraction {fraction} is not between 0 and 1: choose one, such as 0.1"
        )
    component = connected_components(table)
    sizes = np.bincount(component)
    target = fraction * len(table)
    random = np.random.default_rng(seed)
    for _ in range(SPLIT_ATTEMPTS):
        held = _fill(sizes, target, random.permutation(len(sizes)))[component]
        mixed = all(0 < part.sum() < len(part) for part in (table.label[held], table.label[~held]))
        if mixed and abs(held.sum() - target) <= max(1.0, SPLIT_TOLERANCE * target):
            return table.take(~held), replace(table.take(held), source=f"{table.source} (held-out part)")
    groups = f"{len(sizes)} groups of connected texts, the largest of {sizes.max(initial=0)} rows"
    raise InputError(
        f"{table.source}: cannot hold out {fraction:.1%} of {len(table)} rows with both labels, and no text, on both "
        f"sides: they form {groups}: give a file of its own as data.dev"
    )


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


def check_overlap(train: PairTable, held_out: PairTable, allow: bool) -> int:
    """The number of canonical texts both tables hold. Raises InputError with three of them unless `allow`."""
    known = {canonical_form(train.texts[text]) for text in _representatives(train)}
    shared = [text for text in _representatives(held_out) if canonical_form(held_out.texts[text]) in known]
    if shared and not allow:
        examples = ", ".join(brief(held_out.texts[text]) for text in shared[:3])
        overlap = f"{len(shared)} of its texts are also in {train.source} (such as {examples})"
        raise InputError(f"{held_out.source}: {overlap}: remove them from one, or set data.allow_overlap = true")
    return len(shared)


def _representatives(table: PairTable) -> NDArray[Any]:
    """[C] index of the first text of each canonical form."""
    return np.unique(table.canonical, return_index=True)[1]
