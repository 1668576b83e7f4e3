"""Search in an index: a short prefix of the embeddings finds candidates, their full width ranks them.

Matryoshka embeddings put what tells texts apart into the first dims. So a product with 64 dims of all tickets, kept as
int8 in a twenty-fourth or less of the memory of the full one, leaves a thousand or so among which the full width
decides. How many it takes is measured on stored embeddings when the index is written, and so is what is then still
missed. An index of signs alone is small enough for the query to be compared with all of it.

Legend: N tickets, E dims, P prefix, Q queries, C candidates, K results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.data.identifiers import clean_id, id_key
from trainer.errors import CheckpointError, InputError
from trainer.evaluation.search_scores import FUSED_DEPTH, TIE, reciprocal_ranks
from trainer.model.embedding_types import ROWS_AT_ONCE, EmbeddingType, Float, unit_prefixes
from trainer.model.encoder import EmbeddingConditions, Encoder, embedding_conditions
from trainer.model.loading import load_encoder
from trainer.search.storage import Contents, read_index
from trainer.search.ticket_texts import preview
from trainer.system.gpu import default_device
from trainer.text.bm25 import WordIndex

Int = NDArray[np.int64]

PREFIX = 64
TOP = 10  # what recall is measured by
AIM = 0.998  # of it; what is promised is 0.99
SAMPLE = 512  # stored embeddings that search for others: one half chooses the candidates, the other measures
RESERVE = 2  # times as many candidates as these need: people's queries are less like tickets than tickets are
QUERIES_AT_ONCE = 16


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
    kept: EmbeddingType
    embeddings: NDArray[Any]
    """[N, ...] of length 1 as `kept` has encoded them."""
    prefixes: Prefixes | None
    """None where the full width looks at all tickets."""
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
        require_length_1(stored.type, stored.embeddings, stored.files["embeddings"])
        prefixes = None
        if contents.candidates < contents.tickets:
            prefixes = Prefixes.of(stored.type, stored.embeddings, contents.prefix)
        encoder = None if model is None else load_for(contents, model or contents.model_name, Path(folder))
        return cls(contents, ids, texts, stored.type, np.asarray(stored.embeddings), prefixes, words, encoder)

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
        _require_top(top)
        if blank := [place for place, text in enumerate(texts, start=1) if not text]:
            raise InputError(f"text {blank[0]} to search for is empty: write some words")
        queries = self.encoder.encode(texts, side="query", dims=self.contents.dims, normalize=True)
        return self.search_embeddings(queries, top, texts if words else (), exact=exact, ids=ids)

    def search_embeddings(
        self, queries: Float, top: int = 5, texts: Sequence[str] = (), *, exact: bool = False, ids: Sequence[str] = ()
    ) -> list[list[Hit]]:
        """As `search`, by embeddings [Q, E] of length 1 and, where BM25 is to help, the queries' texts [Q]."""
        _require_top(top)
        rows_by_key = {id_key(name): row for row, name in enumerate(self.ids)} if any(ids) else {}
        found = []
        for place, query in enumerate(queries):
            own = rows_by_key.get(id_key(clean_id(ids[place]))) if rows_by_key and ids[place] else None
            rows, scores = self._rank(query, texts[place] if texts else "", top, own, exact)
            cosines = self.kept.dots(self.embeddings[rows], query)
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
        if exact or self.prefixes is None or count >= len(self.ids):
            return np.arange(len(self.ids)), self.kept.dots(self.embeddings, query)
        near = self.prefixes.near(query)
        rows = np.sort(np.argpartition(near, len(near) - count)[-count:])
        return rows, self.kept.dots(self.embeddings[rows], query)


class Prefixes(NamedTuple):
    """Prefixes of all embeddings, brought to length 1: they only find candidates, so int8 is enough."""

    kept: EmbeddingType
    codes: NDArray[np.int8]
    """[N, P]"""

    @classmethod
    def of(cls, kept: EmbeddingType, embeddings: NDArray[Any], width: int) -> Prefixes:
        """The prefixes of embeddings [N, ...] as `kept` has encoded them, read twice rather than held as floats."""

        def prefixes(start: int) -> Float:
            return unit_prefixes(kept.decode(embeddings[start : start + ROWS_AT_ONCE]), width)

        starts = range(0, len(embeddings), ROWS_AT_ONCE)
        ends = [part for start in starts for rows in [prefixes(start)] for part in (rows.min(axis=0), rows.max(axis=0))]
        as_int8 = EmbeddingType.fit("int8", np.stack(ends))
        codes = np.empty((len(embeddings), width), dtype=np.int8)
        for start in starts:
            codes[start : start + ROWS_AT_ONCE] = as_int8.encode(prefixes(start))
        return cls(as_int8, codes)

    def near(self, query: Float) -> Float:
        """[N] how near the prefixes are to a query's, of which the length does not matter."""
        return self.kept.dots(self.codes, query[: self.kept.dims])


