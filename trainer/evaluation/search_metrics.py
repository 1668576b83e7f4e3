"""What a ranking is worth to who searches: measures of where a query's right answers stand. Pure functions on arrays.

Measures as in Manning, Raghavan and Schuetze 2008, "Introduction to Information Retrieval", chapter 8; nDCG with the
discount 1 / log2(1 + rank) of Jarvelin and Kekalainen 2002; MAP@100 divides by the right answers that 100 places can
hold. Where candidates tie, a measure is its mean over all their orders, in closed form (McSherry and Najork 2008,
"Computing information retrieval performance measures efficiently in the presence of tied scores"), so that neither the
order of the file nor a model that cannot tell texts apart gains by it.

Legend: Q queries, T tie groups.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Int = NDArray[np.int64]

PLACES = (1, 5, 10)
CUTOFF = 10
DEPTH = 100
"""What comes later in a ranking does not count for any measure."""
NAMES = (
    *(f"success@{k}" for k in PLACES),
    *(f"recall@{k}" for k in PLACES),
    f"mrr@{CUTOFF}",
    f"ndcg@{CUTOFF}",
    f"map@{DEPTH}",
)
_DISCOUNTS = np.append(0.0, np.cumsum(1 / np.log2(1 + np.arange(1, CUTOFF + 1))))  # of the first so many places
_HARMONIC = np.append(0.0, np.cumsum(1 / np.arange(1, DEPTH + 1)))


class TieGroups(NamedTuple):
    """Right answers of equal scores: [T] each, best first within a query. Those beyond DEPTH may be left out."""

    query: Int
    """Whose right answers they are, 0 .. Q-1."""
    place: Int
    """How many of the query's right answers stand before the group."""
    before: Int
    """How many candidates of any kind stand before it."""
    relevant: Int
    """How many right answers are in the group."""
    tied: Int
    """How many candidates are in it, these included."""


def expected_measures(groups: TieGroups, answers: Int) -> Float:
    """[len(NAMES), Q] the measures of NAMES in their order, expected over all orders of the tied.

    success@k is whether any right answer is among the first k, recall@k the share of all right answers found there,
    mrr@k one over the rank of the first.

    Args:
        groups: of all queries.
        answers: [Q] how many right answers each query has, at least one.
    """
    query, place, before, relevant, tied = groups
    share = relevant / tied

    def total(values: Float) -> Float:
        return np.bincount(query, values, minlength=len(answers)).astype(np.float64)

    first = place == 0
    success, reciprocal = _first_found(before[first], tied[first], relevant[first])
    found = np.zeros((len(PLACES) + 1, len(answers)))
    found[:, query[first]] = np.concatenate([success, reciprocal[None]])
    recall = [total(share * np.clip(k - before, 0, tied)) / answers for k in PLACES]
    gain = _DISCOUNTS[np.minimum(before + tied, CUTOFF)] - _DISCOUNTS[np.minimum(before, CUTOFF)]
    ndcg = total(share * gain) / _DISCOUNTS[np.minimum(answers, CUTOFF)]
    precision = total(share * _precisions(place, before, relevant, tied)) / np.minimum(answers, DEPTH)
    return np.stack([*found[:-1], *recall, found[-1], ndcg, precision])


def _first_found(before: Int, tied: Int, relevant: Int) -> tuple[Float, Float]:
    """Success [places, Q] and reciprocal rank [Q], where `relevant` of `tied` candidates follow `before` others."""
    success, reciprocal = np.zeros((len(PLACES), len(before))), np.zeros(len(before))
    none_yet = np.ones(len(before))  # chance that the first so many of the tied hold no right answer
    for place in range(CUTOFF):
        none_here = none_yet * np.maximum(tied - relevant - place, 0) / np.maximum(tied - place, 1)
        rank, chance = before + place + 1, none_yet - none_here
        success += chance * (rank <= np.array(PLACES)[:, None])
        reciprocal += chance * (rank <= CUTOFF) / rank
        none_yet = none_here
    return success, reciprocal


def _precisions(place: Int, before: Int, relevant: Int, tied: Int) -> Float:
    """[T] sum of the expected precision at each place of a group that is within DEPTH, a right answer standing there.

    At the j-th place of a group these are place + 1 + (j - 1) slope right answers among before + j, where each other
    of the group is right with probability slope.
    """
    last = np.clip(DEPTH - before, 0, tied)
    slope = (relevant - 1) / np.maximum(tied - 1, 1)
    inverse = _HARMONIC[np.minimum(before + last, DEPTH)] - _HARMONIC[np.minimum(before, DEPTH)]
    sums: Float = (place + 1) * inverse + slope * (last - (before + 1) * inverse)
    return sums
