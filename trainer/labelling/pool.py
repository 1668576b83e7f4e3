"""Pairs that can be asked about, with what a model and TF-IDF say of them: of a pair file, or of a finished run.

Legend: P pairs, T texts.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trainer.data.pairs import PairTable, read_pairs
from trainer.data.readers import Reading
from trainer.data.split import has_both_labels
from trainer.errors import InputError, NumericError
from trainer.evaluation.pair_metrics import best_f1
from trainer.labelling.answers import Pair
from trainer.labelling.choice import Float, Scores
from trainer.system.run_files import METRICS, SCORES
from trainer.text.tfidf import FloatArray, pair_cosines, tfidf_matrix

if TYPE_CHECKING:
    from trainer.model.encoder import Encoder


@dataclass(frozen=True, eq=False)
class Pool:
    """P pairs and their scores."""

    source: str
    pairs: list[Pair]
    scores: Scores
    notes: list[str] = field(default_factory=list)
    """What could not be had, in words."""


def pool_of_pairs(
    path: str,
    model: str,
    threshold: float | None,
    needs: Collection[str],
    *,
    label_scale: float = 1.0,
    positive_threshold: float | None = None,
    reading: Reading | None = None,
) -> Pool:
    """Labelled pairs of a file.

    Args:
        model: that scores them; "": TF-IDF does.
        threshold: of its cosines; None: what is kept beside the model, else the best F1 on these pairs.
        needs: the fields of their scores that somebody goes by; nothing is worked out for others.

    Raises InputError: the file or the model is bad.
    """
    table = read_pairs(path, label_scale=label_scale, positive_threshold=positive_threshold, reading=reading)
    notes: list[str] = []
    words = _words_of(table, notes) if "words" in needs or ("cosine" in needs and not model) else None
    if "cosine" not in needs:
        scores = Scores(len(table), table.label, words=words)
        notes += [f"--model {model} is not looked at: these rules need no scores"] if model else []
    elif not model:
        scores = by_words(len(table), table.label, words, threshold, notes)
    else:
        encoder, first, second = embedded(model, table.texts)
        cosines = np.einsum("pe,pe->p", first[table.text1], second[table.text2]).astype(np.float64)
        threshold = kept_threshold(encoder, notes) if threshold is None else threshold
        scores = Scores(len(table), table.label, cosines, threshold, words)
    if threshold is None and scores.cosine is not None and has_both_labels(table):
        scores = replace(scores, threshold=best_f1(scores.cosine, table.label)[1])
    return Pool(table.source, _pairs_of(table), scores, notes)


def pool_of_run(folder: Path, needs: Collection[str]) -> Pool:
    """The pairs that a finished run was judged on, as its report shows the most wrong of them, by its final model.

    The files of the run are read again, from where training read them.

    Args:
        needs: as for `pool_of_pairs`.

    Raises InputError where they have changed, or it is no finished run.
    """
    from trainer.data.run_data import pairs_of_run

    if not (folder / METRICS).is_file():
        raise InputError(f"{folder}: no finished run there; name a file of pairs, or the folder of a finished run")
    held_out = pairs_of_run(folder).held_out
    try:
        record, metrics = (json.loads((folder / name).read_bytes()) for name in (SCORES, METRICS))
        table = held_out[record["set"]]
        if metrics[record["set"]]["data_fingerprint"] != table.fingerprint():
            raise InputError(f"{folder}: {table.source} is not what the run was judged on; name the pairs with --pairs")
        dim = max(record["final"], key=int)
        cosines = np.array(record["final"][dim], dtype=np.float64)
        threshold = record["thresholds"]["final"][dim] if record["thresholds"] else None
        scores = Scores(len(table), table.label, cosines, threshold)
        if len(cosines) != len(table):
            raise ValueError(f"{SCORES} is of {len(cosines)} pairs, not of {len(table)}")
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise InputError(f"{folder}: a file of the run is damaged or of another version: {error}") from error
    notes: list[str] = []
    words = _words_of(table, notes) if "words" in needs else None
    return Pool(table.source, _pairs_of(table), replace(scores, words=words), notes)


def _pairs_of(table: PairTable) -> list[Pair]:
    """The rows of a table to be labelled."""
    columns = table.columns() | {"labels": table.label.astype(int).tolist()}
    names = ("texts1", "texts2", "categories1", "categories2", "phase_indicators", "labels")
    return [
        Pair(text1, text2, category1, category2, max(phase, 1), label_before=label)
        for text1, text2, category1, category2, phase, label in zip(*(columns[name] for name in names), strict=True)
    ]


def by_words(
    count: int, label: NDArray[np.bool_] | None, words: Float | None, threshold: float | None, notes: list[str]
) -> Scores:
    """The scores of pairs [P] without a model: TF-IDF stands in its place, and has nothing to disagree with."""
    notes.append("Without --model TF-IDF stands in its place, which sees words and no meaning")
    return Scores(count, label, words, threshold if words is not None else None)


def _words_of(table: PairTable, notes: list[str]) -> Float | None:
    """[P] cosines by TF-IDF; None, with a note, where there are none."""
    try:
        matrix = tfidf_matrix(table.texts)
    except InputError as error:
        notes.append(f"Without TF-IDF: {error}")
        return None
    first, second = (side.astype(np.int64) for side in (table.text1, table.text2))
    return pair_cosines(matrix, first, second).astype(np.float64)


def embedded(model: str, texts: list[str]) -> tuple[Encoder, FloatArray, FloatArray]:
    """A model, and embeddings [T, E] of length 1 of texts as first and as second ones of pairs."""
    from trainer.model.embedding import embed_cached, sides, tokenize_sides
    from trainer.model.loading import load_encoder
    from trainer.system.gpu import default_device

    encoder = load_encoder(model).to(default_device())
    rows = embed_cached(encoder, tokenize_sides(encoder, texts))[:, : encoder.usual_dim]
    if not np.isfinite(rows).all():
        raise NumericError(f"--model {model}: some embeddings are not finite")
    first, second = sides(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12), len(texts))
    return encoder, first, second


def kept_threshold(encoder: Encoder, notes: list[str]) -> float | None:
    """The threshold that is kept beside a model; None where there is none that fits, which is noted."""
    from trainer.evaluation.thresholds import stored_thresholds
    from trainer.model.encoder import embedding_conditions

    dim = encoder.usual_dim
    try:
        kept = stored_thresholds(Path(encoder.spec.name), (dim,), embedding_conditions(encoder))
    except InputError as error:
        notes.append(f"Without the model's own threshold: {error}")
        return None
    return kept.values[str(dim)] if kept else None
