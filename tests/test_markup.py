"""Markup around what a ticket says goes, in whatever wrapping; words that only look like it stay."""

from __future__ import annotations

import pytest

from trainer.text.markup import strip_markup

SAID = "vpn drops every hour"
IMAGE = "data:image/png;base64," + "iVBORw0KGgo" * 200
STYLE = ";".join(f"mso-prop-{number}:none" for number in range(40))


def words(text: str) -> str:
    return " ".join(strip_markup(text).split())


@pytest.mark.parametrize(
    "text",
    [
        f"&lt;div&gt;&lt;p&gt;{SAID}&lt;/p&gt;&lt;br/&gt;&amp;nbsp;&lt;/div&gt;",
        f"&amp;amp;lt;b&amp;amp;gt;{SAID}&amp;amp;lt;/b&amp;amp;gt;",
        "vpn&amp;amp;nbsp;drops&amp;nbsp;every&nbsp;hour",
        f"<html><head><style>p.MsoNormal {{margin:0cm}}</style></head><body><p>{SAID}</p></body></html>",
        f"&lt;style&gt;p {{margin:0}}&lt;/style&gt;{SAID}",
        f"{SAID}<style>p {{margin:0}} .x {{",  # cut by the export
        f"<SCRIPT type='x'>if (a<b) alert('<p>')</SCRIPT>{SAID}",
        f'<p style="{STYLE}">{SAID}</p>',
        f'<P CLASS=MsoNormal\n STYLE="x">{SAID}<o:p>&nbsp;</o:p></P>',
        f"<!--[if gte mso 9]><xml><w:WordDocument></w:WordDocument></xml><![endif]-->{SAID}<o:p></o:p>",
        f"<!--[if !mso]><!-->{SAID}<!--<![endif]--><![if !supportLists]><![endif]>",
        "<!-- a > b -->vpn drops <!-- every hour",  # a comment without end hides nothing
        f'<!DOCTYPE html><?xml version="1.0"?>{SAID}<?xml:namespace prefix = o ns = "x" />',
        f"<![CDATA[<p>{SAID}</p>]]>",
        f"<div><p>{SAID}",  # never closed
        f'{SAID}<p style="mso-bidi-font',  # cut within a tag
        f'<p title="a > b">{SAID}</p>',
        f"[code]<p>{SAID}</p>[/code]",
        f"{{code:java}}{SAID}{{code}}",
        "h2. vpn {color:red}drops{color} {{every}} [hour|http://a/b] !shot.png|thumbnail!",
        "## vpn drops\n![image](https://x/y.png) `every` **hour**",
        "vpn [drops](http://a/b) every hour\n```\n```",
        f'<img src="{IMAGE}">{SAID}',
        f"{SAID} {IMAGE} ![x]({IMAGE})",
        f"2024-01-03 10:00:00 - Service Desk (Work notes)\n{SAID}",
        f"03.01.2024 10:00 - Max Muster (Arbeitsnotizen)\n{SAID}",
        f"2024-01-03 10:00:00 - Service Desk (Additional comments) {SAID}",
        f"01/Jan/24 10:00 AM;jdoe;{SAID}",
        "<table><tr><td>vpn</td><td>drops</td></tr></table>every<hr>hour",
        "<span>vpn</span> drops<!-- x --><b></b><script>y</script> every hour",
    ],
)
def test_what_a_person_said_is_all_that_is_left(text: str) -> None:
    assert words(text) == SAID


def test_blocks_break_lines_and_inline_tags_do_not() -> None:
    assert strip_markup("a<br>b<div>c</div>d<ul><li>e</li></ul>") == "a\nb\nc\nd\n\ne\n\n"
    assert strip_markup("un<b>able</b> to") == "unable to"


@pytest.mark.parametrize(
    "text",
    [
        "set <server> in config, <user@x.com> <http://x/y> <HOST_NAME>",
        "at <time> on <address>, <data> and <server:port>",  # tags by name, but with nothing that tags have
        "a < b and c > d, 5<6, x <b and c> d, <3",
        "array[0](x) {server} [code 5] 2**3**4 __init__ list`1 [**] [1:2:3] ***ap***",
        "priority #2\n# not a heading of ours",
        "2024-01-03 10:00:00 - backup failed",
    ],
)
def test_what_only_looks_like_markup_stays(text: str) -> None:
    assert strip_markup(text) == text


def test_known_words_are_tags_where_they_have_what_tags_have() -> None:
    assert words("set <server> and <p> in config") == "set <server> and in config"
    assert words("<label>a</label> <input type=text> <time>") == "a <time>"


def test_nothing_is_left_for_another_pass_but_what_was_escaped_too_often() -> None:
    text = "&lt;p&gt;<b>a</b> <server>&lt;/p&gt; &amp;lt;i&amp;gt;b&amp;lt;/i&amp;gt;"
    assert strip_markup(strip_markup(text)) == strip_markup(text)


def test_a_reference_to_no_character_is_no_crash_and_nesting_costs_nothing() -> None:
    assert words("a &#" + "1" * 5000 + "; b") == "a b"
    assert words("<div>" * 3000 + SAID + "</div>" * 3000) == SAID
