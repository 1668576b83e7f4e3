"""`trainer promote`: exit codes, margins, the record of decisions; and `trainer train --from`."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from oracles import edit_json, until_finish
from safetensors.torch import load_file, save_file

from trainer.config_file import dump_config, load_config
from trainer.data.incidents import generate_pairs
from trainer.data.pairs import read_pairs
from trainer.errors import InputError
from trainer.evaluation.assessment import assess_search
from trainer.evaluation.search_metrics import NAMES
from trainer.evaluation.trained_pairs import data_of_chain, data_of_model, picked_by, seen_by_earlier_runs
from trainer.evaluation.verdict import worse_by
from trainer.main import cli
from trainer.system.files import append_line
from trainer.system.run_files import CONFIG, METRICS

COMMON = ["--resamples", "200", "--dims", "64"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_model) -> Path:
    """A model, a copy of it to which all words are nearly one, pairs that share words where positive, and tickets."""
    folder = tmp_path_factory.mktemp("promote")
    shutil.copytree(tiny_model("bert"), folder / "good")
    shutil.copytree(tiny_model("bert"), folder / "poor")
    weights = load_file(folder / "poor" / "model.safetensors")
    words = next(name for name in weights if name.endswith("word_embeddings.weight"))
    weights[words] = weights[words].mean(0, keepdim=True).expand_as(weights[words]).contiguous()
    save_file(weights, folder / "poor" / "model.safetensors", metadata={"format": "pt"})
    rng = random.Random(0)
    vocabulary = ["printer", "paper", "vpn", "mail", "screen", "floor", "hour", "update", "jammed", "bounces", "black"]
    problems = [rng.sample(vocabulary, 5) for _ in range(60)]
    # Of different lengths, which are all that the poor model sees: without any its Spearman would be undefined.
    told = [[" ".join(words), " ".join(rng.sample(words, rng.choice((2, 3, 4))))] for words in problems]
    pairs = [(*two, 1) for two in told] + [(told[i][0], told[(i + 7) % 60][1], 0) for i in range(60)]
    columns = dict(zip(("texts1", "texts2", "labels"), map(list, zip(*pairs, strict=True)), strict=True))
    (folder / "test.json").write_text(json.dumps(columns))
    lines = ["number,short_description,duplicate_of"]
    lines += [
        f"T{i}{side},{text},{'' if side else f'T{i}1'}" for i, two in enumerate(told) for side, text in enumerate(two)
    ]
    (folder / "tickets.csv").write_text("\n".join(lines))
    return folder


def promote(place: Path, candidate: str, deployed: str, *more: str, test: str = "test.json") -> int:
    arguments = [str(place / candidate), "--over", str(place / deployed), "--test", str(place / test), *COMMON, *more]
    return cli(["promote", *arguments, "--record", str(place / "record" / "decisions.jsonl")])


def decisions(place: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (place / "record" / "decisions.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("by", ["pairs", "corpus", "tickets"])
def test_only_a_better_model_is_promoted(place: Path, by: str, capfd) -> None:
    more = {"corpus": ["--corpus", str(place / "tickets.csv")], "tickets": ["--duplicate-column", "duplicate_of"]}
    options, test = more.get(by, []), "tickets.csv" if by == "tickets" else "test.json"
    assert promote(place, "good", "poor", *options, test=test) == 0
    assert promote(place, "poor", "good", *options, test=test) == 1  # negative controls: worse, and the same
    said = capfd.readouterr().err.splitlines()[-1]
    assert said.startswith("error: not promoted") and "good stays: NOT BETTER: the model is surely worse" in said
    assert promote(place, "good", "good", *options, test=test) == 1
    better, worse, same = decisions(place)[-3:]
    assert [each["promoted"] for each in (better, worse, same)] == [True, False, False]
    assert [each["verdict"] for each in (better, worse, same)] == ["BETTER", "NOT BETTER", "NOT BETTER"]
    prints = [each[role]["weights_fingerprint"] for each in (better, worse) for role in ("candidate", "deployed")]
    assert prints[0] == prints[3] != prints[1] == prints[2]
    metric = "spearman" if by == "pairs" else "mrr@10"
    figures = better["figures"]["64"][metric]  # type: ignore[index]
    assert better["metric"] == metric and figures["difference"][0] > 0 and figures["candidate"] > figures["deployed"]
    assert len(better["test"]["sha256"]) == 64 and str(better["date"])[:2] == "20"  # type: ignore[index]


@pytest.mark.slow
def test_a_margin_lets_the_same_model_pass_and_no_worse_one(place: Path, capfd) -> None:
    assert promote(place, "good", "good", "--margin", "0.01") == 0
    assert decisions(place)[-1]["reason"].startswith("spearman and success@10 and map@100 are surely not worse by more")  # type: ignore[attr-defined]
    assert promote(place, "poor", "good", "--margin", "0.01") == 1
    assert "may be worse by more than 0.01: spearman" in capfd.readouterr().err


def test_the_margin_is_asked_of_the_metric_and_of_what_is_guarded() -> None:
    shares = np.random.default_rng(0).permutation(400)

    def found(share: float) -> np.ndarray:
        return (shares < share * 400).astype(float)[None]

    values = {"model": dict.fromkeys(NAMES, found(0.5)), "baseline": dict.fromkeys(NAMES, found(0.5))}
    assert not worse_by(assess(values), "mrr@10", 0.0)
    values["model"] |= {"success@10": found(0.46)}  # surely worse, by 0.04 or so
    (loss,) = worse_by(assess(values), "mrr@10", 0.03)
    assert loss.startswith("success@10 0.500 -> 0.460 [-0.0") and not worse_by(assess(values), "mrr@10", 0.08)
    few = {system: {name: row[:, :3] for name, row in of.items()} for system, of in values.items()}
    assert len(worse_by(assess(few), "mrr@10", 0.9)) == 3  # no interval: it may be anything


def assess(values):
    count = next(iter(values["model"].values())).shape[1]
    return assess_search(values, np.arange(count), (8,), texts=1000, source="t.csv")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--margin", "-1"], "--margin -1: write how much worse"),
        (["--corpus", "c.csv", "--duplicate-column", "d"], "--corpus means nothing for tickets, which search among"),
        (["--date-column", "d"], "--date-column means nothing for pairs alone, without --duplicate-column or"),
        (["--metric", "rouge"], "rouge"),
        (["--allow-overlap", "2"], "--allow-overlap 2: write a share"),
    ],
)
def test_a_wrong_command_decides_nothing(place: Path, more: list[str], message: str, capfd) -> None:
    kept = decisions(place) if (place / "record").exists() else None
    assert promote(place, "good", "poor", *more) == 2 and message in capfd.readouterr().err
    assert (decisions(place) if (place / "record").exists() else None) == kept
    (place / "folder").mkdir(exist_ok=True)
    arguments = ["promote", "nowhere", "--over", "nowhere", "--test", "t.json", "--record", str(place / "folder")]
    assert cli(arguments) == 5 and "is no file" in capfd.readouterr().err
    of_evaluate = ["evaluate", "--model", "nowhere", "--pairs", "t.json", "--json", str(place / "folder")]
    assert cli(of_evaluate) == 5 and "is no file: name one as --json" in capfd.readouterr().err
    arguments[-1] = str(place / "test.json" / "decisions.jsonl")
    assert cli(arguments) == 5 and f"{arguments[-1]}: cannot be written" in capfd.readouterr().err


def test_a_line_is_added_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log.jsonl"
    append_line(path, "one")
    append_line(path, "two")
    assert path.read_text() == "one\ntwo\n"
    path.write_text("cut")  # by a hand: the next line stands for itself
    append_line(path, "three")
    assert path.read_text() == "cut\nthree\n"

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(Exception, match="No space left"):
        append_line(path, "four")
    assert path.read_text() == "cut\nthree\n"


@pytest.mark.slow
def test_thresholds_fitted_in_two_ways_do_not_make_a_model_better_than_itself(
    place: Path, tmp_path: Path, capfd
) -> None:
    devs = [tmp_path / name for name in ("dev.json", "other.json")]
    for seed, dev in enumerate(devs):
        dev.write_text(json.dumps(generate_pairs(48, seed, "dev")))
    ways = {
        "lenient": ("f1", devs[0], []),
        "alike": ("f1", devs[0], []),
        "strict": ("false_positive_rate=0.05", devs[0], []),
        "elsewhere": ("f1", devs[1], []),
        "rare": ("f1", devs[0], ["--prevalence", "0.05"]),
    }
    for name, (rule, dev, more) in ways.items():
        shutil.copytree(place / "good", place / name)
        fit = ["--threshold", rule, "--dev", str(dev), "--pairs", str(place / "test.json"), *more]
        assert cli(["evaluate", "--model", str(place / name), *fit, *COMMON]) == 0
    for deployed in ("strict", "elsewhere", "rare", "good"):
        assert promote(place, "lenient", deployed, "--metric", "f1") == 2
        assert "--metric f1: it depends on thresholds" in capfd.readouterr().err
    assert promote(place, "lenient", "alike", "--metric", "f1") == 1
    assert promote(place, "lenient", "strict") == 1  # by Spearman


# ---- what one of the two was trained on


@pytest.fixture
def run(blank_report: None, place: Path, tmp_path: Path) -> Path:
    """A run of one step over two thirds of the pairs, whose file is its own."""
    folder = tmp_path / "trained"
    folder.mkdir()
    shutil.copy(place / "test.json", folder / "pairs.json")
    settings = [f"model.name={place / 'poor'}", f"data.train={folder / 'pairs.json'}", "data.dev_fraction=0.3"]
    settings += ["loss.dims=[64]", "curriculum.epochs=1", "eval.choose_strength=false"]
    arguments = [part for each in settings for part in ("--set", each)]
    assert cli([*arguments, "--output-dir", str(folder / "run"), "--max-steps", "1"]) == 0
    return folder / "run"


@pytest.mark.slow
def test_no_model_is_judged_by_what_it_was_trained_on(place: Path, run: Path, tmp_path: Path, capfd) -> None:
    for pair in ((run / "model", place / "poor"), (place / "good", run / "model")):  # the deployed one's too
        assert cli(["promote", str(pair[0]), "--over", str(pair[1]), "--test", str(place / "test.json")]) == 2
        error = capfd.readouterr().err.splitlines()[-1]
        assert "texts that are also in" in error and "--allow-overlap = " in error and "data." not in error
    known = data_of_model(str(run / "model"))
    assert known is not None and 0 < len(known.train) < 120
    columns = json.loads((place / "test.json").read_text())
    unseen = [i for i in range(120) if not {columns["texts1"][i], columns["texts2"][i]} & set(known.train.texts)]
    columns = {name: [cells[i] for i in unseen] for name, cells in columns.items()}
    (tmp_path / "unseen.json").write_text(json.dumps(columns))
    record = ["--record", str(tmp_path / "record.jsonl"), *COMMON]
    models = [str(place / "good"), "--over", str(run / "model")]
    assert not picked_by(str(run / "model"), known, known.dev.texts)  # one evaluation, no strength: nothing was picked
    before = (run / METRICS).read_bytes()
    edit_json(run / METRICS, principal_axes={"turned": True})  # by dev
    assert picked_by(str(run / "model"), known, known.dev.texts)
    (run / METRICS).write_bytes(before)
    edit_json(run / METRICS, evaluations=[{}, {}])
    assert not picked_by(str(run / "model"), known, ["another text"])
    assert cli(["promote", *models, "--test", str(tmp_path / "unseen.json"), *record]) in (0, 1)
    said = capfd.readouterr().err
    unknown = f"{place / 'good'}: whether it was trained on what it is judged by cannot be told"
    assert f"{unknown}: it lies in no folder of a run" in said and "Compared at 64 dims; decision written" in said
    (note,) = json.loads((tmp_path / "record.jsonl").read_text())["notes"]
    assert note in said and note.startswith("Dev has also picked the model, so expect a little less on other pairs: ")
    assert note.endswith(f" judged texts are among those that picked {run / 'model'}")
    # Among tickets: those that one of the two knows do not search.
    tickets = ["--test", str(place / "tickets.csv"), "--duplicate-column", "duplicate_of"]
    corpus = [f"data.corpus={place / 'tickets.csv'}", "data.duplicates=duplicate_of", "eval.metric=mrr@10"]
    (run / CONFIG).write_text(dump_config(load_config(run / CONFIG, corpus)))
    assert cli(["promote", *models, *tickets, *record]) in (0, 1)
    assert "are in the training pairs" in capfd.readouterr().err
    decision = json.loads((tmp_path / "record.jsonl").read_text().splitlines()[1])
    count = decision["queries"]
    assert 0 < count < 120 and decision["candidate"]["width"] == decision["deployed"]["width"] == 64
    said = f"The corpus has also picked the model, so expect a little less on other tickets: {count} of the {count} "
    assert decision["notes"][0].startswith(said)
    shutil.copy(tmp_path / "unseen.json", run.parent / "pairs.json")
    assert data_of_model(str(run / "model")) is None and "pairs.json has changed since" in capfd.readouterr().err


@pytest.mark.slow
def test_what_an_earlier_run_was_trained_on_counts_too(place: Path, run: Path, tmp_path: Path, capfd) -> None:
    """A second run goes on from the first with other pairs: the first one's are no test of either."""
    own = tmp_path / "own.json"
    own.write_text(json.dumps(generate_pairs(48, 5, "dev")))
    settings = [
        f"data.train={own}",
        "train.batch_size=8",
        "data.dev_fraction=0.3",
        "loss.dims=[64]",
        "curriculum.epochs=1",
    ]
    arguments = [part for each in (*settings, "eval.choose_strength=false") for part in ("--set", each)]
    arguments += ["--max-steps", "1", "--output-dir", str(tmp_path / "next")]
    assert cli(["train", "--from", str(run / "model"), *arguments]) == 0
    model = str(tmp_path / "next" / "model")
    second, first = data_of_chain(model)
    assert set(second.train.texts) <= set(json.loads(own.read_text())["texts1"] + json.loads(own.read_text())["texts2"])
    assert data_of_model(str(run / "model")).train.texts == first.train.texts
    assert "which is gone" not in capfd.readouterr().err
    # Nor are they a test of a further run, unless their share is named; of dev it is said.
    further = [*arguments, "--from", model, "--output-dir", str(tmp_path / "further"), "--dry-run", "--set"]
    assert cli([*further, f"data.test={place / 'test.json'}"]) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert f"model.name = {model} was trained on what this run is judged by: " in error and "allow_overlap = " in error
    assert cli([*further, f"data.test={place / 'test.json'}", "--set", "data.allow_overlap=1"]) == 0
    assert f"test ({place / 'test.json'}): " in capfd.readouterr().err
    assert cli([*further, f"data.dev={place / 'test.json'}"]) == 0
    assert f"dev ({place / 'test.json'}): " in capfd.readouterr().err
    tables = {"dev": read_pairs(place / "test.json"), "own": second.train}
    seen = seen_by_earlier_runs(model, tables, 0)
    assert seen == {
        "dev and earlier runs": len(set(first.train.texts)),
        "own and earlier runs": len(second.train.texts),
    }
    assert seen_by_earlier_runs(str(place / "good"), tables, 0) == {}  # a pretrained folder, without a word
    assert "cannot be told" not in capfd.readouterr().err
    command = ["promote", model, "--over", str(place / "good"), "--test", str(place / "test.json"), *COMMON]
    assert cli([*command, "--record", str(tmp_path / "record.jsonl")]) == 2
    assert "texts that are also in" in capfd.readouterr().err.splitlines()[-1]
    shutil.move(run, tmp_path / "elsewhere")
    assert len(data_of_chain(model)) == 1 and "which is gone: its pairs cannot be told" in capfd.readouterr().err


# ---- train --from


@pytest.mark.slow
def test_from_begins_with_a_model(place: Path, tmp_path: Path) -> None:
    settings = [f"data.train={place / 'test.json'}", "data.dev_fraction=0.3", "loss.dims=[64]", "curriculum.epochs=1"]
    arguments = [part for each in settings for part in ("--set", each)]
    arguments += ["--from", str(place / "good"), "--output-dir", str(tmp_path / "run"), "--max-steps", "1"]
    run, _ = until_finish(cli, arguments)
    assert run.config.model.name == str(place / "good")


@pytest.mark.parametrize("more", [["--set", "model.name=other"], ["--resume"]])
def test_from_does_not_fight_with_another_name(more: list[str], capfd) -> None:
    assert cli(["--from", "runs/last/model", *more]) == InputError.exit_code
    assert "--from runs/last/model: is short for model.name" in capfd.readouterr().err
