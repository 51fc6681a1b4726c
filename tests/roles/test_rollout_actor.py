"""The rollout actor against a scripted environment: what is bootstrapped, what weighs nothing, what is masked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from qfleet.algos.base import Acted, rollout_rows
from qfleet.envs.make import probe_spec
from qfleet.experiment import Experiment
from qfleet.ops.returns import lambda_returns
from qfleet.policy import make_blueprint
from qfleet.roles.gradient_worker import GradientWorker
from qfleet.roles.parameter_server import ParameterServer
from qfleet.roles.rollout_actor import RolloutActor
from qfleet.types import EnvStep, Progress, Receipt, Trajectories

MakeExperiment = Callable[..., Experiment]
NUM_ENVS = 2
# Reward, end ("." goes on, "t" terminated, "c" cut off, "r" only reset itself) and true next observation, per step, of
# two environments; an observation is a number, and its value ten times that. Reset rows hold decoys of 99.
STEPS = [
    [(1.0, ".", 2.0), (5.0, "c", 7.0)],
    [(2.0, "t", 3.0), (99.0, "r", 11.0)],
    [(99.0, "r", 4.0), (6.0, ".", 12.0)],
    [(3.0, ".", 5.0), (7.0, "c", 13.0)],
]
FIRST_OBS = [1.0, 6.0]
GAMMA = 0.5


class Scripted:
    """An EnvBatch that plays STEPS, in next_step autoreset; all actions but number t are illegal at step t."""

    num_envs = NUM_ENVS
    offers_state = True

    def __init__(self, has_masks: bool) -> None:
        self.has_masks = has_masks
        self.obs = np.array(FIRST_OBS, np.float32)[:, None]
        self.num_steps = 0
        self.actions: list[np.ndarray] = []

    @property
    def action_mask(self) -> np.ndarray | None:
        return self._mask(self.num_steps) if self.has_masks else None

    def _mask(self, number: int) -> np.ndarray:
        return np.tile(np.arange(5) == number, (NUM_ENVS, 1))

    def step(self, actions: np.ndarray) -> EnvStep:
        reward, end, number = (np.array(column) for column in zip(*STEPS[self.num_steps], strict=True))
        self.num_steps += 1
        self.actions.append(actions)
        ended = (end == "t") | (end == "c")
        next_obs = number.astype(np.float32)[:, None]
        self.obs = next_obs
        return EnvStep(
            next_obs=next_obs,
            reward=reward.astype(np.float32),
            terminated=end == "t",
            truncated=end == "c",
            valid=end != "r",
            obs=next_obs,
            next_action_mask=self._mask(self.num_steps) if self.has_masks else None,
            episode_returns=np.full(ended.sum(), 42.0),
            episode_lengths=np.full(ended.sum(), 3),
            episode_envs=np.flatnonzero(ended),
        )


class TenTimes:
    """Acts by step number, and values an observation at ten times its number; counts inference calls."""

    def __init__(self) -> None:
        self.masks: list[np.ndarray | None] = []
        self.num_calls = 0

    def act(self, network: object, obs: np.ndarray, mask: np.ndarray | None, *rest: object) -> Acted:
        self.num_calls += 1
        action = np.full(len(obs), 3) if mask is None else mask.argmax(axis=1)
        return Acted(action, np.full(len(obs), -0.5, np.float32), 10 * obs[:, 0])

    def values(self, network: object, obs: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        self.num_calls += 1
        self.masks.append(mask)
        return 10 * obs[:, 0]


@pytest.fixture
def played(experiment: MakeExperiment) -> Callable[[bool], tuple[Trajectories, Receipt, Scripted, TenTimes]]:
    def play(has_masks: bool) -> tuple[Trajectories, Receipt, Scripted, TenTimes]:
        config = experiment("qfleet/Identity-v0", {"algo": "a2c", "algo.gamma": GAMMA}).config
        blueprint = make_blueprint(config, probe_spec(config.env, None))
        actor = RolloutActor(blueprint, "worker-0", blueprint.build_network())
        actor.envs.close()
        envs, algorithm, receipt = Scripted(has_masks), TenTimes(), Receipt()
        actor.envs, actor.algorithm = envs, algorithm  # type: ignore[assignment]
        return actor.rollout(Progress(), len(STEPS), 7, receipt), receipt, envs, algorithm

    return play


def test_truncations_are_bootstrapped_and_terminations_are_not(played: Callable[..., Any]) -> None:
    trajectories, receipt, _, algorithm = played(False)
    # Environment 1 is cut at step 0 (5 + 0.5 * 70) and at step 3 (7 + 0.5 * 130); environment 0 never.
    valid = np.array([[1, 1], [1, 0], [0, 1], [1, 1]], bool)
    np.testing.assert_array_equal(trajectories.valid, valid)
    reward = np.array([[1, 40], [2, 0], [0, 6], [3, 72]], np.float32)
    np.testing.assert_array_equal(np.where(valid, trajectories.reward, 0), reward)
    np.testing.assert_array_equal(trajectories.discount, [[0.5, 0], [0, 0], [0, 0.5], [0.5, 0]])
    np.testing.assert_array_equal(trajectories.obs[..., 0], [[1, 6], [2, 7], [3, 11], [4, 12]])
    np.testing.assert_array_equal(trajectories.value, [[10, 60], [20, 70], [30, 110], [40, 120], [50, 130]])
    np.testing.assert_array_equal(trajectories.last_obs[:, 0], [5, 13])
    assert trajectories.version == 7
    assert algorithm.num_calls == 4 + 1, "one call a step, and one for all that is bootstrapped"
    assert (receipt.num_env_steps, receipt.num_inserted) == (6, 8)
    assert receipt.episode_returns == [42.0] * 3


def test_nothing_leaks_over_an_episodes_end(played: Callable[..., Any]) -> None:
    trajectories, *_ = played(False)
    # lambda = 1. Environment 0: G_3 = 3 + 0.5 * 50 = 28; G_1 = 2 (the end); G_0 = 1 + 0.5 * 2 = 2.
    # Environment 1: G_3 = 72; G_2 = 6 + 0.5 * 72 = 42; G_0 = 40 (cut off).
    target = lambda_returns(trajectories.reward, trajectories.discount, trajectories.value, 1.0)
    rows = rollout_rows(trajectories, target)
    assert rows.target[rows.weight > 0].tolist() == [2, 40, 2, 42, 28, 72]
    np.testing.assert_allclose(rows.weight, np.array([1, 1, 1, 0, 0, 1, 1, 1]) * 8 / 6)
    np.testing.assert_array_equal(rows.obs[:, 0], [1, 6, 2, 7, 3, 11, 4, 12])


def test_masks_are_kept_with_the_observations_that_they_belong_to(played: Callable[..., Any]) -> None:
    trajectories, _, envs, algorithm = played(True)
    np.testing.assert_array_equal(trajectories.action, [[t] * NUM_ENVS for t in range(4)])
    np.testing.assert_array_equal(envs.actions, trajectories.action)
    np.testing.assert_array_equal(trajectories.action_mask.argmax(axis=2), trajectories.action)
    np.testing.assert_array_equal(trajectories.last_action_mask.argmax(axis=1), [4, 4])
    # The last observations', then those of the two that were cut off, after steps 0 and 3.
    np.testing.assert_array_equal(algorithm.masks[0].argmax(axis=1), [4, 4, 1, 4])


def test_the_first_gradient_of_a_rollout_is_computed_where_it_was_made(experiment: MakeExperiment) -> None:
    config = experiment("CartPole-v1", {"algo": "a2c", "strategy": "parameter_server"}).config
    blueprint = make_blueprint(config, probe_spec(config.env, None))
    server, worker = ParameterServer(blueprint, "server-0"), GradientWorker(blueprint, "worker-0")
    old = server.publish().payload
    server.version = server.target_version = 5
    server.online += 0.01
    new = server.publish().payload
    assert new.target is None, "there is no target network to send"
    worker.collect_with(Progress(), 4, old)
    assert [worker.gradient(new).receipt.version for _ in range(3)] == [0, 5, 5]
    worker.collect_with(Progress(), 4, new)
    assert worker.local_update(2, new).receipt.version == 5
    # A new life has no rollout to be true to.
    worker.collect_with(Progress(), 4, old)
    worker.restore(1, "", [], new)
    assert worker.learner.version == 5
    assert len(worker.replay) == 0
    worker.close()
