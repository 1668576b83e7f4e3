"""Labelled pairs of texts, typed and validated, in columns.

Shape letters: N pairs (rows), T unique texts, C canonical forms of texts (C <= T).

A label is a score between 0 and 1 and, by a threshold, positive or negative: a negative can then only ever push apart.
Two texts that a person would call copies (case, spacing, Unicode composition) share a canonical number: masks, splits
and overlap checks work on those, the encoder on the exact texts.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from trainer.data.field_names import PairFinder
from trainer.data.json_files import table_of_columns
from trainer.data.pair_cells import one_row_a_pair, read_category, read_label, read_phase, read_score, read_text
from trainer.data.raw_table import Faults, RawTable
from trainer.data.readers import Reading, read_table
from trainer.errors import InputError
from trainer.text.canonical import canonical_form

IntArray = NDArray[np.int32]

SCALE_SETTING = "data.label_scale"
TEACHER = ("teacher", "teacher_group")


@dataclass(frozen=True, eq=False)
class PairTable:
    """N labelled pairs over T unique texts."""

    texts: list[str]
    """[T] exact texts, each once, in order of first appearance (row by row, first text first)."""
    canonical: IntArray
    """[T] number of the text's canonical form, 0 .. C-1 in order of first appearance."""
    text1: IntArray
    """[N] first text of each pair, an index into `texts`."""
    text2: IntArray
    """[N] second text of each pair."""
    score: NDArray[np.float64]
    """[N] label divided by its scale, 0 to 1."""
    label: NDArray[np.bool_]
    """[N] True for positives: the label reached the threshold."""
    phase: IntArray
    """[N] curriculum phase from 1; 1 where the file has none, 0 for all phases where another one of its sources has."""
    has_phases: bool
    """Whether the file says them."""
    categories1: list[str] | None
    """[N] category of the first text, "" where unknown; None where the file has no such column."""
    categories2: list[str] | None
    """[N] category of the second text."""
    row: NDArray[np.int64]
    """[N] number of the row in the file, from 1, for messages; sub-tables keep it."""
    source: str
    """What to call the table in messages: the file's path."""
    teacher: NDArray[np.float64]
    """[N] a teacher's score of each pair in the file's unit, NaN where there is none."""
    teacher_group: NDArray[np.int64]
    """[N] which of the teacher's scores are comparable: those of the same number."""
    sources: tuple[str, ...]
    """The files that the rows are from, most often one (`sources.join`)."""
    part: IntArray
    """[N] which of the sources each row is from."""
    origins: list[str] | None = None
    """[N] where each row of built pairs comes from (`origins.py`), "" where unknown; None without such a column."""

    def __len__(self) -> int:
        return len(self.text1)

    def take(self, rows: NDArray[Any]) -> PairTable:
        """The table of `rows` (indices or a mask), as read from a file of just those; `row` keeps its numbers."""
        chosen = np.arange(len(self))[rows]
        used, ids = _number_by_appearance(np.stack([self.text1[chosen], self.text2[chosen]], axis=1).ravel())
        lists = ((name, getattr(self, name)) for name in ("categories1", "categories2", "origins"))
        columns: dict[str, Any] = {name: cells and [cells[row] for row in chosen] for name, cells in lists}
        columns |= {name: getattr(self, name)[chosen] for name in ("score", "label", "phase", "row", "part", *TEACHER)}
        return replace(
            self,
            texts=[self.texts[text] for text in used],
            canonical=_number_by_appearance(self.canonical[used])[1],
            text1=ids[0::2],
            text2=ids[1::2],
            **columns,
        )

    def columns(self) -> dict[str, list[Any]]:
        """The pairs as a file of ours has them: labels 0 to 1, categories "" where unknown, no teacher's scores."""
        return {
            "texts1": [self.texts[text] for text in self.text1],
            "texts2": [self.texts[text] for text in self.text2],
            "labels": self.score.tolist(),
            "phase_indicators": self.phase.tolist(),
            "categories1": self.categories1 or [""] * len(self),
            "categories2": self.categories2 or [""] * len(self),
        }

    def with_sides(self) -> PairTable:
        """The table where every text stands twice, as a first one and, T further on, as a second one of a pair.

        Copies keep one canonical number whichever side they stand on.
        """
        return replace(
            self,
            texts=2 * self.texts,
            canonical=np.tile(self.canonical, 2),
            text2=(self.text2 + len(self.texts)).astype(np.int32),
        )

    def place(self, row: int) -> str:
        """A row (an index) as messages name it: file and number."""
        return f"{self.sources[self.part[row]]}: row {self.row[row]}"

    def fingerprint(self) -> str:
        """SHA-256 (hex) of rows and their order: texts, scores, labels, phases, categories, of several sources also
        which; not of format or path."""
        digest = hashlib.sha256()
        for strings in (self.texts, self.categories1, self.categories2):
            digest.update(json.dumps(strings).encode())
            digest.update(b"\n")
        columns: list[NDArray[Any]] = [self.text1, self.text2, self.score, self.label, self.phase]
        types = ["<i4", "<i4", "<f8", "u1", "<i4"]
        if len(self.sources) > 1:  # what one file without a teacher has is that of a version that knew neither
            columns, types = [*columns, self.part], [*types, "<i4"]
        if not np.isnan(self.teacher).all():
            columns, types = [*columns, self.teacher, self.teacher_group], [*types, "<f8", "<i8"]
        for column, dtype in zip(columns, types, strict=True):
            digest.update(np.ascontiguousarray(column, dtype=dtype).tobytes())
        return digest.hexdigest()


