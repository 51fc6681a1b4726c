"""The toy environments behave as their closed forms say."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from qfleet.envs.config import EnvConfig
from qfleet.envs.make import make_env_batch, probe_spec
from qfleet.envs.toy import Bandit, Chain, Identity, MaskedChain, Script, ShortOrLong

GAMMA = 0.9


def q_by_iteration(env: Chain, gamma: float) -> np.ndarray:
    """Value iteration over the environment's own step; it uses no closed form."""
    q = np.zeros((env.num_states, int(env.action_space.n)))
    for _ in range(400):
        values = q.max(axis=1)
        q = np.full_like(q, -np.inf)
        for state in range(env.num_states):
            mask = env.action_mask(state) if isinstance(env, MaskedChain) else np.ones(q.shape[1], dtype=bool)
            for action in np.flatnonzero(mask):
                env.reset(seed=0)
                env.counters[0] = state
                obs, reward, terminated, _, _ = env.step(int(action))
                q[state, action] = reward + gamma * (1 - terminated) * values[obs.argmax()]
    return q


@pytest.mark.parametrize("kind", [Chain, MaskedChain])
@pytest.mark.parametrize("mode", ["terminate", "continue"])
@pytest.mark.parametrize("num_states", [1, 4, 5])
def test_optimal_q_is_the_fixed_point(kind: Any, mode: Any, num_states: int) -> None:
    env = kind(num_states, mode)
    np.testing.assert_allclose(env.optimal_q(GAMMA), q_by_iteration(env, GAMMA), atol=1e-9)


def test_optimal_q_of_a_small_chain_by_hand() -> None:
    # Right in state 1 ends with 1; state 0 is one step further; left leads to state 0 in both.
    np.testing.assert_allclose(Chain(2).optimal_q(0.5), [[0.25, 0.5], [0.25, 1.0]])
    # Going on for ever the last state is worth 1 / (1 - 0.5) = 2.
    np.testing.assert_allclose(Chain(2, "continue").optimal_q(0.5), [[0.5, 1.0], [0.5, 2.0]])


def test_chain_truncates_at_its_time_limit_only() -> None:
    env = Chain(2, "continue", time_limit=4)
    env.reset(seed=0)
    results = [env.step(1) for _ in range(4)]
    assert [(reward, terminated, truncated) for _, reward, terminated, truncated, _ in results] == [
        (0.0, False, False),
        (1.0, False, False),
        (1.0, False, False),
        (1.0, False, True),
    ]


def test_masked_chain_refuses_illegal_actions() -> None:
    env = MaskedChain(3)
    _, info = env.reset(seed=0)
    assert info["action_mask"].tolist() == [False, True, True]
    with pytest.raises(ValueError, match="action 0 is illegal in state 0"):
        env.step(0)
    obs, _, _, _, info = env.step(2)
    assert obs.tolist() == [0.0, 0.0, 1.0]
    assert info["action_mask"].tolist() == [True, True, False]


def test_identity_pays_for_the_shown_action_only() -> None:
    env = Identity(num_actions=3, length=20)
    obs, _ = env.reset(seed=0)
    shown = []
    for step in range(20):
        right = int(obs.argmax())
        shown.append(right)
        obs, reward, terminated, truncated, _ = env.step(right if step % 2 else (right + 1) % 3)
        assert reward == step % 2
        assert (terminated, truncated) == (step == 19, False)
    assert set(shown) == {0, 1, 2}


def test_bandit_pays_both_outcomes_of_an_arm() -> None:
    env = Bandit(outcomes=((0.4, 0.4), (0.0, 3.0)))
    paid: dict[int, set[float]] = {0: set(), 1: set()}
    env.reset(seed=0)
    for k in range(40):
        _, reward, terminated, _, _ = env.step(k % 2)
        paid[k % 2].add(reward)
        assert terminated
    assert paid == {0: {0.4}, 1: {0.0, 3.0}}
    assert env.optimal_q().tolist() == [0.4, 1.5]


def test_script_needs_an_end_for_each_reward() -> None:
    with pytest.raises(ValueError, match="2 rewards and 1 ends"):
        Script(rewards=(1.0, 2.0), ends=("",))


@pytest.mark.parametrize("name", ["Identity", "Chain", "MaskedChain", "Bandit", "Script"])
def test_each_is_registered_and_keeps_gymnasiums_contract(name: str) -> None:
    spec = probe_spec(EnvConfig(id=f"qfleet/{name}-v0"))
    assert spec.has_action_mask == (name == "MaskedChain")
    batch = make_env_batch(EnvConfig(id=f"qfleet/{name}-v0", num_envs=2))
    assert batch.offers_state
    env = gym.make(f"qfleet/{name}-v0").unwrapped
    obs, _ = env.reset(seed=0)
    assert env.observation_space.contains(obs)
    obs, reward, *_ = env.step(1)
    assert env.observation_space.contains(obs)
    assert isinstance(reward, float)


def test_short_and_long_episodes_pay_a_reward_a_step() -> None:
    env = ShortOrLong(short=2, long=5)
    lengths = []
    env.reset(seed=0)
    for _ in range(40):
        rewards, is_over = 0.0, False
        while not is_over:
            obs, reward, is_over, truncated, _ = env.step(0)
            rewards += reward
            assert not truncated
        assert rewards == env.lengths[int(obs.argmax())]
        lengths.append(rewards)
        env.reset()
    assert set(lengths) == {2.0, 5.0}
