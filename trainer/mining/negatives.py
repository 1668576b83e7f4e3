"""Pairs of tickets about different problems, near enough to teach something.

Negatives are guesses too. A pair is none where the two stand in one group of positives, share a close neighbour, would
pass as a positive of any phase, or are written in two languages (there, few shared words say nothing).

Where there is an encoder, those of the last phase are what it takes for positives, up to a margin: a negative scores at
most (1 - margin) x the anchor's own positive (TopK-PercPos of NV-Retriever, Moreira et al. 2024, arXiv:2407.15831), as
what scores as high as a positive is likely to be one that nobody labelled.

Legend: N tickets, E embedding width, R anchors of a block, O tickets of a part.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
from scipy.sparse import csr_matrix, identity

from trainer.data.origins import BY_MODEL
from trainer.data.tickets import Tickets
from trainer.mining.neighbours import Candidates, IntArray, Similarity
from trainer.mining.positives import Mined, Pairs, compare_categories, may_be_different
from trainer.mining.settings import Band, BoolArray, Phase, Settings
from trainer.system.console import progress
from trainer.text.tfidf import FloatArray, pair_cosines

BLOCK = 256  # anchors compared with a whole part at a time
OPTIONS = 64  # negatives weighed for an anchor
SPARE_PER_ANCHOR = 2  # of any ticket of the part, where the texts of positives do not suffice
Block = tuple[IntArray, FloatArray, int]
"""Anchors [R], for each the difference in length from its positive (NaN where it has none), negatives of each."""


class Search:
    """What the negatives of all phases and parts are judged by."""

    def __init__(self, tickets: Tickets, measures: Similarity, mined: Mined, settings: Settings) -> None:
        """`measures`: all there are; where an encoder is one of them, the last phase's band is not used."""
        self.tickets, self.measures, self.mined, self.settings = tickets, measures, mined, settings
        self.similarity = measures.by(settings.similarity)
        self.languages = np.array(tickets.languages)  # [N] "" where unknown
        self.lengths = np.array([len(text) for text in tickets.texts], dtype=np.float32)  # [N] characters
        pairs, size = Candidates.join(mined.candidates.values()), len(tickets)
        near = csr_matrix((np.ones(len(pairs), dtype=np.int32), (pairs.first, pairs.second)), shape=(size, size))
        self.friends = csr_matrix(near + near.T + identity(size, dtype=np.int32))  # [N, N] and each ticket itself

    def by_model(self, phase: Phase) -> bool:
        """Whether an encoder chooses the negatives of a phase."""
        return "encoder" in self.measures.matrices and phase == self.settings.phases[-1]

    def allowed(self, first: IntArray, second: IntArray) -> BoolArray:
        """[P] whether pairs may be called different problems, whatever band they are for."""
        may = may_be_different(self.mined, self.languages, first, second)
        may[may] &= self.friends[first[may]].multiply(self.friends[second[may]]).sum(axis=1).A1 == 0
        relation = compare_categories(self.tickets, first, second)
        cosine = self.similarity.alike(first, second)
        for phase in self.settings.phases:
            may &= ~phase.positives.holds(cosine, *relation)
        return may


def take_negatives(search: Search, phase: Phase, positives: Pairs, part: int, taken: set[tuple[int, int]]) -> Pairs:
    """As many negatives of a phase in a part as there are positives, or all that are found; beside the positives' own
    texts where that can be.

    Args:
        taken: pairs (lower ticket first) not to be taken again; grows.
    """
    settings, hard = search.settings, search.by_model(phase)
    random = np.random.default_rng((settings.seed, part, phase.number, 1))
    others = np.flatnonzero(search.mined.part == part)
    ceiling = _ceiling(search, positives) if hard else None
    measure = search.measures.by("encoder") if hard else search.similarity
    columns = measure.as_columns(others)
    rows: list[tuple[int, int]] = []
    uses: Counter[int] = Counter()
    with progress(f"Negatives, phase {phase.number}", len(positives)) as advance:
        for anchors, gaps, each in _blocks(search, positives, others, hard, random):
            if len(rows) >= len(positives):
                break
            before, cosine = len(rows), measure.closest(anchors, columns)
            if ceiling is None:
                options = _in_band(search, phase.negatives, anchors, gaps, others, cosine, random)
            else:
                options = _hardest(search, phase.negatives, anchors, ceiling[anchors], others, cosine)
            for anchor, partners in zip(anchors.tolist(), _allowed(search, anchors, options, others), strict=True):
                pairs = ((anchor, partner) for partner in partners.tolist() if uses[partner] < settings.most_uses)
                new = [pair for pair in pairs if (min(pair), max(pair)) not in taken]
                for pair in new[: min(each, len(positives) - len(rows))]:
                    taken.add((min(pair), max(pair)))
                    uses[pair[1]] += 1
                    rows.append(pair)
            advance(len(rows) - before)
    return Pairs.of(rows, [BY_MODEL if hard else settings.similarity] * len(rows))


