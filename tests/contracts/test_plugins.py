"""What every algorithm, strategy and engine must keep to. Modules are found by themselves, new ones too.

Every pair of strategy and engine, and of strategy and algorithm, trains for a few hundred steps. What an engine must
keep to beyond that is in test_engines.py and test_engine_lives.py.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import pkgutil
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from qfleet.algos.base import AlgorithmConfig, EpochsConfig, ReplayAlgorithmConfig
from qfleet.engines.base import EngineConfig
from qfleet.errors import UsageError
from qfleet.experiment import Experiment
from qfleet.plugins import fits, list_plugins, load_plugin
from qfleet.session import CheckpointSaved
from qfleet.strategies.base import Drained, Rollout, SnapshotPublished, StrategyConfig, Update
from qfleet.validation import Validated


def modules_of(package_name: str) -> list[ModuleType]:
    package = importlib.import_module(package_name)
    names = [info.name for info in pkgutil.iter_modules(package.__path__) if info.name != "base"]
    assert names, f"{package_name} is empty"
    return [importlib.import_module(f"{package_name}.{name}") for name in names]


def short_name(module: ModuleType) -> str:
    return module.__name__.rpartition(".")[2]


ALGOS, STRATEGIES, ENGINES = (modules_of(f"qfleet.{folder}") for folder in ("algos", "strategies", "engines"))
DQN = next(module for module in ALGOS if short_name(module) == "dqn")
CASES = [
    *((module, "algo", AlgorithmConfig, "Algorithm") for module in ALGOS),
    *((module, "strategy", StrategyConfig, "run") for module in STRATEGIES),
    *((module, "engine", EngineConfig, "Engine") for module in ENGINES),
]


@pytest.mark.parametrize(("module", "section", "base", "entry"), CASES, ids=[case[0].__name__ for case in CASES])
def test_a_plugin_has_its_parts(module: ModuleType, section: str, base: type, entry: str) -> None:
    name = short_name(module)
    assert name in list_plugins(section)
    assert load_plugin(section, name) is module
    assert issubclass(module.Config, base)
    assert module.Config().name == name, "the default name is the module's"
    assert callable(getattr(module, entry))
    for thing in (module, module.Config, getattr(module, entry)):
        assert len(inspect.getdoc(thing) or "") > 20, f"{thing} says nothing about itself"


@pytest.mark.parametrize("module", STRATEGIES, ids=short_name)
def test_a_strategy_is_a_generator_with_the_protocols_arguments(module: ModuleType) -> None:
    assert inspect.isgeneratorfunction(module.run)
    parameters = inspect.signature(module.run).parameters
    assert list(parameters) == ["engine", "blueprint", "config", "control", "saved"]
    assert parameters["saved"].default is None


MakeExperiment = Callable[..., Experiment]
FITTING = {strategy: [algo for algo in ALGOS if fits(strategy, algo)] for strategy in STRATEGIES}
INLINE = next(engine for engine in ENGINES if short_name(engine) == "inline")
# Every strategy on every engine with one algorithm, dqn where that fits; every other algorithm that fits on inline.
FIRST = {strategy: DQN if DQN in FITTING[strategy] else FITTING[strategy][0] for strategy in STRATEGIES}
PAIRS = [(strategy, engine, FIRST[strategy]) for strategy, engine in itertools.product(STRATEGIES, ENGINES)]
PAIRS += [(strategy, INLINE, algo) for strategy in STRATEGIES for algo in FITTING[strategy] if algo != FIRST[strategy]]
REFUSED = [(strategy, algo) for strategy in STRATEGIES for algo in ALGOS if algo not in FITTING[strategy]]


def test_every_algorithm_has_a_strategy_and_every_strategy_an_algorithm() -> None:
    assert all(FITTING.values())
    assert set(itertools.chain(*FITTING.values())) == set(ALGOS)


@pytest.mark.parametrize(("strategy", "algo"), REFUSED, ids=lambda module: short_name(module))
def test_a_pair_that_does_not_fit_is_refused_by_name(
    experiment: MakeExperiment, strategy: ModuleType, algo: ModuleType
) -> None:
    message = f"--algo {short_name(algo)} does not fit --strategy {short_name(strategy)}: "
    with pytest.raises(UsageError, match=message):
        experiment("qfleet/Identity-v0", {"strategy": short_name(strategy), "algo": short_name(algo)})


@pytest.mark.parametrize(("strategy", "engine_module", "algo"), PAIRS, ids=lambda module: short_name(module))
def test_every_pair_trains(
    experiment: MakeExperiment, strategy: ModuleType, engine_module: ModuleType, algo: ModuleType
) -> None:
    changes: dict[str, Any] = {
        "strategy": short_name(strategy),
        "engine": short_name(engine_module),
        "algo": short_name(algo),
        "algo.learning_rate": 0.01,
        "algo.gamma": 0.0,
        "network.hidden": [32],  # with half of that, a seed may leave one of the four observations hardly a live unit
        "stop.max_env_steps": 600,
        "checkpoint.every_env_steps": 300,
        "evaluation.every_env_steps": 300,
        "evaluation.final_episodes": 50,
    }
    if short_name(engine_module) == "ray" and "num_workers" in strategy.Config.model_fields:
        changes["strategy.num_workers"] = 2  # each is a process
    if issubclass(algo.Config, ReplayAlgorithmConfig):
        changes["replay.samples_per_insert"] = 8.0
    elif issubclass(algo.Config, EpochsConfig):
        changes |= {"algo.num_epochs": 8, "algo.num_minibatches": 2}
    else:  # each trajectory is trained on once
        changes |= {"algo.rollout_steps": 2, "algo.learning_rate": 0.05}
        if "entropy_bonus" in algo.Config.model_fields:
            # On threads nobody decides the order: with 0.01 one run in twenty was sure of a wrong action too early.
            changes["algo.entropy_bonus"] = 0.1
    run = experiment("qfleet/Identity-v0", changes)
    events = list(run.stream())
    kinds = {type(event) for event in events}
    assert {Rollout, Update, SnapshotPublished, Drained, CheckpointSaved, Validated} <= kinds
    summary = events[-1].summary
    assert summary["num_env_steps"] >= 600
    assert summary["num_updates"] > 30  # of one batch each, or of one batch from each of several workers
    assert len(summary["parameters_sha256"]) == 64
    # Chance is 1/4; the right action is shown, so that anything that learns finds it.
    assert summary["eval"]["mean_return"] == 1.0
