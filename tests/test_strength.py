"""How far to go: the line between two sets of weights, and the choice on it."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import Parameter

from trainer.config import Config
from trainer.training.strength import (
    best_strength,
    explain_choice,
    fingerprint,
    kept_points,
    point_read,
    ruled_out,
    search,
    set_strength,
    strengths,
)


def curve_of(**values: list[float]) -> list[dict]:
    """A curve from values by dim ("d64=[...]")."""
    count = len(next(iter(values.values())))
    return [{"alpha": i / 10, "metric": {dim[1:]: row[i] for dim, row in values.items()}} for i in range(count)]


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
    names = ("x.lora_A.default.weight", "x.lora_B.default.weight")
    parameters = {name: Parameter(torch.zeros(2)) for name in names}
    trained = {name: torch.full((2,), 4.0) for name in names}
    set_strength(parameters, {names[1]: torch.zeros(2)}, trained, 0.5)
    assert [parameter[0].item() for parameter in parameters.values()] == [4.0, 2.0]


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
        ({"d64": [0.8, 0.7, 0.6, 0.5], "d8": [0.5, 0.4, 0.3, 0.2]}, 0.01, 0.0),  # the start always may be
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
    assert reasons == {
        0.1: "forgets more than 0.15 at 8 dims",
        0.2: "loses to the model that training began with on dev at 64, 8 dims",
    }
    assert ruled_out(curve).keys() == {0.2}
    of_corpus = ruled_out(curve, on="corpus")[0.2]
    assert of_corpus == "loses to the model that training began with on the corpus at 64, 8 dims"


# ---- coarse to fine


def searched(values: list[float], forgetting: list[float] | None = None, limit: float = 0.0) -> tuple[list[dict], int]:
    """The curve that is searched of one dim's values, and how often a strength was measured."""
    measured = []

    def measure(alpha: float) -> dict:
        measured.append(alpha)
        place = round(10 * alpha)
        point = {"alpha": alpha, "metric": {"64": values[place]}}
        return point | ({"forgetting": {"64": forgetting[place]}} if forgetting else {})

    return search(strengths((len(values) - 1) / 10), measure, limit), len(measured)


@pytest.mark.parametrize("size", [11, 13, 21])
def test_the_search_finds_the_best_of_all_where_there_is_one_peak(size: int) -> None:
    """Beside the slow way, every strength of the grid; with a limit that rules out all beyond some strength."""
    rng, most = random.Random(size), 0
    for _ in range(300):
        peak = rng.randrange(size)
        steps = sorted(rng.random() + 0.01 for _ in range(size))
        values = [1 - 0.1 * abs(place - peak) - 0.01 * steps[abs(place - peak)] for place in range(size)]
        last = rng.randrange(size)
        forgetting = [0.9 if place <= last else 0.5 for place in range(size)]
        for limit in (0.0, 0.1):
            curve, count = searched(values, forgetting, limit)
            whole = with_forgetting(curve_of(d64=values), d64=forgetting)
            assert best_strength(curve, limit) == best_strength(whole, limit)
            assert [point["alpha"] for point in curve] == sorted({point["alpha"] for point in curve})
            assert count == len(curve)
            most = max(most, count)
    assert most < size  # the control: it does not simply measure all


def test_of_points_that_are_all_undefined_or_equal_the_untouched_model_is_best() -> None:
    for value in (math.nan, 0.5):
        curve, _ = searched([value] * 11)
        assert best_strength(curve) == 0.0 and {0.0, 1.0} <= {point["alpha"] for point in curve}


# ---- why


