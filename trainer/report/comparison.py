"""comparison.html: several finished runs side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from trainer.errors import InputError
from trainer.evaluation.metric_choice import BY_SEARCH, TITLES, corpus_in_words, judged_on
from trainer.report.plots import draw_dims, draw_loss, require_matplotlib
from trainer.report.record import Record, known_files, read_run
from trainer.report.run_page import change
from trainer.report.templates import Lead, Picture, Section, Table, page
from trainer.system.console import clock_time
from trainer.system.files import write_file

COMPARISON = "comparison.html"


def write_comparison(folders: Sequence[Path], path: Path) -> Path:
    """Write the comparison of several finished runs. Raises as `write_report` does."""
    require_matplotlib()
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise InputError("the same run is named twice; name different ones")
    runs = [read_run(folder) for folder in folders]
    with known_files(", ".join(map(str, folders))):
        written = render_comparison(runs).encode()
    write_file(path, written)
    return path


def render_comparison(runs: Sequence[Record]) -> str:
    """The page of several runs. Those that were judged on the same data stand together, in a table and on an axis."""
    alike: dict[tuple[str, str], list[Record]] = {}
    for run in runs:
        corpus = run.metadata["fingerprints"].get("corpus", "")  # search is among its texts, where there is one
        alike.setdefault((run.judged["data_fingerprint"], corpus), []).append(run)
    lead = None
    if len(alike) > 1:
        told = (
            f"These runs were judged on {len(alike)} different sets of pairs or of texts to search among: figures of "
        )
        lead = Lead(
            "not", "", told + "one cannot be compared with those of another. Each has a table and axes of its own."
        )
    losses = [Picture(draw_loss(run.steps, run.plan["phases"]), f"{run.folder}: loss") for run in runs]
    sections = [_judged_alike(group) for group in alike.values()]
    heading = f"{len(runs)} runs"
    return page(heading, heading, lead, [*sections, Section(pictures=losses), _settings(runs)])


def _judged_alike(runs: Sequence[Record]) -> Section:
    """What runs came to on the same pairs: the first metric that one of them was judged by and all have."""
    first = runs[0].judged
    measured = [values for run in runs for values in run.judged["final"].values()]
    wanted = [run.judged["question"]["metric"] for run in runs]
    metric = next(name for name in (*wanted, BY_SEARCH) if all(name in values for values in measured))
    caption = f"{metric} against the dim, with 95 % intervals"
    picture = Picture(draw_dims({str(run.folder): run.judged for run in runs}, metric), caption)
    pairs, search = f"{first['pairs']} pairs of {Path(first['question']['pairs']).name}", runs[0].search
    on = corpus_in_words(search) if search and judged_on(metric, "", True) else pairs
    title = f"{TITLES.get(metric, metric)} by dim on {on}: before → after"
    return Section(title, _runs_table(runs, metric), pictures=[picture])


def _runs_table(runs: Sequence[Record], metric: str) -> Table:
    dims = sorted({dim for run in runs for dim in run.judged["final"]}, key=int, reverse=True)
    rows = []
    for run in runs:
        cells = [change(run.judged, dim, metric) if dim in run.judged["final"] else "-" for dim in dims]
        head = [str(run.folder), f"{run.metrics['verdict']} ({run.judged_on})"]
        spent = [str(run.metadata["steps"]), clock_time(run.metadata["seconds"])]
        rows.append([*head, f"{run.metrics['strength']:.1f}", *cells, *spent])
    headings = ["run", "verdict", "strength", *(f"{dim} dims" for dim in dims), "steps", "time"]
    return Table(headings, rows, numbers=range(1, len(headings)))


def _settings(runs: Sequence[Record]) -> Section:
    flat = [_flat(run.config) for run in runs]
    keys = sorted({key for settings in flat for key in settings} - {"output.dir"})
    rows = [[key, *(settings.get(key, "-") for settings in flat)] for key in keys]
    differing = [row for row in rows if len(set(row[1:])) > 1]
    if not differing:
        return Section("Settings that differ", notes=["None."])
    return Section("Settings that differ", Table(["setting", *(str(run.folder) for run in runs)], differing))


def _flat(config: Mapping[str, Mapping[str, object]]) -> dict[str, str]:
    return {
        f"{section}.{key}": json.dumps(value) for section, values in config.items() for key, value in values.items()
    }
