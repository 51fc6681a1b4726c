"""A strategy and an algorithm that do not fit are refused before anything starts, naming the pairs that do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

import qfleet.algos
from qfleet.algos.base import LearnsFrom
from qfleet.errors import UsageError
from qfleet.experiment import Experiment
from qfleet.plugins import list_plugins, load_plugin
from qfleet.strategies import parameter_server

ON_POLICY = """
from qfleet.algos import dqn

class Config(dqn.Config):
    name: str = "own_policy"

class Algorithm(dqn.Algorithm):
    learns_from = "trajectories"
"""


@pytest.fixture
def on_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An algorithm `own_policy` that learns from trajectories."""
    folder = tmp_path / "algos"
    folder.mkdir()
    (folder / "own_policy.py").write_text(ON_POLICY)
    monkeypatch.setattr(qfleet.algos, "__path__", [*qfleet.algos.__path__, str(folder)])


@pytest.mark.usefixtures("on_policy")
def test_an_on_policy_algorithm_needs_a_strategy_for_it(
    cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    result = cli("train", "CartPole-v1", "--algo", "own_policy", "--run-dir", "a")
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert "--algo own_policy does not fit --strategy serial: own_policy learns from trajectories" in result.stderr
    assert "dqn x serial" in result.stderr
    assert "own_policy x parameter_server" not in result.stderr
    assert not (tmp_path / "a").exists()
    monkeypatch.setattr(parameter_server, "NEEDS", frozenset({"replay", "trajectories"}), raising=False)
    result = cli("train", "CartPole-v1", "--algo", "own_policy")
    assert "own_policy x parameter_server" in result.stderr


@pytest.mark.usefixtures("on_policy")
def test_a_strategy_may_look_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"algo": "own_policy", "strategy": "parameter_server"}
    with pytest.raises(UsageError, match="does not fit"):
        Experiment.from_recipe("CartPole-v1", overrides=changes)
    monkeypatch.setattr(
        parameter_server, "fits", lambda algorithm: algorithm.learns_from == "trajectories", raising=False
    )
    Experiment.from_recipe("CartPole-v1", overrides=changes)
    with pytest.raises(UsageError, match="dqn learns from replay"):
        Experiment.from_recipe("CartPole-v1", overrides={"strategy": "parameter_server"})


def test_the_algorithms_there_are_say_what_they_learn_from() -> None:
    for name in list_plugins("algo"):
        assert load_plugin("algo", name).Algorithm.learns_from in get_args(LearnsFrom)
