"""The canonical form of a text: two texts that a person would call the same have the same one."""

from __future__ import annotations

import functools
import re
import unicodedata


def canonical_form(text: str) -> str:
    """What copies of a text share: case folded, composed (NFC), each run of white space one space, none at the ends.

    Folding follows Unicode's canonical caseless matching (D145: NFD, fold), so equivalent spellings fold alike. Runs of
    more than 30 combining marks are cut by grapheme joiners first (after the Stream-Safe Text Format, UAX #15): Python
    sorts the marks of a run in quadratic time, and 10 MB of them would take a day.
    """
    if text.isascii():
        return " ".join(text.lower().split())
    folded = unicodedata.normalize("NFD", _possible_mark_runs().sub(_cut_marks, text)).casefold()
    return " ".join(unicodedata.normalize("NFC", folded).split())


def _is_mark(char: str) -> bool:
    return unicodedata.combining(unicodedata.normalize("NFD", char)[0]) > 0


def _cut_marks(run: re.Match[str]) -> str:
    return run.group() + "\u034f" * all(map(_is_mark, run.group()))


@functools.cache
def _possible_mark_runs() -> re.Pattern[str]:
    """30 characters in a row that may all be marks; beyond U+FFFF, where `re` is slow with sets, any letter may."""
    mark = "[" + "".join(filter(_is_mark, map(chr, range(0x300, 0x10000)))) + "\U00010000-\U0001efff]"
    return re.compile(f"{mark}{mark}{{29}}")  # a set in front, not a repetition: ten times as fast to search for
