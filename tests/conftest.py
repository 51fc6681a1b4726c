"""Runs so small that a whole experiment takes a fraction of a second."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from qfleet.experiment import Experiment

# One thread: two tiny runs on two threads each would wait for each other more than they compute.
torch.set_num_threads(1)

TINY: dict[str, Any] = {
    "device": "cpu",
    "env.num_envs": 4,
    "algo.batch_size": 16,
    "algo.n_step": 1,
    "algo.target_update": "hard",
    "algo.target_period_updates": 10,
    "algo.exploration.decay_env_steps": 200,
    "network.hidden": [16],
    "network.layer_norm": False,
    "replay.capacity": 2000,
    "replay.min_transitions": 40,
    "replay.samples_per_insert": 4.0,
    "evaluation.every_env_steps": 1_000_000,
    "evaluation.episodes": 4,
    "evaluation.final_episodes": 4,
    "checkpoint.every_env_steps": 1_000_000,
    "logging.every_env_steps": 100,
    "logging.tensorboard": False,
    "stop.until_return": "never",
    "stop.max_env_steps": 400,
}
MakeExperiment = Callable[..., Experiment]


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A learning curve takes longer than the run it is of; `@pytest.mark.usefixtures("drawing")` keeps it."""
    if "drawing" not in request.fixturenames:
        monkeypatch.setattr("qfleet.experiment.draw_learning_curve", lambda *args: None)


@pytest.fixture
def drawing() -> None:
    """Ask for it in a test that looks at learning_curve.png."""


@pytest.fixture(scope="session")
def tiny() -> dict[str, Any]:
    """Overrides of a run of 400 env steps."""
    return dict(TINY)


@pytest.fixture
def experiment(tmp_path: Path) -> MakeExperiment:
    """experiment("qfleet/Identity-v0", {"seed": 3}, run_dir="a"): a tiny run with some fields changed."""

    def make(env_id: str, overrides: dict[str, Any] | None = None, run_dir: str = "run", env: Any = None) -> Experiment:
        changes = {**TINY, **(overrides or {})}
        return Experiment.from_recipe(env_id, recipe="vector", run_dir=tmp_path / run_dir, env=env, overrides=changes)

    return make


@pytest.fixture(scope="session")
def shared_ray() -> Iterator[None]:
    """One Ray for the whole session: it takes seconds to start, and engines use the one that they find."""
    cluster = pytest.importorskip("qfleet.placement.ray_cluster").Cluster(None)
    yield
    cluster.close()


@pytest.fixture(autouse=True)
def _ray_where_it_is_tested(request: pytest.FixtureRequest) -> Iterator[None]:
    """For a test that has the parameter "ray", or asks for `shared_ray`."""
    callspec = getattr(request.node, "callspec", None)
    names = [getattr(value, "__name__", value) for value in callspec.params.values()] if callspec is not None else []
    if not {"ray", "qfleet.engines.ray"} & {name for name in names if isinstance(name, str)}:
        if "shared_ray" not in request.fixturenames:
            yield
            return
    else:
        request.getfixturevalue("shared_ray")
    from ray import cloudpickle

    module = sys.modules[request.module.__name__]  # no other process can import it
    cloudpickle.register_pickle_by_value(module)
    yield
    cloudpickle.unregister_pickle_by_value(module)
