"""The file of people's labels: pairs as `trainer train` and `trainer evaluate` read them, with who and when beside.

A row is a pair on which a majority of those who labelled it agree. What they are divided on, or left open, stands in
the same file under UNSETTLED, which readers of pairs do not look at.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainer.errors import InputError
from trainer.system.files import write_file
from trainer.text.canonical import canonical_form

UNSETTLED = "unsettled"
Key = tuple[str, str]


@dataclass(frozen=True)
class Pair:
    """Two texts to be labelled, and what their source says of them."""

    text1: str
    text2: str
    category1: str = ""
    category2: str = ""
    phase: int = 1
    number1: str = ""
    number2: str = ""
    label_before: int | None = None
    """What the source says, which the person who labels does not see."""
    chosen_by: str = ""
    """The rule (`choice.RULES`) by which it was asked."""

    @property
    def key(self) -> Key:
        """What copies of the pair share, in either order."""
        first, second = sorted((canonical_form(self.text1), canonical_form(self.text2)))
        return first, second


@dataclass
class Row:
    """A pair that somebody labelled or left open."""

    pair: Pair
    votes: dict[str, int | None] = field(default_factory=dict)
    labelled_at: str = ""
    """When the last vote was given, UTC."""

    @property
    def label(self) -> int | None:
        """What most say; None where as many say the one as the other."""
        ones, zeros = (sum(vote == label for vote in self.votes.values()) for label in (1, 0))
        return None if ones == zeros else int(ones > zeros)


COLUMNS = {
    "text1": "texts1",
    "text2": "texts2",
    "category1": "categories1",
    "category2": "categories2",
    "phase": "phase_indicators",
    "number1": "numbers1",
    "number2": "numbers2",
    "label_before": "labels_before",
    "chosen_by": "chosen_by",
}
"""Field of a pair -> its column."""
OPTIONAL = ("categories1", "categories2", "numbers1", "numbers2")


class Answers:
    """The rows of such a file, and what is done to them. Nothing is on disk before `save`."""

    def __init__(self, path: Path, rows: Iterable[Row] = ()) -> None:
        self.path = path
        self.rows: dict[Key, Row] = {}
        for row in rows:  # a pair may stand twice, where files of two people were put together
            self.rows.setdefault(row.pair.key, row).votes.update(row.votes)

    @classmethod
    def open(cls, path: Path) -> Answers:
        """Read a file; there may be none yet. Raises InputError for one that is not as `save` writes it."""
        if not path.exists():
            return cls(path)
        try:
            record = json.loads(path.read_bytes())
            rows, unsettled = _rows_of(record), _rows_of(record[UNSETTLED])
            wrong = [number for number, row in enumerate(rows) if record["labels"][number] != row.label]
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(
                f"{path}: exists and is not what trainer label writes, or damaged; name another file as --output"
            ) from error
        if wrong:  # by a hand: the next answer would put back what the votes say
            label, votes = record["labels"][wrong[0]], rows[wrong[0]].votes
            raise InputError(
                f"{path}: row {wrong[0] + 1} is labelled {label} with the votes {votes}: correct the votes"
            )
        return cls(path, [*rows, *unsettled])

    def vote(self, pair: Pair, labeller: str, label: int | None) -> None:
        """Note what somebody says of a pair; None leaves it open."""
        row = self.rows.setdefault(pair.key, Row(pair))
        row.votes[labeller] = label
        row.labelled_at = datetime.now(UTC).isoformat(timespec="seconds")

    def take_back(self, pair: Pair, labeller: str) -> None:
        """Forget what somebody said of a pair."""
        row = self.rows[pair.key]
        del row.votes[labeller]
        if not row.votes:
            del self.rows[pair.key]

    def by_others(self, labeller: str) -> list[Pair]:
        """The pairs that others have labelled, and somebody has not seen."""
        return [row.pair for row in self.rows.values() if labeller not in row.votes]

    def labelled(self) -> int:
        """How many rows the file has for training or judging."""
        return sum(row.label is not None for row in self.rows.values())

    def save(self) -> None:
        """Write the file in one step. Raises StorageError."""
        settled, unsettled = (
            _columns([row for row in self.rows.values() if (row.label is None) == is_open]) for is_open in (False, True)
        )
        write_file(self.path, json.dumps(settled | {UNSETTLED: unsettled}, ensure_ascii=False) + "\n")


def _columns(rows: list[Row]) -> dict[str, list[Any]]:
    columns = {name: [getattr(row.pair, attribute) for row in rows] for attribute, name in COLUMNS.items()}
    columns |= {"labels": [row.label for row in rows]}
    columns |= {name: [getattr(row, name) for row in rows] for name in ("votes", "labelled_at")}
    return {name: cells for name, cells in columns.items() if name not in OPTIONAL or any(cells)}


def _rows_of(columns: dict[str, list[Any]]) -> list[Row]:
    """Raises what a wrong shape raises."""
    count = len(columns["texts1"])
    blank = asdict(Pair("", ""))
    cells = {attribute: columns.get(name, [blank[attribute]] * count) for attribute, name in COLUMNS.items()}
    pairs = [Pair(*values) for values in zip(*cells.values(), strict=True)]
    rows = [
        Row(pair, dict(votes), when)
        for pair, votes, when in zip(pairs, columns["votes"], columns["labelled_at"], strict=True)
    ]
    kinds = {type(text) for pair in pairs for text in (pair.text1, pair.text2)}
    if not kinds <= {str} or any({*row.votes.values()} - {0, 1, None} or not row.votes for row in rows):
        raise ValueError("a cell is of another kind")
    return rows
