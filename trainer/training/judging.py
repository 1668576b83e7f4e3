"""The judgement at the end of a run, by the code of `trainer evaluate`: beside the model that the run began with and,
where that one continues another, beside the original too.

Strength and verdict go by the first; the second is a record and a sentence more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from trainer.data.pairs import PairTable
from trainer.data.split import has_both_labels
from trainer.evaluation.assessment import Assessment, assess_corpus
from trainer.evaluation.judge import Judgement, conclude, judgement_record
from trainer.evaluation.question import Question
from trainer.evaluation.scoring import pair_cosines
from trainer.evaluation.search_set import SearchSet
from trainer.evaluation.thresholds import RULE, Thresholds, fit_thresholds
from trainer.evaluation.verdict import beside_both
from trainer.model.embedding import embed, embed_cached, tokenize_sides
from trainer.model.encoder import EmbeddingConditions, Encoder, embedding_conditions
from trainer.system.run_files import MODEL
from trainer.training.setup import Run

Embeddings = Mapping[str, Mapping[str, np.ndarray]]
"""Set ("dev", "test", "general", "corpus") -> system -> [T, E]."""


def embed_held_out(run: Run, systems: dict[str, Encoder]) -> dict[str, dict[str, np.ndarray]]:
    """Embeddings [T, E] by set ("dev", "test", "general", "corpus") and system, in fp32. Collective."""
    sets = {"dev": run.dev, "test": run.test, "general": run.general, "corpus": run.corpus}
    return {
        name: {
            system: (embed_cached if system == "baseline" else embed)(encoder, pairs.tokens)
            for system, encoder in systems.items()
        }
        for name, pairs in sets.items()
        if pairs is not None
    }


def judge_run(
    run: Run,
    systems: dict[str, Encoder],
    embeddings: Embeddings,
    search: Assessment | None = None,
    baseline: str | None = None,
) -> dict[str, Judgement]:
    """Judgements on "dev" and, where there is one, "test", in this order.

    Thresholds are fitted on dev; where it holds positives alone, on a test set of both labels itself, else not at all.

    Args:
        search: what a search of the run's corpus says of "model" and "baseline" at the dims of the run, in their order
            (`assessment.assess_search`); it stands for all search metrics, instead of one among the pairs' own texts.
        baseline: what "baseline" is called; None: by model.name.
    """
    config, dev = run.config, run.data.dev
    conditions = {system: embedding_conditions(encoder) for system, encoder in systems.items()}
    thresholds: dict[str, Thresholds] = {}
    general = (run.data.general, embeddings["general"]) if run.data.general is not None else None
    judgements = {}
    for name, table in run.data.held_out.items():
        if not thresholds and has_both_labels(table):
            thresholds = fit_for(table, embeddings[name], config.loss.dims, conditions)
        question = Question(
            model=MODEL,  # within the folder of the run, wherever that is
            pairs=table.source,
            dev=dev.source if name == "test" and has_both_labels(dev) else None,  # what thresholds are fitted on
            baseline=baseline or config.model.name,
            dims=config.loss.dims,
            label_scale=config.data.label_scale,
            positive_threshold=config.data.positive_threshold or None,
            rule=RULE,
            metric=config.eval.metric,
            forgetting=config.data.forgetting or None,
        )
        forgetting = general if name == "dev" else None
        judgements[name] = conclude(question, table, embeddings[name], thresholds, forgetting, search=search)
    return judgements


def fit_for(
    table: PairTable,
    embeddings: Mapping[str, np.ndarray],
    dims: tuple[int, ...],
    conditions: dict[str, EmbeddingConditions],
) -> dict[str, Thresholds]:
    """Thresholds by system, fitted on a table's pairs; `conditions` are what the systems' embeddings depend on."""
    return {
        system: fit_thresholds(pair_cosines(embeddings[system], table, dims), table, dims, RULE, of_model)
        for system, of_model in conditions.items()
    }


def record_of(judgement: Judgement) -> dict[str, Any]:
    """As `trainer evaluate --json` writes it, the trained model called "final"."""
    record = judgement_record(judgement)
    return {"baseline": record.pop("baseline"), "final": record.pop("model"), **record}


def embed_original(run: Run, original: Encoder) -> dict[str, np.ndarray]:
    """Embeddings [T, E] of the original by set; it has tokens of its own. Collective."""
    parts = {"dev": run.data.dev, "test": run.data.test, "general": run.data.general}
    tokens = {name: tokenize_sides(original, table.texts) for name, table in parts.items() if table is not None}
    if run.data.corpus is not None:
        tokens["corpus"] = SearchSet.build(run.data.corpus, original).tokens
    return {name: embed_cached(original, of_set) for name, of_set in tokens.items()}


def record_beside_original(
    run: Run, systems: dict[str, Encoder], original: Encoder, embeddings: Embeddings, rows: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """The record of the judgement that counts, with the original as its baseline.

    Args:
        rows: of the original, by set.
    """
    beside = {name: {"model": of_set["model"], "baseline": rows[name]} for name, of_set in embeddings.items()}
    search = assess_corpus(run.corpus, beside["corpus"], run.config.loss.dims) if run.corpus is not None else None
    compared = {"model": systems["model"], "baseline": original}
    return record_of(list(judge_run(run, compared, beside, search, original.spec.name).values())[-1])


def add_original(record: dict[str, Any], original: dict[str, Any]) -> None:
    """Put a record beside the original into that of the same pairs, and what both say into its sentences."""
    record["original"] = original
    record["sentences"] = [record["sentences"][0], beside_both(record, original), *record["sentences"][1:]]
