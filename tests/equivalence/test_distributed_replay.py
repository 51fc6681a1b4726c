"""Distributed replay on inline: it replays from its seed, resumes bit for bit and on other numbers of everything, keeps
the ratio it was asked for, and several learners stay one."""

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
NUM_STEPS = 480
FLEET: dict[str, Any] = {
    "seed": 5,
    "strategy": "distributed_replay",
    "strategy.num_workers": 3,
    "strategy.collect_steps": 1,
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
    "calls": {
        "strategy.updates_per_call": 3,
        "strategy.num_shards": 5,
        "strategy.collect_steps": 4,
        "algo.target_update": "soft",
    },
    "noisy": {"algo.noisy": True, "algo.exploration": "none", "strategy.num_shards": 3},
    "iqn": {"algo": "iqn", "algo.num_quantiles": 8, "algo.double": True},
}
# Script offers its state and is saved with it; CartPole does not, so that a checkpoint resets it.
ENVS = ["qfleet/Script-v0", "CartPole-v1"]


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
    runs = [
        experiment("CartPole-v1", FLEET | {"seed": seed}, run_dir=f"r{i}").run() for i, seed in enumerate([1, 1, 2])
    ]
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


MakeFleet = Callable[..., Any]
BIG = FLEET | {"env.id": "CartPole-v1", "replay.capacity": 3000}


def rewards_and_priorities(fleet: Any) -> list[tuple[float, ...]]:
    """What identifies each row of all shards, with its leaf of the sum tree; sorted."""
    rows = []
    for ref in [name for name in fleet.engine._roles if name.startswith("shard-")]:
        replay = fleet.role(ref).replay
        keys = np.arange(replay.storage.first_live_key, replay.num_inserted)
        transitions = replay.storage.gather(replay.storage.slots_of(keys))
        leaves = replay.sampler_state().leaves
        rows += [
            (float(leaf), float(reward), *map(float, obs))
            for leaf, reward, obs in zip(leaves, transitions.reward, transitions.obs, strict=True)
        ]
    return sorted(rows)


@pytest.mark.parametrize(("num_workers", "num_shards", "num_learners"), [(5, 3, 2), (1, 1, 1), (3, 5, 3)])
def test_a_checkpoint_goes_on_with_other_numbers(
    fleet: MakeFleet, num_workers: int, num_shards: int, num_learners: int
) -> None:
    first = fleet(BIG)
    first.until(lambda counters: counters.num_env_steps >= 400)
    saved = first.drain("00000")
    before, weights = rewards_and_priorities(first), first.until_snapshot()
    changes = {"num_workers": num_workers, "num_shards": num_shards, "num_learners": num_learners}
    second = fleet(BIG | {f"strategy.{name}": value for name, value in changes.items()}, saved)
    counters = second.control.counters
    assert (counters.num_updates, counters.num_inserted) == (saved[1].num_updates, saved[1].num_inserted)
    taken = second.until_snapshot()
    assert taken.version == weights.version
    np.testing.assert_array_equal(taken.vector, weights.vector)
    second.until(lambda counters: counters.num_env_steps >= 420)
    after = rewards_and_priorities(second)
    assert len(after) == second.control.counters.num_inserted
    # Those of before are all there; a few were drawn again meanwhile and have new priorities.
    assert {row[1:] for row in before} <= {row[1:] for row in after}
    assert len(set(before) & set(after)) > 0.8 * len(before)
    second.until(lambda counters: counters.num_updates >= saved[1].num_updates + 20)
    assert second.control.tallies == {}


@pytest.mark.parametrize("num_shards", [1, 3, 4, 7])
def test_full_shards_lose_nothing_when_dealt_out_anew(fleet: MakeFleet, num_shards: int) -> None:
    full = BIG | {"replay.capacity": 420, "strategy.num_shards": 2}  # two of 210
    first = fleet(full)
    first.until(lambda counters: counters.num_inserted >= 600)
    saved = first.drain("00000")
    before = rewards_and_priorities(first)
    assert len(before) == 420
    # With so few transitions allowed in, none is collected before the shards have been counted.
    second = fleet(full | {"strategy.num_shards": num_shards}, saved)
    second.until_snapshot()
    sizes = [len(second.role(f"shard-{i}").replay) for i in range(num_shards)]
    assert sum(sizes) == 420
    assert max(sizes) - min(sizes) <= 1
    assert {row[1:] for row in rewards_and_priorities(second)} == {row[1:] for row in before}


def test_learners_stay_one_and_equal_one_on_the_whole_batch(fleet: MakeFleet) -> None:
    two = fleet(BIG | {"strategy.num_learners": 2})
    two.until(lambda counters: counters.num_updates >= 25)
    two.until_snapshot()
    one, other = (two.role(f"learner-{i}").learner for i in range(2))
    assert one.version == other.version >= 25
    for mine, theirs in (
        (one.online.vector, other.online.vector),
        (one.target.vector, other.target.vector),
        (one.optimizer.moments, other.optimizer.moments),
    ):
        np.testing.assert_array_equal(mine.numpy(), theirs.numpy())
    counters = two.control.counters
    assert counters.num_samples == counters.num_updates * 2 * 16


def test_actors_share_out_the_epsilons(fleet: MakeFleet) -> None:
    made = fleet(BIG)
    next(made.events)
    actors = [made.role(f"actor-{i}").actor for i in range(3)]
    epsilons = np.concatenate([actor.epsilon(made.control.counters.progress()) for actor in actors])
    # Horgan et al. 2018: eps^(1 + 7 i / (N - 1)) over N = 3 actors x 2 environments.
    np.testing.assert_allclose(epsilons, [0.4 ** (1 + 7 * i / 5) for i in range(6)])


def test_lags_say_how_old_things_were(fleet: MakeFleet) -> None:
    made = fleet(BIG)
    events = made.until(lambda counters: counters.num_updates >= 40)
    lags = [event.receipt.lags["policy_lag"] for event in events if isinstance(event, Rollout)]
    ages = [event.receipt.lags["priority_age"] for event in events if isinstance(event, Update)]
    assert all(len(lag) == 1 and lag[0] >= 0 for lag in lags)
    assert all(len(age) == 1 and age[0] >= 1 for age in ages), "the update itself makes them one version old"
    # Published every 3 updates, so that rollouts are behind; two batches drawn ahead and two calls at the learner.
    assert 0 < max(lag[0] for lag in lags) <= 3 + 6
    assert 1 < max(age[0] for age in ages) <= 2 + 2 + 1


def test_actors_come_and_go(fleet: MakeFleet) -> None:
    made = fleet(BIG)
    made.until(lambda counters: counters.num_updates >= 5)
    made.control.num_workers = 5
    made.until(lambda counters: counters.num_updates >= 15)
    assert [name for name in made.engine._roles if name.startswith("actor-")] == [f"actor-{i}" for i in range(5)]
    made.control.num_workers = 1
    events = made.until(lambda counters: counters.num_updates >= 30)
    assert [name for name in made.engine._roles if name.startswith("actor-")] == ["actor-0"]
    late = [event.role for event in events if isinstance(event, Rollout)][-5:]
    assert late == ["actor-0"] * 5
    saved = made.drain("00000")
    again = fleet(BIG | {"strategy.num_workers": 1}, saved)
    again.until(lambda counters: counters.num_updates >= 40)
