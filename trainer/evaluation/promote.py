"""`trainer promote`: whether a model may take the place of the deployed one, and a line of record of each decision.

The verdict is that of `trainer evaluate`, with the deployed model as the baseline: by search where there is a corpus,
else by pairs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainer import __version__
from trainer.data.split import check_overlap
from trainer.errors import InputError
from trainer.evaluation.assessment import CHANGE, GUARDED
from trainer.evaluation.judge import Judgement, judge
from trainer.evaluation.question import Question, SearchQuestion
from trainer.evaluation.search_judge import SearchJudgement, judge_search, read_searched
from trainer.evaluation.trained_pairs import data_of_chain, picked_by
from trainer.evaluation.verdict import Verdict, worse_by
from trainer.model.encoder import embedding_conditions
from trainer.system.files import append_line, json_ready, seal


@dataclass(frozen=True)
class Promotion:
    """The decision on a candidate."""

    promoted: bool
    reason: str
    """One sentence."""
    judgement: Judgement | SearchJudgement
    notes: list[str]
    """A sentence for each of the two whose step or strength was picked by what it is judged by."""


def promote(question: Question | SearchQuestion, margin: float | None = None, allow_overlap: float = 0.0) -> Promotion:
    """Judge a candidate (the question's model) beside the deployed model (its baseline).

    Args:
        margin: how much worse the candidate may be, by the metric and by what must not get worse; None: it has to be
            BETTER.
        allow_overlap: the share of the judged pairs that may hold a text that one of the two was trained on.

    Raises:
        InputError, NumericError: as the judgement does, or more pairs than that hold such a text.
    """
    if margin is not None and not 0 <= margin < 1:
        raise InputError(f"--margin {margin:g}: write how much worse it may be, from 0 to below 1, as in 0.01")
    if not 0 <= allow_overlap <= 1:
        raise InputError(f"--allow-overlap {allow_overlap:g}: write a share of the judged pairs, from 0 to 1")
    judgement, notes = _judge_unseen(question, allow_overlap)
    assert judgement.verdict is not None  # there is a baseline
    if judgement.verdict == Verdict.BETTER or margin is None:
        return Promotion(judgement.verdict == Verdict.BETTER, judgement.sentences[0], judgement, notes)
    metric, dims = judgement.question.metric, ", ".join(judgement.assessment.metrics["model"])
    if losses := worse_by(judgement.assessment, metric, margin):
        return Promotion(False, f"may be worse by more than {margin:g}: {'; '.join(losses)}", judgement, notes)
    names = " and ".join(dict.fromkeys((metric, *GUARDED)))
    return Promotion(True, f"{names} are surely not worse by more than {margin:g} at {dims} dims", judgement, notes)


def _judge_unseen(
    question: Question | SearchQuestion, allow_overlap: float
) -> tuple[Judgement | SearchJudgement, list[str]]:
    """Judge by what neither model was trained on, as far as their runs tell, and say by what they were picked. In a
    search, texts that one was trained on are found and do not ask."""
    question.check()
    names = (question.model, str(question.baseline))
    known = {name: chain for name in names if (chain := data_of_chain(name))}
    trained_on = [data for chain in known.values() for data in chain]

    def notes(judged: Sequence[str]) -> list[str]:
        return [note for name, (own, *_) in known.items() if (note := picked_by(name, own, judged))]

    if isinstance(question, SearchQuestion):
        corpus = read_searched(question, {text for data in trained_on for text in data.train.texts})
        return judge_search(question, corpus), notes([corpus.texts[query] for query in corpus.queries])
    test = question.read(question.pairs)
    for data in trained_on:
        check_overlap(data.train, test, allow_overlap)
    return judge(replace(question, pairs=test)), notes(test.texts)


def record_of(promotion: Promotion, margin: float | None) -> dict[str, Any]:
    """What is written down of a decision: when, who, on what, the figures that count, and why."""
    question, assessment = promotion.judgement.question, promotion.judgement.assessment
    encoders = {"candidate": "model", "deployed": "baseline"}
    models = {
        system: {"width": encoder.width, **asdict(embedding_conditions(encoder))}
        for system, encoder in question.load_encoders().items()
    }
    names = {"model": question.model, "baseline": question.baseline}
    figures = {
        dim: {
            name: {
                **{role: assessment.metrics[system][dim][name] for role, system in encoders.items()},
                CHANGE: assessment.intervals[CHANGE][dim][name],
            }
            for name in dict.fromkeys((question.metric, *GUARDED))
        }
        for dim in assessment.metrics["model"]
    }
    corpus = question.corpus if isinstance(question, SearchQuestion) else None
    files = {"test": question.pairs or question.tickets, "corpus": corpus}
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "promoted": promotion.promoted,
        "reason": promotion.reason,
        "notes": promotion.notes,
        "verdict": promotion.judgement.verdict,
        **{role: {"name": names[system], **models[system]} for role, system in encoders.items()},
        **{name: _fingerprint(str(file)) for name, file in files.items() if file},
        "metric": question.metric,
        "margin": margin,
        "figures": figures,
        "queries": assessment.queries,
        "texts": assessment.texts,
        "trainer": __version__,
    }


def _fingerprint(file: str) -> dict[str, Any]:
    """A file by name and content; a folder of a data set by name."""
    return {"file": file} | (seal(Path(file)) if Path(file).is_file() else {})


def keep_record(path: Path, record: dict[str, Any]) -> None:
    """Add a decision to a record, a JSON object a line. Raises StorageError."""
    append_line(path, json.dumps(json_ready(record), ensure_ascii=False))
