"""A curve chart as inline SVG, coloured by the page's style sheet, so that it is sharp on a phone and dark at night.

    --series-<k>     the colour of variant k, set by the page for light and dark
    .series-<k>      everything that is drawn of it, so that the page can hide it

Floor 7.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from qfleet.comparison.picture import style_of
from qfleet.comparison.results import Comparison, Curve
from qfleet.comparison.wording import AXIS_TITLES

WIDTH, HEIGHT = 360.0, 270.0
LEFT, RIGHT, TOP, BOTTOM = 52.0, 12.0, 10.0, 42.0
Span = tuple[float, float]


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """At most `most` round numbers from low to high, apart by 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    for factor in (1, 2, 5, 10):
        first, last = math.ceil(low / (step * factor) - 1e-9), math.floor(high / (step * factor) + 1e-9)
        if last - first + 1 <= most:
            break
    return [float(f"{number * step * factor:.12g}") for number in range(first, last + 1)]


def tick_label(value: float) -> str:
    """20,000 as 20k, so that labels do not run into each other."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def chart(comparison: Comparison, axis: str) -> str:
    """An `<svg>` of all variants' curves against one axis; empty where nothing has been validated."""
    curves = [variant.curves[axis] for variant in comparison.variants]
    xs = [value for curve in curves for value in curve.x]
    ys = [value for curve in curves for value in (*curve.low, *curve.high)]
    if not xs:
        return ""
    if comparison.threshold is not None:
        ys.append(comparison.threshold)
    x_span, y_span = (0.0, max(xs)), _widened(min(ys), max(ys))
    title = f"Validation return against {AXIS_TITLES[axis]}"
    parts = [
        f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-labelledby="title-{axis} text-{axis}">',
        f'<title id="title-{axis}">{title}</title>',
        f'<desc id="text-{axis}">{escape(_in_words(comparison, curves))}</desc>',
        *_axes(x_span, y_span, AXIS_TITLES[axis]),
    ]
    if comparison.threshold is not None:
        y = _y(comparison.threshold, y_span)
        parts.append(f'<line class="threshold" x1="{LEFT:g}" x2="{WIDTH - RIGHT:g}" y1="{y:.1f}" y2="{y:.1f}"/>')
    for number, (variant, curve) in enumerate(zip(comparison.variants, curves, strict=True)):
        parts += _series(number, variant.label, curve, x_span, y_span)
    return "\n".join([*parts, "</svg>"])


def _series(number: int, label: str, curve: Curve, x_span: Span, y_span: Span) -> list[str]:
    if not curve.x:
        return []
    upper, lower = (_points(curve.x, values, x_span, y_span) for values in (curve.high, curve.low))
    middle = _points(curve.x, curve.mean, x_span, y_span)
    dashes = " ".join(f"{2 * length:g}" for length in style_of(number)[1])
    color = f"var(--series-{number})"
    line = (
        f'<polyline points="{" ".join(middle)}" fill="none" stroke="{color}" stroke-width="2.2" '
        f'stroke-linejoin="round"{f""" stroke-dasharray="{dashes}" """.rstrip() if dashes else ""}/>'
    )
    if len(middle) == 1:
        x, y = middle[0].split(",")
        line = f'<circle cx="{x}" cy="{y}" r="4" fill="{color}"/>'
    return [
        f'<g class="series-{number}">',
        f"<title>{escape(label)}</title>",
        f'<polygon points="{" ".join([*upper, *reversed(lower)])}" fill="{color}" fill-opacity="0.16"/>',
        line,
        "</g>",
    ]


def _axes(x_span: Span, y_span: Span, title: str) -> list[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for value in ticks(*y_span):
        y = _y(value, y_span)
        parts.append(f'<line class="grid" x1="{LEFT:g}" x2="{right:g}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6:g}" y="{y + 4:.1f}" text-anchor="end">{tick_label(value)}</text>')
    for value in ticks(*x_span):
        x = _x(value, x_span)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP:g}" y2="{bottom:g}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16:g}" text-anchor="middle">{tick_label(value)}</text>')
    parts.append(f'<text x="{(LEFT + right) / 2:g}" y="{HEIGHT - 6:g}" text-anchor="middle">{title}</text>')
    return parts


def _in_words(comparison: Comparison, curves: Sequence[Curve]) -> str:
    """What the chart shows at its right end, for those who do not see it."""
    ends = [
        f"{variant.label} ends at {curve.mean[-1]:.1f} ({curve.low[-1]:.1f} to {curve.high[-1]:.1f})"
        for variant, curve in zip(comparison.variants, curves, strict=True)
        if curve.x
    ]
    return "Mean over seeds with 95% interval: " + "; ".join(ends) + "."


def _widened(low: float, high: float) -> Span:
    """With a little room above and below, so that no line lies on the frame."""
    room = 0.04 * (high - low) or max(abs(high), 1.0) * 0.1
    return low - room, high + room


def _points(x: Sequence[float], y: Sequence[float], x_span: Span, y_span: Span) -> list[str]:
    return [f"{_x(one, x_span):.1f},{_y(other, y_span):.1f}" for one, other in zip(x, y, strict=True)]


def _x(value: float, span: Span) -> float:
    return LEFT + (value - span[0]) / ((span[1] - span[0]) or 1.0) * (WIDTH - LEFT - RIGHT)


def _y(value: float, span: Span) -> float:
    return HEIGHT - BOTTOM - (value - span[0]) / ((span[1] - span[0]) or 1.0) * (HEIGHT - TOP - BOTTOM)
