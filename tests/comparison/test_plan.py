"""What a comparison asks for becomes cells in turn, or one line that says what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import qfleet.algos
from qfleet.comparison.plan import Budget, Plan, Request, make_plan, parse_budget, parse_strategies
from qfleet.errors import UsageError
from qfleet.strategies import parameter_server

MakePlan = Callable[..., Plan]


def test_cells_take_turns(plan: MakePlan) -> None:
    cells = list(plan("serial,parameter_server:wait=async,all_reduce", num_seeds=2).cells())
    assert [(cell.variant.label, cell.seed) for cell in cells] == [
        ("serial", 0),
        ("parameter_server:wait=async", 0),
        ("all_reduce", 0),
        ("serial", 1),
        ("parameter_server:wait=async", 1),
        ("all_reduce", 1),
    ]
    assert len({cell.run_dir for cell in cells}) == 6
    assert [str(cell.run_dir).rpartition("/c/")[2] for cell in cells[:2]] == [
        "runs/serial/seed-0",
        "runs/parameter_server-wait=async/seed-0",
    ]


def test_all_cells_have_the_same_budget_and_the_same_seeds(plan: MakePlan) -> None:
    made = plan("serial,parameter_server", budget="updates=50", overrides={"seed": 7})
    for cell in made.cells():
        stop = cell.config.stop
        # The target ends no cell: it is the threshold, and each cell has the whole budget.
        assert (stop.max_env_steps, stop.max_updates, stop.max_seconds) == (None, 50, None)
        assert stop.until_return == "never"
        assert cell.config.seed == cell.seed
    assert made.seeds == [7, 8]
    assert made.threshold == 2.0


def test_settings_of_a_variant_are_its_own(plan: MakePlan) -> None:
    made = plan("serial:algo.batch_size=8,parameter_server:wait=ssp:bound=3:strategy.num_servers=2,parameter_server")
    first, second, third = (variant.config for variant in made.variants)
    assert (first.algo.batch_size, second.algo.batch_size, third.algo.batch_size) == (8, 16, 16)
    assert second.strategy.model_dump()["bound"] == 3
    assert second.strategy.model_dump()["num_servers"] == 2
    assert third.strategy.model_dump()["wait"] == "sync"
    # One way to write a field's name, so that one variant has one label.
    assert made.variants[1].label == "parameter_server:wait=ssp:bound=3:num_servers=2"


def test_workers_and_set_go_to_the_strategies_that_have_the_field(plan: MakePlan) -> None:
    made = plan("serial,all_reduce,parameter_server", num_workers=3, overrides={"strategy.num_servers": 2})
    serial, all_reduce, server = (variant.config.strategy.model_dump() for variant in made.variants)
    assert "num_workers" not in serial
    assert (all_reduce["num_workers"], server["num_workers"]) == (3, 3)
    assert server["num_servers"] == 2
    assert "num_servers" not in all_reduce


def test_each_algorithm_with_each_strategy(
    plan: MakePlan, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert [one.label for one in plan("serial,all_reduce", algos="dqn").variants] == ["serial", "all_reduce"]
    folder = tmp_path_factory.mktemp("algos")
    (folder / "other_dqn.py").write_text(
        "from qfleet.algos import dqn\n"
        'class Config(dqn.Config):\n    name: str = "other_dqn"\n'
        "Algorithm = dqn.Algorithm\n"
    )
    monkeypatch.setattr(qfleet.algos, "__path__", [*qfleet.algos.__path__, str(folder)])
    made = plan("serial,all_reduce", algos="dqn,other_dqn")
    labels = ["dqn x serial", "dqn x all_reduce", "other_dqn x serial", "other_dqn x all_reduce"]
    assert [one.label for one in made.variants] == labels
    assert [one.config.algo.name for one in made.variants] == ["dqn", "dqn", "other_dqn", "other_dqn"]
    assert all(one.config.algo.batch_size == 16 for one in made.variants), "--set holds for each algorithm"


def test_a_named_recipe_and_its_own_limit(tmp_path: Any) -> None:
    made = make_plan(Request("cartpole", "serial"), tmp_path)
    assert made.env == "CartPole-v1"
    assert made.budget == Budget("env_steps", 100_000)
    assert made.threshold == 475.0
    assert len(made.seeds) == 5


def test_budgets() -> None:
    assert parse_budget("env_steps=20_000") == Budget("env_steps", 20_000)
    assert parse_budget("updates=1e4") == Budget("updates", 10_000)
    assert parse_budget("seconds=2.5") == Budget("seconds", 2.5)
    assert str(Budget("env_steps", 20_000)) == "20,000 env steps"


def test_values_of_settings_are_toml_or_text() -> None:
    ((name, settings),) = parse_strategies("all_reduce:a=1:b=true:c=word:d=0.5")
    assert name == "all_reduce"
    assert settings == {"a": 1, "b": True, "c": "word", "d": 0.5}


WRONG: dict[str, tuple[dict[str, Any], list[str]]] = {
    "unknown strategy": (
        {"strategies": "serial,paramter_server"},
        ["paramter_server", "did you mean parameter_server"],
    ),
    "nothing between commas": ({"strategies": "serial,,all_reduce"}, ["--strategies", "commas"]),
    "no setting": ({"strategies": "parameter_server:async"}, ["'async' is no setting", "key=value"]),
    "unknown setting": ({"strategies": "parameter_server:wiat=async"}, ["strategy.wiat", "did you mean wait"]),
    "wrong value": ({"strategies": "parameter_server:wait=maybe"}, ["strategy.wait", "'maybe'"]),
    "own budget": ({"strategies": "serial:stop.max_updates=5"}, ["stop.max_updates", "same for all", "--set"]),
    "own environment": ({"strategies": "serial:env.num_envs=5"}, ["env.num_envs", "same for all"]),
    "twice": ({"strategies": "serial,serial", "num_workers": None}, ["serial and serial are the same"]),
    "the default by name": (
        {"strategies": "parameter_server,parameter_server:wait=sync"},
        ["parameter_server and parameter_server:wait=sync are the same"],
    ),
    "unknown algorithm": ({"algos": "dqm"}, ["algo.name", "did you mean dqn"]),
    "unknown engine": ({"engine": "inlin"}, ["engine.name", "did you mean inline"]),
    "unknown budget": ({"budget": "env_step=5"}, ["'env_step'", "did you mean env_steps"]),
    "budget without an amount": ({"budget": "5"}, ["kind=amount", "env_steps=20000"]),
    "budget that is no number": ({"budget": "updates=many"}, ["'many' is not a number"]),
    "half an update": ({"budget": "updates=0.5"}, ["positive integer"]),
    "no seconds": ({"budget": "seconds=0"}, ["positive number"]),
    "endless": ({"budget": "seconds=inf"}, ["positive number"]),
    "limit in --set": ({"overrides": {"stop.max_updates": 9}}, ["stop.max_updates", "--budget updates="]),
    "strategy in --set": ({"overrides": {"strategy": "serial"}}, ["--set strategy", "--strategies"]),
    "field of no strategy": ({"overrides": {"strategy.num_server": 2}}, ["strategy.num_server", "num_servers"]),
    "workers of nobody": ({"strategies": "serial", "num_workers": 2}, ["--workers 2", "leave it out"]),
    "replay that cannot fit": ({"overrides": {"replay.capacity": 10**12}}, ["replay.capacity", "would fit"]),
    "cluster that is not there": (
        {"engine": "sim", "overrides": {"engine.cluster": "nowhere.toml"}},
        ["engine.cluster = 'nowhere.toml'", "No such file"],
    ),
    "no such network": ({"overrides": {"network.kind": "no.such:Net"}}, ["no.such"]),
}


@pytest.mark.parametrize(("changes", "parts"), WRONG.values(), ids=WRONG.keys())
def test_wrong_request_is_refused_before_anything_runs(
    plan: MakePlan, changes: dict[str, Any], parts: list[str], tmp_path: Any
) -> None:
    with pytest.raises(UsageError) as caught:
        plan(**changes)
    for part in parts:
        assert part in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("strategies", ["serial,parameter_server", "parameter_server"])
def test_pair_that_does_not_fit_is_refused(plan: MakePlan, monkeypatch: pytest.MonkeyPatch, strategies: str) -> None:
    monkeypatch.setattr(parameter_server, "NEEDS", frozenset({"rollouts"}), raising=False)
    with pytest.raises(UsageError, match="--algo dqn does not fit --strategy parameter_server"):
        plan(strategies)
