"""The pacing rule by hand."""

from __future__ import annotations

import pytest

from qfleet.ops.pacing import measured_samples_per_insert, updates_allowed


@pytest.mark.parametrize(
    ("num_inserted", "num_samples", "ratio", "expected"),
    [
        (50, 0, 8.0, 0),  # before min_transitions = 100
        (100, 0, 8.0, 0),  # exactly there: no insert counts yet
        (103, 0, 8.0, 0),  # 3 * 8 = 24 < 32
        (104, 0, 8.0, 1),  # 4 * 8 = 32 = one batch of 32
        (112, 32, 8.0, 2),  # 12 * 8 - 32 = 64
        (112, 96, 8.0, 0),  # used up
        (112, 999, 8.0, 0),  # ahead: never negative
        (227, 0, 0.25, 0),  # 127 / 4 = 31.75
        (228, 0, 0.25, 1),  # 128 / 4 = 32
    ],
)
def test_updates_allowed(num_inserted: int, num_samples: int, ratio: float, expected: int) -> None:
    assert updates_allowed(num_inserted, num_samples, 100, ratio, 32) == expected


def test_the_measured_ratio_counts_from_min_transitions() -> None:
    assert measured_samples_per_insert(150, 400, 100) == 8.0  # 400 / 50, not 400 / 150
    assert measured_samples_per_insert(100, 0, 100) == 0.0
    assert measured_samples_per_insert(20, 0, 100) == 0.0
