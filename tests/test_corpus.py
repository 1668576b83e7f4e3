"""Search of a corpus in training: who searches, what is refused, and that the best weights are those that find most."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from oracles import tickets_of_pairs, write_tickets

from trainer.checkpoint.identity import identity, require_same_run
from trainer.config import Config, DataConfig
from trainer.config_file import load_config, to_tree
from trainer.data.incidents import generate_pairs
from trainer.data.pairs import PairTable, pairs_from_columns
from trainer.data.run_data import columns_of_settings, read_corpus
from trainer.data.search_corpus import SearchCorpus
from trainer.data.ticket_corpus import corpus_of_tickets
from trainer.data.ticket_table import Columns
from trainer.errors import CheckpointError, InputError
from trainer.evaluation.question import SearchQuestion
from trainer.evaluation.search_judge import judge_search
from trainer.evaluation.search_metrics import NAMES
from trainer.evaluation.search_set import SearchSet
from trainer.main import cli
from trainer.training.setup import Inputs, read_inputs

LINKED = Columns(duplicate_of="duplicate_of")
LONG = " ".join(f"word{i}" for i in range(60))
TICKETS = [
    ("T1", "Printer jam!", f"Hello team,\n{LONG}\nBest regards\nAnna", "", "train"),
    ("T2", "paper is stuck", "on floor 2", "T1", "train"),
    ("T3", "vpn drops", "every hour", "", "dev"),
    ("T4", "vpn is gone", "again", "T3", "dev"),
    ("T5", "mail bounces", "", "T9", "dev"),
    ("T6", "mail comes back", "to me", "T9", "dev"),
    ("T7", "screen is black", "after the update", "", ""),
]


def asking(corpus: SearchCorpus) -> set[str]:
    """The first words of the texts that search."""
    return {corpus.texts[query].split()[0].lower() for query in corpus.queries}


# ---- who searches


@pytest.mark.parametrize(
    "trained",
    [
        f"Printer jam!\nHello team,\n{LONG}\nBest regards\nAnna",
        f"printer JAM - hello team: {LONG[:300]}",  # cut, and joined in another way
        f"Printer jam!\n{LONG}",  # cleaned, as trainer build-pairs does it
        LONG,  # its body alone, cleaned
        "Printer jam",  # its title alone
        "paper is stuck. On floor 2",  # its duplicate
    ],
)
def test_a_group_that_training_met_does_not_search_but_is_found(tmp_path: Path, trained: str) -> None:
    path = write_tickets(tmp_path / "t.csv", TICKETS)
    all_of_them, corpus = corpus_of_tickets(path, LINKED), corpus_of_tickets(path, LINKED, trained=[trained])
    assert asking(all_of_them) == {"printer", "paper", "vpn", "mail"} and all_of_them.facts["trained"] == 0
    assert asking(corpus) == {"vpn", "mail"} and corpus.facts["trained"] == 2
    assert corpus.texts == all_of_them.texts and len(corpus.clusters) == len(corpus.queries) == corpus.relevant.shape[0]
    assert not corpus.excluded[:, :2].nnz  # candidates of all who search


@pytest.mark.parametrize("other", ["Printer", "paper is stuck on floor", "...", "screen is black"])
def test_other_words_are_no_leak(tmp_path: Path, other: str) -> None:
    """A short text that only begins as a ticket does, one without letters, and a ticket that is no duplicate."""
    corpus = corpus_of_tickets(write_tickets(tmp_path / "t.csv", TICKETS), LINKED, trained=[other])
    assert corpus.facts["trained"] == 0 and len(corpus.queries) == 6


def test_a_row_that_is_left_out_tells_of_its_group(tmp_path: Path) -> None:
    rows = [*TICKETS, ("T3", "the line is dead", "", "", "")]  # T3 once more
    corpus = corpus_of_tickets(write_tickets(tmp_path / "t.csv", rows), LINKED, trained=["the line is dead"])
    assert asking(corpus) == {"printer", "paper", "mail"} and "the line is dead" not in corpus.texts


def dev_pairs() -> PairTable:
    columns = {"texts1": ["vpn drops. every hour", "printer jam"], "texts2": ["no vpn", "mail"], "labels": [1, 0]}
    return pairs_from_columns(columns, "dev.json")


def test_without_links_the_positives_of_dev_search_among_the_corpus(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A ticket that dev holds in another form is the same one, not a stranger that stands above the right answer."""
    config = DataConfig(corpus=str(write_tickets(tmp_path / "t.csv", TICKETS)))
    corpus = read_corpus(config, dev_pairs(), ["other"])
    assert corpus is not None and {corpus.texts[query] for query in corpus.queries} == {
        "vpn drops. every hour",
        "no vpn",
    }
    assert len(corpus.texts) == 4 + 6 and "vpn drops\nevery hour" not in corpus.texts
    assert "2 texts search among 10" in capfd.readouterr().err
    with pytest.raises(
        InputError, match="all 2 texts with known duplicates, or duplicates of theirs, are in the train"
    ):
        read_corpus(config, dev_pairs(), ["No VPN!"])


