"""Pairs out of raw tickets to be asked about: tickets drawn at random, each with those most like it.

Legend: N tickets, Q drawn ones, K neighbours.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from trainer.data.readers import Reading
from trainer.data.ticket_table import Columns
from trainer.data.tickets import Filter, Tickets, load_tickets
from trainer.errors import InputError
from trainer.labelling.answers import Pair
from trainer.labelling.choice import Int, Scores
from trainer.labelling.pool import Pool, by_words, embedded, kept_threshold
from trainer.system.console import tracked
from trainer.text.tfidf import FloatArray, as_columns, cosines_with, pair_cosines, tfidf_matrix

DRAWN = 500  # tickets that are compared with all others; several times what a person labels
NEIGHBOURS = 5  # of each, by each measure
ROWS_AT_ONCE = 64


def pool_of_tickets(
    path: str, columns: Columns, reading: Reading | None, model: str, threshold: float | None, seed: int
) -> Pool:
    """Candidates: each of DRAWN tickets with its NEIGHBOURS nearest by TF-IDF and, where one is named, by a model.

    Copies of a template are no candidates for each other.

    Args:
        threshold: of the cosines; None: what is kept beside the model.
        seed: of the draw.

    Raises InputError: the file or the model is bad, or nothing can be compared.
    """
    tickets = load_tickets(path, columns, Filter(), reading)
    drawn = np.sort(np.random.default_rng(seed).permutation(len(tickets))[:DRAWN])
    notes: list[str] = []
    found = []
    try:
        matrix = tfidf_matrix(tickets.texts)
    except InputError as error:
        if not model:
            raise
        matrix = None
        notes.append(f"Without TF-IDF: {error}")
    if matrix is not None:
        words, everyone = matrix, as_columns(matrix, np.arange(len(tickets)))
        found.append(_nearest(lambda rows: cosines_with(words, rows, everyone), drawn, tickets.template))
    if model:
        encoder, rows, others = embedded(model, tickets.texts)
        threshold = kept_threshold(encoder, notes) if threshold is None else threshold
        found.append(_nearest(lambda queries: rows[queries] @ others.T, drawn, tickets.template))
    first, second = np.unique(np.concatenate(found), axis=0).T
    if not len(first):
        raise InputError(f"{tickets.source}: no two of its {len(tickets)} usable tickets can be compared: give more")
    by_tfidf = pair_cosines(matrix, first, second).astype(np.float64) if matrix is not None else None
    if model:
        cosines = np.einsum("pe,pe->p", rows[first], others[second]).astype(np.float64)
        scores = Scores(len(first), None, cosines, threshold, by_tfidf)
    else:
        scores = by_words(len(first), None, by_tfidf, threshold, notes)
    return Pool(tickets.source, _pairs(tickets, first, second), scores, notes)


def _nearest(similar: Callable[[Int], FloatArray], drawn: Int, template: Int) -> Int:
    """[<= Q K, 2] each drawn ticket with its nearest of another template, the lower number first; `similar` gives
    cosines [q, N] of some tickets with all."""
    pairs = [np.empty((0, 2), dtype=np.int64)]
    blocks = [drawn[start : start + ROWS_AT_ONCE] for start in range(0, len(drawn), ROWS_AT_ONCE)]
    for rows in tracked(blocks, "Comparing"):
        cosines = similar(rows)
        cosines[template[rows][:, None] == template[None, :]] = -np.inf  # a ticket is a copy of itself
        count = min(NEIGHBOURS, cosines.shape[1])
        nearest = np.argpartition(-cosines, count - 1, axis=1)[:, :count]
        far = np.take_along_axis(cosines, nearest, axis=1) > 0
        ends = np.stack([np.broadcast_to(rows[:, None], nearest.shape)[far], nearest[far]], axis=1)
        pairs.append(np.sort(ends, axis=1).astype(np.int64))
    return np.concatenate(pairs)


def _pairs(tickets: Tickets, first: Int, second: Int) -> list[Pair]:
    names = [*tickets.categories, ""]  # -1, no category, is the last
    return [
        Pair(
            tickets.texts[one],
            tickets.texts[two],
            category1=names[tickets.category[one]],
            category2=names[tickets.category[two]],
            number1=tickets.numbers[one],
            number2=tickets.numbers[two],
        )
        for one, two in zip(first.tolist(), second.tolist(), strict=True)
    ]
