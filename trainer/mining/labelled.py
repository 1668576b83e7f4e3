"""Pairs from what tickets say of themselves: positives of each source, a negative for each, and phases by difficulty.

A negative is another ticket's text of the same kind, if there is one of the category that the positive is of: the
hardest, by an encoder or by TF-IDF, of those that score at most (1 - margin) x the anchor's own positive (TopK-PercPos
of NV-Retriever, Moreira et al. 2024, arXiv:2407.15831). It is never of a ticket that may be about the same problem.

Legend: P positives, R anchors of a block, O texts that may be negatives.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from trainer.data.origins import KNOWN
from trainer.mining.neighbours import THREADS, IntArray, Matrix, Similarity
from trainer.mining.positives import Mined, Pairs, compare_categories, may_be_different
from trainer.mining.settings import BoolArray, Settings
from trainer.mining.sources import Source, Texts
from trainer.system.console import progress
from trainer.text.tfidf import FloatArray, as_columns, cosines_with, pair_cosines

BLOCK = 128  # anchors compared with all that may be negatives at a time
OPTIONS = 64  # negatives weighed for an anchor
NEGATIVE_USES = 3  # of one text: else the model learns which texts are negatives
NO_PAIRS = Pairs.of([], [])
CATEGORY_FIRST = np.float32(4)  # above all scores
# Cosines below which two tickets may be called different problems: by TF-IDF, by an encoder, and by TF-IDF where both
# have known duplicates, none of them shared. All are halved within a storm. For the encoder's, see bench/LOG.md.
DIFFERENT, DIFFERENT_TO_ENCODER, DIFFERENT_IF_LINKED = 0.2, 0.5, 0.5
STORM = 24 * 3600.0  # seconds within which tickets of a category are soon about one incident


@dataclass(frozen=True, eq=False)
class Labels:
    """What the pairs of sources are drawn from and judged by."""

    texts: Texts
    sources: Sequence[Source]
    measures: Similarity
    """TF-IDF, and an encoder where there is one, which then says how hard a pair is."""
    mined: Mined
    forms: IntArray
    """Number of each text's canonical form."""
    settings: Settings

    @property
    def scores(self) -> Matrix:
        """What says how hard a pair is: the encoder where there is one."""
        return self.measures.matrices["encoder" if "encoder" in self.measures.matrices else "tfidf"]

    @cached_property
    def languages(self) -> NDArray[np.str_]:
        """[N] of the tickets."""
        return np.array(self.texts.tickets.languages)

    @cached_property
    def linked(self) -> BoolArray:
        """[N] whether a ticket has known duplicates."""
        duplicate = self.texts.tickets.duplicate
        return np.asarray(np.bincount(duplicate)[duplicate] > 1)

    def may_differ(self, first: IntArray, second: IntArray) -> BoolArray:
        """[P] whether the tickets of pairs of texts may be called different problems."""
        tickets = self.texts.tickets
        one, two = self.texts.ticket(first), self.texts.ticket(second)
        may = may_be_different(self.mined, self.languages, one, two)
        ceiling = np.where(self.linked[one] & self.linked[two], DIFFERENT_IF_LINKED, DIFFERENT)
        storm = np.ones_like(ceiling)
        if tickets.dates is not None:
            near = np.abs(tickets.dates[one] - tickets.dates[two]) <= STORM
            storm[near & (tickets.category[one] == tickets.category[two])] = 0.5
        for name, matrix in self.measures.matrices.items():
            highest = (ceiling if name == "tfidf" else DIFFERENT_TO_ENCODER) * storm
            may[may] &= pair_cosines(matrix, one[may], two[may]) < highest[may]
            if name == "tfidf":  # also what stands on the first side of either, as two titles
                may[may] &= pair_cosines(matrix, first[may], (first - one + two)[may]) < highest[may]
        return may


def take_labelled(labels: Labels, part: int) -> dict[int, tuple[Pairs, Pairs]]:
    """Positives of all sources in a part and their negatives, by phase: as many as are asked for, the most trusted
    sources first. The k-th negative is that of the k-th positive's first text.

    Phases go by how clearly a positive scores above its negative: the clearest are the easiest.
    """
    settings = labels.settings
    random = np.random.default_rng((settings.seed, part, 2))
    sizes = np.array([settings.wanted(phase, part) for phase in settings.phases])
    uses: Counter[int] = Counter()
    pairs: list[tuple[Pairs, Pairs]] = [(NO_PAIRS, NO_PAIRS)]
    for source in labels.sources:
        left = int(sizes.sum()) - sum(len(positives) for positives, _ in pairs)
        pairs.append(_take(labels, source, part, left, uses, random))
    positives, negatives = (Pairs.join([both[side] for both in pairs]) for side in (0, 1))
    scores = [pair_cosines(labels.scores, each.first, each.second) for each in (positives, negatives)]
    order = np.argsort(scores[1] - scores[0], kind="stable")
    ends = np.round(np.cumsum(sizes) / max(1, sizes.sum()) * len(order)).astype(np.int64)[:-1]
    places_by_phase = zip(settings.phases, np.split(order, ends), strict=True)
    return {phase.number: (positives.take(places), negatives.take(places)) for phase, places in places_by_phase}


