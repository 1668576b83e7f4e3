"""`trainer lint`: what is wrong with pairs, before a GPU-hour is spent on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from itertools import chain, combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.data.pairs import PairTable, graded_labels
from trainer.errors import InputError
from trainer.evaluation.scoring import pair_cosines as encoder_cosines
from trainer.lint import score_checks, table_checks
from trainer.lint.expected import as_expected
from trainer.lint.findings import Finding, Part, parts_of
from trainer.lint.limits import EXPECTED, SERIOUS, TFIDF, WARNING
from trainer.lint.score_checks import Figures, Scores
from trainer.model.embedding import embed_cached, tokenize_sides
from trainer.model.loading import hush_transformers, load_encoder
from trainer.system.files import json_ready
from trainer.system.gpu import default_device
from trainer.text.tfidf import pair_cosines, tfidf_matrix

MODEL = "model"  # what scores by the untouched encoder are called
NO_TFIDF = "TF-IDF was not looked at: scikit-learn is not installed; install matryoshka-trainer[mine]"
POSITIVES_ALONE = (
    "positives alone; in training the other texts of a batch are their negatives, held out they are judged by search, "
    "and checks that compare labels say nothing of them"
)


@dataclass(frozen=True)
class Tokens:
    """How long the texts of some tables are."""

    lengths: list[NDArray[np.int64]]
    """A table: [T] tokens of its texts, which may be cut at `longest`."""
    longest: int
    """The model's max length."""
    estimated: bool = False
    """Whether the lengths are a rule of thumb."""


@dataclass
class Report:
    """Everything that lint has to say."""

    sources: dict[str, int]
    """File -> pairs; the training file comes first."""
    findings: list[Finding] = field(default_factory=list)
    figures: list[Figures] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What was not looked at, and why."""

    def serious(self) -> int:
        """How many findings are."""
        return sum(finding.severity == SERIOUS for finding in self.findings)

    def expected(self) -> int:
        """How many findings are brought about by the rules of build-pairs."""
        return sum(finding.severity == EXPECTED for finding in self.findings)

    def record(self) -> dict[str, Any]:
        """All of it for JSON."""
        record: dict[str, Any] = json_ready({"serious": self.serious(), **asdict(self)})
        return record


def measure_by(model: str, tables: Sequence[PairTable]) -> tuple[Tokens, list[Scores]]:
    """What `lint_tables` takes from an untouched encoder: lengths, and the cosines of each table's pairs.

    Raises:
        InputError: the model is bad.
        NumericError: an embedding is NaN or Inf.
    """
    hush_transformers()
    encoder = load_encoder(model).to(default_device())
    tokens = [tokenize_sides(encoder, table.texts) for table in tables]
    cosines = [
        encoder_cosines(embed_cached(encoder, of_table), table, (encoder.width,))[0]
        for of_table, table in zip(tokens, tables, strict=True)
    ]
    lengths = [of_table.longest(len(table.texts)) for of_table, table in zip(tokens, tables, strict=True)]
    return Tokens(lengths, encoder.spec.max_length), cosines


def lint_tables(
    tables: Sequence[PairTable], tokens: Tokens | None = None, cosines: Sequence[Scores] | None = None
) -> Report:
    """Look at tables, the training pairs first.

    Args:
        tokens: lengths of their texts; None estimates them from words.
        cosines: of a table's pairs [N] under the untouched model; None measures difficulty by TF-IDF.
    """
    tokens = tokens or Tokens(
        [table_checks.estimated_tokens(table.texts) for table in tables], table_checks.ASSUMED_LENGTH, estimated=True
    )
    parts = parts_of(tables)
    report = Report({table.source: len(table) for table in tables})
    report.notes += [f"{table.source}: {POSITIVES_ALONE}" for table in tables if table.label.all()]
    report.notes += [
        f"{table.source}: {graded} of {len(table)} labels lie between 0 and the full scale and count as positive, and "
        "none is negative; the positive threshold draws the line"
        for table in tables
        if table.label.all() and (graded := int(graded_labels(table).sum()))
    ]
    for part, lengths in zip(parts, tokens.lengths, strict=True):
        for check in table_checks.CHECKS:
            report.findings += check(part)
        report.findings += table_checks.truncation(part, lengths, tokens.longest, tokens.estimated)
    for seen, held in combinations(parts, 2):
        report.findings += table_checks.overlap(seen, held)
    words: Sequence[Scores | None] = _add_scores(report, parts, cosines) or [None] * len(tables)
    tables_of = {table.source: (table, scores) for table, scores in zip(tables, words, strict=True)}
    findings = [as_expected(finding, *tables_of[finding.source]) for finding in report.findings]
    report.findings = sorted(findings, key=lambda finding: (SERIOUS, WARNING, EXPECTED).index(finding.severity))
    return report


def _add_scores(report: Report, parts: Sequence[Part], cosines: Sequence[Scores] | None) -> list[Scores] | None:
    """Findings and figures that rest on scores: of shortcuts, of TF-IDF, and of the model where there is one. Returns
    the scores of each table by TF-IDF."""
    tfidf = tfidf_scores([part.table for part in parts], report.notes)
    hardness: list[list[Figures]] = []  # of each part
    for number, part in enumerate(parts):
        scores = score_checks.shortcut_scores(part.table)
        if tfidf:
            scores[TFIDF] = tfidf[number]
        figures = {by: score_checks.figures_of(part.table, by, values) for by, values in scores.items()}
        for of_score in figures.values():
            report.findings += score_checks.shortcuts(part, of_score)
        if cosines is not None:
            scores[MODEL] = cosines[number]
            figures[MODEL] = score_checks.figures_of(part.table, MODEL, cosines[number])
        for by in (TFIDF, MODEL):
            if by in figures:
                report.findings += score_checks.inverted(part, figures[by], scores[by])
        judge = MODEL if cosines is not None else TFIDF
        hardness.append(figures.get(judge, []))
        if judge in scores:
            report.findings += score_checks.suspect_labels(part, judge, scores[judge])
        if number == 0:
            report.findings += score_checks.phase_order(part, hardness[0])
        report.figures += chain.from_iterable(figures.values())
    for held in hardness[1:]:
        report.findings += score_checks.easier_than(parts[0], hardness[0], held)
    return tfidf


def tfidf_scores(tables: Sequence[PairTable], notes: list[str]) -> list[Scores] | None:
    """Cosines of each table's pairs [N] by TF-IDF over the texts of all."""
    if not find_spec("sklearn"):
        notes.append(NO_TFIDF)
        return None
    texts = [text for table in tables for text in table.texts]
    try:
        matrix = tfidf_matrix(texts)
    except InputError:
        notes.append("TF-IDF was not looked at: the texts share no words")
        return None
    starts = np.cumsum([0, *(len(table.texts) for table in tables)])
    return [
        pair_cosines(matrix, table.text1 + start, table.text2 + start)
        for table, start in zip(tables, starts[:-1], strict=True)
    ]
