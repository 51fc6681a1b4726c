"""Preprocessing of environments with images: size, gray and stack by Gymnasium's wrappers, skip. Floor 2.

Atari games have a preprocessing of their own (atari.py).
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import (
    FrameStackObservation,
    GrayscaleObservation,
    ResizeObservation,
    TransformObservation,
)

from qfleet.envs.config import ImageConfig
from qfleet.errors import UsageError
from qfleet.types import Array

SingleEnv = gym.Env[Any, Any]


def wrap_image(env: SingleEnv, config: ImageConfig, label: str) -> SingleEnv:
    """`env` with images as `config` says: uint8 [H, W], [H, W, 3], [stack, H, W] or [3 * stack, H, W].

    Args:
        label: the environment's name, for messages.

    Raises:
        UsageError: its observations are no images.
        ImportError: opencv is missing, which resizes.
    """
    if config == ImageConfig():
        return env
    space = env.observation_space
    is_colour = len(space.shape or ()) == 3 and space.shape[2] == 3  # type: ignore[index]
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8 or not (is_colour or len(space.shape) == 2):
        raise UsageError(
            f"environment {label}: [env.image] is for images, uint8 [H, W] or [H, W, 3]; its observation space is "
            f"{' '.join(str(space).split())}; leave [env.image] out"
        )
    if config.skip > 1:
        env = RepeatAction(env, config.skip)
    if config.gray and is_colour:
        env = GrayscaleObservation(env)
        is_colour = False
    if config.size is not None:
        import cv2  # noqa: F401  # asked for by name, so that a missing one is named

        env = ResizeObservation(env, (config.size, config.size))
    if config.stack > 1:
        env = FrameStackObservation(env, config.stack, padding_type="zero")
        if is_colour:
            env = _colours_as_frames(env)
    return env


class RepeatAction(gym.Wrapper[Any, Any, Any, Any]):
    """Repeats each action and sums its rewards; what is observed is the newest frame, also where an episode ends early.

    Args:
        times: how often, fewer at an episode's end.
    """

    def __init__(self, env: SingleEnv, times: int) -> None:
        super().__init__(env)
        self.times = times

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """The last of the steps, with the sum of their rewards."""
        total = 0.0
        for _ in range(self.times):
            obs, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return obs, total, terminated, truncated, info


def _colours_as_frames(env: SingleEnv) -> SingleEnv:
    """[stack, H, W, 3] as [3 * stack, H, W]: the planes of the oldest frame first."""
    stack, height, width, _ = env.observation_space.shape or ()
    space = spaces.Box(0, 255, (3 * stack, height, width), np.uint8)

    def planes(obs: Array) -> Array:
        return np.moveaxis(obs, 3, 1).reshape(space.shape)

    return TransformObservation(env, planes, space)
