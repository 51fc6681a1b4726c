"""MinAtar: all five games in both versions, and a reset with a seed that forgets everything."""

from __future__ import annotations

import numpy as np
import pytest

from qfleet.envs.config import EnvConfig
from qfleet.envs.make import make_env_batch, probe_spec
from qfleet.envs.source import find_source

pytest.importorskip("minatar")

GAMES = [("Breakout", 4, 3), ("Freeway", 7, 3), ("Asterix", 4, 5), ("Seaquest", 10, 6), ("SpaceInvaders", 6, 4)]


@pytest.mark.parametrize(("game", "channels", "num_actions"), GAMES)
def test_facts(game: str, channels: int, num_actions: int) -> None:
    minimal = probe_spec(EnvConfig(id=f"MinAtar/{game}-v1"))
    assert (minimal.obs_shape, minimal.obs_dtype, minimal.num_actions) == ((10, 10, channels), "bool", num_actions)
    assert probe_spec(EnvConfig(id=f"MinAtar/{game}-v0")).num_actions == 6
    assert minimal.frames_per_step == 1


@pytest.mark.parametrize("game", [game for game, _, _ in GAMES])
def test_a_seed_decides_everything_whatever_was_played_before(game: str) -> None:
    config = EnvConfig(id=f"MinAtar/{game}-v1", num_envs=2, kwargs={"sticky_action_prob": 0.9})
    fresh, used = make_env_batch(config), make_env_batch(config)
    used.reset(9)
    for _ in range(50):
        used.step(np.full(2, used.spec.num_actions - 1))
    np.testing.assert_array_equal(fresh.reset(4), used.reset(4))
    for t in range(60):
        action = np.full(2, t % fresh.spec.num_actions)
        ours, theirs = fresh.step(action), used.step(action)
        np.testing.assert_array_equal(ours.next_obs, theirs.next_obs)
        np.testing.assert_array_equal(ours.reward, theirs.reward)


def test_boards_stay_bools() -> None:
    envs = make_env_batch(EnvConfig(id="MinAtar/Breakout-v1", num_envs=2))
    obs = envs.reset(0)
    assert obs.dtype == np.bool_
    assert obs[:, :, :, 3].sum(axis=(1, 2)).tolist() == [30, 30]  # three rows of bricks


def test_pictures_are_bytes() -> None:
    env = find_source(EnvConfig(id="MinAtar/Breakout-v1", kwargs={"render_mode": "rgb_array"})).build()
    env.reset(seed=0)
    picture = env.render()
    assert isinstance(picture, np.ndarray)
    assert (picture.shape, picture.dtype) == ((160, 160, 3), np.uint8)
    assert 100 < picture.max() <= 255
