"""What a judgement goes by: the metrics there are, and which of them the pairs at hand can tell.

Pairs of both labels are judged by labels: thresholds, Spearman, ROC-AUC. Positives alone are judged by search: each
text looks for its partners among all texts of the set.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.data.pairs import PairTable
from trainer.data.split import has_both_labels
from trainer.errors import InputError
from trainer.evaluation.pair_metrics import JUDGING
from trainer.evaluation.search_metrics import NAMES as SEARCH_METRICS
from trainer.system.console import console

AUTO = "auto"
BY_LABELS, BY_SEARCH = "spearman", "mrr@10"  # what AUTO takes
JUDGED_BY = (*JUDGING, *SEARCH_METRICS)
"""What can pick the best model (`eval.metric`) and carry a verdict (`--metric`)."""
TITLES = {"spearman": "Spearman", "roc_auc": "ROC-AUC", "f1": "F1"}
"""Metrics that a person knows by another name."""
HEADLINE = ("spearman", "roc_auc", "f1")
SEARCH_HEADLINE = ("success@1", "success@5", "success@10")
NO_NEGATIVES = (
    "positives alone, so judged by search: each text looks for its partners among all of them. Spearman, ROC-AUC, F1, "
    "thresholds and the adversarial diagnostic need negatives too"
)


def require_metric(name: str, asked: str) -> None:
    """Check the name of a metric, or AUTO. `asked` is how a person asked for it. Raises InputError."""
    if name not in (AUTO, *JUDGED_BY):
        raise InputError(f"{asked}: use one of {', '.join((AUTO, *JUDGED_BY))}")


def choose_metric(name: str, tables: Sequence[PairTable], asked: str, has_corpus: bool = False) -> str:
    """The metric that held-out tables are judged by: the one that was asked for, or for AUTO one that all can tell.

    Args:
        has_corpus: whether there is a corpus to search, which is what AUTO then goes by.

    Raises InputError where the metric asked for needs negatives that a table does not have.
    """
    lacking = [table for table in tables if not has_both_labels(table)]
    if name == AUTO:
        return BY_SEARCH if lacking or has_corpus else BY_LABELS
    if lacking and name not in SEARCH_METRICS:
        raise InputError(
            f"{asked}: {lacking[0].source} holds positives alone, and {name} compares them with negatives: add "
            f"negative pairs there, or use {AUTO} or one of {', '.join(SEARCH_METRICS)}"
        )
    return name


def settle_metric(asked: str, held_out: Sequence[PairTable], has_corpus: bool) -> str:
    """What the setting eval.metric comes to for the held-out tables and the corpus of a run; says what is special.

    Raises InputError as `choose_metric` does.
    """
    metric = choose_metric(asked, held_out, f'eval.metric = "{asked}"', has_corpus)
    for table in held_out:
        if not has_both_labels(table):
            console.print(f"{table.source}: {NO_NEGATIVES}", markup=False)
    if asked == AUTO and metric in SEARCH_METRICS:
        console.print(f'eval.metric: "{metric}" picks the best model and carries the verdict', markup=False)
    return metric


def judged_on(metric: str, pairs: str, has_corpus: bool) -> str:
    """What a run's figures of a metric are of: "corpus" where it is of search and there is one, else the pairs' name.

    >>> judged_on("mrr@10", "dev", True), judged_on("spearman", "dev", True), judged_on("mrr@10", "test", False)
    ('corpus', 'dev', 'test')
    """
    return "corpus" if has_corpus and metric in SEARCH_METRICS else pairs


def picked_in_words(on: str, evaluations: int, chose_after: bool) -> str:
    """What to expect of other data where a model was picked by what it is judged on, as a sentence without a full stop;
    "" where it was not.

    Args:
        on: as `judged_on` says it.
        evaluations: how many there were in the run; with the one at its end alone, there was no best step to pick.
        chose_after: whether it picked among strengths after the steps, or between embeddings turned and not.

    >>> picked_in_words("corpus", 3, False), picked_in_words("dev", 1, False), picked_in_words("test", 1, True)
    ('The corpus has also picked the model, so expect a little less on other tickets', '', '')
    """
    others = {"corpus": "tickets", "dev": "pairs"}.get(on)
    if others is None or not (evaluations > 1 or chose_after):
        return ""
    picker = on_in_words(on)
    return f"{picker[0].upper()}{picker[1:]} has also picked the model, so expect a little less on other {others}"


def on_in_words(on: str) -> str:
    """What `judged_on` says, as it stands in a sentence."""
    return "the corpus" if on == "corpus" else on


def corpus_in_words(search: Mapping[str, Any]) -> str:
    """The corpus that was searched, with its counts.

    Args:
        search: "source", "queries" and "texts" of the search.

    >>> corpus_in_words({"source": "data/tickets.csv", "queries": 670, "texts": 5222})
    'the corpus tickets.csv (670 queries among 5,222 texts)'
    """
    return f"the corpus {Path(search['source']).name} ({search['queries']:,} queries among {search['texts']:,} texts)"


def headline(available: Collection[str], metric: str) -> list[str]:
    """The metrics that a small table shows, of those available: the usual ones of their kind, and the judgement's own.

    >>> headline(("spearman", "roc_auc", "f1", "mrr@10"), "mrr@10")
    ['spearman', 'roc_auc', 'f1', 'mrr@10']
    """
    usual = HEADLINE if BY_LABELS in available else SEARCH_HEADLINE
    return list(dict.fromkeys((*usual, metric)))
