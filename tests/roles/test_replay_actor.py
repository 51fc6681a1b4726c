"""An actor of a replay elsewhere: the priorities that it sends are those that the learner would have given."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from qfleet.algos.base import Batch
from qfleet.algos.dqn import Config as AlgoConfig
from qfleet.config import ReplayConfig
from qfleet.envs.config import EnvConfig
from qfleet.envs.make import probe_spec
from qfleet.networks.torso import NetworkConfig
from qfleet.roles.blueprint import Blueprint
from qfleet.roles.replay_actor import ReplayActor
from qfleet.roles.replay_shard import Insertion
from qfleet.roles.sample_learner import SampleLearner
from qfleet.types import ParamSlice, Progress, Reply

ENV = EnvConfig(id="CartPole-v1", num_envs=3)


def blueprint(**algo: Any) -> Blueprint:
    config = AlgoConfig(**{"n_step": 3, "batch_size": 4, "target_update": "hard", **algo})
    replay = ReplayConfig(sampler="prioritized", capacity=100, min_transitions=1)
    network = NetworkConfig(hidden=[8])
    return Blueprint(ENV, None, probe_spec(ENV, None), "dqn", config, network, replay, seed=3)


def published(learner: SampleLearner, with_target: bool = True) -> ParamSlice:
    payload = learner.publish(with_target).payload
    assert isinstance(payload, ParamSlice)
    return payload


def moved(plan: Blueprint) -> SampleLearner:
    """A learner whose online and target networks differ from the first weights, and from each other."""
    learner = SampleLearner(plan, "learner-0")
    generator = torch.Generator().manual_seed(1)
    for network in (learner.learner.online, learner.learner.target):
        network.vector.add_(torch.randn(network.vector.shape, generator=generator))
    learner.learner.version = 5
    return learner


def rollout(actor: ReplayActor, part: ParamSlice, steps: int = 6) -> tuple[Reply, Insertion]:
    reply = actor.rollout(Progress(), steps, part, part)
    assert isinstance(reply.payload, Insertion)
    return reply, reply.payload


@pytest.mark.parametrize("double", [True, False])
def test_initial_priorities_are_the_td_errors_of_the_published_networks(double: bool) -> None:
    plan = blueprint(double=double)
    learner = moved(plan)
    reply, insertion = rollout(ReplayActor(plan, "actor-0"), published(learner))
    batch = Batch.of(insertion.transitions, torch.device("cpu"))
    inner = learner.learner
    output = inner.algorithm.backpropagate(inner.online, inner.target, batch, None)
    assert insertion.priorities is not None
    np.testing.assert_allclose(insertion.priorities, output.priority.numpy(), rtol=1e-5)
    assert insertion.priorities.dtype == np.float64
    assert insertion.version == reply.receipt.version == 5
    assert reply.receipt.metrics["num_transitions"] == len(insertion.transitions) > 0
    assert reply.receipt.num_env_steps == 18
    # Decoy: with the first weights instead of the published ones they are others.
    first = ReplayActor(plan, "decoy").algorithm.priorities
    untrained = SampleLearner(plan, "untrained").learner
    assert not np.allclose(insertion.priorities, first(untrained.online, untrained.target, batch).numpy(), rtol=0.1)


def test_priorities_by_hand() -> None:
    plan = blueprint(n_step=1, gamma=0.5, double=True)
    actor = ReplayActor(plan, "actor-0")

    class Table:
        """Q-values by the observation's first number, whatever network is asked for."""

        def __init__(self, values: list[list[float]]) -> None:
            self.values = torch.tensor(values)

        def infer(self, obs: torch.Tensor) -> torch.Tensor:
            return self.values[obs[:, 0].long()]

    online: Any = Table([[1.0, 99.0], [5.0, 4.0], [98.0, 7.0]])
    target: Any = Table([[97.0, 96.0], [10.0, 20.0], [30.0, 40.0]])
    batch = Batch(
        obs=torch.tensor([[0.0], [2.0]]),
        action=torch.tensor([0, 1]),
        reward=torch.tensor([2.0, 3.0]),
        discount=torch.tensor([0.5, 0.0]),
        next_obs=torch.tensor([[1.0], [2.0]]),
        next_action_mask=None,
    )
    # First: online prefers action 0 in state 1 (5 > 4), the target values it 10: target 2 + 0.5 * 10 = 7, Q = 1.
    # Second: terminated, so the target is the reward 3, Q(2, 1) = 7.
    assert actor.algorithm.priorities(online, target, batch).tolist() == [6.0, 4.0]


def test_a_publication_is_loaded_once_and_the_target_may_come_from_an_older_one() -> None:
    plan = blueprint()
    learner = moved(plan)
    actor = ReplayActor(plan, "actor-0")
    first = published(learner)
    rollout(actor, first)
    np.testing.assert_array_equal(actor.target.vector.numpy(), learner.learner.target.vector.numpy())
    actor.online.vector.zero_()  # would be overwritten by a second load
    rollout(actor, first)
    assert not actor.online.vector.any()
    learner.learner.online.vector.mul_(2.0)
    learner.learner.version = 6
    newer = published(learner, with_target=False)
    assert newer.target is None, "its target has not changed since it was published"
    actor.rollout(Progress(), 1, newer, first)
    assert actor.version == 6
    np.testing.assert_array_equal(actor.online.vector.numpy(), learner.learner.online.vector.numpy())
    fresh = ReplayActor(plan, "actor-1")
    fresh.rollout(Progress(), 1, newer, first)
    np.testing.assert_array_equal(fresh.target.vector.numpy(), learner.learner.target.vector.numpy())


def test_transitions_are_those_of_the_plain_actor_and_no_views() -> None:
    plan = blueprint(n_step=1)
    part = published(moved(plan))
    one, other = ReplayActor(plan, "actor-0"), ReplayActor(plan, "actor-0")
    whole = rollout(one, part, steps=5)[1].transitions
    steps = [rollout(other, part, steps=1)[1].transitions for _ in range(5)]
    for field in ("obs", "action", "reward", "discount", "next_obs"):
        np.testing.assert_array_equal(getattr(whole, field), np.concatenate([getattr(s, field) for s in steps]))
    assert len({tuple(row) for row in whole.obs}) == 15, "rows were overwritten by later steps"


def test_a_uniform_replay_gets_no_priorities() -> None:
    plan = blueprint()
    uniform = dataclasses.replace(plan, replay=plan.replay.model_copy(update={"sampler": "uniform"}))
    assert rollout(ReplayActor(uniform, "actor-0"), published(moved(uniform)))[1].priorities is None


def test_a_cut_closes_the_open_windows_with_priorities() -> None:
    plan = blueprint()
    actor = ReplayActor(plan, "actor-0")
    rollout(actor, published(moved(plan)), steps=4)
    reply = actor.cut("00000")
    assert isinstance(reply.payload, Insertion)
    # CartPole offers no state. Two windows a copy are open after four steps at n = 3.
    assert len(reply.payload.transitions) == reply.receipt.metrics["num_transitions"] == 6
    assert reply.payload.priorities is not None
    assert reply.payload.priorities.shape == (6,)
    again = actor.cut("00000")
    assert again.receipt.metrics["num_transitions"] == 0
    assert again.payload is None
