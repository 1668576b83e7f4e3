"""Several pair files as one table, of which each row knows its file.

Texts are numbered over all of them: copies share a canonical number, so that splits, overlap checks and the masks of
known positives see through the files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from trainer.data.pairs import PairTable
from trainer.text.canonical import canonical_form


def join(tables: Sequence[PairTable]) -> PairTable:
    """One table of the rows of several, in their order; `part` says which of them a row is from.

    Where one of them says phases, the rows of those that do not are of phase 0: they belong to all phases.
    """
    if len(tables) == 1:
        return tables[0]
    texts = list(dict.fromkeys(text for table in tables for text in table.texts))
    ids = {text: number for number, text in enumerate(texts)}
    forms: dict[str, int] = {}
    canonical = [forms.setdefault(canonical_form(text), len(forms)) for text in texts]
    numbers = [np.array([ids[text] for text in table.texts], dtype=np.int32) for table in tables]
    has_phases = any(table.has_phases for table in tables)
    phases = [table.phase if table.has_phases or not has_phases else np.zeros_like(table.phase) for table in tables]
    return PairTable(
        texts=texts,
        canonical=np.array(canonical, dtype=np.int32),
        text1=np.concatenate([of[table.text1] for of, table in zip(numbers, tables, strict=True)]),
        text2=np.concatenate([of[table.text2] for of, table in zip(numbers, tables, strict=True)]),
        score=np.concatenate([table.score for table in tables]),
        label=np.concatenate([table.label for table in tables]),
        phase=np.concatenate(phases),
        has_phases=has_phases,
        categories1=_cells([table.categories1 for table in tables], tables),
        categories2=_cells([table.categories2 for table in tables], tables),
        row=np.concatenate([table.row for table in tables]),
        teacher=np.concatenate([table.teacher for table in tables]),
        teacher_group=_apart([table.teacher_group for table in tables]),
        source=f"{tables[0].source} and {len(tables) - 1} more",
        sources=tuple(table.source for table in tables),
        part=np.repeat(np.arange(len(tables), dtype=np.int32), [len(table) for table in tables]),
        origins=_cells([table.origins for table in tables], tables),
    )


def _apart(groups: Sequence[np.ndarray]) -> np.ndarray:
    """Numbers of groups that are others in each table: two files may be of two teachers."""
    starts = np.cumsum([0, *(group.max(initial=-1) + 1 for group in groups[:-1])])
    return np.concatenate([group + start for group, start in zip(groups, starts, strict=True)])


def _cells(columns: Sequence[list[str] | None], tables: Sequence[PairTable]) -> list[str] | None:
    """A column of all tables, "" where one has none; None where none has it."""
    if not any(columns):
        return None
    return [cell for column, table in zip(columns, tables, strict=True) for cell in column or [""] * len(table)]


def by_source(table: PairTable, rows: np.ndarray | None = None) -> list[PairTable]:
    """Some rows (indices), or all, as a table for each source that has some, named by its file."""
    if len(table.sources) == 1:
        return [table if rows is None else table.take(rows)]
    rows = np.arange(len(table)) if rows is None else rows
    parts = [(source, rows[table.part[rows] == number]) for number, source in enumerate(table.sources)]
    return [
        replace(table.take(of_source), source=source, sources=(source,), part=np.zeros(len(of_source), dtype=np.int32))
        for source, of_source in parts
        if len(of_source)
    ]


def rows_by_source(table: PairTable, rows: np.ndarray | None = None) -> dict[str, int]:
    """File -> how many of some rows (indices), or of all, are from it."""
    parts = table.part if rows is None else table.part[rows]
    counts = np.bincount(parts, minlength=len(table.sources))
    return dict(zip(table.sources, counts.tolist(), strict=True))
