"""Turn the trained embeddings so that their first dims hold the most: onto the principal axes of the training texts.

A rotation leaves every cosine of the full width as it is, and decides what a cut to fewer dims keeps. The first d
principal axes keep the most of the squared length of the embeddings that any d directions can (Eckart and Young 1936).
An encoder that was not pretrained for Matryoshka sizes has its dims in no order, and fine-tuning changes that only a
little: measured, the turn gains 0.02 to 0.03 of Spearman at 64 of 384 dims (bench/LOG.md).

The axes are of the texts of the run; of several files each counts by the rows that are shown of it. On other texts,
fewer dims may keep less than before. Where `eval.forgetting_limit` is set, the axes are of the run's texts and of the
forgetting set's, these with the least share at which no dim loses more.

Legend: N texts, E embedding width, M dims.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from trainer.data.pairs import PairTable
from trainer.evaluation.pair_metrics import spearman
from trainer.evaluation.scoring import evaluate_embeddings, pair_cosines
from trainer.model.embedding import embed, tokenize_sides
from trainer.model.encoder import Encoder
from trainer.system.console import console
from trainer.training.setup import Run

MOST_TEXTS = 2_000  # drawn from more; half as many changed ROC-AUC at 64 of 384 dims by 0.0007
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


def second_moment(embeddings: np.ndarray) -> np.ndarray:
    """[E, E] float64: the mean outer product of embeddings [N, E] at length one; what is zero stays so."""
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    unit = embeddings.astype(np.float64) / np.where(lengths > 0, lengths, 1.0)
    return unit.T @ unit / len(unit)


def principal_axes(moment: np.ndarray) -> np.ndarray:
    """The orthonormal axes [E, E] fp32 of a second moment, a row each, the one that holds the most first.

    Signs are settled: the largest component of an axis is positive.

    >>> principal_axes(np.array([[1.0, 0.0], [0.0, 3.0]])).tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """
    axes = np.linalg.eigh(moment)[1].T[::-1]
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1)
    return np.ascontiguousarray(axes * np.sign(largest), dtype=np.float32)


def moment_of_files(merged: Encoder, table: PairTable, shown: Mapping[str, int], seed: int) -> tuple[np.ndarray, int]:
    """The second moment [E, E] of training texts, up to MOST_TEXTS of each file, and how many they are. Collective.

    Args:
        shown: file -> the rows that training shows of it, by which it counts: a few general pairs from a large file
            should not turn the first dims towards them.
    """
    random, total, count = np.random.default_rng(seed), np.zeros((merged.width, merged.width)), 0
    for part, source in enumerate(table.sources):
        rows, share = table.part == part, shown[source] / sum(shown.values())
        texts = np.union1d(table.text1[rows], table.text2[rows])
        if len(texts) and share:
            chosen = sorted(random.permutation(texts)[:MOST_TEXTS])
            embeddings = embed(merged, tokenize_sides(merged, [table.texts[text] for text in chosen]))
            total, count = total + share * second_moment(embeddings), count + len(chosen)
    return total, count


def turn_onto_axes(run: Run, merged: Encoder, embeddings: dict[str, dict[str, np.ndarray]]) -> dict[str, Any] | None:
    """Turn the trained model, and the embeddings that it gave, where that is asked for, allowed and better on dev.

    Collective. Better is as `is_better` says, by the metric that the run goes by, on dev or in its corpus.

    Args:
        merged: the run's encoder with its adapters merged.
        embeddings: of every held-out set, by "model" and "baseline"; the model's are replaced.

    Returns what metrics.json says of it; None where it was not asked for, or no dim is below the width.
    """
    dims = tuple(dim for dim in run.config.loss.dims if dim < merged.width)  # a turn leaves the full width as it is
    limit, metric = run.config.eval.forgetting_limit, run.config.eval.metric
    if not run.config.model.principal_axes or not dims:
        return None
    own, texts = moment_of_files(merged, run.data.train, run.sampler.rows_shown(run.steps), run.config.train.seed)
    axes: np.ndarray = principal_axes(own)
    share: float | None = 0.0
    if limit and run.general is not None:
        axes, share = limited_axes(own, embeddings["general"], run.general.table, dims, limit)
    turned = {name: of_set["model"] @ axes.T for name, of_set in embeddings.items()}
    systems = {of: {name: rows[of] for name, rows in embeddings.items()} for of in ("baseline", "model")}
    untouched, before, after = (on_dev(run, rows, dims) for rows in (systems["baseline"], systems["model"], turned))
    record = {"turned": share is not None and is_better(after, before, untouched), "forgetting_share": share}
    record |= {"texts": texts, "before": before.mean(), "after": after.mean()}
    if record["turned"]:
        for name, rows in turned.items():
            embeddings[name]["model"] = rows
        for encoder in (run.encoder, merged):
            turn = torch.from_numpy(axes).to(next(encoder.parameters()).device)
            encoder.dense = turn if encoder.dense is None else turn @ encoder.dense
    forgets = f"; some dim would forget more than {limit:g}" if share is None else ""
    console.print(
        f"{'Turned' if record['turned'] else 'Not turned'} onto the principal axes of {texts:,} training texts: "
        f"mean {metric} over the smaller dims {before.mean():.4f} -> {after.mean():.4f}{forgets}"
    )
    return record


def is_better(after: np.ndarray, before: np.ndarray, untouched: np.ndarray) -> bool:
    """Whether a metric [M] is better on average, and no dim comes to lose to the model that training began with.

    >>> is_better(np.array([0.7, 0.6]), np.array([0.7, 0.5]), np.array([0.5, 0.4]))
    True
    """
    floor = np.minimum(before, np.where(np.isnan(untouched), -np.inf, untouched))
    return bool(after.mean() > before.mean() and (after >= floor).all())


def on_dev(run: Run, rows: Mapping[str, np.ndarray], dims: tuple[int, ...]) -> np.ndarray:
    """The metric [M] that the run goes by, of embeddings by held-out set. Collective."""
    metrics = evaluate_embeddings(rows["dev"], run.dev, dims)
    if run.corpus is not None and run.judged_on == "corpus":
        metrics = run.corpus.add_to(metrics, rows["corpus"])
    return np.array([values[run.config.eval.metric] for values in metrics.values()])


def limited_axes(
    own: np.ndarray, general: Mapping[str, np.ndarray], table: PairTable, dims: tuple[int, ...], limit: float
) -> tuple[np.ndarray, float | None]:
    """Axes by which no dim loses more than the limit on the forgetting set, and the share that this set has in them.

    The least share of SHARES that does; None, with the last axes tried, where none does.

    Args:
        own: second moment of the run's texts.
        general: embeddings of the forgetting set's texts by "model" and "baseline".
        table: the forgetting set.
    """

    def spearmans(embeddings: np.ndarray) -> np.ndarray:
        return np.array([spearman(scores, table.score) for scores in pair_cosines(embeddings, table, dims)])

    rows, least = general["model"], spearmans(general["baseline"]) - limit
    theirs = second_moment(rows)
    for share in SHARES:
        axes = principal_axes((1 - share) * own + share * theirs)
        if (spearmans(rows @ axes.T) >= least).all():
            return axes, share
    return axes, None
