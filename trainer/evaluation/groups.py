"""Which texts the bootstrap draws together.

Groups are the connected components of texts where those are many (the cluster bootstrap; Field and Welsh 2007,
"Bootstrapping clustered data"). Labelled negatives drawn at random soon connect nearly all texts into one component,
which leaves nothing to draw from; then groups are the texts that positive pairs connect, and a pair between two groups
comes once for every two copies drawn (Owen 2007, "The pigeonhole bootstrap"). That errs on the side of caution: in
simulations such intervals were 1.2 to 1.7 times as wide as they need be, those of single texts up to 2.2 times.

Legend: N pairs, U texts, C groups, B resamples, b resamples at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.data.pairs import PairTable
from trainer.data.split import connect

Int = NDArray[np.int32]

FEWEST_GROUPS = 20  # percentile intervals from fewer are too narrow


@dataclass(frozen=True)
class Groups:
    """Groups of texts that are drawn whole."""

    kind: str
    """What they are: "connected components", "groups of texts connected by positives", or "single texts"."""
    of_text: Int
    """[U] group of each text, 0 .. C-1."""
    first: Int
    """[N] group of the first text of each pair."""
    second: Int
    """[N] group of its second text; where the two are one, the pair comes with its group."""
    count: int
    """C."""
    effective: float
    """How many groups of equal size are worth as much: (sum of n)^2 / sum of n^2, n the pairs that a group is in."""

    def weights(self, counts: Int) -> Int:
        """[b, N] how often each pair is in a resample, of how often each group was drawn [b, C]."""
        first = np.take(counts, self.first, axis=1)
        across = self.first != self.second
        first[:, across] *= np.take(counts, self.second[across], axis=1)
        return first


def groups_of_texts(first: np.ndarray, second: np.ndarray, positive: np.ndarray) -> Groups:
    """The groups to draw for pairs [N] of texts 0 .. U-1: the first kind that has FEWEST_GROUPS effective groups.

    Where none has, those with the most; the functions below then give NaN.
    """
    size = int(max(first.max(), second.max())) + 1
    everything = np.ones(len(first), dtype=np.bool_)
    links = {
        "connected components": everything,
        "groups of texts connected by positives": np.asarray(positive, dtype=np.bool_),
        "single texts": ~everything,
    }
    tried = []
    for kind, rows in links.items():
        of_text = connect(first[rows], second[rows], size)
        count = int(of_text.max()) + 1
        sides = of_text[first], of_text[second]
        pairs = np.bincount(sides[0], minlength=count) + np.bincount(sides[1][sides[0] != sides[1]], minlength=count)
        effective = float(pairs.sum()) ** 2 / float((pairs.astype(np.float64) ** 2).sum())
        tried.append(Groups(kind, of_text, *sides, count, effective))
        if effective >= FEWEST_GROUPS:
            return tried[-1]
    return max(tried, key=lambda groups: groups.effective)


def groups_of_pairs(table: PairTable) -> Groups:
    """The groups to draw for the pairs of a table; copies of a text are one."""
    return groups_of_texts(table.canonical[table.text1], table.canonical[table.text2], table.label)


def groups_of_queries(clusters: np.ndarray) -> Groups:
    """The groups to draw for queries [Q] of known clusters: queries of one cluster look for each other."""
    of_query = np.unique(clusters, return_inverse=True)[1].astype(np.int32)
    sizes = np.bincount(of_query).astype(np.float64)
    effective = float(sizes.sum() ** 2 / (sizes**2).sum())
    return Groups("clusters of duplicates", of_query, of_query, of_query, len(sizes), effective)


def resample_counts(count: int, resamples: int, seed: int, at_once: int) -> Iterator[Int]:
    """Yield [b, C] how often each group is drawn, `at_once` resamples at a time; the split changes no draw."""
    random = np.random.default_rng(seed)
    for start in range(0, resamples, at_once):
        drawn = random.integers(count, size=(min(at_once, resamples - start), count))
        yield np.stack([np.bincount(row, minlength=count) for row in drawn]).astype(np.int32)
