"""What is left of a ticket, which tickets are copies of a template, and what language they are in."""

from __future__ import annotations

import random
import time

import pytest

from trainer.text.cleaning import (
    MIXED,
    SHINGLE,
    SHINGLE_TICKETS,
    count_words,
    fingerprints,
    first_words,
    id_free,
    language,
    strip_mail,
    strip_repeated,
)


def test_a_closing_is_cut_where_it_stands_whatever_its_case_and_letters_that_grow_in_lower_case() -> None:
    for closing in ("Best Regards", "MIT FREUNDLICHEN GRÜSSEN", "Saludos"):
        assert strip_mail(f"The printer in İİİSTANBUL is out of paper again, {closing} Ann") == (
            "The printer in İİİSTANBUL is out of paper again"
        )


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("received from: <email> hello team, my vpn is down. best regards john doe it services", "my vpn is down."),
        ("From: A B\nSent: Monday\nTo: desk\nSubject: RE: printer jam\n\nHi,\nit jams", "printer jam\nit jams"),
        (
            "from: a b [mailto:<email>] sent: monday to: c d subject: fw: no sound hello no sound",
            "no sound hello no sound",
        ),
        ("Sehr geehrte Damen und Herren,\nder Drucker klemmt.\nMit freundlichen Grüßen\nEva", "der Drucker klemmt."),
        ("Bom dia, a impressora parou. Obrigado", "a impressora parou."),
        ("screen is black [cid:image001.png@01D2] since noon", "screen is black\nsince noon"),
        ("<p>Mail &amp; calendar</p><br/>are <b>gone</b>", "Mail & calendar\nare gone"),
        ("Hello Bob Smith\nthe mailbox is full", "the mailbox is full"),
        ("Hello the mailbox is full\nenlarge it", "the mailbox is full\nenlarge it"),  # no name: a sentence
        ("Hallo, Drucker geht nicht!\nbitte helfen", "Drucker geht nicht!\nbitte helfen"),
        ("hi i cannot log on to vpn best", "i cannot log on to vpn"),
        (
            "thanks for the new laptop, but its screen flickers all the time",
            "thanks for the new laptop, but its screen flickers all the time",
        ),
        ("history of changes is lost", "history of changes is lost"),  # "hi" is part of a word
        ("a < b and <email> stay", "a < b and <email> stay"),
    ],
)
def test_mail_around_the_message_goes(raw: str, clean: str) -> None:
    assert strip_mail(raw) == clean


@pytest.mark.parametrize(
    "piece",
    [
        "from: a\n",
        "from: ",
        "hello ",
        "<a ",
        "thanks ",
        "[cid:",
        "a",
        " ",
        "re: ",
        "&amp;",
        "-",
        "---\n",
        "-\n",
        ">\n.\n",
    ],
)
def test_no_text_takes_more_than_linear_time(piece: str) -> None:
    start = time.process_time()
    text = strip_mail(piece * (100_000 // len(piece)))
    language(text), id_free(text)
    assert time.process_time() - start < 5


def test_signs_stay_where_no_greeting_follows_them() -> None:
    assert strip_mail("the list:\n- hello\n> one\n>\n- Hi all,\n|two\n.") == "the list:\n> one\n|two\n."


def test_words_are_counted_in_scripts_with_and_without_spaces() -> None:
    assert count_words("a vpn is down") == 3  # a letter is no word
    assert count_words("打印机坏了") == 5
    assert count_words("vpn坏了") == 3
    assert first_words("a vpn is down, really", 2) == "a vpn is"
    assert first_words("打印机坏了", 3) == "打印机"
    assert first_words("vpn", 5) == "vpn"


def test_ids_are_not_seen_and_words_are() -> None:
    assert id_free("Job Job_1424 failed at 10/31/2016: <email>") == "job # failed at # # # #"
    assert id_free("unlock user jdoe42!") == id_free("Unlock user anna_7.") != id_free("unlock anna")


def test_copies_of_a_template_share_a_fingerprint_and_short_texts_do_not() -> None:
    alerts = [f"reset passwords for {name} using the password tool" for name in ("xqz fgh", "bnm rty", "asd klo")]
    others = ["install xyzzy", "install plugh", "reset passwords for the whole password team using mail"]
    found = fingerprints(alerts + others)
    assert len(set(found[:3])) == 1 and "#" in found[0]
    assert len(set(found[3:])) == 3 and found[3:5] == others[:2]


def test_passages_of_many_different_tickets_go_and_a_template_stays() -> None:
    random.seed(0)
    words = [f"{a}{b}ol" for a in "bcdfghklm" for b in "aeiou"]
    bodies = [" ".join(random.sample(words, 5)) for _ in range(SHINGLE_TICKETS)]
    tickets = [f"{body}\nplease complete all required questions below before sending {body}" for body in bodies]
    alert = "the nightly job of the warehouse failed with an error"
    alerts = [alert] * (2 * SHINGLE_TICKETS)
    texts = tickets + alerts
    titles = [text.index("\n") if "\n" in text else 0 for text in texts]
    result = strip_repeated(texts, fingerprints(texts), titles)
    assert result[: len(tickets)] == [f"{body} {body}" for body in bodies]
    assert result[len(tickets) :] == alerts  # one fingerprint, so counted once

    fewer = texts[1:]
    assert strip_repeated(fewer, fingerprints(fewer), titles[1:]) == fewer  # one ticket less than it takes
    whole = [text.replace("\n", " ") for text in tickets]
    protected = [len(text) for text in whole]
    assert strip_repeated(whole, fingerprints(whole), protected) == whole


def test_a_run_is_cut_where_it_stands_and_nowhere_else() -> None:
    passage = " ".join(f"word{chr(97 + number)}" for number in range(SHINGLE))
    names = [f"{a}{b}" for a in ("foo", "bar", "baz", "qux", "dax", "wug") for b in ("one", "two", "six", "ten")]
    texts = [f"report {name} ({passage}); {name} {passage}, {name}." for name in names]
    assert len(texts) >= SHINGLE_TICKETS
    result = strip_repeated(texts, texts, [0] * len(texts))
    assert result == [f"report {name} ( ); {name} , {name}." for name in names]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the printer is not working and my mail is gone", "en"),
        ("der Drucker geht nicht und ich kann mich nicht anmelden", "de"),
        ("l'imprimante ne marche pas et je ne peux pas me connecter", "fr"),
        ("la impresora no funciona y el correo está lento para los usuarios", "es"),
        ("não consigo acessar o sistema e a impressora não funciona", "pt"),
        ("打印机坏了,请帮忙", "zh/ja"),
        ("принтер не работает", "cyrillic"),
        ("vpn error", ""),
        ("", ""),
        ("打印机坏了,请帮忙看看, the printer is broken and it does not work, please help us when you can", MIXED),
        (
            "der Drucker ist kaputt und ich kann nicht drucken, bitte helfen / the printer is broken and we cannot "
            "print from our office, please help when you can",
            MIXED,
        ),
        ("vpn软件打不开", "zh/ja"),
    ],
)
def test_languages(text: str, expected: str) -> None:
    assert language(text) == expected
