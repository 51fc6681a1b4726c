"""Environments that offer their state continue bit for bit."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from qfleet.envs.config import EnvConfig
from qfleet.envs.make import make_env_batch
from qfleet.envs.vector import EnvBatch
from qfleet.errors import CheckpointError

SCRIPT = {"rewards": (1.0, 2.0, 4.0), "ends": ("", "terminated", ""), "stagger": 1}
CASES = [
    EnvConfig(id="qfleet/Script-v0", kwargs=SCRIPT, num_envs=3),
    EnvConfig(id="qfleet/Script-v0", kwargs=SCRIPT | {"masks": True}, num_envs=3),
    EnvConfig(id="qfleet/Chain-v0", kwargs={"mode": "continue", "random_start": True}, max_episode_steps=7, num_envs=3),
    EnvConfig(id="qfleet/Identity-v0", kwargs={"length": 4}, num_envs=3),
]


def actions_for(batch: EnvBatch, generator: np.random.Generator) -> Any:
    chances = generator.random((batch.num_envs, batch.spec.num_actions))
    return (chances if batch.action_mask is None else chances * batch.action_mask).argmax(axis=1)


def trace(batch: EnvBatch, num_steps: int, seed: int) -> list[list[Any]]:
    generator = np.random.default_rng(seed)
    steps = [batch.step(actions_for(batch, generator)) for _ in range(num_steps)]
    return [[np.asarray(getattr(step, field.name)).tolist() for field in fields(step)] for step in steps]


@pytest.mark.parametrize("autoreset", ["next_step", "same_step"])
@pytest.mark.parametrize("config", CASES)
@pytest.mark.parametrize("num_before", range(8))
def test_a_fresh_batch_continues_exactly(config: EnvConfig, autoreset: str, num_before: int) -> None:
    config = config.model_copy(update={"autoreset": autoreset})
    batch = make_env_batch(config)
    assert batch.offers_state
    batch.reset(seed=11)
    trace(batch, num_before, seed=0)
    state = batch.get_state()
    obs_then = batch.obs.tolist()
    # 20 steps on: what was saved must not have moved with the environment.
    uninterrupted = trace(batch, 20, seed=1)

    fresh = make_env_batch(config)
    fresh.set_state(state)
    assert fresh.obs.tolist() == obs_then
    assert trace(fresh, 20, seed=1) == uninterrupted


def test_state_is_plain_arrays() -> None:
    batch = make_env_batch(CASES[1])
    batch.reset(seed=0)
    assert all(isinstance(array, np.ndarray) and array.dtype != object for array in batch.get_state().values())


class Remembering(gym.Wrapper[Any, Any, Any, Any]):
    """A wrapper that might hold state and offers none."""


@pytest.mark.parametrize(
    "factory",
    [lambda: gym.make("CartPole-v1"), lambda: Remembering(gym.make("qfleet/Chain-v0"))],
    ids=["no state", "state hidden behind a wrapper"],
)
def test_state_is_not_offered_where_it_would_be_incomplete(factory: Any) -> None:
    batch = make_env_batch(EnvConfig(num_envs=2), factory=factory)
    batch.reset(seed=0)
    assert not batch.offers_state
    with pytest.raises(RuntimeError, match="offers no state"):
        batch.get_state()


def test_the_checking_wrappers_of_gymnasium_do_not_hide_the_state() -> None:
    batch = make_env_batch(EnvConfig(num_envs=2), factory=lambda: gym.make("qfleet/Chain-v0", max_episode_steps=3))
    assert batch.offers_state


def test_a_state_of_other_environments_is_refused() -> None:
    batch = make_env_batch(CASES[0])
    batch.reset(seed=0)
    with pytest.raises(CheckpointError, match=r"does not fit 2 x qfleet/Script-v0"):
        make_env_batch(CASES[0], num_envs=2).set_state(batch.get_state())
    state = {name: array for name, array in batch.get_state().items() if not name.startswith("env/1/")}
    with pytest.raises(CheckpointError, match="nothing for env/1"):
        make_env_batch(CASES[0]).set_state(state)
