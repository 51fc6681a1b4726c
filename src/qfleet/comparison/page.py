"""comparison.html: one file without scripts or links to elsewhere; light and dark, on a phone, by keyboard.

The frame, the charts and their key are those of every page, report/. Floor 7.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from html import escape

from qfleet.comparison.measures import AXES, MEASURES, Measure
from qfleet.comparison.results import CellResult, Comparison, VariantResult
from qfleet.comparison.wording import (
    AXIS_TITLES,
    NOTHING,
    interval,
    is_shown,
    middle,
    notes,
    reached,
    title_of,
    written,
)
from qfleet.report.frame import charts, choice, scrolled, td, th, write_page
from qfleet.report.line_chart import Line, LineChart, line_chart


def page(comparison: Comparison) -> str:
    """The whole file."""
    variants = comparison.variants
    body = [
        f'<p class="quiet">{escape(_state(comparison))}</p>',
        *choice([variant.label for variant in variants]),
        *charts(line_chart(_chart(comparison, axis)) for axis in AXES),
        f'<p class="quiet">{_legend(comparison)}</p>',
        "<h2>Results</h2>",
        *scrolled("Results", _results(comparison)),
        "<ul>",
        *(f"<li>{escape(line)}</li>" for line in notes(comparison)),
        "</ul>",
        *_meanings(comparison),
        "<h2>Runs</h2>",
        *scrolled("Runs", _cells(comparison)),
        "<h2>How to make it again</h2>",
        f"<p><code>{escape(comparison.command)}</code></p>",
        f'<p class="quiet">{escape(", ".join(f"{key} {value}" for key, value in comparison.machine.items()))}</p>',
    ]
    return write_page(title_of(comparison), body, num_series=len(variants))


def _chart(comparison: Comparison, axis: str) -> LineChart:
    """All variants' curves against one axis."""
    curves = [(variant.label, variant.curves[axis]) for variant in comparison.variants]
    ends = [
        f"{label} ends at {curve.mean[-1]:.1f} ({curve.low[-1]:.1f} to {curve.high[-1]:.1f})"
        for label, curve in curves
        if curve.x
    ]
    return LineChart(
        name=axis,
        title=f"Validation return against {AXIS_TITLES[axis]}",
        x_title=AXIS_TITLES[axis],
        lines=[Line(label, curve.x, curve.mean, curve.low, curve.high) for label, curve in curves],
        words="Mean over seeds with 95% interval: " + "; ".join(ends) + ".",
        level=comparison.threshold,
    )


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


def _results(comparison: Comparison) -> Iterable[str]:
    shown = [measure for measure in MEASURES if is_shown(measure, comparison)]
    baseline = comparison.variants[0].label
    has_threshold = comparison.threshold is not None
    heads = [th(measure.title) for measure in shown]
    heads.insert(1, th(f"minus {baseline}"))
    heads += [th(f"reached {comparison.threshold:g}")] if has_threshold else []
    yield f'<thead><tr><th scope="col">variant</th>{"".join(heads)}</tr></thead><tbody>'
    for variant in comparison.variants:
        cells = [
            td(middle(variant.measures.get(one.name), one.format), interval(variant.measures.get(one.name), one.format))
            for one in shown
        ]
        cells.insert(1, td(middle(variant.difference, "return"), interval(variant.difference, "return")))
        cells += [f"<td>{reached(variant)}</td>"] if has_threshold else []
        about = ", ".join([variant.algo, variant.strategy, variant.engine, *variant.roles, *_counted(variant)])
        yield f'<tr><th scope="row">{escape(variant.label)}<small>{escape(about)}</small></th>{"".join(cells)}</tr>'
    yield "</tbody>"


def _cells(comparison: Comparison) -> Iterable[str]:
    shown = [measure for measure in MEASURES if is_shown(measure, comparison)]
    heads = "".join(th(measure.title) for measure in shown)
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
