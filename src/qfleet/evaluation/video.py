"""A greedy episode as a film: every frame that the environment draws, in colour, as mp4 or gif. Floor 7.

For `qfleet evaluate --video`. An mp4 is written by ffmpeg (the extra `video`), a gif by Pillow.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from qfleet.envs.config import EnvConfig
from qfleet.envs.source import find_source, missing_package
from qfleet.envs.spaces import SingleEnv
from qfleet.errors import EnvError, MissingExtraError, QfleetError, UsageError, first_line
from qfleet.evaluation.players import Act, Player
from qfleet.seeding import derive_seed
from qfleet.types import Array

SUFFIXES = (".mp4", ".gif")
DEFAULT_FPS = 30.0  # of environments that do not say
MAX_GIF_FPS = 34.0  # viewers show frames of less than 0.02 s slowly; above this, some are left out


@dataclass(frozen=True, slots=True)
class Film:
    """What was recorded.

    Attributes:
        path: the file.
        num_frames: frames that the environment drew.
        fps: its frame rate.
        episode_return, episode_length: of the episode; its length in env steps.
        is_complete: whether it ended, or was left off at the limit of env steps.
    """

    path: Path
    num_frames: int
    fps: float
    episode_return: float
    episode_length: int
    is_complete: bool


class Recorder(gym.Wrapper[Any, Any, Any, Any]):
    """The innermost wrapper: keeps a picture of each step, also of those that a frame skip makes of one action.

    Args:
        env: the environment itself.
    """

    def __init__(self, env: SingleEnv) -> None:
        super().__init__(env)
        self.draw: Callable[[], object] | None = None  # None until the episode has begun
        self.pictures: list[Array] = []

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """As the environment's."""
        answer = self.env.step(action)
        self.take()
        return answer

    def take(self) -> None:
        """Keep a picture of the present state."""
        if self.draw is not None:
            self.pictures.append(as_picture(self.draw()))


