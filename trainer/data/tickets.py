"""Raw tickets in, those worth making pairs of out; what was dropped is listed with its reason.

Legend: R rows of the file, N tickets kept.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.data.dates import parse_dates
from trainer.data.identifiers import clean_id, id_key
from trainer.data.pairs import read_pairs
from trainer.data.raw_table import RawTable
from trainer.data.readers import Reading
from trainer.data.search_corpus import rows_with_text
from trainer.data.ticket_table import (
    Columns,
    LinkedTickets,
    column_and_value,
    join_cells,
    read_linked_tickets,
    rows_of_value,
    text_cells,
    texts_of_column,
)
from trainer.errors import InputError
from trainer.system.console import console, tracked
from trainer.text.canonical import canonical_form
from trainer.text.cleaning import (
    MIXED,
    count_words,
    fingerprints,
    first_words,
    id_free,
    language,
    strip_mail,
    strip_repeated,
)
from trainer.text.masking import mask_text

REASONS = {
    "left-out": "to be left out (--leave-out, --leave-out-rows)",
    "repeated-number": "the ticket's number stands in an earlier row",
    "near-empty": "too few words",
    "boilerplate": "too few words once mail headers, greetings, signatures and repeated passages are gone",
    "mixed-language": "two languages share it",
    "other-language": "in none of the languages asked for",
    "copy": "the text of an earlier ticket",
    "ids-only": "differs from an earlier ticket in ids and numbers only",
    "template": "one more copy of a template of which enough are kept",
}
OPTIONAL_REASONS = ("mixed-language", "ids-only", "template")
"""Reasons that a user can turn off."""

IntArray = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Filter:
    """What is kept."""

    min_words: int = 3
    max_words: int = 400
    languages: tuple[str, ...] = ()  # all where empty
    per_template: int = 5
    keep: tuple[str, ...] = ()  # of OPTIONAL_REASONS: not applied
    mask: bool = False  # hide names behind a label, e-mail addresses, phone numbers, ids and hosts
    leave_out: tuple[str, ...] = ()  # pair files: tickets with one of their texts, and duplicates of these, go
    leave_out_rows: str = ""  # COLUMN=VALUE: tickets with this value go


@dataclass(frozen=True)
class Dropped:
    """A row that makes no pairs."""

    row: int  # in the file, from 1
    number: str
    reason: str
    kept: str  # the number of the ticket that stands for it, where there is one


@dataclass(frozen=True, eq=False)
class Tickets:
    """N tickets in the file's order."""

    source: str
    numbers: list[str]
    texts: list[str]  # [N] cleaned
    raw: list[str]  # [N] as in the file, the columns joined
    category: IntArray  # [N] index into `categories`, -1 where the file has none
    categories: list[str]
    languages: list[str]
    """[N] a guess, "" where unknown."""
    duplicate: IntArray  # [N] number of the known duplicates' cluster; each cluster of one has its own
    named: NDArray[np.bool_]
    """[N] whether the file names the cluster: then those of other named clusters are known to be other problems."""
    template: IntArray  # [N] number of the template; copies share it
    dropped: list[Dropped]
    facts: dict[str, Any]  # counts for the report
    titles: list[int] = field(default_factory=list)
    """[N] characters of each text that are its title; the rest is its body."""
    raw_titles: list[int] = field(default_factory=list)  # the same of `raw`
    records: dict[str, tuple[list[str], list[str]]] = field(default_factory=dict)
    """Of "resolution" and "notes", where the file has them: [N] cleaned, and [N] as in the file."""
    dates: NDArray[np.float64] | None = None  # [N] seconds since 1970; NaN of one without a date

    def __len__(self) -> int:
        return len(self.texts)


def load_tickets(path: str | Path, columns: Columns, quality: Filter, reading: Reading | None = None) -> Tickets:
    """Read and clean the tickets of a file of any format that `trainer/data/README.md` lists.

    Raises InputError: bad file or cells, a column that is not there (those found are listed) or that is named twice.
    """
    part, value = column_and_value(quality.leave_out_rows, "--leave-out-rows")
    named_date = bool(columns.date)
    read = read_linked_tickets(path, replace(columns, part=part), reading)
    raw, columns, numbers, links = read.raw, read.columns, read.numbers, read.links
    categories = _categories(raw, columns.category or "")
    dates = _dates(raw, columns.date, named_date)
    left_out = _left_out(read, quality.leave_out, value, reading)
    (whole, raw_titles), (cleaned, titles) = _texts(raw, columns.texts, quality)
    prints = fingerprints(cleaned)
    languages = [language(text) for text in tracked(cleaned, "Guessing languages")]
    dropped = _drop(numbers, whole, cleaned, prints, languages, quality, left_out)
    kept = sorted(set(range(len(raw))) - {drop.row - 1 for drop in dropped})
    names = sorted({categories[row] for row in kept} - {""})
    index = dict(zip(["", *names], range(-1, len(names)), strict=True))
    templates = {template: number for number, template in enumerate(dict.fromkeys(prints[row] for row in kept))}
    duplicate, sizes = np.unique(links.clusters[kept], return_inverse=True, return_counts=True)[1:]
    return Tickets(
        source=raw.source,
        numbers=[numbers[row] or f"row {row + 1}" for row in kept],
        texts=[cleaned[row] for row in kept],
        raw=[whole[row] for row in kept],
        category=np.array([index[categories[row]] for row in kept], dtype=np.int64),
        categories=names,
        languages=["" if languages[row] == MIXED else languages[row] for row in kept],
        duplicate=duplicate.astype(np.int64),
        named=links.named[kept],
        template=np.array([templates[prints[row]] for row in kept], dtype=np.int64),
        dropped=dropped,
        facts={
            "read": len(raw),
            "kept": len(kept),
            "dropped": dict(Counter(drop.reason for drop in dropped)),
            "languages": dict(Counter(languages[row] or "unknown" for row in kept).most_common()),
            "categories": len(names),
            "columns": asdict(columns),
            "without_category": sum(not categories[row] for row in kept),
            **links.facts,
            "known_duplicates": int(sizes[sizes > 1].sum()),
            "unknown_link": links.example,
        },
        titles=[titles[row] for row in kept],
        raw_titles=[raw_titles[row] for row in kept],
        records=_records(raw, columns, quality, kept),
        dates=dates if dates is None else dates[kept],
    )


