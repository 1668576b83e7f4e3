"""The search of a run's corpus: what it costs, and at the end what it says of the model before and after training."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np

from trainer.evaluation.assessment import GUARDED, Assessment, assess_corpus
from trainer.evaluation.metric_choice import BY_SEARCH
from trainer.evaluation.search_set import words_of
from trainer.evaluation.show import print_systems
from trainer.system.console import console
from trainer.training.setup import Run
from trainer.training.strength import most_points


def print_searches(run: Run, evaluations: int) -> None:
    """Say how often the texts of the corpus are embedded, which is what a corpus costs."""
    if run.corpus is None:
        return
    metric, moments = run.config.eval.metric, "before training and at the end"
    if run.judged_on == "corpus":
        strengths = most_points(run.config.eval.largest_strength) if run.config.eval.choose_strength else 0
        chosen = f", for up to {strengths} strengths" if strengths else ""
        moments = f"before training, at up to {evaluations} evaluations{chosen} and at the end, to go by its {metric}"
    console.print(f"Corpus: {len(run.corpus.tokens.lengths):,} texts are embedded {moments}", markup=False)
    if find_spec("bm25s") is None:
        console.print("Corpus: searched without BM25 beside the models: install the extra `mine` for it", markup=False)


def search_corpus(run: Run, embeddings: dict[str, dict[str, np.ndarray]]) -> Assessment | None:
    """What searching the corpus says of both systems and, where its library is installed, of BM25; None without one."""
    if run.corpus is None:
        return None
    words = words_of(run.corpus.corpus) if find_spec("bm25s") else None
    return assess_corpus(run.corpus, embeddings["corpus"], run.config.loss.dims, words)


def corpus_record(run: Run, search: Assessment | None) -> dict[str, Any]:
    """What metrics.json has as "search": figures by system ("baseline", "final", "bm25", "bm25+final" ...), dim and
    metric, and counts; {} without a corpus."""
    if search is None or run.corpus is None:
        return {}
    called = {system: system.replace("model", "final") for system in search.metrics}
    record = {
        **{name: search.metrics[system] for system, name in called.items()},
        "intervals": {name: search.intervals[system] for system, name in called.items()},
        "differences": {name: ends for name, ends in search.intervals.items() if name not in called},
        "queries": search.queries,
        "texts": search.texts,
        "source": search.source,
        "groups": search.groups,
        "facts": run.corpus.corpus.facts,
    }
    return {"search": record}


def print_corpus(run: Run, search: Assessment | None) -> None:
    """Show what every system found, at the largest dim; metrics.json has all dims."""
    if search is not None:
        print_systems(search, str(max(run.config.loss.dims)), ("success@5", *GUARDED, BY_SEARCH))