def check_video(path: Path) -> None:
    """Refuse a file that could not be written, before anything is played.

    Raises:
        UsageError: neither mp4 nor gif, its folder is not there, or it cannot be written.
        MissingExtraError: an mp4 without ffmpeg.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--video {path}: write a file that ends in {' or '.join(SUFFIXES)}")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--video {path}: there is no folder {path.parent}")
    if path.suffix.lower() == ".mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise MissingExtraError(
            f"--video {path}: an mp4 needs imageio_ffmpeg, which is not installed: pip install 'qfleet[video]' "
            "(a gif needs nothing)"
        )
    is_new = not path.exists()
    try:
        with path.open("ab"):  # what was there stays until it is written over
            pass
    except OSError as error:
        raise UsageError(f"--video {path}: {error.strerror or first_line(error)}; write it elsewhere") from None
    if is_new:
        path.unlink()


def record_episode(player: Player, env: EnvConfig, path: Path, seed: int, max_env_steps: int | None = None) -> Film:
    """Play one greedy episode and write it.

    Args:
        player: who plays.
        env: what it plays on.
        path: of the file, mp4 or gif.
        seed: the episode's is derived from it.
        max_env_steps: where to leave off an episode that does not end; None for the player's own limit, which
            counts where the environment has none.

    Raises:
        UsageError: see `check_video`; or the environment draws no pictures.
        MissingExtraError: what it draws with, or ffmpeg, is not installed.
        EnvError: it failed to draw.
        QfleetError: the file could not be written.
    """
    check_video(path)
    seed = derive_seed(seed, "video")
    single, recorder = build_recorded(env)
    limit = max_env_steps or find_source(env).time_limit or player.limits.max_episode_steps
    try:
        num_actions = int(getattr(single.action_space, "n", 0))
        outcome: list[tuple[float, int, bool]] = []
        fps = float(single.metadata.get("render_fps") or DEFAULT_FPS)
        pictures = play(player.begin(seed, num_actions), single, recorder, seed, limit, outcome)
        num_frames = write_gif(path, pictures, fps) if path.suffix.lower() == ".gif" else write_mp4(path, pictures, fps)
    except gym.error.DependencyNotInstalled as error:
        raise missing_package(str(env.id), error) from error
    except OSError as error:
        raise QfleetError(f"cannot write {path}: {error.strerror or first_line(error)}") from error
    finally:
        single.close()
    return Film(path, num_frames, fps, *outcome[0])


def build_recorded(env: EnvConfig) -> tuple[SingleEnv, Recorder]:
    """A copy that draws, and the recorder within it.

    Raises:
        UsageError: it draws no pictures.
    """
    plain = find_source(env).build()
    modes = plain.metadata.get("render_modes") or []
    plain.close()
    if "rgb_array" not in modes:
        raise UsageError(f"{env.id} draws no pictures (it has no render mode rgb_array)")
    source = find_source(env)
    player = dataclasses.replace(source, kwargs={**source.kwargs, "render_mode": "rgb_array"}).build()
    layer = player
    while isinstance(layer, gym.Wrapper) and isinstance(layer.env, gym.Wrapper):
        layer = layer.env
    if not isinstance(layer, gym.Wrapper):
        recorder = Recorder(layer)
        return recorder, recorder
    recorder = Recorder(layer.env)
    layer.env = recorder
    return player, recorder


def play(
    act: Act,
    single: SingleEnv,
    recorder: Recorder,
    seed: int,
    max_env_steps: int,
    outcome: list[tuple[float, int, bool]],
) -> Iterator[Array]:
    """The frames of one greedy episode; `outcome` gets its return, its length and whether it ended."""
    obs, info = single.reset(seed=seed)
    first_action = int(getattr(single.action_space, "start", 0))
    recorder.draw = single.render
    recorder.take()
    total, length, is_over = 0.0, 0, False
    while not is_over and length < max_env_steps:
        mask = info.get("action_mask")
        action = act(np.asarray(obs)[None], None if mask is None else np.asarray(mask)[None])[0]
        obs, reward, terminated, truncated, info = single.step(int(action) + first_action)
        total, length, is_over = total + float(reward), length + 1, bool(terminated or truncated)
        yield from recorder.pictures
        recorder.pictures.clear()
    outcome.append((total, length, is_over))


def as_picture(drawn: object) -> Array:
    """uint8 [H, W, 3].

    Raises:
        EnvError: it is something else.
    """
    picture = np.asarray(drawn)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise EnvError(f"the environment drew {picture.dtype} {list(picture.shape)}, not uint8 [H, W, 3]")
    return np.ascontiguousarray(picture)


def write_mp4(path: Path, pictures: Iterable[Array], fps: float) -> int:
    """H.264, every frame; returns how many.

    Raises:
        QfleetError: ffmpeg failed, or is not there.
    """
    import imageio_ffmpeg

    writer, num_frames = None, 0
    try:
        for picture in pictures:
            if writer is None:
                height, width, _ = picture.shape
                # H.264 needs even sizes; nothing else is scaled.
                writer = imageio_ffmpeg.write_frames(
                    str(path), (width, height), fps=fps, macro_block_size=2, ffmpeg_log_level="error"
                )
                writer.send(None)
            writer.send(picture)
            num_frames += 1
    except (RuntimeError, BrokenPipeError) as error:
        raise QfleetError(f"cannot write {path}: ffmpeg failed: {first_line(error)}") from error
    finally:
        if writer is not None:
            writer.close()
    return num_frames


def write_gif(path: Path, pictures: Iterable[Array], fps: float) -> int:
    """At most `MAX_GIF_FPS` frames a second, at the speed of play; returns how many frames there were."""
    from PIL import Image

    every = math.ceil(fps / MAX_GIF_FPS)
    kept: list[Image.Image] = []
    num_frames = 0
    for picture in pictures:
        if num_frames % every == 0:
            kept.append(Image.fromarray(picture).quantize(256))
        num_frames += 1
    duration = max(round(100 * every / fps), 2) * 10  # the format counts hundredths of a second
    kept[0].save(path, save_all=True, append_images=kept[1:], duration=duration, loop=0)
    return num_frames
