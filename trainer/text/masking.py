"""Masks for what names a person, a machine or a record: for texts that leave the data set, as in reports.

Each mask errs on the side of hiding ("office365" looks like a user id and goes). Names of people in plain words are
found behind the labels of a form alone (`names.py`): no pattern tells them from other words, so masks are no guarantee.
"""

from __future__ import annotations

import re

from trainer.text.names import hide_names

# Every repetition is bounded or starts at a border of its own alphabet, so no input takes quadratic time.
_WORD = r"(?<![\w@<-])"  # nothing before that would belong to the same token; "<" spares what is masked already
_HEX = r"[0-9a-fA-F]"
_DATE = r"\d{1,4}[./-]\d{1,2}[./-]\d{1,4}"
_TIME = r"\d{1,2}:\d{2}"
_TOP_DOMAINS = "com|net|org|edu|gov|info|biz|io|local|lan|corp|intern|internal|home|[a-z]{2}"

MASKS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (mask, re.compile(pattern, re.IGNORECASE))
    for mask, pattern in (
        ("<url>", r"\b(?:https?|ftp|file)://[^\s<>\"]+|\bwww\.[^\s<>\"]+"),
        ("<email>", r"(?<![\w.+@-])[\w.+-]{1,64}@\w[\w.-]{0,200}"),
        ("<id>", rf"{_WORD}{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}(?!\w)"),  # a GUID
        ("<host>", rf"{_WORD}(?:\d{{1,3}}\.){{3}}\d{{1,3}}(?![\w.])"),
        ("<host>", rf"{_WORD}(?:{_HEX}{{2}}[:-]){{5}}{_HEX}{{2}}(?!\w)"),  # a MAC address
        ("<host>", rf"{_WORD}{_HEX}{{1,4}}(?::{_HEX}{{0,4}}){{3,7}}(?![\w:])"),  # IPv6; three groups are a time
        ("<host>", rf"{_WORD}(?:[a-z0-9][\w-]{{0,62}}\.){{1,8}}(?:{_TOP_DOMAINS})(?![\w-])(?!\.\w)"),
        ("<host>", r"\\\\[\w.$-]{1,100}(?:\\[^\s\\]{1,100}){0,20}"),  # \\server\share
        ("<id>", r"(?<![\w.,<(+/-])#?\d{5,100}(?!\w|[ ()./-]{1,2}\d)"),
        # Seven digits or more with their separators; dates and times look alike and say nothing about a person.
        ("<phone>", rf"(?<![\w+./:#-])(?!{_DATE}|{_TIME})(?:\+|\(\+?)?\d(?:[ ()./-]{{0,2}}\d){{6,14}}(?![\w/:-])"),
        # A name with both a digit and a hyphen or underscore in it: srv-db01, HostName_221.
        ("<host>", rf"{_WORD}(?=[\w-]{{0,62}}\d)[^\W\d_]\w{{0,62}}[-_][\w-]{{1,62}}(?![\w-])"),
        # Letters and at least two digits: INC0001234, jdoe42.
        ("<id>", rf"{_WORD}(?=\w{{0,40}}[^\W\d_])(?=\w{{0,40}}?\d\w{{0,40}}?\d)\w{{5,100}}(?!\w)"),
    )
)


def mask_text(text: str) -> str:
    """The text with names behind a label, e-mail and web addresses, phone numbers, hosts and ids replaced by `<name>`,
    `<email>`, `<host>`, ... Not a guarantee: a name within a sentence stays."""
    text = hide_names(text)
    for mask, pattern in MASKS:
        text = pattern.sub(mask, text)
    return text
