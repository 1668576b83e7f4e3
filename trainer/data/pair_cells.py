"""Cells of pairs, checked: texts, labels, phases, categories; triplets and lists become a row a pair.

Faults are gathered, so that all cells with one fault are told at once. N is the number of rows.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

from trainer.data.raw_table import Faults, RawTable, brief, fix_of_object, parse_number
from trainer.errors import InputError
from trainer.text.canonical import canonical_form

WORDS = {"true": True, "yes": True, "y": True, "false": False, "no": False, "n": False}  # that labels may be
MAX_PHASE = 2**31 - 1
# What no text may hold: NUL, and surrogates, which JSON can spell ("\\ud800") and UTF-8 cannot.
UNUSABLE = re.compile("[\0\ud800-\udfff]")


def one_row_a_pair(raw: RawTable) -> RawTable:
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


def number_texts(raw: RawTable, faults: Faults) -> tuple[list[str], list[int], list[int]]:
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
                    fix = fix_of_object(text, raw.names[field], "write a string, or remove the row")
                    faults.add(row, field, what, fix)
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


def read_labels(raw: RawTable, scale: float, faults: Faults, scale_setting: str) -> list[float]:
    """[N] labels in the file's unit; `scale_setting` may change the scale, where there is one."""
    labels = []
    higher = f"correct it, or set {scale_setting} (now {scale:g}) to the highest label; 0 is the least alike"
    between = f"write {scale:g} for pairs that are alike, 0 for others, or a score between"
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
            fix = higher if scale_setting and scale < value < math.inf else between
            faults.add(row, "label", f"{brief(value)} is not between 0 and {scale:g}", fix)
        else:
            labels.append(float(value) + 0.0)  # -0.0 becomes 0.0, whose bytes the fingerprint sees
    return labels


def read_phases(raw: RawTable, faults: Faults) -> list[int]:
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


def read_categories(raw: RawTable, faults: Faults) -> tuple[list[str] | None, list[str] | None]:
    """[N] categories of first and of second texts, None without such a column. Those that differ in case or spacing
    alone are spelled as the first of them on either side."""
    spelled = {"": ""}

    def read(field: str) -> list[str] | None:
        if field not in raw.columns:
            return None
        cells = ["" if cell is None else cell for cell in raw.columns[field]]
        for row, cell in enumerate(cells):
            if not isinstance(cell, str):
                faults.add(row, field, f"{brief(cell)} is not a category", "write a string")
            elif not _has_bad_characters(row, field, cell, faults):
                cells[row] = spelled.setdefault(canonical_form(cell), cell)
        return cells

    return read("category1"), read("category2")


def read_origins(raw: RawTable) -> list[str] | None:
    """[N] origins in one spelling; what is none of ours is for no one to judge."""
    cells = raw.columns.get("origin")
    return None if cells is None else [cell.strip().lower() if isinstance(cell, str) else "" for cell in cells]
