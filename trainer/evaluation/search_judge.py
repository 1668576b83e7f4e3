"""`trainer evaluate` on a corpus: does the right ticket come up: by a model, by a baseline, by words, by both?"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from trainer.data.pairs import read_pairs
from trainer.data.readers import Reading
from trainer.data.search_corpus import SearchCorpus, corpus_of_pairs, corpus_of_tickets, read_texts
from trainer.data.ticket_table import Columns
from trainer.errors import InputError
from trainer.evaluation.bootstrap import RESAMPLES, check_resampling
from trainer.evaluation.metric_choice import AUTO, BY_SEARCH, SEARCH_METRICS
from trainer.evaluation.scoring import common_dims
from trainer.evaluation.search_set import SearchSet, Values, search_by_words, words_of
from trainer.evaluation.search_verdict import SearchAssessment, assess_search, sentences
from trainer.model.embedding import embed_cached
from trainer.model.loading import load_encoder
from trainer.system.gpu import default_device


@dataclass(frozen=True)
class SearchQuestion:
    """What `trainer evaluate` is asked of a corpus: either tickets, or pairs with a corpus to find their texts in."""

    model: str
    """Folder or hub name."""
    baseline: str | None = None
    tickets: str | None = None
    """File of tickets; `columns` says which are the same problem."""
    pairs: str | None = None
    """File of pairs; texts of positive ones search for each other."""
    corpus: str | None = None
    """File of tickets whose texts are candidates beside those of the pairs."""
    columns: Columns = field(default_factory=Columns)
    """What the file of tickets calls its fields."""
    queries: str = ""
    """COLUMN=VALUE: only such tickets search."""
    dims: tuple[int, ...] = ()
    """Empty: the full width, or what the folder cuts to; in a judgement, those that were judged, in ascending order."""
    metric: str = AUTO
    """What the verdict goes by, a search metric; AUTO takes MRR."""
    label_scale: float = 1.0
    positive_threshold: float | None = None
    reading: Reading | None = None
    """How to read the files, where they do not tell it themselves."""
    resamples: int = RESAMPLES
    seed: int = 0


@dataclass(frozen=True)
class SearchJudgement:
    """What a corpus says."""

    question: SearchQuestion
    source: str
    facts: dict[str, int]
    """Counts of the corpus: texts, queries, links and what was left out."""
    assessment: SearchAssessment
    sentences: list[str]
    """The same for people; the first is the verdict."""


def judge_search(question: SearchQuestion) -> SearchJudgement:
    """Let every text with a known other of its kind search for these among all texts, by every system.

    Example::

        question = SearchQuestion("run/model", "base", tickets="t.csv", columns=Columns(duplicate_of="duplicate_of"))
        judge_search(question).sentences[0]     # "The right ticket is among the first five for 62 -> 71 of 100 ..."

    Raises:
        InputError: a file, a model or an option is bad, the dims do not fit both models, or nothing has an answer.
        NumericError: an embedding is NaN or Inf.
    """
    metric = _metric(question)
    corpus = _read(question)
    words = words_of(corpus)
    names = {"model": question.model} | ({"baseline": question.baseline} if question.baseline else {})
    encoders = {system: load_encoder(name).to(default_device()) for system, name in names.items()}
    dims = tuple(sorted(common_dims(question.dims, encoders.values())))
    values = search_by_words(corpus, words)
    for system, encoder in encoders.items():
        searched = SearchSet.build(corpus, encoder)  # each has a tokenizer of its own
        rows = embed_cached(encoder, searched.tokens, description=f"Embedding ({system})")
        values |= searched.search(system, rows, dims, words)
    named = replace(question, dims=dims, metric=metric)
    return conclude_search(named, corpus, values)


def conclude_search(question: SearchQuestion, corpus: SearchCorpus, values: Values) -> SearchJudgement:
    """Judge systems by what each query found, as `assess_search` takes it."""
    assessment = assess_search(
        values, corpus.clusters, question.dims, question.metric, resamples=question.resamples, seed=question.seed
    )
    said = sentences(assessment, question.metric)
    return SearchJudgement(question, corpus.source, corpus.facts, assessment, said)


def _metric(question: SearchQuestion) -> str:
    check_resampling(question.resamples, question.seed)
    metric = BY_SEARCH if question.metric == AUTO else question.metric
    if metric not in SEARCH_METRICS:
        raise InputError(f"--metric {metric}: a corpus is judged by search; use one of {', '.join(SEARCH_METRICS)}")
    return metric


def _read(question: SearchQuestion) -> SearchCorpus:
    columns, reading = question.columns, question.reading
    if question.tickets:
        return corpus_of_tickets(question.tickets, columns, question.queries, reading)
    assert question.pairs
    table = read_pairs(
        question.pairs,
        label_scale=question.label_scale,
        positive_threshold=question.positive_threshold,
        reading=reading,
    )
    others = read_texts(question.corpus, columns, reading) if question.corpus else []
    return corpus_of_pairs(table, others, question.corpus or "")


def search_record(judgement: SearchJudgement) -> dict[str, Any]:
    """What --json writes: the sentences, figures by system, dim and metric, and what was asked."""
    record = asdict(judgement)
    return {"sentences": record.pop("sentences"), **record.pop("assessment"), **record}
