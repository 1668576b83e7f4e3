"""What `trainer build-pairs` found and made, in figures: a table for people, JSON for tools."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.table import Table

from trainer import __version__
from trainer.data.origins import KNOWN, SAID
from trainer.data.raw_table import brief
from trainer.data.tickets import REASONS, Tickets
from trainer.evaluation.pair_metrics import length_similarity, roc_auc, same_category
from trainer.mining.labelled import Labels
from trainer.mining.negatives import Search
from trainer.mining.positives import Pairs, compare_categories, usable
from trainer.mining.settings import LABELS
from trainer.mining.sources import Texts
from trainer.system.console import console
from trainer.text.masking import mask_text
from trainer.text.tfidf import FloatArray

EXAMPLES = 3  # pairs shown of each phase and label
EXAMPLE_LENGTH = 160

Chosen = dict[int, tuple[Pairs, Pairs]]
"""Phase number -> its positives and negatives, of which as many are written as both have."""


@dataclass
class Report:
    """What is known at the end."""

    settings: dict[str, Any]
    tickets: Tickets
    by_bands: bool = True
    """Whether similarity is a source."""
    sources: dict[str, int] = field(default_factory=dict)
    """Source of labels -> pairs that it offers."""
    left_out: str = ""
    """What the settings ask for that these tickets have no data for, and was left out."""
    parts: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)  # part -> phase name -> figures
    shortcuts: dict[str, float] = field(default_factory=dict)  # ROC-AUC on the train pairs of what needs no model
    shortcuts_by_source: dict[str, dict[str, float]] = field(default_factory=dict)  # the same of the rows of one origin
    augmented: dict[str, dict[str, int]] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)  # part -> rows written

    def shortages(self, part: str) -> list[str]:
        """A line for each phase of a part that has fewer pairs than its bands were asked for; where none was, a line
        for the part."""
        lines = []
        if not self.by_bands:
            written, wanted = (
                sum(figures[f"{name}_of_each"] for figures in self.parts[part].values())
                for name in ("written", "wanted")
            )
            return [f"{part}: {written} positives and negatives of {wanted} each: the sources offer no more"] * (
                written < wanted
            )
        for name, figures in self.parts[part].items():
            wanted, written = figures["wanted_of_each"], figures["written_of_each"]
            if written < wanted:
                positives, negatives = (figures[label] for label in LABELS)
                lines.append(
                    f"{part}, {name}: {written} positives and {written} negatives of {wanted} each; in the bands, "
                    f"{positives['band']} gave {positives['found']} positives ({figures['candidates']} candidates in "
                    f"all parts, {figures['candidates_in_groups']} in this one's groups), {negatives['band']} gave "
                    f"{negatives['found']} negatives for them"
                )
        return lines

    def warnings(self) -> list[str]:
        """What a person should know before training on these pairs."""
        lines = [self.left_out] if self.left_out else []
        lines += [line for part in self.parts for line in self.shortages(part)]
        for part, phases in self.parts.items():
            for name, figures in phases.items():
                for measure, (above, below) in figures["mean_cosines"].items():
                    if below >= above:
                        origins, half = figures["positives"]["origins"], 0.5 * figures["written_of_each"]
                        why = "labels and bands disagree"
                        if origins.get(KNOWN, 0) >= half:
                            why = "most of these positives are known duplicates"
                        elif sum(origins.get(origin, 0) for origin in (KNOWN, *SAID)) >= half:
                            why = "most of these labels are what tickets say, whatever their words"
                        lines.append(
                            f"{part}, {name}: negatives score as high as positives by {measure} (mean {below:.3f} over "
                            f"{above:.3f}): {why}"
                        )
        facts = self.tickets.facts
        if unknown := facts["links_to_unknown_tickets"]:
            example = brief(facts["unknown_link"])
            lines.append(
                f"{unknown} of {facts['links']} links name tickets that are not in the file (such as {example})"
            )
        if self.by_bands and not self.sources:
            links = f" (rows with a link: {facts['linked']}; they tie no two tickets kept)" if facts["linked"] else ""
            why = f"no known duplicates{links}, no body below a title, no resolution or note"
            if self.settings["sources"]:
                why = "similarity alone was asked for"
            lines.append(f"{why}: every label is a guess by similarity; judge models on pairs people labelled")
        return lines

    def figures(self) -> dict[str, Any]:
        """All of it for JSON; texts in it are masked."""
        return {
            "version": __version__,
            "settings": self.settings,
            "tickets": {"source": self.tickets.source, **self.tickets.facts},
            "files": self.files,
            "sources": self.sources,
            "parts": self.parts,
            "augmented": self.augmented,
            "shortcuts": self.shortcuts,
            "shortcuts_by_source": self.shortcuts_by_source,
            "warnings": self.warnings(),
        }


def written_of(chosen: tuple[Pairs, Pairs]) -> list[Pairs]:
    """What is written of a phase's positives and negatives: as many of either as there are of both."""
    return [pairs.head(min(map(len, chosen))) for pairs in chosen]


