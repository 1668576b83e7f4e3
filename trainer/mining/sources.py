"""What tickets say of themselves, as pairs of texts about one problem: a source of labels for each way they say it.

Legend: N tickets, P pairs. A text is a number: kind x N + ticket, where whole tickets are kind 0, so that a whole
ticket's text has the number of its ticket.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from trainer.data.tickets import Filter, Tickets
from trainer.mining.neighbours import IntArray
from trainer.mining.settings import BoolArray
from trainer.text.canonical import canonical_form
from trainer.text.cleaning import count_words, id_free
from trainer.text.leaks import SIGNS, without_title

KNOWN_NEIGHBOURS = 6  # each ticket of a large duplicates' cluster is paired with so many others of it
TITLE_WORDS = 2  # a title of fewer says too little to know its ticket by


@dataclass(frozen=True, eq=False)
class Texts:
    """The texts of N tickets: whole ones, then those of each further kind."""

    tickets: Tickets
    clean: list[str]
    written: list[str]
    """As the files of pairs have them: `clean` itself, or as they are in the export."""

    def ticket(self, texts: IntArray) -> IntArray:
        """The tickets that texts are of."""
        return texts % len(self.tickets)

    def add(self, clean: Iterable[str], raw: Iterable[str]) -> int:
        """Append a kind; returns the number of its first text."""
        start = len(self.clean)
        self.clean.extend(clean)
        if self.written is not self.clean:
            self.written.extend(raw)
        return start


@dataclass(frozen=True, eq=False)
class Source:
    """P pairs of texts about one problem."""

    name: str
    """Of settings.SOURCES."""
    first: IntArray  # [P] numbers of texts
    second: IntArray
    pool: IntArray  # numbers of the texts that may stand for a second one in a negative

    def __len__(self) -> int:
        return len(self.first)


def read_sources(
    tickets: Tickets, wanted: Sequence[str], quality: Filter, seed: int, raw: bool = False
) -> tuple[Texts, list[Source]]:
    """The texts of tickets, and the wanted sources that they offer something for, the most trusted first; the texts are
    written clean, or raw."""
    clean: list[str] = [*tickets.texts]
    texts, sources = Texts(tickets, clean, [*tickets.raw] if raw else clean), []
    everyone = np.arange(len(tickets))
    if "duplicates" in wanted:
        first, second = known_pairs(tickets.duplicate, np.random.default_rng(seed))
        sources.append(Source("duplicates", first, second, everyone))
    parts = [_split(tickets.texts, tickets.titles), _split(tickets.raw, tickets.raw_titles)]
    for name in ("resolution", "title-body", "notes"):
        if name in wanted and name in tickets.records:
            # A whole ticket, which is what is searched for, against what was written about it later.
            both = zip(tickets.records[name], parts, strict=True)
            start = texts.add(*(map(_without, records, of_tickets) for records, of_tickets in both))
            fits = _says_enough(texts.clean[start:], quality.min_words)
            fits &= _rare(texts.clean[start:], quality.per_template)
            sources.append(Source(name, everyone[fits], start + everyone[fits], start + everyone[fits]))
        elif name in wanted and name == "title-body":
            title = texts.add(*((title for title, _ in each) for each in parts))
            body = texts.add(*((without_title(body, title) for title, body in each) for each in parts))
            fits = _says_enough(texts.clean[title:body], TITLE_WORDS)
            fits &= _says_enough(texts.clean[body:], quality.min_words)
            sources.append(Source(name, title + everyone[fits], body + everyone[fits], body + everyone[fits]))
    return texts, [source for source in sources if len(source)]


def known_pairs(duplicate: IntArray, random: np.random.Generator) -> tuple[IntArray, IntArray]:
    """Pairs in clusters: all of a small one; in a large one each ticket with the next few around a random circle."""
    order = np.argsort(duplicate, kind="stable")
    bounds = np.flatnonzero(np.diff(duplicate[order], prepend=-1, append=-1))
    edges: set[tuple[int, int]] = set()
    for start, stop in pairwise(bounds.tolist()):
        circle = random.permutation(order[start:stop]).tolist() if stop - start > 1 else []
        for step in range(1, min(len(circle), KNOWN_NEIGHBOURS + 1)):
            around = zip(circle, circle[step:] + circle[:step], strict=True)
            edges |= {(min(pair), max(pair)) for pair in around}
    pairs = np.array(sorted(edges), dtype=np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def text_forms(texts: Texts) -> IntArray:
    """Number of the canonical form of each text: copies share it."""
    forms: dict[str, int] = {}
    return np.array([forms.setdefault(canonical_form(text), len(forms)) for text in texts.clean], dtype=np.int64)


def _split(texts: Sequence[str], ends: Sequence[int]) -> list[tuple[str, str]]:
    """Title and body of each text; a title that breaks off within a word takes the rest of it along."""
    parts = []
    for text, end in zip(texts, ends, strict=True):
        begin = end
        while 0 < begin < len(text) and text[begin].isalnum() and text[begin - 1].isalnum():
            begin += 1
        parts.append((text[:end], text[begin:].lstrip(SIGNS).rstrip()))
    return parts


def _without(text: str, part: tuple[str, str]) -> str:
    """A text written later, without the title and the body that it quotes."""
    title, body = part
    return without_title(without_title(text, body), title)


def _says_enough(texts: Sequence[str], least: int) -> BoolArray:
    return np.array([count_words(text) >= least for text in texts], dtype=np.bool_)


def _rare(texts: Sequence[str], most: int) -> BoolArray:
    """Mask of the texts that at most `most` tickets share, but for ids: "resolved by phone" tells nothing."""
    forms = [id_free(text) for text in texts]
    counts = Counter(forms)
    return np.array([counts[form] <= most for form in forms], dtype=np.bool_)
