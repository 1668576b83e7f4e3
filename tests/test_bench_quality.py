"""Programs of bench/quality: how cells and runs are judged, resumed, and shown."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from bench import records, report
from bench.markdown import source
from bench.measuring import each_in_new_process
from bench.quality import real_run, screen, side_by_side
from bench.quality.false_negatives import in_batches
from bench.quality.judging import HeldOut, compare, judge_model
from bench.quality_tables import screen as screen_table
from bench.records import finish
from trainer.config import Config
from trainer.config_file import resolve_config
from trainer.data.incidents import generate_pairs
from trainer.data.pairs import PairTable, pairs_from_columns

ENVIRONMENT = {"threads": 1, "gpu": None, "processor": "P", "cores": 1, "date": "2026-01-01T00:00:00+00:00"}
ENVIRONMENT |= {"packages": {"torch": "2", "transformers": "5"}}
SETTINGS = {"model": "M", "config": "c.toml", "set": [], "max_length": 32, "limit": 0, "dev_rows": 0}


def write_pairs(folder: Path, part: str) -> Path:
    path = folder / f"{part}.json"
    path.write_text(json.dumps(generate_pairs(48, 0, part)))
    return path


def in_this_process(run: Callable[..., Any]) -> Callable[..., Iterator[tuple[Any, Future[Any]]]]:
    """What `each_in_new_process` yields, of run(function, key, arguments), made here."""

    def here(function: Callable[..., Any], calls: dict[Any, Any], at_once: int) -> Iterator[tuple[Any, Future[Any]]]:
        for key, arguments in calls.items():
            ended: Future[Any] = Future()
            ended.set_result(run(function, key, arguments))
            yield key, ended

    return here


@pytest.fixture
def options(tmp_path: Path, tiny_model: Callable[[str], Path]) -> Namespace:
    """What the command line of the screening gives."""
    train, dev = (str(write_pairs(tmp_path, part)) for part in ("train", "dev"))
    shared = ["loss.dims=[64,16]", "curriculum.epochs=1", "train.batch_size=8", "eval.choose_strength=false"]
    return Namespace(
        **{"model": str(tiny_model("mpnet")), "data": [["pairs", train, dev]], "seeds": [0], "plain": "plain"},
        **{"config": screen.CONFIG, "set": shared, "max_length": 32, "limit": 0, "dev_rows": 0, "sts": None},
        **{"corpus": [], "queries": "", "name": "cells", "results": tmp_path / "results", "at_once": 1},
    )


@pytest.mark.slow
@pytest.mark.usefixtures("blank_report")
def test_a_cell_is_trained_judged_and_not_run_again(options: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[screen.Job] = []

    def note(function: Callable[[screen.Job], Any], key: Any, arguments: tuple[screen.Job]) -> Any:
        calls.extend(arguments)
        return function(*arguments)

    monkeypatch.setattr(screen, "each_in_new_process", in_this_process(note))
    cells = {"plain": [], "fast": ["optim.lr=1e-3"]}
    record = screen.open_record(options, cells)
    jobs = dict([next(iter(screen.jobs_of(options, cells).items()))])
    assert screen.run_all(options, record, jobs) == []
    (run,) = record["runs"]
    assert (run["cell"], run["data"], run["seed"]) == ("plain", "pairs", 0) and run["steps"] > 0
    dev = HeldOut(options.data[0][2])
    untouched, _ = judge_model(options.model, dev, (64, 16), 32)
    assert record["untouched"]["pairs"] == untouched != run["trained"]
    # The judged pairs have chosen nothing: the run split its own off.
    assert calls[0].resolve().data.dev == ""
    assert screen.open_record(options, cells)["runs"] == [run]
    again = screen.open_record(options, cells)
    screen.run_all(options, again, jobs)
    assert len(calls) == 1


def test_a_record_of_other_settings_is_not_continued(options: Namespace) -> None:
    record = screen.open_record(options, {"plain": []}) | {"environment": ENVIRONMENT}
    options.results.mkdir()
    (options.results / "cells.json").write_text(json.dumps(record))
    assert screen.open_record(options, {"plain": [], "new": ["optim.lr=1e-3"]})["cells"].keys() == {"plain", "new"}
    with pytest.raises(SystemExit, match=r"cells plain is .* choose another --name"):
        screen.open_record(options, {"plain": ["optim.lr=1e-3"]})
    options.max_length = 64
    with pytest.raises(SystemExit, match="settings max_length is 32 there and 64 here"):
        screen.open_record(options, {"plain": []})


def test_the_table_pairs_each_seed_with_the_plain_cell() -> None:
    def run(cell: str, seed: int, value: float) -> dict[str, Any]:
        return {"cell": cell, "data": "d", "seed": seed, "trained": {"64": {"spearman": value}}}

    record: dict[str, Any] = {"settings": SETTINGS, "plain": "plain", "cells": {"plain": [], "new": []}}
    record |= {"untouched": {"d": {"64": {"spearman": 0.5}}}, "environment": ENVIRONMENT}
    record["runs"] = [run("plain", 0, 0.6), run("plain", 1, 0.7), run("new", 0, 0.61), run("new", 1, 0.73)]
    lines = screen_table(record)
    assert "| d | plain | 2 | +0.1500 ± 0.0707 |" in lines
    assert "| d | new | 2 | +0.1700 ± 0.0849 (+0.0200 ± 0.0141) |" in lines
    del record["runs"][1]  # a seed that plain has not: no pair of it
    assert "| d | new | 2 | +0.1700 ± 0.0849 (+0.0100) |" in screen_table(record)
    record["cells"]["to come"] = []
    assert not any("to come" in line for line in screen_table(record))


def random_table(rng: np.random.Generator, rows: int) -> PairTable:
    columns = {"text1": [f"a{i}" for i in range(rows)], "text2": [f"b{i}" for i in range(rows)]}
    return pairs_from_columns(columns | {"label": rng.permutation(np.arange(rows) % 2).tolist()})


def test_the_gain_is_paired_and_of_means_over_seeds() -> None:
    rng = np.random.default_rng()
    table = random_table(rng, 120)
    noise = rng.normal(size=(3, 2, 120))
    before = noise + table.label
    same = compare(before, before[::-1], table, (64, 16))
    assert all(value == pytest.approx([0, 0], abs=1e-12) for gains in same["gain"].values() for value in gains.values())
    judged = compare(before, noise + 3 * table.label, table, (64, 16))
    for dim in ("64", "16"):
        low, high = judged["gain"][dim]["spearman"]
        gain = judged["after"][dim]["spearman"] - judged["before"][dim]["spearman"]
        assert 0 < low < gain < high
    alone = [compare(before[s : s + 1], before, table, (64, 16))["before"]["64"]["roc_auc"] for s in range(3)]
    assert same["before"]["64"]["roc_auc"] == pytest.approx(np.mean(alone))


@pytest.mark.parametrize("meet", [True, False])
def test_the_rows_of_a_link_always_meet_or_never(meet: bool) -> None:
    links = [((f"title {row}", "body", 1), (f"other title {row}", "body", 1)) for row in range(24)]
    batches = in_batches(links, 8, meet)
    assert [len(batch) for batch in batches] == [8] * 6
    assert all(((first in batch) == (second in batch)) == meet for batch in batches for first, second in links
               if first in batch or second in batch)  # fmt: skip


def test_of_the_peer_only_finalists_are_trained_with_every_seed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made: list[tuple[str, float, int]] = []
    held_out = {"mnrl": 0.6, "cosent": 0.7, "ours": 0.5, "untouched": 0.4}

    def run(options: Namespace, record: dict[str, Any], wanted: list[side_by_side.Key]) -> list[dict[str, Any]]:
        made.extend(wanted)
        keys = [dict(zip(("kind", "rate", "seed"), key, strict=True)) for key in wanted]
        figures = [{"64": {"spearman": 0.1 * key["seed"]}} for key in keys]
        return [
            key | {"held_out": held_out[key["kind"]] + key["rate"], "dev": of_run, "search": of_run}
            for key, of_run in zip(keys, figures, strict=True)
        ]

    dev = tmp_path / "dev.json"
    dev.write_text(json.dumps(generate_pairs(24, 0, "dev")))
    monkeypatch.setattr(side_by_side, "run_missing", run)
    monkeypatch.setattr(side_by_side.np, "load", lambda file: np.random.default_rng(0).random((1, 24)))
    kinds, rates = ["mnrl", "cosent", "ours"], [0.01, 0.02]
    options = Namespace(dev=str(dev), kinds=kinds, rates=rates, seeds=[0, 1, 2], finalists=1, dims=(64,), keep=tmp_path)
    options.name = "peers"
    found = side_by_side.finalists(options, {})
    assert {kind: of_kind["seeds"] for kind, of_kind in found.items()} == {
        "untouched": [0],
        "mnrl": [0],
        "cosent": [0, 1, 2],
        "ours": [0, 1, 2],
    }
    assert all(rate == 0.02 for kind, rate, seed in made if seed)  # the best trial's
    assert "ours_less_it" in found["mnrl"] and "ours_less_it" not in found["ours"]
    assert found["cosent"]["dev"]["64"]["spearman"] == pytest.approx([0.1, 0.1])


def test_a_run_beside_the_peer_is_made_once_and_again_without_its_scores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made: list[side_by_side.Key] = []

    def note(function: Callable[..., Any], key: side_by_side.Key, arguments: Any) -> Any:
        made.append(key)
        return {"held_out": len(made)}, np.zeros((1, 2))

    monkeypatch.setattr(side_by_side, "each_in_new_process", in_this_process(note))
    monkeypatch.setattr(side_by_side, "finish", lambda options, record: None)
    options, record = Namespace(keep=tmp_path, name="peers", at_once=2), dict[str, Any](runs=[])
    keys: list[side_by_side.Key] = [("mnrl", 1e-4, 0), ("ours", 1e-4, 0)]
    first = side_by_side.run_missing(options, record, keys)
    assert [run["kind"] for run in first] == ["mnrl", "ours"] and record["runs"] == first and made == keys
    assert side_by_side.run_missing(options, record, keys[::-1]) == first[::-1] and made == keys
    side_by_side.scores_file(options, *keys[1]).unlink()
    again = side_by_side.run_missing(options, record, keys)
    assert made[2:] == keys[1:] and again[0] == first[0] and again[1]["held_out"] == 3 and len(record["runs"]) == 2


def test_a_table_without_its_records_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    (tmp_path / "loss.json").write_text("{}")
    assert report.lines_of("loss") == ["Not measured yet: no loss_large.json among the records."]


def test_a_new_and_a_continued_record_can_be_shown_at_once(tmp_path: Path) -> None:
    record: dict[str, Any] = {}
    finish(Namespace(name="x", results=tmp_path), record)
    assert source(record, "said").startswith("said; ")
    record["environment"]["commit"] = "earlier"
    finish(Namespace(name="x", results=tmp_path), record)
    assert json.loads((tmp_path / "x.json").read_text())["environment"]["commit"] != "earlier"


@pytest.mark.slow
def test_runs_at_once_all_end_each_in_a_process_of_its_own() -> None:
    calls = {"fine": ("1 + 1",), "broken": ("1 / 0",), "late": ("__import__('time').sleep(1)",), "also fine": ("2",)}
    ended = dict(each_in_new_process(eval, calls, at_once=2))
    assert ended.keys() == calls.keys() and ended["fine"].result() == 2
    with pytest.raises(ZeroDivisionError):
        ended["broken"].result()
    processes = dict(each_in_new_process(eval, dict.fromkeys(range(3), ("__import__('os').getpid()",)), at_once=2))
    assert len({process.result() for process in processes.values()}) == 3


@pytest.mark.slow
def test_a_measurement_that_is_killed_leaves_no_process_behind(tmp_path: Path) -> None:
    work = f"import pathlib, time; pathlib.Path({str(tmp_path / 'began')!r}).touch(); time.sleep(600)"
    program = f"from bench.measuring import in_new_process; in_new_process(exec, {work!r})"
    with subprocess.Popen([sys.executable, "-c", program]) as parent:
        started = time.monotonic()
        while not (tmp_path / "began").exists() and time.monotonic() - started < 60:
            time.sleep(0.1)
        children = psutil.Process(parent.pid).children(recursive=True)
        parent.kill()
    _, alive = psutil.wait_procs(children, timeout=30)
    for process in alive:
        process.kill()
    assert (tmp_path / "began").exists() and not alive


def test_a_record_takes_runs_of_one_recipe_one_a_seed(tmp_path: Path) -> None:
    runs = [tmp_path / name for name in ("first", "second")]

    def configs(*settings: str) -> list[Config]:
        return [
            resolve_config({"data": {"train": "pairs.json"}}, [f"output.dir={run}", *given.split()])
            for run, given in zip(runs, settings, strict=True)
        ]

    seeds = configs("train.seed=0", "train.seed=1")
    assert real_run.same_recipe(runs, seeds) is seeds[0]
    with pytest.raises(SystemExit, match=r"second: its section \[optim\] is not that of .*first"):
        real_run.same_recipe(runs, configs("train.seed=0", "train.seed=1 optim.lr=1e-3"))
    with pytest.raises(SystemExit, match="two runs have the same seed"):
        real_run.same_recipe(runs, configs("train.seed=3", "train.seed=3"))
    elsewhere = [f'train.seed={seed} data.train= data.sources=[{{path="{seed}/pairs.json"}}]' for seed in (0, 1)]
    real_run.same_recipe(runs, configs(*elsewhere))  # the same files in other folders are the same recipe
    with pytest.raises(SystemExit, match=r"its section \[data\]"):
        real_run.same_recipe(runs, configs(elsewhere[0], elsewhere[1].replace("pairs", "others")))


def test_figures_of_runs_are_their_means_and_the_spread_of_those_after() -> None:
    def run(before: float, after: float, strength: float) -> dict[str, Any]:
        figures = {name: {"64": {"spearman": value}} for name, value in (("baseline", before), ("final", after))}
        return {**figures, "verdict": "BETTER", "best_step": 3, "strength": strength}

    judged = real_run.judged_by_runs([run(0.5, 0.6, 1.0), run(0.52, 0.7, 0.8)])
    assert judged["baseline"]["64"]["spearman"] == pytest.approx(0.51)
    assert judged["final"]["64"]["spearman"] == pytest.approx(0.65)
    assert judged["spread"]["64"]["spearman"] == pytest.approx(0.1 / 2**0.5)
    assert judged["strength"] == [1.0, 0.8] and judged["verdict"] == ["BETTER"] * 2
    assert real_run.judged_by_runs([run(0.5, 0.6, 1.0)])["spread"] is None


def test_a_copy_without_git_is_measured_too_and_has_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert records.environment()["commit"] is None
