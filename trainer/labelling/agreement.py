"""How far two people agree who labelled the same pairs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

Votes = Mapping[str, int | None]
"""Who said what of a pair: 1, 0, or None where they left it open."""


@dataclass(frozen=True)
class Agreement:
    """Of two people, on the pairs that both labelled."""

    first: str
    second: str
    pairs: int
    share: float
    """Of the pairs with the same label from both."""
    kappa: float
    """Cohen's (1960): the share beyond what chance gives at their own rates of either label; NaN where chance alone
    gives all of it, as both always gave one label."""

    def __str__(self) -> str:
        kappa = "cannot be told, as they gave one label alone" if math.isnan(self.kappa) else f"{self.kappa:.2f}"
        alike = round(self.share * self.pairs)
        return (
            f"{self.first} and {self.second} agree on {alike} of {self.pairs} pairs ({self.share:.0%}); Cohen's kappa "
            f"{kappa}"
        )


def compare(votes: Sequence[Votes]) -> list[Agreement]:
    """Every two people with common pairs.

    >>> str(compare([{"anna": 1, "ben": 1}, {"anna": 0, "ben": 0}, {"anna": 1, "ben": 0}, {"anna": 1}])[0])
    "anna and ben agree on 2 of 3 pairs (67%); Cohen's kappa 0.40"
    """
    people = sorted({name for of_pair in votes for name in of_pair})
    results = []
    for first, second in combinations(people, 2):
        labels = ((of_pair.get(first), of_pair.get(second)) for of_pair in votes)
        both = Counter(pair for pair in labels if None not in pair)
        if total := both.total():
            share = (both[0, 0] + both[1, 1]) / total
            ones = [sum(count for pair, count in both.items() if pair[side] == 1) / total for side in (0, 1)]
            chance = ones[0] * ones[1] + (1 - ones[0]) * (1 - ones[1])
            kappa = (share - chance) / (1 - chance) if chance < 1 else math.nan
            results.append(Agreement(first, second, total, share, kappa))
    return results
