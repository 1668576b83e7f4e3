"""How far to go from what training began with towards what it came to, chosen on dev or by search of the corpus.

    weights(alpha) = start + alpha * (trained - start)

Between the two lie models that keep more of what the first one knew (Wortsman et al. 2022, "Robust fine-tuning of
zero-shot models", arXiv:2109.01903). With fresh LoRA, one factor of the low-rank product moves and the other stays, so
that the product, which is the update, is scaled by alpha. With an adapter that is continued both move, each on a
line of its own, so that every point is an adapter of the same rank. At alpha 0 the model is the one that training
began with, so what is chosen cannot lose to it on the pairs it was chosen on. Beyond 1 (`eval.largest_strength`) the
update is exaggerated: measured, that gained dev 0.001 and cost general similarity 0.002, so it is not the default.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from trainer.evaluation.metric_choice import on_in_words
from trainer.evaluation.pair_metrics import spearman
from trainer.evaluation.scoring import PairSet, pair_cosines
from trainer.model.embedding import embed
from trainer.model.lora import adapters_merged
from trainer.system import distributed as ranks
from trainer.system.console import console, progress
from trainer.system.files import write_json
from trainer.system.run_files import STRENGTH
from trainer.training.setup import Run

FULL = 1.0
COARSE = 5  # tenths between the strengths that are measured first
FINER = (2, 1)  # tenths from the best so far to the ones measured then
FINE_POINTS = 6  # that are measured after the coarse ones, at most where there is one peak
LIMITING_ROWS = 1000  # of a larger forgetting set so many are taken where a limit goes by them
FORGETTING_ROWS = 250  # and so many where they are only shown: they are embedded at each strength

Point = dict[str, Any]
"""One strength of the curve: "alpha", dim -> "metric" on what the run is judged on, and dim -> Spearman on the
"forgetting" set where there is one."""


def strengths(largest: float) -> tuple[float, ...]:
    """0, 0.1, ... up to the largest."""
    return tuple(tenths / 10 for tenths in range(int(10 * largest + 1e-9) + 1))


def most_points(largest: float) -> int:
    """How many strengths are measured at most, where the metric has one peak over them."""
    grid = strengths(largest)
    return min(len(grid), len(coarse_places(grid)) + FINE_POINTS)


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
            parameter.copy_(torch.lerp(start[name].to(parameter.device), end, alpha) if name in start else end)


def choose_strength(run: Run, start: Mapping[str, Tensor], trained: Mapping[str, Tensor]) -> float:
    """The strength that dev chooses; the curve goes to strength.json and in a few lines to a person. Collective.

    Points that an interrupted run left there are taken where everything they depend on is the same.
    Leaves the run's parameters at some strength of the curve.
    """
    metric, largest = run.config.eval.metric, str(max(run.config.loss.dims))
    limit = run.config.eval.forgetting_limit
    general = forgetting_sample(run)
    record: dict[str, Any] = {
        "metric": metric,
        "judged_on": run.judged_on,
        "forgetting_limit": limit,
        "fingerprint": fingerprint(run, start, trained, general),
    }
    measured = ("metric",) if general is None else ("metric", "forgetting")
    kept = kept_points(run.folder / STRENGTH, record["fingerprint"], measured, run.config.loss.dims)
    points = ranks.share_object(kept if run.is_main else {})
    grid = strengths(run.config.eval.largest_strength)
    expected = most_points(run.config.eval.largest_strength)
    with progress("Choosing the strength", expected, min(len(points), expected)) as advance:

        def measure(alpha: float) -> Point:
            if alpha not in points:
                set_strength(run.parameters, start, trained, alpha)
                points[alpha] = measured_point(run, general, alpha)
                if run.is_main:
                    write_json(run.folder / STRENGTH, record | {"curve": list(points.values())})
                advance(note=f"strength {alpha:.1f}")
            return points[alpha]

        curve = search(grid, measure, limit)
    alpha, excluded = best_strength(curve, limit), ruled_out(curve, limit, run.judged_on)
    why = explain_choice(curve, alpha, excluded, run.judged_on)
    if run.is_main:
        record |= {"chosen": alpha, "why": why, "ruled_out": excluded, "curve": curve}
        write_json(run.folder / STRENGTH, record)
    values = {point["alpha"]: point["metric"][largest] for point in curve}
    shown = "  ".join(f"{at:.1f}: {value:.4f}" for at, value in values.items())
    console.print(f"Strength of the update, {run.judged_on} {metric} at {largest} dims: {shown}")
    console.print(f"Chosen: {alpha:.1f} ({values[alpha]:.4f}; {values[0.0]:.4f} untouched, {values[FULL]:.4f} in full)")
    if why:
        console.print(why, markup=False)
    return alpha


def forgetting_sample(run: Run) -> PairSet | None:
    """The forgetting set, or seeded random pairs of a larger one; says so. None where there is none."""
    most = LIMITING_ROWS if run.config.eval.forgetting_limit else FORGETTING_ROWS
    if run.general is None or len(run.general.table) <= most:
        return run.general
    table = run.general.table
    chosen = np.zeros(len(table), dtype=bool)
    chosen[np.random.default_rng(run.config.train.seed).permutation(len(table))[:most]] = True
    console.print(
        f"Choosing the strength on {most:,} random pairs of the {len(table):,} of {table.source} (by "
        "train.seed); the final judgement takes all",
        markup=False,
    )
    return PairSet.build(table.take(chosen), run.encoder)


def fingerprint(run: Run, start: Mapping[str, Tensor], trained: Mapping[str, Tensor], general: PairSet | None) -> str:
    """SHA-256 of everything that a point of the curve depends on, but for its alpha."""
    digest = hashlib.sha256()
    for values in (start, trained):
        for name, tensor in sorted(values.items()):
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    parts = {
        "data": run.dev.table.fingerprint(),
        "corpus": run.fingerprints.get("corpus"),
        "tokens": run.dev.tokens.fingerprint(),
        "forgetting": general.table.fingerprint() if general is not None else None,
        "base": run.fingerprints["base_weights"],
        "dims": run.config.loss.dims,
        "metric": run.config.eval.metric,
        "lora": asdict(run.config.lora),
        "conditions": run.conditions(),
    }
    digest.update(json.dumps(parts, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def kept_points(path: Path, wanted: str, measured: Sequence[str], dims: Sequence[int]) -> dict[float, Point]:
    """Alpha -> point of a strength.json that has the wanted fingerprint; {} of any other, or where there is none.

    Args:
        measured: what each point has beside its alpha, at each of the dims.
    """
    try:
        record = json.loads(path.read_bytes())
        if record["fingerprint"] == wanted:
            return {float(point["alpha"]): point_read(point, measured, dims) for point in record["curve"]}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError):
        pass  # nothing there, or of another version: all points are measured
    return {}


def point_read(point: Mapping[str, Any], measured: Sequence[str], dims: Sequence[int]) -> Point:
    """A point as it was before JSON, which has no NaN. Raises KeyError where it lacks a dim."""
    read: Point = {"alpha": float(point["alpha"])}
    for key in measured:
        values = {str(dim): point[key][str(dim)] for dim in dims}
        read[key] = {dim: np.nan if value is None else float(value) for dim, value in values.items()}
    return read


def measured_point(run: Run, general: PairSet | None, alpha: float) -> Point:
    """The metric, and Spearman on the forgetting set, of the run's encoder as it stands, at every dim, in fp32.

    Collective: the ranks share the texts out, and all have the same point.
    """
    dims, metric = run.config.loss.dims, run.config.eval.metric
    with adapters_merged(run.encoder) as encoder:
        metrics = run.judge_on_dev(nullcontext)
        point: Point = {"alpha": alpha, "metric": {dim: values[metric] for dim, values in metrics.items()}}
        if general is not None:
            cosines = pair_cosines(embed(encoder, general.tokens), general.table, dims)
            forgetting = (spearman(scores, general.table.score) for scores in cosines)
            point["forgetting"] = ranks.share_object(dict(zip(map(str, dims), forgetting, strict=True)))
    return point


def coarse_places(grid: Sequence[float]) -> list[int]:
    """Places in the grid that are measured first: COARSE apart, and the last."""
    return sorted({*range(0, len(grid), COARSE), len(grid) - 1})


def search(grid: Sequence[float], measure: Callable[[float], Point], forgetting_limit: float = 0.0) -> list[Point]:
    """Points of the grid, coarse to fine, in order of alpha: COARSE apart, then nearer and nearer to the best of them.

    Where the metric rises to one peak over the strengths, and what is ruled out lies beyond some strength, the best of
    these points is the best of the grid.
    """
    points = {place: measure(grid[place]) for place in coarse_places(grid)}
    for stride in FINER:
        while True:
            curve = [points[place] for place in sorted(points)]
            best = grid.index(best_strength(curve, forgetting_limit))
            beside = [place for place in (best - stride, best + stride) if 0 <= place < len(grid)]
            if all(place in points for place in beside):
                break
            points |= {place: measure(grid[place]) for place in beside if place not in points}
    return [points[place] for place in sorted(points)]


def explain_choice(curve: Sequence[Point], alpha: float, excluded: Mapping[float, str], on: str = "dev") -> str:
    """Why the chosen strength is not the one with the highest metric, in a sentence; "" where it is.

    At alpha 0 it also says what that means. `on` is what the metric was measured on (`Run.judged_on`).
    """
    largest = max(curve[0]["metric"], key=int)
    values = {point["alpha"]: point["metric"][largest] for point in curve}
    higher = [at for at in excluded if values[at] > values[alpha]]
    sentences = []
    if alpha == 0:
        where = on_in_words(on)
        sentences.append(
            "The export is the model that training began with: no other strength is both allowed and better on "
            f"{where}."
        )
    if higher:
        highest = max(higher, key=lambda at: values[at])
        sentences.append(f"{highest:.1f} has {values[highest]:.4f}, but is ruled out: it {excluded[highest]}.")
    return " ".join(sentences)


def ruled_out(curve: Sequence[Point], forgetting_limit: float = 0.0, on: str = "dev") -> dict[float, str]:
    """Alphas that may not be chosen, each with why, as it follows "it" in a sentence; never alpha 0, the first point.

    A strength is ruled out where the metric loses to that of the start at any dim, or where Spearman on the
    forgetting set falls by more than the limit at any dim: every dim is exported, so each has to be fit for use. NaN,
    an undefined metric, loses to any number and is lost to by any.

    Args:
        forgetting_limit: 0 is no limit. Otherwise every point has "forgetting".
        on: what the metric was measured on (`Run.judged_on`), for the words of a person.
    """

    def falls(point: Point, kind: str, limit: float = 0.0) -> tuple[str, ...]:
        values = curve[0][kind].items()
        return tuple(dim for dim, value in values if not (point[kind][dim] >= value - limit or np.isnan(value)))

    reasons = {}
    for point in curve[1:]:
        if dims := falls(point, "metric"):
            why = f"loses to the model that training began with on {on_in_words(on)}"
        elif forgetting_limit and (dims := falls(point, "forgetting", forgetting_limit)):
            why = f"forgets more than {forgetting_limit:g}"
        else:
            continue
        reasons[point["alpha"]] = f"{why} at {', '.join(dims)} dims"
    return reasons


def best_strength(curve: Sequence[Point], forgetting_limit: float = 0.0) -> float:
    """The alpha whose metric is the highest at the largest dim, of those that are not ruled out.

    Of equal ones the lowest. An undefined metric counts as the lowest.
    """
    excluded = ruled_out(curve, forgetting_limit)
    largest = max(curve[0]["metric"], key=int)

    def value(point: Point) -> float:
        return -np.inf if np.isnan(point["metric"][largest]) else float(point["metric"][largest])

    return float(max((point for point in curve if point["alpha"] not in excluded), key=value)["alpha"])
