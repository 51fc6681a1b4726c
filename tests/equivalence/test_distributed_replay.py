"""Distributed replay on inline: it replays from its seed, resumes bit for bit and on other numbers of everything, keeps
the ratio it was asked for, and several learners stay one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qfleet.experiment import Experiment
from qfleet.session import CheckpointSaved
from qfleet.strategies.base import Rollout, Update

MakeExperiment = Callable[..., Experiment]
NUM_STEPS = 480
FLEET: dict[str, Any] = {
    "seed": 5,
    "strategy": "distributed_replay",
    "strategy.num_workers": 3,
    "strategy.num_shards": 2,
    "strategy.publish_every": 3,
    "strategy.prefetch": 2,
    "env.num_envs": 2,
    "algo.n_step": 3,
    "algo.exploration": "per_env",
    "replay.sampler": "prioritized",
    "replay.importance_anneal_updates": 20,
    "replay.min_transitions": 30,
    "replay.capacity": 300,  # turns over, so that old rows are dropped from the checkpoint
    "replay.samples_per_insert": 1.5,
    "logging.every_env_steps": 7,
    "evaluation.every_env_steps": 110,
    "checkpoint.every_env_steps": 120,
    "checkpoint.keep": 9,
    "stop.max_env_steps": NUM_STEPS,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "uniform": {"replay.sampler": "uniform", "algo.exploration": "schedule"},
    "learners": {"strategy.num_learners": 2, "network.normalize_observations": True},
    "one-learner-normalized": {"network.normalize_observations": True},
    "calls": {"strategy.updates_per_call": 3, "strategy.collect_steps": 4, "algo.target_update": "soft"},
    "noisy": {"algo.noisy": True, "algo.exploration": "none", "strategy.num_shards": 3},
}
# Script offers its state and is saved with it; CartPole does not, so that a checkpoint resets it.
ENVS = ["qfleet/Script-v0", "CartPole-v1"]


def records(run_dir: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on how fast this machine is."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if "second" not in key} for line in lines]


def stop_after_checkpoint(experiment: Experiment, number: int, num_more_events: int) -> None:
    """Run until checkpoint `number` is committed and a few events longer, then drop everything."""
    events = experiment.stream()
    seen = 0
    for event in events:
        seen += isinstance(event, CheckpointSaved)
        if seen == number:
            break
    assert seen == number
    for _ in range(num_more_events):  # work that is lost
        next(events)
    events.close()


@pytest.mark.parametrize("env_id", ENVS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_resumed_equals_uninterrupted(experiment: MakeExperiment, tmp_path: Path, env_id: str, variant: str) -> None:
    changes = FLEET | VARIANTS[variant]
    whole = experiment(env_id, changes, run_dir="whole").run()
    stop_after_checkpoint(experiment(env_id, changes, run_dir="parts"), number=1, num_more_events=25)
    stop_after_checkpoint(Experiment.resume(tmp_path / "parts"), number=2, num_more_events=0)
    resumed = Experiment.resume(tmp_path / "parts").run()
    assert resumed["parameters_sha256"] == whole["parameters_sha256"] is not None
    assert records(tmp_path / "parts") == records(tmp_path / "whole")
    assert resumed["eval"] == whole["eval"]
    same = ["num_env_steps", "num_updates", "num_episodes", "samples_per_insert_measured", "validation_return"]
    assert {key: resumed[key] for key in same} == {key: whole[key] for key in same}
    assert whole["num_updates"] > 15


def test_a_seed_is_a_run_and_another_seed_another_one(experiment: MakeExperiment) -> None:
    runs = [experiment("CartPole-v1", FLEET | {"seed": seed}, run_dir=f"r{i}").run() for i, seed in enumerate([1, 1, 2])]
    hashes = [run["parameters_sha256"] for run in runs]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("ratio", [1.0, 8.0, 32.0])
def test_the_replay_ratio_is_the_one_asked_for(experiment: MakeExperiment, ratio: float) -> None:
    changes = FLEET | {
        "replay.samples_per_insert": ratio,
        "replay.capacity": 5000,
        "evaluation.every_env_steps": 1_000_000,
        "checkpoint.every_env_steps": 1_000_000,
        "stop.max_env_steps": 2500,
    }
    run = experiment("qfleet/Identity-v0", changes)
    measured = []
    num_updates = 0
    for event in run.stream():
        if isinstance(event, Rollout | Update):
            assert run.session is not None
            num_updates = run.session.control.counters.num_updates
            if num_updates >= 100:
                measured.append(run.session.tracker.samples_per_insert)
    assert num_updates >= 140
    assert run.session is not None
    assert run.session.tracker.samples_per_insert == pytest.approx(ratio, rel=0.02)
    assert len(measured) > 100
    # In the middle of things, work under way is counted on neither side.
    assert np.median(measured) == pytest.approx(ratio, rel=0.05)
