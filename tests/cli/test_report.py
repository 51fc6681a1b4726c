"""`qfleet report`, `qfleet watch` and what `qfleet evaluate` prints."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]
LastJson = Callable[[Any], dict[str, Any]]


@pytest.fixture
def trained(train: Cli) -> str:
    """A run directory, relative to where commands run."""
    assert train("--run-dir", "a", "--quiet", "--set", "evaluation.every_env_steps=100").exit_code == 0
    return "a"


def test_report_is_a_file_and_says_what_it_left_out(
    cli: Cli, trained: str, tmp_path: Path, last_json: LastJson
) -> None:
    result = cli("report", trained, "nowhere", "--out", "pages/r.html", "--json")
    assert result.exit_code == 0
    told = last_json(result)
    assert (told["out"], told["runs"]) == ("pages/r.html", 1)
    assert told["left_out"] == [{"run": "nowhere", "why": "no such directory"}]
    assert "note: left out: nowhere: no such directory" in result.stderr
    assert "note: no frames: " in result.stderr
    page = (tmp_path / "pages" / "r.html").read_text("utf-8")
    assert "qfleet report a nowhere --out pages/r.html" in page
    assert "No frames" in page
    assert cli("report", trained, "--no-frames", "--quiet").stdout == "report.html\n"
    assert "No frames" not in (tmp_path / "report.html").read_text("utf-8")


def test_report_of_nothing_is_one_line(cli: Cli, tmp_path: Path) -> None:
    result = cli("report", "nowhere", "nothing")
    assert (result.exit_code, result.stderr) == (2, "error: nowhere: no such directory (and 1 more)\n")
    assert not (tmp_path / "report.html").exists()


def test_evaluate_tells_the_score_and_the_way_to_it(cli: Cli, trained: str, last_json: LastJson) -> None:
    result = cli("evaluate", trained, "--episodes", "8")
    assert result.exit_code == 0
    for part in ("95% interval", "interquartile mean", "length 1.0 env steps", "actions ", "from chance", "best valid"):
        assert part in result.stdout, part
    told = last_json(cli("evaluate", trained, "--episodes", "8", "--json"))
    assert told["mean_length"] == 1.0
    assert sum(told["actions"]) == pytest.approx(1.0)
    assert told["interval"][0] <= told["mean_return"] <= told["interval"][1]
    way = told["convergence"]
    assert [level["share"] for level in way["levels"]][-1] == 1.0
    assert way["num_env_steps"] == 400
    chance = last_json(cli("evaluate", "random", "--env", "qfleet/Identity-v0", "--episodes", "64", "--json"))
    assert 0.0 < chance["mean_return"] < 0.6
    assert "convergence" not in chance


def test_evaluate_without_whole_metrics_still_gives_the_score(cli: Cli, trained: str, tmp_path: Path) -> None:
    (tmp_path / trained / "metrics.jsonl").write_text("3\n")
    result = cli("evaluate", trained, "--episodes", "4")
    assert result.exit_code == 0
    assert "note: how fast it learned is unknown: a: metrics.jsonl is damaged" in result.stderr
    assert "over 4 episodes" in result.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_watch_ends_cleanly_at_a_signal(
    cli: Cli, trained: str, tmp_path: Path, command: Any, number: signal.Signals
) -> None:
    process = subprocess.Popen(
        command("watch", trained, "--port", "0", "--json"),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    url = json.loads(process.stdout.readline())["url"]
    assert url.startswith("http://127.0.0.1:")
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")


def test_watch_of_nothing_is_one_line(cli: Cli) -> None:
    result = cli("watch", "nowhere")
    assert (result.exit_code, result.stderr) == (2, "error: nowhere: no such directory\n")
