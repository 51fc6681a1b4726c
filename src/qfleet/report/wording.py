"""How numbers are written, in the terminal and on every page alike. Floor 7."""

from __future__ import annotations

import math

from qfleet.report.estimates import Estimate
from qfleet.report.measures import Format

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