def _blocks(
    search: Search, positives: Pairs, others: IntArray, hard: bool, random: np.random.Generator
) -> Iterator[Block]:
    """Anchors, the best first: first texts of positives, second texts, all others of the part."""
    gap = np.abs(search.lengths[positives.first] - search.lengths[positives.second])
    rounds = [(positives.first, gap, 1), (positives.second, gap, 1)]
    if not hard:  # which needs the score of a positive
        spare = np.full(len(others), np.nan, dtype=np.float32)
        rounds += [(others, spare, each) for each in (SPARE_PER_ANCHOR, search.settings.most_uses)]
    for tickets, gaps, each in rounds:
        order = random.permutation(len(tickets))
        for start in range(0, len(tickets), BLOCK):
            block = order[start : start + BLOCK]
            yield tickets[block], gaps[block], each


def _ceiling(search: Search, positives: Pairs) -> FloatArray:
    """[N] the highest score that a negative of an anchor may have: below that of its positives, by the margin."""
    lowest = np.full(len(search.tickets), np.inf, dtype=np.float32)
    score = (1 - search.settings.margin) * pair_cosines(
        search.measures.matrices["encoder"], positives.first, positives.second
    )
    for tickets in (positives.first, positives.second):
        np.minimum.at(lowest, tickets, score)
    return lowest


def _in_band(
    search: Search,
    band: Band,
    anchors: IntArray,
    gaps: FloatArray,
    others: IntArray,
    cosine: FloatArray,
    random: np.random.Generator,
) -> list[IntArray]:
    """Places among the others of a random choice in the band, for each anchor; first those whose length differs as its
    positive's does, so that length does not give a label away."""
    fits = band.holds(cosine, *compare_categories(search.tickets, anchors[:, None], others))
    options = []
    for anchor, gap, row in zip(anchors, gaps, fits, strict=True):
        places = np.flatnonzero(row)
        places = random.choice(places, min(OPTIONS, len(places)), replace=False) if len(places) else places
        misses = np.abs(np.abs(search.lengths[others[places]] - search.lengths[anchor]) - gap)
        options.append(places[np.argsort(misses, kind="stable")])
    return options


def _hardest(
    search: Search, band: Band, anchors: IntArray, ceiling: FloatArray, others: IntArray, cosine: FloatArray
) -> list[IntArray]:
    """Places among the others of what the encoder scores highest within the ceiling, for each anchor."""
    relation = compare_categories(search.tickets, anchors[:, None], others)
    fits = (cosine <= ceiling[:, None]) & Band(-np.inf, np.inf, band.category).holds(cosine, *relation)
    places = (np.flatnonzero(row) for row in fits)
    return [at[np.argsort(-row[at], kind="stable")[:OPTIONS]] for at, row in zip(places, cosine, strict=True)]


def _allowed(search: Search, anchors: IntArray, options: list[IntArray], others: IntArray) -> list[IntArray]:
    """For each anchor, the tickets at its places that may make a negative with it."""
    counts = [len(places) for places in options]
    second = others[np.concatenate(options).astype(np.int64)]
    may = search.allowed(np.repeat(anchors, counts), second)
    ends = np.cumsum(counts)[:-1]
    return [tickets[keep] for tickets, keep in zip(np.split(second, ends), np.split(may, ends), strict=True)]
