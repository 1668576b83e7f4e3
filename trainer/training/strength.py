"""How far to go from the untouched model towards the trained one, chosen on dev.

    weights(alpha) = start + alpha * (trained - start)

Between the two lie models that keep more of what the first one knew (Wortsman et al. 2022, "Robust fine-tuning of
zero-shot models", arXiv:2109.01903). With LoRA, one factor of the low-rank product moves and the other stays, so that
the product, which is the update, is scaled by alpha. At alpha 0 the model is the one that training began with, so what
is chosen cannot lose to it on the pairs it was chosen on. Beyond 1 (`eval.largest_strength`) the update is exaggerated:
measured, that gained dev 0.001 and cost general similarity 0.002, so it is not the default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from trainer.evaluation.pair_metrics import spearman
from trainer.evaluation.scoring import evaluate, pair_cosines
from trainer.model.embedding import embed
from trainer.model.lora import adapters_merged
from trainer.system.console import console, progress
from trainer.system.files import write_json
from trainer.system.run_files import STRENGTH
from trainer.training.setup import Run

FULL = 1.0

Point = dict[str, Any]
"""One strength of the curve: alpha, and dim -> metric on "dev" (and on "forgetting")."""


class Cause(Enum):
    """Why a strength may not be chosen."""

    LOSES = "loses to the untouched model on dev"
    FORGETS = "forgets more than the limit"


@dataclass(frozen=True)
class RuledOut:
    """Why a strength may not be chosen, and the dims at which that is so."""

    cause: Cause
    dims: tuple[str, ...]
    limit: float
    """Of forgetting."""

    def __str__(self) -> str:
        what = self.cause.value if self.cause is Cause.LOSES else f"forgets more than {self.limit:g}"
        return f"{what} at {', '.join(self.dims)} dims"


def strengths(largest: float) -> tuple[float, ...]:
    """0, 0.1, ... up to the largest."""
    return tuple(tenths / 10 for tenths in range(int(10 * largest + 1e-9) + 1))


def set_strength(
    parameters: Mapping[str, Parameter], start: Mapping[str, Tensor], trained: Mapping[str, Tensor], alpha: float
) -> None:
    """Put trained parameters where the strength wants them, in place. Exact at alpha 0 and 1.

    Args:
        parameters: what trains, by name.
        start: values that training began with; a parameter that is not there keeps its trained value.
        trained: values that it ended with.
    """
    with torch.no_grad():
        for name, parameter in parameters.items():
            end = trained[name].to(parameter.device)
            fixed = name not in start or ".lora_A." in name
            parameter.copy_(end if fixed else torch.lerp(start[name].to(parameter.device), end, alpha))


def choose_strength(run: Run, start: Mapping[str, Tensor], trained: Mapping[str, Tensor]) -> float:
    """The strength that dev chooses; the curve goes to strength.json and in one line to a person. Collective.

    Leaves the run's parameters at some strength of the curve.
    """
    metric, largest = run.config.eval.metric, str(max(run.config.loss.dims))
    limit = run.config.eval.forgetting_limit
    curve = strength_curve(run, start, trained)
    alpha, excluded = best_strength(curve, limit), ruled_out(curve, limit)
    if run.is_main:
        reasons = {at: str(reason) for at, reason in excluded.items()}
        record = {"chosen": alpha, "metric": metric, "forgetting_limit": limit, "ruled_out": reasons, "curve": curve}
        write_json(run.folder / STRENGTH, record)
    values = {point["alpha"]: point["dev"][largest] for point in curve}
    shown = "  ".join(f"{at:.1f}: {value:.4f}" for at, value in values.items())
    console.print(f"Strength of the update, dev {metric} at {largest} dims: {shown}")
    if any(reason.cause is Cause.FORGETS for reason in excluded.values()):
        allowed = ", ".join(f"{at:.1f}" for at in values if at not in excluded)
        console.print(f"Strengths within eval.forgetting_limit = {limit:g}, and no loss at any dim of dev: {allowed}")
    console.print(f"Chosen: {alpha:.1f} ({values[alpha]:.4f}; {values[0.0]:.4f} untouched, {values[FULL]:.4f} in full)")
    return alpha


def strength_curve(run: Run, start: Mapping[str, Tensor], trained: Mapping[str, Tensor]) -> list[Point]:
    """The metric on dev, and Spearman on the forgetting set, of the run's encoder at every strength and dim, in fp32.

    Collective: the ranks share the texts out, and all have the same curve.
    """
    dims, metric = run.config.loss.dims, run.config.eval.metric
    alphas, curve = strengths(run.config.eval.largest_strength), []
    with progress("Choosing the strength", len(alphas)) as advance:
        for alpha in alphas:
            set_strength(run.parameters, start, trained, alpha)
            with adapters_merged(run.encoder) as encoder:
                metrics = evaluate(encoder, run.dev, dims)
                point: Point = {"alpha": alpha, "dev": {dim: values[metric] for dim, values in metrics.items()}}
                if run.general is not None:
                    table = run.general.table
                    cosines = pair_cosines(embed(encoder, run.general.tokens), table, dims)
                    forgetting = (spearman(scores, table.score) for scores in cosines)
                    point["forgetting"] = dict(zip(map(str, dims), forgetting, strict=True))
            curve.append(point)
            advance(note=f"alpha {alpha:.1f}")
    return curve


def ruled_out(curve: Sequence[Point], forgetting_limit: float = 0.0) -> dict[float, RuledOut]:
    """Alphas that may not be chosen, each with why; never alpha 0, the first point.

    A strength is ruled out where dev loses to the untouched model at any dim, or where Spearman on the forgetting set
    falls by more than the limit at any dim: every dim is exported, so each has to be fit for use. NaN, an undefined
    metric, loses to any number and is lost to by any.

    Args:
        forgetting_limit: 0 is no limit. Otherwise every point has "forgetting".
    """

    def falls(point: Point, on: str, limit: float = 0.0) -> tuple[str, ...]:
        values = curve[0][on].items()
        return tuple(dim for dim, value in values if not (point[on][dim] >= value - limit or np.isnan(value)))

    reasons = {}
    for point in curve[1:]:
        if dims := falls(point, "dev"):
            reasons[point["alpha"]] = RuledOut(Cause.LOSES, dims, forgetting_limit)
        elif forgetting_limit and (dims := falls(point, "forgetting", forgetting_limit)):
            reasons[point["alpha"]] = RuledOut(Cause.FORGETS, dims, forgetting_limit)
    return reasons


def best_strength(curve: Sequence[Point], forgetting_limit: float = 0.0) -> float:
    """The alpha whose dev metric is the highest at the largest dim, of those that are not ruled out.

    Of equal ones the lowest. An undefined metric counts as the lowest.
    """
    excluded = ruled_out(curve, forgetting_limit)
    largest = max(curve[0]["dev"], key=int)

    def value(point: Point) -> float:
        return -np.inf if np.isnan(point["dev"][largest]) else float(point["dev"][largest])

    return float(max((point for point in curve if point["alpha"] not in excluded), key=value)["alpha"])
