"""Which findings are expected of pairs that `trainer build-pairs` made: their rules bring them about.

Whether a row was built, and how, says its origin in the file. A finding that such rules explain is EXPECTED: there is
nothing to mend before training, but it says how far these pairs can be trusted as a judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from trainer.data.origins import ALTERED, BY_MODEL, BY_WORDS, KNOWN, ORIGINS, SAID
from trainer.data.pairs import PairTable
from trainer.lint.findings import ALL, Finding, masks_of_phases
from trainer.lint.limits import EXPECTED, SHORTCUTS, TFIDF
from trainer.lint.score_checks import FEWEST, Scores, figures_of

MOST = 0.5  # share of a phase's positives, or negatives, of one origin that makes the phase what it is
JUDGE = "judge models on pairs that people labelled (data.test)"


def as_expected(finding: Finding, table: PairTable, words: Scores | None) -> Finding:
    """The finding, as EXPECTED where the origins of the table's rows explain it. `words`: TF-IDF cosines [N]."""
    reason = _reason(finding, table, words) if table.origins is not None else ""
    return replace(finding, severity=EXPECTED, fix=reason) if reason else finding


def _reason(finding: Finding, table: PairTable, words: Scores | None) -> str:
    """Why a finding is no surprise, and what follows; "" where it is one."""
    origins = table.origins or []
    built = _from(origins, ORIGINS)
    if finding.name == f"shortcut: {TFIDF}" and words is not None:
        chosen = _from(origins, BY_WORDS)
        chosen |= _from(origins, (*ALTERED, KNOWN)) & bool(chosen.any())
        if chosen.any() and not _is_shortcut(table.take(~chosen), words[~chosen]):
            return f"nothing to mend: TF-IDF chose these labels (origins), so it knows them; {JUDGE}"
    if finding.name in ("negatives above positives", "labels at chance"):
        rows = masks_of_phases(table)[finding.values["phase"]]
        known, hard, said = _from(origins, (KNOWN,)), _from(origins, (BY_MODEL,)), _from(origins, SAID)
        if finding.values["by"] == TFIDF and known[rows & table.label].mean() >= MOST:
            return "nothing to mend: most positives are known duplicates (origins), however few words they share"
        if finding.values["by"] != TFIDF and hard[rows & ~table.label].mean() >= MOST:
            return "nothing to mend: an encoder chose these negatives (origins) because it takes them for positives"
        if said[rows & ~table.label].mean() >= MOST:
            return "nothing to mend: phases of pairs that tickets label themselves (origins) end with the hardest"
    if built.all() and finding.name == "templated duplicates":
        return "nothing to mend: tickets of a template are kept up to build-pairs --per-template; lower that for fewer"
    if built.all() and finding.name == "one text in many pairs":
        return "nothing to mend: a ticket is used up to build-pairs --max-uses a phase; lower that for fewer"
    return ""


def _from(origins: Sequence[str], kinds: Sequence[str] | frozenset[str]) -> NDArray[np.bool_]:
    """[N] mask of the rows that are of some origins."""
    return np.array([origin in kinds for origin in origins], dtype=np.bool_)


def _is_shortcut(table: PairTable, words: Scores) -> bool:
    """Whether TF-IDF solves these rows too; not where they are too few to tell."""
    if len(table) < 2 * FEWEST:
        return False
    figures = [each for each in figures_of(table, TFIDF, words) if each.phase == ALL]
    return any(SHORTCUTS[TFIDF].severity(max(each.roc_auc, 1 - each.roc_auc)) for each in figures)
