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

from trainer.data.field_names import PairFinder
from trainer.data.json_files import table_of_columns
from trainer.data.raw_table import Faults, RawTable, brief, parse_number
from trainer.data.readers import Reading, read_table, say_reading
from trainer.errors import InputError
from trainer.text.canonical import canonical_form

WORDS = {"true": True, "yes": True, "y": True, "false": False, "no": False, "n": False}  # that labels may be
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
    origins: list[str] | None = None
    """[N] where each row of built pairs comes from (`origins.py`), "" where unknown; None without such a column."""

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
            origins=None if self.origins is None else [self.origins[row] for row in chosen],
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


def read_pairs(
    path: str | Path,
    *,
    label_scale: float = 1.0,
    positive_threshold: float | None = None,
    reading: Reading | None = None,
) -> PairTable:
    """Read labelled pairs from a file of any format and layout that `trainer/data/README.md` lists.

    Labels are numbers from 0 to `label_scale`, or booleans and yes or no (the two ends of the scale). A pair is
    positive from `positive_threshold` on, which is in the unit of the file's labels (`label_scale=5,
    positive_threshold=3`: from 3 of 5 on); None means half of the scale. Positives and negatives of one text
    (triplets) become a pair each.

    Raises InputError, one line naming file, row (from 1, with the line where that differs), field and fix.
    """
    finder = PairFinder(reading.columns if reading else ())
    raw = read_table(path, finder, reading)
    unused = reading and reading.columns and not any(map(finder.is_mapped, raw.names.values()))
    say_reading(raw, finder.describe(raw.names), ["it has none of data.columns"] if unused else [])
    return _pair_table(raw, label_scale, positive_threshold)


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


def _one_row_a_pair(raw: RawTable) -> RawTable:
    """A table with text1, text2 and label of one of positives and negatives: each of them is a row.

    `rows` keeps their numbers in the file. Raises InputError where there is none.
    """
    if "label" in raw.columns:
        return raw
    sides = [
        (raw.columns[name], label) for name, label in (("positive", True), ("negative", False)) if name in raw.columns
    ]
    chosen = [
        (row, text, label)
        for row in range(len(raw))
        for column, label in sides
        for text in _texts_in(column[row], keep_blank=label)
    ]
    if not chosen:
        raise InputError(f"{raw.source}: has no positives and no negatives: add some")
    rows, texts, labels = zip(*chosen, strict=True)
    others = raw.columns.keys() - {"positive", "negative"}
    return replace(
        raw,
        columns={name: [raw.columns[name][row] for row in rows] for name in others}
        | {"text2": list(texts), "label": list(labels)},
        names={**raw.names, "text2": raw.names["positive"], "label": "label"},
        lines=[raw.lines[row] for row in rows] if raw.lines else None,
        rows=[row + 1 for row in rows],
    )


def _texts_in(cell: Any, keep_blank: bool) -> list[Any]:
    """The texts of a cell that holds one, or a list; blank ones (of triplets without a negative) only to be refused."""
    if isinstance(cell, list):
        return [text for inner in cell for text in (inner if isinstance(inner, list) else [inner])]
    return [cell] if keep_blank or cell not in ("", None) else []


def _pair_table(raw: RawTable, label_scale: float, positive_threshold: float | None) -> PairTable:
    if not (math.isfinite(label_scale) and label_scale > 0):
        raise InputError(f"data.label_scale is {label_scale}: set it to the highest label of {raw.source}, above 0")
    threshold = label_scale / 2 if positive_threshold is None else positive_threshold
    if not 0 < threshold <= label_scale:
        raise InputError(
            f"data.positive_threshold is {threshold}: set it above 0, up to data.label_scale {label_scale}"
        )
    raw = _one_row_a_pair(raw)
    faults = Faults(raw)
    texts, text1, text2 = _intern_texts(raw, faults)
    labels = np.array(_labels(raw, label_scale, faults), dtype=np.float64)
    phases = _phases(raw, faults)
    categories = [_categories(raw, name, faults) for name in ("category1", "category2")]
    faults.check()
    forms: dict[str, int] = {}
    canonical = [forms.setdefault(canonical_form(text), len(forms)) for text in texts]
    return PairTable(
        texts=texts,
        canonical=np.array(canonical, dtype=np.int32),
        text1=np.array(text1, dtype=np.int32),
        text2=np.array(text2, dtype=np.int32),
        score=labels / label_scale,
        label=labels >= threshold,
        phase=np.array(phases, dtype=np.int32),
        categories1=categories[0],
        categories2=categories[1],
        row=np.array(raw.rows or range(1, len(raw) + 1), dtype=np.int64),
        source=raw.source,
        origins=_origins(raw),
    )


