"""The pictures of a report, as SVG: matplotlib without its global state. Readable in print: line styles differ too."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.errors import InputError
from trainer.evaluation.pair_metrics import classify_at, roc_points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


INSTALL = "matplotlib is not installed: no report; install the extra `report` (pip install matplotlib)"
SIZE = (4.8, 2.8)  # inches: small, so that its letters are large enough on a narrow screen
BEFORE, AFTER, LATER = "#888888", "#0b6fb8", "#c4501b"  # told apart by people who see colours differently
MOST_POINTS = 400  # of a curve: more makes files larger, not curves finer
RULED_OUT = "#e4e4e4"
BANDS = ("#eef3f8", "#ffffff")


Scores = Mapping[str, Sequence[float]]
"""Dim -> cosines [N]."""


def require_matplotlib() -> None:
    """Raise InputError where matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise InputError(INSTALL)


def new_figure(panels: int = 1, rows: int = 1, same_y: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure and its panels, side by side or in rows with a common x axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, layout="constrained")
    columns = panels // rows
    axes = figure.subplots(rows, columns, squeeze=False, sharex=rows > 1, sharey=same_y).ravel().tolist()
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)
    return figure, axes


def add_legend(figure: Figure, panel: Axes, columns: int) -> None:
    """A panel's legend below all panels, where it covers no curve; the figure grows by its rows."""
    handles, labels = panel.get_legend_handles_labels()
    figure.set_figheight(SIZE[1] + 0.2 * -(-len(labels) // columns))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)


def to_svg(figure: Figure) -> str:
    """The figure as text; equal figures give equal texts."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "report"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def draw_loss(lines: Sequence[Mapping[str, Any]], phases: Sequence[Mapping[str, Any]]) -> Figure:
    """Loss and learning rate by step, phases as bands."""
    figure, (above, below) = new_figure(2, rows=2)
    steps = [line["step"] for line in lines]
    losses = [np.nan if line["loss"] is None else line["loss"] for line in lines]
    above.plot(steps, losses, color=BEFORE, linewidth=0.7, label="step")
    above.plot(steps, _running_mean(losses), color=AFTER, linewidth=1.6, label="running mean")
    below.plot(steps, [line["lr"] for line in lines], color=AFTER, linewidth=1.4)
    for number, phase in enumerate(phases):
        for panel in (above, below):
            first = phase["first_step"] - 0.5
            panel.axvspan(first, first + phase["steps"], color=BANDS[number % 2], zorder=0)
        middle = phase["first_step"] + phase["steps"] / 2
        place = above.get_xaxis_transform()
        above.text(middle, 1.02, f"phase {phase['name']}", ha="center", fontsize=8, transform=place)
    above.set_ylabel("loss")
    below.set_ylabel("learning rate")
    below.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    below.set_xlabel("step")
    add_legend(figure, above, 2)
    return figure


def _running_mean(values: Sequence[float]) -> list[float]:
    """The mean of each value and the twentieth of all that came before it: nothing shows ahead of its step."""
    reach = max(len(values) // 20, 1)
    return [float(np.mean(values[max(i - reach, 0) : i + 1])) for i in range(len(values))]


def draw_histograms(labels: Sequence[int], before: Scores, after: Scores, thresholds: Mapping[str, float]) -> Figure:
    """Cosines of positive and negative pairs at the largest dim, before and after; the after's threshold as a line."""
    figure, panels = new_figure(2, same_y=True)
    dim, positive = max(after, key=int), np.array(labels, dtype=bool)
    both = np.concatenate([before[dim], after[dim]])
    bins = np.linspace(both.min(), both.max() + 1e-9, 31).tolist()
    for panel, name, values in zip(panels, ("before", "after"), (before, after), strict=True):
        scores = np.array(values[dim])
        panel.hist(scores[~positive], bins, color=LATER, alpha=0.55, label="negative")
        panel.hist(scores[positive], bins, histtype="step", hatch="///", color=AFTER, linewidth=1.2, label="positive")
        panel.set_title(f"{name}, {dim} dims", fontsize=9)
        panel.set_xlabel("cosine")
    panels[1].axvline(thresholds[dim], color="black", linestyle="--", linewidth=1, label="threshold")
    panels[0].set_ylabel("pairs")
    add_legend(figure, panels[1], 3)
    return figure


def draw_roc(labels: Sequence[int], before: Scores, after: Scores) -> Figure:
    """ROC curves at the largest and the smallest dim, before (dashed) and after."""
    figure, (panel,) = new_figure()
    for dim, color in {min(after, key=int): LATER, max(after, key=int): AFTER}.items():
        for name, values, style in (("before", before, "--"), ("after", after, "-")):
            false_rate, recall = roc_points(np.array(values[dim]), np.array(labels))
            kept = thinned(len(recall))
            panel.plot(false_rate[kept], recall[kept], style, color=color, linewidth=1.4, label=f"{dim} dims, {name}")
    panel.plot([0, 1], [0, 1], color=BEFORE, linewidth=0.7, linestyle=":")
    panel.set_aspect("equal")
    panel.set_xlabel("false-positive rate")
    panel.set_ylabel("recall")
    add_legend(figure, panel, 2)
    return figure


def thinned(count: int) -> np.ndarray:
    """Numbers of at most MOST_POINTS points, both ends among them."""
    return np.unique(np.linspace(0, count - 1, min(count, MOST_POINTS)).astype(int))


def draw_dims(runs: Mapping[str, Mapping[str, Any]], metric: str) -> Figure:
    """A metric against the dim: each run after training, with 95 % intervals, and what it began as, dashed.

    Args:
        runs: judged on the same pairs, by name: "baseline" and "final" as dim -> metric -> value, and "intervals" of
            "model".
    """
    figure, (panel,) = new_figure()
    colors = (AFTER, LATER, "#2b8a3e", "#7048a8", "#9a7b00", "#444444")
    starts = [tuple((int(dim), at[metric]) for dim, at in record["baseline"].items()) for record in runs.values()]
    for number, (name, record) in enumerate(runs.items()):
        dims = sorted(record["final"], key=int)
        color, widths = colors[number % len(colors)], [int(dim) for dim in dims]
        after = np.array([record["final"][dim][metric] for dim in dims], dtype=float)
        ends = np.array([record["intervals"]["model"][dim][metric] for dim in dims], dtype=float).T
        bars = np.nan_to_num(np.clip(np.abs(ends - after), 0, None))
        panel.errorbar(widths, after, bars, color=color, marker="o", capsize=3, linewidth=1.4, label=name)
        if starts.index(starts[number]) == number:  # runs of one model begin alike
            before = [record["baseline"][dim][metric] for dim in dims]
            label = "before" if len(set(starts)) == 1 else f"before {name}"
            panel.plot(widths, before, "--", color=BEFORE, marker="s", markersize=4, label=label)
    panel.set_xscale("log", base=2)
    ticks = sorted({int(dim) for record in runs.values() for dim in record["final"]})
    panel.set_xticks(ticks, [str(tick) for tick in ticks])
    panel.set_xlabel("dims")
    panel.set_ylabel(metric)
    add_legend(figure, panel, 2 if len(runs) == 1 else 1)  # several are named by their folders
    return figure


def draw_strength(record: Mapping[str, Any]) -> Figure:
    """The metric by strength, a line a dim, and beside it the forgetting set's where there is one.

    Strengths that were ruled out stand on grey.
    """
    curve = record["curve"]
    kinds = [kind for kind in ("metric", "dev", "forgetting") if kind in curve[0]]  # older versions have "dev"
    figure, panels = new_figure(len(kinds))
    for panel, kind in zip(panels, kinds, strict=True):
        for number, dim in enumerate(curve[0][kind]):
            style = ("-o", "--s", "-.^", ":d", "-v", "--x")[number % 6]
            values = [np.nan if point[kind][dim] is None else point[kind][dim] for point in curve]
            label = f"{dim} dims"
            panel.plot([point["alpha"] for point in curve], values, style, markersize=3, linewidth=1, label=label)
        for alpha in map(float, record.get("ruled_out", {})):
            panel.axvspan(alpha - 0.05, alpha + 0.05, color=RULED_OUT, linewidth=0, antialiased=False, zorder=0)
        panel.axvline(record["chosen"], color="black", linestyle="--", linewidth=1)
        on = record.get("judged_on", "dev")  # of an older version there is none
        panel.set_title(f"{kind}: spearman" if kind == "forgetting" else f"{on}: {record['metric']}", fontsize=9)
        panel.set_xlabel("strength" if len(kinds) > 1 else "strength (0: untouched, 1: as trained)")
    add_legend(figure, panels[0], 3)
    return figure


def draw_threshold(labels: Sequence[int], after: Scores, thresholds: Mapping[str, float]) -> Figure:
    """Precision, recall, F1 and false-positive rate by threshold at the largest dim; the frozen one as a line."""
    figure, (panel,) = new_figure()
    dim = max(after, key=int)
    scores, truth = np.array(after[dim]), np.array(labels)
    at = np.linspace(scores.min(), scores.max(), 120)
    values = [classify_at(scores, truth, float(threshold)) for threshold in at]
    styles = {"precision": "--", "recall": "-.", "f1": "-", "false_positive_rate": ":"}
    for name, style in styles.items():
        color = AFTER if name == "f1" else LATER if name == "false_positive_rate" else BEFORE
        panel.plot(at, [one[name] for one in values], style, color=color, label=name.replace("_", " "))
    panel.axvline(thresholds[dim], color="black", linewidth=1, label="frozen threshold")
    panel.set_xlabel(f"threshold on the cosine, {dim} dims")
    add_legend(figure, panel, 3)
    return figure
