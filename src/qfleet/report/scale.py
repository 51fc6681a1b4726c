"""Scales of charts: from numbers to pixels, linear or by powers of ten, with round numbers to read them by. Floor 7."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scale:
    """Numbers from `low` to `high` as pixels from `begin` to `end`.

    Args:
        low, high: the numbers at the ends; above 0 where `is_log`.
        begin, end: pixels; `end` may be the smaller one, as in y.
        is_log: equal factors are equally far apart.
    """

    low: float
    high: float
    begin: float
    end: float
    is_log: bool = False

    def pixel(self, value: float) -> float:
        """Where a number lies."""
        low, high = self._warped(self.low), self._warped(self.high)
        return self.begin + (self._warped(value) - low) / ((high - low) or 1.0) * (self.end - self.begin)

    def ticks(self, most: int = 5) -> list[float]:
        """At most `most` round numbers."""
        return log_ticks(self.low, self.high, most) if self.is_log else ticks(self.low, self.high, most)

    def _warped(self, value: float) -> float:
        return math.log10(value) if self.is_log else value


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


def log_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """At most `most` of 1, 2 and 5 times powers of ten, or powers alone; linear ones where a narrow span has few."""
    if not high > low:
        return [low]
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1,)):
        found = [factor * 10.0**power for power in powers for factor in factors]
        found = [float(f"{value:.12g}") for value in found if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
        if len(found) <= most:
            break
    if len(found) < (3 if 2 in factors else 2):
        return ticks(low, high, most)
    return found[:: -(-len(found) // most)]


def tick_label(value: float) -> str:
    """20,000 as 20k, so that labels do not run into each other."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def widened(low: float, high: float) -> tuple[float, float]:
    """With a little room above and below, so that no line lies on the frame."""
    room = 0.04 * (high - low) or max(abs(high), 1.0) * 0.1
    return low - room, high + room
