"""Histogram of lags in versions (staleness, policy lag, priority age): exact where it matters, bounded everywhere.

Buckets: 0, 1, .. 15, then [16, 31], [32, 63], .. up to [2^31, ...). Floor 6.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

NUM_EXACT = 16
NUM_BUCKETS = NUM_EXACT + 28  # [2^4, 2^5) .. [2^31, ...)


class LagHistogram:
    """Counts of non-negative integers.

    Attributes:
        counts: by bucket, [NUM_BUCKETS].
        num, total, largest: of all values added, exact.
    """

    def __init__(self) -> None:
        self.counts = [0] * NUM_BUCKETS
        self.num = 0
        self.total = 0
        self.largest = 0

    def add(self, values: Iterable[int]) -> None:
        """Count values; a negative one counts as 0."""
        for value in values:
            lag = max(0, int(value))
            self.counts[bucket_of(lag)] += 1
            self.num += 1
            self.total += lag
            self.largest = max(self.largest, lag)

    def percentile(self, percent: float) -> int:
        """The smallest lag that at least `percent` of the values do not exceed; above 15 its bucket's upper end."""
        rank = max(1, math.ceil(percent / 100.0 * self.num))
        seen = 0
        for bucket, count in enumerate(self.counts):
            seen += count
            if seen >= rank:
                return min(bounds(bucket)[1], self.largest)
        return 0

    def numbers(self) -> dict[str, float]:
        """mean, p50, p95 and max; empty without values."""
        if not self.num:
            return {}
        return {
            "mean": round(self.total / self.num, 4),
            "p50": self.percentile(50),
            "p95": self.percentile(95),
            "max": self.largest,
        }

    def rows(self) -> list[tuple[int, int, int]]:
        """(lowest, highest, count) of the buckets that hold anything."""
        return [(*bounds(bucket), count) for bucket, count in enumerate(self.counts) if count]

    def summary(self) -> dict[str, object]:
        """`numbers`, the count, and all rows, as JSON values."""
        return {**self.numbers(), "num": self.num, "rows": [list(row) for row in self.rows()]}

    def state_dict(self) -> dict[str, object]:
        """JSON values."""
        return {"counts": list(self.counts), "total": self.total, "largest": self.largest}

    @classmethod
    def of_state(cls, state: dict[str, object]) -> LagHistogram:
        """From `state_dict`."""
        histogram = cls()
        counts = state["counts"]
        assert isinstance(counts, list)
        histogram.counts = [int(count) for count in counts]
        histogram.num = sum(histogram.counts)
        histogram.total, histogram.largest = int(str(state["total"])), int(str(state["largest"]))
        return histogram


def bucket_of(lag: int) -> int:
    """Index of a lag's bucket."""
    return lag if lag < NUM_EXACT else min(NUM_EXACT + lag.bit_length() - 5, NUM_BUCKETS - 1)


def bounds(bucket: int) -> tuple[int, int]:
    """Lowest and highest lag of a bucket; the last one has no end, its highest is that of 63 bits."""
    if bucket < NUM_EXACT:
        return bucket, bucket
    first = 16 << (bucket - NUM_EXACT)
    return first, (2 * first - 1 if bucket < NUM_BUCKETS - 1 else 2**63 - 1)
