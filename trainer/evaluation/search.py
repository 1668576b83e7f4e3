"""How well queries find their right answers among all texts of a corpus, exactly and in blocks.

A scorer (see `search_scores.py`) scores every candidate of a block of queries, a tile of
candidates at a time, in one ranking or several (one a Matryoshka dim). No ranking is ever sorted: a measure depends on
how many candidates stand above each right answer and how many tie with it, and these are counted. A right answer that
has DEPTH others above it is out of the count, so that soon only few candidates of a tile need a look.

What makes it exact: the scores of right answers are float64 products. A tile is a float32 product, whose error has a
bound (`slack`); candidates that are so near a right answer's score that the bound leaves it open are scored in float64.
How close two scores must be to tie is for the scorer to say.

Legend: U texts of the corpus, Q queries, q queries of a block, c candidates of a tile, M rankings, P pairs of a query
and a candidate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from trainer.evaluation.search_metrics import DEPTH, NAMES, Float, Int, TieGroups, expected_measures
from trainer.system.console import progress

STRANDS = 16  # a tile is looked through as so many parts beside each other, of which the best is looked at first
ROWS_AT_ONCE = 64  # of a tile's scores, which then stay in a core's own cache between product and maximum
MANY = 16  # strands a query that are worth a look; with more, it pays to ask first which counts are hopeless


@dataclass(frozen=True, eq=False)
class SearchTask:
    """Who searches for what among whom."""

    relevant: csr_matrix
    """[Q, U] nonzero where a text is a right answer; each query has at least one."""
    excluded: csr_matrix
    """[Q, U] nonzero where a text is no candidate, such as the query itself and its copies; no right answer."""
    limits: Int | None = None
    """[Q] so many texts from the first on are candidates, in a corpus that is ordered by time; None: all."""

    def __post_init__(self) -> None:
        """Check shapes, and that each right answer is a candidate. Raises ValueError."""
        shape = self.relevant.shape
        if self.excluded.shape != shape or (self.limits is not None and self.limits.shape != shape[:1]):
            raise ValueError(f"relevance {shape}, exclusion {self.excluded.shape} and limits do not fit")
        if (np.diff(self.relevant.indptr) == 0).any():
            raise ValueError("each query needs a right answer")
        late = self.limits is not None and (self.relevant.indices >= np.repeat(self.limits, self.answers)).any()
        if late or self.relevant.multiply(self.excluded).nnz:
            raise ValueError("a right answer is excluded")

    @property
    def answers(self) -> Int:
        """[Q] how many right answers each query has."""
        return np.diff(self.relevant.indptr).astype(np.int64)

    def block(self, start: int, stop: int) -> Block:
        """The queries from `start` to below `stop`."""
        size = self.relevant.shape[1]
        links, barred = (_nonzero(links[start:stop]) for links in (self.relevant, self.excluded))
        limits = self.limits[start:stop] if self.limits is not None else np.full(stop - start, size)
        return Block(start, stop, *links, *barred, limits)


def _nonzero(links: csr_matrix) -> tuple[Int, Int]:
    """Rows, ascending, and columns of a matrix's nonzero cells."""
    rows, columns = links.nonzero()
    return rows.astype(np.int64), columns.astype(np.int64)


class Block(NamedTuple):
    """Some queries of a task; their rows count from 0."""

    start: int
    stop: int
    rows: Int
    """[P] queries of the pairs with a right answer, ascending."""
    columns: Int
    """[P] the right answers."""
    barred_rows: Int
    barred_columns: Int
    limits: Int


class Tile(NamedTuple):
    """Scores of a block's queries for the candidates from `low` on, in one ranking: `scores * factors`."""

    ranking: int
    low: int
    scores: torch.Tensor
    """[q, c], valid until the next tile is asked for; its reader may give it -inf, which stays."""
    factors: torch.Tensor | None = None
    """[c] above 0; None: 1."""


class Opened(NamedTuple):
    """A scorer's view of a block of queries."""

    relevant: Sequence[Float]
    """[M, P] scores of the right answers."""
    units: Float
    """[M, q] what a query's scores in tiles are divided by to be scores."""
    tiles: Iterator[Tile]
    slack: Sequence[float]
    """[M] how far a score in a tile may be from the exact one."""
    exact: Callable[[int, Int, Int], Float]
    """Exact scores [P] in a ranking of queries (rows of the block) and candidates, to ask for where there is slack."""


