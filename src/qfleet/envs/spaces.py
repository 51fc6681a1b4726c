"""From any observation and action space to what training takes: one Box array, one Discrete choice.

Dict, Tuple and Discrete observations are flattened (Gymnasium's order, discrete parts one-hot); MultiDiscrete
actions become one choice over all combinations, Box actions one over evenly spaced values where asked for.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import FlattenObservation

from qfleet.errors import UsageError
from qfleet.types import Array

SingleEnv = gym.Env[Any, Any]
AnySpace = gym.Space[Any]

MAX_ACTIONS = 10_000


class TableAction(gym.ActionWrapper[Any, Any, Any]):
    """A discrete choice that looks its action up in a table.

    Args:
        env: an environment with array actions.
        table: [A, *S], row a is the action that choice a stands for; S the shape of an action of `env`.
    """

    def __init__(self, env: SingleEnv, table: Array) -> None:
        super().__init__(env)
        self.table = table
        self.action_space = spaces.Discrete(len(table))

    def action(self, action: int) -> Array:
        """The row as a fresh array: environments may change an action in place."""
        return np.array(self.table[action])


def fits_unwrapped(obs_space: AnySpace, action_space: AnySpace) -> bool:
    """Whether training can take both spaces as they are."""
    return _is_array(obs_space) and isinstance(action_space, spaces.Discrete)


def obs_dtype(obs_space: AnySpace) -> str:
    """ "uint8" and "bool" for observations of bytes, which replay stores as they are; "float32" for everything else."""
    return str(obs_space.dtype) if obs_space.dtype in (np.uint8, np.bool_) else "float32"


def adapt_spaces(env: SingleEnv, label: str, discretize: int | None) -> SingleEnv:
    """`env` in wrappers such that `fits_unwrapped` holds.

    Args:
        label: the environment's name, for messages.
        discretize: values per dimension of a Box action, None to refuse such actions.

    Raises:
        UsageError: a space that cannot be adapted, or not with this `discretize`; says which and what to do.
    """
    if not _is_array(env.observation_space):
        if not isinstance(flat := _flat_space(env.observation_space), spaces.Box):
            raise UsageError(
                f"environment {label}: cannot learn from its observation space {one_line(env.observation_space)}; "
                f"flattened it is {'not possible' if flat is None else one_line(flat)}, so wrap it to give a Box"
            )
        env = FlattenObservation(env)
    space = env.action_space
    if discretize is not None and not isinstance(space, spaces.Box):
        raise UsageError(
            f"environment {label}: env.discretize={discretize} is for continuous actions, but its action space is "
            f"{one_line(space)}; remove env.discretize"
        )
    if isinstance(space, spaces.Discrete):
        return env
    if isinstance(space, spaces.MultiDiscrete):
        return TableAction(env, multi_discrete_table(space, label))
    if isinstance(space, spaces.Box):
        return TableAction(env, box_table(space, label, discretize))
    raise UsageError(
        f"environment {label}: Q-learning needs discrete actions, but its action space is {one_line(space)}; "
        "wrap it to give a Discrete or MultiDiscrete action space"
    )


def multi_discrete_table(space: spaces.MultiDiscrete, label: str) -> Array:
    """[A, *S]: all combinations in mixed-radix order, the last component varying fastest.

    Raises:
        UsageError: more than MAX_ACTIONS combinations.
    """
    sizes = [int(size) for size in space.nvec.ravel()]
    _require_few(math.prod(sizes), label, space, "wrap it to offer fewer actions")
    choices = np.array(list(itertools.product(*map(range, sizes))), dtype=space.dtype)
    return choices.reshape(-1, *space.shape) + space.start


def box_table(space: spaces.Box, label: str, num_values: int | None) -> Array:
    """[num_values^n, *S]: all combinations of evenly spaced values, from low to high, of the n components.

    Raises:
        UsageError: `num_values` is None, a bound is infinite, or there are more than MAX_ACTIONS combinations.
    """
    if num_values is None:
        raise UsageError(
            f"environment {label}: Q-learning needs discrete actions, but its action space is {one_line(space)}; "
            "hint: --set env.discretize=N chooses among N values per dimension"
        )
    if not space.is_bounded("both"):
        raise UsageError(
            f"environment {label}: env.discretize={num_values} needs finite bounds, but its action space is "
            f"{one_line(space)}; wrap it in gymnasium.wrappers.RescaleAction or ClipAction"
        )
    num_components = int(np.prod(space.shape))
    _require_few(num_values**num_components, label, space, f"lower env.discretize={num_values}")
    columns = [np.linspace(low, high, num_values) for low, high in zip(space.low.flat, space.high.flat, strict=True)]
    combinations = np.array(list(itertools.product(*columns))).reshape(-1, *space.shape)
    return combinations.astype(space.dtype)


def _require_few(num_actions: int, label: str, space: AnySpace, hint: str) -> None:
    if num_actions > MAX_ACTIONS:
        raise UsageError(
            f"environment {label}: its action space {one_line(space)} would become {num_actions:,} discrete actions, "
            f"more than {MAX_ACTIONS:,}; {hint}"
        )


def _is_array(space: AnySpace) -> bool:
    return isinstance(space, spaces.Box) and len(space.shape) >= 1


def _flat_space(space: AnySpace) -> AnySpace | None:
    try:
        return spaces.utils.flatten_space(space)
    except NotImplementedError:
        return None


def one_line(space: AnySpace) -> str:
    """A space as text without line breaks, which long bounds would bring."""
    return " ".join(str(space).split())
