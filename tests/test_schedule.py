"""The schedule as tables of numbers at every edge, and its shape as properties."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.training.schedule import learning_rate, schedule_edges

REFERENCE: dict[str, float] = {"peak": 5e-6, "floor": 1e-7, "warmup_ratio": 0.15, "hold_ratio": 0.20}


def rates(total_steps: int, **recipe: float) -> list[float]:
    return [learning_rate(step, total_steps=total_steps, **recipe) for step in range(total_steps)]


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 5e-6 / 150),  # not 0
        (1, 5e-6 / 75),
        (74, 2.5e-6),
        (148, 5e-6 * 149 / 150),
        (149, 5e-6),  # last of the warm-up
        (150, 5e-6),  # first of the hold
        (349, 5e-6),  # last of the hold
        (350, 5e-6 - 4.9e-6 * math.sin(math.pi / 1300) ** 2),  # first of the decay
        (674, 2.55e-6),  # half-way down
        (998, 1e-7 + 4.9e-6 * math.sin(math.pi / 1300) ** 2),
        (999, 1e-7),
    ],
)
def test_reference_recipe(step: int, expected: float) -> None:
    assert schedule_edges(1000, 0.15, 0.20) == (150, 350)
    assert learning_rate(step, total_steps=1000, **REFERENCE) == pytest.approx(expected, rel=1e-12)


def test_the_peak_and_the_floor_are_reached_exactly() -> None:
    run = rates(1000, **REFERENCE)
    assert run[149:350] == [5e-6] * 201
    assert max(run) == 5e-6
    assert run[-1] == min(run[150:]) == 1e-7
    assert run[-2] > 1e-7
    assert run[350] < 5e-6


@pytest.mark.parametrize(
    ("total_steps", "edges", "expected"),
    [
        (1, (0, 1), [1.0]),
        (2, (0, 1), [1.0, 0.2]),
        (3, (0, 1), [1.0, 0.6, 0.2]),
        (7, (1, 2), [1.0, 1.0, *(0.6 + 0.4 * math.cos(math.pi * k / 5) for k in (1, 2, 3, 4)), 0.2]),
    ],
)
def test_short_runs(total_steps: int, edges: tuple[int, int], expected: list[float]) -> None:
    run = rates(total_steps, peak=1.0, floor=0.2, warmup_ratio=0.15, hold_ratio=0.20)
    assert schedule_edges(total_steps, 0.15, 0.20) == edges
    assert run == pytest.approx(expected, rel=1e-12)
    assert run[-1] == expected[-1]  # exact, not approximate


@pytest.mark.parametrize(
    ("warmup_ratio", "hold_ratio", "expected"),
    [
        (0.0, 0.0, [1.0, 0.75, 0.25, 0.0]),  # plain cosine, from the peak
        (1.0, 0.0, [0.25, 0.5, 0.75, 1.0]),  # no decay: ends at the peak
        (0.0, 1.0, [1.0, 1.0, 1.0, 1.0]),
        (0.5, 0.5, [0.5, 1.0, 1.0, 1.0]),
        (0.75, 0.0, [1 / 3, 2 / 3, 1.0, 0.0]),  # one step of decay is at the floor
    ],
)
def test_a_phase_may_be_missing(warmup_ratio: float, hold_ratio: float, expected: list[float]) -> None:
    run = rates(4, peak=1.0, floor=0.0, warmup_ratio=warmup_ratio, hold_ratio=hold_ratio)
    assert run == pytest.approx(expected, abs=1e-15)


@settings(deadline=None)
@given(
    total_steps=st.integers(1, 400),
    peak=st.floats(1e-8, 1.0),
    floor_share=st.floats(0.0, 1.0),
    warmup_ratio=st.floats(0.0, 1.0),
    hold_share=st.floats(0.0, 1.0),
)
def test_shape(total_steps: int, peak: float, floor_share: float, warmup_ratio: float, hold_share: float) -> None:
    floor, hold_ratio = peak * floor_share, (1 - warmup_ratio) * hold_share
    first_hold, first_decay = schedule_edges(total_steps, warmup_ratio, hold_ratio)
    run = rates(total_steps, peak=peak, floor=floor, warmup_ratio=warmup_ratio, hold_ratio=hold_ratio)
    assert 0 <= first_hold <= first_decay <= total_steps
    assert abs(first_hold - warmup_ratio * total_steps) <= 0.5 + 1e-9

    warmup, hold, decay = run[:first_hold], run[first_hold:first_decay], run[first_decay:]
    assert all(low < high for low, high in pairwise(warmup))
    assert set(warmup[-1:] + hold) == {peak}
    assert all(high >= low for high, low in pairwise([peak, *decay]))
    assert decay[-1:] == [floor] * bool(decay)
    assert 0 < run[0] <= max(run) == peak
    assert min(run) >= min(floor, run[0])
    assert all(type(rate) is float for rate in run)


VALID: dict[str, Any] = {"step": 9, "total_steps": 10, **REFERENCE}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"step": -1}, "step -1 is outside the run of 10 steps"),
        ({"step": 10}, "step 10 is outside the run of 10 steps"),
        ({"step": 0, "total_steps": 0}, "total_steps must be at least 1"),
        ({"warmup_ratio": 0.81}, "sum to at most 1"),
        ({"hold_ratio": 1.5}, "sum to at most 1"),
        ({"warmup_ratio": -0.1}, "must be >= 0"),
        ({"hold_ratio": -0.1}, "must be >= 0"),
        ({"warmup_ratio": math.nan}, "must be >= 0"),
        ({"floor": 1e-5}, "floor <= peak"),
        ({"floor": -1e-9}, "floor <= peak"),
        ({"peak": math.inf}, "floor <= peak"),
        ({"peak": math.nan}, "floor <= peak"),
    ],
)
def test_a_wrong_argument_is_refused(wrong: dict[str, float], message: str) -> None:
    learning_rate(**VALID)  # the control: all else is right
    with pytest.raises(ValueError, match=message):
        learning_rate(**{**VALID, **wrong})
