"""What an exported form of a model lost, on held-out pairs, by the code of `trainer evaluate`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rich.markup import escape
from rich.table import Table

from trainer.config_file import load_config
from trainer.data.pairs import PairTable, read_pairs
from trainer.data.readers import Reading
from trainer.data.run_data import load_data
from trainer.data.split import has_both_labels, require_positives
from trainer.errors import InputError, LostTooMuch
from trainer.evaluation.assessment import CHANGE
from trainer.evaluation.judge import conclude
from trainer.evaluation.metric_choice import AUTO, TITLES, choose_metric
from trainer.evaluation.question import Question, embed_systems
from trainer.evaluation.scoring import pair_cosines
from trainer.evaluation.thresholds import RULE, fit_thresholds
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


class Asked(Protocol):
    """What is read of an `export.ExportRequest`."""

    @property
    def model(self) -> str: ...
    @property
    def pairs(self) -> str: ...
    @property
    def label_scale(self) -> float: ...
    @property
    def positive_threshold(self) -> float | None: ...
    @property
    def reading(self) -> Reading | None: ...


def pairs_to_judge(asked: Asked, dim: int) -> PairsToJudge | None:
    """The pairs that were named, else the dev set of the model's run; None, which is said, where there are none.

    Args:
        dim: of the export; it and the smaller ones that the run was trained for are judged.

    Raises:
        InputError: the pairs that were named are bad.
    """
    config_file = Path(asked.model).resolve().parent / CONFIG
    of_run = Path(asked.model).resolve().name in (MODEL, ADAPTER) and config_file.is_file()
    config = load_config(config_file) if of_run else None
    metric, trained = (config.eval.metric, config.loss.dims) if config else (AUTO, ())
    dims = tuple(sorted({dim, *(each for each in trained if each < dim)}, reverse=True))
    if asked.pairs:
        options: dict[str, Any] = {"label_scale": asked.label_scale, "positive_threshold": asked.positive_threshold}
        table = read_pairs(asked.pairs, reading=asked.reading, **options)
        require_positives(table)
    elif config:
        try:
            table = load_data(config.data, config.train.seed).dev
        except InputError as error:
            console.print(f"Not judged: the dev set of the run cannot be read ({error}); name --pairs", markup=False)
            return None
    else:
        console.print("Not judged: the model is in no folder of a run; name held-out pairs as --pairs", markup=False)
        return None
    return PairsToJudge(table, choose_metric(metric, [table], f"eval.metric = {metric}"), dims)


def judge_export(encoder: Encoder, folder: Path, pairs: PairsToJudge, allowed: float) -> dict[str, Any]:
    """Judge an exported folder beside the model that it was made of, show the figures and return them.

    Raises:
        LostTooMuch: more than `allowed` of the metric is lost at one of the dims.
        NumericError: an embedding is NaN or Inf.
    """
    table, dims = pairs.table, pairs.dims
    encoders = {"model": load_encoder(str(folder)), "baseline": encoder}
    rows = embed_systems(encoders, table.texts)
    thresholds = {}
    if has_both_labels(table):
        for system, each in encoders.items():
            cosines = pair_cosines(rows[system], table, dims)
            thresholds[system] = fit_thresholds(cosines, table, dims, RULE, embedding_conditions(each))
    question = Question(
        model=str(folder), pairs=table.source, baseline=encoder.spec.name, dims=dims, metric=pairs.metric
    )
    assessment = conclude(question, table, rows, thresholds).assessment
    by_dim = {
        str(dim): {
            "model": assessment.metrics["baseline"][str(dim)][pairs.metric],
            "exported": assessment.metrics["model"][str(dim)][pairs.metric],
            "interval": assessment.intervals[CHANGE][str(dim)][pairs.metric],
        }
        for dim in dims
    }
    _print(by_dim, pairs)
    _require_kept(encoder.spec.name, by_dim, pairs.metric, allowed)
    return {"pairs": table.source, "count": len(table), "metric": pairs.metric, "allowed": allowed, "dims": by_dim}


def _require_kept(name: str, by_dim: Mapping[str, Mapping[str, Any]], metric: str, allowed: float) -> None:
    lost = {dim: figures["model"] - figures["exported"] for dim, figures in by_dim.items()}
    if too_much := [f"{loss:.4f} at {dim} dims" for dim, loss in lost.items() if not loss <= allowed]:
        raise LostTooMuch(
            f"model {name}: its export loses {', '.join(too_much)} of {metric}, more than --allow-loss {allowed:g}; "
            "nothing is exported: leave --int8 out where it was asked for, or allow more"
        )


def _print(by_dim: Mapping[str, Mapping[str, Any]], pairs: PairsToJudge) -> None:
    title = TITLES.get(pairs.metric, pairs.metric)
    table = Table(title=escape(f"{len(pairs.table)} pairs of {pairs.table.source}"), title_justify="left")
    for heading in ("dim", f"{title}: model -> exported (difference)", "95 % of the difference"):
        table.add_column(heading, justify="right")
    for dim, figures in by_dim.items():
        before, after, (low, high) = figures["model"], figures["exported"], figures["interval"]
        table.add_row(dim, f"{before:.4f} -> {after:.4f} ({after - before:+.4f})", f"{low:+.4f} to {high:+.4f}")
    console.print(table)