@pytest.mark.parametrize(
    ("values", "forgetting", "limit", "words"),
    [
        ({"d64": [0.5, 0.6, 0.7], "d8": [0.4, 0.5, 0.4]}, None, 0, ""),
        (
            {"d64": [0.5, 0.6, 0.7], "d8": [0.4, 0.5, 0.3]},
            None,
            0,
            "0.2 has 0.7000, but is ruled out: it loses to the model that training began with on dev at 8 dims.",
        ),
        (
            {"d64": [0.5, 0.6, 0.7], "d8": [0.4, 0.5, 0.6]},
            {"d64": [0.9, 0.9, 0.8]},
            0.01,
            "0.2 has 0.7000, but is ruled out: it forgets more than 0.01 at 64 dims.",
        ),
        (
            {"d64": [0.5, 0.4, 0.3]},
            None,
            0,
            "The export is the model that training began with: no other strength is both allowed and better on dev.",
        ),
        (
            {"d64": [0.5, 0.6], "d8": [0.4, 0.3]},
            None,
            0,
            "The export is the model that training began with: no other strength is both allowed and better on dev. "
            "0.1 has 0.6000, but is ruled out: it loses to the model that training began with on dev at 8 dims.",
        ),
    ],
)
def test_a_choice_beside_a_higher_value_is_explained(values, forgetting, limit, words) -> None:
    curve = curve_of(**values)
    curve = with_forgetting(curve, **forgetting) if forgetting else curve
    assert explain_choice(curve, best_strength(curve, limit), ruled_out(curve, limit)) == words


# ---- points of an earlier try


@pytest.mark.parametrize("part", ["data", "tokens", "forgetting", "corpus", "base_weights", "conditions"])
def test_the_fingerprint_changes_with_all_that_a_point_depends_on(part: str) -> None:
    def found(changed: str = "") -> str:
        def has(name: str) -> SimpleNamespace:
            return SimpleNamespace(fingerprint=lambda: str(name == changed))

        run: Any = SimpleNamespace(
            dev=SimpleNamespace(table=has("data"), tokens=has("tokens")),
            fingerprints={name: name == changed for name in ("corpus", "base_weights")},
            config=Config(),
            conditions=lambda: {"device": changed == "conditions"},
        )
        general: Any = SimpleNamespace(table=has("forgetting"))
        return fingerprint(run, {}, {}, general)

    assert found() == found() != found(part)


def test_points_are_kept_for_the_same_fingerprint_alone(tmp_path: Path) -> None:
    path, measured = tmp_path / "strength.json", ("metric", "forgetting")
    assert kept_points(path, "a", measured, (64, 8)) == {}
    curve = [{"alpha": 0.3, "metric": {"64": None, "8": 0.25}, "forgetting": {"64": 1, "8": 1}}]
    path.write_text(json.dumps({"fingerprint": "a", "curve": curve}))
    kept = kept_points(path, "a", measured, (64, 8))
    assert list(kept) == [0.3] and math.isnan(kept[0.3]["metric"]["64"]) and kept[0.3]["metric"]["8"] == 0.25
    assert kept_points(path, "b", measured, (64, 8)) == {}
    point = {"alpha": 1, "metric": {"8": 0.5, "4": 1}, "more": 1}
    assert point_read(point, ("metric",), (8,)) == {"alpha": 1.0, "metric": {"8": 0.5}}


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", "[" * 100_000, '{"curve": []}', '{"fingerprint": "a"}', '{"fingerprint": "a", "curve": [1]}'],
)
def test_points_of_a_malformed_file_are_measured_again(text: str, tmp_path: Path) -> None:
    (tmp_path / "strength.json").write_text(text)
    assert kept_points(tmp_path / "strength.json", "a", ("metric",), (8,)) == {}


@pytest.mark.parametrize(
    "changes",
    [
        *({"metric": value} for value in ({}, {"64": 0.5}, {"64": 0.5, "8": []}, {"64": 0.5, "8": 10**400}, [1], None)),
        *({"forgetting": value} for value in ({}, {"8": 0.5}, None)),
        {"alpha": None},
    ],
)
def test_a_point_that_lacks_a_dim_is_measured_again(changes: dict[str, Any], tmp_path: Path) -> None:
    """The fingerprint is right, so nothing but the point itself can tell."""
    values = {"64": 0.5, "8": 0.25}
    whole, path = {"alpha": 0.3, "metric": values, "forgetting": values}, tmp_path / "strength.json"
    for point, kept in ((whole, {0.3: whole}), (whole | changes, {})):
        path.write_text(json.dumps({"fingerprint": "a", "curve": [point]}))
        assert kept_points(path, "a", ("metric", "forgetting"), (64, 8)) == kept
