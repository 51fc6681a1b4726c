"""Pixels end to end: Pong and MinAtar train in every default recipe of theirs, count frames, resume bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qfleet.experiment import Experiment
from qfleet.recipe import choose_recipe, find_recipe, list_recipes
from qfleet.run_config import build_config
from qfleet.session import CheckpointSaved

pytest.importorskip("ale_py")
pytest.importorskip("minatar")

MakeExperiment = Callable[..., Experiment]
SMALL: dict[str, Any] = {
    "device": "cpu",
    "env.num_envs": 2,
    "network.hidden": [16],
    "evaluation.final_episodes": 1,
    "evaluation.episodes": 1,
    "evaluation.every_env_steps": 10**6,
    "checkpoint.every_env_steps": 10**6,
    "logging.every_env_steps": 40,
    "logging.tensorboard": False,
    "stop.max_env_steps": 128,
}
REPLAY = {"replay.capacity": 500, "replay.min_transitions": 40, "replay.samples_per_insert": 2.0, "algo.batch_size": 8}
ROLLOUTS = {"algo.rollout_steps": 8, "algo.num_minibatches": 2}
# Games that are cut short: an episode of full length would take longer than all else here.
SHORT = {"env.max_episode_steps": 25}


def small(env_id: str, recipe: str | None = None, run_dir: Path | str | None = None, **changes: Any) -> Experiment:
    chosen = choose_recipe(env_id, recipe, [])
    own = ROLLOUTS if chosen.algo == "pqn" else REPLAY
    fields = SMALL | SHORT | own | ({"env.atari.size": 36} if env_id.startswith("ALE") else {}) | changes
    return Experiment.from_recipe(env_id, recipe=recipe, seed=1000, run_dir=run_dir, overrides=fields)


@pytest.mark.parametrize("recipe", [one.name for one in list_recipes() if one.name.startswith(("atari-", "minatar-"))])
def test_every_recipe_trains(recipe: str, tmp_path: Path) -> None:
    env_id = "ALE/Pong-v5" if recipe.startswith("atari-") else "MinAtar/Seaquest-v1"
    experiment = small(env_id, recipe, tmp_path / "run")
    summary = experiment.run()
    assert summary["stop_reason"] == "max_env_steps"
    assert summary["num_updates"] > 5  # type: ignore[operator]
    skip = 4 if recipe.startswith("atari-") else 1
    assert summary["num_frames"] == skip * summary["num_env_steps"] > 0  # type: ignore[operator]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if line["kind"] == "train"]
    assert logged
    assert all(line["num_frames"] == skip * line["num_env_steps"] for line in logged)


@pytest.mark.parametrize(
    ("env_id", "recipe"),
    [("ALE/Pong-v5", "dqn"), ("MinAtar/SpaceInvaders-v1", "dqn"), ("MinAtar/SpaceInvaders-v1", "pqn")],
)
def test_resumed_equals_uninterrupted(env_id: str, recipe: str, tmp_path: Path) -> None:
    changes = {"checkpoint.every_env_steps": 64, "env.num_envs": 1}
    if env_id.startswith("ALE"):
        changes |= {"env.atari.sticky_actions": 0.25, "env.atari.life_loss": True}
    whole = small(env_id, recipe, tmp_path / "whole", **changes).run()
    events = small(env_id, recipe, tmp_path / "parts", **changes).stream()
    assert any(isinstance(event, CheckpointSaved) for event in events)  # up to the first one
    for _ in range(9):  # work that is lost
        next(events)
    events.close()
    resumed = Experiment.resume(tmp_path / "parts").run()
    assert resumed["parameters_sha256"] == whole["parameters_sha256"] is not None
    assert resumed["eval"] == whole["eval"]
    assert resumed["num_frames"] == whole["num_frames"]


def test_a_family_has_its_recipes() -> None:
    chosen = {
        ("ALE/Pong-v5", None, ()): "atari-pqn",
        ("BreakoutNoFrameskip-v4", None, ()): "atari-pqn",
        ("ale_py:ALE/Pong-v5", None, ()): "atari-pqn",
        ("ALE/Pong-v5", "rainbow", ()): "atari-rainbow",
        ("ALE/Pong-v5", "fast", ()): "atari-fast",
        ("ALE/Pong-v5", None, (("algo", "dqn"),)): "atari-dqn",
        ("ALE/Pong-v5", None, (("algo", "c51"),)): "atari-rainbow",
        ("ALE/Pong-v5", None, (("algo", "qr_dqn"),)): "atari-dqn",  # the default's fields are of rollouts
        ("MinAtar/Asterix-v0", None, ()): "minatar-dqn",
        ("MinAtar/Asterix-v0", "pqn", ()): "minatar-pqn",
        ("MinAtar/Asterix-v0", "atari-pqn", ()): "atari-pqn",
        ("CartPole-v1", "rainbow", ()): "rainbow",
        ("CartPole-v1", None, (("algo", "dqn"),)): "cartpole",
        ("CartPole-v1", None, (("algo", "c51"),)): "cartpole",
        # The recipe's fields are of another kind of algorithm: this one's own defaults.
        ("CartPole-v1", None, (("algo", "a2c"),)): "cartpole without its [algo] and [replay]",
        ("Acrobot-v1", None, (("algo.name", "pqn"),)): "vector without its [algo] and [replay]",
        ("ALE/Pong-v5", None, (("algo", "a2c"),)): "atari-pqn without its [algo] and [replay]",
        ("MinAtar/Asterix-v0", None, (("algo", "a2c"),)): "minatar-pqn without its [algo] and [replay]",
    }
    for (env_id, name, overrides), expected in chosen.items():
        chosen_recipe = choose_recipe(env_id, name, list(overrides))
        assert chosen_recipe.name == expected
        build_config(chosen_recipe.values, list(overrides))  # its fields are those of the algorithm


def test_recipes_of_a_family_differ_in_no_game_and_learn_from_clipped_rewards_of_full_games() -> None:
    for name in ("dqn", "rainbow", "iqn", "pqn", "fast"):
        config = build_config(find_recipe(name, "ALE/Pong-v5").values, [])
        assert config.env.id is None
        assert (config.env.reward_clip, config.env.atari.life_loss, config.env.atari.sticky_actions) == (1.0, False, 0)
    for name in ("dqn", "rainbow", "iqn", "pqn"):
        assert build_config(find_recipe(name, "MinAtar/Breakout-v1").values, []).env.reward_clip is None


@pytest.mark.slow
def test_minatar_breakout_is_learned_in_a_minute(tmp_path: Path) -> None:
    experiment = Experiment.from_recipe(
        "MinAtar/Breakout-v1",
        recipe="pqn",
        seed=1000,
        run_dir=tmp_path / "run",
        overrides={
            "stop.max_seconds": 60.0,
            "evaluation.every_env_steps": 10**9,
            "algo.exploration.decay_env_steps": 100_000,
            "logging.tensorboard": False,
        },
    )
    summary = experiment.run()
    score: Any = summary["eval"]
    # A random policy gets 0.5; the published level of DQN after 5 million frames is about 9.
    assert np.isfinite(score["mean_return"])
    assert score["mean_return"] > 3.0