def _records(
    raw: RawTable, columns: Columns, quality: Filter, kept: Sequence[int]
) -> dict[str, tuple[list[str], list[str]]]:
    """The texts of resolutions and notes, where the file has them."""
    records = {}
    for name, column in (("resolution", columns.resolution), ("notes", columns.notes)):
        if column:
            (whole, _), (cleaned, _) = _texts(raw, (column,), quality)
            records[name] = [cleaned[row] for row in kept], [whole[row] for row in kept]
    return records


def _dates(raw: RawTable, column: str | None, named_by_person: bool) -> NDArray[np.float64] | None:
    """[R] seconds of a column of dates; None without one. One that only has a usual name may hold something else,
    which is said. Raises InputError."""
    if not column:
        return None
    try:
        return parse_dates(raw, column, may_lack=True)
    except InputError as error:
        if named_by_person:
            raise
        console.print(f"{error}; dates are not used (--date-column)", markup=False)
        return None


def _left_out(read: LinkedTickets, files: Sequence[str], value: str, reading: Reading | None) -> Mask:
    """[R] the rows to leave out: of a value in the column `part`, and those with a text of a pair file, or a duplicate
    of one that has."""
    raw, columns = read.raw, read.columns
    mask = rows_of_value(raw, columns.part, value) if columns.part else np.zeros(len(raw), dtype=np.bool_)
    if files:
        any_scale = sys.float_info.max  # only texts are looked at
        texts = {text for file in files for text in read_pairs(file, label_scale=any_scale, reading=reading).texts}
        rows = rows_with_text(range(len(raw)), text_cells(raw, columns.texts), texts)
        mask |= np.isin(read.links.clusters, read.links.clusters[rows])
    return mask


def _categories(raw: RawTable, column: str) -> list[str]:
    """[R] category of each row; those that differ in case or spacing only, or as 3 and 3.0 do, are spelled as the first
    of them."""
    spelled: dict[str, str] = {}
    cells = map(clean_id, texts_of_column(raw, column))
    return [spelled.setdefault(canonical_form(cell), cell) for cell in cells]


def _texts(
    raw: RawTable, names: Sequence[str], quality: Filter
) -> tuple[tuple[list[str], list[int]], tuple[list[str], list[int]]]:
    """[R] the columns joined, and [R] how long the title in front is: as they are, then cleaned and cut; all masked
    where that is asked for."""
    hide = mask_text if quality.mask else str
    whole, cleaned = [], []
    for cells in tracked(text_cells(raw, names), "Cleaning"):
        whole.append(join_cells(list(map(hide, cells))))
        cleaned.append(join_cells([hide(strip_mail(cell)) for cell in cells]))
    titled = len(names) > 1
    raw_titles, titles = ([title if titled else 0 for _, title in texts] for texts in (whole, cleaned))
    texts = [text for text, _ in cleaned]
    stripped = strip_repeated(texts, fingerprints(texts), titles)
    cut = [first_words(text, quality.max_words) for text in stripped]
    return ([text for text, _ in whole], raw_titles), (cut, titles)


def _drop(
    numbers: Sequence[str],
    whole: Sequence[str],
    cleaned: Sequence[str],
    prints: Sequence[str],
    languages: Sequence[str],
    quality: Filter,
    left_out: Mask,
) -> list[Dropped]:
    """The rows to drop, each for the first reason that applies; of copies the first is kept."""
    keys = [id_key(number) for number in numbers]
    seen_numbers: dict[str, int] = {}
    seen_texts: dict[str, int] = {}
    seen_plain: dict[str, int] = {}
    templates: dict[str, list[int]] = {}
    dropped = []
    for row, text in enumerate(tracked(cleaned, "Choosing tickets")):
        reason, kept = "", None
        plain, form = id_free(text), canonical_form(text)
        if left_out[row]:
            reason = "left-out"
        elif keys[row] and keys[row] in seen_numbers:
            reason, kept = "repeated-number", seen_numbers[keys[row]]
        elif count_words(text) < quality.min_words:
            reason = "boilerplate" if count_words(whole[row]) >= quality.min_words else "near-empty"
        elif languages[row] == MIXED and "mixed-language" not in quality.keep:
            reason = "mixed-language"
        elif quality.languages and languages[row] not in (*quality.languages, ""):
            reason = "other-language"
        elif form in seen_texts:
            reason, kept = "copy", seen_texts[form]
        elif plain in seen_plain and "ids-only" not in quality.keep:
            reason, kept = "ids-only", seen_plain[plain]
        elif len(templates.get(prints[row], ())) >= quality.per_template and "template" not in quality.keep:
            reason, kept = "template", templates[prints[row]][0]
        if keys[row] and (not reason or left_out[row]):
            seen_numbers.setdefault(keys[row], row)
        if reason:
            stands_for_it = "" if kept is None else numbers[kept] or f"row {kept + 1}"
            dropped.append(Dropped(row + 1, numbers[row], reason, stands_for_it))
            continue
        seen_texts[form] = seen_plain[plain] = row
        templates.setdefault(prints[row], []).append(row)
    return dropped
