"""What the columns of pairs and tickets are called: the names that a person gives, else the usual ones.

Names are compared by their letters and digits alone: "Short description" is short_description. A `PairFinder`, or for
tickets `ticket_table.Columns`, tells the readers which columns of a file hold which field.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

from trainer.data.raw_table import COMPARED_NAMES, brief, missing_column, parse_number
from trainer.data.ticket_names import USUAL_TICKET_NAMES
from trainer.errors import InputError

# Field -> our own names for it, in rows and in columns; they win over the usual ones.
PAIR_NAMES = {
    "text1": ("text1", "texts1"),
    "text2": ("text2", "texts2"),
    "label": ("label", "labels"),
    "phase": ("phase", "phaseindicators"),
    "category1": ("category1", "categories1"),
    "category2": ("category2", "categories2"),
    "origin": ("origin", "origins"),  # which build-pairs writes, and lint reads
    "teacher": ("teacher", "teachers", "teacherscore", "teacherscores"),  # of a pair; of all texts of a row, in order
    "margin": ("margin", "margins"),  # the teacher's score of the positive less that of each negative
    "pos_scores": ("posscores", "posscore"),  # the teacher's of each positive, and of each negative
    "neg_scores": ("negscores", "negscore"),
}
OF_TRIPLETS = ("margin", "pos_scores", "neg_scores")
WAYS_TO_SCORE = (("teacher",), ("margin",), ("pos_scores", "neg_scores"))  # one of which tells a teacher's scores
USUAL_PAIR_NAMES = {
    "text1": ("sentence1", "question1", "anchor", "query", "premise", "texta", "sentencea", "questiona", "question"),
    "text2": (
        "sentence2", "question2", "hypothesis", "textb", "sentenceb", "questionb", "passage", "document", "answer",
        "response",
    ),
    "label": ("isduplicate", "duplicate", "score", "similarity", "similarityscore", "relatednessscore", "goldlabel"),
}  # fmt: skip
REQUIRED = ("text1", "text2", "label")
SHOWN = 4  # of several candidates
# A text under such a name is alike by its name, or unlike; "positive_2" and "negative_3" too.
POSITIVE = re.compile(r"pos(itives?)?\d*")
NEGATIVE = re.compile(r"(hard)?neg(atives?)?\d*")
MAPPED_TO = {"anchor": "text1", "query": "text1", "positive": "positive", "negative": "negative"}
MAPPED_TO |= {name: name for name in PAIR_NAMES if name != "origin"}


def name_key(name: str) -> str:
    """A name by its letters and digits alone; one without any as it is."""
    return "".join(character for character in name.casefold() if character.isalnum()) or name.strip()


def positions_of(name: str, names: Sequence[str]) -> tuple[int, ...]:
    """Positions of the columns of a name: that very one, else the only spelling that differs in case and signs."""
    exact = tuple(position for position, other in enumerate(names) if other == name)
    if exact:
        return exact
    alike = [position for position, other in enumerate(names) if name_key(other) == name_key(name)]
    return tuple(alike) if len({names[position] for position in alike}) == 1 else ()


def free_columns(names: Sequence[str], found: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    """Key of a name -> positions of the columns of that name that no field has been found to be."""
    taken = set(chain.from_iterable(found.values()))
    free: dict[str, list[int]] = {}
    for position, name in enumerate(names):
        if position not in taken:
            free.setdefault(name_key(name), []).append(position)
    return free


@dataclass(frozen=True)
class PairFinder:
    """Finds text1, text2 and label in a pair file, or text1 with positive (alike by its name) and negative."""

    columns: tuple[str, ...] = ()
    """As a person maps them: "text1=Title", "label=same"; numbers, from 1, where the file has no header."""

    def __post_init__(self) -> None:
        if len(self.mapping) < len(self.columns):
            raise InputError(f"data.columns names a field twice ({', '.join(self.columns)}): give each one column")

    @cached_property
    def mapping(self) -> dict[str, str]:
        """Field -> column, of `columns`. Raises InputError for one that is no mapping."""
        return dict(map(_parse_mapping, self.columns))

    def find(self, names: Sequence[str], source: str) -> dict[str, tuple[int, ...]]:
        """Field -> positions of its columns. Raises InputError: one is missing, or could be one of several."""
        mapped = self._mapped(names, source)
        found, by_key = dict(mapped), free_columns(names, mapped)
        positives, negatives = (
            {key: at for key, at in by_key.items() if pattern.fullmatch(key)} for pattern in (POSITIVE, NEGATIVE)
        )
        if any(key[-1].isdigit() for key in positives) and not by_key.keys() & {*PAIR_NAMES["text2"]} | mapped.keys():
            found["positive"] = tuple(chain.from_iterable(positives.values()))
        for name, own in PAIR_NAMES.items():
            if name not in found and not (name == "text2" and "positive" in found):
                usual = list(USUAL_PAIR_NAMES.get(name, ()))
                usual += positives if name == "text2" else ()
                if positions := _only(name, own, by_key, names, source) or _only(name, usual, by_key, names, source):
                    found[name] = positions
        if negatives and "negative" not in found:
            found["negative"] = tuple(chain.from_iterable(negatives.values()))
        return self._settle(found, mapped, names, source)

    def _settle(
        self, found: dict[str, tuple[int, ...]], mapped: Mapping[str, Any], names: Sequence[str], source: str
    ) -> dict[str, tuple[int, ...]]:
        """The fields that go together: pairs with a label, or a text with its positives and negatives."""
        ours = all(name in found and name_key(names[found[name][0]]) in PAIR_NAMES[name] for name in REQUIRED)
        if "label" in mapped or ours:
            found.pop("negative", None)
        elif mapped.keys() & {"positive", "negative"}:
            found.pop("label", None)
        if "label" in found and "negative" in found:
            both = f"a label ({brief(names[found['label'][0]])}) and negatives ({brief(names[found['negative'][0]])})"
            raise InputError(
                f"{source}: has {both}: say which counts, {_mapping_fix(('label', 'NAME'))}, or "
                f"{_mapping_fix(('margin', 'NAME'))} where it is a teacher's"
            )
        by_name = "text2" in found and POSITIVE.fullmatch(name_key(names[found["text2"][0]]))
        if "text2" in found and "label" not in found and ("negative" in found or by_name):
            found["positive"] = found.pop("text2")
        if "positive" in found and "label" in found:
            found["text2"] = found.pop("positive")
        if "positive" in found:
            found = _scored_one_way(found, mapped, names, source)
        elif named := next((name for name in OF_TRIPLETS if name in mapped), ""):
            fix = f"name these too, {_mapping_fix(('positive', 'NAME'), ('negative', 'NAME'))}"
            fix += f", or {_mapping_fix(('teacher', 'NAME'))} where it is a score of each pair"
            raise InputError(f"{source}: {named} of data.columns goes with positive and negative: {fix}")
        if missing := [name for name in REQUIRED if name not in found and (name == "text1" or "positive" not in found)]:
            raise _missing_pair_columns(source, missing, names, found)
        return found

    def _mapped(self, names: Sequence[str], source: str) -> dict[str, tuple[int, ...]]:
        """Positions of the columns that are mapped; {} for a file that has none of them."""
        found = {name: positions_of(column, names) for name, column in self.mapping.items()}
        if any(found.values()) and not all(found.values()):
            column = next(column for name, column in self.mapping.items() if not found[name])
            raise missing_column(source, [column], names, "correct data.columns")
        return found if all(found.values()) else {}

    def without_header(self, cells: Sequence[str]) -> list[str]:
        """Text, text, label or label, text, text, told by the number; or numbers, where columns are mapped to these."""
        columns = set(self.mapping.values())
        if columns and all(map(str.isdecimal, columns)) and not columns & set(cells):
            numbers = [str(number) for number in range(1, len(cells) + 1)]
            return numbers if columns & set(numbers) else []
        if self.columns or len(cells) != 3:
            return []
        if parse_number(cells[2]) is not None:
            return ["text1", "text2", "label"]
        return ["label", "text1", "text2"] if parse_number(cells[0]) is not None else []

    def describe(self, names: Mapping[str, str]) -> tuple[list[str], list[str]]:
        """The columns of fields that do not go by our own names, as "text1=question1"; and whether none was mapped."""
        mapped = set(map(name_key, self.mapping.values()))
        unused = mapped and not any(name_key(name) in mapped for name in names.values())
        remarks = ["it has none of the columns that were named"] if unused else []
        if "positive" not in names:
            unread = [column for name, column in names.items() if name in OF_TRIPLETS]
            remarks += [f"{column} is not read, as it goes with positive and negative" for column in unread]
        return [
            f"{name}={column}" for name, column in names.items() if name_key(column) not in PAIR_NAMES.get(name, ())
        ], remarks


def _scored_one_way(
    found: Mapping[str, tuple[int, ...]], mapped: Mapping[str, Any], names: Sequence[str], source: str
) -> dict[str, tuple[int, ...]]:
    """The fields of triplets with one way to tell a teacher's scores: the one that a person named. Raises InputError
    where there are several, as only one could be learned."""
    ways = [way for way in WAYS_TO_SCORE if found.keys() & set(way)]
    ways = [way for way in ways if mapped.keys() & set(way)] or ways
    if len(ways) > 1:
        first = [next(name for name in way if name in found) for way in ways]
        columns = [names[found[name][0]] for name in first]
        fix = f"say which count, {_mapping_fix((first[0], columns[0]))}"
        raise InputError(f"{source}: has a teacher's scores as {' and as '.join(map(brief, columns))}: {fix}")
    others = {name for way in WAYS_TO_SCORE if way not in ways for name in way}
    return {name: at for name, at in found.items() if name not in others}


def _only(
    name: str, keys: Iterable[str], by_key: Mapping[str, list[int]], names: Sequence[str], source: str
) -> tuple[int, ...]:
    """The one position of a field among the columns with one of `keys`, () for none. Raises InputError for several."""
    positions = [position for key in keys for position in by_key.get(key, ())]
    if len(positions) > 1:
        candidates = [names[position] for position in positions]
        if len(set(candidates)) == 1:
            raise InputError(f"{source}: the column {candidates[0]} stands twice in the header: remove one")
        listed = ", ".join(map(brief, candidates[:SHOWN]))
        raise InputError(f"{source}: {name} could be any of {listed}: say which, {_mapping_fix((name, candidates[0]))}")
    return tuple(positions)


def _parse_mapping(text: str) -> tuple[str, str]:
    name, sign, column = text.partition("=")
    name_of_field = MAPPED_TO.get(name.strip())
    if not sign or not name_of_field or not column.strip():
        fields = ", ".join(MAPPED_TO)
        raise InputError(f"data.columns, {brief(text)}: write FIELD=COLUMN, FIELD one of {fields}")
    return name_of_field, column.strip()


def _mapping_fix(*mapped: tuple[str, str]) -> str:
    """How to say which columns fields are."""
    listed = ", ".join(json.dumps(f"{name}={column}"[:60], ensure_ascii=False) for name, column in mapped)
    return f"as in data.columns = [{listed}]"


def _missing_pair_columns(
    source: str, missing: Sequence[str], names: Sequence[str], found: Mapping[str, Sequence[int]]
) -> InputError:
    keys = {name_key(other) for other in names}
    number, title, body = (keys.intersection(USUAL_TICKET_NAMES[field]) for field in ("number", "text1", "text2"))
    if set(missing) - {"label"} and title and (number or body):
        fix = f"make pairs of them, trainer build-pairs --tickets {source} --output pairs"
        raise InputError(f"{source}: holds tickets, not pairs of texts: {fix}")
    say = "add it, rename one, or say which it is" if len(missing) == 1 else "add them, or say which they are"
    fix = f"{say}, {_mapping_fix(*((name, 'NAME') for name in missing))}"
    if len(missing) == len(REQUIRED):
        fix += ", by numbers from 1 where the file has no header"
    if missing == ["label"] and "teacher" in found:
        own = _mapping_fix(("label", names[found["teacher"][0]]))
        fix = (
            f"a teacher's scores need one beside them; where they run from 0 to data.label_scale they may be it, {own}"
        )
    elif "label" in missing:  # which what is alike by its name needs not
        text1, text2 = (names[found[name][0]] if name in found else "NAME" for name in ("text1", "text2"))
        alike = [("anchor", text1), ("positive", text2)] + [("negative", "NAME")] * ("text2" in missing)
        fix += f"; or, {'where all are alike' if len(alike) == 2 else 'without labels'}, {_mapping_fix(*alike)}"
    return missing_column(source, missing, names, fix)


OPTIONS = {
    "number": "--number-column",
    "texts": "--text-columns",
    "category": "--category-column",
    "duplicate_of": "--duplicate-column",
    "cluster": "--cluster-column",
    "resolution": "--resolution-column",
    "notes": "--notes-column",
    "date": "--date-column",
    "part": "--queries",
}
"""How a person names the columns of tickets on the command line, for messages."""


def holds_pairs(names: Sequence[str]) -> bool:
    """Whether a file has the columns of pairs of texts."""
    keys = {name_key(other) for other in names}
    return all(keys & {*own, *USUAL_PAIR_NAMES[name]} for name, own in PAIR_NAMES.items() if name in REQUIRED)


def not_tickets(source: str, searched: bool) -> InputError:
    """The error for a file of pairs in place of one of tickets, which are to be searched, or made pairs of."""
    fix = "name a file of tickets" if searched else f"train on it, trainer train --set data.train={source}"
    return InputError(f"{source}: holds pairs, not tickets: {fix}")


def missing_ticket_text(source: str, names: Sequence[str], option: str, searched: bool) -> InputError:
    """The error for a ticket file without any text; `option` names the columns of texts."""
    if holds_pairs(names):
        return not_tickets(source, searched)
    inner = [  # the keys of objects, as in fields.summary
        next((name for key in keys for name in names[:COMPARED_NAMES] if key in map(name_key, name.split("."))), "")
        for keys in (USUAL_TICKET_NAMES["text1"], USUAL_TICKET_NAMES["text2"])
    ]
    is_said = option == OPTIONS["texts"] and all(inner) and len(",".join(inner)) < 100
    fix = f"name yours with {option}" + (f", as in {option} {','.join(inner)}" if is_said else "")
    return missing_column(source, ["short_description or description"], names, fix)
