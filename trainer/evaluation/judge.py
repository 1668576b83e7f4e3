"""`trainer evaluate`: one encoder, or two side by side, on held-out pairs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data.pairs import PairTable
from trainer.data.run_data import read_general
from trainer.data.split import check_overlap, has_both_labels
from trainer.errors import InputError
from trainer.evaluation.assessment import Assessment, assess, forgetting
from trainer.evaluation.deployment import count_for, read_ticket_texts, thresholds_for_alerts, worth_in_deployment
from trainer.evaluation.metric_choice import choose_metric
from trainer.evaluation.pair_metrics import spearman_ceiling
from trainer.evaluation.question import Question, embed_systems
from trainer.evaluation.scoring import common_dims, pair_cosines
from trainer.evaluation.thresholds import RULE, Thresholds, fit_thresholds, store_thresholds, stored_thresholds
from trainer.evaluation.verdict import Decision, decide
from trainer.model.encoder import Encoder, embedding_conditions
from trainer.system.console import console
from trainer.system.run_files import THRESHOLDS


@dataclass(frozen=True)
class Judgement(Decision):
    """What the pairs say. Systems are "model" and, where there is one, "baseline"."""

    question: Question
    """What was asked, tables by their names."""
    thresholds: dict[str, Thresholds]
    """By system; none where neither the judged pairs nor those to fit on have both labels."""
    thresholds_from: dict[str, str]
    """By system, in words."""
    assessment: Assessment
    spearman_ceiling: float | None
    """The highest Spearman reachable against binary labels at their positive share; None for graded ones, and for
    positives alone."""
    data_fingerprint: str
    pairs: int
    forgetting: dict[str, dict[str, dict[str, Any]]] | None
    """Dim -> metric -> before, after, and the interval of their difference."""
    deployment: dict[str, Any] | None = None
    """Thresholds at the prevalence and in alerts a ticket (`worth_in_deployment`), where that was asked for."""

    def in_sample(self, system: str) -> bool:
        """Whether a system's thresholds were fitted on the judged pairs, which flatters F1, precision and recall."""
        fitted = self.thresholds.get(system)
        return fitted is not None and fitted.data_fingerprint == self.data_fingerprint


def judge(question: Question) -> Judgement:
    """Evaluate an encoder, and a baseline beside it, at thresholds frozen wherever that is possible.

    Example::

        judgement = judge(Question(model="run/model", baseline="base-model", pairs="test.json", dev="dev.json"))
        judgement.verdict                               # Verdict.BETTER, NOT_BETTER or UNCLEAR
        judgement.assessment.metrics["model"]["256"]    # {"spearman": ..., "roc_auc": ..., ...}
        judgement.assessment.intervals["difference"]["256"]["spearman"]   # [low, high] of model less baseline

    Raises:
        InputError: a file, a model or an option is bad, or the dims do not fit both models.
        NumericError: an embedding is NaN or Inf.
    """
    question.check()
    asked = replace(question, rule=question.rule or RULE)
    (table, dev, general_table), tickets = _read(question), read_ticket_texts(question)
    if question.prevalence is not None and not has_both_labels(table):
        raise InputError(f"--prevalence: {table.source} holds positives alone, and precision needs negatives too")
    metric = choose_metric(question.metric, [table], f"--metric {question.metric}")
    encoders = question.load_encoders()
    dims = common_dims(question.dims, encoders.values())
    fit_on = next((table for table in (dev, table) if table is not None and has_both_labels(table)), None)
    kept: dict[str, Thresholds | None] = {}
    if fit_on is not None:  # may be bad: before work
        kept = {system: _stored(encoder, question, dims) for system, encoder in encoders.items()}
        _require_one_way(kept, metric)
    counts = {system: count_for(encoder, tickets, dims) for system, encoder in encoders.items()}
    for_alerts = thresholds_for_alerts(asked, tickets, encoders, counts)
    rows = embed_systems(encoders, table.texts)
    thresholds, on_rows = {}, rows
    if fit_on is not None:
        if fit_on is not table:
            on_rows = embed_systems(encoders, fit_on.texts)
        for system, encoder in encoders.items():
            cosines, conditions = pair_cosines(on_rows[system], fit_on, dims), embedding_conditions(encoder)
            at = asked.rule, conditions, question.prevalence, counts[system]
            thresholds[system] = kept[system] or fit_thresholds(cosines, fit_on, dims, *at)
    general = (general_table, embed_systems(encoders, general_table.texts)) if general_table is not None else None
    kept_in = {system: Path(encoders[system].spec.name) / THRESHOLDS for system in kept if kept[system]}
    source = dev.source if dev is not None else None
    named = replace(question, pairs=table.source, dev=source, dims=dims, metric=metric)
    in_use = for_alerts if for_alerts and question.dev and not question.rule else thresholds
    judgement = conclude(named, table, rows, in_use, general, kept_in)
    just_fitted = (fit_on, on_rows) if fit_on is not None and not any(kept.values()) else None
    worth = worth_in_deployment(asked, dims, (table, rows), just_fitted, thresholds, for_alerts, counts)
    return replace(judgement, deployment=worth)


