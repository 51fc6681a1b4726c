"""MinAtar's five games (Young and Tian 2019): importing this module registers MinAtar/Breakout-v1 and its like.

The games are the package's own, under the GPL version 3; nothing of them is here. Observations are bool [10, 10, C].
Floor 2.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import minatar.gym
import numpy as np

from qfleet.types import Array

ENTRY_POINT = "minatar.gym:BaseEnv"
_PIXELS = 16  # a square of the board on a picture

if "MinAtar/Breakout-v1" not in gym.registry:
    minatar.gym.register_envs()


class SeededGame(gym.Wrapper[Any, Any, Any, Any]):
    """A game whose reset with a seed forgets everything, also the action that a sticky one would repeat.

    Pictures are uint8 and large enough to look at.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.metadata = {**env.metadata, "render_fps": 10}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """As the game's."""
        if seed is not None:
            self.env.unwrapped.game.last_action = 0  # type: ignore[attr-defined]
        obs, info = self.env.reset(seed=seed, options=options)
        return obs, info

    def render(self) -> Any:
        """uint8 [160, 160, 3] for "rgb_array", else what the game gives."""
        picture = self.env.render()
        if self.render_mode != "rgb_array":
            return picture
        scaled = (np.asarray(picture) * 255.0).astype(np.uint8)
        return scaled.repeat(_PIXELS, axis=0).repeat(_PIXELS, axis=1)
