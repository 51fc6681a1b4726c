"""NaN from an environment, from the loss or in a parameter stops the run at once, with the place named."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qfleet.checkpoint import CheckpointStore
from qfleet.envs.toy import Identity
from qfleet.errors import CallFailed, DivergenceError, EnvError
from qfleet.experiment import Experiment
from qfleet.session import CheckpointSaved

MakeExperiment = Callable[..., Experiment]


class Broken(Identity):
    """Gives one bad reward, at the 5th step of an episode."""

    bad = math.nan

    def __init__(self) -> None:
        super().__init__(length=8)

    def step(self, action: int) -> Any:
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, self.bad if self.counters[1] == 5 else reward, terminated, truncated, info


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_reward_names_environment_copy_and_step(
    experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch, bad: float
) -> None:
    monkeypatch.setattr(Broken, "bad", bad)
    with pytest.raises(EnvError) as caught:
        experiment("Broken-v99", env=Broken).run()
    assert isinstance(caught.value.__cause__, CallFailed)
    line = str(caught.value)
    assert f"environment Broken-v99: env 0 gave reward {bad} at step 5 of its episode" in line
    assert "\n" not in line
    assert "Traceback" in caught.value.__cause__.remote_traceback


# Rewards of 0 and 1, and gradients that are not clipped: with this learning rate the second step is astronomic.
EXPLODING = {
    "algo.learning_rate": 1e30,
    "algo.optimizer": "sgd",
    "algo.loss": "mse",
    "algo.target_period_updates": 1,
    "stop.max_env_steps": 2000,
}


# Loss and gradient of the first update are finite, but a gradient above 1 times 3.4e38 is no float32 any more. One
# environment, and a batch per insert from the 40th on: update 1 is at env step 41.
OVERFLOWING = {
    "algo.learning_rate": 3.4e38,
    "algo.optimizer": "sgd",
    "algo.loss": "mse",
    "env.reward_scale": 1000.0,
    "env.num_envs": 1,
    "replay.samples_per_insert": 16.0,
    "stop.max_env_steps": 2000,
}


def test_a_diverging_loss_names_update_batch_and_checkpoint(experiment: MakeExperiment, tmp_path: Path) -> None:
    changes = EXPLODING | {"checkpoint.every_env_steps": 20}
    with pytest.raises(DivergenceError) as caught:
        experiment("qfleet/Identity-v0", changes).run()
    line = str(caught.value)
    assert "learning diverged at update 2: loss" in line
    assert "rewards in [0, 1] and observations in [0, 1]" in line
    assert "lower algo.learning_rate" in line
    checkpoint = tmp_path / "run" / "checkpoints"
    manifest, _ = CheckpointStore(checkpoint, 1).newest_whole()
    assert manifest is not None
    assert line.endswith(f"last good checkpoint: {checkpoint}/manifest-{manifest.tag}.json")
    assert "\n" not in line


def test_without_a_checkpoint_it_says_none(experiment: MakeExperiment) -> None:
    with pytest.raises(DivergenceError, match="last good checkpoint: none"):
        experiment("qfleet/Identity-v0", EXPLODING).run()


def test_an_infinite_parameter_is_never_saved(experiment: MakeExperiment, tmp_path: Path) -> None:
    # The checkpoint that is due right after update 1 must not become the last good one.
    changes = OVERFLOWING | {"checkpoint.every_env_steps": 41}
    saved = []
    with pytest.raises(DivergenceError, match=r"update 1: a parameter is NaN or infinite after it.*checkpoint: none"):
        for event in experiment("qfleet/Identity-v0", changes).stream():
            saved += [event] if isinstance(event, CheckpointSaved) else []
    assert saved == []
    assert CheckpointStore(tmp_path / "run" / "checkpoints", 1).newest_whole() == (None, [])


def test_an_infinite_parameter_is_never_the_best_policy(experiment: MakeExperiment, tmp_path: Path) -> None:
    changes = OVERFLOWING | {"evaluation.every_env_steps": 41}
    with pytest.raises(DivergenceError, match="update 1: a parameter is NaN or infinite after it"):
        experiment("qfleet/Identity-v0", changes).run()
    assert not (tmp_path / "run" / "best").exists()


def test_a_failed_run_can_be_resumed_from_its_last_good_checkpoint(
    experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # The environment breaks once, after a checkpoint, and is repaired.
    monkeypatch.setattr(Broken, "bad", 1.0)
    changes = {"checkpoint.every_env_steps": 100}
    events = experiment("Broken-v99", changes, env=Broken).stream()
    next(event for event in events if isinstance(event, CheckpointSaved))
    monkeypatch.setattr(Broken, "bad", math.nan)
    with pytest.raises(EnvError):
        list(events)
    monkeypatch.setattr(Broken, "bad", 1.0)
    whole = experiment("Broken-v99", changes, run_dir="whole", env=Broken).run()
    resumed = Experiment.resume(tmp_path / "run", env=Broken).run()
    assert resumed["parameters_sha256"] == whole["parameters_sha256"]
    assert np.isfinite(resumed["eval"]["mean_return"])
