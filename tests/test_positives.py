"""Positives and negatives: what may be a pair, who stays together, and that no chain of pairs contradicts another."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.sparse import coo_matrix, csgraph

from trainer.data.readers import Reading
from trainer.data.ticket_table import Columns
from trainer.data.tickets import Filter, Tickets
from trainer.mining import positives as mining
from trainer.mining.negatives import Search, take_negatives
from trainer.mining.neighbours import Similarity
from trainer.mining.positives import Mined, Pairs, mine_positives, take_positives, usable
from trainer.mining.settings import PARTS, Band, Phase, Settings
from trainer.mining.sources import known_pairs
from trainer.text.tfidf import tfidf_matrix

PHASES = (
    Phase(1, "easy", 400, Band(0.6, 0.95, "same"), Band(0, 0.1, "other")),
    Phase(2, "medium", 400, Band(0.5, 0.95, "other"), Band(0.1, 0.3, "same")),
    Phase(3, "hard", 400, Band(0.4, 0.65, "same"), Band(0.2, 0.5, "any")),
)


@cache
def make_tickets(seed: int, count: int = 900) -> Tickets:
    """Tickets about 60 problems: a few words of the problem, a few of anything; three categories, two languages."""
    random = np.random.default_rng(seed)
    words = np.array([f"{a}{b}{c}" for a in "bdfgklm" for b in "aeiou" for c in ("rt", "ns", "lk", "mp")])
    problems = [random.choice(words, 7, replace=False) for _ in range(60)]
    about = random.integers(0, 60, count)
    texts = [
        " ".join([*random.choice(problems[problem], 5, replace=False), *random.choice(words, random.integers(0, 4))])
        for problem in about
    ]
    category = np.where(random.random(count) < 0.7, about % 3, random.integers(-1, 3, count))
    return Tickets(
        source="made up",
        numbers=[f"T{number}" for number in range(count)],
        texts=texts,
        raw=texts,
        category=category,
        categories=["a", "b", "c"],
        languages=random.choice(["en", "de", ""], count).tolist(),
        duplicate=np.arange(count),
        named=np.zeros(count, dtype=bool),
        template=np.arange(count),
        dropped=[],
        facts={},
    )


def settings_of(**changes: Any) -> Settings:
    settings = Settings("", Path(), Columns(), Reading(), Filter(), PHASES, dev_share=0.15, test_share=0.15)
    return replace(settings, **{"largest_group": 20, "most_uses": 6, **changes})


@cache
def by_words(texts: tuple[str, ...]) -> tuple[Similarity, np.ndarray]:
    """As mining takes it, and the cosines of all pairs [N, N]."""
    matrix = tfidf_matrix(list(texts))
    return Similarity({"tfidf": matrix}), (matrix @ matrix.T).toarray()


def all_cosines(tickets: Tickets) -> np.ndarray:
    return by_words(tuple(tickets.texts))[1]


def mine(tickets: Tickets, **changes: Any) -> Mined:
    return mine_positives(tickets, by_words(tuple(tickets.texts))[0], settings_of(**changes))


def select(
    tickets: Tickets, mined: Mined, part: int = 0, embeddings: np.ndarray | None = None, **changes: Any
) -> dict[int, tuple[Pairs, Pairs]]:
    settings = settings_of(**changes)
    positives = take_positives(mined, settings, part)
    taken = {pair for pairs in positives.values() for pair in pairs.sorted()}
    similarity = by_words(tuple(tickets.texts))[0]
    if embeddings is not None:
        similarity = Similarity({"tfidf": tfidf_matrix(tickets.texts), "encoder": embeddings})
    search = Search(tickets, similarity, mined, settings)
    phases = ((phase, positives[phase.number]) for phase in PHASES)
    return {phase.number: (pairs, take_negatives(search, phase, pairs, part, taken)) for phase, pairs in phases}


def cosines(tickets: Tickets, pairs: Pairs) -> np.ndarray:
    return all_cosines(tickets)[pairs.first, pairs.second]


def same(tickets: Tickets, pairs: Pairs) -> np.ndarray:
    return tickets.category[pairs.first] == tickets.category[pairs.second]


def fits(band: Band, tickets: Tickets, pairs: Pairs) -> bool:
    """The definition of a band, written out."""
    values = cosines(tickets, pairs)
    known = (tickets.category[pairs.first] >= 0) & (tickets.category[pairs.second] >= 0)
    rule = {"same": known & same(tickets, pairs), "other": known & ~same(tickets, pairs), "any": values > -2}
    return bool(((values >= band.low - 1e-6) & (values < band.high + 1e-6) & rule[band.category]).all())


@cache
def mined_of(seed: int) -> tuple[Tickets, Mined]:
    return make_tickets(seed), mine(make_tickets(seed), seed=seed)


@cache
def chosen_of(seed: int) -> tuple[Tickets, Mined, list[dict[int, tuple[Pairs, Pairs]]]]:
    """Tickets, what was mined of them, and the pairs of each part by phase."""
    tickets, mined = mined_of(seed)
    return tickets, mined, [select(tickets, mined, part, seed=seed) for part in range(len(PARTS))]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_every_pair_lies_in_its_band_and_part_and_is_taken_once(seed: int) -> None:
    tickets, mined, chosen = chosen_of(seed)
    seen: list[tuple[int, int]] = []
    for part, by_phase in enumerate(chosen):
        for phase in PHASES:
            positives, negatives = by_phase[phase.number]
            assert len(positives) >= len(negatives) > (150 if part == 0 else 10)
            assert fits(phase.positives, tickets, positives) and fits(phase.negatives, tickets, negatives)
            for pairs in (positives, negatives):
                assert (mined.part[pairs.first] == part).all() and (mined.part[pairs.second] == part).all()
                seen += pairs.sorted()
    assert len(set(seen)) == len(seen)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_no_chain_of_positives_contradicts_a_negative_or_leaves_a_part(seed: int) -> None:
    tickets, mined, parts = chosen_of(seed)
    chosen = [pairs for by_phase in parts for pairs in by_phase.values()]
    first, second = (
        np.concatenate([getattr(positives, side) for positives, _ in chosen]) for side in ("first", "second")
    )
    graph = coo_matrix((np.ones(len(first)), (first, second)), shape=(len(tickets), len(tickets)))
    component = csgraph.connected_components(graph, directed=False)[1]
    for _, negatives in chosen:
        assert (component[negatives.first] != component[negatives.second]).all()
    for number in np.unique(component):
        assert len(set(mined.part[component == number])) == 1


def test_groups_keep_their_size_and_parts_their_share() -> None:
    tickets = make_tickets(0)
    for largest in (2, 10, 50):
        mined = mine(tickets, largest_group=largest)
        sizes = np.unique(mined.group, return_counts=True)[1]
        assert sizes.max() <= largest and (sizes > 1).any()
        share = np.bincount(mined.part, minlength=3) / len(tickets)
        assert abs(share[1] - 0.15) < 0.05 and abs(share[2] - 0.15) < 0.05
        for group in np.unique(mined.group):
            assert len(set(mined.part[mined.group == group])) == 1


def test_a_ticket_stays_in_its_part_when_others_come() -> None:
    tickets = make_tickets(0)
    fewer = make_tickets(0)
    keep = slice(0, 850)
    fewer = replace(
        fewer,
        **{name: getattr(fewer, name)[keep] for name in ("numbers", "texts", "raw", "category", "languages")},
        **{name: getattr(fewer, name)[keep] for name in ("duplicate", "named", "template")},
    )
    before, after = mine(fewer).part, mine(tickets).part[keep]
    assert (before == after).mean() > 0.8  # by chance it would be 0.54


@pytest.mark.slow
def test_everything_repeats_with_its_seed_and_changes_with_another() -> None:
    tickets = make_tickets(0)

    def rows(seed: int) -> list[tuple[int, int]]:
        chosen = select(tickets, mine(tickets, seed=seed), seed=seed)
        return [
            pair
            for both in chosen.values()
            for pairs in both
            for pair in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)
        ]

    assert rows(1) == rows(1) != rows(2)


def test_known_duplicates_are_no_guesses_and_never_negatives() -> None:
    tickets = make_tickets(0)
    whole, later = all_cosines(tickets), np.triu(np.ones((len(tickets), len(tickets)), dtype=bool), 1)
    alike = np.argwhere(later & (whole > 0.6))[:20]
    unlike = np.argwhere(later & (whole == 0))[:: len(whole)][:20]
    duplicate = np.arange(len(tickets))
    for one, two in unlike.tolist():
        duplicate[duplicate == duplicate[two]] = duplicate[one]
    named = np.zeros(len(tickets), dtype=bool)
    named[alike.ravel()] = True  # two names: a person says that they are two problems
    tickets = replace(tickets, duplicate=duplicate, named=named)
    mined = mine(tickets)
    positives, negatives = [], []
    for part in range(3):
        for one, two in select(tickets, mined, part).values():
            positives += one.sorted()
            negatives += two.sorted()
    assert not {tuple(sorted(pair)) for pair in alike.tolist()} & set(positives)
    assert all(duplicate[i] != duplicate[j] for i, j in positives + negatives)
    assert all(len(set(mined.part[duplicate == cluster])) == 1 for cluster in set(duplicate[unlike[:, 0]].tolist()))


def test_large_clusters_are_paired_in_part_and_small_ones_whole() -> None:
    duplicate = np.array([0] * 3 + [1] * 100 + [2] + [3] * 2)
    first, second = known_pairs(duplicate, np.random.default_rng(0))
    of = duplicate[first]
    assert (of == duplicate[second]).all() and (first < second).all()
    assert [(of == cluster).sum() for cluster in range(4)] == [3, 600, 0, 1]
    assert np.bincount(np.concatenate([first, second])[np.concatenate([of, of]) == 1]).max() == 12


def test_copies_of_a_template_make_no_pair_and_stay_together() -> None:
    tickets = make_tickets(0)
    template = np.arange(len(tickets)) // 2 * 2
    tickets = replace(tickets, template=template)
    mined = mine(tickets)
    assert (mined.part[::2] == mined.part[1::2]).all()
    for pairs in (pairs for both in select(tickets, mined).values() for pairs in both):
        assert (template[pairs.first] != template[pairs.second]).all()


@pytest.mark.slow
def test_negatives_stay_within_a_language_and_away_from_friends() -> None:
    tickets, mined, parts = chosen_of(0)
    friends = {
        frozenset(pair)
        for found in mined.candidates.values()
        for pair in zip(found.first.tolist(), found.second.tolist(), strict=True)
    }
    near = {ticket: {ticket} for ticket in range(len(tickets))}
    for pair in friends:
        for ticket in pair:
            near[ticket] |= pair
    for _, negatives in parts[0].values():
        for one, two in negatives.sorted():
            assert len({tickets.languages[one], tickets.languages[two]} - {""}) < 2
            assert not near[one] & near[two]
        for phase in PHASES:
            values, equal = cosines(tickets, negatives), same(tickets, negatives)
            known = (tickets.category[negatives.first] >= 0) & (tickets.category[negatives.second] >= 0)
            assert not phase.positives.holds(values, equal, known).any()


def test_what_would_pass_as_a_positive_is_no_negative_even_where_few_candidates_are_kept(monkeypatch) -> None:
    monkeypatch.setattr(mining, "PER_TICKET", 1)
    tickets = make_tickets(0)
    for _, negatives in select(tickets, mine(tickets, largest_group=5)).values():
        values, equal = cosines(tickets, negatives), same(tickets, negatives)
        known = (tickets.category[negatives.first] >= 0) & (tickets.category[negatives.second] >= 0)
        assert len(negatives) and not any(phase.positives.holds(values, equal, known).any() for phase in PHASES)


def test_negatives_share_the_anchors_of_positives_and_their_difference_in_length() -> None:
    tickets = make_tickets(0)
    # Long texts about some problems, by a word that TF-IDF does not see: alike in length are alike in content.
    texts = [text + " the" * (2 * sum(map(ord, text.split()[0])) % 50) for text in tickets.texts]
    tickets = replace(tickets, texts=texts)
    lengths = np.array([len(text) for text in texts])
    for positives, negatives in select(tickets, mine(tickets)).values():
        assert np.isin(negatives.first, np.concatenate([positives.first, positives.second])).mean() > 0.9
        gaps = [np.abs(lengths[pairs.first] - lengths[pairs.second]).mean() for pairs in (positives, negatives)]
        assert abs(gaps[0] - gaps[1]) < 0.1 * gaps[0]


def test_no_ticket_is_used_more_often_than_allowed() -> None:
    tickets, mined = mined_of(0)
    for most in (1, 3):
        for positives, negatives in select(tickets, mined, most_uses=most).values():
            assert np.bincount(np.concatenate([positives.first, positives.second])).max() <= most
            assert np.bincount(negatives.second).max() <= most


@pytest.mark.slow
@pytest.mark.parametrize("margin", [0.0, 0.2])
def test_an_encoder_picks_the_hardest_below_its_margin(margin: float) -> None:
    tickets, mined, parts = chosen_of(0)
    matrix = tfidf_matrix(tickets.texts)
    rows = (matrix @ np.random.default_rng(0).normal(size=(matrix.shape[1], 64))).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    whole = rows @ rows.T
    chosen = select(tickets, mined, embeddings=rows, margin=margin)
    positives, negatives = chosen[3]
    assert set(negatives.origin) == {"model"} and set(chosen[1][1].origin) == {"tfidf"} and len(negatives) > 100
    own: dict[int, float] = {}
    for one, two in [
        *zip(positives.first, positives.second, strict=True),
        *zip(positives.second, positives.first, strict=True),
    ]:
        own[one] = min(own.get(one, 2.0), whole[one, two])
    for one, two in zip(negatives.first, negatives.second, strict=True):
        assert whole[one, two] <= (1 - margin) * own[one] + 1e-5
    easier = parts[0][3][1]
    assert whole[negatives.first, negatives.second].mean() > whole[easier.first, easier.second].mean()


def test_candidates_are_counted_as_they_are() -> None:
    tickets, mined = mined_of(0)
    whole = np.triu(all_cosines(tickets), 1)
    equal = tickets.category[:, None] == tickets.category
    known = (tickets.category[:, None] >= 0) & (tickets.category >= 0)
    for phase in PHASES:
        band = phase.positives
        inside = (whole >= band.low) & (whole < band.high) & known & (equal == (band.category == "same"))
        assert mined.in_band[phase.number] == inside.sum() > 50
        assert sum(len(usable(mined.candidates[phase.number], mined, part)) for part in range(3)) <= inside.sum()
