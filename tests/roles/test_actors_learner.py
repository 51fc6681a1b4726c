"""The learner of actors that live elsewhere: joined trajectories, lags, and a new life at the newest snapshot."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qfleet.envs.make import probe_spec
from qfleet.policy import make_blueprint
from qfleet.recipe import find_recipe
from qfleet.roles.actors_learner import ActorsLearner, join_trajectories
from qfleet.roles.blueprint import Blueprint
from qfleet.roles.trajectory_actor import TrajectoryActor
from qfleet.run_config import build_config
from qfleet.types import ParamSnapshot, Progress, Trajectories

SMALL: dict[str, Any] = {
    "env.num_envs": 3,
    "algo.rollout_steps": 5,
    "network.hidden": [8],
    "algo.gamma": 0.9,
}
MakeBlueprint = Callable[..., Blueprint]


@pytest.fixture
def blueprint() -> MakeBlueprint:
    def make(env_id: str = "CartPole-v1", **changes: Any) -> Blueprint:
        overrides = {"env.id": env_id, **SMALL, **{key.replace("__", "."): value for key, value in changes.items()}}
        config = build_config(find_recipe("impala").values, list(overrides.items()))
        return make_blueprint(config, probe_spec(config.env, None), "cpu")

    return make


def roll(actor: TrajectoryActor, snapshot: ParamSnapshot, num_steps: int = 5) -> Trajectories:
    reply = actor.rollout(Progress(), num_steps, snapshot)
    assert reply.receipt.version == snapshot.version
    assert isinstance(reply.payload, Trajectories)
    return reply.payload


def newest(learner: ActorsLearner) -> ParamSnapshot:
    snapshot = learner.snapshot().payload
    assert isinstance(snapshot, ParamSnapshot)
    return snapshot


def test_trajectories_are_joined_side_by_side(blueprint: MakeBlueprint) -> None:
    plan = blueprint()
    learner = ActorsLearner(plan, "learner-0")
    parts = [roll(TrajectoryActor(plan, f"actor-{i}"), newest(learner)) for i in range(2)]
    parts[1] = dataclasses.replace(parts[1], version=7)
    joined = join_trajectories(parts)
    assert joined.version == 0
    for name in ("obs", "action", "reward", "discount", "valid", "log_prob", "value"):
        whole, own = getattr(joined, name), [getattr(part, name) for part in parts]
        assert whole.shape[1] == 6
        np.testing.assert_array_equal(whole[:, :3], own[0])
        np.testing.assert_array_equal(whole[:, 3:], own[1])
    np.testing.assert_array_equal(joined.last_obs[3:], parts[1].last_obs)
    assert join_trajectories(parts[:1]) is parts[0]


def test_masks_are_joined_too(blueprint: MakeBlueprint) -> None:
    plan = blueprint("qfleet/MaskedChain-v0")
    learner = ActorsLearner(plan, "learner-0")
    parts = [roll(TrajectoryActor(plan, f"actor-{i}"), newest(learner)) for i in range(2)]
    joined = join_trajectories(parts)
    assert joined.action_mask is not None
    assert joined.last_action_mask is not None
    num_actions = plan.spec.num_actions
    assert joined.action_mask.shape == (5, 6, num_actions)
    assert joined.last_action_mask.shape == (6, num_actions)
    assert joined.action_mask[np.arange(5)[:, None], np.arange(6), joined.action].all(), "an illegal action was taken"
    learner.learn(*parts)


def test_an_actor_says_what_its_policy_gave_and_which_version_it_was(blueprint: MakeBlueprint) -> None:
    plan = blueprint()
    learner, actor = ActorsLearner(plan, "learner-0"), TrajectoryActor(plan, "actor-0")
    first = roll(actor, newest(learner))
    receipt = learner.learn(first).receipt
    # By the parameters that it was made with, every ratio is 1.
    assert receipt.metrics["mean_ratio"] == pytest.approx(1.0, abs=1e-5)
    assert receipt.lags == {"policy_lag": [0]}
    assert (receipt.version, receipt.num_updates, receipt.num_samples) == (1, 1, 15)
    second = learner.learn(first, first).receipt
    assert second.lags == {"policy_lag": [1, 1]}
    assert second.num_samples == 30
    assert abs(second.metrics["mean_ratio"] - 1.0) > 1e-6, "the policy has moved on"
    later = roll(actor, newest(learner))
    assert (later.version, actor.version) == (2, 2)


def test_an_update_answers_with_the_next_snapshot(blueprint: MakeBlueprint) -> None:
    plan = blueprint()
    learner = ActorsLearner(plan, "learner-0")
    before = newest(learner)
    reply = learner.learn(roll(TrajectoryActor(plan, "actor-0"), before))
    assert isinstance(reply.payload, ParamSnapshot)
    assert (reply.payload.version, before.version) == (1, 0)
    np.testing.assert_array_equal(reply.payload.vector, learner.learner.online.vector.numpy())
    assert not np.array_equal(reply.payload.vector, before.vector)


def test_a_new_life_begins_at_the_newest_snapshot_with_older_moments(blueprint: MakeBlueprint, tmp_path: Path) -> None:
    plan = blueprint()
    learner, actor = ActorsLearner(plan, "learner-0"), TrajectoryActor(plan, "actor-0")
    learner.learn(roll(actor, newest(learner)))
    files = learner.save(str(tmp_path), "00000", []).files
    moments = learner.learner.optimizer.moments.clone()
    for _ in range(3):
        learner.learn(roll(actor, newest(learner)))
    published = newest(learner)
    again = ActorsLearner(plan, "learner-0")
    receipt = again.restore(str(tmp_path), files, published)
    assert (receipt.version, receipt.metrics["moments_age"]) == (4, 3.0)
    np.testing.assert_array_equal(again.learner.online.vector.numpy(), published.vector)
    np.testing.assert_array_equal(again.learner.optimizer.moments.numpy(), moments.numpy())
    # Without a checkpoint the moments begin anew; without a publication all is the checkpoint's.
    assert ActorsLearner(plan, "learner-0").restore(str(tmp_path), [], published).metrics["moments_age"] == 4.0
    assert ActorsLearner(plan, "learner-0").restore(str(tmp_path), files).version == 1
    assert ActorsLearner(plan, "learner-0").restore(str(tmp_path), []).version == 0


def test_observation_statistics_come_with_the_snapshot(blueprint: MakeBlueprint) -> None:
    plan = blueprint(network__normalize_observations=True)
    learner, actor = ActorsLearner(plan, "learner-0"), TrajectoryActor(plan, "actor-0")
    first = newest(learner)
    learner.learn(roll(actor, first))
    later = newest(learner)
    assert not np.array_equal(first.buffers, later.buffers)
    roll(actor, later)
    np.testing.assert_array_equal(actor.network.buffers.numpy(), later.buffers)
