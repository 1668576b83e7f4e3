"""Pairs of tickets about different problems, near enough to teach something.

Negatives are guesses too. A pair is none where the two stand in one group of positives, share a close neighbour, would
pass as a positive of any phase, or are written in two languages (there, few shared words say nothing).

Legend: N tickets, R anchors of a block, O tickets of a part.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.sparse import csr_matrix, identity

from trainer.data.origins import BY_MODEL
from trainer.data.tickets import Tickets
from trainer.mining.neighbours import IntArray, Similarity
from trainer.mining.positives import Band, BoolArray, Mined, Pairs, Phase, compare_categories
from trainer.system.console import progress
from trainer.text.tfidf import FloatArray, cosines_with, pair_cosines

BLOCK = 256  # anchors compared with a whole part at a time
OPTIONS = 64  # negatives weighed for an anchor
SPARE_PER_ANCHOR = 2  # of any ticket of the part, where the texts of positives do not suffice


@dataclass(frozen=True)
class HardSource:
    """Negatives that an encoder takes for positives, up to a margin.

    A negative scores at most (1 - margin) x the anchor's own positive (TopK-PercPos of NV-Retriever, Moreira et al.
    2024, arXiv:2407.15831): what scores as high as a positive is likely to be one that nobody labelled.
    """

    embeddings: FloatArray  # [N, E], rows of length 1
    margin: float


@dataclass(frozen=True, eq=False)
class Search:
    """What the negatives of all phases and parts are judged by."""

    tickets: Tickets
    similarity: Similarity
    mined: Mined
    phases: Sequence[Phase]
    hard: HardSource | None
    """For the last phase; its band is not used then."""
    languages: IntArray = field(init=False)  # [N] -1 where unknown
    lengths: FloatArray = field(init=False)  # [N] characters
    friends: csr_matrix = field(init=False)  # [N, N] sparse: candidates for positives, and each ticket itself

    def __post_init__(self) -> None:
        names = {name: number for number, name in enumerate(sorted(set(self.tickets.languages) - {""}))}
        languages = np.array([names.get(name, -1) for name in self.tickets.languages], dtype=np.int64)
        object.__setattr__(self, "languages", languages)
        lengths = np.array([len(text) for text in self.tickets.texts], dtype=np.float32)
        object.__setattr__(self, "lengths", lengths)
        candidates = list(self.mined.candidates.values())
        first, second = (np.concatenate([getattr(one, side) for one in candidates]) for side in ("first", "second"))
        size = len(self.tickets)
        near = csr_matrix((np.ones(len(first), dtype=np.int32), (first, second)), shape=(size, size))
        object.__setattr__(self, "friends", csr_matrix(near + near.T + identity(size, dtype=np.int32)))

    def allowed(self, first: IntArray, second: IntArray) -> BoolArray:
        """[P] whether pairs may be called different problems, whatever band they are for."""
        group, language = self.mined.group, self.languages
        may = (language[first] == language[second]) | (language[first] < 0) | (language[second] < 0)
        may &= group[first] != group[second]
        may[may] &= self.friends[first[may]].multiply(self.friends[second[may]]).sum(axis=1).A1 == 0
        relation = compare_categories(self.tickets, first, second)
        cosine = self.similarity.alike(first, second)
        for phase in self.phases:
            may &= ~phase.positives.holds(cosine, *relation)
        return may


@dataclass(frozen=True, eq=False)
class Anchors:
    """Tickets to find negatives for, one a positive that each is in; all [R]."""

    tickets: IntArray
    each: IntArray
    """How many negatives to take of it."""
    ceiling: FloatArray
    """The highest score, by a hard source, that a negative may have."""
    gap: FloatArray
    """Difference in length from its positive, in characters; NaN where it has none."""


def take_negatives(
    search: Search,
    phase: Phase,
    positives: Pairs,
    part: int,
    taken: set[tuple[int, int]],
    *,
    most_uses: int,
    seed: int,
) -> Pairs:
    """As many negatives of a phase in a part as there are positives, or all that are found; beside the positives' own
    texts where that can be.

    Args:
        taken: pairs (lower ticket first) not to be taken again; grows.
        most_uses: pairs that a ticket may be the second text of.
    """
    random = np.random.default_rng((seed, part, phase.number, 1))
    hard = search.hard if phase.number == max(each.number for each in search.phases) else None
    others = np.flatnonzero(search.mined.part == part)
    rows: list[tuple[int, int]] = []
    uses: Counter[int] = Counter()
    with progress(f"Negatives, phase {phase.number}", len(positives)) as advance:
        for block in _sources(search, positives, others, hard, most_uses, random):
            if len(rows) >= len(positives):
                break
            before = len(rows)
            for anchor, count, partners in zip(
                block.tickets.tolist(),
                block.each.tolist(),
                _options(search, phase, hard, block, others, random),
                strict=True,
            ):
                pairs = ((anchor, partner) for partner in partners.tolist() if uses[partner] < most_uses)
                new = [pair for pair in pairs if (min(pair), max(pair)) not in taken]
                for pair in new[: min(count, len(positives) - len(rows))]:
                    taken.add((min(pair), max(pair)))
                    uses[pair[1]] += 1
                    rows.append(pair)
            advance(len(rows) - before)
    chosen = np.array(rows, dtype=np.int64).reshape(-1, 2)
    return Pairs(chosen[:, 0], chosen[:, 1], [BY_MODEL if hard else search.similarity.kind] * len(rows))


def _sources(
    search: Search,
    positives: Pairs,
    others: IntArray,
    hard: HardSource | None,
    most_uses: int,
    random: np.random.Generator,
) -> Iterator[Anchors]:
    """Anchors in blocks, the best first: first texts of positives, second texts, all others of the part."""
    ends = (positives.first, positives.second)
    gap = np.abs(search.lengths[positives.first] - search.lengths[positives.second])
    lowest = np.full(len(search.tickets), np.inf, dtype=np.float32)
    if hard is not None:
        score = (1 - hard.margin) * pair_cosines(hard.embeddings, positives.first, positives.second)
        for tickets in ends:
            np.minimum.at(lowest, tickets, score)
    rounds = [(tickets, np.ones(len(tickets), dtype=np.int64), gap) for tickets in ends]
    if hard is None:  # which needs the score of a positive
        spare = np.full(len(others), np.nan, dtype=np.float32)
        rounds += [(others, np.full(len(others), each), spare) for each in (SPARE_PER_ANCHOR, most_uses)]
    for tickets, each, gaps in rounds:
        order = random.permutation(len(tickets))
        for start in range(0, len(tickets), BLOCK):
            block = order[start : start + BLOCK]
            yield Anchors(tickets[block], each[block], lowest[tickets[block]], gaps[block])


def _options(
    search: Search,
    phase: Phase,
    hard: HardSource | None,
    anchors: Anchors,
    others: IntArray,
    random: np.random.Generator,
) -> list[IntArray]:
    """For each anchor, tickets of the part that make a negative with it: the hardest first; or, of a random choice in
    the band, first those whose length differs as its positive's does, so that length does not give a label away."""
    relation = compare_categories(search.tickets, anchors.tickets[:, None], others)
    if hard is None:
        cosine = search.similarity.closest(anchors.tickets, others)
        fits = phase.negatives.holds(cosine, *relation)
    else:
        cosine = cosines_with(hard.embeddings, anchors.tickets, others)
        anything = Band(-np.inf, np.inf, phase.negatives.category)
        fits = (cosine <= anchors.ceiling[:, None]) & anything.holds(cosine, *relation)
    places = [np.flatnonzero(row) for row in fits]
    if hard is None:
        places = [
            random.choice(of_anchor, min(OPTIONS, len(of_anchor)), replace=False) if len(of_anchor) else of_anchor
            for of_anchor in places
        ]
        misses = (
            np.abs(np.abs(search.lengths[others[of_anchor]] - search.lengths[anchor]) - gap)
            for of_anchor, anchor, gap in zip(places, anchors.tickets, anchors.gap, strict=True)
        )
        places = [of_anchor[np.argsort(miss, kind="stable")] for of_anchor, miss in zip(places, misses, strict=True)]
    else:
        places = [
            of_anchor[np.argsort(-row[of_anchor], kind="stable")[:OPTIONS]]
            for of_anchor, row in zip(places, cosine, strict=True)
        ]
    counts = [len(of_anchor) for of_anchor in places]
    second = others[np.concatenate(places).astype(np.int64)]
    may = search.allowed(np.repeat(anchors.tickets, counts), second)
    ends = np.cumsum(counts)[:-1]
    return [of_anchor[keep] for of_anchor, keep in zip(np.split(second, ends), np.split(may, ends), strict=True)]
