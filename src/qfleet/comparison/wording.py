"""How the numbers of a comparison are written, in the terminal and on the page alike. Floor 7."""

from __future__ import annotations

from qfleet.comparison.results import Comparison, VariantResult
from qfleet.report.measures import Measure
from qfleet.report.wording import NOTHING


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
