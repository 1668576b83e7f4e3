"""What a ticket says, without what every mail says: headers, greetings, signatures, forms and disclaimers; and when two
tickets are copies of one template.

Patterns know the usual words of six languages. What repeats in many different tickets, word for word, is boilerplate in
any language and is found by counting runs of words (shingles: Broder 1997, "On the resemblance and containment of
documents").
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence, Set
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from trainer.system.console import tracked
from trainer.text.markup import strip_markup

# One character of a script that does not part words counts as a word, elsewhere two or more letters and digits do.
UNSPACED = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
WORD_PATTERN = rf"[{UNSPACED}]|[^\W{UNSPACED}]{{2,}}"
WORD = re.compile(WORD_PATTERN)
_TOKEN = re.compile(r"<\w+>|\w+")
_VOLATILE = re.compile(r"\d|_|^<")  # in a token: a number, an id or a mask

RARE = 2  # texts; a word of no more is a name, mostly
TEMPLATE_WORDS = 4  # different ones, the fewest that tell a template
SHINGLE = 8  # words in a run; shorter ones repeat in what people really say
SHINGLE_TICKETS = 20  # a run in at least so many tickets, and in so large a share of them, is boilerplate
SHINGLE_SHARE = 0.002

_HEADERS = re.compile(
    # A forwarded mail's block from sender to subject, then single lines of one; the subject itself is kept.
    r"(?:\b(?:from|von|de|da|fra)\s?:[^\n]{0,200}\s{1,3})(?:\b(?:sent|gesendet|enviado|envoyé|inviato|date|datum)\s?:)"
    r"[\s\S]{0,800}?\b(?:subject|betreff|assunto|asunto|objet|oggetto)\s?:"
    r"|\breceived from\s?:\s?(?:<\S{1,100}>|\S{1,100})"
    r"|\bsubject\s?:"
    r"|^[ \t]{0,8}(?:from|sent|to|cc|bcc|von|gesendet|an|importance|priority)\s?:[^\n]{0,300}$"
    r"|\[cid:[^\]\n]{0,200}\]|<mailto:(?:<\w{1,20}>|[^<>\n]){0,200}>"
    r"|(?<!-)-{3,}+\s?original message\s?-{3,}",  # tried once for a run of dashes
    re.IGNORECASE | re.MULTILINE,
)
_REPLY = re.compile(r"^(?:(?:re|fwd?|aw|wg)\s?:\s?){1,5}", re.IGNORECASE | re.MULTILINE)
_ADDRESSEE = (
    "all|team|it|sir|madam|mam|colleagues?|everyone|everybody|folks|guys|there|help ?-?desk|service ?-?desk|support|"
    "zusammen|kollegen|liebe|damen und herren|equipe|à tous|todos|tutti"
)
# Words that make of what follows a greeting a sentence, not a name: "Hello the printer is jammed".
_SENTENCE = (
    "the|is|are|was|not|can|cannot|have|has|does|my|our|i|we|please|need|when|after|for|with|from|"
    "ist|sind|nicht|kein|keine|ich|wir|kann|mein|meine|bitte|geht|est|pas|je|nous|mon|está|puedo|não|meu|non|è"
)
# Signs in front go with a greeting, and without one they are matched too, to stay (\1): lines of signs alone are then
# looked at once, not from each of them to the last. *+ keeps the signs it has, for the same reason.
_GREETING = re.compile(
    r"^(?:[\s,.;:>|-]*+(?:(?:hi|hello|hallo|hey|dear|greetings|gentles|good (?:morning|afternoon|evening|day)|"
    r"guten (?:tag|morgen|abend)|"
    r"sehr geehrte[rs]?|liebe[rs]?|bonjour|bonsoir|hola|buenos d[ií]as|buenas tardes|ol[áa]|bom dia|boa tarde|"
    rf"ciao|buongiorno)\b(?:[ \t]+(?:{_ADDRESSEE})\b)*"
    rf"(?:(?![^,.!:\n]{{0,25}}\b(?:{_SENTENCE})\b)[^,.!:\n]{{0,25}}[,!:\n])?[\s,.!:]*)+|([\s,.;:>|-]++))",
    re.IGNORECASE | re.MULTILINE,
)
_CLOSING = re.compile(  # of lower case: twice as fast as one that ignores it
    r"\b(?:(?:best|kind|warm|with (?:best|kind|friendly))[ -]+(?:regards|greetings|wishes)|sincerely|"
    r"yours (?:sincerely|faithfully|truly)|thanks (?:and|&) (?:best )?regards|"
    r"mit freundlichen gr(?:ü|ue)(?:ß|ss)en|(?:viele|freundliche|beste|liebe) gr(?:ü|ue)(?:ß|ss)e|mfg|"
    r"cordialement|bien à vous|saludos(?: cordiales)?|un saludo|atenciosamente|cordiali saluti|distinti saluti|"
    r"(?P<thanks>regards|(?:many )?thanks|thank you|thx|gru(?:ß|ss)|merci|gracias|obrigad[oa]|grazie))\b|"
    r"\bbest[\s,.]*\Z"
)
SIGNATURE = 260  # characters at the end of a text in which a closing phrase begins a signature
THANKS_AFTER = 0.4  # of the text; before that, thanks may begin the message

# Frequent short words; a language wins by its count of them. Words of two languages stand in both or in neither.
_STOP_WORDS: dict[str, frozenset[str]] = {
    language: frozenset(words.split())
    for language, words in {
        "en": "the and is are was not of for with this that from have has can cannot please when my it we be you "
        "unable at get does been but there your our or if after by how which issue need working",
        "de": "der die das und ist nicht ich wir sie ein eine einen mit auf für von zu den dem kann bitte wird werden "
        "bei vom beim nach wenn auch sind hat habe haben kein keine oder aus noch nur zum zur sich",
        "fr": "le la les et est pas ne je nous vous une des du que qui dans sur pour avec aux ce cette mon être peut "
        "ai sont de un ma votre merci",
        "es": "el la los las es una un que de en por para con del se su mi puede tengo está son como pero este esta "
        "favor y",
        "pt": "os é não uma um de que em por para com da dos das ao se meu minha pode está são como mas este esta "
        "favor você",
        "it": "il gli le è non una un di che per con del della dei delle alla si mio può sono ma questo questa nel "
        "nella",
        "pl": "się nie jest od za przez dla jak ale czy mam proszę przy oraz są być może na że",
    }.items()
}
STOP_WORDS = frozenset().union(*_STOP_WORDS.values())

_SCRIPTS: dict[str, re.Pattern[str]] = {
    "zh/ja": re.compile("[\u3040-\u30ff\u3400-\u9fff]"),
    "ko": re.compile("[\uac00-\ud7af]"),
    "cyrillic": re.compile("[\u0400-\u04ff]"),
    "arabic": re.compile("[\u0600-\u06ff]"),
    "greek": re.compile("[\u0370-\u03ff]"),
    "thai": re.compile("[\u0e00-\u0e7f]"),
}
_NO_LATIN = re.compile("|".join(pattern.pattern for pattern in _SCRIPTS.values()))
_LATIN = re.compile("[a-z\u00df-\u024f]", re.IGNORECASE)
LANGUAGES = (*_STOP_WORDS, *_SCRIPTS)
MIXED = "mixed"


def count_words(text: str) -> int:
    """Words of two characters or more; in scripts without spaces, characters."""
    return len(WORD.findall(text))


def first_words(text: str, count: int) -> str:
    """The text up to the end of its `count`-th word."""
    if len(text) < count:
        return text
    for number, match in enumerate(WORD.finditer(text), start=1):
        if number == count:
            return text[: match.end()]
    return text


def strip_mail(text: str) -> str:
    """A text without markup, mail headers, greeting and signature; white space within lines is one space."""
    text = strip_markup(text)
    text = _HEADERS.sub("\n", text) if ":" in text or "---" in text else text
    text = "\n".join(filter(None, (" ".join(line.split()) for line in text.splitlines())))
    text = _GREETING.sub(r"\1", _REPLY.sub("", text))
    lower = text.replace("İ", "i").lower()  # as long as the text: of all letters that one alone becomes two
    for closing in _CLOSING.finditer(lower, max(0, len(text) - SIGNATURE)):
        if not closing["thanks"] or closing.start() >= THANKS_AFTER * len(text):
            text = text[: closing.start()]
            break
    return text.strip(" \t\n,;:-|")


def id_free(text: str) -> str:
    """The words of a text in lower case, each one that holds a digit, an underscore or a mask as "#"."""
    return " ".join(map(_word_or_mark, _TOKEN.findall(text.lower())))


@lru_cache(2**16)  # words repeat, and looking one up is quicker than looking into it
def _word_or_mark(token: str) -> str:
    return "#" if _VOLATILE.search(token) else token


def fingerprints(texts: Sequence[str]) -> list[str]:
    """What copies of a template share: `id_free`, with the words of at most RARE texts (names, mostly) as "#" too.

    Runs of "#" are one. Where fewer than TEMPLATE_WORDS different words remain the text is no template: its own
    `id_free`.
    """
    plain = [id_free(text) for text in tracked(texts, "Finding templates")]
    counts = Counter(word for text in plain for word in set(text.split()))
    keys = []
    for text in plain:
        kept: list[str] = []
        for word in text.split():
            part = word if counts[word] > RARE else "#"
            if part != "#" or kept[-1:] != ["#"]:
                kept.append(part)
        keys.append(" ".join(kept) if len({*kept} - {"#"}) >= TEMPLATE_WORDS else text)
    return keys


def strip_repeated(texts: Sequence[str], templates: Sequence[str], protected: Sequence[int]) -> list[str]:
    """Texts without the runs of SHINGLE words that many different tickets repeat.

    Args:
        templates: fingerprint of each text; copies of a template count once, so what only they share is kept.
        protected: characters at the start of each text (its title) that are neither counted nor cut.
    """
    vocabulary = _Vocabulary()
    numbers = [  # of the words of each text
        np.array([vocabulary[word] for word in _TOKEN.findall(text, start)], dtype=np.int64)
        for text, start in zip(tracked(texts, "Finding repeated passages"), protected, strict=True)
    ]
    hashes, row_of = _shingle_hashes(numbers)
    first = {template: row for row, template in reversed(list(enumerate(templates)))}
    counted = np.isin(row_of, list(first.values()))
    repeated = _in_rows(hashes[counted], row_of[counted], max(SHINGLE_TICKETS, SHINGLE_SHARE * len(first)))
    starts = np.isin(hashes, repeated)
    bounds = np.searchsorted(row_of, np.arange(len(texts) + 1))
    result = list(texts)
    for row in np.unique(row_of[starts]).tolist():
        result[row] = _cut(texts[row], protected[row], starts[bounds[row] : bounds[row + 1]])
    return result


class _Vocabulary(dict[str, int]):
    """Numbers of words as texts spell them; those that differ in case, and all ids, share one."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: dict[str, int] = {}

    def __missing__(self, word: str) -> int:
        number = self[word] = self.numbers.setdefault(_word_or_mark(word.lower()), len(self.numbers))
        return number


