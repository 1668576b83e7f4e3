"""report.html: whole, self-contained, masked, and refused in one line where there is nothing to show."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import tomllib
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from oracles import edit_json
from sklearn.metrics import roc_curve

from trainer.config import Config, LossConfig
from trainer.data.incidents import generate_pairs
from trainer.data.pairs import read_pairs
from trainer.errors import InputError
from trainer.evaluation.judge import Question, judge
from trainer.evaluation.metric_choice import SEARCH_METRICS
from trainer.evaluation.pair_metrics import roc_points
from trainer.lint.findings import Finding
from trainer.main import cli
from trainer.report import plots as figures
from trainer.report.comparison import write_comparison
from trainer.report.record import read_run
from trainer.report.run_page import write_report
from trainer.system.console import console
from trainer.training import finish
from trainer.training.model_card import CardFacts, model_card
from trainer.training.summary import print_summary

VOID = {"meta", "img", "br"}
SECRET = "call jane.doe@example.com or +49 170 1234567 about srv-db01"
SIZES = Config(loss=LossConfig(dims=(64, 16)))
FACTS = CardFacts(
    {"pairs.json": {"rows": 36, "weight": 1.0}},
    "2026-01-02",
    max_length=96,
    licence="",
    sided=False,
    steps=9,
    planned_steps=9,
)


class Page(HTMLParser):
    """Reads a page strictly: every tag closed in order. Collects texts by tag, the headings of each table with those
    that its cells carry, images, and what it would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: dict[str, list[str]] = {}
        self.tables: list[tuple[list[str], list[str | None]]] = []
        self.images: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.addresses += [value or "" for key, value in attributes if key in ("src", "href", "data", "action")]
        if tag == "img":
            assert values["alt"]
            self.images.append(values["src"] or "")
        if tag == "table":
            self.tables.append(([], []))
        if tag == "td":
            self.tables[-1][1].append(values.get("data-heading"))
        if tag not in VOID:
            self.open.append(tag)
            self.text.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "th":
            self.tables[-1][0].append(self.text["th"][-1])

    def handle_data(self, data: str) -> None:
        if self.open:
            self.text[self.open[-1]][-1] += data


