"""Who is like whom among N texts, without an N x N matrix.

Legend: N texts, V terms, E embedding width. Rows of a matrix have length 1 (or are zero), so a product is a cosine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, issparse

from trainer.system.console import progress
from trainer.text.tfidf import FloatArray, IntArray, as_columns, cosines_with, pair_cosines

Matrix = csr_matrix | FloatArray
DENSE_ROWS = 512
SPARSE_ROWS = 256  # rows of a block that a thread compares with others,
SPARSE_OTHERS = 8192  # so many of these at a time: what a product adds up stays in a processor's cache
THREADS = 2
DROPPED_SHARE = 0.7  # of the floor: how much of a row the index may leave out


@dataclass(frozen=True, eq=False)
class Candidates:
    """Pairs of rows, `first` < `second`, with their cosine; all [P]."""

    first: IntArray
    second: IntArray
    cosine: FloatArray

    def take(self, rows: NDArray[np.bool_] | IntArray) -> Candidates:
        """Those of a mask or of positions."""
        return Candidates(self.first[rows], self.second[rows], self.cosine[rows])

    @classmethod
    def join(cls, parts: Iterable[Candidates]) -> Candidates:
        """Those of all parts."""
        columns = zip(*((part.first, part.second, part.cosine) for part in parts), strict=True)
        return cls(*map(np.concatenate, columns))

    def __len__(self) -> int:
        return len(self.first)


@dataclass(frozen=True, eq=False)
class Similarity:
    """Cosines by TF-IDF ("tfidf"), by an encoder ("encoder"), or by both.

    Where both judge, two texts are as alike as the lower one says when they are to be called the same problem, and as
    the higher one says when they are to be called different ones.
    """

    matrices: dict[str, csr_matrix | FloatArray]
    """What measures -> [N, V] or [N, E]."""

    def by(self, kind: str) -> Similarity:
        """That of one of them, or of "both"."""
        return Similarity({name: matrix for name, matrix in self.matrices.items() if kind in (name, "both")})

    def head(self, count: int) -> Similarity:
        """That of the first texts alone."""
        return Similarity({name: matrix[:count] for name, matrix in self.matrices.items()})

    def of_pairs(self, first: IntArray, second: IntArray) -> dict[str, FloatArray]:
        """[P] cosines of pairs, by what measured them."""
        return {name: pair_cosines(matrix, first, second) for name, matrix in self.matrices.items()}

    def alike(self, first: IntArray, second: IntArray) -> FloatArray:
        """[P] cosine that both grant."""
        return np.minimum.reduce(list(self.of_pairs(first, second).values()))

    def as_columns(self, others: IntArray) -> dict[str, csr_matrix | FloatArray]:
        """Some texts as columns, for `closest`, by what measures them."""
        return {name: as_columns(matrix, others) for name, matrix in self.matrices.items()}

    def closest(self, rows: IntArray, columns: Mapping[str, csr_matrix | FloatArray]) -> FloatArray:
        """[R, O] cosine with others, taken `as_columns`, that neither exceeds."""
        return np.maximum.reduce([cosines_with(matrix, rows, columns[name]) for name, matrix in self.matrices.items()])

    def pairs(self, floor: float, choose: Callable[[Candidates], Candidates]) -> Candidates:
        """All pairs with a cosine of `floor` or more, thinned out block by block by `choose`."""
        first, *others = self.matrices.values()

        def granted(pairs: Candidates) -> Candidates:
            for matrix in others:
                cosine = np.minimum(pairs.cosine, pair_cosines(matrix, pairs.first, pairs.second))
                pairs = Candidates(pairs.first, pairs.second, cosine).take(cosine >= floor)
            return choose(pairs)

        return similar_pairs(first, floor, granted)


def similar_pairs(
    matrix: csr_matrix | FloatArray, floor: float, choose: Callable[[Candidates], Candidates] = lambda pairs: pairs
) -> Candidates:
    """All pairs of rows with a cosine of `floor` (above 0) or more.

    Args:
        choose: thins out what a block of rows has found, before the next; it sees each row's pairs with later rows
            together, so it can keep the top k of a row.
    """
    find = _sparse_finder(matrix, floor) if issparse(matrix) else _dense_finder(matrix, floor)
    size = SPARSE_ROWS if issparse(matrix) else DENSE_ROWS
    starts = range(0, matrix.shape[0], size)
    with progress("Comparing", matrix.shape[0]) as advance, ThreadPoolExecutor(THREADS) as pool:
        blocks = []
        for start, block in zip(starts, pool.map(lambda start: choose(find(start, start + size)), starts), strict=True):
            blocks.append(block)
            advance(min(size, matrix.shape[0] - start))
    return Candidates.join(blocks)


def _dense_finder(matrix: FloatArray, floor: float) -> Callable[[int, int], Candidates]:
    def find(start: int, stop: int) -> Candidates:
        cosines = matrix[start:stop] @ matrix[start:].T
        first, second = np.nonzero(cosines >= floor)
        later = second > first
        first, second = first[later], second[later]
        return Candidates(first + start, second + start, cosines[first, second])

    return find


def _sparse_finder(matrix: csr_matrix, floor: float) -> Callable[[int, int], Candidates]:
    """Exact search over an index that leaves out the commonest words of each row (after prefix filtering: Bayardo et
    al. 2007, "Scaling up all pairs similarity search").

    A row y is split into y = kept + dropped, |dropped| <= d. Then x.y <= x.kept + d, so a pair that reaches the floor
    reaches floor - d over the index, and only such pairs need the whole product. The words left out, which most texts
    hold and TF-IDF weighs little, are nearly all of the work.
    """
    allowed = DROPPED_SHARE * floor
    kept = without_common_terms(matrix, allowed)
    indexes = {begin: kept[begin : begin + SPARSE_OTHERS].T.tocsr() for begin in range(0, kept.shape[0], SPARSE_OTHERS)}

    def find(start: int, stop: int) -> Candidates:
        rows = matrix[start:stop]
        blocks = []
        for begin, index in indexes.items():
            if begin + SPARSE_OTHERS > start + 1:  # it holds later rows
                part = (rows @ index).tocoo()
                first, second = part.row.astype(np.int64) + start, part.col.astype(np.int64) + begin
                near = (part.data >= floor - allowed - 1e-6) & (second > first)
                first, second = first[near], second[near]
                cosines = pair_cosines(matrix, first, second)
                blocks.append(Candidates(first, second, cosines).take(cosines >= floor))
        found = Candidates.join(blocks)
        return found.take(np.lexsort((found.second, found.first)))

    return find


def without_common_terms(matrix: csr_matrix, allowed: float) -> csr_matrix:
    """The matrix without each row's commonest terms, as many as keep the length of what goes within `allowed`."""
    frequency = np.bincount(matrix.indices, minlength=matrix.shape[1])
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    order = np.lexsort((-frequency[matrix.indices], rows))  # row by row, the commonest first
    squares = np.cumsum(matrix.data[order].astype(np.float64) ** 2)
    before = np.concatenate([[0.0], squares])[matrix.indptr[:-1]]  # of all earlier rows
    kept = order[squares - before[rows] > allowed**2]
    return csr_matrix((matrix.data[kept], (rows[kept], matrix.indices[kept])), shape=matrix.shape)
