"""The dialogue: a pair is shown, a person answers, the file is written; then the next."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.labelling.agreement import compare
from trainer.labelling.answers import Answers, Pair
from trainer.labelling.screen import NO, QUIT, SKIP, UNDO, YES, Screen

LABELS = {YES: 1, NO: 0, SKIP: None}
LAST = "All are answered.  u undo the last   q quit "


def label(answers: Answers, pairs: Sequence[Pair], labeller: str, screen: Screen) -> int:
    """Ask one person about pairs, in this order; every answer is on disk before the next question.

    Returns how many were answered. Raises StorageError where the file cannot be written.
    """
    place = 0
    while True:
        if place < len(pairs):
            screen.show(pairs[place], f"{place + 1} of {len(pairs)}")
        key = screen.ask() if place < len(pairs) else screen.ask(LAST, (UNDO, QUIT))
        if key == QUIT:
            return place
        if key == UNDO and place:
            place -= 1
            answers.take_back(pairs[place], labeller)
            answers.save()
        elif key == UNDO:
            screen.say("nothing to undo in this session")
        else:
            answers.vote(pairs[place], labeller, LABELS[key])
            answers.save()
            place += 1


def summary(answers: Answers) -> list[str]:
    """What the file holds, and how far people agree, in sentences."""
    rows = list(answers.rows.values())
    positive, left_open = sum(row.label == 1 for row in rows), sum(not _given(row.votes) for row in rows)
    labelled = answers.labelled()
    divided = len(rows) - labelled - left_open
    said = [
        f"{answers.path}: {labelled} labelled pair{'s' * (labelled != 1)}, {positive} of them positive; "
        f"left open {left_open}, divided on {divided}"
    ]
    return said + [f"{agreement}." for agreement in compare([row.votes for row in rows])]


def _given(votes: dict[str, int | None]) -> bool:
    return any(vote is not None for vote in votes.values())
