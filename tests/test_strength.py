"""How far to go: the line between two sets of weights, and the choice on it."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import Parameter

from trainer.strength import ALPHAS, best_strength, set_strength


def curve_of(**values: list[float]) -> list[dict]:
    """A curve from values by dim ("d64=[...]")."""
    count = len(next(iter(values.values())))
    return [{"alpha": i / 10, "dev": {dim[1:]: row[i] for dim, row in values.items()}} for i in range(count)]


def test_both_ends_are_exact_and_the_way_is_straight() -> None:
    generator = torch.Generator().manual_seed(0)
    start, trained = ({"w": torch.randn(50, generator=generator)} for _ in range(2))
    parameters = {"w": Parameter(torch.zeros(50))}
    for alpha in ALPHAS:
        set_strength(parameters, start, trained, alpha)
        expected = start["w"].double() + alpha * (trained["w"].double() - start["w"].double())
        torch.testing.assert_close(parameters["w"].detach().double(), expected, rtol=0, atol=1e-6)
        if alpha in (0.0, 1.0):
            assert torch.equal(parameters["w"], (trained if alpha else start)["w"])
    assert ALPHAS[0] == 0 and 1.0 in ALPHAS and max(ALPHAS) > 1


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
