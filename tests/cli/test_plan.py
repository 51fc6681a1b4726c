"""`qfleet plan`: its table, its files, its recommendation and its exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qfleet.placement.cluster_file import read_cluster

Cli = Callable[..., Any]
LastJson = Callable[..., dict[str, Any]]
ENV = "qfleet/Identity-v0"
TABLES = """
[[compute]]
method = "gradient"
seconds = 0.01
[[compute]]
method = "train_together"
seconds = 0.01
[[compute]]
seconds = 0.0001
"""


@pytest.fixture
def plan(cli: Cli, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """plan("--strategies", "serial"): a tiny plan, on a cluster that is written down unless it is to be measured."""
    monkeypatch.setattr("qfleet.planning.calibration.SECONDS", 0.1)
    (tmp_path / "cluster.toml").write_text(TABLES)
    left_out = ("stop.", "evaluation.every")
    options = [f"--set={key}={json.dumps(value)}" for key, value in tiny.items() if not key.startswith(left_out)]
    return lambda *args: cli("plan", ENV, "--recipe", "vector", *options, *args)


CLUSTER = ("--cluster", "cluster.toml")


def test_it_tells_rates_limits_and_a_recommendation(plan: Cli, last_json: LastJson) -> None:
    result = plan("--workers", "1,2,4", *CLUSTER, "--json")
    assert result.exit_code == 0, result.stderr
    body = last_json(result)
    rows = {(row["label"], row["num_workers"]): row for row in body["rows"]}
    assert rows["parameter_server:wait=async", 4]["speedup"] == pytest.approx(4.0, rel=0.1)
    assert rows["parameter_server:wait=async", 4]["limit"]["name"] == "workers"
    assert "does not fit" in rows["actor_learner", 2]["why_not"]
    assert "some would be empty" in rows["sync_groups", 1]["why_not"]
    chosen = body["recommendation"]
    assert f"{chosen['label']} with {chosen['num_workers']} worker" in chosen["why"]
    assert rows[chosen["label"], chosen["num_workers"]]["is_on_front"]
    assert body["prices"]["date"] == "2025-06-01"
    assert {one["source"] for one in body["origins"]} <= {"cluster.toml", "default"}
    for part in ("recommended: ", "speed-up  efficiency", "first saturates", "Prices of 2025-06-01"):
        assert part in result.stderr


def test_what_a_file_says_of_nobody_is_told(plan: Cli, tmp_path: Path) -> None:
    link = '[[link]]\nbetween = ["worker-*", "sever-0"]\nlatency = 0.1\n'
    fault = '[[fault]]\nkind = "crash"\nrole = "shard-*"\nat = 1e9\n'
    speed = '[speed]\n"worker-1" = 0.5\n"worker-9" = 0.5\n'
    (tmp_path / "odd.toml").write_text(TABLES + link + fault + speed)
    result = plan("--strategies", "parameter_server", "--workers", "2", "--cluster", "odd.toml")
    assert result.exit_code == 0, result.stderr
    notes = [line for line in result.stdout.splitlines() if line.startswith("note: ")]
    who = "no role of this plan is called so; they are coordinator, evaluator, server-*, worker-*"
    assert notes == [
        f"note: [speed] 'worker-9': {who}",
        f"note: [[link]] between 'sever-0': {who}",
        f"note: [[fault]] role 'shard-*': {who}",
    ]


def test_it_measures_what_no_file_says_and_saves_it(plan: Cli, tmp_path: Path) -> None:
    result = plan("--strategies", "serial", "--workers", "1", "--save-cluster", "mine.toml")
    assert result.exit_code == 0, result.stderr
    assert "measuring serial with 1 worker on inline" in result.stdout
    assert "measured (loopback of this machine)" in result.stdout
    methods = {table.method for table in read_cluster(str(tmp_path / "mine.toml")).compute}
    assert {"collect", "train"} <= methods
    again = plan("--strategies", "serial", "--workers", "1", "--cluster", "mine.toml")
    assert again.exit_code == 0, again.stderr
    assert "measuring" not in again.stdout


def test_it_learns_to_a_target_within_a_budget(plan: Cli, last_json: LastJson) -> None:
    learned = (
        "--target-return",
        "2.0",
        "--max-env-steps",
        "200",
        "--seeds",
        "2",
        "--set",
        "evaluation.every_env_steps=100",
    )
    strategies = ("--strategies", "parameter_server,all_reduce", "--workers", "1,2,32", "--learn", "2")
    result = plan(*strategies, *CLUSTER, *learned, "--json")
    assert result.exit_code == 0, result.stderr
    body = last_json(result)
    assert [(run["label"], run["seed"]) for run in body["runs"]] == [
        ("parameter_server", 0),
        ("all_reduce", 0),
        ("parameter_server", 1),
        ("all_reduce", 1),
    ]
    rows = {(row["label"], row["num_workers"]): row for row in body["rows"]}
    assert rows["all_reduce", 2]["learned"]["num_runs"] == 2
    assert rows["all_reduce", 32]["learned"] is None
    assert rows["all_reduce", 32]["cost"] is None
    # A return of 2.0 cannot be had here: nothing is reached, so nothing is recommended, and it is no failure.
    assert rows["all_reduce", 2]["learned"]["num_reached"] == 0
    assert body["recommendation"] is None
    assert "of 1, 32 workers timing only" in result.stderr
    assert "not reached in" in result.stderr


def test_a_target_that_is_reached_has_a_price(plan: Cli, last_json: LastJson) -> None:
    learned = (
        "--target-return",
        "-1.0",
        "--max-env-steps",
        "400",
        "--seeds",
        "1",
        "--set",
        "evaluation.every_env_steps=100",
    )
    result = plan("--strategies", "parameter_server", "--workers", "2", *CLUSTER, *learned, "--json")
    body = last_json(result)
    (row,) = body["rows"]
    assert row["learned"]["num_reached"] == 1
    assert row["cost"]["money"] == pytest.approx(row["learned"]["seconds"] / 3600 * 0.58)
    assert "a return of -1" in body["recommendation"]["why"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--strategies", "paralel"), "no such strategy"),
        (("--workers", "0"), "--workers 0"),
        (("--cluster", "nowhere.toml"), "--cluster 'nowhere.toml'"),
        (("--prices", "nowhere.toml"), "--prices nowhere.toml"),
        (("--machine", "toaster"), "--machine toaster"),
        (("--from-run", "nowhere"), "--from-run nowhere"),
        (("--out", "plan.pdf"), "--out plan.pdf"),
        (("--out", "nowhere/plan.html"), "there is no folder"),
        (("--learn", "2"), "--target-return"),
        (("--engine", "sim"), "--engine sim"),
        (("--target-return", "soon"), "--target-return"),
        (("--strategies", "actor_learner"), "does not fit"),
    ],
)
def test_a_wrong_request_is_one_line(plan: Cli, args: tuple[str, ...], message: str) -> None:
    result = plan(*args)
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert message in line
