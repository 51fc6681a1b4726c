"""The frame of every page: one file that fetches nothing; light and dark, on a phone, by keyboard.

Written as XML, which browsers read as HTML, so that a test can parse it strictly. `write_page` puts head and style
around a body; the others make what bodies are made of. All text that comes in is escaped here, but for `body`. Floor 7.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Collection, Iterable, Sequence
from html import escape

from qfleet.report.palette import color_rules, dash_array

STYLE = """
:root { color-scheme: light dark; --ground: #ffffff; --text: #1b1f24; --quiet: #57606a; --rule: #d5d9df;
  --raised: #f5f6f8; --failed: #b3261e; LIGHT }
@media (prefers-color-scheme: dark) { :root { --ground: #14171b; --text: #e8eaed; --quiet: #a3abb5; --rule: #363c44;
  --raised: #1e2227; --failed: #ff8a80; DARK } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.25rem; max-width: 76rem; background: var(--ground); color: var(--text);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.25rem 0 .25rem; overflow-wrap: anywhere; }
.quiet, small { color: var(--quiet); }
.failed { color: var(--failed); }
code { font-family: ui-monospace, monospace; font-size: .9em; overflow-wrap: anywhere; }
fieldset { border: 0; padding: 0; margin: 1rem 0; display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; }
legend { padding: 0; color: var(--quiet); }
label, .key-of { display: inline-flex; align-items: center; gap: .5rem; min-height: 2.25rem; overflow-wrap: anywhere; }
input { width: 1.1rem; height: 1.1rem; flex: none; }
.key { flex: none; width: 2rem; height: .6rem; }
figure { margin: 0; }
figcaption { color: var(--quiet); padding-left: .25rem; }
.key-of { margin-right: 1rem; }
.charts { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--quiet); font-size: 12px; }
.grid { stroke: var(--rule); stroke-width: .7; }
.threshold { stroke: var(--text); stroke-width: 1.2; stroke-dasharray: 2 3; }
.scroll { overflow-x: auto; border: 1px solid var(--rule); border-radius: .4rem; }
:focus-visible { outline: 3px solid var(--part-0); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .5rem .75rem; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th:first-child, .text { text-align: left; }
td.text { white-space: normal; overflow-wrap: break-word; min-width: 11rem; }
tbody th { font-weight: 600; background: var(--ground); white-space: normal; min-width: 9rem; }
td small, th small { display: block; font-weight: 400; }
thead th { background: var(--raised); white-space: normal; min-width: 5rem; vertical-align: bottom; }
tr:last-child > * { border-bottom: 0; }
td.error { color: var(--failed); white-space: normal; min-width: 18rem; text-align: left; }
svg.share { height: 1rem; min-width: 12rem; border-radius: .2rem; background: var(--raised); }
@media (max-width: 34rem) {
  tbody th { font-size: .85rem; overflow-wrap: anywhere; min-width: 11rem; max-width: 11rem; } }
summary { cursor: pointer; padding: .4rem 0; }
dt { font-weight: 600; } dd { margin: 0 0 .6rem; }
"""


TEXT = ' class="text"'


def write_page(
    title: str, body: Iterable[str], *, num_series: int = 0, has_images: bool = False, script: str | None = None
) -> str:
    """A whole page.

    Args:
        title: of the window and the page; plain text.
        body: the markup below the title, well-formed.
        num_series: how many series its charts show; each has a colour and can be hidden by `choice`'s box.
        has_images: whether it holds pictures, as data in the page itself.
        script: the one script that it may run, which may ask where the page came from; without "<" and "&".
    """
    name = escape(title)
    allowed = ["default-src 'none'", "style-src 'unsafe-inline'", *(["img-src data:"] if has_images else [])]
    if script is not None:
        assert not set("<&") & set(script), "the page is XML too"
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        allowed += [f"script-src 'sha256-{digest}'", "connect-src 'self'"]
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en" xmlns="http://www.w3.org/1999/xhtml">',
        "<head>",
        '<meta charset="utf-8"/>',
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>',
        # The browser itself holds the page to that it fetches nothing; not even an icon.
        f"""<meta http-equiv="Content-Security-Policy" content="{"; ".join(allowed)}"/>""",
        f"<title>{name}</title>",
        f"<style>{_style(num_series)}</style>",
        "</head>",
        "<body>",
        "<main>",
        f"<h1>{name}</h1>",
        *body,
        "</main>",
        *([f"<script>{script}</script>"] if script is not None else []),
        "</body>",
        "</html>",
    ]
    return "\n".join(parts) + "\n"


def choice(labels: Sequence[str], legend: str = "Shown in the charts") -> Iterable[str]:
    """The key of line charts, whose boxes hide and show the series with that number in every chart of the page."""
    yield f"<fieldset><legend>{escape(legend)}</legend>"
    for number, label in enumerate(labels):
        yield (
            f'<label><input type="checkbox" checked="checked" id="show-{number}"/>'
            f'<svg class="key" viewBox="0 0 32 8" aria-hidden="true"><line x1="0" x2="32" y1="4" y2="4" '
            f'stroke="var(--series-{number})" stroke-width="3"{dash_array(number)}/></svg>{escape(label)}</label>'
        )
    yield "</fieldset>"


def charts(drawn: Iterable[str], captions: Sequence[str] = ()) -> Iterable[str]:
    """Charts beside each other, as many as there is room for; those that are empty are left out.

    Args:
        drawn: SVG, or "".
        captions: what stands above each; none of them, or as many as there are charts.
    """
    yield '<div class="charts">'
    for place, one in enumerate(drawn):
        if one:
            caption = f"<figcaption>{escape(captions[place])}</figcaption>" if captions else ""
            yield f"<figure>{caption}{one}</figure>"
    yield "</div>"


def scrolled(name: str, table: Iterable[str]) -> Iterable[str]:
    """A table that scrolls sideways in its own frame, by keyboard too.

    Args:
        name: what a screen reader calls it.
        table: thead and tbody.
    """
    yield f'<div class="scroll" role="region" aria-label="{escape(name)}" tabindex="0"><table>'
    yield from table
    yield "</table></div>"


def table(name: str, heads: Sequence[str], rows: Iterable[Sequence[str]], texts: Collection[str] = ()) -> Iterable[str]:
    """A scrolled table, whose first column names the rows.

    Args:
        name: what a screen reader calls it.
        heads: of the columns.
        rows: a text for each column.
        texts: heads of columns of words, which are read from the left and may take several lines; the rest are numbers.
    """
    are_words = [head in texts for head in heads]
    lines = [f"<thead><tr>{''.join(map(th, heads, are_words))}</tr></thead><tbody>"]
    for first, *rest in rows:
        cells = "".join(td(one, is_words=is_words) for one, is_words in zip(rest, are_words[1:], strict=True))
        lines.append(f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>')
    return scrolled(name, [*lines, "</tbody>"])


def th(text: str, is_words: bool = False) -> str:
    """The head of a column."""
    return f'<th scope="col"{TEXT if is_words else ""}>{escape(text)}</th>'


def td(text: str, below: str = "", is_words: bool = False) -> str:
    """A cell, with a small line below."""
    return f"<td{TEXT if is_words else ''}>{escape(text)}{f'<small>{escape(below)}</small>' if below else ''}</td>"


def _style(num_series: int) -> str:
    light, dark = color_rules(num_series)
    hidden = "\n".join(
        f"body:has(#show-{number}:not(:checked)) .series-{number} {{ display: none; }}" for number in range(num_series)
    )
    return STYLE.replace("LIGHT", light).replace("DARK", dark) + hidden + "\n"
