"""Pieces of an HTML page: tables, pictures, and a page around them that reads well on paper and on a narrow screen."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from trainer.report.plots import to_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure


STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 64rem; margin: 0 auto;
  padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.15rem; margin-top: 2rem; break-after: avoid; }
.verdict { border-left: 6px solid #888; padding: .5rem 1rem; background: #f4f4f4; font-size: 1.1rem; }
.verdict.better { border-color: #2b8a3e; } .verdict.not { border-color: #b3261e; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top;
  overflow-wrap: normal; }
td.n, th.n { text-align: right; white-space: pre; } td.t { min-width: 14rem; overflow-wrap: anywhere; }
.numbers th:first-child, .numbers td:first-child { position: sticky; left: 0; background: #fff; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 1rem;
  margin-top: 1.5rem; }
figure { margin: 0; } figure img { width: 100%; height: auto; } figcaption { font-size: .875rem; color: #444; }
@media screen and (max-width: 40rem) { .texts thead { display: none; } .texts table, .texts tbody { display: block; }
  .texts tr { display: block; padding: .4rem 0; border-bottom: 1px solid #ddd; }
  .texts td { display: inline-block; padding: 0 .8rem 0 0; border: 0; }
  .texts td.t { display: block; min-width: 0; padding: .1rem 0; } .texts td:empty { display: none; } }
@media print { body { max-width: none; font-size: 10pt; padding: 0; } .wide { overflow: visible; }
  h1 { margin-top: 0; } h2 { margin-top: 1.2rem; } .verdict { font-size: 10pt; } figcaption { font-size: 8pt; }
  table { font-size: 8pt; } th, td { padding: .15rem .4rem; } td.t { min-width: 0; }
  figure, tr, .verdict { break-inside: avoid; } .figures { display: block; }
  figure { display: inline-block; width: 48%; margin: 0 .5% .5rem; } }
"""


def table(
    headings: Iterable[str], rows: Iterable[Sequence[str]], numbers: Iterable[int] = (), texts: Iterable[int] = ()
) -> str:
    """A table of escaped cells; columns of numbers stand to the right, those of texts get room.

    On a narrow screen a table of numbers scrolls under its first column; of one with texts, each row becomes a block.
    """
    texts = tuple(texts)
    kinds = {**dict.fromkeys(numbers, ' class="n"'), **dict.fromkeys(texts, ' class="t"')}

    def row(tag: str, cells: Iterable[str]) -> str:
        return "".join(f"<{tag}{kinds.get(i, '')}>{escape(cell)}</{tag}>" for i, cell in enumerate(cells))

    lines = "\n".join(f"<tr>{row('td', cells)}</tr>" for cells in rows)
    head = f"<thead><tr>{row('th', headings)}</tr></thead>"
    kind = "texts" if texts else "numbers"
    return f'<div class="wide {kind}"><table>{head}<tbody>\n{lines}\n</tbody></table></div>'


def figure(drawn: Figure, caption: str) -> str:
    """An inlined picture; as an image of its own, its ids cannot meet those of another."""
    data = base64.b64encode(to_svg(drawn).encode()).decode()
    alt = escape(caption)
    return f'<figure><img alt="{alt}" src="data:image/svg+xml;base64,{data}"><figcaption>{alt}</figcaption></figure>'


def page(title: str, body: Iterable[str]) -> str:
    """A whole page that needs nothing from elsewhere; what is empty in its body is left out."""
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
            *filter(None, body),
            "</body></html>\n",
        ]
    )