def part_figures(labels: Labels, search: Search | None, chosen: Chosen, part: int) -> dict[str, dict[str, Any]]:
    """Figures of a part by phase name; `search`: where bands were asked for."""
    settings, mined, result = labels.settings, labels.mined, {}
    for phase in settings.phases:
        both = chosen[phase.number]
        kept = written_of(both)
        cosines = [labels.measures.of_pairs(pairs.first, pairs.second) for pairs in kept]
        figures: dict[str, Any] = {
            "wanted_of_each": settings.wanted(phase, part),
            "written_of_each": len(kept[0]),
            "candidates": mined.in_band[phase.number] if search else 0,
            "candidates_in_groups": len(usable(mined.candidates[phase.number], mined, part)) if search else 0,
            "mean_cosines": {
                name: [float(one[name].mean()) for one in cosines] for name in (cosines[0] if len(kept[0]) else ())
            },
        }
        bands = [str(phase.positives), str(phase.negatives)] if search else ["", ""]
        if search and search.by_model(phase):
            bands[1] = f"model, to {1 - settings.margin:g} x positive:{phase.negatives.category}"
        for label, band, pairs, values, found in zip(LABELS, bands, kept, cosines, both, strict=True):
            figures[label] = {"band": band, "found": len(found), **_described(labels.texts, pairs, values)}
        result[phase.name] = figures
    return result


def _described(texts: Texts, pairs: Pairs, cosines: dict[str, FloatArray]) -> dict[str, Any]:
    tickets, ends = texts.tickets, (texts.ticket(pairs.first), texts.ticket(pairs.second))
    same, known = compare_categories(tickets, *ends)
    uses = Counter(np.concatenate(ends).tolist())
    return {
        "origins": dict(Counter(pairs.origin)),
        "same_category": float((same & known).mean()) if len(pairs) and tickets.categories else None,
        "tickets": len(uses),
        "most_used_ticket": max(uses.values(), default=0),
        "achieved": {name: _spread(values) for name, values in cosines.items()} if len(pairs) else {},
        "examples": [
            [mask_text(texts.clean[end])[:EXAMPLE_LENGTH] for end in pair]
            for pair in zip(pairs.first[:EXAMPLES], pairs.second[:EXAMPLES], strict=True)
        ],
    }


def _spread(values: FloatArray) -> dict[str, float]:
    names = ("min", "5 %", "25 %", "median", "75 %", "95 %", "max")
    quantiles = np.quantile(values, [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1]).tolist()
    return {name: round(value, 4) for name, value in zip(names, quantiles, strict=True)}


def shortcuts(labels: Labels, chosen: Chosen) -> dict[str, dict[str, float]]:
    """ROC-AUC on all phases together of "same category" (where there are any), of a small difference in length, and of
    the cosines: of all rows (""), and of those of each source."""
    written = [pairs for both in chosen.values() for pairs in written_of(both)]
    truth = np.concatenate([np.full(len(pairs), place % 2 == 0) for place, pairs in enumerate(written)])
    pairs = Pairs.join(written)
    origins = np.array(["duplicates" if origin == KNOWN else origin for origin in pairs.origin])
    lengths, category = np.array([len(text) for text in labels.texts.clean]), labels.texts.tickets.category
    scores: dict[str, Any] = {"length": length_similarity(lengths[pairs.first], lengths[pairs.second])}
    if labels.texts.tickets.categories:
        one, two = (category[labels.texts.ticket(side)] for side in (pairs.first, pairs.second))
        scores = {"same_category": same_category(one, two, -1)} | scores
    scores |= labels.measures.of_pairs(pairs.first, pairs.second)
    rows = {"": np.ones(len(pairs), dtype=np.bool_)} | {
        source.name: origins == source.name for source in labels.sources
    }
    return {
        name: {by: round(roc_auc(score[mask], truth[mask]), 4) for by, score in scores.items()}
        for name, mask in rows.items()
        if mask.any()
    }


def print_report(report: Report) -> None:
    """The report as tables and warnings, on standard error."""
    facts = report.tickets.facts
    table = Table("tickets", "", title="Tickets", title_justify="left", show_header=False)
    table.add_row("read", f"{facts['read']:,}")
    for reason, count in facts["dropped"].items():
        table.add_row(f"dropped: {REASONS[reason]}", f"{count:,}")
    table.add_row("kept", f"{facts['kept']:,}")
    console.print(table)
    for part, phases in report.parts.items():
        console.print(_part_table(part, phases))
    for kind, counts in report.augmented.items():
        console.print(f"Augmented by {kind}: {counts['written']} rows of {counts['asked']} tried")
    for name, shortcuts in {"train": report.shortcuts, **report.shortcuts_by_source}.items():
        values = ", ".join(f"{by.replace('_', ' ')} {value:.3f}" for by, value in shortcuts.items())
        console.print(f"ROC-AUC on {name} without a model: {values}", markup=False)
    for line in report.warnings():
        console.print(f"Note: {line}", markup=False)


def _part_table(part: str, phases: dict[str, dict[str, Any]]) -> Table:
    table = Table(title=part, title_justify="left")
    bands = ["band"] if any(figures[label]["band"] for figures in phases.values() for label in LABELS) else []
    for name in ("phase", "pairs", *bands, "written", "wanted", "same category", "origin", "achieved 5 / 50 / 95 %"):
        table.add_column(name, justify="left" if name in ("phase", "pairs", "origin") else "right")
    for name, figures in phases.items():
        for label in LABELS:
            of_label = figures[label]
            same = "" if of_label["same_category"] is None else f"{of_label['same_category']:.0%}"
            achieved = ", ".join(
                f"{measure} {values['5 %']:.2f} / {values['median']:.2f} / {values['95 %']:.2f}"
                for measure, values in of_label["achieved"].items()
            )
            origins = ", ".join(f"{origin} {count}" for origin, count in of_label["origins"].items())
            counts = (f"{figures['written_of_each']:,}", f"{figures['wanted_of_each']:,}")
            table.add_row(name, label, *[of_label[band] for band in bands], *counts, same, origins, achieved)
    return table
