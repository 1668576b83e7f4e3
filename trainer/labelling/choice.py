"""Which pairs are asked: the rules, and what each needs to know. Pure functions.

Legend: P pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.errors import InputError
from trainer.evaluation.pair_metrics import most_wrong

Int = NDArray[np.int64]
Float = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Scores:
    """What is known of P pairs without a person."""

    count: int
    """P."""
    label: NDArray[np.bool_] | None = None
    """[P] what their source says."""
    cosine: Float | None = None
    """[P] by a model, or without one by TF-IDF."""
    threshold: float | None = None
    """From which cosine on a pair is called the same problem."""
    words: Float | None = None
    """[P] by TF-IDF beside a model."""


def _near_threshold(scores: Scores, random: np.random.Generator) -> Int:
    assert scores.cosine is not None and scores.threshold is not None
    return np.argsort(np.abs(scores.cosine - scores.threshold), kind="stable")


def _disagreement(scores: Scores, random: np.random.Generator) -> Int:
    assert scores.cosine is not None and scores.words is not None
    return np.argsort(-np.abs(_share_below(scores.cosine) - _share_below(scores.words)), kind="stable")


def _share_below(values: Float) -> Float:
    """[P] the share of the others that score lower; ties count half."""
    ordered = np.sort(values)
    left, right = (np.searchsorted(ordered, values, side=side) for side in ("left", "right"))
    return (left + right) / (2 * len(values))


def _most_wrong(scores: Scores, random: np.random.Generator) -> Int:
    assert scores.cosine is not None and scores.label is not None
    return most_wrong(scores.cosine, scores.label, scores.threshold or 0.0)


def _random(scores: Scores, random: np.random.Generator) -> Int:
    return random.permutation(scores.count)


def _in_order(scores: Scores, random: np.random.Generator) -> Int:
    return np.arange(scores.count)


RULES: dict[str, tuple[Callable[[Scores, np.random.Generator], Int], tuple[str, ...]]] = {
    "random": (_random, ()),
    "threshold": (_near_threshold, ("cosine", "threshold")),
    "disagree": (_disagreement, ("words",)),
    "wrong": (_most_wrong, ("cosine", "label")),
    "order": (_in_order, ()),
}
"""Name -> an order of the pairs, the most telling first, and the scores that it needs."""
MIX = ("random", "threshold", "disagree", "wrong")
"""What is taken in turns where nobody chooses."""
NEEDS = {
    "cosine": "a model",
    "threshold": "a threshold (--threshold, or one that trainer evaluate --dev kept beside the model)",
    "words": "a model and TF-IDF",
    "label": "pairs that have labels",
}


def needs_of(asked: Sequence[str]) -> set[str]:
    """The fields of `Scores` that some rules, or without any the mix, go by."""
    return {name for rule in asked or MIX for name in RULES[rule][1]}


def lacking(rule: str, missing: Collection[str]) -> list[str]:
    """What a rule needs of the missing fields of `Scores`, in words."""
    return [NEEDS[name] for name in RULES[rule][1] if name in missing]


def check_rules(asked: Sequence[str], missing: Collection[str]) -> None:
    """Raise InputError for a rule that is none, or that needs a missing field of `Scores`."""
    if unknown := [rule for rule in asked if rule not in RULES]:
        raise InputError(f"--choose {unknown[0]}: use some of {', '.join(RULES)}, agreement")
    for rule in asked:
        if needed := lacking(rule, missing):
            raise InputError(f"--choose {rule} needs {' and '.join(needed)}: give that, or choose otherwise")


def settle_rules(asked: Sequence[str], scores: Scores) -> tuple[tuple[str, ...], list[str]]:
    """The rules to go by, and what is left out of the mix, in words. Raises InputError as `check_rules` does."""
    missing = [name for name in NEEDS if getattr(scores, name) is None]
    check_rules(asked, missing)
    if asked:
        return tuple(dict.fromkeys(asked)), []
    left_out = [f"{rule} needs {' and '.join(needed)}" for rule in MIX if (needed := lacking(rule, missing))]
    return tuple(rule for rule in MIX if not lacking(rule, missing)), left_out


def choose(
    rules: Sequence[str], scores: Scores, taken: Collection[int], count: int, seed: int
) -> list[tuple[int, str]]:
    """Up to `count` pairs that are not taken, by the rules in turns, each with its rule.

    Of several rules they come in a random order, so that nobody who labels can tell which rule it was.
    """
    random = np.random.default_rng(seed)
    orders = {rule: iter(RULES[rule][0](scores, random).tolist()) for rule in rules}
    chosen: dict[int, str] = {}
    while orders and len(chosen) < count:
        for rule in list(orders):
            pair = next((pair for pair in orders[rule] if pair not in chosen and pair not in taken), None)
            if pair is None:
                del orders[rule]
            elif len(chosen) < count:
                chosen[pair] = rule
    pairs = list(chosen.items())
    return [pairs[place] for place in random.permutation(len(pairs))] if len(rules) > 1 else pairs
