"""A strip of frames of a policy at play, as a PNG in the page itself. Floor 7.

Nothing that is missing here is worth a report: an environment that draws nothing gives a sentence instead.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from qfleet.errors import QfleetError
from qfleet.evaluation.players import open_player
from qfleet.evaluation.video import build_recorded, play
from qfleet.seeding import derive_seed

NUM_FRAMES = 6
FRAME_WIDTH = 200  # pixels at most
MAX_STEPS = 2_000
Frame = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Strip:
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


def strip_of(run_dir: Path) -> Strip:
    """One greedy episode of a run's best policy, in frames that are equally far apart.

    Raises:
        QfleetError: there is no policy, or the environment draws no frames; one line.
    """
    player = open_player(str(run_dir))
    assert player.env is not None  # a run knows its own
    try:
        single, recorder = build_recorded(player.env)
        try:
            seed = derive_seed(player.seed, "film")
            act = player.begin(seed, int(getattr(single.action_space, "n", 0)))
            outcome: list[tuple[float, int, bool]] = []
            frames = spread(play(act, single, recorder, seed, MAX_STEPS, outcome))
        finally:
            single.close()
    except QfleetError:
        raise
    except Exception as error:  # whatever a window system that is missing, or an environment of a user's, does
        raise QfleetError(f"{player.env.id} drew no frames ({type(error).__name__}: {error})") from error
    strip = join(frames)
    return Strip(png_uri(strip), strip.shape[1], strip.shape[0], *outcome[0])


def spread(pictures: Iterable[Frame]) -> list[Frame]:
    """At most NUM_FRAMES of an episode's frames, equally far apart, the first and the last among them.

    While it is not known how many there will be, every n-th frame is kept, and every second of these is dropped
    whenever there are too many.
    """
    kept: list[Frame] = []
    every, last = 1, None
    for number, picture in enumerate(pictures):
        last = picture
        if number % every == 0:
            kept.append(shrink(picture, -(-picture.shape[1] // FRAME_WIDTH)))
            if len(kept) > 4 * NUM_FRAMES:
                kept, every = kept[::2], every * 2
    if last is not None and number % every:
        kept.append(shrink(last, -(-last.shape[1] // FRAME_WIDTH)))
    chosen = np.linspace(0, len(kept) - 1, min(NUM_FRAMES, len(kept))).round().astype(int)
    return [kept[index] for index in chosen]


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
