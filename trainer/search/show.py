"""What the commands of an index print: JSON Lines for programs and tables for people, on standard output.

What a person should know beside the answers goes to standard error.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from trainer.search.duplicates import Duplicates
from trainer.search.index import TOP, Hit
from trainer.search.storage import Contents
from trainer.search.update import Update
from trainer.system.console import console

NOTABLE = 0.001  # of the coordinates: as many lie beyond the ranges of a thousand tickets among ever so many others
SHOWN_TICKETS = 10  # of a group in a table


def print_left_out(facts: Mapping[str, int]) -> None:
    """Say how many rows of a file of tickets are left out, and why; nothing where none is."""
    reasons = {"repeated": "repeat a ticket id", "without_text": "have no text", "without_id": "have no ticket id"}
    if left_out := [f"{facts[name]:,} {why}" for name, why in reasons.items() if facts.get(name)]:
        console.print(f"Rows left out: {', '.join(left_out)}", markup=False)


def print_update(update: Update, folder: object) -> None:
    """Say what an update came to."""
    contents = update.contents
    print_left_out(update.facts)
    embedded = f"{update.embedded:,} different texts embedded" + (
        f", {update.resumed:,} of them before the last stop" if update.resumed else ""
    )
    console.print(
        f"Index {folder}: {contents.tickets:,} tickets at {contents.dims} dims, {contents.type}; {update.added:,} new, "
        f"{update.changed:,} changed, {update.unchanged:,} as they were, {update.removed:,} removed, "
        f"{update.kept:,} not in the file or without a text there; {embedded}",
        markup=False,
    )
    console.print(exactness(contents), markup=False)
    if update.clipped > NOTABLE:
        console.print(
            f"{update.clipped:.2%} of the coordinates lie beyond the ranges that the first tickets gave int8, and are "
            "cut to them: index into a new folder to calibrate anew",
            markup=False,
        )
    if "words" not in contents.files:
        console.print("Searched without BM25, which finds more together with embeddings: install the extra `mine`")


def exactness(contents: Contents) -> str:
    """How the answers of a search compare with brute force, in words."""
    if contents.candidates >= contents.tickets:
        return "Search: exact, all tickets are compared at the full width"
    return (
        f"Search: {contents.prefix} dims find {contents.candidates:,} of {contents.tickets:,} tickets, "
        f"{contents.dims} rank them: {contents.recall:.2%} of the exact best {TOP} are among them, measured on "
        f"{contents.measured_on} stored embeddings"
    )


def print_hits(asked: Sequence[dict[str, Any]], hits: Sequence[Sequence[Hit]], kind: str) -> None:
    """Print what was found for each query, which is told as a JSON line tells it."""
    if kind == "jsonl":
        for query, found in zip(asked, hits, strict=True):
            results = [{"rank": rank, **hit._asdict()} for rank, hit in enumerate(found, start=1)]
            _print_line(query | {"results": results})
        return
    for query, found in zip(asked, hits, strict=True):
        table = _table(" ".join(map(str, query.values())), "", "ticket", "cosine", "text")
        for rank, hit in enumerate(found, start=1):
            table.add_row(str(rank), _plain(hit.id), f"{hit.cosine:.4f}", _plain(hit.text))
        _console().print(table)


def print_duplicates(duplicates: Duplicates, kind: str) -> None:
    """Print the groups, and beside them what the threshold comes to."""
    for number, group in enumerate(duplicates.groups, start=1):
        if kind == "jsonl":
            pairs, links = (
                [{"first": first, "second": second, "cosine": cosine} for first, second, cosine in part]
                for part in (group.pairs, group.links)
            )
            head = {"group": number, "tickets": group.tickets, "lowest_cosine": group.lowest}
            _print_line(head | {"pairs": pairs, "links": links})
            continue
        table = _table(
            f"Group {number}: {len(group.tickets)} tickets, cosines {group.lowest:.4f} and above", "ticket", "text"
        )
        for name, text in list(zip(group.tickets, group.texts, strict=True))[:SHOWN_TICKETS]:
            table.add_row(_plain(name), _plain(text))
        if len(group.tickets) > SHOWN_TICKETS:
            table.add_row("...", f"and {len(group.tickets) - SHOWN_TICKETS} more")
        _console().print(table)
        shown = [f"{first} {second} {cosine:.4f}" for first, second, cosine in group.pairs]
        more = f", and {len(shown) - SHOWN_TICKETS} more" if len(shown) > SHOWN_TICKETS else ""
        _console().print(_plain(f"Pairs: {', '.join(shown[:SHOWN_TICKETS])}{more}"))
    grouped = sum(len(group.tickets) for group in duplicates.groups)
    console.print(
        f"{len(duplicates.groups):,} groups hold {grouped:,} of {duplicates.tickets:,} tickets at the threshold "
        f"{duplicates.threshold:.4f}, which {duplicates.alerts_per_ticket:.2g} others of the "
        f"{duplicates.different_texts:,} different texts reach with each on average",
        markup=False,
    )


def _print_line(record: dict[str, Any]) -> None:
    print(json.dumps(record, ensure_ascii=False))


def _console() -> Console:
    return Console(highlight=False, force_terminal=sys.stdout.isatty())


def _plain(text: str) -> Text:
    """A text of a file as any terminal can show it: no markup, no control characters."""
    return Text("".join(sign if sign.isprintable() else " " for sign in text))


def _table(title: str, *columns: str) -> Table:
    table = Table(title=_plain(title[:200]), title_justify="left", box=box.SIMPLE_HEAD)
    for name in columns:
        table.add_column(name, overflow="fold")
    return table
