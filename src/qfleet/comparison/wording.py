"""How the numbers of a comparison are written, in the terminal and on the page alike. Floor 7."""

from __future__ import annotations

import math

from qfleet.comparison.measures import Format, Measure
from qfleet.comparison.results import Comparison, Estimate, VariantResult

NEVER = "never"
NOTHING = "-"
AXIS_TITLES = {"env_steps": "env steps", "updates": "updates", "seconds": "seconds of training"}


def written(value: float, format: Format) -> str:
    """A number as it is shown; infinity is where a threshold was never reached."""
    if not math.isfinite(value):
        return NEVER
    if format == "bytes" and value == 0:
        return "0"
    if format == "bytes":
        return f"{value / 1e6:,.3g} MB" if value < 1e9 else f"{value / 1e9:,.3g} GB"
    digits = {"return": 1, "count": 0, "seconds": 2, "rate": 0, "lag": 2}[format]
    return f"{value:,.{digits}f}"


def middle(estimate: Estimate | None, format: Format) -> str:
    """The mean or the median."""
    return NOTHING if estimate is None else written(estimate.value, format)


def interval(estimate: Estimate | None, format: Format) -> str:
    """low..high; nothing where there is no spread to tell of, as with a single seed."""
    if estimate is None or estimate.low == estimate.high:
        return ""
    low, high = written(estimate.low, format), written(estimate.high, format)
    return f"{low.removesuffix(' MB') if high.endswith(' MB') else low}..{high}"


def reached(variant: VariantResult) -> str:
    """How many of its finished seeds came to the threshold."""
    there = variant.measures.get("env_steps_to_threshold")
    return NOTHING if there is None else f"{there.num_finite} of {len(there.seeds)}"


def title_of(comparison: Comparison) -> str:
    """What was compared, in a line."""
    seeds = comparison.seeds
    named = f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds"
    return f"{comparison.env}: {named}, {budget_of(comparison)} each"


def budget_of(comparison: Comparison) -> str:
    """The budget of a cell."""
    ((kind, amount),) = comparison.budget.items()
    return f"{amount:,g} {kind.replace('_', ' ')}"


def is_shown(measure: Measure, comparison: Comparison) -> bool:
    """Whether any variant has a number other than 0 for it."""
    found = [variant.measures.get(measure.name) for variant in comparison.variants]
    return any(one is not None and any(one.seeds) for one in found)


def notes(comparison: Comparison) -> list[str]:
    """What a reader has to know before believing the numbers, a sentence each."""
    found = []
    num_seeds = len(comparison.seeds)
    if num_seeds == 1:
        found.append("One seed says nothing of the spread: there are no intervals.")
    elif num_seeds <= 3:
        found.append(f"With {num_seeds} seeds a 95% bootstrap interval goes from the least to the most.")
    if any(variant.engine == "inline" for variant in comparison.variants):
        found.append(
            "Engine inline runs all roles in one thread: seconds are of all the work, not of machines side by side."
        )
    behind = [variant for variant in comparison.variants if variant.num_finished < variant.num_cells]
    found += [f"{one.label}: {one.num_finished} of {one.num_cells} seeds are finished." for one in behind]
    return found
