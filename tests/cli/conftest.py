"""The command line, called in this process (`cli`, `train`) or as a process of its own (`command`)."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from qfleet.cli.main import app

ENV = "qfleet/Identity-v0"
Cli = Callable[..., Result]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """cli("train", "CartPole-v1"): the result of a command, run in an empty directory."""
    monkeypatch.chdir(tmp_path)
    return lambda *args: CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture(scope="session")
def settings(tiny: dict[str, Any]) -> list[str]:
    """The tiny run as command line options."""
    options: list[str] = ["--recipe", "vector"]
    for key, value in tiny.items():
        options += ["--set", f"{key}={json.dumps(value)}"]
    return options


@pytest.fixture
def train(cli: Cli, settings: list[str]) -> Cli:
    """train("--seed", 3): the tiny run with more options."""
    return lambda *args: cli("train", ENV, *settings, *args)


@pytest.fixture(scope="session")
def command() -> Callable[..., list[str]]:
    """command("train", ...): `qfleet train ...` for a process of its own."""
    return lambda *args: [sys.executable, "-c", "from qfleet.cli.main import main; main()", *args]


@pytest.fixture(scope="session")
def last_json() -> Callable[[Result], dict[str, Any]]:
    """The last line of a result's standard output, read as JSON."""
    return lambda result: dict(json.loads(result.stdout.splitlines()[-1]))
