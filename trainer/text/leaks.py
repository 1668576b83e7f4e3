"""Taking a title out of the text that stands below it."""

from __future__ import annotations

import re

WORDS = re.compile(r"\w+")
LEAST = 3  # words of a title that is looked for anywhere, and may break off within its last word
SIGNS = " \t\n.,;:!?|>-_/\\)]}'\"…"


def without_title(body: str, title: str) -> str:
    """The body without the words of the title in a row, in any case and with any signs between them.

    A title of fewer than LEAST words goes only from the beginning: further on its words are what the body says.

    >>> without_title("Hello, VPN is down!! - VPN is  down since Monday", "vpn is down")
    'Hello, since Monday'
    >>> without_title("Outlook: no new mail in outlook", "outlook")
    'no new mail in outlook'
    """
    folded = body.casefold()
    if not all(match.group().casefold() in folded for match in WORDS.finditer(title)):  # mostly, and seen at once
        return body
    title_words = [word.casefold() for word in WORDS.findall(title)]
    spans = [match.span() for match in WORDS.finditer(body)]
    said = "".join(" " + body[begin:end].casefold() for begin, end in spans) + " "
    sought = " " + " ".join(title_words) + (" " if len(title_words) < LEAST else "")
    parts, done, words, place = [], 0, 0, 0  # characters of the body that are done; words before a place in `said`
    while title_words and (at := said.find(sought, place)) >= 0 and (at == 0 or len(title_words) >= LEAST):
        words += said.count(" ", place, at)
        parts.append(body[done : spans[words][0]])
        words += len(title_words)
        done, place = spans[words - 1][1], said.index(" ", at + len(sought.rstrip()))
    if not done:
        return body
    parts = [parts[0].strip(), *(part.strip(SIGNS) for part in parts[1:]), body[done:].lstrip(SIGNS)]
    return " ".join(part for part in parts if WORDS.search(part))
