"""How far to go: the line between two sets of weights, and the choice on it."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import Parameter

from trainer.training.strength import Cause, best_strength, ruled_out, set_strength, strengths


def curve_of(**values: list[float]) -> list[dict]:
    """A curve from values by dim ("d64=[...]")."""
    count = len(next(iter(values.values())))
    return [{"alpha": i / 10, "dev": {dim[1:]: row[i] for dim, row in values.items()}} for i in range(count)]


def test_both_ends_are_exact_and_the_way_is_straight() -> None:
    generator = torch.Generator().manual_seed(0)
    start, trained = ({"w": torch.randn(50, generator=generator)} for _ in range(2))
    parameters = {"w": Parameter(torch.zeros(50))}
    for alpha in strengths(2.0):
        set_strength(parameters, start, trained, alpha)
        expected = start["w"].double() + alpha * (trained["w"].double() - start["w"].double())
        torch.testing.assert_close(parameters["w"].detach().double(), expected, rtol=0, atol=1e-6)
        if alpha in (0.0, 1.0):
            assert torch.equal(parameters["w"], (trained if alpha else start)["w"])


def test_strengths_are_tenths_from_the_untouched_model_to_the_largest() -> None:
    assert strengths(1.0) == (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    assert strengths(1.25)[-1] == 1.2 and strengths(2.0)[-1] == 2.0 and len(strengths(1.3)) == 14


def test_one_factor_of_an_adapter_moves_and_what_has_no_start_stays() -> None:
    names = ("x.lora_A.default.weight", "x.lora_B.default.weight", "log_scale")
    parameters = {name: Parameter(torch.zeros(2)) for name in names}
    trained = {name: torch.full((2,), 4.0) for name in names}
    set_strength(parameters, {name: torch.zeros(2) for name in names[:2]}, trained, 0.5)
    assert [parameter[0].item() for parameter in parameters.values()] == [4.0, 2.0, 4.0]


@pytest.mark.parametrize(
    ("values", "chosen"),
    [
        ({"d64": [0.5, 0.6, 0.7], "d8": [0.4, 0.5, 0.4]}, 0.2),  # equal to the start is no loss
        ({"d64": [0.5, 0.6, 0.7], "d8": [0.4, 0.5, 0.3]}, 0.1),  # the highest of all loses at 8 dims
        ({"d64": [0.5, 0.4, 0.3], "d8": [0.4, 0.9, 0.9]}, 0.0),
        ({"d64": [0.5, 0.6, 0.6], "d8": [0.4, 0.4, 0.9]}, 0.1),  # of equal ones the lowest
        ({"d8": [0.4, 0.9, 0.8], "d64": [0.5, 0.6, 0.7]}, 0.2),  # the largest dim decides, wherever it stands
        ({"d64": [0.5, math.nan, 0.6], "d8": [0.4, 0.9, math.nan]}, 0.0),
        ({"d64": [math.nan, math.nan, 0.1], "d8": [math.nan, 0.2, 0.1]}, 0.2),
        ({"d64": [math.nan, math.nan]}, 0.0),
    ],
)
def test_the_best_that_loses_nowhere_is_chosen(values: dict[str, list[float]], chosen: float) -> None:
    assert best_strength(curve_of(**values)) == chosen


def with_forgetting(curve: list[dict], **values: list[float]) -> list[dict]:
    return [point | {"forgetting": {dim[1:]: row[i] for dim, row in values.items()}} for i, point in enumerate(curve)]


@pytest.mark.parametrize(
    ("forgetting", "limit", "chosen"),
    [
        ({"d64": [0.8, 0.7, 0.6, 0.1], "d8": [0.5, 0.5, 0.5, 0.5]}, 0.0, 0.3),  # 0 is no limit
        ({"d64": [0.8, 0.7, 0.6, 0.1], "d8": [0.5, 0.5, 0.5, 0.5]}, 0.25, 0.2),
        ({"d64": [0.8, 0.8, 0.8, 0.8], "d8": [0.5, 0.45, 0.3, 0.5]}, 0.1, 0.3),  # a fall between does not forbid more
        ({"d64": [0.8, 0.8, 0.8, 0.8], "d8": [0.5, 0.45, 0.3, 0.2]}, 0.1, 0.1),  # a small dim counts like a large one
        ({"d64": [0.8, 0.7, 0.6, 0.5], "d8": [0.5, 0.4, 0.3, 0.2]}, 0.01, 0.0),  # the untouched model always may be
        ({"d64": [0.8, 0.9, 0.9, math.nan], "d8": [math.nan, 0.1, math.nan, 0.1]}, 0.01, 0.2),
        ({"d64": [0.75, 0.5, 0.25, 0.0], "d8": [0.5] * 4}, 0.5, 0.2),  # just the limit is within it
    ],
)
def test_a_strength_that_forgets_too_much_is_not_chosen(
    forgetting: dict[str, list[float]], limit: float, chosen: float
) -> None:
    curve = with_forgetting(curve_of(d64=[0.5, 0.6, 0.7, 0.8], d8=[0.4, 0.4, 0.4, 0.4]), **forgetting)
    assert best_strength(curve, limit) == chosen
    assert best_strength(curve) == 0.3  # the control: without the limit the forgetful one is taken


def test_what_is_ruled_out_says_why() -> None:
    curve = with_forgetting(curve_of(d64=[0.5, 0.6, 0.4], d8=[0.4, 0.5, 0.3]), d64=[0.8, 0.7, 0.8], d8=[0.5, 0.3, 0.5])
    reasons = ruled_out(curve, 0.15)
    assert {alpha: (reason.cause, reason.dims) for alpha, reason in reasons.items()} == {
        0.1: (Cause.FORGETS, ("8",)),
        0.2: (Cause.LOSES, ("64", "8")),
    }
    assert {alpha: str(reason) for alpha, reason in reasons.items()} == {
        0.1: "forgets more than 0.15 at 8 dims",
        0.2: "loses to the untouched model on dev at 64, 8 dims",
    }
    assert ruled_out(curve).keys() == {0.2}
