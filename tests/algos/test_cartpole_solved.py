"""Every algorithm that learns from replay solves CartPole by its recipe: 475 over 100 greedy episodes, 5 of 5 seeds."""

from __future__ import annotations

from pathlib import Path

import pytest

from qfleet.experiment import Experiment

RECIPES: dict[str, dict[str, object]] = {
    "c51": {},
    "qr_dqn": {},
    "iqn": {},
    "munchausen": {},
    "rainbow": {},
    "munchausen-iqn": {"algo.munchausen": True, "algo.double": False, "algo.n_step": 1},
}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", RECIPES)
def test_cartpole_is_solved(tmp_path: Path, name: str, seed: int) -> None:
    changes = {"device": "cpu", "logging.tensorboard": False} | RECIPES[name]
    recipe = name.removeprefix("munchausen-")
    run = Experiment.from_recipe("CartPole-v1", recipe=recipe, seed=seed, run_dir=tmp_path / "run", overrides=changes)
    summary = run.run()
    assert summary["reached"] is True
    assert summary["eval"]["mean_return"] >= 475.0


@pytest.mark.parametrize("recipe", ["c51", "qr_dqn", "iqn", "munchausen", "rainbow"])
def test_a_recipe_trains_on_any_environment_that_is_named(tmp_path: Path, recipe: str) -> None:
    changes: dict[str, object] = {
        "device": "cpu",
        "logging.tensorboard": False,
        "stop.max_env_steps": 700,
        "evaluation.episodes": 2,
        "evaluation.final_episodes": 2,
    }
    run = Experiment.from_recipe("Acrobot-v1", recipe=recipe, run_dir=tmp_path / "run", overrides=changes)
    summary = run.run()
    assert run.config.env.id == "Acrobot-v1"
    assert summary["num_updates"] > 10


def test_rainbow_is_all_of_it(tmp_path: Path) -> None:
    run = Experiment.from_recipe("CartPole-v1", recipe="rainbow", run_dir=tmp_path / "run")
    algo = run.config.algo.model_dump()
    assert algo["name"] == "c51"
    assert algo["double"] and algo["dueling"] and algo["noisy"] and algo["n_step"] == 3
    assert algo["exploration"]["kind"] == "none", "noise explores, and nothing else"
    assert run.config.replay.sampler == "prioritized"
