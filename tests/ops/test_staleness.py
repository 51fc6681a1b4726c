"""The wait rule, the staleness weight and the bound of the policy lag by hand."""

from __future__ import annotations

import pytest

from qfleet.ops.staleness import lag_is_bounded, may_start, staleness_scale


@pytest.mark.parametrize(
    ("clock", "slowest_clock", "bound", "expected"),
    [
        (0, 0, 0, True),  # all at the start
        (5, 5, 0, True),  # the barrier: all have finished 5
        (6, 5, 0, False),  # one clock ahead of a barrier
        (7, 5, 2, True),  # 7 - 5 = 2, exactly the bound
        (8, 5, 2, False),  # 8 - 5 = 3
        (8, 6, 2, True),  # the slowest moved on
        (99, 0, None, True),  # asynchronous: however far
    ],
)
def test_may_start(clock: int, slowest_clock: int, bound: int | None, expected: bool) -> None:
    assert may_start(clock, slowest_clock, bound) is expected


@pytest.mark.parametrize("bound", [0, 1, 3])
def test_a_fast_worker_beside_one_that_never_finishes_does_bound_plus_one_clocks(bound: int) -> None:
    # It starts its clocks 1, ..., bound + 1 at leads 0, ..., bound, and waits at the lead bound + 1.
    clock = 0
    while clock < 99 and may_start(clock, 0, bound):
        clock += 1
    assert clock == bound + 1


def test_refusals() -> None:
    with pytest.raises(ValueError, match="bound is -1"):
        may_start(0, 0, -1)
    with pytest.raises(ValueError, match="clock 3 is behind the slowest, 4"):
        may_start(3, 4, None)
    with pytest.raises(ValueError, match="staleness is -1"):
        staleness_scale(-1)


@pytest.mark.parametrize(("staleness", "expected"), [(0, 1.0), (1, 0.5), (3, 0.25)])  # 1/1, 1/2, 1/4
def test_staleness_scale(staleness: int, expected: float) -> None:
    assert staleness_scale(staleness) == expected


@pytest.mark.parametrize(
    ("versions", "next_version", "batch_size", "bound", "expected"),
    [
        ([], 7, 2, 0, True),
        ([7, 7], 7, 2, 0, True),  # both in the next update, by its own parameters
        ([7, 7, 7], 7, 2, 0, False),  # the third one meets version 8
        ([7, 7, 7], 7, 2, 1, True),
        ([7, 4, 7], 7, 2, 2, False),  # the oldest one is 3 behind already
        ([7, 4, 7], 7, 2, 3, True),
        ([6, 5, 6, 5], 6, 2, 1, True),  # the two of version 5 now (lag 1), then those of 6 at 7 (lag 1)
        ([6, 5, 6, 5, 6], 6, 2, 1, False),  # the fifth at 8 (lag 2)
        ([3, 2, 1], 3, 1, 2, True),  # 1 at 3, 2 at 4, 3 at 5: in the order given the last lag would be 4
    ],
)
def test_lag_is_bounded(versions: list[int], next_version: int, batch_size: int, bound: int, expected: bool) -> None:
    assert lag_is_bounded(versions, next_version, batch_size, bound) is expected
