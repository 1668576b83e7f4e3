"""What scores of pairs say of a pair set: how hard it is, phase by phase, what solves it without understanding, and
which labels look wrong. Pure functions of tables and scores [N], higher for more alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_FLOOR
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, ks_2samp, median_abs_deviation

from trainer.data.pairs import PairTable
from trainer.evaluation.pair_metrics import length_similarity, roc_auc, same_category, separability
from trainer.evaluation.prevalence import percent
from trainer.lint import limits
from trainer.lint.findings import ALL, Finding, Part, masks_of_phases, name_of
from trainer.lint.limits import SERIOUS, TFIDF, WARNING

Scores = NDArray[Any]
NO_ROWS = np.empty(0, dtype=np.int64)
FEWEST = 20  # pairs of either label, below which a ROC-AUC says nothing
SURE = 2.0  # standard errors that a difference must exceed
EXTREME = 0.20  # share of a phase's rows at either end of the scores
# Robust standard deviations between the two labels' scores. With normal scores so far apart, 0.7 % of the pairs at the
# ends have the other label when all labels are right; nearer together the ends say nothing.
CLEAR = 2.5
CLEAR_AUC = 0.85  # at least: robust figures are blind to a second peak; 10 % of flipped labels leave 0.9 of 1.0
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Figures:
    """How scores and labels of one phase, or of a whole file, lie to each other."""

    source: str
    phase: str
    """ALL, or its number."""
    by: str
    """What gave the scores."""
    pairs: int
    positives: int
    roc_auc: float
    error: float
    """Standard error of the ROC-AUC (Hanley and McNeil 1982)."""
    separability: float
    """Mean of positives less mean of negatives."""
    separability_d: float
    """The same in pooled standard deviations."""
    overlap: float
    """Share that the two score distributions have in common: 1 - the largest distance of their cumulative
    distributions, which is the overlapping coefficient where the densities cross once (Schmid and Schmidt 2006)."""


def _as_judged(severity: str | None, by: str) -> str | None:
    """TF-IDF sees words, not meaning, and pairs that are hard by design (positives that share no words) are inverted or
    look wrong to it: it only warns."""
    return WARNING if severity and by == TFIDF else severity


def figures_of(table: PairTable, by: str, scores: Scores) -> list[Figures]:
    """Figures of all rows, then of each phase (where there are two or more) with FEWEST pairs of either label."""
    figures = []
    for phase, rows in masks_of_phases(table).items():
        values, labels = scores[rows], table.label[rows]
        positives, negatives = int(labels.sum()), int((~labels).sum())
        if min(positives, negatives) < FEWEST:
            continue
        auc = roc_auc(values, labels)
        error = auc_error(auc, positives, negatives)
        overlap = 1 - float(ks_2samp(values[labels], values[~labels], method="asymp").statistic)
        judged = Figures(
            table.source, phase, by, len(values), positives, auc, error, *separability(values, labels), overlap
        )
        figures.append(judged)
    return figures


def auc_error(auc: float, positives: int, negatives: int) -> float:
    """Standard error of a ROC-AUC (Hanley and McNeil 1982, with their exponential approximation)."""
    above, below = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    spread = (positives - 1) * (above - auc**2) + (negatives - 1) * (below - auc**2)
    return float(np.sqrt((auc * (1 - auc) + spread) / (positives * negatives)))


def shortcut_scores(table: PairTable) -> dict[str, Scores]:
    """Scores that need no understanding: "same category" (1 and 0; where the file has categories), and "length
    difference" in characters (its negative)."""
    lengths = np.array([len(text) for text in table.texts])
    scores = {"length difference": length_similarity(lengths[table.text1], lengths[table.text2])}
    if table.categories1 is not None and table.categories2 is not None:
        first, second = np.array(table.categories1, dtype=object), np.array(table.categories2, dtype=object)
        scores["same category"] = same_category(first, second, "")
    return scores


def shortcuts(part: Part, figures: Sequence[Figures]) -> list[Finding]:
    """A file that a score without understanding solves, in either direction."""
    findings = []
    for each in figures:
        strength = max(each.roc_auc, 1 - each.roc_auc)
        if each.phase == ALL and each.by in limits.SHORTCUTS:
            findings += part.finding(
                limits.SHORTCUTS[each.by].severity(strength),
                f"shortcut: {each.by}",
                f"{each.by} alone has a ROC-AUC of {each.roc_auc:.3f}"
                + (" (0.5 is chance, 0 solves it too)" if each.roc_auc < 0.5 else ""),
                {"roc_auc": each.roc_auc},
                NO_ROWS,
                "add positives and negatives for which it is wrong",
            )
    return findings


def inverted(part: Part, figures: Sequence[Figures], scores: Scores) -> list[Finding]:
    """Phases whose negatives score above their positives, or as high."""
    findings = []
    order = np.argsort(-scores, kind="stable")
    masks = masks_of_phases(part.table)
    for each in figures if len(figures) == 1 else figures[1:]:
        if each.roc_auc >= limits.AT_CHANCE:
            continue
        surely = each.roc_auc < 0.5 - SURE * each.error
        findings += part.finding(
            _as_judged(SERIOUS if surely else WARNING, each.by),
            "negatives above positives" if surely else "labels at chance",
            f"phase {each.phase}: ROC-AUC {each.roc_auc:.3f} by {each.by}, positives score {each.separability:+.3f} "
            f"against negatives, the two overlap by {percent(each.overlap)}",
            {"phase": each.phase, "by": each.by, "roc_auc": each.roc_auc, "separability": each.separability},
            order[(masks[each.phase] & ~part.table.label)[order]],
            "check labels and bands: are the positives less alike than the negatives by design?",
        )
    return findings


