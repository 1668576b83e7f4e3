"""BM25 of the words of whole texts (Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework").

Words are two or more letters and digits in a row, of the canonical form; k1 = 1.5, b = 0.75, and Lucene's IDF, which is
never negative. What a text gets for a word does not depend on the query, so it is computed once.

Legend: U texts, W words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_matrix

from trainer.errors import InputError
from trainer.text.canonical import canonical_form

WORD = r"\b\w\w+\b"


@dataclass(frozen=True, eq=False)
class WordIndex:
    """What each word is worth in each text."""

    columns: dict[str, int]
    """Word -> its column."""
    values: csc_matrix
    """[U, W] float32."""

    @classmethod
    def of(cls, texts: Sequence[str]) -> WordIndex:
        """Index texts, at least one. Raises InputError where the library is missing."""
        try:
            import bm25s
        except ImportError as error:
            raise InputError("judging by search needs bm25s, for BM25: install the extra `mine`") from error
        index = bm25s.BM25(auto_compile=False)
        how = {"lower": False, "token_pattern": WORD, "stopwords": [], "show_progress": False}
        tokens = bm25s.tokenize([canonical_form(text) for text in texts], **how)
        if not any(tokens.ids):
            return cls({}, csc_matrix((len(texts), 1), dtype=np.float32))
        index.index(tokens, show_progress=False)
        parts, shape = index.scores, (len(texts), len(index.scores["indptr"]) - 1)
        return cls(index.vocab_dict, csc_matrix((parts["data"], parts["indices"], parts["indptr"]), shape=shape))

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it, for a file: the parts of `values`, and the words in the order of their columns, a line each."""
        names = sorted(self.columns, key=self.columns.__getitem__)[: self.values.shape[1]]
        parts = {"data": self.values.data, "indices": self.values.indices, "indptr": self.values.indptr}
        return parts | {"words": np.frombuffer("\n".join(names).encode(), dtype=np.uint8)}

    def scores(self, query: str) -> NDArray[np.float32]:
        """[U] of all texts; equal texts get equal scores to the bit."""
        words = Counter(re.findall(WORD, canonical_form(query)))
        known = {self.columns[word]: count for word, count in words.items() if word in self.columns}
        scores = np.zeros(self.values.shape[0], dtype=np.float32)
        for column, count in known.items():  # in place: a common word's column is not copied for it
            part = slice(*self.values.indptr[column : column + 2])
            scores[self.values.indices[part]] += self.values.data[part] * np.float32(count)
        return scores
