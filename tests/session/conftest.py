"""A concurrent engine that one thread can play: an evaluation ends when it has been looked at often enough."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from qfleet.cli.main import app
from qfleet.engines import inline
from qfleet.engines.base import Future, RoleRef


class Beside(inline.Engine):
    """Inline that passes for concurrent.

    Attributes:
        looks_needed: at how many looks (`wait(0)`) an evaluation call is over; one that waits needs no look.
        num_deaths: so many times the evaluator dies instead.
    """

    is_concurrent = True
    looks_needed = 5
    num_deaths = 0

    def __init__(self, config: inline.Config, seed: int) -> None:
        super().__init__(config, seed)
        self.num_looks = 0

    def wait(self, timeout: float | None = None, lane: str = "training") -> Future | None:
        if lane == "evaluation":
            self.num_looks += 1
            if timeout == 0.0 and self.num_looks < self.looks_needed:
                return None
            self.num_looks = 0
            if self.num_deaths > 0:
                self.num_deaths -= 1
                self.kill(RoleRef("evaluator"))
        return super().wait(timeout, lane)


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> Callable[..., type[Beside]]:
    """beside(looks_needed=9): runs from here on take place on such an engine."""

    def use(**attributes: int) -> type[Beside]:
        engine = type("Engine", (Beside,), attributes)
        monkeypatch.setattr("qfleet.experiment.load_engine", lambda config: engine(config.engine, config.seed))
        return engine

    return use


Cli = Callable[..., Result]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """cli("train", "CartPole-v1"): the result of a command, run in an empty directory."""
    monkeypatch.chdir(tmp_path)
    return lambda *args: CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture
def train(cli: Cli, tiny: dict[str, Any]) -> Cli:
    """train("--seed", 3): the tiny run with more options."""
    options = [f"--set={key}={json.dumps(value)}" for key, value in tiny.items()]
    return lambda *args: cli("train", "qfleet/Identity-v0", "--recipe", "vector", *options, *args)


@pytest.fixture(scope="session")
def last_json() -> Callable[[Result], dict[str, Any]]:
    """The last line of a result's standard output, read as JSON."""
    return lambda result: dict(json.loads(result.stdout.splitlines()[-1]))