# ---- what is refused, in the words of the settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"duplicates": "Duplicate_off"},
            r"column Duplicate_off is missing .*nearest: 'duplicate_of'.*data\.duplicates",
        ),
        ({"corpus_columns": ["cluster=parts"]}, r"column parts is missing .*nearest: 'part'.*\[\"cluster=NAME\"\]"),
        ({"corpus_columns": ["text=Title"]}, r"column Title is missing .*data\.corpus_columns"),
        ({"duplicates": "description"}, r"links name tickets that are not in the file.*\[\"number=NAME\"\]"),
        ({"duplicates": "part", "corpus_columns": ["date=part"]}, "column part is named for two purposes"),
        (
            {"corpus_columns": ["title=part"]},
            r"data\.corpus_columns, 'title=part': write FIELD=COLUMN, FIELD one of num",
        ),
        ({"corpus_columns": ["number=a", "number=b", "cluster=c"]}, "number is named twice"),
        ({"corpus_columns": ["date=part"]}, "date means something only where tickets are linked: set data.duplicates"),
        ({"duplicates": "duplicate_of", "separator": "|"}, r"duplicate_of is missing \(found: 'number,short"),
    ],
)
def test_a_corpus_that_cannot_be_searched_is_said_in_one_line(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_corpus(DataConfig(corpus=str(write_tickets(tmp_path / "t.csv", TICKETS)), **settings), dev_pairs(), [])
    assert "\n" not in str(caught.value) and "--" not in str(caught.value)


def test_columns_of_any_name_are_taken(tmp_path: Path) -> None:
    rows = [(*row[:3], row[3], f"2024-01-0{i + 1}") for i, row in enumerate(TICKETS)]
    path = write_tickets(tmp_path / "t.csv", rows, ("Nr", "Was", "Wo", "Doppelt", "Wann"))
    named = ("number=Nr", "text=Was", "text=Wo", "date=Wann")
    corpus = corpus_of_tickets(path, columns_of_settings("doppelt", named))
    assert asking(corpus) == {"paper", "vpn", "mail"}  # of each two the later
    with pytest.raises(InputError, match=r"name yours with data\.corpus_columns"):
        corpus_of_tickets(path, columns_of_settings("doppelt", named[:1]))


# ---- whole runs


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pairs, and tickets in which those that a positive pair names are duplicates, of train, dev and others."""
    folder = tmp_path_factory.mktemp("corpus")
    paths = {part: folder / f"{part}.json" for part in ("train", "dev", "test")}
    for (part, path), count in zip(paths.items(), (72, 36, 90), strict=True):
        path.write_text(json.dumps(generate_pairs(count, 0, part)))
    return paths | {"tickets": write_tickets(folder / "tickets.csv", tickets_of_pairs(paths))}


@pytest.fixture
def train(
    tiny_model: Callable[[str], Path], files: dict[str, Path], tmp_path: Path, blank_report: None
) -> Callable[..., tuple[int, Path]]:
    """train({key: value}) -> (exit code, folder of the run)."""
    (tmp_path / "small.toml").write_text(
        f'model.name = "{tiny_model("mpnet")}"\n'
        f'data = {{train = "{files["train"]}", dev = "{files["dev"]}", corpus = "{files["tickets"]}", '
        'duplicates = "duplicate_of"}\n'
        "train = {batch_size = 8, precision = 'fp32'}\n"
        "curriculum = {epochs = 1, mode = 'mixed'}\noptim.lr = 1e-3\nloss.dims = [16, 64]\nlora.enabled = false\n"
        "eval = {every = 2, choose_strength = false}\n"
    )

    def run(changes: dict[str, Any], folder: str = "run") -> tuple[int, Path]:
        sets = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
        arguments = ["train", "--config", str(tmp_path / "small.toml"), "--output-dir", str(tmp_path / folder), *sets]
        return cli(arguments), tmp_path / folder

    return run


@pytest.mark.slow
def test_a_run_goes_by_the_corpus_and_ends_with_what_trainer_evaluate_finds(
    train: Callable[..., tuple[int, Path]],
    files: dict[str, Path],
    tiny_model: Callable[[str], Path],
    capfd: pytest.CaptureFixture[str],
) -> None:
    code, folder = train({"eval.choose_strength": "true", "data.corpus_columns": '["text=short_description"]'})
    said = " ".join(capfd.readouterr().err.split())
    assert code == 0
    metrics = json.loads((folder / "metrics.json").read_text())
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    evaluations = [line["evaluation"] for line in lines if "evaluation" in line]
    values = [evaluation["64"]["mrr@10"] for evaluation in evaluations]
    assert len(values) > 3 and metrics["best_step"] == 2 * values.index(max(values)) + 2
    assert all(set(NAMES) < set(of_dim) for evaluation in evaluations for of_dim in evaluation.values())
    assert 'eval.metric: "mrr@10" picks the best model' in said and "corpus mrr@10" in said
    assert "texts with known duplicates do not search but are still found" in said
    assert "texts are embedded before training, at up to 5 evaluations, for up to 9 strengths and at the end" in said
    # At strength 0 the corpus is searched as it was before step 0.
    curve = json.loads((folder / "strength.json").read_text())["curve"]
    start = json.loads((folder / "metrics.json").read_text())["search"]["baseline"]
    assert metrics["verdict_on"] == "corpus" and "Dev pairs, search figures of the corpus tickets.csv" in said
    assert curve[0]["alpha"] == 0 and curve[0]["metric"]["64"] == pytest.approx(start["64"]["mrr@10"], abs=1e-6)
    # Groups of train do not search; of the others all do, among the tickets of all.
    judged = None
    for part in ("dev", "test"):
        columns = Columns(texts=("short_description",), duplicate_of="duplicate_of")
        question = SearchQuestion(str(folder / "model"), baseline=str(tiny_model("mpnet")), dims=(16, 64))
        question = replace(question, tickets=str(files["tickets"]), columns=columns, queries=f"part={part}")
        found = judge_search(question)
        weight = found.assessment.queries / metrics["search"]["queries"]
        share = {
            (system, dim, name): weight * value
            for system, by_dim in found.assessment.metrics.items()
            for dim, of_dim in by_dim.items()
            for name, value in of_dim.items()
        }
        judged = share if judged is None else {key: judged[key] + value for key, value in share.items()}
    assert judged is not None and metrics["search"]["facts"]["trained"] > 20
    for (system, dim, name), value in judged.items():
        assert metrics["search"][system.replace("model", "final")][dim][name] == pytest.approx(value, abs=1e-6)
    assert metrics["search"]["differences"].keys() > {"difference", "model less bm25", "bm25+model less model"}
    assert metrics["final"]["64"]["mrr@10"] == metrics["search"]["final"]["64"]["mrr@10"]
    assert " the model " in said.lower() and "BM25, a search by words without any model" in said


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["success@5", "spearman"])
def test_the_corpus_is_what_a_search_metric_is_measured_on(
    train: Callable[..., tuple[int, Path]],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    metric: str,
) -> None:
    """A corpus in which less is found from evaluation to evaluation; a metric of pairs does not look there."""
    real, asked, falling = SearchSet.add_to, [], iter([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])

    def add_to(self: SearchSet, metrics: Any, embeddings: Any) -> Any:
        asked.append(len(embeddings))
        found = real(self, metrics, embeddings)
        found["64"]["success@5"] = next(falling)
        return found

    monkeypatch.setattr(SearchSet, "add_to", add_to)
    without = lambda name: None if name == "bm25s" else find_spec(name)  # noqa: E731
    monkeypatch.setattr("trainer.training.corpus_search.find_spec", without)
    code, folder = train({"eval.metric": metric, "early_stopping.patience": 2, "model.principal_axes": "false"})
    said = " ".join(capfd.readouterr().err.split())
    metrics = json.loads((folder / "metrics.json").read_text())
    by_search = metric == "success@5"
    assert metrics["verdict_on"] == ("corpus" if by_search else "dev")
    assert code == 0 and len(asked) == (4 if by_search else 1)  # before training; best, and two that are not better
    assert len(set(asked)) == 1 and (metrics["best_step"] == 2 or not by_search)
    assert ("texts are embedded before training and at the end" in said) is not by_search
    assert "without BM25 beside the models: install the extra `mine`" in said
    assert metrics["search"].keys() & {"baseline", "final", "bm25"} == {"baseline", "final"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data.duplicates": "dup"}, "column dup is missing"),
        ({"data.corpus": "nowhere.csv"}, "nowhere.csv"),
        ({"data.corpus": ""}, "data.duplicates is about the tickets to search among: name their file as data.corpus"),
        ({"eval.metric": "success@3"}, 'eval.metric = "success@3": use one of auto, spearman'),
        ({"data.corpus": "TRAINED"}, "are in the training pairs, so a search would be judged by what was trained on"),
    ],
)
def test_bad_input_is_one_line_exit_2_and_no_folder(
    train: Callable[..., tuple[int, Path]],
    files: dict[str, Path],
    changes: dict[str, str],
    words: str,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    if changes.get("data.corpus") == "TRAINED":
        trained = write_tickets(tmp_path / "trained.csv", tickets_of_pairs({"train": files["train"]}))
        changes = {"data.corpus": str(trained)}
    code, folder = train(changes)
    said = capfd.readouterr().err.splitlines()
    assert code == 2 and not folder.exists()
    assert len([line for line in said if words in line]) == 1 and "Traceback" not in "".join(said)


@pytest.mark.slow
def test_a_corpus_that_changed_is_another_run(
    tiny_model: Callable[[str], Path], files: dict[str, Path], tmp_path: Path
) -> None:
    """A link that is gone, a word that is new; the same rows again are the same corpus."""
    rows = [tuple(row) for row in csv.reader(files["tickets"].open(encoding="utf-8"))][1:]
    path = tmp_path / "t.csv"
    settings = {"model.name": tiny_model("mpnet"), "data.train": files["train"], "data.dev": files["dev"]}
    settings |= {"data.corpus": path, "data.duplicates": "duplicate_of", "train.batch_size": 8, "loss.dims": "[64]"}
    (tmp_path / "empty.toml").write_text("")

    def inputs(rows: list[tuple[str, ...]]) -> Inputs:
        write_tickets(path, rows)
        config: Config = load_config(tmp_path / "empty.toml", [f"{key}={value}" for key, value in settings.items()])
        return read_inputs(config, tmp_path / "run", {})

    first = inputs(rows)
    saved = identity(to_tree(first.config), first.fingerprints, {})
    assert first.corpus is not None and first.fingerprints["corpus"] == first.corpus.corpus.fingerprint()
    row = next(number for number, row in enumerate(rows) if row[4] == "dev" and row[3])
    for changed in ((*rows[row][:3], "", "dev"), (rows[row][0], rows[row][1] + " again", *rows[row][2:]), rows[row]):
        again = inputs([*rows[:row], changed, *rows[row + 1 :]])
        current = identity(to_tree(again.config), again.fingerprints, {})
        if changed == rows[row]:
            assert require_same_run(tmp_path, saved, current, False) == []
        else:
            with pytest.raises(
                CheckpointError,
                match=r"not the same run: corpus was '\w{12}…', is .*data\.corpus = .*t\.csv has changed: restore",
            ):
                require_same_run(tmp_path, saved, current, False)
