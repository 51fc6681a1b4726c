"""Atari games: the field's preprocessing, by ale-py's own vector version or by Gymnasium's wrappers on one copy.

The start of a transition's path, floor 2. Both give the same pixels (tests/envs/test_atari.py). Mnih et al. (2015);
Machado et al. (2018), "Revisiting the Arcade Learning Environment".
"""

from __future__ import annotations

import copy
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec as Registration
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation, TimeLimit

from qfleet.envs.config import AtariConfig
from qfleet.errors import UsageError
from qfleet.types import Array

SingleEnv = gym.Env[Any, Any]

ENTRY_POINT = "ale_py.env:AtariEnv"
FRAMES_PER_SECOND = 60
MAX_FRAMES = 108_000  # half an hour of play, as all published scores have it
# Arguments of the game's constructor that the preprocessing sets, and the field that stands for each.
_FIELD_OF = {
    "frameskip": "frame_skip",
    "repeat_action_probability": "sticky_actions",
    "full_action_space": "full_action_space",
    "obs_type": "preprocessing",
    "max_num_frames_per_episode": "preprocessing",
}
_MAX_SEED = 2**31 - 1


def is_atari(registration: Registration | None) -> bool:
    """Whether a registered name is one of ale-py's games."""
    return registration is not None and registration.entry_point == ENTRY_POINT


def check_arguments(kwargs: dict[str, object], label: str) -> None:
    """Refuse constructor arguments that the preprocessing decides.

    Raises:
        UsageError: naming the field to set instead.
    """
    for name in kwargs.keys() & _FIELD_OF.keys():
        instead = "--set env.atari.preprocessing=false"
        if _FIELD_OF[name] != "preprocessing":
            instead = f"--set env.atari.{_FIELD_OF[name]}=..., or {instead}"
        raise UsageError(f"environment {label}: env.kwargs.{name} is set by the Atari preprocessing; use {instead}")


def max_steps(config: AtariConfig) -> int:
    """The game's own time limit in env steps."""
    return max(MAX_FRAMES // config.frame_skip, 1)


def make_single(
    registration: Registration, kwargs: dict[str, object], config: AtariConfig, limit: int | None
) -> SingleEnv:
    """One preprocessed copy, stepped by Gymnasium's wrappers: observations uint8 [stack, size, size].

    Args:
        registration: of one of ale-py's games.
        kwargs: further arguments for it.
        config: the preprocessing.
        limit: time limit in env steps.
    """
    registration = copy.deepcopy(registration)
    registration.order_enforce = False
    arguments = {**kwargs, "frameskip": 1, "full_action_space": config.full_action_space, "obs_type": "grayscale"}
    # Its limit would count the no-ops too.
    arguments["max_num_frames_per_episode"] = 0
    if config.sticky_actions != "registered":
        arguments["repeat_action_probability"] = config.sticky_actions
    # The limit that Gymnasium would put around it would count frames: -1 is none.
    env: SingleEnv = gym.make(registration, max_episode_steps=-1, disable_env_checker=True, **arguments)
    if config.fire_reset and "FIRE" in env.unwrapped.get_action_meanings():  # type: ignore[attr-defined]
        env = FireReset(env)
    env = AtariPreprocessing(env, noop_max=config.noop_max, frame_skip=config.frame_skip, screen_size=config.size)
    env = TimeLimit(FrameStackObservation(env, config.stack, padding_type="zero"), limit or max_steps(config))
    env.metadata = {**env.metadata, "render_fps": FRAMES_PER_SECOND}
    return env


def vector_arguments(config: AtariConfig, limit: int | None, num_envs: int) -> dict[str, object]:
    """The same preprocessing as arguments of ale-py's AtariVectorEnv.

    Rewards come unclipped, for the returns; a lost life is told by `lives` alone, for its own `episodic_life` would
    begin a new game at each. Its no-ops are drawn from 0 to noop_max - 1.
    """
    arguments: dict[str, object] = {
        "frameskip": config.frame_skip,
        "maxpool": config.frame_skip > 1,
        "stack_num": config.stack,
        "img_height": config.size,
        "img_width": config.size,
        "grayscale": True,
        "noop_max": config.noop_max + 1 if config.noop_max else 0,
        "use_fire_reset": config.fire_reset,
        "episodic_life": False,
        "life_loss_info": False,
        "reward_clipping": False,
        "full_action_space": config.full_action_space,
        "max_num_frames_per_episode": config.frame_skip * (limit or max_steps(config)),
        "num_threads": min(_num_threads(config), num_envs),
    }
    if config.sticky_actions != "registered":
        arguments["repeat_action_probability"] = config.sticky_actions
    return arguments


class AtariVector(gym.vector.VectorWrapper[Any, Any, Any, Any, Any]):
    """ale-py's vector environment with seeds of 32 bits folded into the 31 that it can take.

    Attributes:
        gives_fresh_arrays: its arrays are new ones at each step, which nobody writes again: no copy is needed.
    """

    gives_fresh_arrays = True

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """As ale-py's; environment i is seeded with seed + i."""
        folded = None if seed is None else seed % (_MAX_SEED - self.num_envs)
        obs, info = self.env.reset(seed=folded, options=options)
        return obs, info

    def close(self, **kwargs: Any) -> None:
        """Ends its threads."""
        self.env.close(**kwargs)
        vars(self.env.unwrapped).pop("ale", None)


class FireReset(gym.Wrapper[Any, Any, Any, Any]):
    """Presses FIRE once after a reset, for games that do not begin without it."""

    def __init__(self, env: SingleEnv) -> None:
        super().__init__(env)
        self._fire = list(env.unwrapped.get_action_meanings()).index("FIRE")  # type: ignore[attr-defined]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """The observation after FIRE."""
        self.env.reset(seed=seed, options=options)
        obs, _, terminated, truncated, info = self.env.step(self._fire)
        if terminated or truncated:
            obs, info = self.env.reset(options=options)
        return np.asarray(obs), info


def _num_threads(config: AtariConfig) -> int:
    if config.num_threads != "auto":
        return config.num_threads
    import torch

    return torch.get_num_threads()
