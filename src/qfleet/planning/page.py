"""The page of a plan: speed-up against the ideal line, time against cost with the Pareto front, and all numbers.

The frame and the charts are those of every page, report/. Floor 7.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from qfleet.planning.curves import FRONT, IDEAL, Curve, costs, front, ideal, speedups, timed
from qfleet.planning.results import PlanResult, Row
from qfleet.planning.wording import LIMIT, MEANINGS, MONEY, SPEED, cell, heads, title_of
from qfleet.report.frame import charts, choice, table, write_page
from qfleet.report.line_chart import Line, LineChart, line_chart

FIRST = "what, and at how many workers"


def page(result: PlanResult) -> str:
    """The whole file."""
    labels = timed(result)
    chosen = result.recommendation
    body = [
        f"<p>{escape(f'Recommended: {chosen.why}' if chosen is not None else 'Nothing can be recommended.')}</p>",
        *(choice([*labels, IDEAL, FRONT]) if labels else []),
        *charts([line_chart(_speedup(result)), line_chart(_cost(result))]),
        '<p class="quiet">Left: samples trained on per second against one worker of the same strategy, and the ideal '
        "line. Right: money and time of each size; rings: the Pareto front, those that nobody beats in both.</p>",
        "<h2>All sizes</h2>",
        *table("All sizes", ["configuration", *_heads(result)], _rows(result), LIMIT),
        *_meanings(result),
        "<h2>What saturates first</h2>",
        *table("What saturates first", ["strategy", FIRST], result.saturates.items(), [FIRST]),
        *_refused(result),
        *_learned(result),
        "<h2>Where the numbers are from</h2>",
        *table(
            "Costs", ["what", "cost", "from"], [(one.name, one.value, one.source) for one in result.origins], ["from"]
        ),
        f"<p>{escape(prices_text(result))}</p>",
        "<h2>How to make it again</h2>",
        f"<p><code>{escape(result.command)}</code></p>",
        f'<p class="quiet">{escape(", ".join(f"{key} {value}" for key, value in result.machine.items()))}</p>',
    ]
    return write_page(title_of(result), body, num_series=len(labels) + 2)


def prices_text(result: PlanResult) -> str:
    """The machine, its price and how old that is, in a line."""
    prices = result.prices
    return (
        f"Prices of {prices['date']}: {prices['name']} ({prices['region']}), {prices['cores']:g} cores, "
        f"{prices['on_demand']} {prices['currency']} an hour on demand, {prices['spot']} on spot with "
        f"{prices['preemptions_per_hour']} preemptions an hour; {prices['source']}."
    )


def _speedup(result: PlanResult) -> LineChart:
    labels = timed(result)
    found = [*speedups(result), ideal(result)]
    ends = [f"{one.label} {one.y[-1]:,.1f} at {one.x[-1]:,.0f}" for one in found[:-1] if one.x]
    return LineChart(
        "speed-up",
        "speed-up against workers",
        "workers",
        [_line(one, labels) for one in found],
        "Speed-up at the largest size: " + "; ".join(ends) + ".",
        is_log_x=True,
        is_log_y=True,
    )


def _cost(result: PlanResult) -> LineChart:
    labels = timed(result)
    currency = result.prices["currency"]
    return LineChart(
        "cost",
        "time in seconds against money",
        f"money ({currency}); up: seconds",
        [_line(one, labels) for one in [*costs(result), front(result)]],
        "On the Pareto front: "
        + "; ".join(f"{row.label} with {row.num_workers:,}" for row in result.rows if row.is_on_front)
        + ".",
        is_log_x=True,
        is_log_y=True,
    )


def _line(curve: Curve, labels: list[str]) -> Line:
    known = [*labels, IDEAL, FRONT]
    has_dots, has_rings = curve.label not in (IDEAL, FRONT), curve.label == FRONT
    return Line(curve.label, curve.x, curve.y, (), (), known.index(curve.label), has_dots, has_rings)


def _heads(result: PlanResult) -> list[str]:
    return heads((*SPEED, *MONEY, *LIMIT), result)


def _rows(result: PlanResult) -> Iterable[list[str]]:
    for row in result.rows:
        if row.timing is not None:
            yield [_name(row), *(cell(row, name) for name in _heads(result))]


def _name(row: Row) -> str:
    return f"{row.label}, {row.num_workers:,}"


def _meanings(result: PlanResult) -> Iterable[str]:
    yield "<details><summary>What the columns mean</summary><dl>"
    for name in _heads(result):
        yield f"<dt>{escape(name)}</dt><dd>{escape(MEANINGS[name])}.</dd>"
    yield "</dl></details>"


def _refused(result: PlanResult) -> Iterable[str]:
    if result.refused():
        yield "<h2>What cannot be planned</h2>"
        yield from table("What cannot be planned", ["configuration", "why"], result.refused(), ["why"])


def _learned(result: PlanResult) -> Iterable[str]:
    if not result.runs:
        return
    yield "<h2>Learned runs</h2>"
    rows = []
    for run in result.runs:
        seconds = "not reached" if run.seconds is None else f"{run.seconds:.2f}"
        steps = "-" if run.env_steps is None else f"{run.env_steps:,}"
        best = "-" if run.best_return is None else f"{run.best_return:.1f}"
        rows.append([f"{run.label}, {run.num_workers:,}", str(run.seed), run.error or seconds, steps, best])
    yield from table("Learned runs", ["run", "seed", "virtual seconds", "env steps", "best validation"], rows)
