"""Bars as inline SVG: histograms side by side, and shares of a whole; coloured by the page, as lines are. Floor 7.

--series-<k>     the colour of series k of a histogram; .series-<k> hides it
--part-<k>       the colour of part k of a whole
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from qfleet.report.line_chart import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, x_title, y_axis
from qfleet.report.palette import COLORS
from qfleet.report.scale import Scale

MOST_LABELS = 12
SHARE_WIDTH, SHARE_HEIGHT = 600.0, 18.0


@dataclass(frozen=True, slots=True)
class Bars:
    """One series of a bar chart: a number for each of the chart's labels.

    Attributes:
        label: its name.
        values: at or above 0; as many as the chart has labels.
        number: of its colour and of the box that hides it; None takes its place in the chart.
    """

    label: str
    values: Sequence[float]
    number: int | None = None


@dataclass(frozen=True, slots=True)
class BarChart:
    """What a bar chart shows.

    Attributes:
        name: of the chart, one of its kind on the page: letters, digits, "-" and "_".
        title: what is counted.
        x_title: below the axis.
        labels: below the bars.
        bars: the series, side by side at each label.
        words: what it shows, for those who do not see it.
    """

    name: str
    title: str
    x_title: str
    labels: Sequence[str]
    bars: Sequence[Bars]
    words: str = ""


def bar_chart(chart: BarChart) -> str:
    """An `<svg>`; empty where there is nothing above 0."""
    highest = max((value for bars in chart.bars for value in bars.values), default=0.0)
    if not highest > 0.0:
        return ""
    y = Scale(0.0, highest * 1.04, HEIGHT - BOTTOM, TOP)
    slot = (WIDTH - LEFT - RIGHT) / len(chart.labels)
    width = 0.84 * slot / len(chart.bars)
    name = chart.name
    parts = [
        f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-labelledby="title-{name} text-{name}">',
        f'<title id="title-{name}">{escape(chart.title)}</title>',
        f'<desc id="text-{name}">{escape(chart.words)}</desc>',
        *y_axis(y),
    ]
    every = -(-len(chart.labels) // MOST_LABELS)
    for place, label in enumerate(chart.labels):
        if place % every == 0:
            x = LEFT + (place + 0.5) * slot
            parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16:g}" text-anchor="middle">{escape(label)}</text>')
    parts.append(x_title(chart.x_title))
    for place, bars in enumerate(chart.bars):
        number = place if bars.number is None else bars.number
        parts += [f'<g class="series-{number}">', f"<title>{escape(bars.label)}</title>"]
        for index, value in enumerate(bars.values):
            if value > 0.0:
                x, top = LEFT + (index + 0.08) * slot + place * width, y.pixel(value)
                parts.append(
                    f'<rect x="{x:.1f}" y="{top:.1f}" width="{width:.1f}" height="{HEIGHT - BOTTOM - top:.1f}" '
                    f'fill="var(--series-{number})"/>'
                )
        parts.append("</g>")
    return "\n".join([*parts, "</svg>"])


def share_bar(title: str, shares: Mapping[str, float], parts: Sequence[str]) -> str:
    """A whole as one bar, cut into its parts; what is missing to 1 stays empty.

    Args:
        title: whose whole it is, for those who do not see it.
        shares: by name of the part.
        parts: all names that the page knows, in the order of colours; `share_key` is their key.
    """
    told = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    drawn = [
        f'<svg viewBox="0 0 {SHARE_WIDTH:g} {SHARE_HEIGHT:g}" preserveAspectRatio="none" class="share" role="img" '
        f'aria-label="{escape(f"{title}: {told}")}">'
    ]
    x = 0.0
    for number, name in enumerate(parts):
        width = shares.get(name, 0.0) * SHARE_WIDTH
        if width > 0.0:
            drawn.append(
                f'<rect x="{x:.1f}" y="0" width="{width:.1f}" height="{SHARE_HEIGHT:g}" '
                f'fill="var(--part-{number % len(COLORS)})"><title>{escape(name)}: {shares[name]:.0%}</title></rect>'
            )
        x += width
    return "".join([*drawn, "</svg>"])


def share_key(parts: Sequence[str]) -> Iterable[str]:
    """The key of share bars."""
    yield "<p>"
    for number, name in enumerate(parts):
        yield (
            f'<span class="key-of"><svg class="key" viewBox="0 0 32 8" aria-hidden="true"><rect width="32" height="8" '
            f'fill="var(--part-{number % len(COLORS)})"/></svg>{escape(name)}</span> '
        )
    yield "</p>"
