"""Parts by time: train before, dev after it, test last; so that a judgement is of tickets that came after training.

Legend: N tickets.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trainer.data.tickets import Tickets
from trainer.errors import InputError
from trainer.mining.neighbours import IntArray
from trainer.mining.settings import PARTS
from trainer.system.console import console

NOWHERE = -1  # the part of a ticket that is in none


def require_dates(tickets: Tickets) -> NDArray[np.float64]:
    """[N] when tickets were opened, NaN where that is not known. Raises InputError where the file does not say it, or
    says one moment for all."""
    dates, option = tickets.dates, "--split-by time"
    if dates is None:
        raise InputError(f"{tickets.source}: {option} needs when tickets were opened: name it with --date-column")
    if len(np.unique(dates[np.isfinite(dates)])) < 2:
        raise InputError(f"{tickets.source}: {option}: all tickets are of one moment: name another --date-column")
    return dates


def parts_by_time(tickets: Tickets, shares: Sequence[float], copies: tuple[IntArray, IntArray]) -> IntArray:
    """[N] the part of each ticket, and says where time is cut.

    A problem that comes back is in both parts, as it will be next week, but no text is: a ticket that has a text of an
    earlier part's ticket is in none. Nor is a ticket without a date.

    Args:
        shares: of the tickets in dev and test.
        copies: tickets, and of each a number that it shares with those which have a text of it.

    Raises InputError as `require_dates` does, and where dev or test is wanted and gets no ticket.
    """
    dates = require_dates(tickets)
    dated = np.isfinite(dates)
    in_time = np.append(np.sort(dates[dated]), np.inf)
    ends = np.round(np.cumsum([1 - sum(shares), shares[0]]) * dated.sum())
    cuts = in_time[ends.astype(np.int64)]
    part = np.searchsorted(cuts, dates, side="right")
    members, labels = (of_copy[dated[copies[0]]] for of_copy in copies)
    repeats = np.empty(0, dtype=np.int64)
    if len(members):
        earliest = np.full(labels.max() + 1, len(PARTS))
        np.minimum.at(earliest, labels, part[members])
        repeats = np.unique(members[earliest[labels] < part[members]])
    part[repeats] = part[~dated] = NOWHERE
    wanted = ((name, number) for number, name in enumerate(PARTS) if number and shares[number - 1])
    if empty := [name for name, number in wanted if not (part == number).any()]:
        raise InputError(
            f"{tickets.source}: --split-by time leaves {' and '.join(empty)} without a ticket, as too many are of one "
            "moment or there are too few: change --dev-share or --test-share, or name a finer --date-column"
        )
    said = [f"{name} {(part == number).sum()} tickets" for number, name in enumerate(PARTS)]
    days = [str(np.datetime64(int(cut), "s")).replace("T", " ") for cut in cuts if np.isfinite(cut)]
    absent = ((len(repeats), "that repeat an earlier text"), ((~dated).sum(), "without a date"))
    left = "".join(f"; {count} {why} in none" for count, why in absent if count)
    console.print(f"Split by time at {' and '.join(dict.fromkeys(days))}: {', '.join(said)}{left}", markup=False)
    return part.astype(np.int64)
