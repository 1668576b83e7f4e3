"""How many alerts a ticket a threshold raises: all pairs of a set of texts, counted at every candidate threshold.

An alert is another ticket whose cosine reaches the threshold; a pair that does is an alert for both its tickets.
Labelled pairs cannot tell how many there will be: they are a few hundred, chosen, and half positive, where the pairs of
all tickets are millions and nearly all negative. Those pairs need no labels to be counted.

Nothing is drawn: all N^2 / 2 cosines are computed, block by block, and counted into steps of 1 / STEPS; what is kept
does not grow with N. Intervals are those of a bootstrap over tickets: they are dealt into GROUPS groups at random, each
resample draws as many groups, with replacement, and a pair of groups counts once for every two copies drawn (Owen 2007,
"The pigeonhole bootstrap"). They say what other tickets of the same kind would give, not what another month brings.

Legend: N tickets, G groups, P = G (G + 1) / 2 pairs of groups, C and D candidates (fine, coarse), B resamples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.evaluation.bootstrap import RESAMPLES
from trainer.evaluation.groups import FEWEST_GROUPS, resample_counts
from trainer.evaluation.prevalence import percent, rounded
from trainer.system.console import progress
from trainer.system.gpu import default_device

Float = NDArray[np.float64]
Int = NDArray[np.int64]

STEPS = 2**16  # candidates between 0 and 1, both below and above 0: cosines in float32 are no finer than 1e-7
COARSE = 2**12  # the same where they are counted by groups, for intervals
GROUPS = 40
ROWS = 1024  # of a block: its cosines, 4 MB, fit a processor's cache
RESAMPLES_AT_ONCE = 64


@dataclass(frozen=True)
class AlertCounts:
    """Alerts of all N tickets at every candidate threshold: k / STEPS for k = -STEPS .. STEPS."""

    tickets: int
    """N."""
    alerts: Int
    """[C] a pair that reaches the candidate is two, one for each of its tickets."""
    by_groups: Int
    """[P, D] the same by pair of groups, at the candidates k / COARSE."""
    pairs: Int
    """[P] what `by_groups` would be were every pair an alert."""
    groups: int

    def per_ticket(self, threshold: float) -> float:
        """Alerts a ticket at a threshold, which is rounded to the nearest candidate."""
        return float(self.alerts[_candidates(threshold)]) / self.tickets

    def flagged(self, thresholds: np.ndarray) -> Float:
        """The share of all pairs that reach thresholds, of their shape; rounded likewise."""
        shares: Float = self.alerts[_candidates(thresholds)] / (self.tickets * (self.tickets - 1.0))
        return shares


def count_alerts(
    queries: np.ndarray, documents: np.ndarray, dim: int, *, groups: int = GROUPS, seed: int = 0
) -> AlertCounts:
    """Count the alerts of N tickets, each compared with all others but itself; shows progress.

    The cost is N^2 / 2 products of width `dim` (N^2 where the sides differ), the memory that of the embeddings, a block
    and the counts.

    Args:
        queries: [N, E] finite embeddings of N >= 2 tickets of different texts, as the new ticket.
        documents: [N, E] the same as past tickets; the same array where the model makes no difference.
        dim: the width to cut to.
        groups: to deal the tickets into; intervals need FEWEST_GROUPS or more.
        seed: of the dealing.
    """
    count = len(queries)
    if count < 2 or queries.shape != documents.shape:
        raise ValueError(f"two tickets or more are needed, on both sides, not {len(queries)} and {len(documents)}")
    groups = min(groups, count)
    order = np.random.default_rng(seed).permutation(count)
    edges = np.linspace(0, count, groups + 1).astype(int)
    alike = queries is documents
    device = default_device()
    new = _unit(queries, order, dim).to(device)
    past = new if alike else _unit(documents, order, dim).to(device)
    combinations = _both_groups(groups).T.tolist()
    by_groups = np.empty((len(combinations), 2 * COARSE + 1), dtype=np.int64)
    total = torch.zeros(2 * STEPS + 1, dtype=torch.int64)
    with progress(f"Counting alerts at {dim} dims", len(combinations)) as advance:
        for row, (a, b) in enumerate(combinations):
            first, second = (range(*edges[group : group + 2].tolist()) for group in (a, b))
            ways = [(first, second)] if a == b or alike else [(first, second), (second, first)]
            weight = 2 if alike and a != b else 1  # the other way round is the same
            coarse = torch.zeros(2 * COARSE + 1, dtype=torch.int64)
            for way in ways:
                for steps, times in _steps(new, past, *way):
                    _count(total, coarse, steps, times * weight)
            by_groups[row] = _at_or_above(coarse.numpy())
            advance()
    return AlertCounts(count, _at_or_above(total.numpy()), by_groups, _pairs_of_groups(edges), groups)


def threshold_for_alerts(counts: AlertCounts, alerts: float) -> float:
    """The lowest candidate threshold at which a ticket raises at most so many alerts on average.

    Raises ValueError, in words, where no threshold reaches that: below one alert in all, or where so many pairs are
    equally alike at the top that none is above them; and for more alerts than there are other tickets.
    """
    most = counts.tickets - 1
    if not 0 < alerts <= most:
        raise ValueError(f"{counts.tickets} tickets raise more than 0 and at most {most} alerts each")
    per_ticket = counts.alerts / counts.tickets
    first = int((per_ticket > alerts).sum())
    if first == len(per_ticket) or per_ticket[first] == 0:
        raise ValueError(
            f"no threshold raises so few: among these {counts.tickets} tickets the highest raises "
            f"{rounded(per_ticket[per_ticket > 0][-1], 2, ROUND_CEILING)} alerts a ticket"
        )
    return (first - STEPS) / STEPS


def alerts_at(
    queries: np.ndarray, documents: np.ndarray, dim: int, threshold: float, seed: int = 0
) -> tuple[float, Float]:
    """Alerts a ticket at one threshold, and in resamples [B]; of so few tickets that all their cosines fit in memory.

    Takes embeddings [N, E] as `count_alerts` does.
    """
    count = len(queries)
    groups = min(GROUPS, count)
    order = np.random.default_rng(seed).permutation(count)
    edges = np.linspace(0, count, groups + 1).astype(int)
    raised = (_unit(queries, order, dim) @ _unit(documents, order, dim).T >= threshold).numpy()
    np.fill_diagonal(raised, False)
    parts = (np.add.reduceat(each, edges[:-1], axis=1, dtype=np.int64) for each in np.split(raised, edges[1:-1]))
    by_groups = np.stack([part.sum(axis=0) for part in parts])
    first, second = _both_groups(groups)
    both = by_groups[first, second] + np.where(first == second, 0, by_groups[second, first])
    samples = _resample(both[:, None], _pairs_of_groups(edges), groups, count, RESAMPLES, seed)
    return float(raised.sum()) / count, samples[:, 0]


def resample_alerts(counts: AlertCounts, resamples: int = RESAMPLES, seed: int = 0) -> Float:
    """[B, D] alerts a ticket at the coarse candidates in resamples of the tickets; NaN with too few groups to draw."""
    return _resample(counts.by_groups, counts.pairs, counts.groups, counts.tickets, resamples, seed)


def _resample(by_groups: Int, pairs: Int, groups: int, tickets: int, resamples: int, seed: int) -> Float:
    """[B, D] alerts a ticket in resamples, of alerts [P, D] and pairs [P] by pair of groups."""
    if groups < FEWEST_GROUPS:
        return np.full((resamples, by_groups.shape[1]), np.nan)
    first, second = _both_groups(groups)
    alerts, parts = by_groups.astype(np.float64), []
    for drawn in resample_counts(groups, resamples, seed, RESAMPLES_AT_ONCE):
        weights = drawn[:, first].astype(np.float64) * drawn[:, second]
        parts.append((tickets - 1) * (weights @ alerts) / (weights @ pairs)[:, None])
    samples: Float = np.concatenate(parts)
    return samples


def _both_groups(groups: int) -> Int:
    """[2, P] the first and the second of each pair of groups."""
    return np.array(list(combinations_with_replacement(range(groups), 2))).T


def _pairs_of_groups(edges: np.ndarray) -> Int:
    """[P] how many ordered pairs of different tickets each pair of groups has, of where the groups begin and end."""
    sizes = np.diff(edges)
    first, second = _both_groups(len(sizes))
    pairs: Int = np.where(first == second, sizes[first] * (sizes[first] - 1), 2 * sizes[first] * sizes[second])
    return pairs


def resampled_thresholds(samples: Float, alerts: float) -> Float:
    """[B] the threshold that `threshold_for_alerts` would choose in each resample of `resample_alerts`."""
    first = np.minimum((samples > alerts).sum(axis=1), samples.shape[1] - 1)
    return np.where(np.isnan(samples[:, 0]), np.nan, (first - COARSE) / COARSE)


def resampled_per_ticket(counts: AlertCounts, samples: Float, threshold: float) -> Float:
    """[B] alerts a ticket at a threshold in each resample of `resample_alerts`.

    The coarse candidate nearby says how much more or fewer than in the counts, which are fine.
    """
    row = _candidates(threshold, COARSE)
    whole = counts.by_groups[:, row].sum() / counts.tickets
    return samples[:, row] * (counts.per_ticket(threshold) / whole) if whole else samples[:, row]


def _candidates(thresholds: float | np.ndarray, steps: int = STEPS) -> Int:
    """The rows of the candidates next to thresholds, of their shape."""
    rows: Int = np.clip(np.rint(np.asarray(thresholds) * steps), -steps, steps).astype(np.int64) + steps
    return rows


def _unit(embeddings: np.ndarray, order: np.ndarray, dim: int) -> Tensor:
    """Rows of length 1 of the prefixes, in an order; zeros stay."""
    rows = torch.from_numpy(np.ascontiguousarray(embeddings[order, :dim], dtype=np.float32))
    return torch.nn.functional.normalize(rows, dim=1)


def _blocks(rows: range) -> Iterator[range]:
    for start in range(rows.start, rows.stop, ROWS):
        yield range(start, min(start + ROWS, rows.stop))


def _steps(new: Tensor, past: Tensor, first: range, second: range) -> Iterator[tuple[Tensor, int]]:
    """Yield the steps 0 .. 2 STEPS of all cosines of two ranges of rows, block by block, and how often they count:
    once, and those of a ticket with itself once less."""
    for rows in _blocks(first):
        for others in _blocks(second):
            cosines = new[rows.start : rows.stop] @ past[others.start : others.stop].T
            steps = (cosines * STEPS).floor_().clamp_(-STEPS, STEPS).to(torch.int32) + STEPS
            yield steps.flatten(), 1
            if rows == others:
                yield steps.diagonal(), -1


def _count(total: Tensor, coarse: Tensor, steps: Tensor, times: int) -> None:
    """Add steps to a histogram [2 STEPS + 1] and to one of a pair of groups [2 COARSE + 1]; the last of either is 1."""
    if len(steps) < len(total):  # without the work of its length
        steps = steps.cpu()
        for histogram, index in ((total, steps), (coarse, steps // (STEPS // COARSE))):
            histogram.index_add_(0, index, histogram.new_ones(1).expand(len(steps)), alpha=times)
        return
    counts = times * torch.bincount(steps, minlength=len(total)).cpu()
    total += counts
    coarse += torch.nn.functional.pad(counts, (0, STEPS // COARSE - 1)).view(len(coarse), -1).sum(dim=1)


def _at_or_above(histogram: np.ndarray) -> Int:
    return np.cumsum(histogram[::-1], dtype=np.int64)[::-1]


def alerts_in_words(alerts: Mapping[str, Any] | None) -> str:
    """What thresholds raise among the texts of a training set, for those who will get the alerts; "" for None.

    Args:
        alerts: what `card_alerts.alerts_on_training` counted.
    """
    if alerts is None:
        return ""
    drawn = "" if alerts["counted"] == alerts["texts"] else f", estimated from {alerts['counted']:,} of them"
    each = []
    for dim, entry in alerts["by_dim"].items():
        low, high = (np.nan if end is None else end for end in entry.get("alerts_interval", (None, None)))
        ends = "" if np.isnan(low) else f"95 % interval {_round(low)} to {_round(high)}; "
        share = f"{ends}{percent(entry['share_of_pairs'])} of all pairs"
        each.append(f"{_round(entry['alerts_per_ticket'])} of them at {dim} dims ({share})")
    return (
        f"What these thresholds mean in use: each of the {alerts['texts']:,} training texts, compared with all the "
        f"others, is on average called the same problem as {', '.join(each)}{drawn}. Most of these can be false "
        "alarms: where all pairs are compared, far fewer are positive. `trainer evaluate --pairs FILE --dev FILE "
        "--tickets FILE --alerts-per-ticket A` finds and keeps thresholds that raise as many as people can look at."
    )


def _round(alerts: float) -> str:
    return f"{alerts:,.0f}" if alerts >= 10 else f"{alerts:.2g}"
