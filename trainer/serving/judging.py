"""What an exported form of a model lost, on held-out pairs or in a corpus, by the code of `trainer evaluate`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from trainer.config_file import load_config
from trainer.data.pairs import PairTable
from trainer.data.run_data import load_data
from trainer.data.search_corpus import SearchCorpus
from trainer.data.split import has_both_labels
from trainer.errors import InputError, LostTooMuch
from trainer.evaluation.assessment import CHANGE, Assessment, assess, assess_corpus
from trainer.evaluation.metric_choice import AUTO, TITLES, choose_metric, corpus_in_words, judged_on
from trainer.evaluation.question import EncoderQuestion, embed_systems
from trainer.evaluation.scoring import pair_cosines
from trainer.evaluation.search_set import SearchSet
from trainer.evaluation.thresholds import RULE, fit_thresholds
from trainer.model.embedding import embed_cached
from trainer.model.encoder import Encoder, embedding_conditions
from trainer.model.loading import load_encoder
from trainer.system.console import console
from trainer.system.run_files import ADAPTER, CONFIG, MODEL


@dataclass(frozen=True)
class PairsToJudge:
    """Held-out pairs, the metric, and the dims at which nothing may be lost, the largest first."""

    table: PairTable
    metric: str
    dims: tuple[int, ...]
    corpus: SearchCorpus | None = None
    """What is searched instead, where the metric is of search and the run had a corpus."""


def pairs_to_judge(question: EncoderQuestion, dim: int) -> PairsToJudge | None:
    """The pairs that were named, else the dev set or the corpus of the model's run; None, which is said, without a run.

    Args:
        question: with the model and, where they were named, the pairs.
        dim: of the export; it and the smaller ones that the run was trained for are judged.

    Raises:
        InputError: the pairs that were named are bad.
    """
    config_file = Path(question.model).resolve().parent / CONFIG
    of_run = Path(question.model).resolve().name in (MODEL, ADAPTER) and config_file.is_file()
    config = load_config(config_file) if of_run else None
    metric, trained = (config.eval.metric, config.loss.dims) if config else (AUTO, ())
    dims = tuple(sorted({dim, *(each for each in trained if each < dim)}, reverse=True))
    corpus: SearchCorpus | None = None
    if question.pairs:
        table = question.read(question.pairs)
    elif config:
        try:
            data = load_data(config.data, config.train.seed)
        except InputError as error:
            console.print(f"Not judged: the data of the run cannot be read ({error}); name --pairs", markup=False)
            return None
        table, corpus = data.dev, data.corpus
    else:
        console.print("Not judged: the model is in no folder of a run; name held-out pairs as --pairs", markup=False)
        return None
    metric = choose_metric(metric, [table], f"eval.metric = {metric}", corpus is not None)
    searched = judged_on(metric, "pairs", corpus is not None) == "corpus"
    return PairsToJudge(table, metric, dims, corpus if searched else None)


def judge_export(encoder: Encoder, folder: Path, pairs: PairsToJudge, allowed: float) -> dict[str, Any]:
    """Judge an exported folder beside the model that it was made of, show the figures and return them.

    Raises:
        LostTooMuch: more than `allowed` of the metric is lost at one of the dims.
        NumericError: an embedding is NaN or Inf.
    """
    dims, encoders = pairs.dims, {"model": load_encoder(str(folder)), "baseline": encoder}
    assessment = _search_corpus(encoders, pairs.corpus, dims) if pairs.corpus else _judge_pairs(encoders, pairs)
    by_dim = {
        str(dim): {
            "model": assessment.metrics["baseline"][str(dim)][pairs.metric],
            "exported": assessment.metrics["model"][str(dim)][pairs.metric],
            "interval": assessment.intervals[CHANGE][str(dim)][pairs.metric],
        }
        for dim in dims
    }
    judged = f"{len(pairs.table)} pairs of {pairs.table.source}"
    if pairs.corpus:
        judged = corpus_in_words(vars(assessment))
    _print(by_dim, pairs.metric, judged)
    _require_kept(encoder.spec.name, by_dim, pairs.metric, allowed)
    return {"judged": judged, "metric": pairs.metric, "allowed": allowed, "dims": by_dim}


def _judge_pairs(encoders: Mapping[str, Encoder], pairs: PairsToJudge) -> Assessment:
    rows, thresholds = embed_systems(encoders, pairs.table.texts), {}
    if has_both_labels(pairs.table):
        for system, each in encoders.items():
            cosines = pair_cosines(rows[system], pairs.table, pairs.dims)
            fitted = fit_thresholds(cosines, pairs.table, pairs.dims, RULE, embedding_conditions(each))
            thresholds[system] = fitted.values
    return assess(pairs.table, rows, pairs.dims, thresholds)


def _search_corpus(encoders: Mapping[str, Encoder], corpus: SearchCorpus, dims: tuple[int, ...]) -> Assessment:
    # `differences` has found that both have the same tokens.
    searched = SearchSet.build(corpus, encoders["model"])
    rows = {system: embed_cached(each, searched.tokens, f"Embedding ({system})") for system, each in encoders.items()}
    return assess_corpus(searched, rows, dims)


def _require_kept(name: str, by_dim: Mapping[str, Mapping[str, Any]], metric: str, allowed: float) -> None:
    lost = {dim: figures["model"] - figures["exported"] for dim, figures in by_dim.items()}
    if too_much := [f"{loss:.4f} at {dim} dims" for dim, loss in lost.items() if not loss <= allowed]:
        raise LostTooMuch(
            f"model {name}: its export loses {', '.join(too_much)} of {metric}, more than --allow-loss {allowed:g}; "
            "nothing is exported: leave --int8 out where it was asked for, or allow more"
        )


def _print(by_dim: Mapping[str, Mapping[str, Any]], metric: str, judged: str) -> None:
    table = Table(title=escape(judged), title_justify="left")
    for heading in ("dim", f"{TITLES.get(metric, metric)}: model -> exported (difference)", "95 % of the difference"):
        table.add_column(heading, justify="right")
    for dim, figures in by_dim.items():
        before, after, (low, high) = figures["model"], figures["exported"], figures["interval"]
        table.add_row(dim, f"{before:.4f} -> {after:.4f} ({after - before:+.4f})", f"{low:+.4f} to {high:+.4f}")
    console.print(table)
