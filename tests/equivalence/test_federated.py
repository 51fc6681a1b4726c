"""One federated client is serial training; a run replays from its seed, and interrupted + resumed is uninterrupted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qfleet.experiment import Experiment

from .runs import records, stop_after_checkpoint

MakeExperiment = Callable[..., Experiment]
FEDERATED: dict[str, Any] = {"strategy": "federated"}
ONE = {**FEDERATED, "strategy.num_workers": 1, "strategy.local_steps": 1}
SGD = {"algo.optimizer": "sgd", "algo.learning_rate": 0.05}


def outcome(run: Experiment) -> tuple[object, ...]:
    summary = run.run()
    return tuple(summary[key] for key in ("parameters_sha256", "num_env_steps", "num_updates", "eval"))


@pytest.mark.parametrize(
    "variant",
    [
        {"algo.target_update": "hard", "algo.target_period_updates": 7},
        {"algo.target_update": "soft", "algo.target_tau": 0.08},
        {"algo.n_step": 3, "network.normalize_observations": True},
        {"replay.sampler": "prioritized", "algo.exploration": "per_env"},
        {"replay.samples_per_insert": 12.0},  # three updates due after each step: a look waits for all of them
        {"strategy.collect_steps": 3, "checkpoint.every_env_steps": 160, "evaluation.every_env_steps": 100},
        {"algo.optimizer": "adam", "algo.learning_rate": 0.001},  # kept moments are those of serial training
    ],
    ids=str,
)
@pytest.mark.parametrize("env_id", ["CartPole-v1", "qfleet/Script-v0"])
def test_one_client_with_one_local_step_is_serial(
    experiment: MakeExperiment, env_id: str, variant: dict[str, Any]
) -> None:
    serial = outcome(experiment(env_id, {"strategy": "serial", **SGD, **variant}, run_dir="serial"))
    federated = outcome(experiment(env_id, {**ONE, **SGD, **variant}, run_dir="federated"))
    assert federated == serial
    assert serial[2] > 50  # type: ignore[operator]


def test_fresh_moments_each_round_are_another_thing(experiment: MakeExperiment) -> None:
    kept = outcome(experiment("qfleet/Script-v0", ONE, run_dir="kept"))
    fresh = outcome(experiment("qfleet/Script-v0", {**ONE, "strategy.keep_optimizer": False}, run_dir="fresh"))
    assert fresh[0] != kept[0]


VARIANTS: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "half take part": {"strategy.fraction": 0.5, "strategy.num_workers": 5},
    "late ones": {"strategy.round_timeout": 2.0, "strategy.min_clients": 2, "strategy.num_workers": 5},
    "fedprox": {"strategy.aggregator": "fedprox", "strategy.mu": 0.1},
    "fedadam": {"strategy.aggregator": "fedadam", "algo.target_update": "soft"},
    "multi_krum": {"strategy.aggregator": "multi_krum", "strategy.num_workers": 5},
    "personal": {"strategy.personal": "head", "strategy.keep_optimizer": False},
    "client_envs": {"strategy.client_envs": [{"num_envs": 2}, {"num_envs": 5}]},
}
NUM_STEPS = 480
SCHEDULED: dict[str, Any] = {
    **FEDERATED,
    "seed": 5,
    "strategy.local_steps": 3,
    "strategy.num_workers": 3,
    "env.num_envs": 3,
    "replay.capacity": 300,
    "logging.every_env_steps": 7,
    "evaluation.every_env_steps": 110,
    "checkpoint.every_env_steps": 130,
    "checkpoint.keep": 9,
    "stop.max_env_steps": NUM_STEPS,
}


@pytest.mark.parametrize("env_id", ["CartPole-v1", "qfleet/Script-v0"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_resumed_equals_uninterrupted(experiment: MakeExperiment, tmp_path: Path, env_id: str, variant: str) -> None:
    changes = SCHEDULED | VARIANTS[variant]
    whole = outcome(experiment(env_id, changes, run_dir="whole"))
    for number in (1, 2):
        interrupted = experiment(env_id, changes, run_dir=f"cut-{number}")
        stop_after_checkpoint(interrupted, number, num_more_events=4)
        assert outcome(Experiment.resume(interrupted.run_dir)) == whole
        assert records(interrupted.run_dir) == records(tmp_path / "whole")


@pytest.mark.parametrize("variant", ["late ones", "half take part", "personal"])
def test_a_run_replays_from_its_seed_and_looking_changes_nothing(experiment: MakeExperiment, variant: str) -> None:
    changes = SCHEDULED | VARIANTS[variant]
    first, again, other, watched = (
        outcome(experiment("CartPole-v1", changes | more, run_dir=name))
        for name, more in {
            "a": {},
            "b": {},
            "c": {"seed": 6},
            "d": {"evaluation.every_env_steps": 40, "logging.every_env_steps": 3},
        }.items()
    )
    assert first == again
    assert first[0] != other[0]
    assert watched[:3] == first[:3]


def test_clients_that_keep_their_heads_are_judged_by_them(experiment: MakeExperiment, tmp_path: Path) -> None:
    changes = {
        "strategy": "federated",
        "strategy.num_workers": 2,
        "strategy.personal": "head",
        "algo.learning_rate": 0.01,
        "algo.gamma": 0.0,
        "replay.samples_per_insert": 8.0,
        "stop.max_env_steps": 1200,
        "evaluation.every_env_steps": 400,
        "evaluation.final_episodes": 20,
    }
    summary = experiment("qfleet/Identity-v0", changes).run()
    names = sorted(path.parent.name for path in (tmp_path / "run" / "best").glob("*/policy.json"))
    assert len(names) == 2, "each client's own policy is kept beside the global one"
    score = summary["eval"]
    assert isinstance(score, dict)
    assert score["mean_return"] == 1.0, "the global model's head has never been trained; the clients' have"
    assert {f"return_{name}" for name in names} <= score.keys()
