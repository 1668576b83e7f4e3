"""Labelled pairs of texts, typed and validated, in columns.

Shape letters: N pairs (rows), T unique texts, C canonical forms of texts (C <= T).

A label is a score between 0 and 1 and, by a threshold, positive or negative: a negative can then only ever push apart.
Two texts that a person would call copies (case, spacing, Unicode composition) share a canonical number: masks, splits
and overlap checks work on those, the encoder on the exact texts.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csgraph, csr_matrix

from trainer.errors import InputError
from trainer.readers import Field, RawTable, parse_number, read_table, shown, table_from_columns

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

SPLIT_ATTEMPTS = 20
SPLIT_TOLERANCE = 0.25  # how far, of the rows asked for, a split may miss

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


def canonical_form(text: str) -> str:
    """What copies of a text share: case folded, composed (NFC), each run of white space one space, none at the ends.

    Folding follows Unicode's canonical caseless matching (D145: NFD, fold), so equivalent spellings fold alike. Runs of
    more than 30 combining marks are cut by grapheme joiners first (after the Stream-Safe Text Format, UAX #15): Python
    sorts the marks of a run in quadratic time, and 10 MB of them would take a day.
    """
    if text.isascii():
        return " ".join(text.lower().split())
    folded = unicodedata.normalize("NFD", _possible_mark_runs().sub(_cut_marks, text)).casefold()
    return " ".join(unicodedata.normalize("NFC", folded).split())


def _is_mark(char: str) -> bool:
    return unicodedata.combining(unicodedata.normalize("NFD", char)[0]) > 0


def _cut_marks(run: re.Match[str]) -> str:
    return run.group() + "\u034f" * all(map(_is_mark, run.group()))


@functools.cache
def _possible_mark_runs() -> re.Pattern[str]:
    """30 characters in a row that may all be marks; beyond U+FFFF, where `re` is slow with sets, any letter may."""
    mark = "[" + "".join(filter(_is_mark, map(chr, range(0x300, 0x10000)))) + "\U00010000-\U0001efff]"
    return re.compile(f"{mark}{mark}{{29}}")  # a set in front, not a repetition: ten times as fast to search for


def read_pairs(path: str | Path, *, label_scale: float = 1.0, positive_threshold: float | None = None) -> PairTable:
    """Read labelled pairs from .json (columnar), .jsonl, .csv or .tsv, each also .gz.

    Labels are numbers from 0 to `label_scale` or booleans (the two ends of the scale). A pair is positive from
    `positive_threshold` on, which is in the unit of the file's labels (`label_scale=5, positive_threshold=3`: from 3 of
    5 on); None means half of the scale.

    Raises InputError, one line naming file, row (from 1, with the line where that differs), field and fix.
    """
    return _pair_table(read_table(path, FIELDS, HEADERLESS), label_scale, positive_threshold)


def pairs_from_columns(
    columns: dict[str, list[Any]], source: str, *, label_scale: float = 1.0, positive_threshold: float | None = None
) -> PairTable:
    """Pairs from columns named as in the JSON format (`texts1`, `texts2`, `labels`, ...); validated as files are."""
    return _pair_table(table_from_columns(columns, source, FIELDS), label_scale, positive_threshold)


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
                raise raw.error(row, field, f"{shown(text)} is not a text: write a string")
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
        raise raw.error(row, "label", f"{shown(cell)} is not a number: write 0, 1 or a score")
    if not 0 <= value <= scale:  # so written, NaN fails too
        fix = f"correct it, or set data.label_scale (now {scale:g}) to the highest label"
        raise raw.error(row, "label", f"{shown(value)} is not between 0 and {scale:g}: {fix}")
    return float(value) + 0.0  # -0.0 becomes 0.0, whose bytes the fingerprint sees


def _phase(raw: RawTable, row: int) -> int:
    cell = value = raw.columns["phase"][row]
    if raw.text_cells:
        digits = cell.strip()
        value = int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= len(str(MAX_PHASE)) else cell
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_PHASE:
        raise raw.error(row, "phase", f"{shown(cell)} is not a phase: write a whole number from 1")
    return value


def _categories(raw: RawTable, field: str) -> list[str] | None:
    if field not in raw.columns:
        return None
    cells = ["" if cell is None else cell for cell in raw.columns[field]]
    for row, cell in enumerate(cells):
        if not isinstance(cell, str):
            raise raw.error(row, field, f"{shown(cell)} is not a category: write a string")
        _check_characters(raw, row, field, cell)
    return cells


def _number_by_appearance(values: NDArray[Any]) -> tuple[NDArray[Any], IntArray]:
    """The distinct values in order of first appearance, and the position of each of `values` among them."""
    distinct, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return distinct[order], np.argsort(order)[inverse].astype(np.int32)


def require_both_classes(table: PairTable) -> None:
    """Raises InputError unless the table holds positives and negatives."""
    positives = int(table.label.sum())
    if positives in (0, len(table)):
        only, missing = ("negative", "positive") if positives == 0 else ("positive", "negative")
        fix = f"add {missing} pairs, or correct data.positive_threshold"
        raise InputError(f"{table.source}: label: all {len(table)} rows are {only}: {fix}")


def connected_components(table: PairTable) -> IntArray:
    """[N] number of the component each row belongs to, where pairs (of either label) connect canonical texts."""
    first, second = table.canonical[table.text1], table.canonical[table.text2]
    size = _canonical_count(table)
    graph = csr_matrix((np.ones(len(table), dtype=np.bool_), (first, second)), shape=(size, size))
    labels: IntArray = csgraph.connected_components(graph, directed=False)[1]
    return labels[first]


def split_by_component(table: PairTable, fraction: float, seed: int) -> tuple[PairTable, PairTable]:
    """Split rows into (rest, held out), about `fraction` of them held out, so that no canonical text is on both sides.

    Seeded; whole components in random order fill the held-out part, then the one that brings it nearest completes it.
    Both parts keep the order of rows. Raises InputError where no part within SPLIT_TOLERANCE of the size asked for
    (or one row) leaves both labels on both sides.
    """
    if not 0 < fraction < 1:
        raise InputError(
            f"{table.source}: the held-out fraction {fraction} is not between 0 and 1: choose one, such as 0.1"
        )
    component = connected_components(table)
    sizes = np.bincount(component)
    target = fraction * len(table)
    random = np.random.default_rng(seed)
    for _ in range(SPLIT_ATTEMPTS):
        held = _fill(sizes, target, random.permutation(len(sizes)))[component]
        mixed = all(0 < part.sum() < len(part) for part in (table.label[held], table.label[~held]))
        if mixed and abs(held.sum() - target) <= max(1.0, SPLIT_TOLERANCE * target):
            return table.take(~held), replace(table.take(held), source=f"{table.source} (held-out part)")
    groups = f"{len(sizes)} groups of connected texts, the largest of {sizes.max(initial=0)} rows"
    raise InputError(
        f"{table.source}: cannot hold out {fraction:.1%} of {len(table)} rows with both labels, and no text, on both "
        f"sides: they form {groups}: give a file of its own as data.dev"
    )


def _fill(sizes: NDArray[Any], target: float, order: NDArray[Any]) -> NDArray[np.bool_]:
    """Mask of the components chosen: in `order` what fits within `target`, then one more if that is nearer."""
    chosen = np.zeros(len(sizes), dtype=np.bool_)
    room = target
    for component, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        if size <= room:
            chosen[component] = True
            room -= size
    left = np.flatnonzero(~chosen)
    if len(left):
        nearest = left[np.argmin(sizes[left])]
        chosen[nearest] = sizes[nearest] < 2 * room
    return chosen


def check_overlap(train: PairTable, held_out: PairTable, allow: bool) -> int:
    """The number of canonical texts both tables hold. Raises InputError with three of them unless `allow`."""
    known = {canonical_form(train.texts[text]) for text in _representatives(train)}
    shared = [text for text in _representatives(held_out) if canonical_form(held_out.texts[text]) in known]
    if shared and not allow:
        examples = ", ".join(shown(held_out.texts[text]) for text in shared[:3])
        overlap = f"{len(shared)} of its texts are also in {train.source} (such as {examples})"
        raise InputError(f"{held_out.source}: {overlap}: remove them from one, or set data.allow_overlap = true")
    return len(shared)


def _representatives(table: PairTable) -> NDArray[Any]:
    """[C] index of the first text of each canonical form."""
    return np.unique(table.canonical, return_index=True)[1]


def _canonical_count(table: PairTable) -> int:
    return int(table.canonical.max(initial=-1)) + 1


def positives_of(table: PairTable) -> csr_matrix:
    """[C, C] symmetric sparse bool matrix: True where some row labels these two canonical texts positive."""
    first, second = table.canonical[table.text1[table.label]], table.canonical[table.text2[table.label]]
    sides = (np.concatenate([first, second]), np.concatenate([second, first]))
    size = _canonical_count(table)
    return csr_matrix((np.ones(2 * len(first), dtype=np.bool_), sides), shape=(size, size))
