"""Draws of several shards are one batch; two learners are one on both batches; a new life starts where it should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qfleet.algos.dqn import Config as AlgoConfig
from qfleet.config import ReplayConfig
from qfleet.engines.inline import Config as EngineConfig
from qfleet.engines.inline import Engine
from qfleet.envs.config import EnvConfig
from qfleet.networks.torso import NetworkConfig
from qfleet.roles.blueprint import Blueprint
from qfleet.roles.learner import Learner
from qfleet.roles.replay_shard import Draw, NewPriorities
from qfleet.roles.sample_learner import SampleLearner, join_draws, split_priorities
from qfleet.types import EnvSpec, ParamSlice, Sample, Transitions


def blueprint(sampler: Any = "prioritized", **algo: Any) -> Blueprint:
    return Blueprint(
        env=EnvConfig(id="none"),
        env_factory=None,
        spec=EnvSpec("none", (3,), "float32", 2),
        algo_name="dqn",
        algo=AlgoConfig(**{"batch_size": 4, "learning_rate": 0.01, "target_update": "hard", **algo}),
        network=NetworkConfig(hidden=[8]),
        replay=ReplayConfig(sampler=sampler, importance_exponent_start=0.6),
        seed=0,
    )


def sample(keys: list[int], probabilities: list[float], seed: int = 0) -> Sample:
    generator = np.random.default_rng([seed, *keys])
    num = len(keys)
    obs = generator.normal(size=(2, num, 3)).astype(np.float32)
    reward = generator.normal(size=num).astype(np.float32)
    transitions = Transitions(obs[0], generator.integers(2, size=num), reward, np.full(num, 0.9, np.float32), obs[1])
    return Sample(np.array(keys, np.int64), transitions, np.array(probabilities), 99)


def test_probabilities_within_a_shard_become_those_of_one_big_replay() -> None:
    draws = [Draw(0, 0, [sample([3, 1], [0.5, 0.25])]), Draw(2, 1, [sample([8], [0.125])])]
    joined = join_draws(draws, [0.8, 0.2], 0, num_transitions=11)
    # Shares 0.8 and 0.2 of the total: 0.5 * 0.8, 0.25 * 0.8, 0.125 * 0.2.
    np.testing.assert_allclose(joined.probabilities, [0.4, 0.2, 0.025])
    assert joined.keys.tolist() == [3, 1, 8]
    assert joined.num_transitions == 11
    np.testing.assert_array_equal(joined.transitions.obs[2], draws[1].samples[0].transitions.obs[0])


def test_priorities_find_their_way_back() -> None:
    draws = [
        Draw(0, 0, [sample([3, 1], [0.5, 0.25]), None]),
        Draw(2, 7, [sample([8], [0.1]), sample([8, 9, 4], [0.1, 0.1, 0.1])]),
    ]
    back = split_priorities(draws, [np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0, 6.0])])
    assert [(one.shard, one.incarnation) for one in back] == [(0, 0), (2, 7)]
    assert (back[0].keys.tolist(), back[0].priorities.tolist()) == ([3, 1], [1.0, 2.0])
    # Key 8 comes twice; the later update's comes later, and the last one counts.
    assert (back[1].keys.tolist(), back[1].priorities.tolist()) == ([8, 8, 9, 4], [3.0, 4.0, 5.0, 6.0])


def test_a_call_is_as_many_updates_of_the_plain_learner() -> None:
    plan = blueprint()
    batches = [sample([1, 2, 3, 4], [0.1, 0.2, 0.3, 0.4], seed) for seed in range(3)]
    plain, role = Learner(plan, "learner-0"), SampleLearner(plan, "learner-0")
    priorities = [plain.learn(join_draws([Draw(0, 0, [batch])], [1.0], 0, 99)) for batch in batches]
    reply = role.learn(99, [1.0], Draw(0, 0, batches))
    np.testing.assert_array_equal(role.learner.online.vector.numpy(), plain.online.vector.numpy())
    assert (reply.receipt.version, reply.receipt.num_updates, reply.receipt.num_samples) == (3, 3, 12)
    assert isinstance(reply.payload, list)
    (back,) = reply.payload
    assert isinstance(back, NewPriorities)
    np.testing.assert_allclose(back.priorities, np.concatenate(priorities))


def test_a_uniform_replay_gets_no_priorities_back() -> None:
    assert SampleLearner(blueprint("uniform"), "l").learn(9, [1.0], Draw(0, 0, [sample([1], [0.5])])).payload == []


@pytest.mark.parametrize("num_learners", [2, 3])
def test_learners_together_are_one_on_all_batches(num_learners: int) -> None:
    plan = blueprint(optimizer={"name": "adam", "max_grad_norm": 0.05})
    # The rarest transition, with the largest weight, is in the second one's batch: weights must be global.
    parts = [
        [sample([10 * i + k for k in range(4)], [0.3, 0.2 / (1 + i), 0.1, 0.2], seed=u) for u in range(2)]
        for i in range(num_learners)
    ]
    engine = Engine(EngineConfig(), 0)
    names = [f"learner-{i}" for i in range(num_learners)]
    roles = [engine.spawn(name, SampleLearner, plan, name, i, num_learners) for i, name in enumerate(names)]
    args = [(99, [1.0], Draw(i, 0, part)) for i, part in enumerate(parts)]
    futures = engine.all_reduce(roles, "learn_together", args)
    for _ in futures:
        assert engine.wait() is not None
    one = SampleLearner(plan, "one")
    whole = one.learn(99, [1.0] * num_learners, *(Draw(i, 0, part) for i, part in enumerate(parts)))
    assert isinstance(whole.payload, list)
    for future, role, expected in zip(futures, roles, whole.payload, strict=True):
        built: Any = engine._roles[role.name].built
        np.testing.assert_allclose(built.learner.online.vector, one.learner.online.vector, atol=1e-6)
        assert engine.result(future).version == 2
        payload: Any = engine.payload(future)
        np.testing.assert_array_equal(payload[0].keys, expected.keys)
        np.testing.assert_allclose(payload[0].priorities, expected.priorities, rtol=1e-4, atol=1e-5)
    first: Any = engine._roles["learner-0"].built
    for role in roles[1:]:
        built = engine._roles[role.name].built
        np.testing.assert_array_equal(built.learner.online.vector, first.learner.online.vector)


def published(role: SampleLearner, with_target: bool) -> ParamSlice:
    payload = role.publish(with_target).payload
    assert isinstance(payload, ParamSlice)
    return payload


def trained(role: SampleLearner, num_updates: int) -> None:
    role.learn(99, [1.0], Draw(0, 0, [sample([1, 2, 3], [0.1, 0.2, 0.3], seed) for seed in range(num_updates)]))


def test_the_target_travels_when_it_has_changed() -> None:
    role = SampleLearner(blueprint(target_period_updates=4), "learner-0")
    assert published(role, with_target=False).target is not None, "the first one carries it"
    trained(role, 3)
    part = published(role, with_target=False)
    assert (part.target, part.target_version, part.version) == (None, 0, 3)
    assert published(role, with_target=True).target is not None
    trained(role, 2)
    part = published(role, with_target=False)
    assert (part.target_version, part.version) == (4, 5)
    assert part.target is not None
    np.testing.assert_array_equal(part.target, role.learner.target.vector.numpy())
    assert not part.vector.flags.writeable
    assert not part.target.flags.writeable


def test_a_new_life_has_the_published_parameters_and_older_moments(tmp_path: Path) -> None:
    plan = blueprint(target_period_updates=4)
    role = SampleLearner(plan, "learner-0")
    trained(role, 3)
    saved = role.save(str(tmp_path), "00000", [])
    moments = role.learner.optimizer.moments.clone()
    trained(role, 6)
    with_target = published(role, True)
    trained(role, 2)
    newest = published(role, False)
    trained(role, 1)  # not published: lost
    again = SampleLearner(plan, "learner-0")
    receipt = again.restore(str(tmp_path), saved.files, with_target, newest)
    assert (receipt.version, receipt.metrics["moments_age"]) == (11, 8)
    np.testing.assert_array_equal(again.learner.online.vector.numpy(), newest.vector)
    assert with_target.target is not None
    np.testing.assert_array_equal(again.learner.target.vector.numpy(), with_target.target)
    np.testing.assert_array_equal(again.learner.optimizer.moments.numpy(), moments.numpy())
    assert again.target_version == 8


def test_a_checkpoint_newer_than_the_publication_is_taken_whole(tmp_path: Path) -> None:
    plan = blueprint()
    role = SampleLearner(plan, "learner-0")
    early = published(role, True)
    trained(role, 5)
    saved = role.save(str(tmp_path), "00000", [])
    again = SampleLearner(plan, "learner-0")
    receipt = again.restore(str(tmp_path), saved.files, early, early)
    assert (receipt.version, receipt.metrics["moments_age"]) == (5, 0)
    np.testing.assert_array_equal(again.learner.online.vector.numpy(), role.learner.online.vector.numpy())
    nothing = SampleLearner(plan, "learner-0").restore(str(tmp_path), [])
    assert nothing.version == 0


def test_adopting_a_state_makes_equal_but_for_the_noise() -> None:
    plan = blueprint(noisy=True)
    one, other = SampleLearner(plan, "learner-0", 0, 2), SampleLearner(plan, "learner-1", 1, 2)
    trained(one, 4)
    state: Any = one.report().payload
    trained(one, 1)  # the report is a copy: what comes later is not in it
    noise = other.learner.noise_generator.get_state()
    assert other.adopt(state).version == 4
    assert torch.equal(other.learner.noise_generator.get_state(), noise)
    np.testing.assert_array_equal(other.learner.online.vector.numpy(), state.online)
    assert not np.array_equal(one.learner.online.vector.numpy(), state.online)
