"""bench/quality/bug_reports.py: figures and gains of several kinds of training, and runs that are taken again."""

from __future__ import annotations

import json
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.quality import bug_reports
from bench.quality.bug_reports import (
    CONFIG,
    DIMS,
    KINDS,
    Judged,
    Reports,
    corpus_of_reports,
    measure,
    settings_of_run,
    train_once,
)
from bench.quality_tables import bugs, bugs_gains
from trainer.config_file import dump_config, load_config
from trainer.data.incidents import generate_pairs
from trainer.data.pairs import pairs_from_columns
from trainer.data.run_data import load_data
from trainer.evaluation.search_set import SearchedTexts, words_of
from trainer.system.run_files import METADATA

REPORTS = 60


@pytest.fixture
def reports(tmp_path: Path) -> Reports:
    """Reports in pairs, each the other's duplicate, all of dev; and pairs of them."""
    rows = ["number,short_description,description,duplicate_of,pairs_part"]
    rows += [f"R-{i},title word{i // 2},body of number{i},{f'R-{i - 1}' if i % 2 else ''},dev" for i in range(REPORTS)]
    (tmp_path / "tickets.csv").write_text("\n".join(rows) + "\n")
    corpus = corpus_of_reports(tmp_path)
    halves = range(REPORTS // 2)
    texts1, texts2 = (
        [f"a{i}" for i in halves for _ in (0, 1)],
        [f"b{(i + k) % len(halves)}" for i in halves for k in (0, 1)],
    )
    pairs = pairs_from_columns({"text1": texts1, "text2": texts2, "label": [1, 0] * len(halves)})
    return Reports(pairs, corpus, words_of(corpus), None)


def judged(reports: Reports, rng: np.random.Generator, noise: float) -> Judged:
    """An encoder whose embeddings tell duplicates, but for noise."""
    count = len(reports.corpus.texts)
    searched = SearchedTexts(reports.corpus, np.arange(count), count)
    groups = np.arange(count) // 2
    embeddings = np.eye(384)[groups] + noise * rng.normal(size=(count, 384))
    cosines = np.stack([reports.pairs.label + noise * 5 * rng.normal(size=len(reports.pairs)) for _ in DIMS])
    return Judged(cosines, searched.search("model", embeddings.astype(np.float32), DIMS, reports.words), {})


@pytest.mark.slow
def test_gains_are_paired_means_over_the_seeds(reports: Reports) -> None:
    rng = np.random.default_rng()
    weak, other, strong = ([judged(reports, rng, noise) for _ in range(2)] for noise in (0.4, 0.4, 0.02))
    models = {"untouched": weak[:1], "links": weak, "titles": other, "both": strong}
    record = measure(models, reports, dict.fromkeys(models, (3, 4)))
    for dim in map(str, DIMS):
        for other_kind, gains in record["kinds"]["both"]["gains"].items():
            low, high = gains[dim]["map@100"]
            assert 0 < low <= high, other_kind
        assert "roc_auc" not in record["kinds"]["both"]["gains"]["bm25+untouched"][dim]
        of_seeds = record["kinds"]["titles"]["seeds"]
        for name, value in record["kinds"]["titles"]["figures"][dim].items():
            assert value == pytest.approx((of_seeds["3"][dim][name] + of_seeds["4"][dim][name]) / 2)
    same = measure({"untouched": weak[:1], "links": weak, "both": weak}, reports, {"links": [3, 4], "both": [3, 4]})
    for ends in same["kinds"]["both"]["gains"]["links"].values():
        assert all(value == pytest.approx([0, 0], abs=1e-12) for value in ends.values())


@pytest.mark.slow
def test_the_tables_have_a_row_a_kind_and_a_comparison(reports: Reports) -> None:
    rng = np.random.default_rng()
    models = {kind: [judged(reports, rng, 0.2)] for kind in ("untouched", *KINDS)}
    environment: dict[str, Any] = {"threads": 1, "gpu": None, "processor": "P", "cores": 1, "date": "2026-01-01"}
    environment["packages"] = {"torch": "2", "transformers": "5"}
    record = measure(models, reports, dict.fromkeys(KINDS, (0,))) | {"environment": environment}
    record["settings"] = {"model": "M", "max_length": 128, "resamples": 1000}
    figures, gains = "\n".join(bugs(record)), "\n".join(bugs_gains(record))
    assert figures.count("\n| titles and bodies | ") == len(DIMS) and figures.count("\n| nothing | ") == len(DIMS)
    assert gains.count("| both less links | ") == len(DIMS) and "| links less links" not in gains


def test_a_run_with_other_settings_or_data_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bug_reports, "train", lambda *_: pytest.fail("trained again"))
    options = Namespace(model="M", data=tmp_path, titles=tmp_path / "titles.json", max_length=128)
    for name in ("pairs_train", "pairs_dev", "titles"):
        (tmp_path / f"{name}.json").write_text(json.dumps(generate_pairs(20, 0, "dev" if "dev" in name else "train")))
    kept, moved = tmp_path / "both-0", tmp_path / "elsewhere" / "both-0"
    config = load_config(CONFIG, settings_of_run(options, "both", 0, kept))
    assert [source.path for source in config.data.sources] == [f"{tmp_path}/pairs_train.json", str(options.titles)]
    assert config.optim.lr == 5e-5 and config.data.dev == f"{tmp_path}/pairs_dev.json"
    data = load_data(config.data, 0)
    fingerprints = {"train_data": data.train.fingerprint(), "dev_data": data.dev.fingerprint()}
    kept.mkdir()
    (kept / "metrics.json").write_text("{}")
    (kept / METADATA).write_text(json.dumps({"fingerprints": fingerprints}))
    (kept / "config.toml").write_text(dump_config(config))
    shutil.copytree(kept, moved)
    options.titles = Path(shutil.copy(options.titles, moved.parent))  # they move with the runs
    for folder in (kept, moved):
        assert train_once(options, "both", 0, folder) == str(folder / "model")
    with pytest.raises(SystemExit, match=r"both-0: a run with another train\.seed: choose another --keep"):
        train_once(options, "both", 1, kept)
    options.titles.write_text(json.dumps(generate_pairs(21, 0, "train")))
    with pytest.raises(SystemExit, match="both-0: a run on other data: choose another --keep"):
        train_once(options, "both", 0, moved)
