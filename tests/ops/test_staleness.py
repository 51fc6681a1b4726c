"""The wait rule and the staleness weight by hand."""

from __future__ import annotations

import pytest

from qfleet.ops.staleness import may_start, staleness_scale


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
