"""A corpus with its tokens, to be searched by any encoder: what `scoring.PairSet` is for pairs.

Legend: U texts of the corpus, N different texts, Q queries, M dims, E embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainer.data.search_corpus import SearchCorpus
from trainer.evaluation.scoring import Metrics
from trainer.evaluation.search import Scores, SearchTask, search
from trainer.evaluation.search_metrics import Float, Int
from trainer.evaluation.search_scores import BM25Scores, EmbeddingScores, FusedScores
from trainer.model.embedding import tokenize_sides
from trainer.model.encoder import Encoder
from trainer.model.tokens import TokenTable
from trainer.system import distributed as ranks

Values = dict[str, dict[str, Float]]
"""System -> metric -> [M, Q], or [1, Q] of BM25."""
TITLES = {
    "model": "Search by the model",
    "baseline": "Search by the baseline",
    "bm25": "Search by BM25",
    "bm25+model": "Search by BM25 and the model",
    "bm25+baseline": "Search by BM25 and the baseline",
}


@dataclass(frozen=True, eq=False)
class SearchSet:
    """Who searches for what among whom, ready to be embedded."""

    corpus: SearchCorpus
    tokens: TokenTable
    """[N] or [2 N] of the different texts, as `tokenize_sides` has them."""
    place: Int
    """[U] which of the different texts each is."""

    @classmethod
    def build(cls, corpus: SearchCorpus, encoder: Encoder) -> SearchSet:
        """Tokenise the different texts of a corpus for an encoder."""
        place: dict[str, int] = {}
        of_text = np.array([place.setdefault(text, len(place)) for text in corpus.texts], dtype=np.int64)
        return cls(corpus, tokenize_sides(encoder, list(place)), of_text)

    def search(
        self, system: str, embeddings: np.ndarray, dims: Sequence[int], words: BM25Scores | None = None
    ) -> Values:
        """Let every query search by a system, and where `words` are given by both together ("bm25+model").

        Args:
            system: "model" or "baseline".
            embeddings: of `tokens`.
            dims: in any order, which the values [M, Q] keep.

        Raises:
            NumericError: an embedding is NaN or Inf.
        """
        count, queries = int(self.place.max()) + 1, self.place[self.corpus.queries]
        ascending = sorted(set(dims))
        order = [ascending.index(dim) for dim in dims]
        embedded = EmbeddingScores(embeddings[:count][queries], embeddings[-count:][self.place], ascending)
        systems: dict[str, Scores] = {system: embedded}
        if words is not None:
            systems[f"bm25+{system}"] = FusedScores(words, embedded)
        return {
            name: {metric: rows[order] for metric, rows in search(scores, task_of(self.corpus), TITLES[name]).items()}
            for name, scores in systems.items()
        }

    def add_to(self, metrics: Metrics, embeddings: np.ndarray) -> Metrics:
        """Metrics by dim with those of search, at these dims, by a model's embeddings of `tokens`.

        Collective: the first rank searches, and all have the result.
        """
        dims = [int(dim) for dim in metrics]

        def means_by_metric() -> dict[str, list[float]]:
            values = self.search("model", embeddings, dims)["model"]
            return {name: rows.mean(axis=1).tolist() for name, rows in values.items()}

        means = ranks.on_first_rank(means_by_metric)
        return {dim: metrics[dim] | {name: means[name][m] for name in means} for m, dim in enumerate(metrics)}


def words_of(corpus: SearchCorpus) -> BM25Scores:
    """BM25 of a corpus and its queries. Raises InputError where the library is missing."""
    return BM25Scores([corpus.texts[query] for query in corpus.queries], corpus.texts)


def search_by_words(corpus: SearchCorpus, words: BM25Scores) -> Values:
    """Let every query search by BM25 alone ("bm25"): [1, Q], as it has no dims."""
    return {"bm25": search(words, task_of(corpus), TITLES["bm25"])}


def task_of(corpus: SearchCorpus) -> SearchTask:
    """What is to be measured in a corpus."""
    return SearchTask(corpus.relevant, corpus.excluded, corpus.limits)
