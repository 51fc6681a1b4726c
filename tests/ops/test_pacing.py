"""The pacing rule by hand, and held against random fleets."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qfleet.ops.pacing import Pace, insert_slack, measured_samples_per_insert, updates_allowed


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
    assert Pace(num_inserted, num_samples, 100, ratio, 32).updates_allowed() == expected


def test_the_measured_ratio_counts_from_min_transitions() -> None:
    assert measured_samples_per_insert(150, 400, 100) == 8.0  # 400 / 50, not 400 / 150
    assert measured_samples_per_insert(100, 0, 100) == 0.0
    assert measured_samples_per_insert(20, 0, 100) == 0.0


def test_what_is_reserved_is_not_given_twice() -> None:
    pace = Pace(112, 0, 100, 8.0, 32)  # 12 * 8 = 96 samples = 3 updates
    pace.reserve(2)
    assert (pace.num_samples_reserved, pace.updates_allowed()) == (64, 1)
    with pytest.raises(ValueError, match="cannot reserve 2 updates: 1 are allowed"):
        pace.reserve(2)
    pace.release(2)  # their role died: another one may do them
    assert (pace.num_samples_reserved, pace.updates_allowed()) == (0, 3)
    with pytest.raises(ValueError, match="cannot release 1 updates"):
        pace.release(1)
    for change in (pace.reserve, pace.release):
        with pytest.raises(ValueError, match="-1 updates"):
            change(-1)


def test_what_is_owed_for_lost_transitions_is_dropped() -> None:
    pace = Pace(112, 32, 100, 8.0, 32)
    assert pace.updates_allowed() == 2
    pace.drop_owed()
    assert (pace.updates_allowed(), pace.num_samples_reserved) == (0, 96)
    pace.num_inserted += 4
    assert pace.updates_allowed() == 1, "what comes next counts in full"
    early = Pace(50, 0, 100, 8.0, 32)
    early.drop_owed()
    assert early.num_samples_reserved == 0


@pytest.mark.parametrize(
    ("num_inserted", "num_samples", "slack", "num_in_flight", "expected"),
    [
        (0, 0, 8, 0, 108),  # min_transitions = 100, then 8 ahead
        (90, 0, 8, 10, 8),  # 10 of the 18 are on their way
        (108, 0, 8, 0, 0),  # 8 ahead: training must catch up
        (108, 32, 8, 0, 4),  # one batch of 32 makes up for 32 / 8 = 4 inserts
        (108, 36, 8, 0, 4),  # 4.5 inserts: half a transition is none
        (108, 32, 8, 4, 0),
        (120, 0, 8, 0, 0),  # far ahead: never negative
        (104, 32, 8, 0, 8),  # training used all up: the whole slack
    ],
)
def test_inserts_allowed(num_inserted: int, num_samples: int, slack: float, num_in_flight: int, expected: int) -> None:
    assert Pace(num_inserted, num_samples, 100, 8.0, 32).inserts_allowed(slack, num_in_flight) == expected


def test_insert_slack_by_hand() -> None:
    assert insert_slack(8.0, 64, 1) == 16.0  # two batches of 64 / 8 = 8 inserts; one and 1 + 1 in flight is less
    assert insert_slack(8.0, 64, 20) == 29.0  # 8 + 20 + 1
    assert insert_slack(64.0, 32, 1) == 2.5  # 0.5 + 1 + 1


def run_fleet(
    pace: Pace,
    slack: float,
    rollouts: list[int],
    num_batches: int,
    seed: int,
    first: tuple[str, ...] = (),
    death_rate: float = 0.0,
) -> None:
    """Actors that bring `rollouts` transitions a call and two learners of one update a call, in random order.

    Calls named in `first` go before the others whenever they may: the fast side. Some calls die with their role. Fails
    where nobody may go on, or where samples exceed what the inserts allow.
    """
    order = random.Random(seed)
    collecting: list[int] = []
    training, num_done = 0, 0
    while num_done < num_batches:
        choices = ["insert"] * bool(collecting) + ["update"] * bool(training)
        in_flight = sum(collecting)
        idle = list(rollouts)
        for rollout in collecting:
            idle.remove(rollout)
        idle = [rollout for rollout in idle if rollout <= pace.inserts_allowed(slack, in_flight)]
        choices += ["collect"] * bool(idle)
        choices += ["train"] * (training < 2 and pace.updates_allowed() > 0)
        assert choices, f"both sides wait: {pace}"
        choice = order.choice([choice for choice in choices if choice in first] or choices)
        dies = order.random() < death_rate
        if choice == "collect":
            collecting.append(order.choice(idle))
        elif choice == "insert":
            rollout = collecting.pop(order.randrange(len(collecting)))
            pace.num_inserted += 0 if dies else rollout
        elif choice == "train":
            pace.reserve(1)
            training += 1
        else:
            training -= 1
            if dies:
                pace.release(1)
            else:
                num_done += 1
        counted = pace.num_inserted - pace.min_transitions
        assert pace.num_samples_reserved <= max(0.0, counted * pace.samples_per_insert)


COLLECTING, TRAINING = ("collect", "insert"), ("train", "update")


@given(
    st.floats(0.05, 64.0),
    st.integers(1, 256),
    st.lists(st.integers(1, 40), min_size=1, max_size=5),
    st.integers(0, 2**32),
    st.sampled_from([(), COLLECTING, TRAINING]),
)
def test_neither_side_waits_for_ever_and_samples_never_overtake(
    ratio: float, batch_size: int, rollouts: list[int], seed: int, first: tuple[str, ...]
) -> None:
    slack = insert_slack(ratio, batch_size, sum(rollouts))
    run_fleet(Pace(0, 0, 50, ratio, batch_size), slack, rollouts, 20, seed, first, 0.1)


@pytest.mark.parametrize("first", [(), COLLECTING, TRAINING], ids=["even", "fast actors", "fast learners"])
@pytest.mark.parametrize(
    ("ratio", "batch_size", "rollouts"),
    [(8.0, 256, [4, 4, 4, 4]), (1.0, 32, [8, 8, 8]), (0.25, 32, [16] * 7), (0.3, 7, [5, 11])],
)
def test_the_measured_ratio_is_within_2_percent_after_100_batches(
    ratio: float, batch_size: int, rollouts: list[int], first: tuple[str, ...]
) -> None:
    # In each case the rollouts together are less than a batch's worth of inserts (32, 32, 128, 23.3), so the slack is
    # two batches' worth: samples / inserts is at least 100 / 102 of the ratio from the hundredth batch on.
    slack = insert_slack(ratio, batch_size, sum(rollouts))
    assert slack == 2 * batch_size / ratio
    pace = Pace(0, 0, 1000, ratio, batch_size)
    for seed in range(100):
        run_fleet(pace, slack, rollouts, 1 if seed else 100, seed, first)  # 100 batches, then look after each
        measured = measured_samples_per_insert(pace.num_inserted, pace.num_samples_reserved, pace.min_transitions)
        assert 0.98 * ratio <= measured <= ratio * (1 + 1e-12)


def test_with_fast_actors_the_slack_decides_the_ratio() -> None:
    # 50 batches of slack: after 100 of 32 samples, fast actors are 150 batches' worth of inserts in, 100 / 150 = 0.67.
    pace = Pace(0, 0, 1000, 1.0, 32)
    run_fleet(pace, 50 * 32.0, [8, 8, 8], 100, 0, COLLECTING)
    measured = measured_samples_per_insert(pace.num_inserted, pace.num_samples_reserved, pace.min_transitions)
    assert measured == pytest.approx(2 / 3, abs=0.01)


def test_less_slack_than_a_rollout_needs_is_a_standstill() -> None:
    # One batch of 32 at ratio 1 takes 32 inserts; with a slack of 32 and rollouts of 24 the second one is never asked
    # for (24 + 24 > 32), and 24 inserts allow no update.
    with pytest.raises(AssertionError, match="both sides wait"):
        run_fleet(Pace(0, 0, 0, 1.0, 32), 32.0, [24], 1, 0)
