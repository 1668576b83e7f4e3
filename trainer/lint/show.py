"""Findings and figures of lint as tables in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from trainer.evaluation.prevalence import percent
from trainer.lint.findings import Finding, name_of
from trainer.lint.limits import EXPECTED, SERIOUS, TFIDF, WARNING
from trainer.lint.linter import MODEL, Report
from trainer.lint.score_checks import Figures
from trainer.system.console import console

STYLES = {SERIOUS: "bold red", WARNING: "yellow", EXPECTED: "dim"}


def print_report(report: Report) -> None:
    """Findings and figures, on standard error."""
    sizes = ", ".join(f"{source}: {pairs} pairs" for source, pairs in report.sources.items())
    console.print(f"Lint of {sizes}", markup=False)
    print_findings(report)
    if report.figures:
        console.print(_figures_table(report), soft_wrap=False)


def print_findings(report: Report) -> None:
    """Findings, the worst first, then how many there are and what was not looked at; on standard error."""
    if report.findings:
        console.print(_findings_table(report.findings), soft_wrap=False)  # cells wrap
    serious, expected = report.serious(), report.expected()
    style = STYLES[SERIOUS] if serious else None
    counts = ((serious, "serious finding"), (len(report.findings) - serious - expected, "warning"))
    said = [f"{count} {word}{'s' * (count != 1)}" for count, word in counts]
    if expected:
        said.append(f"{expected} expected of pairs that trainer build-pairs made")
    console.print(", ".join(said), style=style)
    for note in report.notes:
        console.print(f"Note: {note}", markup=False)


def _findings_table(findings: Sequence[Finding]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=True)
    for heading, ratio in (("severity", None), ("file", 7), ("finding", 5), ("numbers", 11), ("rows", 4), ("fix", 7)):
        table.add_column(heading, ratio=ratio, overflow="fold")
    for finding in findings:
        rows = ", ".join(map(str, finding.rows))
        cells = (name_of(finding.source), finding.name, finding.message, rows, finding.fix)
        severity = Text(finding.severity, style=STYLES[finding.severity])
        table.add_row(severity, *(Text(cell) for cell in cells))
    return table


def _figures_table(report: Report) -> Table:
    """A row a file and phase: pairs, the ROC-AUC of every score, and how far the judging one separates the labels."""
    by_score = {figures.by: None for figures in report.figures}
    judge = MODEL if MODEL in by_score else TFIDF
    table = Table(title="ROC-AUC by file and phase", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("file", "phase", "pairs", "positive", *by_score, f"Cohen's d, {judge}", f"overlap, {judge}"):
        table.add_column(heading, justify="left" if heading == "file" else "right")
    groups: dict[tuple[str, str], dict[str, Figures]] = {}
    for figures in report.figures:
        groups.setdefault((figures.source, figures.phase), {})[figures.by] = figures
    for (source, phase), scores in groups.items():
        some, judged = next(iter(scores.values())), scores.get(judge)
        cells = [f"{scores[by].roc_auc:.3f}" if by in scores else "-" for by in by_score]
        last = (f"{judged.separability_d:.2f}", percent(judged.overlap)) if judged else ("-", "-")
        share = percent(some.positives / some.pairs)
        table.add_row(Text(name_of(source)), phase, str(some.pairs), share, *cells, *last)
    return table
