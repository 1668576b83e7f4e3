"""What the programs of this folder judge models on, all by one code: held-out pairs, a corpus, general similarity.

Legend: P PAIR_METRICS, S systems, M dims, N pairs, B resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from trainer.data.pairs import PairTable, read_pairs
from trainer.data.search_corpus import SearchCorpus
from trainer.data.split import sample_pairs
from trainer.data.ticket_corpus import corpus_of_tickets
from trainer.data.ticket_table import Columns
from trainer.evaluation.bootstrap import bootstrap_pairs, interval
from trainer.evaluation.groups import groups_of_pairs
from trainer.evaluation.pair_metrics import METRICS, Metrics
from trainer.evaluation.scoring import pair_cosines
from trainer.evaluation.search_set import SearchSet
from trainer.model.embedding import embed, embed_cached, tokenize_sides
from trainer.model.loading import load_encoder
from trainer.system.gpu import default_device

PAIR_METRICS = ("spearman", "roc_auc")
SEARCH_METRICS = ("success@10",)
STS = "sts_spearman"
STS_SCALE = 5.0
Told = TypeVar("Told")


class HeldOut(NamedTuple):
    """Where held-out data lie, and how much of them is taken."""

    pairs: str | PairTable
    """A file, or what was read of one."""
    rows: int = 0
    """A sample of so many pairs, always the same; 0 takes all."""
    scale: float = 1.0
    """Labels run from 0 to this."""
    sts: str | None = None
    """General similarity: sentence, sentence, score from 0 to 5."""
    corpus: str | None = None
    """Tickets with a column `duplicate_of`."""
    queries: str = ""
    """COLUMN=VALUE of the tickets that search; "" lets all do."""

    def read_pairs(self) -> PairTable:
        """The pairs. Raises InputError."""
        table = read_pairs(self.pairs, label_scale=self.scale) if isinstance(self.pairs, str) else self.pairs
        return sample_pairs(table, self.rows, seed=0) if self.rows else table

    def read_corpus(self) -> SearchCorpus | None:
        """The corpus, where one is named. Raises InputError."""
        return (
            corpus_of_tickets(self.corpus, Columns(duplicate_of="duplicate_of"), self.queries) if self.corpus else None
        )


def pair_figures(cosines: np.ndarray, table: PairTable, dims: tuple[int, ...]) -> Metrics:
    """PAIR_METRICS by dim of cosines [M, N]."""
    return {
        str(dim): {name: float(METRICS[name](row, table.score, table.label, 0.0)) for name in PAIR_METRICS}
        for dim, row in zip(dims, cosines, strict=True)
    }


def over_models(figures: Sequence[Metrics], of: Callable[[list[float]], Told]) -> dict[str, dict[str, Told]]:
    """What `of` makes of the same figure of several models, by dim and metric."""
    return {
        dim: {name: of([each[dim][name] for each in figures]) for name in values} for dim, values in figures[0].items()
    }


def judge_model(
    folder: str, held_out: HeldOut, dims: tuple[int, ...], max_length: int, cached: bool = False
) -> tuple[Metrics, np.ndarray]:
    """Judge a model at every dim, in fp32.

    Args:
        max_length: tokens of a text.
        cached: keep its embeddings, as those of an untouched model that comes again and again.

    Returns:
        PAIR_METRICS, and SEARCH_METRICS and STS where these are asked for, by dim; the pairs' cosines [M, N].
    """
    encoder = load_encoder(folder, max_length=max_length, announce=False).to(default_device())
    embed_texts = embed_cached if cached else embed

    def cosines_of(table: PairTable) -> np.ndarray:
        return pair_cosines(embed_texts(encoder, tokenize_sides(encoder, table.texts)), table, dims)

    table = held_out.read_pairs()
    cosines = cosines_of(table)
    figures = pair_figures(cosines, table, dims)
    if held_out.sts:
        general = HeldOut(held_out.sts, scale=STS_SCALE).read_pairs()
        for dim, metrics in pair_figures(cosines_of(general), general, dims).items():
            figures[dim][STS] = metrics["spearman"]
    if corpus := held_out.read_corpus():
        searched = SearchSet.build(corpus, encoder)
        values = searched.search("model", embed_texts(encoder, searched.tokens), dims)["model"]
        for m, dim in enumerate(figures):
            figures[dim] |= {name: float(values[name][m].mean()) for name in SEARCH_METRICS}
    return figures, cosines


def resampled(cosines: np.ndarray, table: PairTable) -> tuple[np.ndarray, np.ndarray]:
    """PAIR_METRICS of cosines [S, M, N]: values [P, S, M], and samples [P, S, M, B] from the same resamples for all."""
    scores = cosines.reshape(-1, len(table))
    unused = np.zeros(len(scores))  # no metric here has a threshold
    drawn = bootstrap_pairs(scores, table.score, table.label, unused, groups_of_pairs(table))
    values = [[METRICS[name](row, table.score, table.label, 0.0) for row in scores] for name in PAIR_METRICS]
    shape = (len(PAIR_METRICS), *cosines.shape[:2])
    return np.reshape(values, shape), np.stack([drawn[name] for name in PAIR_METRICS]).reshape(*shape, -1)


def compare(before: np.ndarray, after: np.ndarray, table: PairTable, dims: tuple[int, ...]) -> dict[str, Any]:
    """PAIR_METRICS by dim of two kinds of models: "before", "after", and "gain", the 95 % interval of the difference.

    Args:
        before, after: cosines [S, M, N] of the models of a kind, such as one a seed; what counts is their mean figure.
    """
    values, samples = resampled(np.concatenate([before, after]), table)
    cut = len(before)
    gains = interval(samples[:, cut:].mean(axis=1) - samples[:, :cut].mean(axis=1))
    parts = {"before": values[:, :cut].mean(axis=1), "after": values[:, cut:].mean(axis=1), "gain": gains}
    return {
        part: {str(dim): {name: of[p, m].tolist() for p, name in enumerate(PAIR_METRICS)} for m, dim in enumerate(dims)}
        for part, of in parts.items()
    }
