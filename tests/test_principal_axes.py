"""The turn onto principal axes: what it keeps, what it gains, and where it is not taken."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from oracles import WIDTH

from trainer.data.incidents import generate_pairs
from trainer.data.pairs import PairTable, pairs_from_columns
from trainer.data.sources import join
from trainer.evaluation.pair_metrics import spearman
from trainer.evaluation.scoring import PairSet, pair_cosines
from trainer.main import cli
from trainer.model.embedding import embed, tokenize_sides
from trainer.model.export import save_model
from trainer.model.loading import load_encoder
from trainer.system.run_files import ADAPTER, METRICS, MODEL
from trainer.training.principal_axes import (
    SHARES,
    is_better,
    limited_axes,
    moment_of_files,
    on_dev,
    principal_axes,
    second_moment,
    turn_onto_axes,
)

Build = Callable[[str], Path]
DIMS = (WIDTH, 8, 2)


def table_of(count: int, part: str = "train") -> PairTable:
    return pairs_from_columns(generate_pairs(count, 0, part), part)


@pytest.mark.parametrize(("count", "width"), [(200, 12), (5, 12), (40, 1)])
def test_the_first_axes_keep_what_singular_vectors_keep(count: int, width: int) -> None:
    """Of embeddings of length one, the most that so many directions can; fewer texts than dims are no trouble."""
    generator = np.random.default_rng(count)
    rows = generator.normal(size=(count, width)) * np.linspace(0.2, 3, width)
    axes = principal_axes(second_moment(rows)).astype(float)
    np.testing.assert_allclose(axes @ axes.T, np.eye(width), atol=1e-6)
    assert (axes[np.arange(width), np.abs(axes).argmax(axis=1)] > 0).all()
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    singular = np.linalg.svd(unit, compute_uv=False)
    kept = ((unit @ axes.T) ** 2).sum(axis=0).cumsum()
    expected = np.concatenate([singular**2, np.zeros(max(width - count, 0))]).cumsum()
    np.testing.assert_allclose(kept, expected, rtol=1e-5)


def test_an_embedding_of_zeros_turns_to_zeros() -> None:
    rows = np.array([[0.0, 0.0], [1.0, 2.0]], dtype=np.float32)
    assert np.isfinite(second_moment(rows)).all()
    assert (rows @ principal_axes(second_moment(rows)).T)[0].tolist() == [0, 0]


def test_a_file_counts_by_the_rows_that_are_shown_of_it(tiny_model: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load_encoder(str(tiny_model("bert")))
    own, general = table_of(30, "train"), table_of(60, "dev")
    rows, others = (embed(encoder, tokenize_sides(encoder, table.texts)) for table in (own, general))
    files = {"own.json": own, "general.json": general}
    both = join([replace(table, source=name, sources=(name,)) for name, table in files.items()])
    shown = {"own.json": 90, "general.json": 30}
    found, count = moment_of_files(encoder, both, shown, 0)
    expected = (3 * second_moment(rows) + second_moment(others)) / 4
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert count == len(own.texts) + len(general.texts)
    even = moment_of_files(encoder, both, dict.fromkeys(shown, 60), 0)[0]
    assert np.abs(even - expected).max() > 1e-4  # it does count what is shown
    monkeypatch.setattr("trainer.training.principal_axes.MOST_TEXTS", 10)
    assert moment_of_files(encoder, both, shown, 0)[1] == 20
    assert moment_of_files(encoder, both, {"own.json": 5, "general.json": 0}, 0)[1] == 10


def labelled_by(dev: PairTable, cosines: np.ndarray) -> PairTable:
    """The table with its more alike half of pairs as the positives."""
    labels = cosines > np.median(cosines)
    return replace(dev, label=labels.astype(dev.label.dtype), score=labels.astype(dev.score.dtype))


@pytest.fixture
def run(tiny_model: Build) -> Any:
    """What the turn asks of a run, whose encoder's first dims hold the least of its texts."""
    encoder, train, dev = load_encoder(str(tiny_model("bert"))), table_of(60, "train"), table_of(40, "dev")
    rows = embed(encoder, tokenize_sides(encoder, train.texts))
    encoder.dense = torch.from_numpy(principal_axes(second_moment(rows))[::-1].copy())
    config = SimpleNamespace(
        loss=SimpleNamespace(dims=DIMS),
        model=SimpleNamespace(principal_axes=True),
        train=SimpleNamespace(seed=0),
        eval=SimpleNamespace(metric="spearman", forgetting_limit=0.0),
    )
    data = SimpleNamespace(train=train)
    return SimpleNamespace(
        config=config,
        encoder=encoder,
        data=data,
        sampler=SimpleNamespace(rows_shown=lambda steps: {train.source: len(train)}),
        steps=1,
        dev=PairSet.build(dev, encoder),
        corpus=None,
        judged_on="dev",
        general=None,
    )