def read_pairs(
    path: str | Path,
    *,
    label_scale: float = 1.0,
    positive_threshold: float | None = None,
    reading: Reading | None = None,
    scale_setting: str = SCALE_SETTING,
) -> PairTable:
    """Read labelled pairs from a file of any format and layout that `trainer/data/README.md` lists.

    Labels are numbers from 0 to `label_scale`, or booleans and yes or no (the two ends of the scale). A pair is
    positive from `positive_threshold` on, which is in the unit of the file's labels (`label_scale=5,
    positive_threshold=3`: from 3 of 5 on); None means half of the scale. Positives and negatives of one text
    (triplets) become a pair each. `scale_setting` is what a message may call the scale; "" where it is fixed.

    Raises InputError, one line naming file, row (from 1, with the line where that differs), field and fix.
    """
    raw = read_table(path, PairFinder(reading.columns if reading else ()), reading)
    return _pair_table(raw, label_scale, positive_threshold, scale_setting)


def pairs_from_columns(
    columns: Mapping[str, Any],
    source: str = "pairs",
    *,
    label_scale: float = 1.0,
    positive_threshold: float | None = None,
) -> PairTable:
    """Labelled pairs from columns in memory, checked as those of a file are.

    >>> table = pairs_from_columns({"text1": ["vpn down", "vpn down"], "text2": ["no vpn", "no mail"], "label": [1, 0]})
    >>> len(table), table.texts, table.label.tolist()
    (2, ['vpn down', 'no vpn', 'no mail'], [True, False])

    Args:
        columns: name -> list, tuple, array or Series; or a DataFrame. Names as in a file: our own, or the usual ones.
            NaN in a category is an unknown one.
        source: what to call them in messages.
        label_scale, positive_threshold: as in `read_pairs`.

    Raises InputError, one line naming source, row, field and fix.
    """
    raw = table_of_columns({str(name): _as_list(columns[name]) for name in columns}, source, PairFinder())
    for name in ("category1", "category2"):
        if name in raw.columns:
            raw.columns[name] = [None if cell != cell else cell for cell in raw.columns[name]]
    return _pair_table(raw, label_scale, positive_threshold)


def _as_list(column: Any) -> Any:
    """A column as a list of Python's own types; what is no column as it is."""
    if isinstance(column, list | tuple):
        return [cell.item() if isinstance(cell, np.generic) else cell for cell in column]
    return column.tolist() if hasattr(column, "tolist") else column


