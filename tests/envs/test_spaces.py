"""Observation and action spaces of every kind become one array and one discrete choice, or are refused."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from qfleet.envs.config import EnvConfig
from qfleet.envs.make import make_env_batch, probe_spec
from qfleet.envs.vector import EnvBatch
from qfleet.errors import EnvError, UsageError


class Spaces(gym.Env[Any, Any]):
    """Shows `obs`, remembers the actions that it was given."""

    def __init__(self, observation_space: Any = None, obs: Any = None, action_space: Any = None) -> None:
        self.observation_space = observation_space or spaces.Box(0, 1, (1,), np.float32)
        self.action_space = action_space or spaces.Discrete(2)
        self.obs = np.zeros(1, np.float32) if obs is None else obs
        self.taken: list[Any] = []

    def reset(self, **kwargs: Any) -> Any:
        super().reset(**kwargs)
        return self.obs, {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), action
        self.taken.append(action.tolist())
        return self.obs, 0.0, False, False, {}


def make(num_envs: int = 1, discretize: int | None = None, **kwargs: Any) -> EnvBatch:
    config = EnvConfig(id="Mine", num_envs=num_envs, discretize=discretize)
    return make_env_batch(config, factory=lambda: Spaces(**kwargs))


def refusal(discretize: int | None = None, **kwargs: Any) -> str:
    with pytest.raises(UsageError) as caught:
        make(discretize=discretize, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("space", "obs", "expected"),
    [
        (spaces.Discrete(3), 2, [0, 0, 1]),
        (spaces.Discrete(3, start=4), 4, [1, 0, 0]),
        (spaces.MultiDiscrete([2, 3]), np.array([1, 0]), [0, 1, 1, 0, 0]),
        (spaces.MultiBinary(3), np.array([1, 0, 1], np.int8), [1, 0, 1]),
        (spaces.Box(0, 9, (), np.float64), np.array(7.5), [7.5]),
        (spaces.Box(-1, 1, (2,), np.float64), np.array([0.25, -0.5]), [0.25, -0.5]),
        (spaces.Tuple([spaces.Discrete(2), spaces.Box(0, 9, (1,))]), (1, np.array([3.5])), [0, 1, 3.5]),
        (
            # Gymnasium orders the parts of a Dict by key.
            spaces.Dict({"b": spaces.Box(0, 9, (2, 2), np.float32), "a": spaces.Discrete(2)}),
            {"b": np.array([[1, 2], [3, 4]], np.float32), "a": 0},
            [1, 0, 1, 2, 3, 4],
        ),
    ],
    ids=["discrete", "start", "multi-discrete", "binary", "scalar", "float64", "tuple", "dict"],
)
def test_observations_become_float32_vectors(space: Any, obs: Any, expected: list[float]) -> None:
    batch = make(num_envs=2, observation_space=space, obs=obs)
    assert batch.reset(seed=0).tolist() == [expected, expected]
    assert batch.obs.dtype == np.float32
    assert batch.spec.obs_shape == (len(expected),)
    assert batch.spec.obs_dtype == "float32"


def test_frames_stay_bytes() -> None:
    frame = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    batch = make(num_envs=2, observation_space=spaces.Box(0, 255, (2, 3, 4), np.uint8), obs=frame)
    obs = batch.reset(seed=0)
    assert obs.dtype == np.uint8
    assert (batch.spec.obs_shape, batch.spec.obs_dtype) == ((2, 3, 4), "uint8")
    np.testing.assert_array_equal(obs, np.stack([frame, frame]))


def taken(batch: EnvBatch) -> list[Any]:
    """The environment's own action for each of the A choices."""
    batch.reset(seed=0)
    for action in range(batch.spec.num_actions):
        batch.step(np.array([action]))
    actions: list[Any] = batch._env.envs[0].unwrapped.taken
    return actions


