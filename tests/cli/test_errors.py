"""Wrong requests: one line on standard error that names the field, the value and the fix, and exit code 2."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qfleet.cli import train as train_command
from qfleet.errors import CallFailed, QfleetError

Cli = Callable[..., Any]
CARTPOLE = ("train", "CartPole-v1")

WRONG = {
    "no environment": (("train",), ["name one", "qfleet train CartPole-v1"]),
    "unknown environment": (("train", "CartPol-v1"), ["CartPol-v1", "CartPole-v1"]),
    "continuous actions": (("train", "Pendulum-v1"), ["Pendulum-v1", "--set env.discretize="]),
    "typo in --set": ((*CARTPOLE, "--set", "algo.lerning_rate=1"), ["algo.lerning_rate", "did you mean learning_rate"]),
    "typo in a table": ((*CARTPOLE, "--set", "replya.capacity=1"), ["replya", "did you mean replay"]),
    "wrong type": ((*CARTPOLE, "--set", "algo.learning_rate=fast"), ["algo.learning_rate", "'fast'", "valid number"]),
    "out of range": ((*CARTPOLE, "--set", "algo.gamma=2"), ["algo.gamma", "2", "less than or equal to 1"]),
    "no value in --set": ((*CARTPOLE, "--set", "algo.gamma"), ["algo.gamma", "key=value"]),
    "unknown recipe": ((*CARTPOLE, "--recipe", "cartpol"), ["cartpol", "did you mean cartpole"]),
    "missing recipe file": ((*CARTPOLE, "--recipe", "mine.toml"), ["mine.toml", "No such file"]),
    "open recipe": (("train", "--recipe", "vector"), ["vector", "leaves the environment open"]),
    "unknown algorithm": ((*CARTPOLE, "--algo", "dqm"), ["algo.name", "dqm", "did you mean dqn"]),
    "unknown strategy": ((*CARTPOLE, "--strategy", "seriel"), ["strategy.name", "did you mean serial"]),
    "unknown engine": ((*CARTPOLE, "--engine", "inlin"), ["engine.name", "did you mean inline"]),
    "workers of serial": ((*CARTPOLE, "--workers", "4"), ["--workers 4", "strategy serial runs one worker"]),
    "no workers": ((*CARTPOLE, "--workers", "0"), ["--workers", "greater than or equal to 1"]),
    "target": ((*CARTPOLE, "--until-return", "high"), ["stop.until_return", "'high'"]),
    "no steps": ((*CARTPOLE, "--max-env-steps", "0"), ["stop.max_env_steps", "0", "greater than or equal to 1"]),
    "no seconds": ((*CARTPOLE, "--max-seconds", "-1"), ["stop.max_seconds", "greater than 0"]),
    "replay that cannot fit": ((*CARTPOLE, "--set", "replay.capacity=1000000000000"), ["replay.capacity", "would fit"]),
    "nothing to resume": (("train", "--resume", "nowhere"), ["nowhere", "no run here"]),
    "environment with --resume": ((*CARTPOLE, "--resume", "nowhere"), ["CartPole-v1", "leave it out"]),
    "no run to evaluate": (("evaluate", "nowhere"), ["nowhere", "no such directory"]),
    "unknown recipe to show": (("recipes", "show", "imag"), ["imag", "did you mean image"]),
    "unknown option": ((*CARTPOLE, "--sed", "1"), ["--sed", "--seed", "qfleet train --help"]),
    "missing argument": (("evaluate",), ["RUN_DIR", "qfleet evaluate --help"]),
    "unknown command": (("trane",), ["trane", "train"]),
}


@pytest.mark.parametrize(("args", "parts"), WRONG.values(), ids=WRONG.keys())
def test_wrong_request_is_one_line_that_names_the_fix(
    cli: Cli, tmp_path: Path, args: tuple[str, ...], parts: list[str]
) -> None:
    result = cli(*args, "--quiet") if args != ("trane",) else cli(*args)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("error: ")
    for part in parts:
        assert part in result.stderr
    assert result.stdout == ""
    assert not list(tmp_path.glob("runs/*")), "a refused run leaves no directory behind"


@pytest.mark.parametrize("args", [(*CARTPOLE, "--set", "algo.gamma=2"), ("train", "--seed", "x"), ("evaluate", "no")])
def test_json_of_a_failure(cli: Cli, last_json: Callable[..., dict[str, Any]], args: tuple[str, ...]) -> None:
    result = cli(*args, "--json")
    failure = last_json(result)
    assert failure == {"error": result.stderr.removeprefix("error: ").strip(), "exit_code": 2}


def test_one_worker_is_what_serial_has(train: Cli) -> None:
    assert train("--workers", "1", "--quiet").exit_code == 0


def test_directory_with_something_in_it_is_refused_and_kept(train: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for options in ((), ("--seeds", "2")):
        result = train("--run-dir", "mine", *options)
        assert result.exit_code == 2
        assert result.stderr == (
            "error: mine: this directory is not empty; continue it with --resume mine, or choose another --run-dir\n"
        )
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_refused_run_leaves_its_directory_free_for_the_corrected_command(train: Cli, tmp_path: Path) -> None:
    assert train("--run-dir", "a", "--set", "network=no.such:Net").exit_code == 2
    assert not (tmp_path / "a").exists()
    assert train("--run-dir", "a", "--quiet").exit_code == 0


@pytest.mark.parametrize(
    ("error", "line", "code"),
    [
        (QfleetError("it broke"), "error: it broke", 1),
        (ValueError("bad\nnews"), "error: internal: ValueError: bad news; run again with --debug for the traceback", 1),
        (PermissionError(13, "Permission denied", "/x"), "error: /x: permission denied", 1),
        (KeyboardInterrupt(), "error: stopped at once; nothing was saved beyond the last checkpoint", 130),
        (
            CallFailed("worker-0", "train", "ZeroDivisionError: zero", "its own lines"),
            "error: worker-0.train failed: ZeroDivisionError: zero",
            1,
        ),
    ],
)
def test_failures_are_one_line_and_a_traceback_only_with_debug(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, error: BaseException, line: str, code: int
) -> None:
    def fail(request: object) -> None:
        raise error

    monkeypatch.setattr(train_command, "new_experiment", fail)
    result = cli(*CARTPOLE)
    assert (result.exit_code, result.stderr) == (code, f"{line}\n")
    for args in [("--debug", *CARTPOLE), (*CARTPOLE, "--debug")]:
        result = cli(*args)
        assert result.exit_code == code
        assert result.stderr.splitlines()[-1] == line
        assert "Traceback" in result.stderr
        if isinstance(error, CallFailed):
            assert "its own lines" in result.stderr