def phase_order(part: Part, figures: Sequence[Figures]) -> list[Finding]:
    """Phases that are easier than the one before."""
    findings = []
    phases = [each for each in figures if each.phase != ALL]
    for before, after in pairwise(phases):
        gain = after.roc_auc - before.roc_auc
        sure = gain > SURE * np.hypot(before.error, after.error)
        findings += part.finding(
            _as_judged(limits.EASIER_PHASE.severity(max(gain, 0.0)) if sure else None, after.by),
            "phase easier than the one before",
            f"phase {after.phase} has a ROC-AUC of {after.roc_auc:.3f} by {after.by}, phase {before.phase} one of "
            f"{before.roc_auc:.3f}",
            {"phase": after.phase, "by": after.by, "roc_auc": after.roc_auc, "before": before.roc_auc},
            part.table.phase == int(after.phase),
            "order phases from easy to hard, or train them mixed (curriculum.mode)",
        )
    return findings


def easier_than(part: Part, train: Sequence[Figures], held: Sequence[Figures]) -> list[Finding]:
    """A training file whose hardest phase is much easier than a held-out file."""
    phases = [each for each in train if each.phase != ALL] or list(train)
    whole = [each for each in held if each.phase == ALL]
    if not phases or not whole:
        return []
    hardest, judged = min(phases, key=lambda figures: figures.roc_auc), whole[0]
    gain = hardest.roc_auc - judged.roc_auc
    sure = gain > SURE * np.hypot(hardest.error, judged.error)
    return part.finding(
        _as_judged(limits.EASIER_THAN_HELD_OUT.severity(max(gain, 0.0)) if sure else None, judged.by),
        "easier than held-out",
        f"the hardest training pairs (phase {hardest.phase}) have a ROC-AUC of {hardest.roc_auc:.3f} by {hardest.by}, "
        f"{name_of(judged.source)} has {judged.roc_auc:.3f}",
        {"by": hardest.by, "roc_auc": hardest.roc_auc, "held_out": judged.roc_auc, "with": judged.source},
        NO_ROWS,
        "add a phase of pairs as hard as those the model is judged by",
    )


def suspect_rows(table: PairTable, scores: Scores) -> tuple[NDArray[np.int64], int]:
    """Negatives among the highest scores and positives among the lowest, in phases that the scores tell apart clearly:
    their rows, the most suspect first, and how many rows stand at these ends.

    Where labels are clean the two ends of such a phase are nearly pure. A share r of flipped labels puts about r of the
    other label at both ends, and no less however far out one looks (mixture proportion: Blanchard, Lee and Scott 2010,
    "Semi-supervised novelty detection"). So the share at the ends estimates that of wrong labels. The finding goes by
    the share's lower confidence bound.
    """
    looked = 0
    wrong: list[tuple[float, int]] = []  # how far from the middle of its phase, row
    for phase in np.unique(table.phase):
        rows = np.flatnonzero(table.phase == phase)
        values, labels = scores[rows], table.label[rows]
        if min(labels.sum(), (~labels).sum()) < FEWEST:
            continue
        if _robust_d(values, labels) < CLEAR or roc_auc(values, labels) < CLEAR_AUC:
            continue
        ranked = np.sort(values)
        count = round(EXTREME * len(rows))
        high, low = values >= ranked[-count], values <= ranked[count - 1]  # ties come in together
        here = (high & ~labels) | (low & labels)
        looked += int(high.sum() + low.sum())
        far = np.abs(values - np.median(values)) / values.std()
        wrong += zip(-far[here], rows[here].tolist(), strict=True)
    return np.array([row for _, row in sorted(wrong)], dtype=np.int64), looked


def suspect_labels(part: Part, by: str, scores: Scores) -> list[Finding]:
    """Labels that are probably wrong; see `suspect_rows`."""
    rows, looked = suspect_rows(part.table, scores)
    if not looked:
        return []
    count = len(rows)
    # Clopper and Pearson's interval (1934), open above.
    bound = float(binomtest(count, looked, alternative="greater").proportion_ci(CONFIDENCE).low)
    return part.finding(
        _as_judged(limits.SUSPECT.severity(bound), by),
        "suspect labels",
        f"{count} of {looked} pairs with the highest and lowest scores by {by} have the other label; about "
        f"{percent(count / looked)} of the labels may be wrong (at least {percent(bound, ROUND_FLOOR)})",
        {"by": by, "suspects": count, "looked_at": looked, "share": count / looked, "at_least": bound},
        rows,
        "read these rows and correct the labels (trainer label asks a person)",
    )


def _robust_d(values: Scores, labels: NDArray[np.bool_]) -> float:
    """Median of positives less that of negatives, in standard deviations: few wrong labels hardly move it.

    A standard deviation is taken from the median absolute deviation, as for normal scores; the two are pooled.
    """
    classes = values[labels], values[~labels]
    middles = [float(np.median(scores)) for scores in classes]
    spreads = [median_abs_deviation(scores, scale="normal") for scores in classes]
    spread = float(np.sqrt(np.mean(np.square(spreads))))
    gap = middles[0] - middles[1]
    return gap / spread if spread else float(np.sign(gap)) * np.inf if gap else 0.0
