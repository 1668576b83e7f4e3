"""Masks: what must be hidden is, what carries the meaning stays, and no text takes long."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.text.masking import mask_text


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("mail john.doe+x@corp.example.com now", "mail <email> now"),
        ("see https://portal.corp/x?u=1 or www.corp.com/y", "see <url> or <url>"),
        ("call +49 (0)711 123-4567 or 0711/1234567", "call <phone> or <phone>"),
        ("(212) 555-0100 ext", "<phone> ext"),
        ("srv-db01, HostName_221.company.com and 10.1.2.3", "<host>, <host> and <host>"),
        ("aa:bb:cc:dd:ee:ff fe80::1:2:3:4", "<host> <host>"),
        (r"open \\filesrv01\share\plans", "open <host>"),
        ("user jdoe42, INC0001234, #4711001", "user <id>, <id>, <id>"),
        ("550e8400-e29b-41d4-a716-446655440000", "<id>"),
    ],
)
def test_what_names_someone_or_something_is_masked(text: str, masked: str) -> None:
    assert mask_text(text) == masked


@pytest.mark.parametrize(
    "text",
    [
        "it failed on 10/31/2016 09:06:00 and 2016-10-31 09:06",
        "drive e is 88% full, 12 items, version 10.0.1, 4,500,000 rows",
        "e.g. vpn-client and e-mail do not work, i.e. never",
        "already <email> at <host>",
        "Drucker geht nicht 打印机坏了 принтер",
        "",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert mask_text(text) == text


@given(st.text(max_size=300))
@settings(max_examples=200, deadline=None)
def test_masking_twice_is_masking_once_and_words_without_digits_or_signs_stay(text: str) -> None:
    once = mask_text(text)
    assert mask_text(once) == once
    plain = " ".join(word for word in text.split() if word.isalpha())
    assert mask_text(plain) == plain


@pytest.mark.slow
@pytest.mark.parametrize("piece", ["a", "1", "a.", "1 ", "a-", "a1", "@", "a@", "\\\\", ":", "1:", "a_1-", "+1 (", "<"])
def test_no_text_takes_more_than_linear_time(piece: str) -> None:
    start = time.process_time()
    mask_text(piece * (200_000 // len(piece)))
    assert time.process_time() - start < 5
