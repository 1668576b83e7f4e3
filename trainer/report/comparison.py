"""comparison.html: several finished runs side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from trainer.errors import InputError
from trainer.evaluation.metric_choice import BY_SEARCH, TITLES
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
    """The page of several runs."""
    names = {str(run.folder): run for run in runs}
    metric = common_metric(runs)
    lead = None
    if len({run.judged["data_fingerprint"] for run in runs}) > 1:
        lead = Lead("not", "", "These runs were judged on different pairs: their figures cannot be compared.")
    judged = {name: run.judged for name, run in names.items()}
    by_dim = Picture(draw_dims(judged, metric), f"{metric} against the dim, with 95 % intervals")
    losses = [Picture(draw_loss(run.steps, run.plan["phases"]), f"{name}: loss") for name, run in names.items()]
    main = Section(f"{TITLES.get(metric, metric)} by dim: before → after", _runs_table(names, metric))
    heading = f"{len(runs)} runs"
    return page(heading, heading, lead, [main, Section(pictures=[by_dim, *losses]), _settings(names)])


def common_metric(runs: Sequence[Record]) -> str:
    """The first metric that some run was judged by and all have: of positives alone there are those of search alone."""
    measured = [values for run in runs for values in run.judged["final"].values()]
    wanted = [run.judged["question"]["metric"] for run in runs]
    return next(name for name in (*wanted, BY_SEARCH) if all(name in values for values in measured))


def _runs_table(names: Mapping[str, Record], metric: str) -> Table:
    dims = sorted({dim for run in names.values() for dim in run.judged["final"]}, key=int, reverse=True)
    rows = []
    for name, run in names.items():
        cells = [change(run.judged, dim, metric) if dim in run.judged["final"] else "-" for dim in dims]
        head = [name, f"{run.metrics['verdict']} ({run.metrics['verdict_on']})", f"{run.metrics['strength']:.1f}"]
        rows.append([*head, *cells, str(run.metadata["steps"]), clock_time(run.metadata["seconds"])])
    headings = ["run", "verdict", "strength", *(f"{dim} dims" for dim in dims), "steps", "time"]
    return Table(headings, rows, numbers=range(1, len(headings)))


def _settings(names: Mapping[str, Record]) -> Section:
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
    title = "Settings that differ"
    return Section(title, Table(["setting", *names], differing)) if differing else Section(title, notes=["None."])
