"""Where a measured number is met: the root of a simulated one. Floor 7."""

from __future__ import annotations

from collections.abc import Callable

NUM_HALVINGS = 9


def bisect(above: Callable[[float], float], highest: float) -> float:
    """Where a falling function crosses 0, between 0 and `highest`, to three digits; near 0 it looks first."""
    low, high = 0.0, highest
    for _ in range(NUM_HALVINGS):
        middle = (low + high) / 2 if low else high / 8
        if above(middle) > 0:
            low = middle
        else:
            high = middle
    return float(f"{(low + high) / 2:.3g}")
