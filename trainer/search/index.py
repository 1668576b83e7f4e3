"""Search in an index: a short prefix of the embeddings finds candidates, their full width ranks them.

Matryoshka embeddings put what tells texts apart into the first dims. So a product with 64 dims of all tickets, a sixth
or a twelfth of the memory traffic of the full one, leaves a thousand or so among which the full width decides. How many
it takes is measured on stored embeddings when the index is written, and so is what is then still missed.

Legend: N tickets, E dims, P prefix, Q queries, C candidates, K results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.data.identifiers import clean_id, id_key
from trainer.errors import CheckpointError, InputError
from trainer.evaluation.search_scores import FUSED_DEPTH, TIE, reciprocal_ranks
from trainer.model.encoder import EmbeddingConditions, Encoder, embedding_conditions
from trainer.model.loading import load_encoder
from trainer.search.storage import Contents, read_index
from trainer.search.ticket_texts import preview
from trainer.system.gpu import default_device
from trainer.text.bm25 import WordIndex

Float = NDArray[np.float32]
Int = NDArray[np.int64]

PREFIX = 64
TOP = 10  # what recall is measured by
AIM = 0.998  # of it; what is promised is 0.99
SAMPLE = 512  # stored embeddings that search for others: one half chooses the candidates, the other measures
QUERIES_AT_ONCE = 16
ROWS_AT_ONCE = 2048


class Hit(NamedTuple):
    """A ticket that was found."""

    id: str
    cosine: float
    score: float
    """What it was ranked by: the cosine, or the sum of reciprocal ranks by words and by cosine."""
    text: str
    """The first words."""


@dataclass(frozen=True, eq=False)
class Index:
    """An index that is ready to be searched."""

    contents: Contents
    ids: list[str]
    """[N]"""
    texts: list[str]
    """[N] the first words of each."""
    embeddings: Float
    """[N, E] of length 1."""
    prefixes: Float
    """[N, P] of length 1; none where the full width looks at all tickets."""
    words: WordIndex | None
    encoder: Encoder | None

    @classmethod
    def open(cls, folder: str | Path, model: str | None = "") -> Index:
        """Open an index and load its model.

        Example::

            index = Index.open("tickets.index")
            index.search(["vpn drops every hour"], top=3)[0][0].id      # "INC0012"

        Args:
            model: where the model stands now; "": where it stood when the index was written; None: not needed.

        Raises:
            InputError: no index there, or the model is another one.
            CheckpointError: a file of the index is not what was written.
        """
        stored = read_index(Path(folder))
        contents, ids, texts = stored.contents, [], []
        for ticket in stored.tickets():
            ids.append(ticket.id)
            texts.append(preview(ticket.text))
        words = stored.words()
        width = contents.prefix if contents.candidates < contents.tickets else 0
        prefixes = unit_prefixes(stored.embeddings, width, stored.files["embeddings"])
        encoder = None if model is None else load_for(contents, model or contents.model_name, Path(folder))
        return cls(contents, ids, texts, np.asarray(stored.embeddings), prefixes, words, encoder)

    def search(
        self,
        texts: Sequence[str],
        top: int = 5,
        *,
        words: bool = True,
        exact: bool = False,
        ids: Sequence[str] = (),
        prepared: bool = False,
    ) -> list[list[Hit]]:
        """The best tickets for each text, the best first; of equal ones the first of the index.

        Args:
            words: rank by BM25 too, where the index has it.
            exact: compare the full width of all tickets, not of candidates alone.
            ids: of the texts' own tickets, which are then not found; "" for a text that is none.
            prepared: the texts went through the index's `Preparation` already.

        Raises InputError: a text is empty, or `top` is none.
        """
        if self.encoder is None:
            raise ValueError("opened without a model")
        if not prepared:
            texts = [self.contents.preparation.apply([text.strip()]) for text in texts]
        if blank := [place for place, text in enumerate(texts, start=1) if not text]:
            raise InputError(f"text {blank[0]} to search for is empty: write some words")
        queries = self.encoder.encode(texts, side="query", dims=self.contents.dims, normalize=True)
        return self.search_embeddings(queries, top, texts if words else (), exact=exact, ids=ids)

    def search_embeddings(
        self, queries: Float, top: int = 5, texts: Sequence[str] = (), *, exact: bool = False, ids: Sequence[str] = ()
    ) -> list[list[Hit]]:
        """As `search`, by embeddings [Q, E] of length 1 and, where BM25 is to help, the queries' texts [Q]."""
        if not 1 <= top <= FUSED_DEPTH:
            raise InputError(f"top = {top}: use 1 to {FUSED_DEPTH}")
        rows_by_key = {id_key(name): row for row, name in enumerate(self.ids)} if any(ids) else {}
        found = []
        for place, query in enumerate(queries):
            own = rows_by_key.get(id_key(clean_id(ids[place]))) if rows_by_key and ids[place] else None
            rows, scores = self._rank(query, texts[place] if texts else "", top, own, exact)
            cosines = self.embeddings[rows] @ query
            hits = zip(rows.tolist(), cosines.tolist(), scores.tolist(), strict=True)
            found.append([Hit(self.ids[row], cosine, score, self.texts[row]) for row, cosine, score in hits])
        return found

    def _rank(self, query: Float, text: str, top: int, own: int | None, exact: bool) -> tuple[Int, NDArray[np.float64]]:
        """Rows and scores [K] of the best tickets but the query's own."""
        rows, cosines = self._candidates(query, top + 1, exact)
        if own is not None:
            rows, cosines = rows[rows != own], cosines[rows != own]
        scores = cosines.astype(np.float64)
        if text and self.words is not None:
            by_words = self.words.scores(text)
            by_words[[] if own is None else own] = 0
            shared = np.flatnonzero(by_words)
            fused = np.zeros(len(self.ids))
            for listed, values, tie in ((rows, cosines, TIE), (shared, by_words[shared], 0.0)):
                if not len(values):  # no word is shared with any ticket
                    continue
                best = _best(values, FUSED_DEPTH + 1)
                fused[listed[best]] += reciprocal_ranks(values[best][None], tie)[0]
            rows = np.flatnonzero(fused)
            scores = fused[rows]
        best = _best(scores, top)
        best = best[np.lexsort((rows[best], -scores[best]))][:top]
        return rows[best], scores[best]

    def _candidates(self, query: Float, least: int, exact: bool) -> tuple[Int, Float]:
        """Rows [C] of the tickets that the prefix finds, all where it is not asked, and their cosines."""
        count = max(self.contents.candidates, least)
        if exact or not self.prefixes.shape[1] or count >= len(self.ids):
            return np.arange(len(self.ids)), self.embeddings @ query
        near = self.prefixes @ query[: self.prefixes.shape[1]]
        rows = np.sort(np.argpartition(near, len(near) - count)[-count:])
        return rows, self.embeddings[rows] @ query


