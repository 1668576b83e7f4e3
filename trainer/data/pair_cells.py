"""Cells of pairs, checked: texts, labels, phases, categories; triplets and lists become a row a pair."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from functools import partial
from typing import Any

from trainer.data.raw_table import LABEL_WORDS, BadCell, Faults, RawTable, brief, fix_of_object, parse_number
from trainer.text.canonical import canonical_form

MAX_PHASE = 2**31 - 1
MAX_SCORE = 1e15  # of a teacher: fp32 holds its square, which the loss takes
SCORES = ("teacher", "margin", "pos_scores", "neg_scores")  # columns that tell a teacher's scores
# What no text may hold: NUL, and surrogates, which JSON can spell ("\\ud800") and UTF-8 cannot.
UNUSABLE = re.compile("[\0\ud800-\udfff]")


def one_row_a_pair(raw: RawTable) -> RawTable:
    """A table with text1, text2 and label of one of positives and negatives: each of them is a row.

    `rows` keeps their numbers in the file. Raises InputError for a row that has none, or for what is no text.
    """
    if "label" in raw.columns:
        return raw
    faults = Faults(raw)  # here, where each side still has its name
    sides = {
        name == "positive": faults.read(name, partial(_read_texts, name=raw.names[name], keep_blank=name == "positive"))
        for name in ("positive", "negative")
        if name in raw.columns
    }
    faults.check()
    if bare := [row for row in range(len(raw)) if not any(column[row] for column in sides.values())]:
        raise raw.errors(bare, "positive", "no positives and no negatives: add some, or remove the row")
    chosen = []
    for row in range(len(raw)):
        texts = [(text, label) for label, column in sides.items() for text in column[row]]
        scores = _scores_in(raw, row, [label for _, label in texts])
        chosen += [(row, text, label, score) for (text, label), score in zip(texts, scores, strict=True)]
    rows, cells, labels, teacher = zip(*chosen, strict=True)
    scored_by = [name for name in SCORES if name in raw.columns]
    others = raw.columns.keys() - {"positive", "negative", *SCORES}
    return replace(
        raw,
        columns={name: [raw.columns[name][row] for row in rows] for name in others}
        | {"text2": list(cells), "label": list(labels)}
        | ({"teacher": list(teacher)} if scored_by else {}),
        names={**raw.names, "text2": raw.names["positive"], "label": "label"}
        | ({"teacher": raw.names[scored_by[0]]} if scored_by else {}),
        lines=[raw.lines[row] for row in rows] if raw.lines else None,
        rows=[row + 1 for row in rows],
    )


def _scores_in(raw: RawTable, row: int, labels: list[bool]) -> list[Any]:
    """The cells with a teacher's scores of a row's texts, positives first, or what its margins make of them, up to a
    sign: 0 for the positive. None for texts without. Raises InputError where they are not as many as the texts."""
    cells = {name: _numbers_in(raw.columns[name][row]) for name in SCORES if name in raw.columns}
    positives, negatives = labels.count(True), labels.count(False)

    def scores(name: str, count: int, of: str, what: str = "scores") -> list[Any]:
        found = cells.get(name) or [None] * count
        if len(found) != count or (name == "margin" and positives > 1):
            raise raw.error(row, name, f"does not fit its {of}: give as many {what}")
        return found

    if "pos_scores" in cells or "neg_scores" in cells:
        return scores("pos_scores", positives, f"positives ({positives})") + scores(
            "neg_scores", negatives, f"negatives ({negatives})"
        )
    both = f"{len(labels)} positives and negatives"
    if "margin" in cells:
        return [0.0] * positives + scores("margin", negatives, both, "margins: there is one positive")
    return scores("teacher", len(labels), both)


def _numbers_in(cell: Any) -> list[Any]:
    """The cells of a list, or the one that is not blank."""
    cell = _list_of_text(cell, int | float | None)
    return cell if isinstance(cell, list) else [] if cell in ("", None) else [cell]


def _read_texts(cell: Any, name: str, keep_blank: bool) -> list[str]:
    """The texts of a cell that holds one, or a list; of triplets one that is blank is none, where it is not kept to be
    refused. Raises BadCell."""
    if isinstance(cell := _list_of_text(cell, str), list):
        cells = [text for inner in cell for text in (inner if isinstance(inner, list) else [inner])]
    else:
        cells = [cell] if keep_blank or cell not in ("", None) else []
    return [read_text(text, name) for text in cells]


def _list_of_text(cell: Any, kind: Any) -> Any:
    """The list that a table of texts spells as JSON, where all in it is of a kind; any other cell as it is.

    Raises BadCell for a list of texts as Python prints it, which would be taken for one text.
    """
    text = cell.strip() if isinstance(cell, str) else ""
    if not (text.startswith("[") and text.endswith("]")):
        return cell
    try:
        cells = json.loads(text)
        if all(isinstance(each, kind) for each in cells):
            return cells
    except (ValueError, RecursionError):  # no JSON
        pass
    inner = text[1:-1].strip()
    if inner[:1] in ("'", '"') and inner[-1:] in ("'", '"'):
        raise BadCell("is a list, but not as JSON writes one", 'write ["...", "..."], or save the file as JSON Lines')
    return cell


def read_text(cell: Any, name: str) -> str:
    """A text. Raises BadCell; `name` is what the file calls its column."""
    if not isinstance(cell, str):
        what = "is missing" if cell is None else f"{brief(cell)} is not a text"
        raise BadCell(what, fix_of_object(cell, name, "write a string, or remove the row"))
    _check_characters(cell)
    if not cell.strip():
        raise BadCell("is blank", "write a text or remove the row")
    return cell


def _check_characters(text: str) -> None:
    if bad := UNUSABLE.search(text):
        what = "a NUL" if bad.group() == "\0" else f"half a surrogate pair (\\u{ord(bad.group()):04x})"
        raise BadCell(f"holds {what} at character {bad.start() + 1}", "remove it")


def read_label(cell: Any, scale: float, scale_setting: str) -> float:
    """A label in the file's unit. Raises BadCell; `scale_setting` may change the scale, where there is one."""
    value = LABEL_WORDS.get(cell.strip().lower(), parse_number(cell)) if isinstance(cell, str) else cell
    if isinstance(value, bool):
        value = scale if value else 0.0
    if not isinstance(value, int | float):
        what = "is missing" if cell is None else f"{brief(cell)} is not a number"
        fix = "write 1 for pairs that are alike and 0 for others (in place of words such as these), or a score"
        raise BadCell(what, fix if isinstance(cell, str) and cell.strip() else "write 0, 1 or a score")
    if not 0 <= value <= scale:  # so written, NaN fails too
        fix = f"write {scale:g} for pairs that are alike, 0 for others, or a score between"
        if scale_setting and scale < value < math.inf:
            fix = f"correct it, or set {scale_setting} (now {scale:g}) to the highest label; 0 is the least alike"
        raise BadCell(f"{brief(value)} is not between 0 and {scale:g}", fix)
    return float(value) + 0.0  # -0.0 becomes 0.0, whose bytes the fingerprint sees


def read_score(cell: Any) -> float:
    """A teacher's score, of any unit; NaN where there is none. Raises BadCell."""
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return math.nan
    value = parse_number(cell) if isinstance(cell, str) else cell
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > MAX_SCORE:
        raise BadCell(f"{brief(cell)} is not a score", "write a number, or leave it blank for none")
    return float(value)


def read_phase(cell: Any) -> int:
    """A phase. Raises BadCell."""
    value = cell
    if isinstance(cell, str):
        digits = cell.strip()
        whole = digits.isascii() and digits.isdigit() and len(digits) <= len(str(MAX_PHASE))
        value = int(digits) if whole else cell
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_PHASE:
        raise BadCell(f"{brief(cell)} is not a phase", "write a whole number from 1")
    return value


def read_category(cell: Any, spelled: dict[str, str]) -> str:
    """A category, "" for none. Raises BadCell. Those that differ in case or spacing alone are spelled as the first of
    them, which `spelled` keeps."""
    if cell is None:
        return ""
    if not isinstance(cell, str):
        raise BadCell(f"{brief(cell)} is not a category", "write a string")
    _check_characters(cell)
    return spelled.setdefault(canonical_form(cell), cell)