def test_multi_discrete_actions_are_all_combinations_the_last_component_fastest() -> None:
    batch = make(action_space=spaces.MultiDiscrete([2, 3], start=[0, 5]))
    assert taken(batch) == [[0, 5], [0, 6], [0, 7], [1, 5], [1, 6], [1, 7]]


@pytest.mark.filterwarnings("ignore:.*multi-dimensional MultiDiscrete space")
def test_multi_discrete_actions_keep_their_shape() -> None:
    batch = make(action_space=spaces.MultiDiscrete([[2, 1], [1, 2]]))
    assert taken(batch) == [[[0, 0], [0, 0]], [[0, 0], [0, 1]], [[1, 0], [0, 0]], [[1, 0], [0, 1]]]


def test_discretize_spaces_values_evenly_from_low_to_high() -> None:
    space = spaces.Box(np.array([-1.0, 0.0]), np.array([1.0, 4.0]), dtype=np.float64)
    assert taken(make(discretize=3, action_space=space)) == [
        *([-1.0, 0.0], [-1.0, 2.0], [-1.0, 4.0]),
        *([0.0, 0.0], [0.0, 2.0], [0.0, 4.0]),
        *([1.0, 0.0], [1.0, 2.0], [1.0, 4.0]),
    ]


def test_discretize_on_a_registered_environment() -> None:
    spec = probe_spec(EnvConfig(id="Pendulum-v1", discretize=5))
    assert (spec.num_actions, spec.max_episode_steps) == (5, 200)


@pytest.mark.parametrize(
    ("discretize", "space", "message"),
    [
        (
            None,
            spaces.Box(-2.0, 2.0, (1,)),
            "environment Mine: Q-learning needs discrete actions, but its action space is Box(-2.0, 2.0, (1,), "
            "float32); hint: --set env.discretize=N chooses among N values per dimension",
        ),
        (
            3,
            spaces.Box(-np.inf, np.inf, (1,)),
            "environment Mine: env.discretize=3 needs finite bounds, but its action space is Box(-inf, inf, (1,), "
            "float32); wrap it in gymnasium.wrappers.RescaleAction or ClipAction",
        ),
        (
            11,
            spaces.Box(-1.0, 1.0, (4,)),
            "environment Mine: its action space Box(-1.0, 1.0, (4,), float32) would become 14,641 discrete actions, "
            "more than 10,000; lower env.discretize=11",
        ),
        (
            5,
            spaces.Discrete(2),
            "environment Mine: env.discretize=5 is for continuous actions, but its action space is Discrete(2); "
            "remove env.discretize",
        ),
        (
            None,
            spaces.MultiDiscrete([101, 100]),
            "environment Mine: its action space MultiDiscrete([101 100]) would become 10,100 discrete actions, "
            "more than 10,000; wrap it to offer fewer actions",
        ),
        (
            None,
            spaces.MultiBinary(3),
            "environment Mine: Q-learning needs discrete actions, but its action space is MultiBinary(3); "
            "wrap it to give a Discrete or MultiDiscrete action space",
        ),
    ],
)
def test_action_spaces_that_are_refused(discretize: int | None, space: Any, message: str) -> None:
    assert refusal(discretize=discretize, action_space=space) == message


@pytest.mark.parametrize(
    "space",
    [
        spaces.Sequence(spaces.Discrete(2)),
        spaces.Dict({"name": spaces.Graph(spaces.Box(0, 1, (1,)), None)}),
    ],
)
def test_observation_spaces_that_are_refused(space: Any) -> None:
    assert refusal(observation_space=space).startswith("environment Mine: cannot learn from its observation space ")


def test_an_observation_that_belies_its_space_is_refused() -> None:
    with pytest.raises(EnvError) as caught:
        make(observation_space=spaces.Box(0, 1, (3,), np.float32), obs=np.zeros(2, np.float32))
    message = str(caught.value)
    assert message.startswith("environment Mine: its first reset failed: ValueError: ")
    assert message.endswith("(an observation must fit Box(0.0, 1.0, (3,), float32))")
