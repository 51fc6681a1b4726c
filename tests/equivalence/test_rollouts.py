"""Algorithms that learn from rollouts on the strategies: one worker is serial training, resumed is uninterrupted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qfleet.experiment import Experiment
from qfleet.policy import load_policy

from .runs import records, stop_after_checkpoint

MakeExperiment = Callable[..., Experiment]
# Checkpoints and validations fall between rollouts of 16 env steps, in an environment that a checkpoint restarts.
COMMON = {"seed": 5, "checkpoint.every_env_steps": 100, "evaluation.every_env_steps": 70, "logging.every_env_steps": 30}
ALGOS: dict[str, dict[str, Any]] = {
    "a2c": {"algo": "a2c"},
    "a2c-one-batch": {"algo": "a2c", "algo.num_epochs": 1, "algo.num_minibatches": 1, "algo.normalize_advantage": True},
    "pqn": {"algo": "pqn", "network.layer_norm": True},
    "pqn-normalized": {"algo": "pqn", "algo.optimizer": "radam", "network.normalize_observations": True},
}
ONE_WORKER: dict[str, dict[str, Any]] = {
    "sync": {"strategy": "parameter_server", "strategy.wait": "sync"},
    "async": {"strategy": "parameter_server", "strategy.wait": "async"},
    "two-servers": {"strategy": "parameter_server", "strategy.num_servers": 2},
    "group": {"strategy": "sync_groups", "strategy.num_groups": 1},
    "all_reduce": {"strategy": "all_reduce"},
}
FOUR: dict[str, dict[str, Any]] = {
    "sync": {"strategy": "parameter_server"},
    "async": {"strategy": "parameter_server", "strategy.wait": "async"},
    "ssp": {"strategy": "parameter_server", "strategy.wait": "ssp", "strategy.merge": "mean"},
    "groups": {"strategy": "sync_groups"},
    "all_reduce": {"strategy": "all_reduce"},
}


def outcome(run: Experiment) -> tuple[object, ...]:
    summary = run.run()
    return tuple(summary[key] for key in ("parameters_sha256", "num_env_steps", "num_updates", "validation_return"))


@pytest.mark.parametrize("algo", ALGOS)
def test_one_worker_is_serial_bit_for_bit(experiment: MakeExperiment, algo: str) -> None:
    changes = {**COMMON, **ALGOS[algo]}
    serial = outcome(experiment("CartPole-v1", changes, run_dir="serial"))
    for name, strategy in ONE_WORKER.items():
        if name == "two-servers":  # the norm is summed in another order
            continue
        fleet = {**changes, **strategy, "strategy.num_workers": 1}
        assert outcome(experiment("CartPole-v1", fleet, run_dir=name)) == serial, name


@pytest.mark.parametrize("algo", ["a2c", "pqn"])
def test_several_servers_and_several_ranks_are_one_learner(
    experiment: MakeExperiment, tmp_path: Path, algo: str
) -> None:
    """Of N workers the parameter server takes the mean as the ranks do; only the order of the sum may differ."""
    vectors = []
    for name in ("sync", "two-servers", "all_reduce"):
        fleet = {**COMMON, **ALGOS[algo], **ONE_WORKER[name], "strategy.num_workers": 3, "stop.max_updates": 24}
        experiment("CartPole-v1", {**fleet, "evaluation.every_env_steps": 1_000_000}, run_dir=name).run()
        vectors.append(load_policy(tmp_path / name).snapshot.vector)
    np.testing.assert_allclose(vectors[1], vectors[0], atol=2e-5)
    np.testing.assert_allclose(vectors[2], vectors[0], atol=2e-5)


@pytest.mark.parametrize("env_id", ["qfleet/Script-v0", "CartPole-v1"])
@pytest.mark.parametrize("algo", ALGOS)
def test_resumed_equals_uninterrupted(experiment: MakeExperiment, tmp_path: Path, env_id: str, algo: str) -> None:
    changes = {**COMMON, **ALGOS[algo]}
    whole = experiment(env_id, changes, run_dir="whole").run()
    stop_after_checkpoint(experiment(env_id, changes, run_dir="parts"), number=1, num_more_events=5)
    stop_after_checkpoint(Experiment.resume(tmp_path / "parts"), number=1, num_more_events=0)
    resumed = Experiment.resume(tmp_path / "parts").run()
    assert resumed["parameters_sha256"] == whole["parameters_sha256"] is not None
    assert records(tmp_path / "parts") == records(tmp_path / "whole")
    assert resumed["eval"] == whole["eval"]


@pytest.mark.parametrize("strategy", FOUR)
def test_a_fleet_resumes_bit_for_bit(experiment: MakeExperiment, tmp_path: Path, strategy: str) -> None:
    changes = {**COMMON, **ALGOS["a2c"], **FOUR[strategy], "strategy.num_workers": 4}
    whole = experiment("CartPole-v1", changes, run_dir="whole").run()
    stop_after_checkpoint(experiment("CartPole-v1", changes, run_dir="parts"), number=2, num_more_events=9)
    resumed = Experiment.resume(tmp_path / "parts").run()
    assert resumed["parameters_sha256"] == whole["parameters_sha256"] is not None
    assert records(tmp_path / "parts") == records(tmp_path / "whole")


@pytest.mark.parametrize("strategy", FOUR)
def test_each_rollout_is_gone_over_exactly_as_often_as_asked(experiment: MakeExperiment, strategy: str) -> None:
    changes = {**COMMON, **ALGOS["pqn"], **FOUR[strategy], "strategy.num_workers": 4, "algo.num_epochs": 3}
    summary = experiment("CartPole-v1", changes).run()
    assert summary["samples_per_insert_asked"] == 3.0
    assert summary["samples_per_insert_measured"] == pytest.approx(3.0)


def test_another_number_of_workers_goes_on_with_rollouts_of_its_own(experiment: MakeExperiment, tmp_path: Path) -> None:
    for strategy in ("parameter_server", "all_reduce"):
        changes = {**COMMON, **ALGOS["a2c"], "strategy": strategy, "strategy.num_workers": 3}
        stop_after_checkpoint(experiment("CartPole-v1", changes, run_dir=strategy), number=1, num_more_events=2)
        resumed = Experiment.resume(tmp_path / strategy, {"strategy.num_workers": 2, "stop.max_env_steps": 700}).run()
        assert resumed["num_env_steps"] >= 700
        assert resumed["samples_per_insert_measured"] == pytest.approx(2.0, rel=0.05)
