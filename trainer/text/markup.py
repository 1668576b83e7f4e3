"""A text without the markup that programs wrap it in: HTML, also escaped, wiki and Markdown signs, pasted data.

What a browser would show is kept, with a line break where a block begins or ends. Words in angle brackets that are no
tags (`<server>`) are placeholders of a person and stay. An export escapes what it holds, at times twice, so unescaping
and stripping are repeated until nothing changes.
"""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser

PASSES = 5  # of unescaping and stripping; each undoes one escaping


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_BLOCKS = _words(
    """
    address article aside blockquote body br caption center dd details dialog div dl dt fieldset figcaption figure
    footer form h1 h2 h3 h4 h5 h6 head header hr html legend li main menu nav ol option p pre section select summary
    table tbody textarea tfoot thead title tr ul
    """
)
_CELLS = frozenset({"td", "th"})
# Tags, and words as good as any in a sentence ("at <time> on <address>"): those are tags where they have an attribute
# or stand beside their closing tag.
_WORDS = _words(
    """
    abbr address area article aside audio button canvas center cite code command data details dialog dir figure
    footer form frame header image input label legend link main map mark menu meter nav object option output param
    picture progress section select slot source summary template time title track var video
    """
)
_TAGS = (
    _BLOCKS
    | _CELLS
    | _WORDS
    | _words(
        """
    a acronym applet b base basefont bdi bdo big blink col colgroup dfn em embed font frameset i iframe img ins del
    kbd marquee meta nobr noframes noscript optgroup q rp rt ruby s samp script small span strike strong style sub
    sup svg tt u wbr xml
    """
    )
)
_PREFIXES = _words("o w v x m st1 wp mso")  # of Office's own tags: <o:p>, <w:WordDocument>, <st1:place>

# A tag: its name; then an attribute with a value (behind some without), or nothing more.
_FLAGS = "nowrap|noshade|compact|disabled|checked|selected|hidden|readonly|multiple|async|defer|controls"
_TAG = re.compile(
    r"<(/?)([A-Za-z][A-Za-z0-9]*(?::[A-Za-z][\w.-]{0,60})?)(?=[\s/>])"
    rf"(?:(?P<bare>[\s/]*>)|(?P<attribute>(?:\s+(?:{_FLAGS}))*\s+[A-Za-z_:][\w:.-]{{0,60}}\s*=|(?:\s+(?:{_FLAGS}))+\s*/?>))?",
    re.IGNORECASE,
)
_CLOSED = re.compile(r"</([A-Za-z][\w:.-]{0,60})\s*>")
_DECLARATION = re.compile(r"<!doctype\b[^<>]*>|<\?xml\b[^<>]*>|<!\[(?:if|endif|else)\b[^<>]*>", re.IGNORECASE)
_CDATA = re.compile(r"<!\[CDATA\[(.*?)(?:\]\]>|\Z)", re.DOTALL)
_HIDDEN = re.compile(r"<!--|<(style|script|head|svg|xml)\b(?:\s[^<>]*)?>", re.IGNORECASE)  # with all that they hold
_STYLE_OR_CODE = re.compile(r"[^<]{0,2000}?\{")  # what an unclosed <style> begins with
_LONG_REFERENCE = re.compile(r"&#\d{8,};?")  # no character has such a number, and int() refuses 5,000 digits
_NO_TAG = "\0"  # stands for "<" where it begins no tag


