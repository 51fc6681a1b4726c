"""An environment of Atari-sized stacks of noise, for the image policy that benchmarks/serving.py serves."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np


class Noise(gym.Env[np.ndarray, np.int64]):
    """uint8 [4, 84, 84]; 6 actions; episodes of 100 steps."""

    observation_space = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
    action_space = gym.spaces.Discrete(6)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.time = 0
        return self._look(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.time += 1
        return self._look(), 0.0, self.time == 100, False, {}

    def _look(self) -> np.ndarray:
        return self.np_random.integers(0, 256, (4, 84, 84), np.uint8)
