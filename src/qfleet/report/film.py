"""A strip of frames of a policy at play, as a PNG in the page itself. Floor 7.

Nothing that is missing here is worth a report: an environment that draws nothing gives a sentence instead.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from qfleet.envs.config import EnvConfig
from qfleet.envs.source import find_source
from qfleet.errors import QfleetError
from qfleet.policy import load_policy
from qfleet.recipe import read_config
from qfleet.seeding import derive_seed
from qfleet.types import BoolArray

NUM_FRAMES = 6
FRAME_WIDTH = 200  # pixels at most
MAX_STEPS = 2_000
Frame = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Film:
    """What there is to see.

    Attributes:
        picture: of all frames side by side, as a data URI.
        width, height: pixels of the picture.
        episode_return, num_env_steps: of the episode.
        is_whole: whether the episode ended within MAX_STEPS.
    """

    picture: str
    width: int
    height: int
    episode_return: float
    num_env_steps: int
    is_whole: bool


def film(run_dir: Path) -> Film:
    """One greedy episode of a run's best policy, in frames that are equally far apart.

    Raises:
        QfleetError: there is no policy, or the environment draws no frames; one line.
    """
    policy = load_policy(run_dir)
    config = read_config(run_dir / "config.toml")
    env = rendering_env(config.env)
    try:
        frames, rewards, is_whole = _play(env, policy, derive_seed(config.seed, "film"))
    except QfleetError:
        raise
    except Exception as error:  # whatever a window system that is missing, or an environment of a user's, does
        raise QfleetError(f"{config.env.id} drew no frames ({type(error).__name__}: {error})") from error
    finally:
        env.close()
    strip = join(frames)
    return Film(png_uri(strip), strip.shape[1], strip.shape[0], float(sum(rewards)), len(rewards), is_whole)


def rendering_env(config: EnvConfig) -> gym.Env[Any, Any]:
    """One environment that draws arrays.

    Raises:
        QfleetError: it cannot, or needs a package that is not installed.
    """
    plain = find_source(config).build()
    plain.close()
    if "rgb_array" not in plain.metadata.get("render_modes", ()):
        raise QfleetError(f"{config.id} draws no frames (it has no render_mode rgb_array)")
    return find_source(config.model_copy(update={"kwargs": {**config.kwargs, "render_mode": "rgb_array"}})).build()


def _play(env: gym.Env[Any, Any], policy: Any, seed: int) -> tuple[list[Frame], list[float], bool]:
    """Frames of an episode, its rewards, and whether it ended.

    While it is not known how long the episode is, every n-th frame is kept, and every second of these is dropped
    whenever there are too many.
    """
    obs, info = env.reset(seed=seed)
    kept: list[Frame] = [_drawn(env)]
    every, rewards, is_over = 1, list[float](), False
    while not is_over and len(rewards) < MAX_STEPS:
        mask: BoolArray | None = info.get("action_mask")
        obs, reward, terminated, truncated, info = env.step(policy.act(np.asarray(obs), mask))
        rewards.append(float(reward))
        is_over = bool(terminated or truncated)
        if len(rewards) % every == 0 and not is_over:
            kept.append(_drawn(env))
        if len(kept) >= 4 * NUM_FRAMES:
            kept, every = kept[::2], every * 2
    kept.append(_drawn(env))
    chosen = np.linspace(0, len(kept) - 1, min(NUM_FRAMES, len(kept))).round().astype(int)
    return [kept[index] for index in chosen], rewards, is_over


def _drawn(env: gym.Env[Any, Any]) -> Frame:
    frame = env.render()
    if not isinstance(frame, np.ndarray) or frame.ndim != 3 or frame.shape[2] != 3:
        raise QfleetError("render() gives no frame of three colours")
    every = -(-frame.shape[1] // FRAME_WIDTH)
    return shrink(frame.astype(np.uint8), every)


def shrink(frame: Frame, factor: int) -> Frame:
    """Means of squares of factor x factor pixels: uint8 [H, W, 3] -> [H // factor, W // factor, 3]."""
    height, width = frame.shape[0] // factor, frame.shape[1] // factor
    squares = frame[: height * factor, : width * factor].reshape(height, factor, width, factor, 3)
    return np.asarray(squares.mean(axis=(1, 3)).round(), dtype=np.uint8)


def join(frames: list[Frame], gap: int = 4) -> Frame:
    """Frames beside each other, on grey."""
    height, width = frames[0].shape[:2]
    strip = np.full((height, len(frames) * (width + gap) - gap, 3), 128, dtype=np.uint8)
    for place, frame in enumerate(frames):
        strip[:, place * (width + gap) : place * (width + gap) + width] = frame
    return strip


def png_uri(picture: Frame) -> str:
    """A picture as a data URI."""
    from matplotlib.image import imsave

    content = io.BytesIO()
    imsave(content, picture, format="png")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
