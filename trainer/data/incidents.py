"""Labelled pairs of IT incidents from a seeded grammar: data to try the trainer on, with nothing to download.

A problem is a thing and what is wrong with it: 30 of them, 5 categories x 3 things x 2 faults. Each thing and fault can
be said in FORMS ways that share few words, so the overlap of words says little about two texts, and which ways mean the
same has to be learnt. A text is a way of naming the thing, one of naming the fault, a frame around them, and details.

A split owns the numbers (of rooms, sites, tickets) that leave its rank as the remainder when divided by the count of
splits, and every text holds one number: so no text stands in two splits, and all words stand in all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import NamedTuple, TypeVar

from trainer.errors import InputError

T = TypeVar("T")

SPLITS = ("train", "dev", "test")
FORMS = 3
PHASES = 3

# Things, then faults, of a category: a line each, its FORMS ways divided by "|". Every fault can befall every thing.
GRAMMAR: dict[str, tuple[str, str]] = {
    "network": (
        """vpn tunnel | remote access from home | anyconnect client
        wifi | wireless network | access point
        wall socket | wired port | ethernet jack""",
        """keeps dropping | disconnects every few minutes | is lost again and again
        is very slow | crawls | has poor throughput""",
    ),
    "access": (
        """windows account | domain login | active directory user
        badge | door card | entry token
        payroll portal | salary self service | wage statement site""",
        """says permission denied | lacks authorisation | answers forbidden
        has expired | is past its validity | ran out yesterday""",
    ),
    "hardware": (
        """laptop | notebook | portable computer
        printer | laserjet | multifunction copier
        monitor | external screen | lcd panel""",
        """will not power on | is dead when switched | lights no led
        makes loud noise | rattles | hums like a bad fan""",
    ),
    "email": (
        """mailbox | outlook inbox | exchange store
        calendar | meeting schedule | appointment planner
        distribution list | mail group | recipients alias""",
        """does not synchronise | shows yesterday's state | stopped updating
        lost items | is suddenly empty | has content missing""",
    ),
    "database": (
        """oracle instance | production database | sid primary
        reporting warehouse | bi cube | analytics mart
        nightly backup | rman dump | archive job""",
        """ran out of disk space | has a full tablespace | cannot extend its datafile
        hangs on a deadlock | waits for row locks | is stuck behind a blocker""",
    ),
}

# Around thing and fault: the first half of the frames names the thing first, the second half the fault.
# `{number}` is in all of them: it keeps the splits apart.
FRAMES = (
    "{thing} {fault} since {day}, {user}, room {number}",
    "Room {number}: {thing} {fault}, {user}",
    "{site} {number} - {thing} {fault}",
    "It {fault}: {thing} at {site}, ticket {number}",
    "{site} / {fault} / {thing} / {number}",
    "{user}, {day}: {fault}, {thing} {number}",
)
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
SITES = ("Berlin", "Lyon", "Osaka", "Austin", "Porto", "Gdansk", "Pune", "Leeds")
USERS = ("Anna", "Bruno", "Carla", "Deniz", "Emil", "Farah", "Goran", "Hanna", "Igor", "Jana", "Kofi", "Lena")


class Problem(NamedTuple):
    """What an incident is about: `thing` and `fault` count lines of the category's two lists."""

    category: str
    thing: int
    fault: int


CONCEPTS = {
    category: [[[form.strip() for form in line.split("|")] for line in lines.splitlines()] for lines in both]
    for category, both in GRAMMAR.items()
}
PROBLEMS = [
    Problem(category, thing, fault)
    for category, (things, faults) in CONCEPTS.items()
    for thing in range(len(things))
    for fault in range(len(faults))
]


class Saying(NamedTuple):
    """How an incident puts it: the way of the thing, of the fault, the frame, and the values of all details."""

    thing_form: int
    fault_form: int
    frame: int
    details: dict[str, str]


