"""TF-IDF vectors of texts, and cosines between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, issparse, vstack

from trainer.errors import InputError
from trainer.system.console import tracked
from trainer.text.cleaning import STOP_WORDS, WORD_PATTERN

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]

MIN_TEXTS = 3  # a word of fewer texts is a name or a slip, and would only make its texts less alike


def tfidf_matrix(texts: Sequence[str], others: Sequence[str] = ()) -> csr_matrix:
    """TF-IDF [N, V] of the words of texts but stop words, 1 + log tf, rows of length 1; below them the rows of others,
    weighed by the same counts.

    Raises InputError: scikit-learn is not installed, or no word stands in two texts.
    """
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError as error:
        raise InputError(
            "TF-IDF needs scikit-learn: install matryoshka-trainer[mine], or use --similarity encoder"
        ) from error
    least = min(MIN_TEXTS, 1 + len(texts) // 100)
    vectorizer = TfidfVectorizer(
        token_pattern=WORD_PATTERN, stop_words=sorted(STOP_WORDS), sublinear_tf=True, min_df=least, dtype=np.float32
    )
    try:
        matrix = csr_matrix(vectorizer.fit_transform(tracked(texts, "Weighing words")))
    except ValueError as error:  # scikit-learn's word for an empty vocabulary
        raise InputError(f"the tickets share no words ({error}): check --text-columns") from error
    return csr_matrix(vstack([matrix, vectorizer.transform(others)])) if others else matrix


def pair_cosines(matrix: csr_matrix | FloatArray, first: IntArray, second: IntArray) -> FloatArray:
    """[P] cosine of row `first[p]` with row `second[p]`."""
    parts = [np.empty(0, np.float32)]
    for start in range(0, len(first), 65_536):
        one: Any = matrix[first[start : start + 65_536]]
        two: Any = matrix[second[start : start + 65_536]]
        product = one.multiply(two).sum(axis=1) if issparse(matrix) else (one * two).sum(axis=1)
        parts.append(np.asarray(product, dtype=np.float32).ravel())
    return np.concatenate(parts)


def as_columns(matrix: csr_matrix | FloatArray, others: IntArray) -> csr_matrix | FloatArray:
    """[V, O] or [E, O] some rows as columns: copied once for all blocks that `cosines_with` compares with them."""
    columns: Any = matrix[others].T
    return columns.tocsr() if issparse(columns) else columns


def cosines_with(matrix: csr_matrix | FloatArray, rows: IntArray, columns: csr_matrix | FloatArray) -> FloatArray:
    """[R, O] cosines of some rows with others, taken `as_columns`."""
    product: Any = matrix[rows] @ columns
    return product.toarray() if issparse(product) else product
