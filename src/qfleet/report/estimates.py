"""Numbers and curves over seeds, with 95% bootstrap intervals. Floor 7."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qfleet.ops.bootstrap import Statistic, bootstrap_interval

LEVEL = 0.95
NUM_POINTS = 80  # of a curve
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number over seeds.

    Attributes:
        value: mean or median; infinity where half the seeds or more never got there.
        low, high: the interval.
        seeds: each seed's own number, in the order of seeds; without those that have none.
    """

    value: float
    low: float
    high: float
    seeds: list[float]

    @property
    def num_finite(self) -> int:
        """How many seeds got there."""
        return sum(math.isfinite(value) for value in self.seeds)


@dataclass(frozen=True, slots=True)
class Curve:
    """Mean validation return over seeds, with its interval, where all seeds have values."""

    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]


def estimate(values: Sequence[float], statistic: Statistic = "mean") -> Estimate | None:
    """A number over seeds with its interval; None without values."""
    if not values:
        return None
    low, high = bootstrap_interval(values, statistic, LEVEL)
    value = np.median(values) if statistic == "median" else np.mean(values)
    return Estimate(float(value), float(low), float(high), list(values))


def mean_curve(curves: Sequence[tuple[Floats, Floats]]) -> Curve:
    """The mean of several seeds' curves with its interval, each joined by straight lines between its points.

    It goes from where the last seed begins to where the first seed ends: beyond that a mean would be of fewer seeds.
    Empty where the seeds have no such part in common.

    Args:
        curves: x in ascending order and y, float64 [N] each; those without points are left out.
    """
    found = [(x, y) for x, y in curves if len(x)]
    if not found or max(x[0] for x, _ in found) > min(x[-1] for x, _ in found):
        return Curve([], [], [], [])
    begin, end = max(x[0] for x, _ in found), min(x[-1] for x, _ in found)
    grid = np.linspace(begin, end, NUM_POINTS) if end > begin else np.array([begin])
    values = np.stack([np.interp(grid, x, returns) for x, returns in found])
    low, high = bootstrap_interval(values, "mean", LEVEL)
    return Curve(grid.tolist(), values.mean(axis=0).tolist(), low.tolist(), high.tolist())
