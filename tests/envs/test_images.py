"""[env.image]: what each option does to pictures whose pixels are known, and what it refuses."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from qfleet.envs.config import EnvConfig
from qfleet.envs.make import make_env_batch
from qfleet.errors import MissingExtraError, UsageError

pytest.importorskip("cv2")


class Slides(gym.Env[Any, Any]):
    """Picture t is red 10 t, green 10 t + 1, blue 10 t + 2 all over; ends after `length` steps, each worth t."""

    observation_space = spaces.Box(0, 255, (6, 8, 3), np.uint8)
    action_space = spaces.Discrete(2)

    def __init__(self, length: int = 5) -> None:
        self.length = length

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self.picture(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return self.picture(), float(self.t), False, self.t >= self.length, {}

    def picture(self) -> Any:
        return np.broadcast_to(np.array([0, 1, 2], np.uint8) + np.uint8(10 * self.t), (6, 8, 3)).copy()


def batch(length: int = 5, **image: Any) -> Any:
    return make_env_batch(
        EnvConfig(num_envs=1, image=image, max_episode_steps=None, kwargs={"length": length}), 1, Slides
    )


ACT = np.zeros(1, np.int64)


def test_without_options_nothing_changes() -> None:
    envs = batch()
    assert envs.spec.obs_shape == (6, 8, 3)
    assert envs.spec.frames_per_step == 1
    assert envs.reset(0)[0, 0, 0].tolist() == [0, 1, 2]


def test_gray_and_size() -> None:
    envs = batch(gray=True, size=4)
    assert envs.reset(0).shape == (1, 4, 4)
    # A gray of 0.299 R + 0.587 G + 0.114 B of (10, 11, 12) is 10.8.
    assert abs(float(envs.step(ACT).obs.mean()) - 10.8) <= 1.0


def test_frames_are_stacked_oldest_first_and_never_across_an_episodes_border() -> None:
    envs = batch(length=3, gray=True, stack=3)
    envs.reset(0)
    seen = [envs.step(ACT) for _ in range(4)]

    def shades(obs: Any) -> list[int]:
        return [round(float(plane.mean()), -1) for plane in obs[0]]

    assert [shades(step.next_obs) for step in seen] == [[0, 0, 10], [0, 10, 20], [10, 20, 30], [0, 0, 10]]
    assert seen[2].truncated.all()
    assert shades(seen[2].obs) == [0, 0, 0]  # black, black, the first picture: nothing of the episode before


def test_colours_are_stacked_as_planes() -> None:
    envs = batch(stack=2)
    assert envs.spec.obs_shape == (6, 6, 8)
    envs.reset(0)
    assert envs.step(ACT).obs[0, :, 0, 0].tolist() == [0, 1, 2, 10, 11, 12]


def test_skipping_sums_rewards_and_shows_the_newest_frame_at_an_early_end() -> None:
    envs = batch(length=5, skip=3)
    envs.reset(0)
    first, second = envs.step(ACT), envs.step(ACT)
    assert first.reward.tolist() == [1 + 2 + 3]
    assert first.next_obs[0, 0, 0, 0] == 30
    assert second.reward.tolist() == [4 + 5]
    assert second.truncated.all()
    assert second.next_obs[0, 0, 0, 0] == 50  # the true last one, not one of the step before
    assert second.episode_lengths.tolist() == [2]
    assert envs.spec.frames_per_step == 3


def test_a_registered_limit_counts_frames_and_one_of_the_configuration_env_steps() -> None:
    gym.register("SlidesLimited-v0", entry_point=Slides, max_episode_steps=7, kwargs={"length": 99})
    try:
        registered = make_env_batch(EnvConfig(id="SlidesLimited-v0", num_envs=1, image={"skip": 3}))
        assert registered.spec.max_episode_steps == 3  # 7 frames at 3 a step
        own = make_env_batch(EnvConfig(id="SlidesLimited-v0", num_envs=1, image={"skip": 3}, max_episode_steps=5))
        for envs, limit in ((registered, 3), (own, 5)):
            envs.reset(0)
            assert [bool(envs.step(ACT).truncated[0]) for _ in range(limit)] == [False] * (limit - 1) + [True]
    finally:
        del gym.registry["SlidesLimited-v0"]


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"CartPole-v1: \[env\.image\] is for images, .* leave \[env\.image\] out"):
        make_env_batch(EnvConfig(id="CartPole-v1", image={"gray": True}))
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(MissingExtraError, match=r"needs cv2, which is not installed: pip install 'qfleet\[atari\]'"):
        batch(size=4)
