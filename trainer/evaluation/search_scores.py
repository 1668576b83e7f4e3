"""What ranks the candidates of a search: embeddings at every Matryoshka dim, BM25, and the fusion of both.

Legend: U texts of the corpus, Q queries, q queries of a block, c candidates of a tile, E embedding width, M dims,
P pairs of a query and a candidate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
import torch

from trainer.errors import NumericError
from trainer.evaluation.search import Block, Opened, Tile
from trainer.evaluation.search_metrics import Float, Int
from trainer.text.bm25 import WordIndex

# Cosines this near are equal: those of one text embedded in two batches differ by nearly as much.
TIE = 1e-6
QUERIES_AT_ONCE, CANDIDATES_AT_ONCE = 1024, 2048  # a tile and its working copy fit a processor's last cache
CELLS_AT_ONCE = 2**22  # scores, or numbers of embeddings, that are in memory at a time elsewhere
UNIT_ROUNDOFF = 2.0**-24
FUSION_CONSTANT = 60
FUSED_DEPTH = 1000


class EmbeddingScores:
    """Cosines of embeddings cut to each dim; a ranking a dim.

    Prefixes nest: a tile of dot products grows from dim to dim, so that all dims cost one product of full width.
    An all-zero prefix has cosine 0 with everything.
    """

    tie = TIE
    queries_at_once = QUERIES_AT_ONCE

    def __init__(self, queries: np.ndarray, corpus: np.ndarray, dims: Sequence[int]) -> None:
        """Take embeddings [Q, E] and [U, E], which are rounded to float32, of any length, and dims in ascending order.

        Raises:
            NumericError: an embedding is NaN or Inf.
            ValueError: the shapes do not fit, or the dims are not ascending ones of 1 .. E.
        """
        width = corpus.shape[1]
        if (
            queries.shape[1] != width
            or list(dims) != sorted(set(dims))
            or not dims
            or not 1 <= dims[0] <= dims[-1] <= width
        ):
            raise ValueError(f"queries {queries.shape}, corpus {corpus.shape} and dims {list(dims)} do not fit")
        for name, rows in (("queries", queries), ("corpus", corpus)):
            if not np.isfinite(rows.sum(axis=1, dtype=np.float64)).all():
                raise NumericError(f"{name}: embeddings are not finite")
        queries, corpus = (np.asarray(rows, dtype=np.float32) for rows in (queries, corpus))
        self.queries, self.corpus, self.dims = queries, corpus, tuple(dims)
        self.query_lengths, self.corpus_lengths = (_prefix_lengths(rows, dims) for rows in (queries, corpus))
        self.rankings = len(dims)
        # A sum of products in any order is off by at most one rounding a term (Higham 2002, "Accuracy and Stability of
        # Numerical Algorithms", 3.1); the roundings of lengths and factors come on top.
        self.slack = [(dim + 16) * UNIT_ROUNDOFF for dim in dims]

    def open(self, block: Block) -> Opened:
        """Score a block of queries."""
        lengths = self.query_lengths[:, block.start : block.stop]
        units = lengths / lengths[-1:]
        relevant = self._pairs(block.start + block.rows, block.columns)
        return Opened(list(relevant), units, self._tiles(block), self.slack, partial(self._exact, block))

    def _tiles(self, block: Block) -> Iterator[Tile]:
        queries = _scaled(self.queries, self.query_lengths, block.start, block.stop)
        scale = torch.from_numpy((self.corpus_lengths[-1] / self.corpus_lengths).astype(np.float32))  # [M, U]
        end, dot = int(block.limits.max()), torch.empty(0, 0)
        for low in range(0, end, CANDIDATES_AT_ONCE):
            high = min(low + CANDIDATES_AT_ONCE, end)
            candidates = _scaled(self.corpus, self.corpus_lengths, low, high)
            if dot.shape[1] != high - low:
                dot = torch.empty(len(queries), high - low)
            for ranking, (left, right) in enumerate(pairwise((0, *self.dims))):
                sides = queries[:, left:right], candidates[:, left:right].T
                torch.addmm(dot, *sides, beta=float(left > 0), out=dot)  # times 0 it is not read
                yield Tile(ranking, low, dot, scale[ranking, low:high])

    def _exact(self, block: Block, ranking: int, rows: Int, columns: Int) -> Float:
        """[P] cosines of pairs in float64: one by one, or where they are many of a few texts' pairs all of these."""
        queries, at = np.unique(rows + block.start, return_inverse=True)
        candidates, to = np.unique(columns, return_inverse=True)
        if len(rows) * CANDIDATES_AT_ONCE // 64 < len(queries) * len(candidates):
            return self._pairs(rows + block.start, columns, ranking)[-1]
        left = self.queries[queries, : self.dims[ranking]] / self.query_lengths[ranking, queries, None]
        right = self.corpus[candidates, : self.dims[ranking]] / self.corpus_lengths[ranking, candidates, None]
        product: Float = (left @ right.T)[at, to]
        return product

    def rows(self, block: Block) -> list[np.ndarray]:
        """[M, q, U] cosines of a block of queries with all candidates, by products in float32."""
        queries = _scaled(self.queries, self.query_lengths, block.start, block.stop)
        corpus, dot = torch.from_numpy(self.corpus), torch.zeros(len(queries), len(self.corpus))
        rows = []
        for ranking, (left, right) in enumerate(pairwise((0, *self.dims))):
            torch.addmm(dot, queries[:, left:right], corpus[:, left:right].T, out=dot)
            scale = torch.from_numpy((1 / self.corpus_lengths[ranking]).astype(np.float32))
            units = self.query_lengths[ranking] / self.query_lengths[-1]
            rows.append((dot * scale).numpy() / units[block.start : block.stop, None].astype(np.float32))
        return rows

    def _pairs(self, queries: Int, candidates: Int, ranking: int = -1) -> Float:
        """[rankings up to `ranking`, P] cosines of pairs of texts, in float64."""
        dims = self.dims[: ranking % len(self.dims) + 1]
        starts, step = [0, *dims[:-1]], max(1, CELLS_AT_ONCE // dims[-1])
        cosines = np.empty((len(dims), len(queries)))
        for low in range(0, len(queries), step):
            left, right = queries[low : low + step], candidates[low : low + step]
            product = self.queries[left, : dims[-1]].astype(np.float64) * self.corpus[right, : dims[-1]]
            dots = np.cumsum(np.add.reduceat(product, starts, axis=1), axis=1).T
            lengths = self.query_lengths[: len(dims), left] * self.corpus_lengths[: len(dims), right]
            cosines[:, low : low + step] = dots / lengths
        return cosines


def _prefix_lengths(rows: np.ndarray, dims: Sequence[int]) -> Float:
    """[M, N] lengths of the prefixes of rows [N, E], 1 where a prefix is zero."""
    lengths = np.empty((len(dims), len(rows)))
    step = max(1, CELLS_AT_ONCE // rows.shape[1])
    for low in range(0, len(rows), step):
        squares = np.square(rows[low : low + step, : dims[-1]], dtype=np.float64)
        lengths[:, low : low + step] = np.sqrt(np.cumsum(np.add.reduceat(squares, [0, *dims[:-1]], axis=1), axis=1)).T
    return np.where(lengths > 0, lengths, 1.0)


def _scaled(rows: np.ndarray, lengths: Float, low: int, high: int) -> torch.Tensor:
    """Some of the rows, of length 1 at the largest dim: whatever their own length was, products neither over- nor
    underflow."""
    return torch.from_numpy(rows[low:high]) * torch.from_numpy((1 / lengths[-1, low:high, None]).astype(np.float32))


class BM25Scores:
    """Okapi BM25 of the words of whole texts; one ranking."""

    rankings = 1
    tie = 0.0  # equal texts get equal scores to the bit: the words of a query are summed in one order

    def __init__(self, queries: Sequence[str], corpus: Sequence[str]) -> None:
        """Index a corpus of U texts. Raises InputError where the library is missing."""
        self.index, self.queries = WordIndex.of(corpus), queries
        self.queries_at_once = max(1, CELLS_AT_ONCE // len(corpus))

    def rows(self, block: Block) -> np.ndarray:
        """[q, U] scores of a block of queries for all candidates."""
        return np.stack([self.index.scores(query) for query in self.queries[block.start : block.stop]])

    def open(self, block: Block) -> Opened:
        """Score a block of queries."""
        return _open_rows(block, [self.rows(block)])


class FusedScores:
    """BM25 and embeddings by reciprocal rank fusion (Cormack, Clarke and Buettcher 2009), a ranking a dim.

    A candidate's score is the sum of 1 / (60 + rank) over both rankings. Where candidates tie they share their mean
    rank. Each ranking counts as far as its FUSED_DEPTH best, BM25's as far as a word is shared; ties that reach beyond
    are left out.
    """

    tie = 1e-12  # sums of two reciprocal ranks

    def __init__(self, lexical: BM25Scores, embeddings: EmbeddingScores) -> None:
        """Fuse two scorers of the same queries and corpus."""
        self.lexical, self.embeddings = lexical, embeddings
        self.rankings = embeddings.rankings
        self.queries_at_once = max(1, 4 * CELLS_AT_ONCE // ((self.rankings + 2) * len(embeddings.corpus)))

    def open(self, block: Block) -> Opened:
        """Score a block of queries."""
        no_candidate = np.arange(len(self.embeddings.corpus)) >= block.limits[:, None]
        no_candidate[block.barred_rows, block.barred_columns] = True
        words = self.lexical.rows(block)
        words[no_candidate | (words <= 0)] = -np.inf
        by_words, fused = reciprocal_ranks(words, self.lexical.tie), []
        for cosines in self.embeddings.rows(block):
            cosines[no_candidate] = -np.inf
            fused.append(by_words + reciprocal_ranks(cosines, self.embeddings.tie))
        return _open_rows(block, fused)


def reciprocal_ranks(scores: np.ndarray, tie: float) -> Float:
    """[q, U] 1 / (60 + rank) of the FUSED_DEPTH best of scores [q, U], 0 for the others and for scores of -inf.

    Scores in a chain of gaps up to `tie` share their mean rank, 0 where the chain does not end within FUSED_DEPTH.
    """
    best, columns = (part.numpy() for part in torch.from_numpy(scores).topk(min(FUSED_DEPTH + 1, scores.shape[1])))
    place = np.arange(best.shape[1])
    with np.errstate(invalid="ignore"):  # -inf less -inf
        falls = np.diff(best, axis=1) < -tie
    edge = np.ones((len(best), 1), dtype=np.bool_)
    first = np.maximum.accumulate(np.where(np.hstack([edge, falls]), place, 0), axis=1)
    ends = np.where(np.hstack([falls, edge]), place, len(place))
    last = np.minimum.accumulate(ends[:, ::-1], axis=1)[:, ::-1]
    listed = (last < FUSED_DEPTH) & np.isfinite(best)
    ranks = np.zeros(scores.shape)
    np.put_along_axis(ranks, columns, listed / (FUSION_CONSTANT + 1 + (first + last) / 2), axis=1)
    return ranks


def _open_rows(block: Block, rows: Sequence[np.ndarray]) -> Opened:
    """A view of exact scores [M, q, U]."""
    relevant = [scores[block.rows, block.columns].astype(np.float64) for scores in rows]
    tiles = (Tile(ranking, 0, torch.from_numpy(scores)) for ranking, scores in enumerate(rows))
    return Opened(relevant, np.ones((len(rows), len(rows[0]))), tiles, [0.0] * len(rows), _exact_already)


def _exact_already(ranking: int, rows: Int, columns: Int) -> Float:
    raise AssertionError("scores without slack are exact")
