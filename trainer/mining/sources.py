"""What tickets say of themselves, as pairs of texts about one problem: a source of labels for each way they say it.

Legend: N tickets, P pairs. A text is a number: kind x N + ticket, where whole tickets are kind 0, so that a whole
ticket's text has the number of its ticket.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainer.data.tickets import Tickets
from trainer.mining.neighbours import IntArray
from trainer.mining.settings import BoolArray
from trainer.text.canonical import canonical_form
from trainer.text.cleaning import count_words
from trainer.text.leaks import without_title

TITLE_WORDS = 2  # a title of fewer says too little to know its ticket by


@dataclass(frozen=True, eq=False)
class Texts:
    """The texts of N tickets: whole ones, then those of each further kind."""

    tickets: Tickets
    clean: list[str]
    raw: list[str]

    def ticket(self, texts: IntArray) -> IntArray:
        """The tickets that texts are of."""
        return texts % len(self.tickets)


@dataclass(frozen=True, eq=False)
class Source:
    """P pairs of texts about one problem. Any ticket's text of the kind that the second is of may stand in a negative."""

    name: str  # of settings.SOURCES
    first: IntArray  # [P] numbers of texts
    second: IntArray

    def __len__(self) -> int:
        return len(self.first)


def read_sources(tickets: Tickets, wanted: tuple[str, ...], min_words: int) -> tuple[Texts, list[Source]]:
    """The texts of tickets, and the sources that they offer among those wanted, the most trusted first."""
    clean, raw, size = [*tickets.texts], [*tickets.raw], len(tickets)
    sources = []
    if "title-body" in wanted and tickets.titles:
        for texts, titles, into in ((tickets.texts, tickets.titles, clean), (tickets.raw, tickets.raw_titles, raw)):
            split = [(text[:end], _rest(text, end)) for text, end in zip(texts, titles, strict=True)]
            into += [title for title, _ in split]
            into += [without_title(body, title) for title, body in split]
        usable = _worded(clean[size : 2 * size], TITLE_WORDS) & _worded(clean[2 * size :], min_words)
        places = np.flatnonzero(usable)
        if len(places):
            sources.append(Source("title-body", places + size, places + 2 * size))
    return Texts(tickets, clean, raw), sources


def _rest(text: str, end: int) -> str:
    """What follows the title; where that breaks off within a word, from the next word on."""
    while 0 < end < len(text) and text[end].isalnum() and text[end - 1].isalnum():
        end += 1
    return text[end:].strip()


def _worded(texts: list[str], least: int) -> BoolArray:
    return np.array([count_words(text) >= least for text in texts], dtype=np.bool_)


def text_forms(texts: Texts) -> IntArray:
    """Number of the canonical form of each text: copies share it."""
    forms: dict[str, int] = {}
    return np.array([forms.setdefault(canonical_form(text), len(forms)) for text in texts.clean], dtype=np.int64)
