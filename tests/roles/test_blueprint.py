"""How replay is to be kept: frames once or in full, and the memory that is stated beforehand."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from qfleet.config import ReplayConfig
from qfleet.errors import ConfigError
from qfleet.experiment import Experiment
from qfleet.policy import make_blueprint
from qfleet.replay.frames import FrameStorage
from qfleet.roles.blueprint import replay_bytes, stores_frames_once
from qfleet.types import EnvSpec

ATARI, COLOURS = EnvSpec("a", (4, 84, 84), "uint8", 6), EnvSpec("c", (3, 84, 84), "uint8", 6)
VECTOR = EnvSpec("v", (4,), "float32", 2)


def test_frames_are_stored_once_where_observations_look_like_stacks() -> None:
    auto, always, never = (ReplayConfig(store_frames_once=choice) for choice in ("auto", True, False))
    assert [stores_frames_once(auto, spec) for spec in (ATARI, COLOURS, VECTOR)] == [True, False, False]
    assert [stores_frames_once(always, spec) for spec in (ATARI, COLOURS)] == [True, True]
    assert not stores_frames_once(never, ATARI)
    with pytest.raises(ConfigError, match=r"replay\.store_frames_once: observations of v are float32 \[4\].*false"):
        replay_bytes(always, VECTOR)
    # 8 frames of 7056 bytes in full; once: one frame, a 55th for episodes and reach, and 80 bytes of numbers.
    assert replay_bytes(never, ATARI) == 100_000 * 56_464
    assert 100_000 * 7_056 < replay_bytes(auto, ATARI) < 100_000 * 7_300


@pytest.mark.parametrize("sampler", ["uniform", "prioritized"])
def test_the_stated_memory_is_that_of_the_replay_that_is_built(
    experiment: Callable[..., Experiment], sampler: Literal["uniform", "prioritized"]
) -> None:
    run = experiment("CartPole-v1")
    blueprint = make_blueprint(run.config, EnvSpec("i", (4, 12, 12), "uint8", 2))
    for once in (True, False):
        config = ReplayConfig(capacity=50, sampler=sampler, store_frames_once=once)
        replay = dataclasses.replace(blueprint, replay=config).build_replay("worker-0")
        assert isinstance(replay.storage, FrameStorage) is once
        assert (len(replay), replay.capacity) == (0, 50)
        assert replay.nbytes == replay_bytes(config, blueprint.spec)


class Noise(gym.Env[Any, Any]):
    """Looks like stacks of four frames and is none: everything is new at every step."""

    observation_space = spaces.Box(0, 255, (4, 6, 6), np.uint8)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.np_random.integers(256, size=(4, 6, 6), dtype=np.uint8), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.np_random.integers(256, size=(4, 6, 6), dtype=np.uint8), 0.0, False, False, {}


@pytest.mark.parametrize("once", [True, False])
def test_rows_that_went_early_for_want_of_frames_show_in_the_metrics(
    experiment: Callable[..., Experiment], tmp_path: Path, once: bool
) -> None:
    changes = {
        "replay.capacity": 100,
        "replay.store_frames_once": once,
        "stop.max_env_steps": 300,
        "evaluation.max_episode_steps": 20,
    }
    experiment("Noise-v0", changes, env=Noise).run()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    reported = [line["num_live_transitions"] for line in lines if "num_live_transitions" in line]
    if not once:
        assert reported == []
        return
    # 100 + 6 + 100 + 16 = 222 frames; a row brings the four of its next_obs, which are the next row's obs: about 55
    # rows have all of theirs.
    assert 48 <= reported[-1] <= 55
