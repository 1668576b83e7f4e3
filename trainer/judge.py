"""`trainer evaluate`: one encoder, or two side by side, on held-out pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from rich.table import Table

from trainer.console import console
from trainer.encoder import Encoder, load_encoder
from trainer.errors import InputError
from trainer.evaluation import Metrics, PairSet, evaluate, evaluate_at, verdict
from trainer.metrics import spearman_ceiling
from trainer.pairs import PairTable, check_overlap, read_pairs, require_both_classes

SHOWN = ("spearman", "pearson", "roc_auc", "average_precision", "f1", "precision", "recall", "false_positive_rate")


@dataclass(frozen=True)
class Judgement:
    """Metrics of a model, and of a baseline beside it."""

    thresholds_from: str
    model: Metrics
    baseline: Metrics | None
    verdict: str | None
    spearman_ceiling: float | None  # the highest Spearman reachable against binary labels at their positive share


def judge(
    model: str,
    pairs: str,
    *,
    dev: str | None = None,
    baseline: str | None = None,
    dims: tuple[int, ...] = (),
    label_scale: float = 1.0,
    positive_threshold: float | None = None,
) -> Judgement:
    """Evaluate an encoder; thresholds are fitted on `dev` and frozen, or on the pairs themselves, which is said.

    Args:
        dims: the model's full width by default.

    Raises:
        InputError: a file or a model is bad, or the two models differ in width.
    """

    def read(path: str) -> PairTable:
        table = read_pairs(path, label_scale=label_scale, positive_threshold=positive_threshold)
        require_both_classes(table)
        return table

    table, fitting = read(pairs), read(dev) if dev else None
    if fitting is not None and (shared := check_overlap(fitting, table, allow=True)):
        raise InputError(f"--dev {dev}: {shared} of its texts are also in {pairs}; remove them from one side")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoders = [load_encoder(name).to(device) for name in (model, baseline) if name]
    if len({encoder.width for encoder in encoders}) > 1:
        widths = ", ".join(f"{encoder.spec.name} is {encoder.width} wide" for encoder in encoders)
        raise InputError(f"{widths}: they cannot be compared dim by dim; use a baseline of the same width")
    dims = dims or (encoders[0].width,)
    if max(dims) > encoders[0].width:
        raise InputError(f"--dims {max(dims)}: {model} is {encoders[0].width} wide; use dims up to that")
    found = [_judge_one(encoder, table, fitting, dims) for encoder in encoders]
    second = found[1] if baseline else None
    return Judgement(
        thresholds_from=fitting.source if fitting else f"{table.source} (in-sample)",
        model=found[0],
        baseline=second,
        verdict=verdict(second, found[0], "spearman") if second else None,
        spearman_ceiling=spearman_ceiling(table.label) if set(table.score.tolist()) <= {0.0, 1.0} else None,
    )


def _judge_one(encoder: Encoder, table: PairTable, fitting: PairTable | None, dims: tuple[int, ...]) -> Metrics:
    pairs = PairSet.build(table, encoder)
    if fitting is None:
        return evaluate(encoder, pairs, dims)
    on_dev = evaluate(encoder, PairSet.build(fitting, encoder), dims)
    return evaluate_at(encoder, pairs, {dim: values["threshold"] for dim, values in on_dev.items()})


def print_judgement(judgement: Judgement) -> None:
    """Show the metrics as a table a dim, baseline beside the model."""
    console.print(f"Thresholds fitted on {judgement.thresholds_from}", markup=False)
    for dim, values in judgement.model.items():
        table = Table(title=f"{dim} dims", title_justify="left")
        table.add_column("metric")
        table.add_column("model", justify="right")
        if judgement.baseline:
            table.add_column("baseline", justify="right")
            table.add_column("difference", justify="right")
        for key in SHOWN:
            cells = [key, f"{values[key]:.4f}"]
            if judgement.baseline:
                before = judgement.baseline[dim][key]
                cells += [f"{before:.4f}", f"{values[key] - before:+.4f}"]
            table.add_row(*cells)
        console.print(table)
    if judgement.spearman_ceiling:
        console.print(f"Highest Spearman reachable with these binary labels: {judgement.spearman_ceiling:.4f}")
    if judgement.verdict:
        console.print(judgement.verdict)