def given_by(run: Any, dim: int) -> dict[str, dict[str, np.ndarray]]:
    """The embeddings of the run's dev set, whose labels are made to go by so many dims as they are."""
    rows = embed(run.encoder, run.dev.tokens)
    run.dev = replace(run.dev, table=labelled_by(run.dev.table, pair_cosines(rows, run.dev.table, (dim,))[0]))
    return {"dev": {"model": rows, "baseline": np.ones_like(rows)}}


def test_a_turn_keeps_cosines_of_the_full_width(run: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """Where labels go by all dims, the first two are nearer to them after the turn."""
    given, table = given_by(run, WIDTH), run.dev.table
    before, dense = given["dev"]["model"], run.encoder.dense
    turn_onto_axes(run, copy.deepcopy(run.encoder), given)
    after = given["dev"]["model"]
    assert "Turned onto the principal axes of" in capfd.readouterr().err
    assert not torch.equal(run.encoder.dense, dense)
    np.testing.assert_allclose(pair_cosines(after, table, (WIDTH,)), pair_cosines(before, table, (WIDTH,)), atol=1e-5)
    np.testing.assert_allclose(embed(run.encoder, run.dev.tokens), after, atol=1e-5)
    assert (np.linalg.norm(after[:, :8], axis=1) > np.linalg.norm(before[:, :8], axis=1)).all()
    assert on_dev(run, {"dev": after}, DIMS).mean() > on_dev(run, {"dev": before}, DIMS).mean()


@pytest.mark.parametrize("reason", ["worse on dev", "not asked for", "no dim below the width"])
def test_no_turn_is_taken(reason: str, run: Any, capfd: pytest.CaptureFixture[str]) -> None:
    given = given_by(run, 2 if reason == "worse on dev" else WIDTH)
    run.config.model.principal_axes = reason != "not asked for"
    run.config.loss.dims = (WIDTH,) if reason == "no dim below the width" else DIMS
    before, dense = given["dev"]["model"], run.encoder.dense
    turn_onto_axes(run, copy.deepcopy(run.encoder), given)
    assert run.encoder.dense is dense and given["dev"]["model"] is before
    assert ("Not turned onto the principal axes of" in capfd.readouterr().err) == (reason == "worse on dev")


@pytest.mark.parametrize(
    ("after", "before", "untouched", "better"),
    [
        ([0.7, 0.6], [0.7, 0.5], [0.5, 0.4], True),
        ([0.7, 0.5], [0.7, 0.5], [0.5, 0.4], False),  # nothing gained
        ([0.8, 0.39], [0.5, 0.5], [0.5, 0.4], False),  # comes to lose at the second dim
        ([0.8, 0.45], [0.5, 0.5], [0.5, 0.4], True),
        ([0.8, 0.3], [0.5, 0.3], [0.5, 0.4], True),  # lost there before
        ([float("nan"), 0.9], [0.5, 0.5], [0.4, 0.4], False),
        ([0.6, 0.4], [0.5, 0.4], [0.4, float("nan")], True),
    ],
)
def test_better_is_a_higher_mean_and_no_new_loss(
    after: list[float], before: list[float], untouched: list[float], better: bool
) -> None:
    assert is_better(*map(np.array, (after, before, untouched))) is better


@pytest.fixture
def general() -> tuple[PairTable, np.ndarray]:
    """A forgetting set whose labels go by its embeddings, which lie along the last two axes of the width."""
    table, generator = table_of(80, "dev"), np.random.default_rng(0)
    rows = generator.normal(size=(len(table.texts), WIDTH)).astype(np.float32) * 0.01
    rows[:, -2:] += generator.normal(size=(len(rows), 2)).astype(np.float32)
    return labelled_by(table, pair_cosines(rows, table, (WIDTH,))[0]), rows


def test_the_forgetting_set_has_the_least_share_that_keeps_the_limit(general: tuple[PairTable, np.ndarray]) -> None:
    """The run's own texts lie along the first two axes, and the untouched model's cut keeps what the set is about."""
    table, rows = general
    own = np.diag(np.r_[[0.4, 0.3], np.full(WIDTH - 2, 0.3 / (WIDTH - 2))])
    both = {"model": rows, "baseline": rows[:, ::-1].copy()}

    def lost(share: float) -> float:
        axes = principal_axes((1 - share) * own + share * second_moment(rows))
        pairs = (both["baseline"], rows @ axes.T)
        before, after = (spearman(pair_cosines(each, table, (2,))[0], table.score) for each in pairs)
        return before - after

    axes, share = limited_axes(own, both, table, DIMS, 0.05)
    assert share is not None and share > 0
    assert lost(share) <= 0.05 < lost(SHARES[SHARES.index(share) - 1])
    np.testing.assert_array_equal(axes, principal_axes((1 - share) * own + share * second_moment(rows)))
    assert limited_axes(own, both, table, (WIDTH,), 0.05)[1] == 0  # the full width forgets nothing by a turn


def test_where_no_share_keeps_the_limit_there_is_no_turn(
    run: Any, general: tuple[PairTable, np.ndarray], capfd: pytest.CaptureFixture[str]
) -> None:
    """The trained model has forgotten too much already."""
    given, dense, (table, rows) = given_by(run, WIDTH), run.encoder.dense, general
    run.general, run.config.eval.forgetting_limit = SimpleNamespace(table=table), 0.05
    given["general"] = {"model": np.random.default_rng(1).permutation(rows), "baseline": rows[:, ::-1].copy()}
    record = turn_onto_axes(run, copy.deepcopy(run.encoder), given)
    assert record is not None and not record["turned"] and record["forgetting_share"] is None
    assert run.encoder.dense is dense
    assert "; some dim would forget more than 0.05" in " ".join(capfd.readouterr().err.split())


@pytest.mark.slow
@pytest.mark.parametrize("lora", [True, False])
def test_a_turned_run_is_what_was_judged_and_can_be_trained_on(lora: bool, tiny_model: Build, tmp_path: Path) -> None:
    encoder = load_encoder(str(tiny_model("mpnet")))
    texts = generate_pairs(120, 0, "train")["texts1"]
    rows = embed(encoder, tokenize_sides(encoder, texts))
    encoder.dense = torch.from_numpy(principal_axes(second_moment(rows))[::-1].copy())
    save_model(encoder, tmp_path / "start", "# A card\n")
    pairs, other = tmp_path / "pairs.json", tmp_path / "other.json"
    pairs.write_text(json.dumps(generate_pairs(120, 0, "train")))
    other.write_text(json.dumps(generate_pairs(60, 0, "dev")))

    def train(start: Path, run: Path) -> dict[str, Any]:
        settings = [f"model.name={start}", f"data.train={pairs}", f"data.dev={other}", f"lora.enabled={lora}".lower()]
        settings += [
            "loss.dims=[2,8,64]",
            "train.batch_size=8",
            "curriculum.epochs=1",
            "optim.lr=1e-4",
            "eval.choose_strength=false",
        ]
        assert cli(["train", "--output-dir", str(run), *(f"--set={setting}" for setting in settings)]) == 0
        return json.loads((run / METRICS).read_text())

    metrics = train(tmp_path / "start", tmp_path / "run")
    assert metrics["principal_axes"]["turned"]
    for folder in (MODEL, ADAPTER)[: 1 + lora]:
        assert load_encoder(str(tmp_path / "run" / folder)).dense is not None
    record = tmp_path / "record.json"
    command = ["evaluate", "--model", str(tmp_path / "run" / MODEL), "--pairs", str(other), "--json", str(record)]
    assert cli([*command, "--dims", "2,8,64"]) == 0
    judged = json.loads(record.read_text())["model"]
    for dim, values in metrics["dev"]["final"].items():
        assert values["spearman"] == pytest.approx(judged[dim]["spearman"], abs=1e-3)
    again = train(tmp_path / "run" / (ADAPTER if lora else MODEL), tmp_path / "again")
    for dim, values in again["baseline"].items():
        assert values["spearman"] == pytest.approx(judged[dim]["spearman"], abs=1e-3)