@pytest.fixture(scope="module")
def finished(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a test set and a forgetting set; its dev and test texts hold what must be masked."""
    folder = tmp_path_factory.mktemp("run")
    sets = []
    for part, count in (("train", 48), ("dev", 24), ("test", 36)):
        columns = generate_pairs(count, 0, part)
        if part == "test":
            columns["texts1"] = [f"{text} {SECRET} <b>&" for text in columns["texts1"]]
        (folder / f"{part}.json").write_text(json.dumps(columns))
        sets.append(f"--set=data.{part}={folder / f'{part}.json'}")
    rows = [f"a vpn {i},no mail {i * 7 % 60},{i * 13 % 51 / 10}" for i in range(30)]
    (folder / "sts.csv").write_text("\n".join(rows) + "\n")
    sets += [f"--set=data.forgetting={folder / 'sts.csv'}", f"--set=model.name={tiny_model('mpnet')}"]
    sets += ["--set=train.batch_size=8", "--set=curriculum.epochs=1", "--set=optim.lr=1e-3", "--set=loss.dims=[64, 16]"]
    sets += ["--set=train.precision=fp32"]  # by default it is the processor that decides
    (folder / "empty.toml").write_text("")
    assert cli(["--config", str(folder / "empty.toml"), "--output-dir", str(folder / "run"), *sets]) == 0
    return folder / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of its files that may be changed."""
    return copy_of(finished, tmp_path / "run")


def copy_of(run: Path, folder: Path) -> Path:
    """A copy of what the report is made of."""
    return shutil.copytree(run, folder, ignore=shutil.ignore_patterns("checkpoints", "model", "adapter"))


@pytest.fixture
def blank_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made and not drawn, which takes most of a report's time."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, file, **options: file.write("<svg/>"))


def test_a_training_run_ends_with_a_report_that_is_whole_and_needs_no_network(finished: Path) -> None:
    text = (finished / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    metrics = json.loads((finished / "metrics.json").read_text())
    first = metrics.get("sentences", [metrics["verdict"]])[0]
    assert metrics["verdict_on"] == "test" and page.text["strong"] == [first]
    assert text.index('class="verdict') < text.index("<table")  # the verdict comes first
    for heading in ("By dim", "All figures", "Adversarial diagnostic", "The 20 pairs", "Lint", "Data and environment"):
        assert any(one.startswith(heading) for one in page.text["h2"])
    for metric in metrics["test"]["final"]["64"]:
        assert metric in page.text["td"]
    assert any(cell.startswith("64 dims: ") for cell in page.text["td"])  # what was forgotten
    assert not any("in-sample" in cell for cell in page.text["th"])  # the thresholds are dev's, the pairs test's
    rows = dict(zip(page.text["td"], page.text["td"][1:], strict=False))
    told = [rows[name] for name in ("learning rate", "epochs", "batch size", "precision")]
    assert told == [
        "up to 0.001, 1e-06 at the end",
        "1 of phase 1, 1 of phase 2, 1 of phase 3",
        "8 pairs a process",
        "fp32",
    ]
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT[\d:]{8}\+00:00", rows["date"])
    value = metrics["test"]["final"]["16"]["spearman"]
    assert any(f"{value:.4f}" in cell for cell in page.text["td"])
    # Nothing is fetched: no address but pictures that are here, no script, no style sheet from elsewhere.
    assert page.addresses == page.images and all(one.startswith("data:image/svg+xml;base64,") for one in page.images)
    assert not re.search(r"<script|<link|@import|url\(", text)
    assert len(page.images) == 6
    for image in page.images:
        root = ElementTree.fromstring(base64.b64decode(image.partition(",")[2]))
        assert root.tag.endswith("svg") and len(list(root.iter())) > 50
    assert "@media print" in text and 'name="viewport"' in text


def test_on_a_narrow_screen_every_row_is_a_block_that_needs_no_scrolling(finished: Path) -> None:
    """Cells stand below each other, each named by its heading, and nothing scrolls."""
    text = (finished / "report.html").read_text(encoding="utf-8")
    tables = Page(text).tables
    main, _ = tables[0]
    assert main[:2] == ["dims", "verdict"] and main[-1] == "Spearman difference, 95 %"
    for headings, carried in tables:
        rows = len(carried) // len(headings)
        assert rows and carried == (headings if len(headings) > 2 else [None] * 2) * rows
    (narrow,) = re.findall(r"@media screen and \(max-width: 40rem\) \{(.*?\} )\}\n", text, flags=re.S)
    for rule in (
        ".wide { overflow: visible; }",
        "thead { display: none; }",
        "table, tbody, tr, td { display: block; }",
        'td[data-heading]::before { content: attr(data-heading) ": ";',
    ):
        assert rule in narrow
    assert narrow.count("white-space: normal") == 1 and "nowrap" not in text and "overflow-x" not in narrow


@pytest.mark.slow
def test_the_page_begins_with_the_runs_own_sentences(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    said = ["Better & sure: deploy, yes.", "The right ticket is among the first five for 62 -> 71 of 100."]
    page = Page(write_report(run, metrics | {"sentences": said}).read_text())
    assert page.text["strong"] == said[:1] and said[1] in page.text["p"][0]
    metrics.pop("sentences", None)  # of an older version
    page = Page(write_report(run, metrics).read_text())
    assert page.text["strong"] == [metrics["verdict"]]
    assert "picked the model" not in page.text["p"][1]  # dev did, and the verdict is about test


@pytest.mark.slow
@pytest.mark.usefixtures("blank_pictures")
def test_what_picked_the_model_is_said_only_where_something_did(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    del metrics["test"]

    def is_said() -> bool:
        return "Dev has also picked the model" in Page(write_report(run, metrics).read_text()).text["p"][1]

    assert is_said() and (run / "strength.json").exists()  # by strength
    (run / "strength.json").unlink()
    metrics["evaluations"] = metrics["evaluations"][-1:]
    metrics["principal_axes"] = {"turned": False}  # dev was asked whether to turn
    assert is_said()
    del metrics["principal_axes"]
    assert not is_said()
    metrics["evaluations"] *= 2  # by step
    assert is_said()


@pytest.mark.slow
def test_the_pairs_most_wrong_can_be_labelled(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In the report's order, as they stand in the file; not where the file has changed since."""
    output = tmp_path / "labels.json"
    command = ["label", "--pairs", str(run), "--choose", "wrong", "--output", str(output), "--labeller", "anna"]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"n\n" * 20)))
    assert cli(command) == 0, capfd.readouterr().err
    worst = json.loads((run / "scores.json").read_text())["worst"]
    table = read_pairs(tomllib.loads((run / "config.toml").read_text())["data"]["test"])
    labelled = read_pairs(output)
    for place, pair in enumerate(worst):
        for ends, of_file in ((labelled.text1, table.text1), (labelled.text2, table.text2)):
            assert labelled.texts[ends[place]] == table.texts[of_file[pair["row"] - 1]]
    assert json.loads(output.read_text())["labels_before"] == [pair["label"] for pair in worst] and len(worst) == 20
    edit_json(run / "metrics.json", test=read_run(run).metrics["test"] | {"data_fingerprint": "0"})
    assert cli(command) == InputError.exit_code and "is not what the run was judged on" in capfd.readouterr().err


@pytest.mark.usefixtures("blank_pictures")
def test_the_page_has_its_folders_name_where_it_is_named_by_a_dot_and_a_command_for_a_shell(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(run, folder := run.parent / "my run")
    monkeypatch.chdir(folder)
    assert cli(["report", "."]) == 0
    page = Page((folder / "report.html").read_text())
    assert page.text["h1"] == ["my run"] and any("--pairs 'my run' --choose" in text for text in page.text["p"])


@pytest.mark.usefixtures("blank_pictures")
def test_the_search_of_a_corpus_is_shown_for_every_system(
    run: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["test"]["question"]["metric"] = "mrr@10"
    by_dim = {"64": {"success@5": 0.7, "success@10": None, "map@100": 0.5}}
    ends = {"64": {"success@5": [0.4, 0.9], "success@10": [None, None], "map@100": [0.25, 0.75]}}
    counts = {"texts": 5222, "source": "x/tickets.csv", "queries": 670}
    counts["groups"] = {"count": 321, "kind": "clusters of duplicates"}
    metrics["test"] |= counts | {"groups": metrics["test"]["groups"]}
    metrics["search"] = counts | {"final": by_dim, "bm25": by_dim, "intervals": {"final": ends, "bm25": ends}}
    page = Page(write_report(run, metrics).read_text())
    assert "The corpus has also picked the model" in page.text["p"][1]
    assert "Search among 5,222 texts of tickets.csv, 670 queries" in page.text["h2"]
    cells = page.text["td"][page.text["td"].index("BM25") :]
    figures_shown = ["64", "0.7000 (0.400, 0.900)", "- ", "0.5000 (0.250, 0.750)"]
    assert cells[:10] == ["BM25", *figures_shown, "after", *figures_shown]
    # Nothing of the corpus is said to be of the pairs.
    corpus = "the corpus tickets.csv (670 queries among 5,222 texts)"
    assert f"by mrr@10 on {corpus}." in page.text["p"][1]
    assert f"Search figures are of {corpus}; the others are of the 36 test pairs." in page.text["p"]
    assert any(one.startswith("All figures on test and, of search, on the corpus") for one in page.text["h2"])
    assert f"{corpus}; 321 clusters of duplicates" in page.text["td"]
    (run / "metrics.json").write_text(json.dumps(metrics))
    assert read_run(run).judged_on == "corpus" and metrics["verdict_on"] == "test"  # as an older version wrote it
    shutil.copytree(run, other := run.parent / "other")
    page = Page(write_comparison([run, other], run.parent / "both.html").read_text())
    assert f"mrr@10 by dim on {corpus}: before → after" in page.text["h2"]
    assert f"{metrics['verdict']} (corpus)" in page.text["td"]
    for part in ("dev", "test"):
        for of_dim in metrics[part]["intervals"]["difference"].values():
            of_dim["mrr@10"] = [-0.1, 0.1]  # JSON has null for those that are undefined here
    metrics["verdict_on"] = "corpus"
    card = model_card(SIZES, metrics, FACTS)
    assert f"by mrr@10 on 36 held-out pairs (test), search figures of {corpus}:" in card
    monkeypatch.setattr(console, "width", 400)
    print_summary(SIZES, metrics, run / "model", sided=False)
    said = " ".join(capfd.readouterr().err.split())
    assert f"Test pairs, search figures of {corpus}: baseline -> final" in said
    metrics["test"]["question"]["metric"] = "spearman"  # negative control: of the pairs, also beside a corpus
    page = Page(write_report(run, metrics).read_text())
    assert "by spearman on 36 test pairs." in page.text["p"][1] and "corpus" not in page.text["p"][1]


def test_what_a_corpus_says_of_two_sets_of_positives_is_shown_once(capfd: pytest.CaptureFixture[str]) -> None:
    search = {"source": "tickets.csv", "queries": 5, "texts": 9}
    judged = {"question": {"metric": "mrr@10", "dev": None}, "verdict": "UNCLEAR", "sentences": []}
    values = {"64": dict.fromkeys(("success@1", "success@5", "success@10", "mrr@10"), 0.5)}
    ends = {"intervals": {"difference": {"64": {"mrr@10": [-0.1, 0.1]}}}, "verdicts": {"64": "UNCLEAR"}}
    nothing = {"undefined": {}, "forgetting": None, "thresholds": {}}
    record = search | judged | ends | nothing | {"baseline": values, "final": values}
    metrics = {"dev": record, "test": record, "best_step": 1, "strength": 1.0, "evaluations": [{}]}
    for verdict_on, tables in (("corpus", 1), ("test", 2)):
        print_summary(SIZES, metrics | {"verdict_on": verdict_on}, Path("model"), sided=False)
        assert capfd.readouterr().err.count("baseline -> final") == tables


def covered(figure: Figure) -> list[str]:
    """Legends of a figure that lie over one of its panels, as they are drawn."""
    FigureCanvasAgg(figure).draw()
    legends = [*figure.legends, *(each for panel in figure.axes if (each := panel.get_legend()))]
    boxes = [panel.get_tightbbox() for panel in figure.axes]
    assert legends
    return [
        "\n".join(text.get_text() for text in legend.get_texts())
        for legend in legends
        if any(legend.get_window_extent().overlaps(box) for box in boxes)
    ]


@pytest.mark.slow
def test_no_legend_covers_a_curve(finished: Path) -> None:
    record = read_run(finished)
    labels, before, after = (record.scores[name] for name in ("labels", "baseline", "final"))
    thresholds, judged = record.scores["thresholds"]["final"], record.judged
    one, *others = (f"runs/a-folder-with-a-long-name-{i}" for i in range(6))
    assert record.strength
    drawn = [
        figures.draw_loss(record.steps, record.plan["phases"]),
        figures.draw_dims({"after": judged}, "spearman"),
        figures.draw_dims(
            {one: judged} | {name: judged | {"baseline": judged["final"]} for name in others}, "spearman"
        ),
        figures.draw_histograms(labels, before, after, thresholds),
        figures.draw_roc(labels, before, after),
        figures.draw_strength(record.strength),
        figures.draw_threshold(labels, after, thresholds),
    ]
    assert [covered(figure) for figure in drawn] == [[]] * len(drawn)
    inside = drawn[0].axes[0].legend()  # negative control
    assert covered(drawn[0]) == ["\n".join(text.get_text() for text in inside.get_texts())]


def test_a_histogram_leaves_to_its_caption_what_the_threshold_was_fitted_on() -> None:
    scores = {"8": [0.1, 0.9]}  # dev, or the judged pairs where dev has no negatives
    (legend,) = figures.draw_histograms([0, 1], scores, scores, {"8": 0.5}).legends
    assert {text.get_text() for text in legend.get_texts()} == {"negative", "positive", "threshold"}


@pytest.mark.slow
@pytest.mark.usefixtures("blank_pictures")
def test_texts_are_masked_and_escaped(run: Path) -> None:
    for name in ("report.html", "scores.json"):
        text = (run / name).read_text(encoding="utf-8")
        assert not re.search(r"jane\.doe|1234567|srv-db01", text)
    assert "&lt;email&gt;" in (run / "report.html").read_text() and "<b>&" not in (run / "report.html").read_text()
    # Also where the file holds them: the page masks once more.
    scores = json.loads((run / "scores.json").read_text())
    scores["worst"][0]["texts"][0] = SECRET
    (run / "scores.json").write_text(json.dumps(scores))
    assert "jane.doe" not in write_report(run).read_text()


def test_without_masks_the_texts_would_show(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control of the check above."""
    monkeypatch.setattr(finish, "mask_text", lambda text: text)
    assert "jane.doe" in finish.shown(SECRET)


@pytest.mark.slow
def test_a_report_made_again_is_the_same(run: Path) -> None:
    """The run wrote it before metrics.json, so that nothing is missing once that is there."""
    before = (run / "report.html").read_bytes()
    assert cli(["report", str(run)]) == 0
    assert (run / "report.html").read_bytes() == before


@pytest.mark.slow
@pytest.mark.usefixtures("blank_pictures")
def test_lint_findings_are_shown(run: Path) -> None:
    record = json.loads((run / "lint.json").read_text())
    assert record["findings"], "the run's own lint found something to show"
    own = Page((run / "report.html").read_text())
    for finding in record["findings"]:
        assert finding["message"] in own.text["td"] and Path(finding["source"]).name in own.text["td"]
    said = "475 of 15000 (3.2 %) rows <i>repeat</i>"  # such figures are no telephone number
    leak = asdict(Finding("serious", "leak", "pairs/dev.json", said, {}, [3, 14, 15], "split by ticket"))
    (run / "lint.json").write_text(json.dumps(record | {"findings": [leak], "notes": ["no TF-IDF"]}))
    text = write_report(run).read_text()
    page = Page(text)
    assert {"serious", "leak", "dev.json", said, "rows 3, 14, 15", "split by ticket"} <= set(page.text["td"])
    assert "Note: no TF-IDF" in page.text["p"] and "<i>" not in text
    (run / "lint.json").write_text(json.dumps(record | {"findings": []}))
    assert "Nothing found" in write_report(run).read_text()
    (run / "lint.json").unlink()
    assert "No lint.json" in write_report(run).read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("blank_pictures")
def test_undefined_figures_do_not_break_it(run: Path) -> None:
    """NaN is null in the files: too few groups give no interval, no category no diagnostic."""
    metrics = json.loads((run / "metrics.json").read_text())
    for system in metrics["test"]["intervals"].values():
        for ends in system.values():
            for name in ends:
                ends[name] = [None, None]
    metrics["test"]["final"]["16"]["precision"] = None
    metrics["test"]["spearman_ceiling"] = None
    (run / "metrics.json").write_text(json.dumps(metrics))
    text = write_report(run).read_text()
    assert "-" in Page(text).text["td"]  # what stands for no number
    assert not {"NaN", "nan", "None"} & set(re.findall(r"\w+", " ".join(Page(text).text["td"])))


@pytest.mark.slow
@pytest.mark.usefixtures("blank_pictures")
@pytest.mark.parametrize(("metric", "title"), [("average_precision", "average_precision"), ("spearman", "Spearman")])
def test_the_metric_that_the_run_goes_by_is_shown_before_and_after(
    metric: str, title: str, run: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the report, in the model card and in the table that a run ends with; one of the usual ones only once."""
    metrics = json.loads((run / "metrics.json").read_text())
    for part in ("dev", "test"):
        metrics[part]["question"]["metric"] = metric
    test = metrics["test"]
    values = [f"{test[system]['16'][metric]:.4f}" for system in ("baseline", "final")]
    page = Page(write_report(run, metrics).read_text())
    assert page.text["th"].count(title) == 1
    assert page.text["td"].count(" → ".join(values)) == 1
    card = model_card(SIZES, metrics, FACTS)
    assert card.count(f" {title} before | after |") == 1 and f"| {' | '.join(values)} |" in card
    heading, rule, row = [line for line in card.splitlines() if line.startswith("|")][:3]
    assert heading.count("|") == rule.count("|") == row.count("|")
    monkeypatch.setattr(console, "width", 200)
    print_summary(SIZES, metrics, run / "model", sided=False)
    assert " -> ".join(values) in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_the_card_and_the_summary_say_that_the_export_is_the_untouched_model(
    alpha: float, run: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "width", 400)
    metrics = json.loads((run / "metrics.json").read_text()) | {"strength": alpha}
    card = model_card(SIZES, metrics, FACTS)
    print_summary(SIZES, metrics, run / "model", sided=False)
    for text in (card, capfd.readouterr().err):
        assert (f"{alpha:.1f}: the export is the model that training began with" in text) is (alpha == 0)
        assert all(sentence in " ".join(text.split()) for sentence in metrics["sentences"])
    assert ("not changed by fine-tuning" in card) is (alpha == 0) and "fine-tun" in card.split("\n\n")[1]


@pytest.fixture(scope="module")
def positives_run(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished run on positives alone, some of them held out, and what it said; there was no matplotlib."""
    folder = tmp_path_factory.mktemp("positives")
    columns = generate_pairs(240, 0, "train")
    rows = [row for row, label in enumerate(columns["labels"]) if label]
    pairs = folder / "ones.json"
    pairs.write_text(json.dumps({name: [cells[row] for row in rows] for name, cells in columns.items()}))
    sets = [f"--set=data.train={pairs}", f"--set=model.name={tiny_model('mpnet')}", "--set=loss.pair_weight=0.5"]
    sets += ["--set=train.batch_size=8", "--set=curriculum.epochs=1", "--set=optim.lr=1e-3", "--set=loss.dims=[64, 16]"]
    sets += ["--set=data.dev_fraction=0.3", "--set=eval.every=4", "--set=lora.enabled=false"]
    (folder / "empty.toml").write_text("")
    with console.capture() as captured, pytest.MonkeyPatch.context() as patch:
        patch.setattr(finish, "find_spec", lambda name: None)
        assert cli(["--config", str(folder / "empty.toml"), "--output-dir", str(folder / "run"), *sets]) == 0
    return folder / "run", captured.get()


@pytest.mark.slow
def test_a_run_on_positives_alone_goes_by_search(positives_run: tuple[Path, str], tmp_path: Path) -> None:
    """Best, strength and verdict; and nothing that would need negatives is there, least of all as NaN."""
    folder, said = positives_run
    names = ("metrics", "strength", "scores", "training_metadata")
    metrics, strength, scores, metadata = (json.loads((folder / f"{name}.json").read_text()) for name in names)
    dev = metrics["dev"]
    assert (metrics["verdict_on"], dev["question"]["metric"], strength["metric"]) == ("dev", "mrr@10", "mrr@10")
    values = [each["metrics"]["64"]["mrr@10"] for each in metrics["evaluations"]]
    assert len(values) >= 2 and metrics["evaluations"][int(np.argmax(values))]["step"] == metrics["best_step"]
    assert set(metrics["final"]["16"]) == set(metrics["baseline"]["16"]) == set(SEARCH_METRICS)
    chosen = next(point["metric"] for point in strength["curve"] if point["alpha"] == strength["chosen"])
    axes = metrics["principal_axes"]  # by search too; the full width stays
    assert axes["turned"] and axes["before"] == pytest.approx(chosen["16"], abs=1e-3)
    expected = chosen | {"16": axes["after"]}
    assert {dim: at["mrr@10"] for dim, at in metrics["final"].items()} == pytest.approx(expected, abs=1e-3)
    assert metrics["verdict"] == dev["verdict"]
    assert dev["diagnostic"] == dev["thresholds"] == scores["thresholds"] == {} and set(scores["labels"]) == {1}
    assert not (folder / "model" / "thresholds.json").exists()
    rows = metadata["rows"]
    assert rows["train"] + rows["dev"] + rows["left out"] == sum(generate_pairs(240, 0, "train")["labels"])
    for word in (
        f"held out {rows['dev']} of",
        "positives alone, so judged by search",
        'eval.metric: "mrr@10"',
        "No thresholds.json",
        "Ignored: loss.pair_weight (there are no negatives)",
    ):
        assert word in said
    assert "nan" not in said.lower() and not re.search(r"\bNaN\b", (folder / "metrics.json").read_text())
    card = (folder / "model" / "README.md").read_text()
    assert "There are no thresholds" in card and "mrr@10 before | after" in card and "nan" not in card
    # What it leaves is a model that labelled pairs can judge.
    pairs = tmp_path / "pairs.json"
    pairs.write_text(json.dumps(generate_pairs(120, 1, "test")))
    found = judge(Question(str(folder / "model"), str(pairs), dims=(16,), resamples=100))
    assert found.in_sample("model") and found.assessment.metrics["model"]["16"]["roc_auc"] > 0


@pytest.mark.slow
def test_training_succeeds_without_matplotlib(positives_run: tuple[Path, str]) -> None:
    folder, said = positives_run
    assert "matplotlib is not installed" in said
    assert (folder / "metrics.json").exists() and not (folder / "report.html").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("blank_pictures")
def test_its_report_and_a_comparison_show_search_alone(
    positives_run: tuple[Path, str], finished: Path, tmp_path: Path
) -> None:
    folder = copy_of(positives_run[0], tmp_path / "run")
    page = Page(write_report(folder).read_text())  # made later: the run had no matplotlib
    assert len(page.images) == 3  # by dim, loss, strength: none that would be empty
    main = page.text["th"][: page.text["th"].index("metric")]
    assert main[:7] == ["dims", "verdict", "success@1", "success@5", "success@10", "mrr@10", "mrr@10 difference, 95 %"]
    assert any("positives alone, so judged by search" in one for one in page.text["p"])
    assert "The adversarial diagnostic needs negatives, and these pairs have none." in page.text["p"]
    assert not {"NaN", "nan", "None"} & set(re.findall(r"\w+", " ".join(page.text["td"] + page.text["p"])))
    for runs in ([finished, folder], [folder, finished]):
        page = Page(write_comparison(runs, tmp_path / "both.html").read_text())
        judged_by = {heading.partition(" by dim on ")[0] for heading in page.text["h2"] if " by dim on " in heading}
        assert judged_by == {"Spearman", "mrr@10"}  # each by its own, on its own pairs


def edit_metrics(run: Path, **changes: object) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    metrics[metrics["verdict_on"]] |= changes
    (run / "metrics.json").write_text(json.dumps(metrics))


@pytest.mark.slow
@pytest.mark.usefixtures("blank_pictures")
def test_a_verdict_is_text_not_markup(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps({**metrics, "verdict": "<script>1</script>"}))
    assert "<script" not in write_report(run).read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("blank_pictures")
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda run: (run / "metrics.json").unlink(), ["not finished", "--resume"]),
        (lambda run: (run / "config.toml").unlink(), ["no run there"]),
        (lambda run: shutil.rmtree(run), ["no run there"]),
        (lambda run: (run / "scores.json").unlink(), ["scores.json"]),
        (lambda run: (run / "scores.json").write_text("{"), ["scores.json", "damaged"]),
        (lambda run: (run / "scores.json").write_text("{}"), ["another version", "labels"]),
        (lambda run: (run / "lint.json").write_text("7"), ["another version", "damaged"]),
        (lambda run: (run / "log.jsonl").write_text("1\n"), ["damaged"]),
        (lambda run: (run / "log.jsonl").write_text("[" * 100_000), ["damaged"]),
        (lambda run: edit_metrics(run, undefined={"f1": "\ud800"}), ["damaged", "surrogates"]),
        (lambda run: edit_metrics(run, final={}), ["another version", "damaged"]),
        (lambda run: edit_metrics(run, question=[]), ["another version", "damaged"]),
        (lambda run: edit_metrics(run, diagnostic=[1]), ["another version", "damaged"]),
    ],
)
def test_what_is_no_finished_run_is_one_line_exit_2(
    run: Path, damage: Callable[[Path], None], words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    damage(run)
    assert cli(["report", str(run)]) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and all(word in said for word in words), said


@pytest.mark.usefixtures("blank_pictures")
def test_several_runs_are_compared(finished: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "both.html"
    assert cli(["report", str(finished), str(run), "--output", str(out)]) == 0
    text = out.read_text()
    page = Page(text)
    assert len(page.images) == 3 and str(run) in page.text["td"] and "cannot be compared" not in text
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["test"]["data_fingerprint"] = "other"
    (run / "metrics.json").write_text(json.dumps(metrics))
    config = (run / "config.toml").read_text()
    (run / "config.toml").write_text(config.replace("lr = 0.001", "lr = 0.002"))
    page = Page(write_comparison([finished, run], out).read_text())
    assert "cannot be compared" in out.read_text() and "optim.lr" in page.text["td"]
    # Each has a table and axes of its own; only those that were judged alike share them.
    assert len(page.images) == 4 and sum(one.startswith("Spearman by dim on 36 pairs") for one in page.text["h2"]) == 2
    with pytest.raises(InputError, match="named twice"):
        write_comparison([run, run], out)
    assert cli(["report", str(run), "--output", str(out)]) == 2
    assert cli(["report", str(finished), str(run), "--output", str(run / "metrics.json")]) == 2  # is no page


def test_without_matplotlib_that_is_one_line(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(figures, "find_spec", lambda name: None)
    assert cli(["report", str(run)]) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "pip install" in said


def test_roc_points_are_those_of_sklearn() -> None:
    rng = np.random.default_rng(4)
    for _ in range(20):
        labels = np.append([0, 1], rng.integers(2, size=60))
        scores = np.round(labels * 0.3 + rng.normal(size=62), 1)  # with ties
        false_rate, recall = roc_points(scores, labels)
        expected = roc_curve(labels, scores, drop_intermediate=False)
        np.testing.assert_allclose(false_rate, expected[0])
        np.testing.assert_allclose(recall, expected[1])


def test_a_long_curve_is_thinned_to_its_ends(finished: Path) -> None:
    kept = figures.thinned(10_000)
    assert len(kept) <= figures.MOST_POINTS and kept[0] == 0 and kept[-1] == 9_999
    assert read_run(finished).strength is not None