def conclude(
    question: Question,
    table: PairTable,
    rows: Mapping[str, np.ndarray],
    thresholds: Mapping[str, Thresholds],
    general: tuple[PairTable, Mapping[str, np.ndarray]] | None = None,
    kept_in: Mapping[str, Path] | None = None,
    search: Assessment | None = None,
) -> Judgement:
    """Judge systems by their embeddings; `trainer evaluate` and the end of a training run both do it here.

    Args:
        question: with the dims and the metric that are judged by; its pairs are called what they were read from.
        rows: embeddings of the table's texts, as `embedding.sides` takes them, by system: "model", and "baseline"
            where there is one.
        thresholds: by system, at these dims; none are needed where all pairs are positive.
        general: a forgetting set, and the embeddings of its texts by both systems.
        kept_in: files that thresholds were read from, by system.
        search: what a search of a corpus said of the same systems at the same dims (`assessment.assess_search`);
            without, the pairs' own texts search for each other.

    Raises:
        NumericError: an embedding is NaN or Inf.
    """
    values = {system: fitted.values for system, fitted in thresholds.items()}
    options = {"resamples": question.resamples, "seed": question.seed}
    dims = question.dims
    assessment = assess(table, rows, dims, values, search=search, fewest=question.fewest, **options)
    forgotten = None
    if general is not None:
        forgotten = forgetting(general[0], general[1]["baseline"], general[1]["model"], dims, **options)
    binary = has_both_labels(table) and set(table.score.tolist()) <= {0.0, 1.0}
    kept_in = kept_in or {}
    return Judgement(
        **vars(decide(assessment, question.metric)),
        question=question,
        thresholds=dict(thresholds),
        thresholds_from={system: _origin(thresholds[system], table, kept_in.get(system)) for system in thresholds},
        assessment=assessment,
        spearman_ceiling=spearman_ceiling(table.label) if binary else None,
        data_fingerprint=table.fingerprint(),
        pairs=len(table),
        forgetting=forgotten,
    )


def _read(question: Question) -> tuple[PairTable, PairTable | None, PairTable | None]:
    """The pairs to judge, those to fit thresholds on, and the forgetting set. Raises InputError."""
    table = question.read(question.pairs)
    dev = question.read(question.dev) if question.dev else None
    if dev is not None and not has_both_labels(dev):
        raise InputError(
            f"--dev {dev.source}: holds positives alone, and thresholds are fitted on both labels: add negative pairs "
            "there, or leave --dev out"
        )
    if question.rule and dev is None and not has_both_labels(table):
        fix = "name pairs of both labels to fit on with --dev, or leave --threshold out"
        raise InputError(f"--threshold {question.rule}: {table.source} holds positives alone: {fix}")
    if dev is not None and (shared := check_overlap(dev, table, allowed=1)):
        raise InputError(
            f"--dev {dev.source}: {shared} of its texts are also in {table.source}; remove them from one side"
        )
    general = read_general(question.forgetting) if question.forgetting else None
    return table, dev, general


def _stored(encoder: Encoder, question: Question, dims: tuple[int, ...]) -> Thresholds | None:
    """Thresholds kept beside a model, unless dev is to fit others. Raises InputError for those of another rule."""
    if question.dev:
        return None
    folder = Path(encoder.spec.name)
    kept = stored_thresholds(folder, dims, embedding_conditions(encoder))
    if kept and question.rule not in ("", kept.rule):
        fix = "name pairs to fit on with --dev, or leave --threshold out"
        raise InputError(f"--threshold {question.rule}: {folder / THRESHOLDS} keeps those by {kept.rule}: {fix}")
    return kept


def _require_one_way(kept: Mapping[str, Thresholds | None], metric: str) -> None:
    """Check that a verdict by F1 compares thresholds fitted by one rule, on the same pairs, at one share of positives:
    otherwise a model would be better than itself. Raises InputError."""
    ways = {each and (each.rule, each.data_fingerprint, each.positive_share) for each in kept.values()}
    if metric == "f1" and len(ways) > 1:
        told = (f"{each.rule} on {each.source}, {each.where}" if each else "none" for each in kept.values())
        raise InputError(
            f"--metric {metric}: it depends on thresholds, and those kept beside the two models were not fitted alike "
            f"({'; '.join(map(': '.join, zip(kept, told, strict=True)))}): go by spearman or roc_auc, or fit both anew "
            "on the same pairs with `trainer evaluate --dev FILE`"
        )


def _origin(thresholds: Thresholds, table: PairTable, file: Path | None) -> str:
    kept = f", kept in {file}" if file else ""
    in_sample = " (in-sample)" if thresholds.data_fingerprint == table.fingerprint() else ""
    return f"{thresholds.source} by {thresholds.rule}, {thresholds.where}{kept}{in_sample}"


def keep_thresholds(judgement: Judgement) -> None:
    """Store thresholds fitted on dev in the model's folder, where it is a folder that can be written to.

    Raises:
        StorageError: the file system refused.
    """
    folder = Path(judgement.question.model)
    if not judgement.question.dev or not folder.is_dir():
        return
    if not os.access(folder, os.W_OK):
        console.print(f"{folder} is read-only: thresholds are not kept there", markup=False)
        return
    thresholds, origin = judgement.thresholds["model"], judgement.thresholds_from["model"]
    path = store_thresholds(folder, thresholds)
    console.print(
        f"Thresholds kept in {path}, at the dims {', '.join(thresholds.values)} alone: of {origin}", markup=False
    )


def judgement_record(judgement: Judgement) -> dict[str, Any]:
    """What --json writes: metrics as "model" and "baseline", then everything else."""
    record = asdict(judgement)
    assessment = record.pop("assessment")
    metrics = assessment.pop("metrics")
    return {"model": metrics["model"], "baseline": metrics.get("baseline"), **record, **assessment}
