"""What a plan says against closed forms: Amdahl's bound, the slowest of N, asynchronous rates, shared cores, payloads.

Nothing is computed; the strategies run unchanged on the roles' timing twins.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from qfleet.planning.saturation import limit_of

Time = Callable[..., Any]


@pytest.mark.parametrize(("num_workers", "limit"), [(1, "workers"), (4, "workers"), (16, "server compute")])
def test_a_saturated_server_makes_one_update_in_its_service_time(timed: Time, num_workers: int, limit: str) -> None:
    # 9 s at the worker, 1 s at the server: N / 10 a second until the server is never idle, then 1 a second (Amdahl).
    compute = [{"method": "gradient", "seconds": 9.0}, {"method": "update", "seconds": 1.0}]
    timing = timed("parameter_server:wait=async", num_workers, compute)
    assert timing.updates == pytest.approx(min(num_workers / 10.0, 1.0), rel=0.02)
    assert limit_of(timing).name == limit
    assert timing.shares["server-*"].mean == pytest.approx(min(num_workers / 10.0, 1.0), rel=0.03)


@pytest.mark.parametrize("num_workers", [1, 8, 32])
def test_a_synchronous_step_waits_for_the_slowest_of_n_shifted_exponentials(timed: Time, num_workers: int) -> None:
    # E max of N = shift + scale * (1 + 1/2 + ... + 1/N); then 0.5 s at the server. Messages are free.
    compute = [
        {"method": "gradient", "distribution": "shifted_exponential", "shift": 2.0, "scale": 1.0},
        {"method": "update", "seconds": 0.5},
    ]
    timing = timed("parameter_server:wait=sync", num_workers, compute, num_calls=1500)
    slowest = 2.0 + sum(1.0 / n for n in range(1, num_workers + 1))
    assert 1.0 / timing.updates == pytest.approx(slowest + 0.5, rel=0.02)
    assert timing.staleness == 0.0


def test_all_reduce_waits_for_the_slowest_at_every_update(timed: Time) -> None:
    compute = [{"method": "train_together", "distribution": "shifted_exponential", "shift": 2.0, "scale": 1.0}]
    timing = timed("all_reduce", 8, compute, num_calls=1500)
    assert 1.0 / timing.updates == pytest.approx(2.0 + sum(1.0 / n for n in range(1, 9)), rel=0.02)


def test_asynchronous_workers_make_n_updates_in_their_time_and_the_round_trip(timed: Time) -> None:
    # Of one worker: collect (free) and gradient (3 s), two calls, each with a request and an answer of 0.25 s, and one
    # fetch of what the server has published since (asked and sent, 0.5 s). It acts on its own push merged, which takes
    # the server, beside no time of its own, a request, a fetch and an answer: 1.0 s. In all 3 + 2 * 0.5 + 0.5 + 1.0.
    compute = [{"method": "gradient", "seconds": 3.0}]
    timing = timed("parameter_server:wait=async", 1, compute, network={"latency": 0.25, "bandwidth": 1e30})
    assert 1.0 / timing.updates == pytest.approx(5.5, rel=0.02)


def test_below_saturation_asynchronous_rates_grow_with_the_workers(timed: Time) -> None:
    # Whatever the tail only the mean counts: Pareto with alpha 3 and minimum 2 has the mean 3.
    compute = [{"method": "gradient", "distribution": "pareto", "minimum": 2.0, "alpha": 3.0}]
    timing = timed("parameter_server:wait=async", 16, compute)
    assert timing.updates == pytest.approx(16 / 3.0, rel=0.03)
    # 15 others push while one computes.
    assert timing.staleness == pytest.approx(15.0, rel=0.03)


def test_shared_cores_are_shared_equally(timed: Time) -> None:
    # Eight workers on two cores: each 4 s of work takes 16 s, so that the machine makes half an update a second.
    compute = [{"method": "gradient", "seconds": 4.0}]
    timing = timed("parameter_server:wait=async", 8, compute, machine=[{"roles": "worker-*", "cores": 2}])
    assert timing.updates == pytest.approx(2 / 4.0, rel=0.02)
    assert timing.shares["worker-*"].mean == pytest.approx(2 / 8, rel=0.02)


def test_ranks_that_share_cores_take_the_longer_together(timed: Time) -> None:
    compute = [{"method": "train_together", "seconds": 3.0}]
    alone = timed("all_reduce", 4, compute)
    together = timed("all_reduce", 4, compute, machine=[{"roles": "*", "cores": 1}])
    assert alone.updates == pytest.approx(1 / 3.0, rel=0.02)
    assert together.updates == pytest.approx(1 / 12.0, rel=0.02)


def test_the_coordinator_takes_its_part_of_the_cores(timed: Time) -> None:
    # One core for all: gradient 1 s, update 1 s, and three answers (collect, gradient, update) of 0.5 s each.
    compute = [{"method": "gradient", "seconds": 1.0}, {"method": "update", "seconds": 1.0}]
    machine = [{"roles": "*", "cores": 1}]
    timing = timed("parameter_server:wait=sync", 1, compute, machine=machine, cluster={"coordinator_seconds": 0.5})
    assert 1.0 / timing.updates == pytest.approx(3.5, rel=0.02)


def test_a_merge_costs_by_its_pushes(timed: Time) -> None:
    # 1 s and 0.25 s for each of 8 pushes.
    compute = [{"method": "gradient", "seconds": 2.0}, {"method": "update", "seconds": 1.0, "payload_seconds": 0.25}]
    timing = timed("parameter_server:wait=sync", 8, compute)
    assert 1.0 / timing.updates == pytest.approx(2.0 + 1.0 + 8 * 0.25, rel=0.02)


def test_one_slow_worker_is_a_straggler_to_a_barrier_and_to_nobody_else(timed: Time) -> None:
    compute = [{"method": "gradient", "seconds": 1.0}]
    speed = {"worker-7": 0.25}
    barrier = timed("parameter_server:wait=sync", 8, compute, speed=speed)
    assert barrier.updates == pytest.approx(1 / 4.0, rel=0.02)
    assert limit_of(barrier).name == "straggler"
    free = timed("parameter_server:wait=async", 8, compute, speed=speed)
    assert free.updates == pytest.approx(7 + 1 / 4.0, rel=0.02)
    assert limit_of(free).name == "workers"


def test_a_narrow_port_is_named(timed: Time) -> None:
    # A pull and a push of some thousand bytes each through the server's port of 1 kB/s, and gradients in no time.
    timing = timed("parameter_server:wait=async", 4, [], network={"latency": 0.0, "bandwidth": 1e3})
    assert limit_of(timing).name == "server bandwidth"


def test_env_steps_keep_to_the_pace_however_many_workers(timed: Time) -> None:
    # 8 samples an insert: the batch that each of 64 workers begins with allows 8 updates before its next collect call,
    # as many as the window has, and they must be over before it opens. Then an update of 16 samples takes 2 env steps.
    compute = [{"method": "gradient", "distribution": "shifted_exponential", "shift": 0.0, "scale": 1.0}]
    changes = {"replay.samples_per_insert": 8.0}
    timing = timed("parameter_server:wait=async", 64, compute, changes=changes, num_calls=16)
    assert timing.env_steps == pytest.approx(2.0 * timing.updates, rel=0.25)
