"""Atari: ale-py's vector version against Gymnasium's wrappers, pixel by pixel; episodes, lives, seeds, threads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qfleet.envs.config import AtariConfig, EnvConfig
from qfleet.envs.make import make_env_batch, probe_spec
from qfleet.envs.vector import EnvBatch
from qfleet.errors import UsageError
from qfleet.types import EnvStep

pytest.importorskip("ale_py")
pytest.importorskip("cv2")

NUM_ENVS = 2
FIXED = {"noop_max": 0, "sticky_actions": 0.0}  # nothing is left to chance


def batch(game: str = "Breakout", num_envs: int = NUM_ENVS, vectorization: str = "native", **fields: Any) -> EnvBatch:
    atari = FIXED | {name: fields.pop(name) for name in list(fields) if name not in EnvConfig.model_fields}
    return make_env_batch(
        EnvConfig(id=f"ALE/{game}-v5", num_envs=num_envs, vectorization=vectorization, atari=atari, **fields)
    )


def play(envs: EnvBatch, num_steps: int, seed: int = 3) -> list[EnvStep]:
    envs.reset(seed)
    generator = np.random.default_rng(seed)
    steps = [envs.step(generator.integers(0, envs.spec.num_actions, envs.num_envs)) for _ in range(num_steps)]
    envs.close()
    return steps


@pytest.mark.parametrize(("game", "num_steps", "life_loss"), [("Breakout", 350, True), ("SpaceInvaders", 750, False)])
def test_the_vector_version_is_the_wrappers_pixel_by_pixel(game: str, num_steps: int, life_loss: bool) -> None:
    native = play(batch(game, life_loss=life_loss, reward_clip=1.0), num_steps)
    single = play(batch(game, vectorization="sync", life_loss=life_loss, reward_clip=1.0), num_steps)
    ends = 0
    for ours, theirs in zip(native, single, strict=True):
        for name in ("obs", "next_obs", "reward", "terminated", "truncated", "episode_returns", "episode_lengths"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)
        ends += len(ours.episode_returns)
    assert ends >= 1  # final and first observations were among them


def test_the_next_step_mode_tells_the_same_transitions() -> None:
    def transitions(autoreset: str) -> list[tuple[Any, ...]]:
        envs = batch(num_envs=1, autoreset=autoreset)
        obs, told = envs.reset(3), []
        while sum(row[-1] for row in told) < 2:
            step = envs.step(np.array([len(told) % 3]))
            if step.valid[0]:
                told.append((obs.sum(), step.reward[0], step.next_obs.sum(), step.terminated[0]))
            obs = step.obs
        envs.close()
        return told

    assert transitions("next_step") == transitions("same_step")


@pytest.mark.parametrize("vectorization", ["native", "sync"])
def test_no_stack_crosses_an_episodes_border(vectorization: str) -> None:
    envs = batch(vectorization=vectorization)
    obs = envs.reset(3)
    assert not obs[:, :3].any()
    assert obs[:, 3].any(axis=(1, 2)).all()
    ends = 0
    for t in range(350):
        step = envs.step(np.full(NUM_ENVS, t % 4))
        # Whatever ends, the transition's own next observation goes on from the one acted on.
        np.testing.assert_array_equal(step.next_obs[:, :3], obs[:, 1:])
        for env in step.episode_envs:
            ends += 1
            assert not step.obs[env, :3].any()  # black, black, black, first frame
            assert step.obs[env, 3].any()
        obs = step.obs
    envs.close()
    assert ends >= 2


@pytest.mark.parametrize("vectorization", ["native", "sync"])
def test_a_lost_life_ends_what_is_learned_and_not_the_episode(vectorization: str) -> None:
    plain = play(batch(vectorization=vectorization), 350)
    lives = play(batch(vectorization=vectorization, life_loss=True), 350)
    for left, right in zip(plain, lives, strict=True):
        np.testing.assert_array_equal(left.obs, right.obs)
        np.testing.assert_array_equal(left.episode_returns, right.episode_returns)
        np.testing.assert_array_equal(left.episode_lengths, right.episode_lengths)
        assert (right.terminated | ~left.terminated).all()
    # Five lives in Breakout: each whole game ends what is learned five times.
    for env in range(NUM_ENVS):
        over = [t for t, step in enumerate(plain) if env in step.episode_envs]
        assert over
        terminations = [bool(step.terminated[env]) for step in lives[: over[0] + 1]]
        assert sum(terminations) == 5
        assert terminations[-1]


@pytest.mark.parametrize("vectorization", ["native", "sync"])
def test_returns_are_raw_and_what_is_learned_is_clipped(vectorization: str) -> None:
    steps = play(batch("SpaceInvaders", 1, vectorization, reward_clip=1.0), 750)
    assert {float(value) for step in steps for value in step.reward} == {0.0, 1.0}
    returns = [value for step in steps for value in step.episode_returns]
    assert returns
    assert max(returns) >= 20.0  # invaders are worth 5 to 30 points


@pytest.mark.parametrize("vectorization", ["native", "sync"])
def test_a_time_limit_is_a_truncation_in_env_steps(vectorization: str) -> None:
    steps = play(batch("Pong", vectorization=vectorization, max_episode_steps=7), 15)
    assert [bool(step.truncated.all()) for step in steps] == [t % 7 == 6 for t in range(15)]
    assert not any(step.terminated.any() for step in steps)
    assert [length for step in steps for length in step.episode_lengths] == [7] * 4


def test_facts_of_a_game() -> None:
    spec = probe_spec(EnvConfig(id="ALE/Pong-v5"))
    assert (spec.obs_shape, spec.obs_dtype, spec.num_actions) == ((4, 84, 84), "uint8", 6)
    assert (spec.max_episode_steps, spec.frames_per_step, spec.is_native) == (27_000, 4, True)  # 108,000 frames
    small = probe_spec(
        EnvConfig(id="ALE/Pong-v5", atari={"stack": 2, "size": 42, "frame_skip": 2, "full_action_space": True})
    )
    assert (small.obs_shape, small.num_actions, small.frames_per_step) == ((2, 42, 42), 18, 2)
    legacy = probe_spec(EnvConfig(id="PongNoFrameskip-v4"))
    assert (legacy.obs_shape, legacy.frames_per_step, legacy.is_native) == ((4, 84, 84), 4, False)
    plain = probe_spec(EnvConfig(id="ALE/Pong-v5", atari={"preprocessing": False}))
    assert (plain.obs_shape, plain.frames_per_step, plain.is_native) == ((210, 160, 3), 4, False)


def first_frames(envs: EnvBatch) -> list[int]:
    """Frames of the emulator before the first observation of each copy."""
    _, info = envs._env.reset(seed=5)
    envs.close()
    return [int(value) for value in info["episode_frame_number"]]


@pytest.mark.parametrize(("vectorization", "least"), [("native", 0), ("sync", 1)])
def test_an_episode_begins_with_up_to_so_many_no_ops(vectorization: str, least: int) -> None:
    frames = first_frames(batch("Pong", 16, vectorization, noop_max=2, fire_reset=False))
    assert set(frames) == set(range(least, 3))
    fired = first_frames(batch("Pong", 2, vectorization, noop_max=0, fire_reset=True))
    assert fired == [1, 1]


@pytest.mark.parametrize("vectorization", ["native", "sync"])
@pytest.mark.parametrize(("sticky", "is_equal"), [(0.0, True), (0.25, False), ("registered", False)])
def test_sticky_actions_are_by_choice(vectorization: str, sticky: Any, is_equal: bool) -> None:
    # Two copies with the same actions and other seeds differ only by what is left to chance.
    envs = batch("Breakout", vectorization=vectorization, sticky_actions=sticky)
    envs.reset(3)
    for t in range(60):
        step = envs.step(np.full(NUM_ENVS, 2 + t % 2))
    envs.close()
    assert np.array_equal(step.obs[0], step.obs[1]) == is_equal


def test_seeds_of_32_bits_are_taken_and_repeat() -> None:
    first = play(batch("Pong", noop_max=30, sticky_actions=0.25), 30, seed=2**32 - 1)
    again = play(batch("Pong", noop_max=30, sticky_actions=0.25), 30, seed=2**32 - 1)
    other = play(batch("Pong", noop_max=30, sticky_actions=0.25), 30, seed=2**31)
    np.testing.assert_array_equal(first[-1].obs, again[-1].obs)
    assert not np.array_equal(first[-1].obs, other[-1].obs)


def count_threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")
@pytest.mark.parametrize(("asked", "num_envs", "threads"), [("auto", 4, 1), (2, 4, 2), (2, 1, 1)])
def test_no_more_threads_than_the_role_has(asked: Any, num_envs: int, threads: int) -> None:
    if threads > (os.cpu_count() or 1):
        pytest.skip("ale-py takes no more threads than cores")
    assert torch.get_num_threads() == 1  # of the whole suite, see conftest.py
    before = count_threads()
    envs = batch("Pong", num_envs, num_threads=asked)
    assert count_threads() - before == threads
    envs.close()
    assert count_threads() == before


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"kwargs": {"frameskip": 2}},
            r"env\.kwargs\.frameskip is set by the Atari preprocessing; use --set env\.atari\.frame_skip=\.\.\.",
        ),
        ({"kwargs": {"obs_type": "ram"}}, r"use --set env\.atari\.preprocessing=false"),
        ({"image": {"gray": True}}, r"preprocessed by \[env\.atari\]; leave \[env\.image\] out"),
    ],
)
def test_refusals(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_env_batch(EnvConfig(id="ALE/Pong-v5", **fields))


def test_settings_of_atari_games_are_refused_where_there_is_none() -> None:
    changes: dict[str, Any] = {"atari": {"sticky_actions": 0.25, "life_loss": True}}
    with pytest.raises(UsageError, match=r"no Atari game, .* read env\.atari\.sticky_actions, env\.atari\.life_loss;"):
        make_env_batch(EnvConfig(id="CartPole-v1", **changes))
    make_env_batch(EnvConfig(id="CartPole-v1", atari=AtariConfig(size=84))).close()  # as it is anyway


def test_a_name_without_its_family_is_proposed() -> None:
    with pytest.raises(UsageError, match=r"'Pong-v5'; did you mean ALE/Pong-v5 "):
        probe_spec(EnvConfig(id="Pong-v5"))


def test_what_the_vector_version_cannot_do_is_stepped_by_wrappers() -> None:
    assert not probe_spec(EnvConfig(id="ALE/Pong-v5", kwargs={"difficulty": 1})).is_native
    with pytest.raises(UsageError, match="native is not possible"):
        batch("Pong", kwargs={"difficulty": 1})
