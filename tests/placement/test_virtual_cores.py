"""Cores that roles share, against a naive twin that goes from event to event and gives everybody an equal part."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qfleet.placement.cluster_file import Machine
from qfleet.placement.virtual_clock import VirtualClock
from qfleet.placement.virtual_cores import VirtualCores

Job = tuple[float, float]  # begins, seconds


def run(
    jobs: list[Job], cores: float, dropped: dict[int, float] | None = None, crowding: float = 1.0
) -> dict[int, float]:
    """When each job ends."""
    clock = VirtualClock()
    machine = VirtualCores((Machine(roles="worker-*", cores=cores, crowding=crowding),), clock)
    ends: dict[int, float] = {}

    def end(time: float, index: int) -> None:
        ends[index] = time

    for index, (begins, seconds) in enumerate(jobs):
        clock.at(begins, machine.work, f"worker-{index}", seconds, end, index)
    for index, moment in (dropped or {}).items():
        clock.at(moment, machine.drop, f"worker-{index}")
    clock.run(float("inf"))
    return ends


def naive(jobs: list[Job], cores: float) -> dict[int, float]:
    """The same, looking at everybody at every event."""
    left = {index: seconds for index, (_, seconds) in enumerate(jobs)}
    time, ends = 0.0, {}
    while left:
        busy = [index for index in left if jobs[index][0] <= time]
        to_come = [jobs[index][0] - time for index in left if jobs[index][0] > time]
        rate = min(1.0, cores / len(busy)) if busy else 1.0
        step = min([*to_come, *(left[index] / rate for index in busy)])
        time += step
        for index in busy:
            left[index] -= step * rate
            if left[index] <= 1e-9:
                ends[index] = time
                del left[index]
    return ends


def test_two_on_one_core_take_turns_in_no_time() -> None:
    # The first has 1 s to itself, then half of a core: its other second takes 2, until 3. Then the second, which has
    # had one of its 3 s by then, has the core to itself: until 5.
    assert run([(0.0, 2.0), (1.0, 3.0)], 1.0) == {0: pytest.approx(3.0), 1: pytest.approx(5.0)}


def test_who_dies_leaves_its_part_to_the_others() -> None:
    # Half of a core for 1 s, then all of it for 1.5 s.
    assert run([(0.0, 2.0), (0.0, 9.0)], 1.0, {1: 1.0}) == {0: pytest.approx(2.5)}


def test_busy_cores_take_from_each_other() -> None:
    # Three cores, crowding 1.5: alone at full speed, two at 1 / 1.25, three at 1 / 1.5. All begin at once with 1, 2 and
    # 3 s: the first ends at 1.5; the second has 1 s left, at 1 / 1.25: at 2.75; the third has 1 s left then: at 3.75.
    jobs = [(0.0, 1.0), (0.0, 2.0), (0.0, 3.0)]
    assert run(jobs, 3.0, crowding=1.5) == pytest.approx({0: 1.5, 1: 2.75, 2: 3.75})


def test_cores_to_spare_change_nothing() -> None:
    assert run([(0.0, 2.0), (1.0, 3.0)], 2.0) == {0: 2.0, 1: 4.0}


@given(
    st.lists(
        st.tuples(st.integers(0, 40).map(lambda n: n / 4), st.integers(1, 40).map(lambda n: n / 4)),
        min_size=1,
        max_size=8,
    ),
    st.sampled_from([0.5, 1.0, 1.5, 2.0, 3.0]),
)
def test_it_is_what_the_naive_twin_says(jobs: list[Job], cores: float) -> None:
    assert run(jobs, cores) == pytest.approx(naive(jobs, cores))
