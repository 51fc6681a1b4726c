"""Colours and dashes of series, by day and by night; in every chart and picture alike. Floor 7."""

from __future__ import annotations

# Okabe and Ito (2008), which the colour-blind can tell apart; dashes tell them apart in grey.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
# The same, lighter where the ground is dark.
DARK_COLORS = ("#4aa8e8", "#ff8b4a", "#2fc995", "#e7a1ca", "#a5dcff", "#f2b233", "#ffffff")
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.5, 1.5), (7, 2, 1.5, 2))


def style_of(number: int) -> tuple[str, tuple[float, ...]]:
    """Colour and dashes of the series with this number, from 0; no two of the first 28 share both."""
    return COLORS[number % len(COLORS)], DASHES[number % len(DASHES)]


def dash_array(number: int) -> str:
    """The dashes of a series as SVG's attribute, with a space before it; empty for a whole line."""
    dashes = " ".join(f"{2 * length:g}" for length in style_of(number)[1])
    return f' stroke-dasharray="{dashes}"' if dashes else ""


def color_rules(num_series: int) -> tuple[str, str]:
    """Style declarations by day and by night: --series-<k> of each series, --part-<k> of what a whole is made of."""
    numbers = range(num_series)
    parts = range(len(COLORS))
    light = [f"--series-{number}: {style_of(number)[0]};" for number in numbers]
    dark = [f"--series-{number}: {DARK_COLORS[number % len(DARK_COLORS)]};" for number in numbers]
    light += [f"--part-{number}: {COLORS[number]};" for number in parts]
    dark += [f"--part-{number}: {DARK_COLORS[number]};" for number in parts]
    return " ".join(light), " ".join(dark)