def _intern_texts(raw: RawTable, faults: Faults) -> tuple[list[str], list[int], list[int]]:
    """Unique texts, and their numbers for either side of each row."""
    ids: dict[str, int] = {}
    sides: tuple[list[int], list[int]] = ([], [])
    for row, pair in enumerate(zip(raw.columns["text1"], raw.columns["text2"], strict=True)):
        for field, text, side in zip(("text1", "text2"), pair, sides, strict=True):
            number = ids.get(text) if isinstance(text, str) else None
            if number is None:
                number = len(ids)
                if not isinstance(text, str):
                    what = "is missing" if text is None else f"{brief(text)} is not a text"
                    faults.add(row, field, what, "write a string, or remove the row")
                elif not _has_bad_characters(row, field, text, faults):
                    if text.strip():
                        ids[text] = number
                    else:
                        faults.add(row, field, "is blank", "write a text or remove the row")
            side.append(number)
    return list(ids), *sides


def _has_bad_characters(row: int, field: str, text: str, faults: Faults) -> bool:
    """Whether a text holds what none may; then that is noted."""
    if bad := UNUSABLE.search(text):
        what = "a NUL" if bad.group() == "\0" else f"half a surrogate pair (\\u{ord(bad.group()):04x})"
        faults.add(row, field, f"holds {what} at character {bad.start() + 1}", "remove it")
    return bad is not None


def _labels(raw: RawTable, scale: float, faults: Faults) -> list[float]:
    """[N] labels in the file's unit."""
    labels = []
    for row, cell in enumerate(raw.columns["label"]):
        value = cell
        if isinstance(cell, str):
            value = WORDS.get(cell.strip().lower(), parse_number(cell))
        if isinstance(value, bool):
            value = scale if value else 0.0
        if not isinstance(value, int | float):
            what = "is missing" if cell is None else f"{brief(cell)} is not a number"
            fix = "write 1 for pairs that are alike and 0 for others (in place of words such as these), or a score"
            faults.add(row, "label", what, fix if isinstance(cell, str) and cell.strip() else "write 0, 1 or a score")
        elif not 0 <= value <= scale:  # so written, NaN fails too
            fix = f"correct it, or set data.label_scale (now {scale:g}) to the highest label"
            faults.add(row, "label", f"{brief(value)} is not between 0 and {scale:g}", fix)
        else:
            labels.append(float(value) + 0.0)  # -0.0 becomes 0.0, whose bytes the fingerprint sees
    return labels


def _phases(raw: RawTable, faults: Faults) -> list[int]:
    """[N] phases, 1 where the file has none."""
    if "phase" not in raw.columns:
        return [1] * len(raw)
    phases = []
    for row, cell in enumerate(raw.columns["phase"]):
        value = cell
        if isinstance(cell, str):
            digits = cell.strip()
            whole = digits.isascii() and digits.isdigit() and len(digits) <= len(str(MAX_PHASE))
            value = int(digits) if whole else cell
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_PHASE:
            faults.add(row, "phase", f"{brief(cell)} is not a phase", "write a whole number from 1")
        else:
            phases.append(value)
    return phases


def _categories(raw: RawTable, field: str, faults: Faults) -> list[str] | None:
    if field not in raw.columns:
        return None
    cells = ["" if cell is None else cell for cell in raw.columns[field]]
    for row, cell in enumerate(cells):
        if not isinstance(cell, str):
            faults.add(row, field, f"{brief(cell)} is not a category", "write a string")
        else:
            _has_bad_characters(row, field, cell, faults)
    return cells


def graded_labels(table: PairTable) -> int:
    """How many labels lie strictly between the ends of their scale: where pairs are positive or negative, the
    difference between them is lost."""
    return int(((table.score > 0) & (table.score < 1)).sum())


def _origins(raw: RawTable) -> list[str] | None:
    """[N] origins in one spelling; what is none of ours is for no one to judge."""
    cells = raw.columns.get("origin")
    return None if cells is None else [cell.strip().lower() if isinstance(cell, str) else "" for cell in cells]


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
