"""Runs so small that a whole experiment takes a fraction of a second."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch

from qfleet.algos.base import EpochsConfig, ReplayAlgorithmConfig
from qfleet.envs.make import probe_spec
from qfleet.experiment import Experiment, load_engine
from qfleet.plugins import load_plugin
from qfleet.policy import make_blueprint, save_policy
from qfleet.recipe import find_recipe
from qfleet.run_config import RunConfig, build_config
from qfleet.strategies.base import Control, Counters, Drained, Event, Saved, SnapshotPublished
from qfleet.types import ParamSnapshot

# How long an example takes says something about the machine, not about the code.
# The same examples each time, so that a green commit stays green; `--hypothesis-profile=explore` draws new ones.
hypothesis.settings.register_profile("qfleet", deadline=None, derandomize=True)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=500)
hypothesis.settings.load_profile("qfleet")
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
# What an algorithm that learns from rollouts takes of it, and in place of the rest: two minibatches of 8, twice.
TINY_ROLLOUTS: dict[str, Any] = {
    **{key: value for key, value in TINY.items() if not key.startswith(("algo.", "replay."))},
    "algo.rollout_steps": 4,
}
MakeExperiment = Callable[..., Experiment]


def tiny_config(env_id: str | None, changes: dict[str, Any]) -> RunConfig:
    """A tiny run of the algorithm named by `changes`, dqn where none is."""
    name = changes.get("algo", changes.get("algo.name", "dqn"))
    algo = load_plugin("algo", name).Config
    if issubclass(algo, ReplayAlgorithmConfig):
        values, tiny_values = find_recipe("vector").values, TINY
    else:
        values, tiny_values = {"algo": {"name": name}}, dict(TINY_ROLLOUTS)
        if issubclass(algo, EpochsConfig):
            tiny_values |= {"algo.num_epochs": 2, "algo.num_minibatches": 2}
    return build_config(values, [("env.id", env_id), *{**tiny_values, **changes}.items()])


CHROMIUM = next((path for name in ("chromium", "google-chrome") if (path := shutil.which(name))), None)


@pytest.fixture
def shown(tmp_path: Path) -> Callable[[str], str]:
    """shown(url): the page as Chromium has it once its script has come to rest; a word on its console is a failure."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here")

    def show(url: str) -> str:
        quiet = ["gpu", "quic", "background-networking", "component-update", "sync"]
        options = ["--headless", "--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in quiet)]
        options += ["--enable-logging=stderr", "--v=0", "--virtual-time-budget=10000", "--dump-dom"]
        command = [str(CHROMIUM), *options, f"--user-data-dir={tmp_path / 'profile'}", url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert "CONSOLE" not in done.stderr, done.stderr
        return done.stdout

    return show


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
        made = Experiment(tiny_config(env_id, overrides or {}), tmp_path / run_dir, env)
        made.recipe = "vector"
        return made

    return make


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--ray", choices=["only", "without"], help="tests that start processes of Ray, or the others")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Ray's processes have low priority, and tests that kill some look for what is left: these run alone."""
    wanted = config.getoption("--ray")
    if wanted is None:
        return
    alone = [item for item in items if _asks_for_ray(item) or item.get_closest_marker("ray")]
    others = [item for item in items if item not in set(alone)]
    config.hook.pytest_deselected(items=others if wanted == "only" else alone)
    items[:] = alone if wanted == "only" else others


def _asks_for_ray(item: pytest.Item) -> bool:
    """Whether a test has the parameter "ray", or asks for `shared_ray`."""
    callspec = getattr(item, "callspec", None)
    values = callspec.params.values() if callspec is not None else ()
    names = {getattr(value, "__name__", value) for value in values if isinstance(value, (str, ModuleType))}
    return bool(names & {"ray", "qfleet.engines.ray"}) or "shared_ray" in getattr(item, "fixturenames", ())


@pytest.fixture(scope="session")
def shared_ray() -> Iterator[None]:
    """One Ray for the whole session: it takes seconds to start, and engines use the one that they find."""
    cluster = pytest.importorskip("qfleet.placement.ray_cluster").Cluster(None)
    yield
    cluster.close()


@pytest.fixture(autouse=True)
def _ray_where_it_is_tested(request: pytest.FixtureRequest) -> Iterator[None]:
    """Ray for a test that has it as a parameter, and by value what its module defines."""
    if not _asks_for_ray(request.node):
        yield
        return
    request.getfixturevalue("shared_ray")
    from ray import cloudpickle

    module = sys.modules[request.module.__name__]  # no other process can import it
    cloudpickle.register_pickle_by_value(module)
    yield
    cloudpickle.unregister_pickle_by_value(module)


@pytest.fixture(scope="session")
def saved_policy(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """saved_policy("CartPole-v1", {"algo.dueling": True}, seed=3): a run directory with a drawn policy."""

    def make(env_id: str, changes: dict[str, Any] | None = None, seed: int = 0) -> Path:
        config = tiny_config(env_id, changes or {})
        spec = probe_spec(config.env, None)
        network = make_blueprint(config, spec).build_network(trainable=False)
        snapshot = network.snapshot(7)
        draw = np.random.default_rng(seed)
        vector = draw.normal(0.0, 0.5, len(snapshot.vector)).astype(np.float32)
        # Buffers are the running normalisation's: a variance must be positive.
        buffers = draw.uniform(0.5, 2.0, len(snapshot.buffers)).astype(np.float32)
        snapshot = ParamSnapshot(7, vector, buffers, snapshot.layout_hash)
        run_dir = tmp_path_factory.mktemp("saved")
        save_policy(run_dir / "best", config, spec, snapshot, {"num_env_steps": 400, "mean_return": 9.5, "episodes": 4})
        return run_dir

    return make


@pytest.fixture(scope="session")
def cartpole_onnx(saved_policy: Callable[..., Path]) -> Path:
    """An exported CartPole policy of drawn parameters; tests copy it before they change it."""
    exporting = pytest.importorskip("qfleet.export.exporting")
    return Path(exporting.export_run(saved_policy("CartPole-v1")).path)


class Fleet:
    """A strategy with its engine in a test's hands: no session, no evaluations, roles can be killed between events.

    Args:
        config: of the run.
        folder: where checkpoints go.
        saved: the checkpoint to continue from, and its counters.
    """

    def __init__(self, config: RunConfig, folder: Path, saved: tuple[Saved, Counters] | None = None) -> None:
        self.config = config
        self.engine = load_engine(config, folder.parent)
        self.blueprint = make_blueprint(config, probe_spec(config.env, None), "cpu")
        self.control = Control(str(folder))
        if saved is not None:
            self.control.counters = dataclasses.replace(saved[1])
            self.control.saved_files, self.control.saved_tag = saved[0].files, saved[0].tag
        strategy = load_plugin("strategy", config.strategy.name)
        checkpoint = None if saved is None else saved[0]
        self.events = strategy.run(self.engine, self.blueprint, config.strategy, self.control, checkpoint)

    def until(self, is_enough: Callable[[Counters], bool]) -> list[Event]:
        """Run until the counters satisfy `is_enough`; the events on the way."""
        seen = []
        while not is_enough(self.control.counters):
            seen.append(next(self.events))
        return seen

    def until_snapshot(self) -> ParamSnapshot:
        """Ask for a snapshot and bring it."""
        self.control.snapshot_wanted = True
        event = next(event for event in self.events if isinstance(event, SnapshotPublished))
        snapshot = self.engine.payload(event.future)
        assert isinstance(snapshot, ParamSnapshot)
        return snapshot

    def drain(self, tag: str) -> tuple[Saved, Counters]:
        """A checkpoint, as the session would commit it."""
        self.control.drain_tag = tag
        event = next(event for event in self.events if isinstance(event, Drained))
        state = json.loads(json.dumps(event.state))
        self.control.saved_files, self.control.saved_tag, self.control.drain_tag = event.files, tag, None
        return Saved(tag, event.files, state), dataclasses.replace(self.control.counters)

    def role(self, name: str) -> Any:
        """The object behind a role of the inline engine."""
        return self.engine._roles[name].built


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Callable[..., Fleet]]:
    """fleet({"strategy": "...", "env.id": "..."}, saved=None): a tiny strategy to drive by hand."""
    made: list[Fleet] = []

    def make(changes: dict[str, Any], saved: tuple[Saved, Counters] | None = None) -> Fleet:
        config = tiny_config(changes.get("env.id"), changes)
        made.append(Fleet(config, tmp_path / "checkpoints", saved))
        return made[-1]

    yield make
    for one in made:
        one.engine.close()