def _pair_table(
    raw: RawTable, label_scale: float, positive_threshold: float | None, scale_setting: str = SCALE_SETTING
) -> PairTable:
    if not (math.isfinite(label_scale) and label_scale > 0):
        raise InputError(f"data.label_scale is {label_scale}: set it to the highest label of {raw.source}, above 0")
    threshold = label_scale / 2 if positive_threshold is None else positive_threshold
    if not 0 < threshold <= label_scale:
        raise InputError(
            f"data.positive_threshold is {threshold}: set it above 0, up to data.label_scale {label_scale}"
        )
    are_margins = "margin" in raw.columns and "label" not in raw.columns
    raw = one_row_a_pair(raw)
    faults = Faults(raw)
    texts1, texts2 = (faults.read(side, partial(read_text, name=raw.names[side])) for side in ("text1", "text2"))
    labels = faults.read("label", partial(read_label, scale=label_scale, scale_setting=scale_setting))
    phases = faults.read("phase", read_phase) if "phase" in raw.columns else [1] * len(raw)
    read = partial(read_category, spelled={"": ""})
    categories = [faults.read(name, read) if name in raw.columns else None for name in ("category1", "category2")]
    read_scores = faults.read("teacher", read_score) if "teacher" in raw.columns else [math.nan] * len(raw)
    faults.check()
    rows = np.array(raw.rows or range(1, len(raw) + 1), dtype=np.int64)
    teacher = np.array(read_scores, dtype=np.float64)
    if are_margins:  # where no negative has one, the positive's 0 is no score
        teacher = np.where(np.bincount(rows, ~np.isnan(teacher))[rows] > 1, -teacher, math.nan)
    ids: dict[str, int] = {}
    numbers = [ids.setdefault(text, len(ids)) for pair in zip(texts1, texts2, strict=True) for text in pair]
    scores = np.array(labels, dtype=np.float64)
    origins = raw.columns.get("origin")  # what is none of ours is for no one to judge
    forms: dict[str, int] = {}
    canonical = [forms.setdefault(canonical_form(text), len(forms)) for text in ids]
    return PairTable(
        texts=list(ids),
        canonical=np.array(canonical, dtype=np.int32),
        text1=np.array(numbers[0::2], dtype=np.int32),
        text2=np.array(numbers[1::2], dtype=np.int32),
        score=scores / label_scale,
        label=scores >= threshold,
        phase=np.array(phases, dtype=np.int32),
        categories1=categories[0],
        categories2=categories[1],
        has_phases="phase" in raw.columns,
        row=rows,
        teacher=teacher,
        teacher_group=rows if are_margins else np.zeros_like(rows),
        source=raw.source,
        sources=(raw.source,),
        part=np.zeros(len(raw), dtype=np.int32),
        origins=origins and [cell.strip().lower() if isinstance(cell, str) else "" for cell in origins],
    )


def graded_labels(table: PairTable) -> NDArray[np.bool_]:
    """[N] which labels lie strictly between the ends of their scale: where pairs are positive or negative, the
    difference between them is lost."""
    return (table.score > 0) & (table.score < 1)


def soft_targets(table: PairTable, teacher_scale: float = 1.0) -> NDArray[np.float64]:
    """[N] what distillation learns of each file: the teacher's scores over their scale; where no pair of it has one,
    the labels, 0 to 1, if some lie between the ends of theirs; else NaN, as there is nothing to learn."""
    targets, graded = table.teacher / teacher_scale, graded_labels(table)
    for part in range(len(table.sources)):
        rows = table.part == part
        if np.isnan(table.teacher[rows]).all() and graded[rows].any():
            targets[rows] = table.score[rows]
    return targets


def _number_by_appearance(values: NDArray[Any]) -> tuple[NDArray[Any], IntArray]:
    """The distinct values in order of first appearance, and the position of each of `values` among them."""
    distinct, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return distinct[order], np.argsort(order)[inverse].astype(np.int32)


def canonical_count(table: PairTable) -> int:
    """C, how many canonical texts the pairs have."""
    return int(table.canonical.max(initial=-1)) + 1


def positives_of(table: PairTable) -> csr_matrix:
    """[C, C] symmetric sparse bool matrix: True where some row labels these two canonical texts positive."""
    return _canonical_pairs(table, table.label)


def positives_beyond(sample: PairTable, table: PairTable) -> csr_matrix:
    """As `positives_of` a sample of a table's rows, of all rows of the table that label two texts of the sample."""
    numbers = dict(zip(table.texts, table.canonical.tolist(), strict=True))
    canonical = np.empty(canonical_count(sample), dtype=np.int64)  # of the sample's canonical texts, in the table
    canonical[sample.canonical] = [numbers[text] for text in sample.texts]
    return positives_of(table)[canonical][:, canonical]


def negatives_of(table: PairTable) -> csr_matrix:
    """As `positives_of`, of the rows labelled negative."""
    return _canonical_pairs(table, ~table.label)


def _canonical_pairs(table: PairTable, rows: NDArray[np.bool_]) -> csr_matrix:
    first, second = table.canonical[table.text1[rows]], table.canonical[table.text2[rows]]
    sides = (np.concatenate([first, second]), np.concatenate([second, first]))
    size = canonical_count(table)
    return csr_matrix((np.ones(2 * len(first), dtype=np.bool_), sides), shape=(size, size))
