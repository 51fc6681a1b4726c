"""`qfleet compare`: its tables, its files, its exit codes, and how it goes on."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qfleet.errors import QfleetError
from qfleet.experiment import Experiment

Cli = Callable[..., Any]
LastJson = Callable[..., dict[str, Any]]
ENV = "qfleet/Identity-v0"


@pytest.fixture
def compare(cli: Cli, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """compare("--strategies", "serial"): a tiny comparison in c, without its picture."""
    monkeypatch.setattr("qfleet.comparison.report.draw_picture", lambda *args: None)
    changes = {**tiny, "evaluation.every_env_steps": 100, "stop.until_return": 2.0}
    options = [f"--set={key}={json.dumps(value)}" for key, value in changes.items() if key != "stop.max_env_steps"]
    common = ["--recipe", "vector", "--out", "c", "--seeds", "2", "--budget", "env_steps=200", *options]
    return lambda *args: cli("compare", ENV, *common, *args)


TWO = ("--strategies", "serial,parameter_server:wait=async", "--workers", "2")


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The run directories that are run from now on."""
    seen: list[str] = []
    stream = Experiment.stream

    def note(self: Experiment) -> Any:
        seen.append(str(self.run_dir))
        return stream(self)

    monkeypatch.setattr(Experiment, "stream", note)
    return seen


CELLS = [f"c/runs/{name}/seed-{seed}" for seed in (0, 1) for name in ("serial", "parameter_server-wait=async")]


def test_it_runs_in_turn_reports_and_runs_nothing_twice(compare: Cli, runs: list[str], tmp_path: Path) -> None:
    result = compare(*TWO)
    assert result.exit_code == 0, result.stderr
    assert runs == CELLS
    for part in [
        f"{ENV}: 2 variants x 2 seeds, 200 env steps each; in c",
        f"{ENV} (recipe vector): ",
        "serial seed 0: held-out return",
        "held-out return",
        "reached 2",
        "0 of 2",
        "staleness",
        "2 workers, 1 server",
        "c/comparison.html",
    ]:
        assert part in result.stdout, part
    # In 80 columns no name is broken, and no number is cut.
    assert sum(line.startswith("parameter_server ") for line in result.stdout.splitlines()) == 3
    assert "\u2026" not in result.stdout
    assert (tmp_path / "c" / "comparison.json").is_file()
    runs.clear()
    result = compare(*TWO)
    assert result.exit_code == 0
    assert runs == []
    assert "4 of 4 runs are finished already" in result.stdout
    assert "staleness" in result.stdout, "the tables come again"


def test_json_is_the_file_and_the_only_line(compare: Cli, last_json: LastJson, tmp_path: Path) -> None:
    result = compare(*TWO, "--json")
    assert len(result.stdout.splitlines()) == 1
    body = last_json(result)
    assert body == json.loads((tmp_path / "c" / "comparison.json").read_bytes())
    assert [variant["label"] for variant in body["variants"]] == ["serial", "parameter_server:wait=async"]
    assert [(cell["seed"], cell["status"]) for cell in body["cells"]] == [(seed, "finished") for seed in (0, 0, 1, 1)]
    server = body["variants"][1]["measures"]
    assert server["bytes_moved"]["value"] > server["bytes_pushed"]["value"] > 0, "parameters are moved too"
    assert len(server["staleness"]["seeds"]) == 2
    # The command goes on with it: every word of the request is in it.
    words = shlex.split(body["command"])
    assert words[:5] == ["qfleet", "compare", ENV, *TWO[:2]]
    assert words[-2:] == ["--out", "c"]
    assert words[words.index("--seeds") :][:2] == ["--seeds", "2"]
    assert "algo.batch_size=16" in words


def test_quiet_is_one_line(compare: Cli) -> None:
    result = compare("--strategies", "serial", "--quiet")
    assert result.stderr == ""
    (line,) = result.stdout.splitlines()
    assert line.startswith(f"{ENV}: held-out return serial ")


def test_a_failure_is_shown_and_costs_no_other_cell(
    compare: Cli, last_json: LastJson, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stream = Experiment.stream

    def fail_once(self: Experiment) -> Any:
        if str(self.run_dir) == CELLS[1]:
            raise QfleetError("it broke")
        return stream(self)

    monkeypatch.setattr(Experiment, "stream", fail_once)
    result = compare(*TWO, "--json")
    assert result.exit_code == 1
    assert "failed: parameter_server:wait=async seed 0: it broke" in result.stderr
    body = last_json(result)
    assert [cell["status"] for cell in body["cells"]] == ["finished", "failed", "finished", "finished"]
    assert body["variants"][1]["num_finished"] == 1
    assert "it broke" in (tmp_path / "c" / "comparison.html").read_text()
    monkeypatch.setattr(Experiment, "stream", stream)
    assert compare(*TWO).exit_code == 0


def test_an_interrupt_saves_reports_and_says_how_to_go_on(
    compare: Cli, runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import os
    import signal

    stream = Experiment.stream

    def strike(self: Experiment) -> Any:
        for event in stream(self):
            yield event
            if str(self.run_dir) == CELLS[1] and self.session is not None and not self._interrupted:
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Experiment, "stream", strike)
    result = compare(*TWO)
    assert result.exit_code == 130
    assert runs == CELLS[:2]
    assert "parameter_server:wait=async seed 0: interrupted" in result.stdout
    assert "interrupted; go on with: qfleet compare" in result.stderr
    monkeypatch.setattr(Experiment, "stream", stream)
    result = compare(*TWO)
    assert result.exit_code == 0
    assert "resumed at" in result.stdout


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (("--strategies", "seriel"), ["strategy.name", "did you mean serial"]),
        (("--strategies", "serial", "--budget", "env_step=5"), ["did you mean env_steps"]),
        (("--strategies", "serial", "--seeds", "0"), ["--seeds"]),
        ((), ["--strategies", "qfleet compare --help"]),
    ],
)
def test_wrong_request_is_one_line(compare: Cli, tmp_path: Path, args: tuple[str, ...], parts: list[str]) -> None:
    result = compare(*args)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    for part in parts:
        assert part in result.stderr
    assert not list(tmp_path.iterdir())


def test_unknown_environment_is_one_line(cli: Cli, tmp_path: Path) -> None:
    result = cli("compare", "CartPol-v1", "--strategies", "serial")
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert "CartPole-v1" in result.stderr
    assert not list(tmp_path.iterdir())