def _best(scores: np.ndarray, count: int) -> Int:
    """Positions of the `count` highest scores [N], or all, and of those that tie with the last of them."""
    if len(scores) <= count:
        return np.arange(len(scores))
    return np.flatnonzero(scores >= np.partition(scores, len(scores) - count)[-count])


def load_for(contents: Contents, name: str, folder: Path) -> Encoder:
    """The model of an index, where it computes. Raises InputError where `name` is another one, or none."""
    try:
        encoder = load_encoder(name).to(default_device())
    except InputError as error:
        raise InputError(f"{error}; if the model of the index {folder} was moved, name it with --model") from error
    require_model(contents, embedding_conditions(encoder), name, folder)
    return encoder


def require_model(contents: Contents, model: EmbeddingConditions, name: str, folder: Path) -> None:
    """Raise InputError where a model is not that of an index, naming what differs."""
    for what, ours in vars(contents.model).items():
        if ours != (given := getattr(model, what)):
            values = "" if what == "weights_fingerprint" else f" ({given!r}, the index has {ours!r})"
            raise InputError(
                f"{folder}: made by another model than {name}: its {what.replace('_', ' ')} differs{values}; name the "
                f"model of the index (then in {contents.model_name}), or index into a new folder"
            )


def unit_prefixes(embeddings: np.ndarray, width: int, path: Path) -> Float:
    """[N, width] prefixes of length 1; zeros stay. Raises CheckpointError for an embedding not of length 1 or 0."""
    prefixes = np.empty((len(embeddings), width), dtype=np.float32)
    for start in range(0, len(embeddings), ROWS_AT_ONCE):
        block = np.asarray(embeddings[start : start + ROWS_AT_ONCE])
        lengths = np.linalg.norm(block, axis=1)
        if not ((np.abs(lengths - 1) < 1e-3) | (lengths == 0)).all():
            raise CheckpointError(
                f"{path}: holds an embedding that is not of length 1; remove the folder and index again"
            )
        lengths = np.linalg.norm(block[:, :width], axis=1, keepdims=True)
        prefixes[start : start + ROWS_AT_ONCE] = block[:, :width] / np.where(lengths > 0, lengths, 1)
    return prefixes


class Reach(NamedTuple):
    """How a search by prefix compares with one by the full width."""

    prefix: int
    candidates: int
    recall: float
    measured_on: int


def measure_reach(embeddings: Float, prefix: int = PREFIX, seed: int = 0) -> Reach:
    """Find how many candidates the best TOP of nearly all queries are among, and measure that on other queries.

    Stored embeddings search for others. N candidates, which is all, where there are few tickets, or so many would be
    needed that nothing is gained.
    """
    count, prefix = len(embeddings), min(prefix, embeddings.shape[1])
    least = max(FUSED_DEPTH + 1, TOP)
    if count <= 2 * least or prefix == embeddings.shape[1]:
        return Reach(prefix, count, 1.0, 0)
    queries = np.random.default_rng(seed).permutation(count)[:SAMPLE]
    prefixes = unit_prefixes(embeddings, prefix, Path("embeddings"))
    blocks = [queries[start : start + QUERIES_AT_ONCE] for start in range(0, len(queries), QUERIES_AT_ONCE)]
    places = np.concatenate([_places(embeddings, prefixes, block) for block in blocks])  # [SAMPLE, TOP]
    chosen, judged = places[::2], places[1::2]
    candidates = max(least, int(np.quantile(chosen, AIM, method="higher")) + 1)
    if candidates > count // 4:
        return Reach(prefix, count, 1.0, 0)
    return Reach(prefix, candidates, float((judged < candidates).mean()), len(judged))


def _places(embeddings: Float, prefixes: Float, queries: Int) -> Int:
    """[Q, TOP] how many others the prefix puts before each of the exact best TOP of stored embeddings."""
    itself = np.arange(len(queries)), queries
    exact = np.array(embeddings[queries]) @ embeddings.T
    exact[itself] = -np.inf
    best = np.argpartition(exact, exact.shape[1] - TOP, axis=1)[:, -TOP:]
    near = prefixes[queries] @ prefixes.T
    near[itself] = -np.inf
    return np.stack([(near > np.take_along_axis(near, best[:, [k]], axis=1)).sum(axis=1) for k in range(TOP)], axis=1)
