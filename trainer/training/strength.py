"""How far to go from the untouched model towards the trained one, and beyond it, chosen on dev.

    weights(alpha) = start + alpha * (trained - start)

Between the two lie models that keep more of what the first one knew (Wortsman et al. 2022, "Robust fine-tuning of
zero-shot models", arXiv:2109.01903). With LoRA, one factor of the low-rank product moves and the other stays, so that
the product, which is the update, is scaled by alpha. At alpha 0 the model is the one that training began with, so what
is chosen cannot lose to it on the pairs it was chosen on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

ALPHAS = tuple(tenths / 10 for tenths in range(16))  # 0, 0.1 .. 1.5
FULL = 1.0


Point = dict[str, Any]
"""One strength of the curve: alpha, and dim -> metric on "dev" (and on "forgetting")."""


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


def ruled_out(curve: Sequence[Point], forgetting_limit: float = 0.0) -> dict[float, str]:
    """Alphas that may not be chosen, each with why; never alpha 0, the first point.

    A strength is ruled out where dev loses to the untouched model at any dim, or where Spearman on the forgetting set
    falls by more than the limit at any dim: every dim is exported, so each has to be fit for use. NaN, an undefined
    metric, loses to any number and is lost to by any.

    Args:
        forgetting_limit: 0 is no limit. Otherwise every point has "forgetting".
    """

    def falls(point: Point, on: str, limit: float = 0.0) -> list[str]:
        values = curve[0][on].items()
        return [dim for dim, value in values if not (point[on][dim] >= value - limit or np.isnan(value))]

    reasons = {}
    for point in curve[1:]:
        if dims := falls(point, "dev"):
            reasons[point["alpha"]] = f"loses to the untouched model on dev at {', '.join(dims)} dims"
        elif forgetting_limit and (dims := falls(point, "forgetting", forgetting_limit)):
            reasons[point["alpha"]] = f"forgets more than {forgetting_limit:g} at {', '.join(dims)} dims"
    return reasons


def best_strength(curve: Sequence[Point], forgetting_limit: float = 0.0) -> float:
    """The alpha whose dev metric is the highest at the largest dim, of those that are not ruled out.

    Of equal ones the lowest. An undefined metric counts as the lowest.
    """
    out = ruled_out(curve, forgetting_limit)
    largest = max(curve[0]["dev"], key=int)

    def value(point: Point) -> float:
        return -np.inf if np.isnan(point["dev"][largest]) else float(point["dev"][largest])

    return float(max((point for point in curve if point["alpha"] not in out), key=value)["alpha"])
