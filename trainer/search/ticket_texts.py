"""The tickets of a file as ids and the texts that are embedded: each row for itself, whatever else the file holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from trainer.data.identifiers import clean_id, id_key
from trainer.data.readers import Reading
from trainer.data.ticket_table import (
    Columns,
    ids_of_column,
    join_cells,
    no_row_has,
    read_ticket_table,
    texts_of_cell,
    texts_of_column,
)
from trainer.errors import InputError
from trainer.system.arguments import parse_names
from trainer.system.console import console, tracked
from trainer.text.cleaning import strip_mail
from trainer.text.masking import mask_text

SHOWN_WORDS, SHOWN_CHARACTERS = 25, 200


def preview(text: str) -> str:
    """The first words of a text, in one line."""
    return " ".join(text[:SHOWN_CHARACTERS].split()[:SHOWN_WORDS])


@dataclass(frozen=True)
class Preparation:
    """What is done to a text, of a ticket or of a query, before it is embedded."""

    clean: bool = True
    """Without markup, mail headers, greeting and signature; a text that is nothing else stays as it is."""
    mask: bool = False
    """Addresses, numbers, hosts, ids and names behind a label hidden."""

    def apply(self, cells: Sequence[str]) -> str:
        """The cells of a ticket, or a query alone, as one text."""
        cleaned = join_cells([strip_mail(cell) for cell in cells])[0] if self.clean else ""
        text = cleaned or join_cells(cells)[0]
        return mask_text(text) if self.mask else text


@dataclass(frozen=True)
class TicketTexts:
    """Tickets of a file, in its order."""

    ids: list[str]
    """As people write them; "" where the file has none. No two are one id in two spellings."""
    texts: list[str]
    closed: set[str] = field(default_factory=set)
    """Keys (`identifiers.id_key`) of the tickets that are to leave the index; they are not among `ids`."""
    blank: set[str] = field(default_factory=set)
    """Keys of tickets that have a row without a text: an index that has one of them keeps it."""
    facts: dict[str, int] = field(default_factory=dict)
    """Rows that are left out, by the reason."""
    rows: list[int] = field(default_factory=list)
    """Their numbers in the file, from 1."""


def read_ticket_texts(
    path: str | Path, columns: Columns, preparation: Preparation, reading: Reading | None = None, remove: str = ""
) -> TicketTexts:
    """Read the tickets of a file of any format that `trainer/data/README.md` lists.

    Rows without any text, and further rows of one ticket id, are left out.

    Args:
        remove: "COLUMN=VALUE,VALUE,...": rows with one of these values are of tickets to leave out; "": none are. A
            value that no row has is said: misspelt it would keep all, but a file of changes may well have none.

    Raises InputError: bad file or cells, a column that is not there, no row with a text.
    """
    part, equals, values = remove.partition("=")
    unwanted = {value.casefold(): value for value in parse_names(values)}
    if remove and not (part and equals and unwanted):
        raise InputError(f"--remove {remove}: write COLUMN=VALUE, as in state=Cancelled")
    raw, columns = read_ticket_table(path, replace(columns, part=part or None, category=None), reading)
    numbers = [clean_id(cell) for cell in ids_of_column(raw, columns.number or None) or [""] * len(raw)]
    keys = [id_key(number) for number in numbers]
    states = texts_of_column(raw, columns.part or "")
    is_closed = [bool(part) and state.casefold() in unwanted for state in states]
    there = {state.casefold() for state in states}
    for value in (value for folded, value in unwanted.items() if folded not in there):
        console.print(no_row_has(raw, part, value, states), markup=False)
    kept = TicketTexts([], [], {key for key, closed in zip(keys, is_closed, strict=True) if closed and key})
    repeated, empty, seen = 0, 0, set(kept.closed)
    for row in tracked(range(len(raw)), "Cleaning"):
        if is_closed[row] or keys[row] in seen:
            repeated += keys[row] not in kept.closed and not is_closed[row]
            continue
        text = preparation.apply(["\n".join(texts_of_cell(raw, name, row)) for name in columns.texts])
        if not text:
            empty += 1
            kept.blank.add(keys[row])
            continue
        kept.ids.append(numbers[row])
        kept.texts.append(text)
        kept.rows.append(row + 1 if raw.rows is None else raw.rows[row])
        seen |= {keys[row]} - {""}
    kept.facts.update(repeated=repeated, without_text=empty)
    if not kept.ids and not kept.closed:
        raise InputError(f"{raw.source}: no row has a text: name the columns with {columns.options['texts']}")
    return kept


def require_ids(tickets: TicketTexts, source: str) -> TicketTexts:
    """The tickets that have an id, by which an index knows them again. Raises InputError where none has."""
    rows = [row for row, name in enumerate(tickets.ids) if name]
    if not rows and not tickets.closed:
        raise InputError(
            f"{source}: no ticket has a number, by which an index knows it again: name the column with --number-column"
        )
    return replace(
        tickets,
        ids=[tickets.ids[row] for row in rows],
        texts=[tickets.texts[row] for row in rows],
        rows=[tickets.rows[row] for row in rows],
        facts=tickets.facts | {"without_id": len(tickets.ids) - len(rows)},
    )
