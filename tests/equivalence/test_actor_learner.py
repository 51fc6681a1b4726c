"""Actors and a learner on inline: a run replays from its seed, resumes bit for bit, and its lags are what they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qfleet.experiment import Experiment
from qfleet.strategies.base import Rollout, Update

from .runs import records, stop_after_checkpoint

MakeExperiment = Callable[..., Experiment]
MakeFleet = Callable[..., Any]
NUM_STEPS = 1200
FLEET: dict[str, Any] = {
    "seed": 5,
    "algo": "vtrace",
    "strategy": "actor_learner",
    "strategy.num_workers": 3,
    "strategy.trajectories_per_update": 2,
    "strategy.max_policy_lag": 3,
    "env.num_envs": 2,
    "algo.rollout_steps": 5,
    "logging.every_env_steps": 17,
    "evaluation.every_env_steps": 330,
    "checkpoint.every_env_steps": 300,
    "checkpoint.keep": 9,
    "stop.max_env_steps": NUM_STEPS,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "normalized": {"network.normalize_observations": True, "algo.trace_lambda": 0.9},
    "batch-of-five": {"strategy.trajectories_per_update": 5, "strategy.max_policy_lag": 1},
    "on-policy": {"strategy.max_policy_lag": 0},
}
# Script offers its state and is saved with it; CartPole does not, so that a checkpoint resets it.
ENVS = ["qfleet/Script-v0", "CartPole-v1"]


@pytest.fixture
def train(experiment: MakeExperiment) -> Callable[..., Experiment]:
    """train("CartPole-v1", {...}, "run"): a tiny run."""
    return lambda env_id, changes, run_dir: experiment(env_id, FLEET | changes, run_dir=run_dir)


@pytest.mark.parametrize("env_id", ENVS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_resumed_equals_uninterrupted(
    train: Callable[..., Experiment], tmp_path: Path, env_id: str, variant: str
) -> None:
    changes = VARIANTS[variant]
    whole = train(env_id, changes, "whole").run()
    stop_after_checkpoint(train(env_id, changes, "parts"), number=1, num_more_events=25)
    stop_after_checkpoint(Experiment.resume(tmp_path / "parts"), number=2, num_more_events=0)
    resumed = Experiment.resume(tmp_path / "parts").run()
    assert resumed["parameters_sha256"] == whole["parameters_sha256"] is not None
    assert records(tmp_path / "parts") == records(tmp_path / "whole")
    assert resumed["eval"] == whole["eval"]
    same = ["num_env_steps", "num_updates", "num_episodes", "lags", "validation_return"]
    assert {key: resumed[key] for key in same} == {key: whole[key] for key in same}
    assert whole["num_updates"] > 15


def test_a_seed_is_a_run_and_another_seed_another_one(train: Callable[..., Experiment]) -> None:
    runs = [train("CartPole-v1", {"seed": seed}, f"r{i}").run() for i, seed in enumerate([1, 1, 2])]
    hashes = [run["parameters_sha256"] for run in runs]
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_histogram_of_lags_is_that_of_the_updates(train: Callable[..., Experiment]) -> None:
    run = train("CartPole-v1", {}, "run")
    lags: list[int] = []
    num_rollouts = 0
    for event in run.stream():
        if isinstance(event, Update):
            assert len(event.receipt.lags["policy_lag"]) == 2
            lags += event.receipt.lags["policy_lag"]
        num_rollouts += isinstance(event, Rollout)
        summary = getattr(event, "summary", {})
    told = summary["lags"]["policy_lag"]
    assert {row[0]: row[2] for row in told["rows"]} == {lag: lags.count(lag) for lag in set(lags)}
    assert told["num"] == len(lags) == num_rollouts, "every trajectory is trained on, once"
    assert 0 < max(lags) <= 3


@pytest.fixture
def impala(fleet: MakeFleet) -> MakeFleet:
    """impala({...}, saved=None): a tiny one to drive by hand."""
    return lambda changes, saved=None: fleet(FLEET | {"env.id": "CartPole-v1"} | changes, saved)


@pytest.mark.parametrize("num_workers", [1, 5])
def test_a_checkpoint_goes_on_with_another_number_of_actors(impala: MakeFleet, num_workers: int) -> None:
    first = impala({})
    first.until(lambda counters: counters.num_updates >= 10)
    saved = first.drain("00000")
    weights = first.until_snapshot()
    second = impala({"strategy.num_workers": num_workers}, saved)
    taken = second.until_snapshot()
    assert taken.version == weights.version == saved[1].num_updates
    np.testing.assert_array_equal(taken.vector, weights.vector)
    second.until(lambda counters: counters.num_updates >= saved[1].num_updates + 10)
    assert sum(name.startswith("actor-") for name in second.engine._roles) == num_workers
    assert second.control.tallies == {}
