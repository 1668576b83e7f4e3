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
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from trainer.data.readers import Field, RawTable, brief, parse_number, read_table, table_from_columns
from trainer.errors import InputError
from trainer.text.canonical import canonical_form

FIELDS = (
    Field("text1", "texts1"),
    Field("text2", "texts2"),
    Field("label", "labels"),
    Field("phase", "phase_indicators", required=False),
    Field("category1", "categories1", required=False),
    Field("category2", "categories2", required=False),
)
HEADERLESS = ("text1", "text2", "label")  # as the STS benchmark's files


MAX_PHASE = 2**31 - 1
# What no text may hold: NUL, and surrogates, which JSON can spell ("\\ud800") and UTF-8 cannot.
UNUSABLE = re.compile("[\0\ud800-\udfff]")


IntArray = NDArray[np.int32]


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
    """[N] curriculum phase from 1; 1 where the file has none."""
    categories1: list[str] | None
    """[N] category of the first text, "" where unknown; None where the file has no such column."""
    categories2: list[str] | None
    """[N] category of the second text."""
    row: NDArray[np.int64]
    """[N] number of the row in the file, from 1, for messages; sub-tables keep it."""
    source: str
    """What to call the table in messages: the file's path."""

    def __len__(self) -> int:
        return len(self.text1)

    def take(self, rows: NDArray[Any]) -> PairTable:
        """The table of `rows` (indices or a mask), as read from a file of just those; `row` keeps its numbers."""
        chosen = np.arange(len(self))[rows]
        used, ids = _number_by_appearance(np.stack([self.text1[chosen], self.text2[chosen]], axis=1).ravel())
        return PairTable(
            texts=[self.texts[text] for text in used],
            canonical=_number_by_appearance(self.canonical[used])[1],
            text1=ids[0::2],
            text2=ids[1::2],
            score=self.score[chosen],
            label=self.label[chosen],
            phase=self.phase[chosen],
            categories1=None if self.categories1 is None else [self.categories1[row] for row in chosen],
            categories2=None if self.categories2 is None else [self.categories2[row] for row in chosen],
            row=self.row[chosen],
            source=self.source,
        )

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

    def fingerprint(self) -> str:
        """SHA-256 (hex) of rows and their order: texts, scores, labels, phases, categories; not of format or path."""
        digest = hashlib.sha256()
        for strings in (self.texts, self.categories1, self.categories2):
            digest.update(json.dumps(strings).encode())
            digest.update(b"\n")
        columns = (self.text1, self.text2, self.score, self.label, self.phase)
        for column, dtype in zip(columns, ("<i4", "<i4", "<f8", "u1", "<i4"), strict=True):
            digest.update(np.ascontiguousarray(column, dtype=dtype).tobytes())
        return digest.hexdigest()


def read_pairs(path: str | Path, *, label_scale: float = 1.0, positive_threshold: float | None = None) -> PairTable:
    """Read labelled pairs from .json (columnar), .jsonl, .csv or .tsv, each also .gz.

    Labels are numbers from 0 to `label_scale` or booleans (the two ends of the scale). A pair is positive from
    `positive_threshold` on, which is in the unit of the file's labels (`label_scale=5, positive_threshold=3`: from 3 of
    5 on); None means half of the scale.

    Raises InputError, one line naming file, row (from 1, with the line where that differs), field and fix.
    """
    return _pair_table(read_table(path, FIELDS, HEADERLESS), label_scale, positive_threshold)


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
        columns: name -> list, tuple, array or Series; or a DataFrame. Names as in FIELDS, in the singular or the
            plural. NaN in a category is an unknown one.
        source: what to call them in messages.
        label_scale, positive_threshold: as in `read_pairs`.

    Raises InputError, one line naming source, row, field and fix.
    """
    names = {field.plural: field.name if field.name in columns else field.plural for field in FIELDS}
    given = {plural: _as_list(columns[name]) for plural, name in names.items() if name in columns}
    for name in ("categories1", "categories2"):
        if isinstance(given.get(name), list):
            given[name] = [None if cell != cell else cell for cell in given[name]]
    raw = table_from_columns(given, source, FIELDS)
    raw = replace(raw, names={field.name: names[field.plural] for field in FIELDS})
    return _pair_table(raw, label_scale, positive_threshold)


def _as_list(column: Any) -> Any:
    """A column as a list of Python's own types; what is no column as it is."""
    if isinstance(column, list | tuple):
        return [cell.item() if isinstance(cell, np.generic) else cell for cell in column]
    return column.tolist() if hasattr(column, "tolist") else column