def generate_pairs(count: int, seed: int, split: str) -> dict[str, list]:
    """`count` labelled pairs in the columnar pair format, ordered by phase; a pure function of the arguments.

    Every anchor (`texts1`) has a positive row and then a negative one (the last may lack it where `count` is odd).

    | phase     | positive (same problem)                        | negative (other problem)                     |
    |-----------|------------------------------------------------|----------------------------------------------|
    | 1, easy   | the thing or the fault said in another way     | of another category                          |
    | 2, medium | both in another way, other frame and details   | of the same category                         |
    | 3, hard   | the same, and thing and fault change places    | a look-alike: same frame, same words for the |
    |           |                                                | thing or the fault, other details            |

    Close paraphrase and look-alike are alike to the eye, and only the paraphrase is the same problem.
    Phases hold the same number of anchors to within one. Categories are the grammar's names.

    Raises InputError: `count` below 6, the least that gives every phase both labels, or an unknown `split`.
    """
    if count < 2 * PHASES:
        raise InputError(
            f"incidents: count is {count}; ask for at least {2 * PHASES}, a positive and a negative a phase"
        )
    if split not in SPLITS:
        raise InputError(f"incidents: split is {split!r}; use one of {', '.join(SPLITS)}")
    rng = Random(f"{seed}/{split}")
    rank = SPLITS.index(split)
    rows: list[tuple[str, str, int, int, str, str]] = []
    deck: list[Problem] = []
    for number in range((count + 1) // 2):
        # Deal from a shuffled deck: neighbouring anchors then are about different problems.
        deck = deck or sorted(PROBLEMS, key=lambda _: rng.random())
        problem, phase = deck.pop(), 1 + number % PHASES
        saying = _saying(rng, rank)
        anchor = _render(problem, saying)
        positive = _render(problem, _paraphrase(rng, saying, phase, rank))
        other, other_saying = _other_problem(rng, problem, saying, phase, rank)
        rows.append((anchor, positive, 1, phase, problem.category, problem.category))
        rows.append((anchor, _render(other, other_saying), 0, phase, problem.category, other.category))
    rows = sorted(rows[:count], key=lambda row: row[3])
    names = ("texts1", "texts2", "labels", "phase_indicators", "categories1", "categories2")
    return {name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def _paraphrase(rng: Random, saying: Saying, phase: int, rank: int) -> Saying:
    """Another way of saying the same problem, further away as the phase grows."""
    thing_form, fault_form = _another(rng, FORMS, saying.thing_form), _another(rng, FORMS, saying.fault_form)
    if phase == 1:
        thing_changes = rng.random() < 0.5
        return saying._replace(thing_form=thing_form) if thing_changes else saying._replace(fault_form=fault_form)
    frame = _another(rng, len(FRAMES), saying.frame)
    if phase == 3:
        half = len(FRAMES) // 2
        frame = _pick(rng, range(half, len(FRAMES)) if saying.frame < half else range(half))
    return Saying(thing_form, fault_form, frame, _details(rng, rank))


def _other_problem(rng: Random, problem: Problem, saying: Saying, phase: int, rank: int) -> tuple[Problem, Saying]:
    """A problem that is not the anchor's, closer to it as the phase grows, and how it is said."""
    others = [other for other in PROBLEMS if (other.category == problem.category) == (phase > 1) and other != problem]
    if phase < 3:
        return _pick(rng, others), _saying(rng, rank)
    look_alikes = [other for other in others if other.thing == problem.thing or other.fault == problem.fault]
    return _pick(rng, look_alikes), saying._replace(details=_details(rng, rank))


def _render(problem: Problem, saying: Saying) -> str:
    things, faults = CONCEPTS[problem.category]
    text = FRAMES[saying.frame].format(
        thing=things[problem.thing][saying.thing_form], fault=faults[problem.fault][saying.fault_form], **saying.details
    )
    return text[0].upper() + text[1:]


def _saying(rng: Random, rank: int) -> Saying:
    forms = range(FORMS)
    return Saying(_pick(rng, forms), _pick(rng, forms), _pick(rng, range(len(FRAMES))), _details(rng, rank))


def _details(rng: Random, rank: int) -> dict[str, str]:
    number = str(len(SPLITS) * _pick(rng, range(4, 33)) + rank)
    return {"number": number, "user": _pick(rng, USERS), "day": _pick(rng, DAYS), "site": _pick(rng, SITES)}


def _another(rng: Random, count: int, taken: int) -> int:
    return _pick(rng, [number for number in range(count) if number != taken])


def _pick(rng: Random, items: Sequence[T]) -> T:
    # Of all methods of Random only `random()` is promised to give the same sequence in every version of Python.
    return items[int(rng.random() * len(items))]
