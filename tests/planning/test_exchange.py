"""What two chains of calls tell of the cores that they share: hand-worked, with nothing measured."""

from __future__ import annotations

import dataclasses

import pytest

from qfleet.planning.exchange import Chains, crowding_of
from qfleet.run_config import build_config

CONFIG = build_config({}, [("env.id", "CartPole-v1")])
# Calls of 1 ms, one after the other, and a coordinator that takes no time.
CHAINS = Chains(alone=1e-3, both=1e-3, role_cpu=1e-3, coordinator_cpu=0.0)


def test_two_chains_as_quick_as_one_do_not_crowd() -> None:
    assert crowding_of(CHAINS, CONFIG, 2.0) == 1.0
    quicker = dataclasses.replace(CHAINS, both=0.9e-3)
    assert crowding_of(quicker, CONFIG, 2.0) == 1.0


def test_chains_that_keep_both_cores_busy_are_slower_by_the_crowding() -> None:
    slower = dataclasses.replace(CHAINS, both=1.25e-3)
    assert crowding_of(slower, CONFIG, 2.0) == pytest.approx(1.25, rel=0.01)


def test_sharing_one_core_is_no_crowding() -> None:
    shared = dataclasses.replace(CHAINS, both=2e-3)
    assert crowding_of(shared, CONFIG, 1.0) == 1.0
    assert crowding_of(shared, CONFIG, 2.0) == pytest.approx(2.0, rel=0.01), "but of two it is"


def test_with_more_cores_two_chains_see_only_a_part_of_it() -> None:
    # Of five cores two are busy: a quarter of what all five take from each other.
    slower = dataclasses.replace(CHAINS, both=1.25e-3)
    assert crowding_of(slower, CONFIG, 5.0) == pytest.approx(2.0, rel=0.01)


def test_waiting_for_the_coordinator_is_no_crowding() -> None:
    # 1 ms at the role, then 1 ms at the one coordinator: two chains take turns there and lose nothing.
    chains = Chains(alone=2e-3, both=2e-3, role_cpu=1e-3, coordinator_cpu=1e-3)
    assert crowding_of(chains, CONFIG, 2.0) == 1.0
    # 2 ms there for calls of 1 ms: it is busy all the time, and each chain's next comes after 4 ms.
    saturated = Chains(alone=3e-3, both=4e-3, role_cpu=1e-3, coordinator_cpu=2e-3)
    assert crowding_of(saturated, CONFIG, 3.0) == 1.0


def test_what_one_chain_takes_beyond_its_work_is_latency() -> None:
    # 1 ms of work in 2 ms: half of the time no core is busy, and two chains in step would crowd in the other half,
    # which 1.5 ms instead of 1 ms makes 1.5.
    chains = Chains(alone=2e-3, both=2.5e-3, role_cpu=1e-3, coordinator_cpu=0.0)
    assert crowding_of(chains, CONFIG, 2.0) == pytest.approx(1.5, rel=0.01)


def test_work_beside_the_coordinators_counts_once() -> None:
    # The role's process is busy for 1.5 ms a call, half a millisecond of it after it has answered.
    chains = Chains(alone=1e-3, both=1e-3, role_cpu=1.5e-3, coordinator_cpu=0.0)
    assert crowding_of(chains, CONFIG, 2.0) == 1.0
