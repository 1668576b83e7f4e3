"""`trainer evaluate` on a corpus: does the right ticket come up: by a model, by a baseline, by words, by both?"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from typing import Any

from trainer.data.search_corpus import SearchCorpus, corpus_of_pairs
from trainer.data.ticket_corpus import corpus_of_tickets, read_texts
from trainer.errors import InputError
from trainer.evaluation.assessment import Assessment, assess_corpus
from trainer.evaluation.metric_choice import AUTO, BY_SEARCH, SEARCH_METRICS
from trainer.evaluation.question import SearchQuestion
from trainer.evaluation.scoring import common_dims
from trainer.evaluation.search_set import SearchSet, words_of
from trainer.evaluation.type_comparison import compare_types
from trainer.evaluation.verdict import Decision, decide
from trainer.model.embedding import embed_cached


@dataclass(frozen=True)
class SearchJudgement(Decision):
    """What a corpus says."""

    question: SearchQuestion
    facts: dict[str, int]
    """Counts of the corpus: texts, queries, links and what was left out."""
    assessment: Assessment
    index_types: list[dict[str, Any]]
    """What the model's embeddings are worth in fewer bytes (`compare_types`), where that was asked for."""


def judge_search(question: SearchQuestion, corpus: SearchCorpus | None = None) -> SearchJudgement:
    """Let every text with a known other of its kind search for these among all texts, by every system.

    Args:
        corpus: what `read_searched` makes of the question, where it was read already.

    Example::

        columns = Columns(duplicate_of="duplicate_of")
        question = SearchQuestion("run/model", baseline="base", tickets="tickets.csv", columns=columns)
        judge_search(question).sentences[0]     # "BETTER: the right ticket is among the first five for 62 -> ..."

    Raises:
        InputError: a file, a model or an option is bad, the dims do not fit both models, or nothing has an answer.
        NumericError: an embedding is NaN or Inf.
    """
    metric = _metric(question)
    corpus = corpus or read_searched(question)
    words = words_of(corpus)
    encoders = question.load_encoders()
    dims = tuple(sorted(common_dims(question.dims, encoders.values())))
    sets = {system: SearchSet.build(corpus, encoder) for system, encoder in encoders.items()}  # tokenizers may differ
    rows = {
        system: embed_cached(encoder, sets[system].tokens, description=f"Embedding ({system})")
        for system, encoder in encoders.items()
    }
    drawn = {"resamples": question.resamples, "seed": question.seed}
    assessment = assess_corpus(sets["model"], rows, dims, words, **drawn)
    named = replace(question, dims=dims, metric=metric)
    decision = decide(assessment, metric)
    types = compare_types(sets["model"], rows["model"], dims) if question.index_types else []
    found: dict[str, Any] = {"facts": corpus.facts, "assessment": assessment, "index_types": types}
    return SearchJudgement(**vars(decision), question=named, **found)


def _metric(question: SearchQuestion) -> str:
    question.check()
    metric = BY_SEARCH if question.metric == AUTO else question.metric
    if metric not in SEARCH_METRICS:
        raise InputError(f"--metric {metric}: a corpus is judged by search; use one of {', '.join(SEARCH_METRICS)}")
    return metric


def read_searched(question: SearchQuestion, trained: Collection[str] = ()) -> SearchCorpus:
    """Who searches for what among whom. Raises InputError for a bad file, or where nothing has an answer.

    Args:
        trained: texts that a system was trained on; what is one of them, or a duplicate of one, does not search.
    """
    if question.tickets:
        return corpus_of_tickets(question.tickets, question.columns, question.queries, question.reading, trained)
    others = read_texts(question.corpus, question.columns, question.reading) if question.corpus else []
    return corpus_of_pairs(question.read(question.pairs), others, question.corpus or "", trained)


def search_record(judgement: SearchJudgement) -> dict[str, Any]:
    """What --json writes: the sentences, figures by system, dim and metric, and what was asked."""
    record = asdict(judgement)
    return {**record.pop("assessment"), **record}
