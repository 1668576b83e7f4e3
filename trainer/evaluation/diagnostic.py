"""The adversarial diagnostic: whether a model falls for the shortcut that pairs of one category are alike.

Legend: M dims, N pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.data.pairs import PairTable
from trainer.evaluation.pair_metrics import classify_at, roc_auc

PASSING = 0.70  # ROC-AUC and F1
FEWEST = 20  # pairs of either kind, below which it says nothing


class Status(StrEnum):
    """What the adversarial diagnostic says."""

    PASS = "PASS"
    FAIL = "FAIL"
    INSUFFICIENT = "INSUFFICIENT"


def adversarial(table: PairTable) -> NDArray[np.bool_]:
    """[N] the pairs that a shortcut by category gets wrong: positives across categories, negatives within one.

    Pairs without two known categories are in neither kind.
    """
    if table.categories1 is None or table.categories2 is None:
        return np.zeros(len(table), dtype=np.bool_)
    first, second = np.array(table.categories1, dtype=object), np.array(table.categories2, dtype=object)
    chosen: NDArray[np.bool_] = (first != "") & (second != "") & ((first == second) != table.label)
    return chosen


def diagnose(
    table: PairTable,
    cosines: Mapping[str, np.ndarray],
    thresholds: Mapping[str, Mapping[str, float]],
    fewest: int = FEWEST,
) -> dict[str, dict[str, Any]]:
    """The adversarial diagnostic at every dim, from cosines [M, N] by system.

    PASS where the model reaches PASSING in ROC-AUC and in F1 at its frozen threshold, FAIL where not, INSUFFICIENT with
    fewer than `fewest` pairs of either kind, whatever the figures are.
    """
    rows = adversarial(table)
    labels = table.label[rows]
    positives, negatives = int(labels.sum()), int((~labels).sum())
    diagnostic: dict[str, dict[str, Any]] = {}
    for m, dim in enumerate(thresholds["model"]):
        entry: dict[str, Any] = {"status": Status.INSUFFICIENT, "positives": positives, "negatives": negatives}
        for system, scores in cosines.items():
            figures = {"roc_auc": float("nan"), "f1": float("nan")}
            if positives and negatives:
                at = classify_at(scores[m, rows], labels, thresholds[system][dim])
                figures = {"roc_auc": roc_auc(scores[m, rows], labels), "f1": at["f1"]}
            entry[system] = figures
        if min(positives, negatives) >= max(fewest, 1):
            entry["status"] = Status.PASS if min(entry["model"].values()) >= PASSING else Status.FAIL
        diagnostic[dim] = entry
    return diagnostic


def insufficient(diagnostic: Mapping[str, Mapping[str, Any]], fewest: int) -> str | None:
    """Why the adversarial diagnostic says nothing, in a sentence; None where it says something."""
    if not diagnostic:
        return "The adversarial diagnostic needs negatives, and these pairs have none."
    counts = next(iter(diagnostic.values()))
    if counts["status"] != Status.INSUFFICIENT:
        return None
    return (
        f"INSUFFICIENT: the adversarial diagnostic needs {max(fewest, 1)} positives across categories and as many "
        f"negatives within one, and these pairs have {counts['positives']} and {counts['negatives']}."
    )