def _require_top(top: int) -> None:
    if not 1 <= top <= FUSED_DEPTH:
        raise InputError(f"top = {top}: use 1 to {FUSED_DEPTH}")


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


def require_length_1(kept: EmbeddingType, embeddings: NDArray[Any], path: Path) -> None:
    """Raise CheckpointError where an embedding is neither of length 1 nor 0, in types that keep lengths."""
    if kept.name not in ("float32", "float16"):
        return
    for start in range(0, len(embeddings), ROWS_AT_ONCE):
        lengths = np.linalg.norm(kept.decode(embeddings[start : start + ROWS_AT_ONCE]), axis=1)
        if not ((np.abs(lengths - 1) < 1e-3) | (lengths == 0)).all():
            raise CheckpointError(
                f"{path}: holds an embedding that is not of length 1; remove the folder and index again"
            )


class Reach(NamedTuple):
    """How a search by prefix compares with one by the full width."""

    prefix: int
    candidates: int
    recall: float
    measured_on: int


def measure_reach(embeddings: NDArray[Any], kept: EmbeddingType | None = None) -> Reach:
    """Find how many candidates the best TOP of nearly all queries are among, and measure that on other queries.

    Stored embeddings search for others. N candidates, which is all, where there are few tickets, or so many would be
    needed that nothing is gained, or where signs alone are kept.

    Args:
        embeddings: [N, ...] as `kept` has encoded them; None: as they are, float32.
    """
    kept = kept or EmbeddingType("float32", embeddings.shape[1])
    count, prefix = len(embeddings), min(PREFIX, kept.dims)
    least = max(FUSED_DEPTH + 1, TOP)
    if count <= 2 * least or prefix == kept.dims or kept.name == "binary":
        return Reach(prefix, count, 1.0, 0)
    queries = np.random.default_rng(0).permutation(count)[:SAMPLE]
    prefixes = Prefixes.of(kept, embeddings, prefix)
    blocks = [queries[start : start + QUERIES_AT_ONCE] for start in range(0, len(queries), QUERIES_AT_ONCE)]
    places = np.concatenate([_places(kept, embeddings, prefixes, block) for block in blocks])  # [SAMPLE, TOP]
    chosen, judged = places[::2], places[1::2]
    candidates = max(least, RESERVE * (int(np.quantile(chosen, AIM, method="higher")) + 1))
    if candidates > count // 4:
        return Reach(prefix, count, 1.0, 0)
    return Reach(prefix, candidates, float((judged < candidates).mean()), len(judged))


def _places(kept: EmbeddingType, embeddings: NDArray[Any], prefixes: Prefixes, queries: Int) -> Int:
    """[Q, TOP] how many others the prefix puts before each of the exact best TOP of stored embeddings."""
    itself = np.arange(len(queries)), queries
    rows = kept.decode(embeddings[queries])
    exact = _products(kept, embeddings, rows)
    exact[itself] = -np.inf
    best = np.argpartition(exact, exact.shape[1] - TOP, axis=1)[:, -TOP:]
    near = _products(prefixes.kept, prefixes.codes, rows[:, : prefixes.kept.dims])
    near[itself] = -np.inf
    return np.stack([(near > np.take_along_axis(near, best[:, [k]], axis=1)).sum(axis=1) for k in range(TOP)], axis=1)


def _products(kept: EmbeddingType, stored: NDArray[Any], queries: Float) -> Float:
    """[Q, N] products of queries [Q, E] with all that is kept."""
    products = np.empty((len(queries), len(stored)), dtype=np.float32)
    for start in range(0, len(stored), ROWS_AT_ONCE):
        products[:, start : start + ROWS_AT_ONCE] = queries @ kept.decode(stored[start : start + ROWS_AT_ONCE]).T
    return products
