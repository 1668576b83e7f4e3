"""report.html: what a finished run shows a person, in one file that needs no network; several runs side by side.

Everything comes from the files of the run's folder, so a report can be made again at any time. Texts are masked.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from trainer.errors import InputError
from trainer.report.plots import (
    draw_dims,
    draw_histograms,
    draw_loss,
    draw_roc,
    draw_strength,
    draw_threshold,
    require_matplotlib,
)
from trainer.report.templates import figure, page, table
from trainer.system.files import write_file
from trainer.text.masking import mask_text

REPORT, COMPARISON = "report.html", "comparison.html"
# What is raised over JSON of another shape; StopIteration where there is no dim at all.
FOREIGN = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, StopIteration)
MAIN = {"spearman": "Spearman", "roc_auc": "ROC-AUC", "f1": "F1"}


@dataclass(frozen=True)
class Record:
    """The files of a finished run."""

    folder: Path
    metrics: dict[str, Any]
    scores: dict[str, Any]
    plan: dict[str, Any]
    metadata: dict[str, Any]
    config: dict[str, dict[str, Any]]
    steps: list[dict[str, Any]]
    """Lines of log.jsonl that are steps."""
    strength: dict[str, Any] | None
    lint: Any

    @property
    def judged(self) -> dict[str, Any]:
        """What was found on the set that the verdict is about."""
        found: dict[str, Any] = self.metrics[self.metrics["verdict_on"]]
        return found

    @property
    def forgotten(self) -> dict[str, str]:
        """Spearman on the forgetting set by dim, in words; empty without one."""
        found = self.metrics["dev"]["forgetting"] or {}
        values = {dim: entry["spearman"] for dim, entry in found.items()}
        return {f"{dim} dims:": f"{_number(x['before'])} → {_number(x['after'])}" for dim, x in values.items()}


def write_report(folder: Path, metrics: dict[str, Any] | None = None) -> Path:
    """Write the report of a finished run into its folder.

    Args:
        metrics: what metrics.json is going to hold, of a run that lacks this file alone.

    Raises:
        InputError: matplotlib is missing, or the folder holds no finished run.
        StorageError: the file system refused.
    """
    require_matplotlib()
    path = folder / REPORT
    run = read_run(folder, metrics)
    with _known_files(str(folder)):
        written = render_run(run).encode()  # half a surrogate pair is no text
    write_file(path, written)
    return path


def write_comparison(folders: Sequence[Path], path: Path) -> Path:
    """Write the comparison of several finished runs. Raises as `write_report` does."""
    require_matplotlib()
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise InputError("the same run is named twice; name different ones")
    runs = [read_run(folder) for folder in folders]
    with _known_files(", ".join(map(str, folders))):
        written = render_comparison(runs).encode()
    write_file(path, written)
    return path


@contextmanager
def _known_files(folders: str) -> Iterator[None]:
    """Files that hold JSON, but not what this version writes, are bad input."""
    try:
        yield
    except FOREIGN as error:
        said = str(error) or type(error).__name__
        raise InputError(f"{folders}: a file of the run is of another version or damaged: {said}") from error


def read_run(folder: Path, metrics: dict[str, Any] | None = None) -> Record:
    """Read the files of a run. Raises InputError where it is no finished run, or a file is damaged."""
    if not (folder / "config.toml").is_file():
        raise InputError(f"{folder}: no run there; name the folder of a training run")
    if metrics is None and not (folder / "metrics.json").is_file():
        raise InputError(f"{folder}: this run is not finished; continue it with --resume, then report")
    try:
        lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
        return Record(
            folder=folder,
            metrics=metrics or _read_json(folder / "metrics.json"),
            scores=_read_json(folder / "scores.json"),
            plan=_read_json(folder / "plan.json"),
            metadata=_read_json(folder / "training_metadata.json"),
            config=tomllib.loads((folder / "config.toml").read_text(encoding="utf-8")),
            steps=[line for line in map(json.loads, lines) if "loss" in line],
            strength=_read_json(folder / "strength.json") if (folder / "strength.json").is_file() else None,
            lint=_read_json(folder / "lint.json") if (folder / "lint.json").is_file() else None,
        )
    except FileNotFoundError as error:
        raise InputError(f"{error.filename}: not there; the run is of an older version or was cut") from error
    except FOREIGN as error:
        raise InputError(f"{folder}: a file of the run is damaged: {error}") from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name}: {error}") from error


def render_run(run: Record) -> str:
    """The page of one run."""
    on, judged = escape(run.metrics["verdict_on"]), run.judged
    verdict, metric = escape(run.metrics["verdict"]), escape(run.judged["question"]["metric"])
    selected = "" if on == "test" else " These pairs have also picked the model: expect a little less on others."
    body = [
        f"<h1>{escape(run.folder.name)}</h1>",
        f'<p class="verdict {verdict.lower().split()[0]}"><strong>{verdict}</strong> against the untouched model, by '
        f"{metric} on {judged['pairs']:d} {on} pairs, over all dims. Strength of the update "
        f"{run.metrics['strength']:.1f}, best at step {run.metrics['best_step']}.{selected}</p>",
        f"<h2>By dim</h2>{_main_table(judged)}",
        '<div class="figures">',
        *_run_figures(run),
        "</div>",
        f"<h2>All figures on {on}: before &rarr; after, 95 % of the difference</h2>{_all_table(judged)}",
        "<h2>Adversarial diagnostic: positives across categories against negatives within one</h2>",
        _diagnostic_table(judged),
        f"<h2>The {len(run.scores['worst'])} pairs most wrong at the largest dim, texts masked</h2>",
        _worst_table(run.scores["worst"]),
        f"<h2>Lint</h2>{_lint_table(run.lint)}",
        f"<h2>Data and environment</h2>{_environment_table(run)}",
    ]
    return page(f"{run.folder.name}: {verdict}", body)


def _run_figures(run: Record) -> list[str]:
    scores, judged = run.scores, run.judged
    labels, before, after = scores["labels"], scores["baseline"], scores["final"]
    frozen = scores["thresholds"]["final"]
    metric = judged["question"]["metric"]
    figures = [
        figure(draw_dims({"after": judged}, metric), f"{metric} against the dim, with 95 % intervals"),
        figure(draw_loss(run.steps, run.plan["phases"]), "Loss and learning rate by step, phases as bands"),
        figure(draw_histograms(labels, before, after, frozen), "Cosines of positive and negative pairs"),
        figure(draw_roc(labels, before, after), "ROC curves, before and after"),
        figure(draw_threshold(labels, after, frozen), "Where the frozen threshold stands on these pairs"),
    ]
    if run.strength:
        grey = ", on grey what was ruled out" if run.strength.get("ruled_out") else ""
        figures.append(
            figure(draw_strength(run.strength), f"Metric by strength of the update; the line is what was chosen{grey}")
        )
    return figures


def render_comparison(runs: Sequence[Record]) -> str:
    """The page of several runs."""
    names = {str(run.folder): run for run in runs}
    prints = {run.judged["data_fingerprint"] for run in runs}
    warning = (
        ""
        if len(prints) == 1
        else ('<p class="verdict not">These runs were judged on different pairs: their figures cannot be compared.</p>')
    )
    metric = runs[0].judged["question"]["metric"]
    dims = sorted({dim for run in runs for dim in run.judged["final"]}, key=int, reverse=True)
    rows = []
    for name, run in names.items():
        cells = [_change(run.judged, dim, metric) if dim in run.judged["final"] else "-" for dim in dims]
        head = [name, f"{run.metrics['verdict']} ({run.metrics['verdict_on']})", f"{run.metrics['strength']:.1f}"]
        rows.append([*head, *cells, str(run.metadata["steps"]), f"{run.metadata['seconds']:.0f} s"])
    headings = ["run", "verdict", "strength", *(f"{dim} dims" for dim in dims), "steps", "time"]
    body = [
        f"<h1>{len(runs)} runs</h1>",
        warning,
        f"<h2>{escape(MAIN.get(metric, metric))} by dim: before &rarr; after</h2>",
        table(headings, rows, numbers=range(1, len(headings))),
        '<div class="figures">',
        figure(
            draw_dims({name: run.judged for name, run in names.items()}, metric),
            f"{metric} against the dim, with 95 % intervals",
        ),
        *(figure(draw_loss(run.steps, run.plan["phases"]), f"{escape(name)}: loss") for name, run in names.items()),
        "</div>",
        f"<h2>Settings that differ</h2>{_settings_table(names)}",
    ]
    return page(f"{len(runs)} runs", body)


def _settings_table(names: Mapping[str, Record]) -> str:
    flat = [
        {
            f"{section}.{key}": json.dumps(value)
            for section, values in run.config.items()
            for key, value in values.items()
        }
        for run in names.values()
    ]
    keys = sorted({key for settings in flat for key in settings} - {"output.dir"})
    rows = [[key, *(settings.get(key, "-") for settings in flat)] for key in keys]
    differing = [row for row in rows if len(set(row[1:])) > 1]
    return table(["setting", *names], differing) if differing else "<p>None.</p>"


def _main_table(judged: Mapping[str, Any]) -> str:
    metric = judged["question"]["metric"]
    rows = []
    for dim in judged["final"]:
        changes = [_change(judged, dim, name) for name in MAIN]
        interval = _interval(judged["intervals"]["difference"][dim][metric])
        rows.append([dim, judged["verdicts"][dim], *changes, interval])
    in_sample = " (in-sample)" if judged["thresholds_from"]["model"].endswith("(in-sample)") else ""
    difference = f"{MAIN.get(metric, metric)} difference, 95 %"
    headings = ["dims", "verdict", *(MAIN | {"f1": f"F1{in_sample}"}).values(), difference]
    return table(headings, rows, numbers=range(len(headings)))


def _all_table(judged: Mapping[str, Any]) -> str:
    names = list(next(iter(judged["final"].values())))
    ends = judged["intervals"]["difference"]
    rows = [
        [name, *(f"{_change(judged, dim, name)}\n{_interval(ends[dim].get(name))}" for dim in judged["final"])]
        for name in names
    ]
    notes = "".join(f"<p>No interval of {escape(k)}: {escape(v)}</p>" for k, v in judged["undefined"].items())
    headings = ["metric", *(f"{dim} dims" for dim in judged["final"])]
    return table(headings, rows, numbers=range(1, len(headings))) + notes


def _diagnostic_table(judged: Mapping[str, Any]) -> str:
    rows = []
    for dim, entry in judged["diagnostic"].items():
        values = [_number(entry[system][name]) for system in ("baseline", "model") for name in ("roc_auc", "f1")]
        rows.append([dim, entry["status"], f"{entry['positives']} / {entry['negatives']}", *values])
    headings = ["dims", "status", "positives / negatives", "ROC-AUC before", "F1 before", "ROC-AUC after", "F1 after"]
    return table(headings, rows, numbers=(0, 2, 3, 4, 5, 6))


def _worst_table(worst: Sequence[Mapping[str, Any]]) -> str:
    # Masked when they were written, and once more: the file may have been made otherwise.
    rows = [
        [
            str(pair["row"]),
            "positive" if pair["label"] else "negative",
            f"{pair['baseline']:.3f} → {pair['final']:.3f}",
            *map(mask_text, pair["texts"]),
        ]
        for pair in worst
    ]
    return table(["row", "label", "cosine", "text 1", "text 2"], rows, numbers=(0, 2), texts=(3, 4))


def _lint_table(record: Mapping[str, Any] | None) -> str:
    """What lint.json holds; a run without a data check has none."""
    if record is None:
        return "<p>No lint.json in the run folder.</p>"
    rows = []
    for found in record["findings"]:
        examples = ("rows " + ", ".join(map(str, found["rows"]))) if found["rows"] else ""
        file = Path(found["source"]).name
        rows.append([found["severity"], file, found["name"], found["said"], examples, found["fix"]])
    notes = "".join(f"<p>Note: {escape(note)}</p>" for note in record["notes"])
    headings = ["severity", "file", "finding", "numbers", "examples", "fix"]
    return (table(headings, rows, texts=(3, 5)) if rows else "<p>Nothing found.</p>") + notes


def _environment_table(run: Record) -> str:
    judged, metadata, config = run.judged, run.metadata, run.config
    data = {f"data.{key}": config["data"][key] for key in ("train", "dev", "test") if config["data"].get(key)}
    rows = {
        "base model": config["model"]["name"],
        **data,
        "rows": metadata["rows"],
        "texts shared between the parts": metadata["overlapping_texts"],
        "judged pairs, drawn as": f"{judged['pairs']}; {judged['groups']['count']} {judged['groups']['kind']}",
        "highest Spearman reachable": _number(judged["spearman_ceiling"]),
        "thresholds": judged["thresholds_from"]["model"],
        **({"general similarity, Spearman": run.forgotten} if run.forgotten else {}),
        **({"strengths ruled out": _spans(run.strength)} if run.strength and run.strength.get("ruled_out") else {}),
        "trained values": f"{metadata['trained_count']:,} of {metadata['model']['parameters']:,}",
        "steps": f"{metadata['steps']} in {metadata['seconds']:.0f} s",
        "device": f"{metadata['device']}, {metadata['encoder_path']}, precision {metadata['precision']}",
        "processes": metadata["processes"],
        "versions": metadata["versions"],
        "fingerprints": {name: value[:16] for name, value in metadata["fingerprints"].items()},
    }
    return table(["what", "value"], [[name, _words(value)] for name, value in rows.items()], texts=(1,))


def _spans(strength: Mapping[str, Any]) -> str:
    """The strengths that were ruled out, by reason."""
    reasons: dict[str, list[str]] = {}
    for alpha, reason in strength["ruled_out"].items():
        reasons.setdefault(reason, []).append(alpha)
    return "; ".join(f"{', '.join(alphas)}: {reason}" for reason, alphas in reasons.items())


def _words(value: Any) -> str:
    return ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else str(value)


def _change(judged: Mapping[str, Any], dim: str, name: str) -> str:
    return f"{_number(judged['baseline'][dim][name])} → {_number(judged['final'][dim][name])}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _interval(ends: Sequence[float | None] | None) -> str:
    return "" if ends is None or None in ends else f"({ends[0]:+.3f}, {ends[1]:+.3f})"
