"""The HTML of a page: it needs nothing from elsewhere, and reads well on paper and on a narrow screen."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jinja2 import Environment, StrictUndefined

from trainer.report.plots import to_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Table:
    """Cells by row. On a narrow screen each row becomes a block, and each cell a line that begins with its heading."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Iterable[int] = ()
    """Columns that stand to the right."""
    texts: Iterable[int] = ()
    """Columns that get room."""

    def kinds(self) -> list[str]:
        """The style of each column: "n" for numbers, "t" for texts."""
        return [("t" if i in self.texts else "n" if i in self.numbers else "") for i in range(len(self.headings))]


class Picture:
    """A figure and its caption. As an image of its own, its ids cannot meet those of another."""

    def __init__(self, figure: Figure, caption: str) -> None:
        self.svg, self.caption = base64.b64encode(to_svg(figure).encode()).decode(), caption


@dataclass(frozen=True)
class Lead:
    """What the page says first."""

    style: str
    """ "better", "not" or ""."""
    strong: str
    text: str
    notes: Sequence[str] = ()
    """Paragraphs under it."""


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it, in this order."""

    title: str = ""
    table: Table | None = None
    notes: Sequence[str] = ()
    pictures: Sequence[Picture] = ()


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
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(26rem, 100%), 1fr)); gap: 1rem;
  margin-top: 1.5rem; }
figure { margin: 0; } figure img { width: 100%; height: auto; } figcaption { font-size: .875rem; color: #444; }
@media screen and (max-width: 40rem) { .wide { overflow: visible; } thead { display: none; }
  table, tbody, tr, td { display: block; } tr { padding: .4rem 0; border-bottom: 1px solid #ddd; }
  td, td.n, td.t { min-width: 0; padding: .1rem 0; border: 0; text-align: left; white-space: normal;
    overflow-wrap: anywhere; }
  td:first-child { font-weight: 600; } td:empty { display: none; }
  td[data-heading]::before { content: attr(data-heading) ": "; font-weight: 400; color: #444; } }
@media print { body { max-width: none; font-size: 10pt; padding: 0; } .wide { overflow: visible; }
  h1 { margin-top: 0; } h2 { margin-top: 1.2rem; } .verdict { font-size: 10pt; } figcaption { font-size: 8pt; }
  table { font-size: 8pt; } th, td { padding: .15rem .4rem; } td.t { min-width: 0; }
  figure, tr, .verdict { break-inside: avoid; } .figures { display: block; }
  figure { display: inline-block; width: 48%; margin: 0 .5% .5rem; } }
"""

PAGE = """
{% macro classed(kinds, column) %}{% if kinds[column] %} class="{{ kinds[column] }}"{% endif %}{% endmacro %}
<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title><style>{{ style | safe }}</style></head><body>
<h1>{{ heading }}</h1>
{% if lead %}
<p class="verdict {{ lead.style }}">
{% if lead.strong %}<strong>{{ lead.strong }}</strong>{% endif %} {{ lead.text }}</p>
{% for note in lead.notes %}
<p>{{ note }}</p>
{% endfor %}
{% endif %}
{% for section in sections %}
{% if section.title %}<h2>{{ section.title }}</h2>{% endif %}
{% if section.table %}
{% set kinds = section.table.kinds() %}
{% set headings = section.table.headings %}
{% set labelled = headings | length > 2 %}
<div class="wide"><table>
<thead><tr>
{%- for heading in headings %}<th{{ classed(kinds, loop.index0) }}>{{ heading }}</th>{% endfor -%}
</tr></thead><tbody>
{% for cells in section.table.rows %}
<tr>
{%- for cell in cells -%}
<td{{ classed(kinds, loop.index0) }}{% if labelled %} data-heading="{{ headings[loop.index0] }}"{% endif %}>
{{- cell }}</td>
{%- endfor -%}
</tr>
{% endfor %}
</tbody></table></div>
{% endif %}
{% for note in section.notes %}
<p>{{ note }}</p>
{% endfor %}
{% if section.pictures %}
<div class="figures">
{% for picture in section.pictures %}
<figure><img alt="{{ picture.caption }}" src="data:image/svg+xml;base64,{{ picture.svg }}">
<figcaption>{{ picture.caption }}</figcaption></figure>
{% endfor %}
</div>
{% endif %}
{% endfor %}
</body></html>
"""


def page(title: str, heading: str, lead: Lead | None, sections: Sequence[Section]) -> str:
    """A whole page; all text in it is escaped."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    template = environment.from_string(PAGE.lstrip())
    return template.render(title=title, heading=heading, lead=lead, sections=sections, style=STYLE)
