"""Lags: buckets, percentiles by hand, and against the sorted values themselves."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qfleet.histogram import NUM_BUCKETS, LagHistogram, bounds, bucket_of


@pytest.mark.parametrize(
    ("lag", "bucket", "low", "high"),
    [
        (0, 0, 0, 0),
        (15, 15, 15, 15),
        (16, 16, 16, 31),  # exact up to 15, then powers of two
        (31, 16, 16, 31),
        (32, 17, 32, 63),
        (1000, 21, 512, 1023),  # 512 = 16 * 2^5
        (2**40, NUM_BUCKETS - 1, 2**31, 2**63 - 1),
    ],
)
def test_buckets_by_hand(lag: int, bucket: int, low: int, high: int) -> None:
    assert bucket_of(lag) == bucket
    assert bounds(bucket) == (low, high)


def test_numbers_by_hand() -> None:
    histogram = LagHistogram()
    histogram.add([0, 0, 1, 3, 40])
    histogram.add([-7])  # a clock that ran backwards is no lag
    # Sorted: 0 0 0 1 3 40. The 3rd of 6 is the median, the 6th (5.7 rounded up) is p95: the bucket 32 .. 63, of which
    # nothing is above 40. Mean 44 / 6.
    assert histogram.numbers() == {"mean": round(44 / 6, 4), "p50": 0, "p95": 40, "max": 40}
    assert histogram.rows() == [(0, 0, 3), (1, 1, 1), (3, 3, 1), (32, 63, 1)]
    assert LagHistogram().numbers() == {}


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=60), st.sampled_from([1, 50, 95, 100]))
def test_a_percentile_is_its_values_bucket(values: list[int], percent: int) -> None:
    histogram = LagHistogram()
    histogram.add(values)
    exact = sorted(values)[max(1, math.ceil(percent / 100 * len(values))) - 1]
    assert exact <= histogram.percentile(percent) <= min(max(exact, bounds(bucket_of(exact))[1]), max(values))
    assert LagHistogram.of_state(histogram.state_dict()).summary() == histogram.summary()
    assert sum(count for _, _, count in histogram.rows()) == len(values)
