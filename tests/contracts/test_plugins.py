"""What every algorithm, strategy and engine must keep to. Modules are found by themselves, new ones too.

An engine is held to the protocol of engines/base.py by roles that know nothing of learning; every pair of strategy and
engine, and of strategy and algorithm, trains for a few hundred steps.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import json
import pkgutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from qfleet.algos.base import AlgorithmConfig
from qfleet.engines.base import Engine, EngineConfig, Future, RoleRef
from qfleet.errors import CallFailed, RoleDied, ValueLost
from qfleet.experiment import Experiment
from qfleet.recipe import list_plugins, load_plugin
from qfleet.session import CheckpointSaved, Validated
from qfleet.strategies.base import Drained, Rollout, SnapshotPublished, StrategyConfig, Update
from qfleet.types import Receipt, Reply


def modules_of(package_name: str) -> list[ModuleType]:
    package = importlib.import_module(package_name)
    names = [info.name for info in pkgutil.iter_modules(package.__path__) if info.name != "base"]
    assert names, f"{package_name} is empty"
    return [importlib.import_module(f"{package_name}.{name}") for name in names]


def short_name(module: ModuleType) -> str:
    return module.__name__.rpartition(".")[2]


ALGOS, STRATEGIES, ENGINES = (modules_of(f"qfleet.{folder}") for folder in ("algos", "strategies", "engines"))
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


class Probe:
    """A role whose answers give away who was called with what."""

    def __init__(self, label: str, closed: str = "") -> None:
        self.label = label
        self.closed = closed

    def count(self, num_updates: int) -> Receipt:
        return Receipt(num_updates=num_updates)

    def make(self, value: object) -> Reply:
        return Reply(Receipt(version=7), (self.label, value))

    def nothing(self) -> None:
        return None

    def fail(self) -> None:
        raise ValueError("decoy 99")

    def close(self) -> None:
        if self.closed:
            Path(self.closed).write_text(self.label)


@pytest.fixture(params=ENGINES, ids=short_name)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    made = request.param.Engine(request.param.Config(), 0)
    yield made
    made.close()


def call(engine: Engine, role: RoleRef, method: str, *args: object, lane: str = "training") -> Future:
    future = engine.submit(role, method, *args, lane=lane)
    assert engine.wait(timeout=60, lane=lane) is future
    return future


def test_every_method_of_the_protocol_is_there() -> None:
    wanted = [name for name in vars(Engine) if not name.startswith("_")]
    assert len(wanted) >= 10
    for module in ENGINES:
        for name in wanted:
            theirs = inspect.signature(getattr(module.Engine, name)).parameters
            assert list(theirs) == list(inspect.signature(getattr(Engine, name)).parameters), f"{module}: {name}"


def test_spawn_builds_once_and_names_are_unique(engine: Engine) -> None:
    role = engine.spawn("probe-0", Probe, "label")
    assert role == RoleRef("probe-0")
    with pytest.raises(ValueError, match="probe-0"):
        engine.spawn("probe-0", Probe, "other")
    assert engine.payload(call(engine, role, "make", 1)) == ("label", 1), "the first one is still there"


def test_an_answer_has_two_halves(engine: Engine) -> None:
    role = engine.spawn("probe", Probe, "label")
    both = call(engine, role, "make", "value")
    assert engine.result(both).version == 7
    assert engine.payload(both) == ("label", "value")
    assert engine.result(call(engine, role, "count", 3)).num_updates == 3
    assert engine.result(call(engine, role, "nothing")) == Receipt()
    assert (both.role, both.method, both.lane) == (role, "make", "training")


def test_nothing_under_way_gives_none(engine: Engine) -> None:
    assert engine.wait(timeout=1) is None
    role = engine.spawn("probe", Probe, "label")
    call(engine, role, "nothing")
    assert engine.wait(timeout=1) is None, "each completion is handed out once"


def test_every_submitted_call_comes_back_and_one_roles_in_order(engine: Engine) -> None:
    roles = [engine.spawn(f"probe-{i}", Probe, str(i)) for i in range(3)]
    submitted = [engine.submit(role, "make", turn) for turn in range(4) for role in roles]
    done = [engine.wait(timeout=60) for _ in submitted]
    assert {id(future) for future in done} == {id(future) for future in submitted}
    for i, role in enumerate(roles):
        answers = [engine.payload(future) for future in done if future is not None and future.role == role]
        assert answers == [(str(i), turn) for turn in range(4)]


def test_a_completed_future_stands_for_its_payload(engine: Engine) -> None:
    first, second = engine.spawn("first", Probe, "a"), engine.spawn("second", Probe, "b")
    made = call(engine, first, "make", 99)
    assert engine.payload(call(engine, second, "make", made)) == ("b", ("a", 99))
    assert engine.payload(made) == ("a", 99), "passing it on uses nothing up"


def test_a_future_that_is_not_completed_is_refused(engine: Engine) -> None:
    role = engine.spawn("probe", Probe, "a")
    pending = engine.submit(role, "make", 1)
    with pytest.raises(ValueError, match="make is not completed"):
        engine.submit(role, "make", pending)
    assert engine.wait(timeout=60) is pending
    assert engine.wait(timeout=1) is None, "the refused call was never queued"


def test_a_call_that_raises_gives_the_roles_own_traceback(engine: Engine) -> None:
    role = engine.spawn("probe", Probe, "a")
    failed = call(engine, role, "fail")
    for ask in (engine.result, engine.payload):
        with pytest.raises(CallFailed, match=r"probe\.fail failed: ValueError: decoy 99") as caught:
            ask(failed)
        assert (caught.value.role, caught.value.method) == ("probe", "fail")
        assert 'raise ValueError("decoy 99")' in caught.value.remote_traceback
    assert engine.payload(call(engine, role, "make", 2)) == ("a", 2), "the role lives on"


def test_a_value_that_never_came_to_be_is_lost_not_none(engine: Engine) -> None:
    producer, healthy = engine.spawn("producer", Probe, "a"), engine.spawn("healthy", Probe, "b")
    failed = call(engine, producer, "fail")
    with pytest.raises(ValueLost, match="producer") as caught:
        engine.result(call(engine, healthy, "make", failed))
    assert caught.value.producer == "producer"
    engine.stop(producer)
    dead = call(engine, producer, "make", 1)
    with pytest.raises(ValueLost, match="producer"):
        engine.result(call(engine, healthy, "make", dead))


def test_lanes_do_not_mix(engine: Engine) -> None:
    role = engine.spawn("probe", Probe, "a")
    training = engine.submit(role, "make", "training")
    evaluation = engine.submit(role, "make", "evaluation", lane="evaluation")
    assert engine.wait(timeout=60, lane="evaluation") is evaluation
    assert engine.wait(timeout=1, lane="evaluation") is None
    assert engine.wait(timeout=60) is training
    assert engine.payload(evaluation) == ("a", "evaluation")
    # A value made on one lane is good on the other.
    assert engine.payload(call(engine, role, "make", evaluation)) == ("a", ("a", "evaluation"))


def test_a_stopped_role_is_dead_and_its_calls_are_dropped(engine: Engine, tmp_path: Path) -> None:
    doomed = engine.spawn("doomed", Probe, "a", str(tmp_path / "closed"))
    other = engine.spawn("other", Probe, "b")
    engine.submit(doomed, "make", 99)
    engine.stop(doomed)
    assert (tmp_path / "closed").read_text() == "a", "its close was called"
    call(engine, other, "nothing")  # the next completion is not the dropped call's
    late = call(engine, doomed, "make", 98)
    with pytest.raises(RoleDied, match="doomed") as caught:
        engine.result(late)
    assert (caught.value.role, caught.value.incarnation) == ("doomed", 0)


def test_close_closes_every_role(tmp_path: Path) -> None:
    for module in ENGINES:
        made = module.Engine(module.Config(), 0)
        paths = [tmp_path / f"{short_name(module)}-{i}" for i in range(2)]
        for i, path in enumerate(paths):
            made.spawn(f"probe-{i}", Probe, f"label-{i}", str(path))
        made.close()
        assert [path.read_text() for path in paths] == ["label-0", "label-1"]
        made.close()  # twice is fine


def test_the_engines_state_is_json_and_comes_back(engine: Engine) -> None:
    role = engine.spawn("probe", Probe, "a")
    before = engine.now()
    for _ in range(3):
        call(engine, role, "nothing")
    assert engine.now() > before
    state = json.loads(json.dumps(engine.state_dict()))
    engine.load_state_dict(state)
    assert json.loads(json.dumps(engine.state_dict())) == state


MakeExperiment = Callable[..., Experiment]
PAIRS = [(strategy, engine, ALGOS[0]) for strategy, engine in itertools.product(STRATEGIES, ENGINES)]
PAIRS += [(strategy, ENGINES[0], algo) for strategy, algo in itertools.product(STRATEGIES, ALGOS[1:])]


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
        "replay.samples_per_insert": 8.0,
        "stop.max_env_steps": 600,
        "checkpoint.every_env_steps": 300,
        "evaluation.every_env_steps": 300,
        "evaluation.final_episodes": 50,
    }
    run = experiment("qfleet/Identity-v0", changes)
    events = list(run.stream())
    kinds = {type(event) for event in events}
    assert {Rollout, Update, SnapshotPublished, Drained, CheckpointSaved, Validated} <= kinds
    summary = events[-1].summary
    assert summary["num_env_steps"] >= 600
    assert summary["num_updates"] > 100
    assert len(summary["parameters_sha256"]) == 64
    # Chance is 1/4; the right action is shown, so that anything that learns finds it.
    assert summary["eval"]["mean_return"] == 1.0
