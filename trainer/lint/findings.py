"""What lint says of a pair set, and what its checks look at: tables with their texts numbered across files.

Legend: N pairs, T texts of a table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.data.pairs import PairTable
from trainer.lint.limits import Limit
from trainer.text.canonical import canonical_form
from trainer.text.cleaning import fingerprints

EXAMPLES = 4  # rows named with a finding
ALL = "all"  # the phase of what is said of a whole file


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a file."""

    severity: str
    """SERIOUS, WARNING, or EXPECTED: brought about by the rules that the pairs were built by."""
    name: str
    source: str
    """The file, as in messages."""
    message: str
    """What is wrong, in words and numbers."""
    values: dict[str, Any]
    """The numbers by name, for machines."""
    rows: list[int]
    """Examples: rows of the file, from 1."""
    fix: str


@dataclass(frozen=True, eq=False)
class Part:
    """A table, its texts numbered together with those of the other tables."""

    table: PairTable
    form: NDArray[np.int64]
    """[T] copies of a text (case, spacing) share a number."""
    template: NDArray[np.int64]
    """[T] copies of a template (ids, names and numbers aside) share a number."""

    def keys(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """[N] what pairs of the same two numbers share, in either order; `numbers` are of texts [T]."""
        first, second = numbers[self.table.text1], numbers[self.table.text2]
        return np.minimum(first, second) << 32 | np.maximum(first, second)

    def touched(self, texts: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """[N] mask of the pairs that hold one of some texts, a mask [T]."""
        return texts[self.table.text1] | texts[self.table.text2]

    def finding(
        self, severity: str | None, name: str, message: str, values: Mapping[str, Any], rows: NDArray[Any], fix: str
    ) -> list[Finding]:
        """A list of the finding, or of nothing where there is no severity. `rows`: a mask [N] or indices."""
        if severity is None:
            return []
        examples = self.table.row[rows][:EXAMPLES].tolist()
        return [Finding(severity, name, self.table.source, message, dict(values), examples, fix)]

    def share_finding(
        self,
        limit: Limit,
        name: str,
        what: str,
        rows: NDArray[np.bool_],
        fix: str,
        values: Mapping[str, Any] | None = None,
    ) -> list[Finding]:
        """As `finding`, of a share of the rows, a mask [N]: "12 of 3838 (0.3 %) rows" and `what` they are or hold.

        The share decides the severity, and stands among the values.
        """
        numbers = counted(rows) | dict(values or {})
        return self.finding(limit.severity(rows.mean()), name, f"{share_of(rows)} rows {what}", numbers, rows, fix)


def parts_of(tables: Sequence[PairTable]) -> list[Part]:
    """Number the texts of some tables together."""
    texts = [text for table in tables for text in table.texts]
    forms: dict[str, int] = {}
    form = np.array([forms.setdefault(canonical_form(text), len(forms)) for text in texts], dtype=np.int64)
    templates: dict[str, int] = {}
    of_form = fingerprints(list(forms))  # counts words by text: a copy of a text is no second one
    template_of = np.array([templates.setdefault(key, len(templates)) for key in of_form], dtype=np.int64)
    bounds = np.cumsum([len(table.texts) for table in tables])[:-1]
    forms_of = zip(tables, np.split(form, bounds), strict=True)
    return [Part(table, of_text, template_of[of_text]) for table, of_text in forms_of]


def share_of(mask: NDArray[np.bool_]) -> str:
    """ "12 of 3838 (0.3 %)"."""
    return f"{int(mask.sum())} of {len(mask)} ({100 * mask.mean():.1f} %)"


def counted(rows: NDArray[np.bool_]) -> dict[str, Any]:
    """The numbers of a finding: how many rows, and which share of the file."""
    return {"rows": int(rows.sum()), "share": float(rows.mean())}


def masks_of_phases(table: PairTable) -> dict[str, NDArray[np.bool_]]:
    """[N] mask of the rows of ALL, then of each phase where there are two or more."""
    phases = np.unique(table.phase)
    of_phase = {str(phase): table.phase == phase for phase in phases} if len(phases) > 1 else {}
    return {ALL: np.ones(len(table), dtype=np.bool_), **of_phase}


def name_of(source: str) -> str:
    """What to call a file where there is little room."""
    return source.rpartition("/")[2]
