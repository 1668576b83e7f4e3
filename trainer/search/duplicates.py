"""Groups of tickets that tell of the same problem: every two of a group reach the threshold, whoever stands between.

That is complete linkage. A chain, where A is like B and B like C but A is not like C, makes no group of three: A and B
are one, or B and C, whichever pair is the more alike; the other pair is then listed as a link between groups.

Legend: N different texts, E dims, P pairs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from trainer.errors import InputError
from trainer.evaluation.alerts import count_alerts
from trainer.evaluation.thresholds import fit_to_alerts
from trainer.model.embedding_types import unit_prefixes
from trainer.search.storage import read_index
from trainer.search.ticket_texts import preview
from trainer.system.console import progress
from trainer.system.gpu import default_device

ROWS, COLUMNS = 1024, 4096  # of a tile of cosines
MOST_PAIRS = 2_000_000
Pair = tuple[int, int, float]
"""Two texts, the first of them the earlier, and their cosine."""


@dataclass(frozen=True)
class Group:
    """Tickets of which every two reach the threshold."""

    tickets: list[str]
    """Their ids, in the order of the index."""
    texts: list[str]
    """The first words of each."""
    lowest: float
    """The lowest cosine of two of them."""
    pairs: list[tuple[str, str, float]]
    """The pairs that made it, the most alike first: of every two different texts their first tickets, and of copies
    each with the first."""
    links: list[tuple[str, str, float]]
    """Pairs that reach the threshold, too, of a ticket of the group and one outside of it."""


@dataclass(frozen=True)
class Duplicates:
    """What a threshold comes to among the tickets of an index."""

    threshold: float
    tickets: int
    different_texts: int
    alerts_per_ticket: float
    """How many others a text reaches the threshold with, on average, copies aside."""
    groups: list[Group]
    """The largest first."""


def find_duplicates(
    folder: Path, *, threshold: float | None = None, alerts_per_ticket: float | None = None
) -> Duplicates:
    """Group the tickets of an index by a threshold, or by the one that raises so many alerts a ticket on average.

    Raises:
        InputError: no index, a threshold that no cosine can have or that too many pairs reach, or no threshold fits.
        CheckpointError: a file of the index is not what was written.
    """
    if threshold is not None and not 0 < threshold <= 1:
        raise InputError(f"--threshold {threshold:g}: write a cosine above 0 and up to 1")
    if alerts_per_ticket is not None and not alerts_per_ticket > 0:
        raise InputError(f"--alerts-per-ticket {alerts_per_ticket:g}: write a number above 0")
    stored = read_index(folder)
    if threshold is not None and stored.type.name == "binary":
        raise InputError(
            f"--threshold {threshold:g}: {folder} keeps signs alone, whose cosines are others; use --alerts-per-ticket"
        )
    rows_by_text: dict[str, list[int]] = defaultdict(list)
    ids, words = [], []
    for row, ticket in enumerate(stored.tickets()):
        rows_by_text[ticket.sha256].append(row)
        ids.append(ticket.id)
        words.append(preview(ticket.text))
    copies = list(rows_by_text.values())
    embeddings = unit_prefixes(stored.rows([rows[0] for rows in copies]), stored.type.dims)
    if threshold is None:
        assert alerts_per_ticket is not None
        if len(copies) < 2:
            raise InputError(f"{folder}: all its tickets have one text, so there is nothing to compare")
        dim = str(stored.contents.dims)
        counts = {dim: count_alerts(embeddings, embeddings, stored.contents.dims)}
        fitted = fit_to_alerts(alerts_per_ticket, counts, str(folder), list(rows_by_text), stored.contents.model)
        threshold = fitted.values[dim]
    pairs = similar_pairs(embeddings, threshold)
    groups = _named_groups(complete_link(len(copies), pairs), pairs, copies, ids, words)
    return Duplicates(threshold, len(ids), len(copies), 2 * len(pairs) / len(copies), groups)


def similar_pairs(embeddings: np.ndarray, threshold: float) -> list[Pair]:
    """All pairs [P] of rows [N, E] of length 1 whose cosine reaches a threshold, the most alike first.

    Tile by tile, so that no N x N matrix is held. Raises InputError for more than MOST_PAIRS.
    """
    rows = torch.from_numpy(np.ascontiguousarray(embeddings)).to(default_device())
    found: list[torch.Tensor] = []
    scores: list[torch.Tensor] = []
    count = 0
    with progress("Comparing", len(rows)) as advance:
        for top in range(0, len(rows), ROWS):
            part = rows[top : top + ROWS]
            for left in range(top, len(rows), COLUMNS):
                cosines = part @ rows[left : left + COLUMNS].T
                # Each pair once: the second is a later row than the first.
                first, second = (cosines.triu_(top - left + 1) >= threshold).nonzero(as_tuple=True)
                found.append(torch.stack([first + top, second + left]).cpu())
                scores.append(cosines[first, second].clamp(max=1).cpu())
                if (count := count + len(first)) > MOST_PAIRS:
                    raise InputError(
                        f"threshold {threshold:g}: more than {MOST_PAIRS:,} pairs of texts reach it; take a higher one"
                    )
            advance(len(part))
    if not found:
        return []
    (first, second), cosine = torch.cat(found, dim=1).numpy(), torch.cat(scores).numpy()
    order = np.lexsort((second, first, -cosine))
    return list(zip(first[order].tolist(), second[order].tolist(), cosine[order].tolist(), strict=True))


def complete_link(count: int, pairs: Iterable[Pair]) -> list[list[int]]:
    """Groups of two or more of `count` items in which every two are one of the pairs; given the most alike first.

    Two groups become one when the last pair between them comes: their least alike members are then the next most alike
    of all, which is what complete linkage joins.
    """
    members = [[item] for item in range(count)]
    group_of = list(range(count))
    between: list[dict[int, int]] = [defaultdict(int) for _ in range(count)]  # group -> pairs met so far
    for first, second, _ in pairs:
        one, two = group_of[first], group_of[second]
        between[one][two] += 1
        between[two][one] += 1
        if between[one][two] < len(members[one]) * len(members[two]):
            continue
        if len(members[one]) < len(members[two]):
            one, two = two, one
        for item in members[two]:
            group_of[item] = one
        members[one] += members[two]
        members[two] = []
        del between[one][two]
        for other, met in between[two].items():
            if other != one:
                between[one][other] += met
                between[other][one] += met
                del between[other][two]
        between[two].clear()
    return [sorted(group) for group in members if len(group) > 1]


def _named_groups(
    grouped: Sequence[Sequence[int]],
    pairs: Sequence[Pair],
    copies: Sequence[Sequence[int]],
    ids: Sequence[str],
    words: Sequence[str],
) -> list[Group]:
    """Groups of tickets, of those of different texts and of the rows that each text has."""
    alone = {text for text, rows in enumerate(copies) if len(rows) > 1} - {text for group in grouped for text in group}
    everyone = [*grouped, *([text] for text in sorted(alone))]
    group_of = {text: number for number, group in enumerate(everyone) for text in group}
    inside: list[list[tuple[str, str, float]]] = [[] for _ in everyone]
    links: list[list[tuple[str, str, float]]] = [[] for _ in everyone]
    for number, group in enumerate(everyone):
        inside[number] = [
            (ids[rows[0]], ids[row], 1.0) for text in group for rows in [copies[text]] for row in rows[1:]
        ]
    for first, second, cosine in pairs:
        pair = (ids[copies[first][0]], ids[copies[second][0]], cosine)
        sides = {group_of[text] for text in (first, second) if text in group_of}
        if len(sides) == 1 and first in group_of and second in group_of:
            inside[sides.pop()].append(pair)
        else:
            for number in sides:
                links[number].append(pair)
    groups = []
    for number, group in enumerate(everyone):
        rows = sorted(row for text in group for row in copies[text])
        lowest = min(cosine for _, _, cosine in inside[number])
        named = [ids[row] for row in rows], [words[row] for row in rows]
        groups.append(Group(*named, lowest, inside[number], links[number]))
    return sorted(groups, key=lambda group: -len(group.tickets))