class Scores(Protocol):
    """What ranks the candidates of queries."""

    rankings: int
    """M."""
    tie: float
    """Scores no farther apart are equal."""
    queries_at_once: int

    def open(self, block: Block) -> Opened:
        """Score a block of queries."""


def search(scores: Scores, task: SearchTask, description: str = "Searching") -> dict[str, Float]:
    """Measure every query in every ranking: [M, Q] by the names of NAMES.

    Example::

        task = SearchTask(relevant, excluded)                         # sparse [Q, U]
        search(EmbeddingScores(queries, corpus, (768, 64)), task)["success@5"].mean(axis=1)    # a figure a dim
    """
    count = len(task.answers)
    values = np.empty((len(NAMES), scores.rankings, count))
    with progress(description, count) as advance:
        for start in range(0, count, scores.queries_at_once):
            stop = min(start + scores.queries_at_once, count)
            for ranking, measured in enumerate(_measure(scores, task.block(start, stop), task.answers[start:stop])):
                values[:, ranking, start:stop] = measured
            advance(stop - start)
    return dict(zip(NAMES, values, strict=True))


def _measure(scores: Scores, block: Block, answers: Int) -> list[Float]:
    """[len(NAMES), q] measures of a block of queries, a ranking each."""
    opened = scores.open(block)
    counts = [_Counts(block.rows, row, len(answers), scores.tie) for row in opened.relevant]
    away = _Barred(block)
    for tile in opened.tiles:
        ranking, low = tile.ranking, tile.low
        away.hide(tile.scores, low)
        slack, count = opened.slack[ranking], counts[ranking]
        rows, columns, values = _candidates(tile, count, slack, opened.units[ranking])
        near = count.near(rows, values, slack)
        if near.any():
            values[near] = opened.exact(ranking, rows[near], low + columns[near])
        count.add(rows, values)
    return [expected_measures(each.groups(), answers) for each in counts]


class _Barred:
    """The cells of a block's tiles that hold no candidate: right answers, which are counted apart, and the excluded."""

    def __init__(self, block: Block) -> None:
        rows = np.concatenate([block.rows, block.barred_rows])
        columns = np.concatenate([block.columns, block.barred_columns])
        order = np.argsort(columns, kind="stable")
        self.rows, self.columns, self.limits = rows[order], columns[order], block.limits

    def hide(self, tile: torch.Tensor, low: int) -> None:
        """Give these cells of a tile whose candidates begin with `low` the score -inf."""
        high = low + tile.shape[1]
        here = slice(*np.searchsorted(self.columns, [low, high]))
        tile[torch.from_numpy(self.rows[here]), torch.from_numpy(self.columns[here] - low)] = -torch.inf
        if self.limits.min() < high:
            tile.masked_fill_(torch.arange(low, high) >= torch.from_numpy(self.limits)[:, None], -torch.inf)


