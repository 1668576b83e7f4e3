"""From tickets to pairs that may be the same problem: bands of similarity, groups, parts, and positives.

Legend: N tickets, P pairs.

Positives by similarity are guesses, and guesses chain: A like B, B like C, C unlike A. So positives are
only taken inside groups of a bounded size, formed from the most similar pair down. A group is never divided between
train, dev and test, and no negative is taken inside one: no chain of positives contradicts a negative or leaves a part.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import DisjointSet

from trainer.data.tickets import Tickets
from trainer.mining.neighbours import Candidates, IntArray, Similarity
from trainer.mining.settings import BoolArray, Settings
from trainer.mining.time_split import parts_by_time

ALIKE = 0.5  # cosine of whole tickets from which on two may be about one problem
PER_TICKET = 32  # candidates a band keeps of a ticket's pairs with later ones
PER_PAIR = 40  # candidates a band keeps for each pair asked for
LARGEST_SHARE = 0.25  # of a held-out part's tickets: a larger group would make the part about one problem
NO_COPIES = (np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))


@dataclass(frozen=True, eq=False)
class Pairs:
    """P labelled pairs of texts (`sources.Texts`) of one phase and label; a whole ticket has the ticket's number."""

    first: IntArray
    second: IntArray
    origin: list[str]

    def __len__(self) -> int:
        return len(self.first)

    @classmethod
    def of(cls, rows: list[tuple[int, int]], origin: list[str]) -> Pairs:
        """The pairs of rows."""
        first, second = np.array(rows, dtype=np.int64).reshape(-1, 2).T
        return cls(first, second, origin)

    @classmethod
    def join(cls, parts: Sequence[Pairs]) -> Pairs:
        """Those of all parts."""
        first, second = (np.concatenate([getattr(part, end) for part in parts]) for end in ("first", "second"))
        return cls(first, second, [origin for part in parts for origin in part.origin])

    def take(self, places: IntArray) -> Pairs:
        """Those at some places."""
        return Pairs(self.first[places], self.second[places], [self.origin[place] for place in places])

    def head(self, count: int) -> Pairs:
        """The first `count` of them."""
        return Pairs(self.first[:count], self.second[:count], self.origin[:count])

    def sorted(self) -> list[tuple[int, int]]:
        """Each with its lower ticket first."""
        return [(min(pair), max(pair)) for pair in zip(self.first.tolist(), self.second.tolist(), strict=True)]


@dataclass(frozen=True, eq=False)
class Mined:
    """What the positives of all parts are drawn from."""

    candidates: dict[int, Candidates]
    """Phase number -> pairs in its band, a random share of them where there are very many."""
    in_band: dict[int, int]  # phase number -> pairs in its band, at most PER_TICKET of a ticket with later ones
    group: IntArray  # [N] group of each ticket
    part: IntArray  # [N] index into PARTS


def compare_categories(tickets: Tickets, first: IntArray, second: IntArray) -> tuple[BoolArray, BoolArray]:
    """(equal, both known) of tickets' categories; arguments broadcast."""
    one, two = tickets.category[first], tickets.category[second]
    return one == two, (one >= 0) & (two >= 0)


def may_be_different(mined: Mined, languages: NDArray[np.str_], one: IntArray, two: IntArray) -> BoolArray:
    """[P] whether pairs of tickets are of two groups, and of one language as far as that is known."""
    first, second = languages[one], languages[two]
    alike: BoolArray = (first == second) | (first == "") | (second == "")
    return alike & (mined.group[one] != mined.group[two])


def mine_positives(
    tickets: Tickets,
    similarity: Similarity,
    settings: Settings,
    by_bands: bool = True,
    copies: tuple[IntArray, IntArray] = NO_COPIES,
) -> Mined:
    """Find the pairs of every positive band, group the tickets, and give each group to a part.

    Args:
        by_bands: whether bands are asked for; else only what is as alike as ALIKE counts, for groups.
        copies: tickets, and of each a number that it shares with those which have a text of it.
    """
    phases, seed = settings.phases if by_bands else (), settings.seed
    random = np.random.default_rng(seed)

    def choose(pairs: Candidates) -> Candidates:
        may = tickets.template[pairs.first] != tickets.template[pairs.second]
        may &= tickets.duplicate[pairs.first] != tickets.duplicate[pairs.second]  # a source of their own
        may &= ~(tickets.named[pairs.first] & tickets.named[pairs.second])  # two problems, as a person says
        pairs = pairs.take(may)
        relation = compare_categories(tickets, pairs.first, pairs.second)
        order = _shuffled(pairs, seed)
        inside = [phase.positives.holds(pairs.cosine, *relation)[order] for phase in phases]
        inside = inside or [np.ones(len(order), dtype=np.bool_)]
        chosen = [order[_top(pairs.first[order], wanted)] for wanted in inside]
        return pairs.take(np.unique(np.concatenate(chosen)))

    pairs = similarity.pairs(min((phase.positives.low for phase in phases), default=ALIKE), choose)
    relation = compare_categories(tickets, pairs.first, pairs.second)
    candidates, counts = {}, {}
    for phase in phases:
        inside = np.flatnonzero(phase.positives.holds(pairs.cosine, *relation))
        counts[phase.number] = len(inside)
        most = min(len(inside), PER_PAIR * phase.size)
        candidates[phase.number] = pairs.take(np.sort(random.permutation(inside)[:most]))
    near = candidates.values() if by_bands else [pairs]
    group = _groups(tickets, near, settings.largest_group, copies)
    held_out = settings.shares[1:]
    by_time = settings.split_by == "time"
    part = parts_by_time(tickets, held_out, copies) if by_time else _parts(tickets, group, held_out, seed)
    return Mined(candidates, counts, group, part)