class _Text(HTMLParser):
    """What a page of known tags shows."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []

    def handle_data(self, data: str) -> None:
        self.parts.append(data)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.parts.append("\n" if tag in _BLOCKS else " " if tag in _CELLS else "")

    def handle_endtag(self, tag: str) -> None:
        self.handle_starttag(tag, None)

    def set_cdata_mode(self, *_: object, **__: object) -> None:
        """Nothing is taken as it is up to a closing tag that may never come: styles and scripts are gone already."""


def strip_markup(text: str) -> str:
    """The text that a browser, a wiki or a ticket system would show.

    >>> strip_markup("&lt;p&gt;set &lt;server&gt;&lt;/p&gt;&amp;nbsp;<b>now</b>").split()
    ['set', '<server>', 'now']
    """
    text = text.replace(_NO_TAG, " ")
    for _ in range(PASSES):
        before, text = text, _strip_html(text)
        if text == before:
            break
    text = _DATA.sub(" ", text)
    for needed, pattern, instead in _SIGNS:  # of journals, wikis and Markdown; what they enclose stays
        if needed in text:  # much quicker to see
            text = pattern.sub(instead, text)
    return text


def _strip_html(text: str) -> str:
    """One pass: what nobody sees goes, then tags, then references to characters are resolved."""
    if "<" not in text:
        return html.unescape(_LONG_REFERENCE.sub("", text)) if "&" in text else text
    text = _without_hidden(_CDATA.sub(r"\1", text)) if "<!" in text or _HIDDEN.search(text) else text
    text = _DECLARATION.sub("", text)
    closed = {name.lower() for name in _CLOSED.findall(text)}
    end = text.rfind(">")
    parts, last = [], 0
    for match in _TAG.finditer(text):
        if match.start() > end and match["attribute"]:  # the text was cut within a tag
            parts += [text[last : match.start()].replace("<", _NO_TAG)]
            last = len(text)
            break
        if match.start() < end and _is_tag(match, closed):
            parts += [text[last : match.start()].replace("<", _NO_TAG), "<"]
            last = match.start() + 1
    parser = _Text()
    parser.feed(_LONG_REFERENCE.sub("", "".join([*parts, text[last:].replace("<", _NO_TAG)])))
    parser.close()
    return "".join(parser.parts).replace(_NO_TAG, "<")


def _is_tag(match: re.Match[str], closed: set[str]) -> bool:
    """Whether what looks like a tag is one."""
    name = match[2].lower()
    prefix, colon, _ = name.partition(":")
    if not (match["bare"] or match["attribute"]) or not (name in _TAGS or colon):
        return False
    if name in _WORDS or (colon and prefix not in _PREFIXES):
        return bool(match["attribute"]) or name in closed
    return True


def _without_hidden(text: str) -> str:
    """The text without comments, styles, scripts and page heads. Of one without end, only what is surely no message."""
    parts, last, position = [], 0, 0
    absent: set[str] = set()  # ends that do not come any more
    while opening := _HIDDEN.search(text, position):
        name = (opening[1] or "").lower()
        end = None if name in absent else _end_of(name, text, opening.end())
        if end is None:
            absent.add(name)
            is_code = name in ("style", "script") and _STYLE_OR_CODE.match(text, opening.end())
            end = len(text) if is_code else opening.start() if name else opening.end()  # of a comment its sign goes
        parts.append(text[last : opening.start()])
        last, position = end, max(end, opening.end())
    return "".join([*parts, text[last:]])


def _end_of(name: str, text: str, start: int) -> int | None:
    """Where the element, or for an empty name the comment, that begins before `start` ends."""
    if not name:
        end = text.find("-->", start)
        return None if end < 0 else end + 3
    closing = re.compile(rf"</{name}\s*>", re.IGNORECASE).search(text, start)
    return closing.end() if closing else None


# Pasted data: data-URIs, and runs of base64 far longer than any word.
_DATA = re.compile(
    r"data:[\w.+-]{1,60}/[\w.+-]{1,60}[\w;=.+-]{0,100},(?:[\w+/=%.~-]|\s(?=[\w+/]{40}))*"
    r"|(?<![\w+/=])[A-Za-z0-9+/]{200,}={0,2}"
)
_URL = r"(?:https?:|ftp:|mailto:|file:|www\.|[./#])"
_TITLE = r"(?: \"[^\"\n]{0,200}\")?"
_DATE = r"(?:\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}|\d{1,2}[-/. ]\w{3,9}[-/. ]\d{2,4})"
_STAMP = rf"{_DATE}[ T,]{{1,3}}\d{{1,2}}:\d{{2}}(?::\d{{2}})?(?: ?[ap]\.?m\.?)?"
_NOTES = (
    r"work ?notes?|additional comments?|comments?|customer visible|arbeitsnotiz(?:en)?|(?:zusätzliche )?kommentare?|"
    r"notes de travail|commentaires?(?: supplémentaires)?|notas de trabajo|comentarios?(?: adicionales)?|"
    r"notas de trabalho|comentários?(?: adicionais)?|note di lavoro|commenti(?: aggiuntivi)?"
)
# What each needs, the pattern, and what stands there instead.
_SIGNS: tuple[tuple[str, re.Pattern[str], str], ...] = tuple(
    (needed, re.compile(pattern, re.IGNORECASE | re.MULTILINE), instead)
    for needed, pattern, instead in (
        # A ticket system's journal: when - who (what), and Jira's when;who; before what was said.
        ("(", rf"^[ \t]*{_STAMP} ?- ?[^\n()]{{1,80}}\((?:{_NOTES})\)[ \t]*:?", "\n"),
        ("(", rf"^[ \t]*{_STAMP} ?- ?[^\n()]{{1,80}}\([^\n()]{{3,40}}\)[ \t]*$", ""),
        (";", rf"^[ \t]*{_DATE}(?:[ T]\d{{1,2}}:\d{{2}}(?::\d{{2}})?(?: ?[ap]m)?)?;[^;\n]{{1,80}};", ""),
        ("[", r"\[/?code\]", "\n"),
        ("{", r"\{(?:code|noformat|quote|color|panel|info|note|warning|tip|expand)(?::[^{}\n]{0,200})?\}", " "),
        ("{{", r"\{\{([^{}\n]{1,300})\}\}", r"\1"),
        (".", r"^[ \t]*h[1-6]\.[ \t]+", ""),
        ("!", r"![^!\s|]{1,200}\.(?:png|jpe?g|gif|bmp|svg|webp)(?:\|[^!\n]{0,200})?!", " "),
        ("|", rf"\[([^\[\]|\n]{{1,300}})\|{_URL}[^\]\s]{{0,2000}}\]", r"\1"),
        ("[~", r"\[~accountid:[^\]\s]{1,100}\]", " "),
        # Markdown.
        ("](", rf"!\[[^\[\]\n]{{0,300}}\]\((?: |(?:{_URL}|[^()\s]{{1,200}}\.)[^()\s]{{0,2000}}{_TITLE})\)", " "),
        ("](", rf"\[([^\[\]\n]{{1,300}})\]\({_URL}[^()\s]{{0,2000}}{_TITLE}\)", r"\1"),
        ("```", r"^[ \t]*```[\w+-]{0,20}[ \t]*$", ""),
        ("~~~", r"^[ \t]*~~~[\w+-]{0,20}[ \t]*$", ""),
        ("`", r"(?<![\w`])`([^`\n]{1,300})`(?![\w`])", r"\1"),
        ("**", r"(?<![\w*])\*\*(?=\w)([^*\n]{1,300})(?<=[\w.,:!?)])\*\*(?![\w*])", r"\1"),
        ("##", r"^[ \t]*#{2,6}[ \t]+", ""),
        ("[", r"^([ \t]*[-*][ \t]+)\[[ x]\][ \t]+", r"\1"),
    )
)
