"""Every command explains itself by examples, and answers before torch could be imported."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from qfleet.plugins import list_plugins
from qfleet.version import __version__

Cli = Callable[..., Any]
HEAVY = ("torch", "gymnasium", "numba", "matplotlib", "tensorboard")


@pytest.mark.parametrize(
    ("command", "example"),
    [
        ((), "qfleet train CartPole-v1"),
        (("train",), "qfleet train --resume"),
        (("scale",), "qfleet scale runs/"),
        (("compare",), "qfleet compare CartPole-v1"),
        (("evaluate",), "qfleet evaluate runs/"),
        (("recipes",), "qfleet recipes show"),
        (("recipes", "show"), "qfleet recipes show cartpole"),
        (("doctor",), "qfleet doctor --json"),
    ],
)
def test_help_shows_examples_and_the_common_options(cli: Cli, command: tuple[str, ...], example: str) -> None:
    result = cli(*command, "--help")
    assert result.exit_code == 0
    assert "Examples:" in result.stdout
    assert example in result.stdout
    assert "--debug" in result.stdout
    if command:
        assert "--json" in result.stdout
        assert "--quiet" in result.stdout


def test_train_has_every_option(cli: Cli) -> None:
    text = cli("train", "--help").stdout
    for name in ["algo", "strategy", "engine", "workers", "seed", "recipe", "set", "until-return", "max-env-steps"]:
        assert f"--{name} " in text
    for name in ["max-seconds", "seeds", "run-dir", "resume"]:
        assert f"--{name} " in text


def test_options_name_what_there_is(cli: Cli) -> None:
    text = " ".join(cli("train", "--help").stdout.replace("│", " ").split())
    for section in ("algo", "strategy", "engine"):
        assert ", ".join(list_plugins(section)) in text


def test_bare_command_prints_its_help(cli: Cli) -> None:
    result = cli()
    assert result.exit_code == 0
    assert "evaluate" in result.stdout


def test_version(cli: Cli) -> None:
    assert cli("--version").stdout == f"qfleet {__version__}\n"


@pytest.mark.parametrize("code", ["import qfleet", "import sys; sys.argv = ['qfleet', '--help']; CALL"])
def test_nothing_heavy_is_imported_before_it_is_needed(code: str) -> None:
    call = "from qfleet.cli.main import app; app(standalone_mode=False)"
    script = f"{code.replace('CALL', call)}\nimport json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not set(HEAVY) & set(json.loads(done.stdout.splitlines()[-1]))
