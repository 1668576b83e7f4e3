"""Ticket numbers and the links between them: one spelling of an id, whatever program wrote it.

A spreadsheet or a data frame turns 35040 into 35040.0, people write inc0001 for INC0001, and a field of a tracker
holds several numbers. Compared letter by letter, such links tie nothing. Here `clean_id` is what an id says, `id_key`
what two spellings of one id share, and `link_rows` what the links of a file come to.

Legend: R rows of the file.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.data.field_names import OPTIONS
from trainer.data.raw_table import brief
from trainer.data.split import connect
from trainer.errors import InputError
from trainer.text.canonical import canonical_form

# What programs write for "there is none". "0" and "-1" are none only where no ticket has that number.
_NONE = "nan none null nil n/a <na> nat #n/a undefined - -- – — (none) (empty) (blank) [] {}"
MISSING = frozenset(_NONE.split())
NO_TICKET = ("0", "-1")
MOST_MISS = 0.5  # of the links; above, the two columns are not the same kind of id
SHOWN_END = 39  # characters of a link that is cut: its end tells which ticket it names

_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")
_DASHES = re.compile("[\u2010-\u2015\u2212]")
_FORMULA = re.compile(
    r'=(?:hyperlink\("[^"]*"[,;] ?)?"([^"]*)"\)?', re.IGNORECASE
)  # ="00123", =HYPERLINK("https://...","INC0001")
_FLOAT = re.compile(r"(?!\d{1,3}[.,]000$)(\d+)[.,]0{1,6}")  # but 35.000, which may be a German 35000
_SHORT_FORM = re.compile(r"(\d)(?:[.,](\d*))?e\+(\d{1,3})", re.IGNORECASE)
_GROUPED = re.compile(r"\d{1,3}(?:[.,' ]\d{3})+")  # 35,040
# Letters of both cases and digits, mixed: such ids differ by case alone (Salesforce's do).
_CASE_TELLS = re.compile(r"(?=.*\d)(?=.*[a-z])(?=.*[A-Z])(?![^\W\d_]+\d+$)[A-Za-z0-9]{10,}")
_SEVERAL = re.compile(r"[,;|\n]")
_ID = re.compile(r"#?[\w./:-]*\d[\w./:-]*")
_PREFIXED_ID = re.compile(r"[^\W\d_][\w-]*\d")


@dataclass(frozen=True, eq=False)
class Links:
    """What the links of a file come to."""

    clusters: NDArray[np.int64]  # [R] number of each row's cluster of known duplicates, chains followed
    named: NDArray[np.bool_]  # [R] whether the file names the row's cluster
    facts: dict[str, int]
    """Counts for the report: rows that hold a link, links to a ticket, and how many of these name none of the file."""
    example: str  # a link that names no ticket of the file; empty where all do


def is_rounded(cell: str) -> bool:
    """Whether an id is a number of which a spreadsheet kept the first digits alone, as in 1.23457E+11."""
    short = _SHORT_FORM.fullmatch(cell.strip().lstrip("'’"))
    return short is not None and len(short[2] or "") < int(short[3])


def clean_id(cell: str) -> str:
    """An id as people write it, empty where the cell says that there is none.

    White space of any kind, invisible characters, quotes, a leading apostrophe, formula and "#" go; an integer written
    as a float is an integer. Zeros in front stay: INC0001 is not INC1.

    >>> clean_id("\\u00a035040.0 "), clean_id("'00123"), clean_id("NaN")
    ('35040', '00123', '')
    """
    text = unicodedata.normalize("NFKC", cell)
    text = " ".join(_DASHES.sub("-", _INVISIBLE.sub("", text)).split())
    if text.casefold() in MISSING:
        return ""
    if formula := _FORMULA.fullmatch(text):
        text = formula[1]
    text = text.strip("\"'`‘’“” ")
    text = text[1:].lstrip() if text.startswith("#") and text[1:2].strip().isdigit() else text
    if whole := _FLOAT.fullmatch(text):
        return whole[1]
    if (short := _SHORT_FORM.fullmatch(text)) and not is_rounded(text):
        digits = short[1] + (short[2] or "")
        places = int(short[3]) + 1
        return digits[:places] if not digits[places:].strip("0") else text
    return text


def as_cell(name: str) -> str:
    """An id for a table that people open in a spreadsheet: what that would take for a formula, and run, has an
    apostrophe in front, which `clean_id` takes away again.

    >>> as_cell("=1+1"), as_cell("INC1")
    ("'=1+1", 'INC1')
    """
    return f"'{name}" if name.startswith(("=", "+", "-", "@")) else name


def id_key(text: str) -> str:
    """What two spellings of a clean id share: case does not count, but where it may tell two ids apart."""
    return text if _CASE_TELLS.fullmatch(text) else canonical_form(text)


def _loose_key(key: str) -> str:
    """What a link may share with the only ticket that has it: no spaces, no separators of thousands, no zeros in front
    of plain digits (a column that was read as numbers has lost them)."""
    text = re.sub(r"[.,' ]", "", key) if _GROUPED.fullmatch(key) else key.replace(" ", "")
    return (text.lstrip("0") or "0") if text.isdecimal() else text.casefold()


class _Numbers:
    """The ticket numbers of a file, to look links up in."""

    def __init__(self, numbers: Sequence[str]) -> None:
        self.keys = {id_key(number) for number in numbers} - {""}
        loose: dict[str, set[str]] = defaultdict(set)
        for key in self.keys:
            loose[_loose_key(key)].add(key)
        self.loose = {key: next(iter(keys)) for key, keys in loose.items() if len(keys) == 1}
        self.spelled: dict[str, str] = {}  # keys of links -> as the file writes them, for messages

    def find(self, text: str) -> str | None:
        """Key of the ticket that a link names: the same spelling first, then the only one of a like spelling."""
        key = id_key(clean_id(text))
        if not key or key in self.keys:
            return key or None
        if "://" in key:  # the address of a ticket ends with its number
            return self.find(re.split(r"[/=]", clean_id(text).partition("#")[0].rstrip("/"))[-1])
        return self.loose.get(_loose_key(key))

    def targets(self, cell: str) -> list[str]:
        """Keys of all tickets that a cell names, in the file or not. Several are told apart by commas, semicolons, bars
        or lines, or by spaces between ids with letters; 35,040 is two only where both are tickets."""
        if not cell.strip():
            return []  # most are: seen at once
        if (whole := self.find(cell)) is not None:
            return [whole]
        text = clean_id(cell.strip().strip("[]{}()")) if cell.strip()[:1] in "[{(" else cell
        parts = [part for part in map(clean_id, _SEVERAL.split(text)) if part]
        if len(parts) == 1 and len(words := parts[0].split()) > 1 and all(map(_PREFIXED_ID.match, words)):
            parts = words
        found = [self.find(part) for part in parts]
        several = len(parts) > 1 and all(map(_ID.fullmatch, parts)) and not _GROUPED.fullmatch(clean_id(text))
        if not (several or (parts and None not in found)):
            parts = [clean_id(cell)]
        keys = {self.find(part) or id_key(part): part for part in parts}
        self.spelled = keys | self.spelled
        return [key for key in keys if key and (key not in NO_TICKET or key in self.keys)]


def link_rows(
    source: str,
    numbers: Sequence[str],
    duplicates: Sequence[str] | None,
    clusters: Sequence[str] | None,
    options: Mapping[str, str] = OPTIONS,
    most_miss: float = MOST_MISS,
) -> Links:
    """Follow the links of a file's rows.

    A link to a ticket that is not in the file still tells: two duplicates of it are duplicates of each other.

    Args:
        source: the file, for messages.
        numbers: [R] clean ids of the rows' own tickets, empty where a row has none.
        duplicates: [R] cells that name the tickets which a row duplicates, None without such a column.
        clusters: [R] cells with a name that rows about one problem share.
        options: how a person names columns, for messages.
        most_miss: the share of the links that may tie nothing; up to 1 not all of them, above it any.

    Raises InputError: more links, or all, name no ticket of the file and tie nothing; one of each side is shown.
    """
    known = _Numbers(numbers)
    targets = [known.targets(cell) for cell in duplicates] if duplicates is not None else [[] for _ in numbers]
    names = [id_key(clean_id(cell)) for cell in clusters] if clusters is not None else [""] * len(numbers)
    nodes: dict[tuple[str, str], int] = {}  # that rows about one problem share
    edges = [
        (row, len(numbers) + nodes.setdefault((kind, key), len(nodes)))
        for row, (number, keys, name) in enumerate(zip(numbers, targets, names, strict=True))
        for kind, key in (("ticket", id_key(number)), *(("ticket", key) for key in keys), ("cluster", name))
        if key
    ]
    first, second = np.array(edges, dtype=np.int64).reshape(-1, 2).T
    unknown = [key for keys in targets for key in keys if key not in known.keys]
    total = sum(map(len, targets))
    _check(source, numbers, [known.spelled[key] for key in unknown], total, options, most_miss)
    return Links(
        clusters=connect(first, second, len(numbers) + len(nodes))[: len(numbers)].astype(np.int64),
        named=np.array([bool(name) for name in names], dtype=np.bool_),
        facts={
            "linked": sum(bool(keys or name) for keys, name in zip(targets, names, strict=True)),
            "links": total,
            "links_to_unknown_tickets": len(unknown),
            "links_to_themselves": sum(id_key(number) in keys for number, keys in zip(numbers, targets, strict=True)),
        },
        example=known.spelled[unknown[0]] if unknown else "",
    )


def _shape(key: str) -> str:
    """An id with each run of digits as one: INC0001 and INC2 look alike, a sys_id does not."""
    return re.sub(r"\d+", "0", key)


def _check(
    source: str,
    numbers: Sequence[str],
    unknown: Sequence[str],
    total: int,
    options: Mapping[str, str],
    most_miss: float,
) -> None:
    """Refuse links of which too many tie nothing: those that one row alone holds, or that do not look like a number."""
    shapes = {_shape(id_key(number)) for number in numbers}
    counts = Counter(unknown)
    missed = [link for link in unknown if counts[link] == 1 or _shape(id_key(link)) not in shapes]
    if missed and (len(missed) > most_miss * total or (len(missed) == total and most_miss <= 1)):
        link = missed[0] if len(missed[0]) <= SHOWN_END else f"…{missed[0][-SHOWN_END:]}"
        number = next((f"the ticket number {brief(number)}" for number in numbers if number), "no ticket number at all")
        raise InputError(
            f"{source}: {len(unknown)} of {total} links name tickets that are not in the file, such as "
            f"{brief(link)} beside {number}: name the column that holds what the links hold "
            f"({options['number']}), add the tickets that they name, or give names that tickets share as "
            f"{options['cluster']}"
        )
