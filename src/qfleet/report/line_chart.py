"""Line charts as inline SVG, coloured by the page's style sheet, so that they are sharp on a phone and dark at night.

    --series-<k>     the colour of series k, set by the page for light and dark
    .series-<k>      everything that is drawn of it, so that the page can hide it

Floor 7.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from qfleet.report.palette import dash_array
from qfleet.report.scale import Scale, tick_label, widened

WIDTH, HEIGHT = 360.0, 270.0
LEFT, RIGHT, TOP, BOTTOM = 52.0, 12.0, 10.0, 42.0


@dataclass(frozen=True, slots=True)
class Line:
    """One series of a chart.

    Attributes:
        label: its name.
        x, y: its points, joined by straight lines; a single one is a dot, and none draws nothing.
        low, high: the band around it, as long as `x`; empty for none.
        number: of its colour and of the box that hides it; None takes its place in the chart.
        has_dots: mark every point.
        has_rings: put a wide ring around every point, such as those of a Pareto front.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    number: int | None = None
    has_dots: bool = False
    has_rings: bool = False


@dataclass(frozen=True, slots=True)
class LineChart:
    """What a chart shows.

    Attributes:
        name: of the chart, one of its kind on the page: letters, digits, "-" and "_".
        title: what stands on y against what on x.
        x_title: below the axis.
        lines: the series.
        words: what it shows, for those who do not see it.
        level: a dotted line across, such as a target; None for none.
        from_zero: whether x begins at 0 rather than with the first point.
        is_log_x, is_log_y: by powers of ten; all numbers on that axis are above 0 then.
    """

    name: str
    title: str
    x_title: str
    lines: Sequence[Line]
    words: str = ""
    level: float | None = None
    from_zero: bool = True
    is_log_x: bool = False
    is_log_y: bool = False


def line_chart(chart: LineChart) -> str:
    """An `<svg>`; empty where no line has a point.

    Raises:
        ValueError: a number on a logarithmic axis is not above 0.
    """
    xs = [value for line in chart.lines for value in line.x]
    ys = [value for line in chart.lines for value in (*line.y, *line.low, *line.high)]
    if not xs:
        return ""
    if chart.level is not None:
        ys.append(chart.level)
    if (chart.is_log_x and min(xs) <= 0) or (chart.is_log_y and min(ys) <= 0):
        raise ValueError(f"chart {chart.name}: a logarithmic axis has no place for 0 and below")
    begin = 0.0 if chart.from_zero and not chart.is_log_x else min(xs)
    x = Scale(begin, max(xs), LEFT, WIDTH - RIGHT, chart.is_log_x)
    y_span = (min(ys) / 1.1, max(ys) * 1.1) if chart.is_log_y else widened(min(ys), max(ys))
    y = Scale(*y_span, HEIGHT - BOTTOM, TOP, chart.is_log_y)
    name = chart.name
    parts = [
        f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-labelledby="title-{name} text-{name}">',
        f'<title id="title-{name}">{escape(chart.title)}</title>',
        f'<desc id="text-{name}">{escape(chart.words)}</desc>',
        *y_axis(y),
        *_x_axis(x, chart.x_title),
    ]
    if chart.level is not None:
        at = y.pixel(chart.level)
        parts.append(f'<line class="threshold" x1="{LEFT:g}" x2="{WIDTH - RIGHT:g}" y1="{at:.1f}" y2="{at:.1f}"/>')
    for place, line in enumerate(chart.lines):
        parts += _drawn(line, place if line.number is None else line.number, x, y)
    return "\n".join([*parts, "</svg>"])


def y_axis(scale: Scale) -> list[str]:
    """Lines across the chart with their numbers on the left."""
    parts = []
    for value in scale.ticks():
        y = scale.pixel(value)
        parts.append(f'<line class="grid" x1="{LEFT:g}" x2="{WIDTH - RIGHT:g}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6:g}" y="{y + 4:.1f}" text-anchor="end">{tick_label(value)}</text>')
    return parts


def x_title(text: str) -> str:
    """What stands below the axis."""
    middle = (LEFT + WIDTH - RIGHT) / 2
    return f'<text x="{middle:g}" y="{HEIGHT - 6:g}" text-anchor="middle">{escape(text)}</text>'


def _x_axis(scale: Scale, title: str) -> list[str]:
    bottom = HEIGHT - BOTTOM
    parts = []
    for value in scale.ticks():
        x = scale.pixel(value)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP:g}" y2="{bottom:g}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16:g}" text-anchor="middle">{tick_label(value)}</text>')
    return [*parts, x_title(title)]


def _drawn(line: Line, number: int, x: Scale, y: Scale) -> list[str]:
    if not line.x:
        return []
    middle, color = _points(line.x, line.y, x, y), f"var(--series-{number})"
    parts = [f'<g class="series-{number}">', f"<title>{escape(line.label)}</title>"]
    if line.low:
        upper, lower = (_points(line.x, values, x, y) for values in (line.high, line.low))
        corners = " ".join([*upper, *reversed(lower)])
        parts.append(f'<polygon points="{corners}" fill="{color}" fill-opacity="0.16"/>')
    if len(middle) > 1:
        parts.append(
            f'<polyline points="{" ".join(middle)}" fill="none" stroke="{color}" stroke-width="2.2" '
            f'stroke-linejoin="round"{dash_array(number)}/>'
        )
    places = [point.split(",") for point in middle]
    if line.has_rings:
        ring = f'r="8" fill="none" stroke="{color}" stroke-width="2.2"'
        parts += [f'<circle cx="{across}" cy="{down}" {ring}/>' for across, down in places]
    elif len(middle) == 1 or line.has_dots:
        parts += [f'<circle cx="{across}" cy="{down}" r="4" fill="{color}"/>' for across, down in places]
    return [*parts, "</g>"]


def _points(xs: Sequence[float], ys: Sequence[float], x: Scale, y: Scale) -> list[str]:
    return [
        f"{x.pixel(one):.1f},{y.pixel(other):.1f}"
        for one, other in zip(xs, ys, strict=True)
        if math.isfinite(one) and math.isfinite(other)
    ]
