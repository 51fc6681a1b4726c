"""The curves of a plan, for its page and its picture alike. Floor 7."""

from __future__ import annotations

from dataclasses import dataclass

from qfleet.planning.results import PlanResult, Row

IDEAL, FRONT = "ideal", "Pareto front"


@dataclass(frozen=True, slots=True)
class Curve:
    """A line through the sizes of a strategy, or through what is not one: the ideal, or the front."""

    label: str
    x: list[float]
    y: list[float]


def timed(result: PlanResult) -> list[str]:
    """Strategies of which at least one size could be simulated; their places are those of their colours."""
    return list(dict.fromkeys(row.label for row in result.rows if row.timing is not None))


def speedups(result: PlanResult) -> list[Curve]:
    """Speed-up against workers, strategy by strategy."""
    found = []
    for label in timed(result):
        own = [row for row in result.rows if row.label == label and row.speedup is not None]
        found.append(Curve(label, [float(row.num_workers) for row in own], [row.speedup or 0.0 for row in own]))
    return found


def ideal(result: PlanResult) -> Curve:
    """As many times as fast as there are workers, over the sizes planned."""
    sizes = [float(row.num_workers) for row in result.rows if row.speedup is not None]
    ends = sorted({min(sizes), max(sizes)}) if sizes else []
    return Curve(IDEAL, ends, ends)


def costs(result: PlanResult) -> list[Curve]:
    """Seconds against money, on demand or on spot, whichever is less; strategy by strategy."""
    return [_priced(label, [row for row in result.rows if row.label == label]) for label in timed(result)]


def front(result: PlanResult) -> Curve:
    """Through those that nobody beats in both, the cheapest first."""
    rows = [row for row in result.rows if row.is_on_front]
    return _priced(FRONT, sorted(rows, key=lambda row: row.cost.least if row.cost is not None else 0.0))


def _priced(label: str, rows: list[Row]) -> Curve:
    found = [row.cost for row in rows if row.cost is not None]
    return Curve(label, [cost.least for cost in found], [cost.seconds for cost in found])