def _take(
    labels: Labels, source: Source, part: int, wanted: int, uses: Counter[int], random: np.random.Generator
) -> tuple[Pairs, Pairs]:
    """Up to so many positives of a source in a part for which there are negatives, and these."""
    chosen = _positives(labels, source, part, wanted, uses, random)
    first, second = source.first[chosen], source.second[chosen]
    other = _negatives(labels, source, first, second, part, random)
    found = other >= 0
    origins = [source.name] * int(found.sum())
    known = [KNOWN] * len(origins) if source.name == "duplicates" else origins
    return Pairs(first[found], second[found], known), Pairs(first[found], other[found], origins)


def _positives(
    labels: Labels, source: Source, part: int, wanted: int, uses: Counter[int], random: np.random.Generator
) -> IntArray:
    """[P] places of the pairs of a source to take in a part, no pair of texts twice, no text more than `most_uses`."""
    of_text = labels.mined.part[labels.texts.ticket(np.stack([source.first, source.second]))]
    inside = np.flatnonzero((of_text == part).all(axis=0))
    chosen: list[int] = []
    seen: set[tuple[int, int]] = set()
    for place in random.permutation(inside).tolist():
        if len(chosen) >= wanted:
            break
        pair = int(labels.forms[source.first[place]]), int(labels.forms[source.second[place]])
        if pair in seen or pair[0] == pair[1] or max(uses[form] for form in pair) >= labels.settings.most_uses:
            continue
        seen.add(pair)
        uses.update(pair)
        chosen.append(place)
    return np.array(chosen, dtype=np.int64)


def _negatives(
    labels: Labels, source: Source, first: IntArray, second: IntArray, part: int, random: np.random.Generator
) -> IntArray:
    """[P] the text that is the negative of each first text, -1 where none may be."""
    pool = source.pool
    pool = random.permutation(pool[labels.mined.part[labels.texts.ticket(pool)] == part])  # ties are broken by it
    columns = as_columns(labels.scores, pool)
    ceiling = (1 - labels.settings.margin) * pair_cosines(labels.scores, first, second)
    found = np.full(len(first), -1, dtype=np.int64)
    uses: Counter[int] = Counter()
    taken: set[tuple[int, int]] = set()

    def weigh(start: int) -> tuple[IntArray, BoolArray]:
        anchors, stop = first[start : start + BLOCK], start + BLOCK
        scores = cosines_with(labels.scores, anchors, columns)
        options = _hardest(labels, anchors, second[start:stop], ceiling[start:stop], pool, scores)
        may = labels.may_differ(np.repeat(anchors, options.shape[1]), options.ravel()).reshape(options.shape)
        return options, may & (options >= 0)

    starts = range(0, len(first), BLOCK)
    with progress(f"Negatives, {source.name}", len(first)) as advance, ThreadPoolExecutor(THREADS) as threads:
        for start, (options, may) in zip(starts, threads.map(weigh, starts), strict=True):
            for row, (texts, allowed) in enumerate(zip(options, may, strict=True), start=start):
                form = int(labels.forms[first[row]])
                for text in texts[allowed].tolist():
                    other = int(labels.forms[text])
                    pair = min(form, other), max(form, other)
                    if pair not in taken and uses[other] < NEGATIVE_USES:
                        taken.add(pair)
                        uses[other] += 1
                        found[row] = text
                        break
            advance(len(options))
    return found


def _hardest(
    labels: Labels, anchors: IntArray, positives: IntArray, ceiling: FloatArray, pool: IntArray, scores: FloatArray
) -> IntArray:
    """[R, OPTIONS or fewer] texts of the pool for each anchor: first those of its category, or not of it where its
    positive is not either, so that categories do not tell; then those that score highest within the ceiling, or where
    there are none the lowest of all; -1 where there are no more."""
    texts, tickets = labels.texts, labels.texts.tickets
    own, _ = compare_categories(tickets, texts.ticket(anchors), texts.ticket(positives))
    same, known = compare_categories(tickets, texts.ticket(anchors)[:, None], texts.ticket(pool))
    preferred = known & (same == own[:, None])
    over = scores > ceiling[:, None]
    none = over.all(axis=1)  # of a positive as unlike as any two: the least alike
    over[none] = False
    keys = -scores  # the lowest first
    keys[none] *= -1
    np.subtract(keys, CATEGORY_FIRST, out=keys, where=preferred)
    keys[over] = np.inf
    count = min(OPTIONS, len(pool))
    best = np.argpartition(keys, count - 1, axis=1)[:, :count]
    best = np.take_along_axis(best, np.argsort(np.take_along_axis(keys, best, 1), axis=1, kind="stable"), 1)
    return np.where(np.isfinite(np.take_along_axis(keys, best, 1)), pool[best], -1)