def _pair_table(raw: RawTable, label_scale: float, positive_threshold: float | None) -> PairTable:
    if not (math.isfinite(label_scale) and label_scale > 0):
        raise InputError(f"data.label_scale is {label_scale}: set it to the highest label of {raw.source}, above 0")
    threshold = label_scale / 2 if positive_threshold is None else positive_threshold
    if not 0 < threshold <= label_scale:
        raise InputError(
            f"data.positive_threshold is {threshold}: set it above 0, up to data.label_scale {label_scale}"
        )
    rows = range(len(raw.columns["label"]))
    texts, text1, text2 = _intern_texts(raw)
    forms: dict[str, int] = {}
    canonical = [forms.setdefault(canonical_form(text), len(forms)) for text in texts]
    labels = np.array([_label(raw, row, label_scale) for row in rows], dtype=np.float64)
    phases = [_phase(raw, row) for row in rows] if "phase" in raw.columns else [1] * len(rows)
    return PairTable(
        texts=texts,
        canonical=np.array(canonical, dtype=np.int32),
        text1=np.array(text1, dtype=np.int32),
        text2=np.array(text2, dtype=np.int32),
        score=labels / label_scale,
        label=labels >= threshold,
        phase=np.array(phases, dtype=np.int32),
        categories1=_categories(raw, "category1"),
        categories2=_categories(raw, "category2"),
        row=np.arange(1, len(rows) + 1, dtype=np.int64),
        source=raw.source,
    )


def _intern_texts(raw: RawTable) -> tuple[list[str], list[int], list[int]]:
    """Unique texts, and their numbers for either side of each row."""
    ids: dict[str, int] = {}
    sides: tuple[list[int], list[int]] = ([], [])
    for row, pair in enumerate(zip(raw.columns["text1"], raw.columns["text2"], strict=True)):
        for field, text, side in zip(("text1", "text2"), pair, sides, strict=True):
            if not isinstance(text, str):
                raise raw.error(row, field, f"{brief(text)} is not a text: write a string")
            number = ids.get(text)
            if number is None:
                _check_characters(raw, row, field, text)
                if not text.strip():
                    raise raw.error(row, field, "is blank: write a text or remove the row")
                number = ids[text] = len(ids)
            side.append(number)
    return list(ids), *sides


def _check_characters(raw: RawTable, row: int, field: str, text: str) -> None:
    if bad := UNUSABLE.search(text):
        what = "a NUL" if bad.group() == "\0" else f"half a surrogate pair (\\u{ord(bad.group()):04x})"
        raise raw.error(row, field, f"holds {what} at character {bad.start() + 1}: remove it")


def _label(raw: RawTable, row: int, scale: float) -> float:
    """The label of a row in the file's unit."""
    cell = value = raw.columns["label"][row]
    if raw.text_cells:
        value = {"true": True, "false": False}.get(cell.strip().lower(), parse_number(cell))
    if isinstance(value, bool):
        return scale if value else 0.0
    if not isinstance(value, int | float):
        raise raw.error(row, "label", f"{brief(cell)} is not a number: write 0, 1 or a score")
    if not 0 <= value <= scale:  # so written, NaN fails too
        fix = f"correct it, or set data.label_scale (now {scale:g}) to the highest label"
        raise raw.error(row, "label", f"{brief(value)} is not between 0 and {scale:g}: {fix}")
    return float(value) + 0.0  # -0.0 becomes 0.0, whose bytes the fingerprint sees


def _phase(raw: RawTable, row: int) -> int:
    cell = value = raw.columns["phase"][row]
    if raw.text_cells:
        digits = cell.strip()
        value = int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= len(str(MAX_PHASE)) else cell
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_PHASE:
        raise raw.error(row, "phase", f"{brief(cell)} is not a phase: write a whole number from 1")
    return value


def _categories(raw: RawTable, field: str) -> list[str] | None:
    if field not in raw.columns:
        return None
    cells = ["" if cell is None else cell for cell in raw.columns[field]]
    for row, cell in enumerate(cells):
        if not isinstance(cell, str):
            raise raw.error(row, field, f"{brief(cell)} is not a category: write a string")
        _check_characters(raw, row, field, cell)
    return cells


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
    first, second = table.canonical[table.text1[table.label]], table.canonical[table.text2[table.label]]
    sides = (np.concatenate([first, second]), np.concatenate([second, first]))
    size = canonical_count(table)
    return csr_matrix((np.ones(2 * len(first), dtype=np.bool_), sides), shape=(size, size))