def _in_rows(values: NDArray[np.uint64], row_of: NDArray[np.int64], least: float) -> NDArray[np.uint64]:
    """The values that stand in so many rows."""
    order = np.lexsort((row_of, values))
    again = (np.diff(values[order]) == 0) & (np.diff(row_of[order]) == 0)
    distinct, counts = np.unique(np.delete(values[order], 1 + np.flatnonzero(again)), return_counts=True)
    return distinct[counts >= least]


def _shingle_hashes(rows: Sequence[NDArray[np.int64]]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """A hash of each run of SHINGLE word numbers in the rows, one row after the other, and the row of each."""
    sizes = np.array([len(row) for row in rows], dtype=np.int64)
    words = np.concatenate([*rows, np.empty(0, np.int64)])
    count = max(0, len(words) - SHINGLE + 1)
    mixed = (words.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    total = np.zeros(count, np.uint64)
    for offset in range(SHINGLE):
        total = (total ^ (total >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9) + mixed[offset : offset + count]
    row_of = np.repeat(np.arange(len(rows)), sizes)
    whole = row_of[:count] == row_of[len(words) - count :]  # the last word of the run is of the same row
    return total[whole], row_of[:count][whole]


def _cut(text: str, protected: int, starts: NDArray[np.bool_]) -> str:
    """The text without the words of the runs that start where `starts` says, and without what stands between them."""
    spans = [match.span() for match in _TOKEN.finditer(text, protected)]
    covered = np.convolve(starts, np.ones(SHINGLE, dtype=np.int64)) > 0
    parts, end, was_gone = [], 0, False
    for (begin, stop), gone in zip(spans, covered.tolist(), strict=True):
        if gone:
            if not was_gone:
                parts.append(text[end:begin])
            end = stop
        was_gone = gone
    return " ".join(filter(None, (part.strip() for part in [*parts, text[end:]])))


def language(text: str) -> str:
    """A guess: "en", "de", ..., a script's name, MIXED where two have a large share, "" where too little says it."""
    if not _NO_LATIN.search(text):
        return _latin_language(text)
    letters = {name: len(pattern.findall(text)) for name, pattern in _SCRIPTS.items()}
    latin, other = len(_LATIN.findall(text)), max(letters, key=lambda name: letters[name])
    # A character there says as much as three letters; a Latin product name in a Chinese sentence is usual.
    weight = 3 * letters[other]
    if weight > 3 * latin:
        return other
    latin_language = _latin_language(text)
    if 3 * weight < latin:
        return latin_language
    return MIXED if latin_language else other


def _latin_language(text: str) -> str:
    counts = Counter(word for word in re.findall(r"[^\W\d_]+", text.lower()) if word in STOP_WORDS)

    def votes_of(words: Set[str]) -> int:
        return sum(count for word, count in counts.items() if word in words)

    votes = sorted(((votes_of(words), name) for name, words in _STOP_WORDS.items()), reverse=True)
    (best, name), (second, runner_up) = votes[0], votes[1]
    if best < 2 or best == second:
        return ""
    evidence = votes_of(_STOP_WORDS[runner_up] - _STOP_WORDS[name])
    return MIXED if evidence >= 5 and evidence >= best / 2 else name
