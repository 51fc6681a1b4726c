"""comparison.html: one file without scripts or links to elsewhere; light and dark, on a phone, by keyboard.

Written as XML, which browsers read as HTML, so that a test can parse it strictly. Floor 7.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from html import escape

from qfleet.comparison.chart import chart
from qfleet.comparison.measures import AXES, MEASURES, Measure
from qfleet.comparison.picture import style_of
from qfleet.comparison.results import CellResult, Comparison, VariantResult
from qfleet.comparison.wording import NOTHING, interval, is_shown, middle, notes, reached, title_of, written

# The colours of picture.py, lighter where the ground is dark.
DARK_COLORS = ("#4aa8e8", "#ff8b4a", "#2fc995", "#e7a1ca", "#a5dcff", "#f2b233", "#ffffff")
STYLE = """
:root { color-scheme: light dark; --ground: #ffffff; --text: #1b1f24; --quiet: #57606a; --rule: #d5d9df;
  --raised: #f5f6f8; --failed: #b3261e; LIGHT }
@media (prefers-color-scheme: dark) { :root { --ground: #14171b; --text: #e8eaed; --quiet: #a3abb5; --rule: #363c44;
  --raised: #1e2227; --failed: #ff8a80; DARK } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.25rem; max-width: 76rem; background: var(--ground); color: var(--text);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
.quiet, small { color: var(--quiet); }
code { font-family: ui-monospace, monospace; font-size: .9em; overflow-wrap: anywhere; }
fieldset { border: 0; padding: 0; margin: 1rem 0; display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; }
legend { padding: 0; color: var(--quiet); }
label { display: inline-flex; align-items: center; gap: .5rem; min-height: 2.25rem; overflow-wrap: anywhere; }
input { width: 1.1rem; height: 1.1rem; flex: none; }
.key { flex: none; width: 2rem; height: .6rem; }
.charts { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--quiet); font-size: 12px; }
.grid { stroke: var(--rule); stroke-width: .7; }
.threshold { stroke: var(--text); stroke-width: 1.2; stroke-dasharray: 2 3; }
.scroll { overflow-x: auto; border: 1px solid var(--rule); border-radius: .4rem; }
:focus-visible { outline: 3px solid var(--series-0); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .5rem .75rem; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th:first-child, td.text { text-align: left; }
tbody th { font-weight: 600; background: var(--ground); white-space: normal; overflow-wrap: anywhere; min-width: 9rem; }
td small, th small { display: block; font-weight: 400; }
thead th { background: var(--raised); }
tr:last-child > * { border-bottom: 0; }
td.error { color: var(--failed); white-space: normal; min-width: 18rem; text-align: left; }
summary { cursor: pointer; padding: .4rem 0; }
dt { font-weight: 600; } dd { margin: 0 0 .6rem; }
"""


def page(comparison: Comparison) -> str:
    """The whole file."""
    title = escape(title_of(comparison))
    variants = comparison.variants
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en" xmlns="http://www.w3.org/1999/xhtml">',
        "<head>",
        '<meta charset="utf-8"/>',
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>',
        # The browser itself holds the page to that it fetches nothing.
        """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'"/>""",
        f"<title>{title}</title>",
        f"<style>{_style(variants)}</style>",
        "</head>",
        "<body>",
        "<main>",
        f"<h1>{title}</h1>",
        f'<p class="quiet">{escape(_state(comparison))}</p>',
        *_choice(variants),
        '<div class="charts">',
        *(f"<figure style='margin:0'>{chart(comparison, axis)}</figure>" for axis in AXES),
        "</div>",
        f'<p class="quiet">{_legend(comparison)}</p>',
        "<h2>Results</h2>",
        *_scrolled("Results", _results(comparison)),
        "<ul>",
        *(f"<li>{escape(line)}</li>" for line in notes(comparison)),
        "</ul>",
        *_meanings(comparison),
        "<h2>Runs</h2>",
        *_scrolled("Runs", _cells(comparison)),
        "<h2>How to make it again</h2>",
        f"<p><code>{escape(comparison.command)}</code></p>",
        f'<p class="quiet">{escape(", ".join(f"{key} {value}" for key, value in comparison.machine.items()))}</p>',
        "</main>",
        "</body>",
        "</html>",
    ]
    return "\n".join(parts) + "\n"


def _style(variants: list[VariantResult]) -> str:
    numbers = range(len(variants))
    light = " ".join(f"--series-{number}: {style_of(number)[0]};" for number in numbers)
    dark = " ".join(f"--series-{number}: {DARK_COLORS[number % len(DARK_COLORS)]};" for number in numbers)
    hidden = "\n".join(
        f"body:has(#show-{number}:not(:checked)) .series-{number} {{ display: none; }}" for number in numbers
    )
    return STYLE.replace("LIGHT", light).replace("DARK", dark) + hidden + "\n"


def _state(comparison: Comparison) -> str:
    parts = [f"{comparison.count('finished')} of {len(comparison.cells)} runs finished"]
    failed = comparison.count("failed")
    return ", ".join([*parts, *([f"{failed} failed"] if failed else [])]) + "."


def _legend(comparison: Comparison) -> str:
    threshold = "" if comparison.threshold is None else f" Dotted: the threshold, {comparison.threshold:g}."
    return (
        "Lines are means over seeds of the greedy validation return, bands their 95% bootstrap intervals; both go as "
        f"far as every seed has values.{threshold}"
    )


def _choice(variants: list[VariantResult]) -> Iterable[str]:
    """The key of the charts, whose boxes hide and show a variant."""
    yield "<fieldset><legend>Shown in the charts</legend>"
    for number, variant in enumerate(variants):
        dashes = " ".join(f"{2 * length:g}" for length in style_of(number)[1])
        dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
        yield (
            f'<label><input type="checkbox" checked="checked" id="show-{number}"/>'
            f'<svg class="key" viewBox="0 0 32 8" aria-hidden="true"><line x1="0" x2="32" y1="4" y2="4" '
            f'stroke="var(--series-{number})" stroke-width="3"{dashed}/></svg>{escape(variant.label)}</label>'
        )
    yield "</fieldset>"


def _scrolled(name: str, table: Iterable[str]) -> Iterable[str]:
    """A table that scrolls sideways in its own frame, by keyboard too."""
    yield f'<div class="scroll" role="region" aria-label="{name}" tabindex="0"><table>'
    yield from table
    yield "</table></div>"


def _results(comparison: Comparison) -> Iterable[str]:
    shown = [measure for measure in MEASURES if is_shown(measure, comparison)]
    baseline = comparison.variants[0].label
    has_threshold = comparison.threshold is not None
    heads = [_head(measure.title) for measure in shown]
    heads.insert(1, _head(f"minus {baseline}"))
    heads += [_head(f"reached {comparison.threshold:g}")] if has_threshold else []
    yield f'<thead><tr><th scope="col">variant</th>{"".join(heads)}</tr></thead><tbody>'
    for variant in comparison.variants:
        cells = [
            _cell(
                middle(variant.measures.get(one.name), one.format), interval(variant.measures.get(one.name), one.format)
            )
            for one in shown
        ]
        cells.insert(1, _cell(middle(variant.difference, "return"), interval(variant.difference, "return")))
        cells += [f"<td>{reached(variant)}</td>"] if has_threshold else []
        about = ", ".join([variant.algo, variant.strategy, variant.engine, *variant.roles, *_counted(variant)])
        yield f'<tr><th scope="row">{escape(variant.label)}<small>{escape(about)}</small></th>{"".join(cells)}</tr>'
    yield "</tbody>"


def _cells(comparison: Comparison) -> Iterable[str]:
    shown = [measure for measure in MEASURES if is_shown(measure, comparison)]
    heads = "".join(_head(measure.title) for measure in shown)
    yield f'<thead><tr><th scope="col">run</th><th scope="col">seed</th>{heads}</tr></thead><tbody>'
    for cell in comparison.cells:
        yield f'<tr><th scope="row">{escape(cell.label)}<small>{escape(cell.run_dir)}</small></th><td>{cell.seed}</td>'
        if cell.status == "finished":
            yield "".join(f"<td>{_number(cell, measure)}</td>" for measure in shown)
        else:
            text = cell.status + (f": {cell.error}" if cell.error else "")
            yield f'<td class="error" colspan="{len(shown)}">{escape(text)}</td>'
        yield "</tr>"
    yield "</tbody>"


def _meanings(comparison: Comparison) -> Iterable[str]:
    yield "<details><summary>What the columns mean</summary><dl>"
    for measure in MEASURES:
        if is_shown(measure, comparison):
            over = f"{measure.statistic} over seeds; the small line is its 95% bootstrap interval"
            yield f"<dt>{escape(measure.title)}</dt><dd>{escape(measure.meaning)} <small>{over}.</small></dd>"
    yield "</dl></details>"


def _counted(variant: VariantResult) -> list[str]:
    """Restarts, pushes discarded and the like."""
    return [f"{name.replace('_', ' ').replace('.', ': ')} {count:,}" for name, count in variant.tallies.items()]


def _number(cell: CellResult, measure: Measure) -> str:
    value = cell.measures.get(measure.name, math.nan)
    return NOTHING if math.isnan(value) else written(value, measure.format)


def _head(text: str) -> str:
    return f'<th scope="col">{escape(text)}</th>'


def _cell(text: str, below: str) -> str:
    return f"<td>{text}{f'<small>{below}</small>' if below else ''}</td>"
