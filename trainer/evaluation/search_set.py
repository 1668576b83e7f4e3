"""A corpus, or the texts of pairs, to be searched by any encoder.

Legend: U texts of the corpus, N different texts, Q queries, M dims, E embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainer.data.pairs import PairTable
from trainer.data.search_corpus import SearchCorpus, corpus_of_pairs
from trainer.evaluation.pair_metrics import Metrics
from trainer.evaluation.search import Scores, SearchTask, search
from trainer.evaluation.search_metrics import Float, Int
from trainer.evaluation.search_scores import BM25Scores, EmbeddingScores, FusedScores
from trainer.model.embedding import sides, tokenize_sides
from trainer.model.encoder import Encoder
from trainer.model.tokens import TokenTable
from trainer.system import distributed as ranks

Values = dict[str, dict[str, Float]]
"""System -> metric -> [M, Q], or [1, Q] of BM25."""
SYSTEMS = {
    "bm25": "BM25",
    "baseline": "the baseline",
    "model": "the model",
    "bm25+baseline": "BM25 and the baseline",
    "bm25+model": "BM25 and the model",
}
"""What people call the systems."""


@dataclass(frozen=True, eq=False)
class SearchedTexts:
    """Who searches for what among whom, by embeddings of the different texts."""

    corpus: SearchCorpus
    place: Int
    """[U] which of the different texts each is."""
    count: int
    """N."""

    @classmethod
    def of_pairs(cls, table: PairTable) -> SearchedTexts:
        """The texts of a table, by embeddings of its texts [T, E] or [2 T, E]; copies of a text count as one.

        Raises InputError where no positive pair is of two different texts.
        """
        representatives = np.unique(table.canonical, return_index=True)[1]
        return cls(corpus_of_pairs(table), representatives, len(table.texts))

    def search(
        self, system: str, embeddings: np.ndarray, dims: Sequence[int], words: BM25Scores | None = None
    ) -> Values:
        """Let every query search by a system, and where `words` are given by both together ("bm25+model").

        Args:
            system: "model" or "baseline".
            embeddings: [N, E], or [2 N, E] where sides differ: as queries before as what is found (`tokenize_sides`).
            dims: in any order, which the values [M, Q] keep.

        Raises:
            NumericError: an embedding is NaN or Inf.
        """
        queries, ascending = self.place[self.corpus.queries], sorted(set(dims))
        order = [ascending.index(dim) for dim in dims]
        first, second = sides(embeddings, self.count)
        embedded = EmbeddingScores(first[queries], second[self.place], ascending)
        systems: dict[str, Scores] = {system: embedded}
        if words is not None:
            systems[f"bm25+{system}"] = FusedScores(words, embedded)
        return {
            name: {
                metric: rows[order]
                for metric, rows in search(scores, task_of(self.corpus), f"Search by {SYSTEMS[name]}").items()
            }
            for name, scores in systems.items()
        }

    def add_to(self, metrics: Metrics, embeddings: np.ndarray) -> Metrics:
        """Metrics by dim with those of search, at these dims, by a model's embeddings.

        Collective: the first rank searches, and all have the result.
        """
        dims = [int(dim) for dim in metrics]

        def means_by_metric() -> dict[str, list[float]]:
            values = self.search("model", embeddings, dims)["model"]
            return {name: rows.mean(axis=1).tolist() for name, rows in values.items()}

        means = ranks.on_first_rank(means_by_metric)
        return {dim: metrics[dim] | {name: means[name][m] for name in means} for m, dim in enumerate(metrics)}


@dataclass(frozen=True, eq=False)
class SearchSet(SearchedTexts):
    """The same, ready to be embedded."""

    tokens: TokenTable
    """[N] or [2 N] of the different texts, as `tokenize_sides` has them."""

    @classmethod
    def build(cls, corpus: SearchCorpus, encoder: Encoder) -> SearchSet:
        """Tokenise the different texts of a corpus for an encoder."""
        place: dict[str, int] = {}
        of_text = np.array([place.setdefault(text, len(place)) for text in corpus.texts], dtype=np.int64)
        return cls(corpus, of_text, len(place), tokenize_sides(encoder, list(place)))


def words_of(corpus: SearchCorpus) -> BM25Scores:
    """BM25 of a corpus and its queries. Raises InputError where the library is missing."""
    return BM25Scores([corpus.texts[query] for query in corpus.queries], corpus.texts)


def task_of(corpus: SearchCorpus) -> SearchTask:
    """What is to be measured in a corpus."""
    return SearchTask(corpus.relevant, corpus.excluded, corpus.limits)
