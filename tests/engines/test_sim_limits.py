"""The simulated cluster against closed forms: a saturated server, barriers over random workers, no barrier at all.

Nothing is computed here (engine.compute = "none"): the strategies run on the roles' timing twins.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from qfleet.recipe import list_plugins
from qfleet.types import Receipt

MakeFleet = Callable[..., Any]
FREE = {"latency": 0.0, "bandwidth": 1e30}
SETTINGS: dict[str, Any] = {
    "engine": "sim",
    "engine.compute": "none",
    "strategy": "parameter_server",
    "env.id": "qfleet/Identity-v0",
    "env.num_envs": 16,
    "algo.batch_size": 16,
    "replay.samples_per_insert": 1.0,  # one collect call a gradient
    "replay.min_transitions": 1,
}


@pytest.fixture
def timed(fleet: MakeFleet, tmp_path: Path) -> Callable[..., float]:
    """timed([...compute tables], {settings}): updates a second, once it runs evenly."""

    def run(compute: list[dict[str, Any]], changes: dict[str, Any], num_updates: int) -> float:
        path = tmp_path / "cluster.toml"
        path.write_text(tomli_w.dumps({"network": FREE, "compute": [*compute, {"seconds": 0.0}]}))
        one = fleet({**SETTINGS, "engine.cluster": str(path), **changes})
        warm_up = num_updates // 5
        one.until(lambda counters: counters.num_updates >= warm_up)
        began = one.engine.now()
        one.until(lambda counters: counters.num_updates >= warm_up + num_updates)
        return float(num_updates / (one.engine.now() - began))

    return run


@pytest.mark.parametrize("num_workers", [1, 4, 16, 64])
def test_a_saturated_server_is_amdahls_bound(timed: Callable[..., float], num_workers: int) -> None:
    # A worker's push takes 9 s at the worker and 1 s at the server. N of them make N / 10 updates a second as long as
    # the server is free for each, and never more than the server's 1: a speed-up of 10 at most.
    compute = [{"method": "gradient", "seconds": 9.0}, {"method": "update", "seconds": 1.0}]
    rate = timed(compute, {"strategy.wait": "async", "strategy.num_workers": num_workers}, 40 * num_workers)
    assert rate == pytest.approx(min(num_workers / 10.0, 1.0), rel=0.02)


@pytest.mark.parametrize("num_workers", [1, 8, 64])
def test_a_barrier_waits_for_the_slowest_of_n_shifted_exponentials(
    timed: Callable[..., float], num_workers: int
) -> None:
    # The largest of N exponentials of mean b is b (1 + 1/2 + ... + 1/N) on average.
    compute = [{"method": "gradient", "distribution": "shifted_exponential", "shift": 2.0, "scale": 1.0}]
    rate = timed(compute, {"strategy.num_workers": num_workers}, {1: 4000, 8: 1500, 64: 600}[num_workers])
    expected = 2.0 + sum(1.0 / n for n in range(1, num_workers + 1))
    assert 1.0 / rate == pytest.approx(expected, rel=0.02)


def test_without_a_barrier_only_the_mean_counts(timed: Callable[..., float]) -> None:
    # N / E[seconds], whatever the tail: Pareto with alpha 3 has the mean 1.5 times its minimum.
    compute = [{"method": "gradient", "distribution": "pareto", "minimum": 2.0, "alpha": 3.0}]
    rate = timed(compute, {"strategy.wait": "async", "strategy.num_workers": 16}, 9_000)
    assert rate == pytest.approx(16 / 3.0, rel=0.02)


def test_a_ring_of_ranks_waits_for_the_slowest_at_every_update(timed: Callable[..., float]) -> None:
    compute = [{"method": "train_together", "distribution": "shifted_exponential", "shift": 2.0, "scale": 1.0}]
    # One update in 16 transitions from each of 4 ranks: every update is one call.
    changes = {"strategy": "all_reduce", "strategy.num_workers": 4, "algo.optimizer.name": "sgd"}
    rate = timed(compute, changes, 2500)
    assert 1.0 / rate == pytest.approx(2.0 + 1 + 1 / 2 + 1 / 3 + 1 / 4, rel=0.02)


@pytest.mark.parametrize("sampler", ["uniform", "prioritized"])
@pytest.mark.parametrize("strategy", [name for name in list_plugins("strategy") if name != "actor_learner"])
def test_every_strategy_keeps_its_pace_without_computing(fleet: MakeFleet, strategy: str, sampler: str) -> None:
    one = fleet({**SETTINGS, "strategy": strategy, "replay.sampler": sampler, "replay.samples_per_insert": 2.0})
    one.until(lambda counters: counters.num_updates >= 200)
    counters = one.control.counters
    assert counters.num_samples >= 200 * 16 or strategy == "federated"
    assert 1.5 < counters.num_samples / counters.num_inserted <= 2.0
    assert one.until_snapshot().version >= 200
    one.drain("00000")
    assert one.engine.now() > 0.0


def test_actors_and_a_learner_keep_their_pace_without_computing(fleet: MakeFleet) -> None:
    changes = {"engine": "sim", "engine.compute": "none", "strategy": "actor_learner", "algo": "vtrace"}
    one = fleet({**changes, "strategy.num_workers": 3, "strategy.max_policy_lag": 2})
    events = one.until(lambda counters: counters.num_updates >= 100)
    counters = one.control.counters
    assert counters.num_samples <= counters.num_env_steps
    # A trajectory is trained on once; what is left over waits in the queue, or is under way.
    assert counters.num_env_steps - counters.num_samples < 40 * counters.num_env_steps / counters.num_updates
    lags = [lag for event in events for lag in getattr(event, "receipt", Receipt()).lags.get("policy_lag", [])]
    assert lags
    assert max(lags) <= 2
    assert one.until_snapshot().version >= 100