class _Counts:
    """How many other candidates stand above each tie group of right answers of a block, and how many tie with it."""

    def __init__(self, rows: Int, scores: Float, size: int, tie: float) -> None:
        best_first = np.lexsort((-scores, rows))
        rows, scores = rows[best_first], scores[best_first]
        per_query = np.bincount(rows, minlength=size)
        place = np.arange(len(rows)) - np.repeat(np.cumsum(per_query) - per_query, per_query)
        # A chain of right answers less than two ties apart is one group: no other candidate then ties with two.
        first = np.flatnonzero((place == 0) | (np.diff(scores, prepend=np.inf) < -2 * tie))
        relevant = np.diff(np.append(first, len(rows)))
        counted = place[first] < DEPTH
        first, relevant = first[counted], relevant[counted]
        self.query, self.place, self.relevant = rows[first], place[first], relevant
        each = np.bincount(self.query, minlength=size)
        self.slot = np.arange(len(first)) - np.repeat(np.cumsum(each) - each, each)
        shape = (size, int(each.max()))
        self.high, self.low = np.full(shape, np.inf), np.full(shape, np.inf)
        self.high[self.query, self.slot] = scores[first] + tie
        self.low[self.query, self.slot] = scores[first + relevant - 1] - tie
        self.before = np.full(shape, DEPTH)  # where a query has fewer groups, there is nothing to count
        self.before[self.query, self.slot] = self.place
        self.tied = np.zeros(shape, dtype=np.int64)

    def lowest(self) -> Float:
        """[q] the lowest score that still changes a count; infinite where none does."""
        return np.where(self.before < DEPTH, self.low, np.inf).min(axis=1)

    def give_up(self, floor: Float) -> None:
        """Take out the groups below scores [q] that DEPTH other candidates are known to reach."""
        self.before[self.high < floor[:, None]] += DEPTH

    def near(self, rows: Int, scores: Float, slack: float) -> NDArray[np.bool_]:
        """[P] whether a score is so near the edge of a group that an error of `slack` could change a count."""
        edge = np.zeros(len(rows), dtype=np.bool_)
        if slack:
            for high, low in zip(self.high.T, self.low.T, strict=True):
                edge |= np.abs(scores - high[rows]) <= slack
                edge |= np.abs(scores - low[rows]) <= slack
        return edge

    def add(self, rows: Int, scores: Float) -> None:
        """Count candidates with scores [P] of queries [P]."""
        size = len(self.high)
        for k, (high, low) in enumerate(zip(self.high.T, self.low.T, strict=True)):
            above = scores > high[rows]
            self.before[:, k] += np.bincount(rows[above], minlength=size)
            self.tied[:, k] += np.bincount(rows[(scores >= low[rows]) & ~above], minlength=size)

    def groups(self) -> TieGroups:
        """All that was counted."""
        at = self.query, self.slot
        return TieGroups(self.query, self.place, self.before[at], self.relevant, self.tied[at] + self.relevant)


def _candidates(tile: Tile, counts: _Counts, slack: float, units: Float) -> tuple[Int, Int, Float]:
    """Rows, columns and scores of a tile's candidates [P] that may change a count, rows ascending."""
    scores, factors = tile.scores, tile.factors
    if padding := -scores.shape[1] % STRANDS:
        scores = torch.nn.functional.pad(scores, (0, padding), value=-torch.inf)
        factors = factors if factors is None else torch.nn.functional.pad(factors, (0, padding), value=1.0)
    strands = scores.view(len(scores), STRANDS, -1)
    scales = None if factors is None else factors.view(STRANDS, -1)
    best = _best_of_strands(strands, scales)

    def bound() -> torch.Tensor:  # rounded down
        lowest = torch.from_numpy((counts.lowest() - slack) * units).to(scores.dtype)
        return torch.nextafter(lowest, torch.tensor(-torch.inf, dtype=scores.dtype))[:, None]

    least = bound()
    rows, columns = (best >= least).nonzero().T
    if best.shape[1] >= DEPTH and len(rows) > MANY * len(scores):
        # Each strand's best is a candidate of its own: what DEPTH of them exceed needs no count.
        counts.give_up(best.topk(DEPTH, dim=1).values[:, -1].double().numpy() / units - slack)
        least = bound()
        rows, columns = (best >= least).nonzero().T
    several = strands[rows, :, columns]
    if scales is not None:
        several *= scales.T[columns]
    hit, strand = (several >= least[rows]).nonzero().T
    rows, columns = rows[hit], columns[hit]
    values = several[hit, strand].double().numpy()
    return rows.numpy(), (strand * best.shape[1] + columns).numpy(), values / units[rows.numpy()]


def _best_of_strands(strands: torch.Tensor, scales: torch.Tensor | None) -> torch.Tensor:
    """[q, c / STRANDS] the highest score of each strand, of [q, STRANDS, c / STRANDS] and factors without q."""
    if scales is None:
        return strands.amax(dim=1)
    best = strands.new_empty(len(strands), strands.shape[2])
    for rows, into in zip(strands.split(ROWS_AT_ONCE), best.split(ROWS_AT_ONCE), strict=True):
        torch.amax(rows * scales, dim=1, out=into)
    return best
