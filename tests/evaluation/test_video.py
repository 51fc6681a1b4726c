"""Films of episodes: every frame of the game, at its speed, of the very episode that the policy plays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from qfleet.cli.main import app
from qfleet.envs.config import EnvConfig
from qfleet.errors import EnvError, MissingExtraError, UsageError
from qfleet.evaluation.players import Player, open_player
from qfleet.evaluation.video import as_picture, check_video, record_episode
from qfleet.experiment import Experiment
from qfleet.policy import load_policy
from qfleet.seeding import derive_seed

pytest.importorskip("minatar")
pytest.importorskip("ale_py")

SMALL: dict[str, Any] = {
    "env.num_envs": 1,
    "network.hidden": [8],
    "algo.rollout_steps": 8,
    "algo.num_minibatches": 2,
    "evaluation.final_episodes": 1,
    "evaluation.episodes": 1,
    "evaluation.max_episode_steps": 30,
    "env.max_episode_steps": 30,
    "logging.tensorboard": False,
    "stop.max_env_steps": 16,
}


@pytest.fixture(scope="module")
def minatar_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("minatar") / "run"
    Experiment.from_recipe("MinAtar/Breakout-v1", recipe="pqn", seed=1000, run_dir=folder, overrides=SMALL).run()
    return folder


@pytest.fixture(scope="module")
def pong_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pong") / "run"
    fields = SMALL | {"env.atari.size": 36}
    Experiment.from_recipe("ALE/Pong-v5", recipe="pqn", seed=1000, run_dir=folder, overrides=fields).run()
    return folder


def player_of(run: Path) -> tuple[Player, EnvConfig]:
    player = open_player(str(run))
    assert player.env is not None
    return player, player.env


def test_a_gif_shows_the_episode_that_the_policy_plays(minatar_run: Path, tmp_path: Path) -> None:
    player, env = player_of(minatar_run)
    film = record_episode(player, env, tmp_path / "game.gif", seed=7, max_env_steps=500)
    policy = load_policy(minatar_run)
    single = policy.make_env()
    (obs, info), total, length, is_over = single.reset(seed=derive_seed(7, "video")), 0.0, 0, False
    while not is_over:
        obs, reward, terminated, truncated, info = single.step(policy.act(np.asarray(obs), info.get("action_mask")))
        total, length, is_over = total + float(reward), length + 1, terminated or truncated
    assert (film.episode_return, film.episode_length, film.is_complete) == (total, length, True)
    assert film.num_frames == length + 1  # the first board, and one for each step
    with Image.open(film.path) as image:
        assert (image.n_frames, image.size) == (length + 1, (160, 160))  # type: ignore[attr-defined]
        assert image.info["duration"] == 100  # 10 a second
        image.seek(0)
        # Red, green and blue of the first board differ somewhere: it is in colour.
        assert np.ptp(np.asarray(image.convert("RGB")).astype(int), axis=2).max() > 20


def test_an_mp4_has_every_frame_of_the_emulator(pong_run: Path, tmp_path: Path) -> None:
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    player, env = player_of(pong_run)
    film = record_episode(player, env, tmp_path / "pong.mp4", seed=7, max_env_steps=3)
    assert (film.num_frames, film.fps, film.episode_length, film.is_complete) == (1 + 3 * 4, 60.0, 3, False)
    assert ffmpeg.count_frames_and_secs(str(film.path))[0] == 13
    facts = next(ffmpeg.read_frames(str(film.path)))
    assert (tuple(facts["size"]), facts["fps"]) == ((160, 210), 60.0)


def test_the_command_records_and_tells(minatar_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "game.gif"
    command = ["evaluate", str(minatar_run), "--episodes", "1", "--json", "--video"]
    result = CliRunner().invoke(app, [*command, str(path)])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["video"]["num_frames"] > 1
    assert path.stat().st_size > 100
    refused = CliRunner().invoke(app, [*command, str(path.with_suffix(".avi"))])
    assert refused.exit_code == 2
    assert "ends in .mp4 or .gif" in refused.stderr


def test_a_frame_rate_that_a_gif_cannot_have_leaves_frames_out(pong_run: Path, tmp_path: Path) -> None:
    player, env = player_of(pong_run)
    film = record_episode(player, env, tmp_path / "pong.gif", seed=7, max_env_steps=3)
    assert film.num_frames == 13
    with Image.open(film.path) as image:
        assert image.n_frames <= 7  # type: ignore[attr-defined]  # frames 0, 2, .., 12, equal ones merged
        assert image.info["duration"] >= 30  # two frames at 60 a second are 33 ms


def test_refusals(minatar_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    player, env = player_of(minatar_run)
    with pytest.raises(UsageError, match=r"write a file that ends in \.mp4 or \.gif"):
        check_video(tmp_path / "game.avi")
    with pytest.raises(UsageError, match="there is no folder"):
        check_video(tmp_path / "nowhere" / "game.gif")
    (tmp_path / "taken.gif").mkdir()  # before an episode is played, and whoever runs the test
    with pytest.raises(UsageError, match=r"taken\.gif: Is a directory; write it elsewhere"):
        check_video(tmp_path / "taken.gif")
    check_video(tmp_path / "game.gif")
    assert not (tmp_path / "game.gif").exists()
    silent = env.model_copy(update={"id": "qfleet/Identity-v0", "max_episode_steps": None})
    with pytest.raises(UsageError, match="qfleet/Identity-v0 draws no pictures"):
        record_episode(player, silent, tmp_path / "game.gif", seed=7, max_env_steps=5)
    with pytest.raises(EnvError, match=r"drew float64 \[2, 2, 3\]"):
        as_picture(np.zeros((2, 2, 3)))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"imageio_ffmpeg.*pip install 'qfleet\[video\]'"):
        check_video(tmp_path / "game.mp4")