def _shuffled(pairs: Candidates, seed: int) -> IntArray:
    """An order of pairs, row by row and random within, that depends on the pairs and the seed alone."""
    key = pairs.first.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + pairs.second.astype(np.uint64)
    key = (key + np.uint64(seed % 2**63)) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ (key >> np.uint64(31))) * np.uint64(0x94D049BB133111EB)
    return np.lexsort((key ^ (key >> np.uint64(29)), pairs.first))


def _top(rows: IntArray, wanted: BoolArray) -> IntArray:
    """Positions of the first PER_TICKET wanted entries of each row; `rows` is sorted."""
    places = np.flatnonzero(wanted)
    row_of = rows[places]
    rank = np.arange(len(row_of)) - np.searchsorted(row_of, row_of)
    return places[rank < PER_TICKET]


def _groups(
    tickets: Tickets, candidates: Iterable[Candidates], largest: int, copies: tuple[IntArray, IntArray]
) -> IntArray:
    """[N] groups: duplicates, templates and copies whole, then joined along candidates up to a size, the most similar
    first."""
    everyone = np.arange(len(tickets))
    groups = DisjointSet(range(len(tickets)))
    for members, labels in ((everyone, tickets.duplicate), (everyone, tickets.template), copies):
        first_of: dict[int, int] = {}
        for ticket, label in zip(members.tolist(), labels.tolist(), strict=True):
            groups.merge(first_of.setdefault(label, ticket), ticket)
    pairs = Candidates.join(candidates)
    order = np.argsort(-pairs.cosine, kind="stable")
    for one, two in zip(pairs.first[order].tolist(), pairs.second[order].tolist(), strict=True):
        if groups.subset_size(one) + groups.subset_size(two) <= largest:
            groups.merge(one, two)
    return np.array([groups[ticket] for ticket in range(len(tickets))], dtype=np.int64)


def _parts(tickets: Tickets, group: IntArray, shares: Sequence[float], seed: int) -> IntArray:
    """[N] the part of each ticket. Groups are dealt in the order of a hash of their first number: dev is filled, then
    test, the rest is train; so most tickets stay in their part when others come or go.

    The shares hold for tickets with a group and for those alone. A group that would be more than LARGEST_SHARE of a
    held-out part goes to train.
    """
    labels, first, inverse, sizes = np.unique(group, return_index=True, return_inverse=True, return_counts=True)
    keys = [hashlib.blake2b(f"{seed}/{tickets.numbers[ticket]}".encode()).digest() for ticket in first]
    drawn = np.zeros(len(labels), dtype=np.int64)
    for alone in (True, False):
        stratum = [label for label in sorted(range(len(labels)), key=keys.__getitem__) if (sizes[label] == 1) == alone]
        targets = [share * sizes[stratum].sum() for share in shares]
        room = list(targets)
        for label in stratum:
            for held, target in enumerate(targets):
                if sizes[label] <= min(room[held], max(2, LARGEST_SHARE * target)):
                    room[held] -= sizes[label]
                    drawn[label] = held + 1
                    break
    return drawn[inverse]


def usable(candidates: Candidates, mined: Mined, part: int) -> Candidates:
    """The candidates inside a group and a part, which by time are not the same."""
    inside = mined.group[candidates.first] == mined.group[candidates.second]
    inside &= (mined.part[candidates.first] == part) & (mined.part[candidates.second] == part)
    return candidates.take(inside)


def take_positives(
    mined: Mined, settings: Settings, part: int, wanted: Mapping[int, int] | None = None
) -> dict[int, Pairs]:
    """The positives of bands in a part by phase, as many as are wanted of it, no pair twice, no ticket above
    `most_uses` a phase."""
    phases = settings.phases
    wanted = wanted or {phase.number: settings.wanted(phase, part) for phase in phases}
    random = np.random.default_rng((settings.seed, part))
    guesses = {phase.number: usable(mined.candidates[phase.number], mined, part) for phase in phases}
    taken: set[tuple[int, int]] = set()
    result: dict[int, Pairs] = {}
    # Where bands overlap, the phase with the fewest candidates chooses first.
    for phase in sorted(phases, key=lambda phase: len(guesses[phase.number]) / max(1, wanted[phase.number])):
        uses: Counter[int] = Counter()
        rows: list[tuple[int, int]] = []
        source = guesses[phase.number]
        for place in random.permutation(len(source)).tolist():
            pair = int(source.first[place]), int(source.second[place])
            free = pair not in taken and max(uses[end] for end in pair) < settings.most_uses
            if free and len(rows) < wanted[phase.number]:
                taken.add(pair)
                uses.update(pair)
                rows.append(pair if random.random() < 0.5 else pair[::-1])
        result[phase.number] = Pairs.of(rows, [settings.similarity] * len(rows))
    return result
