"""`qfleet train`: what it prints, what it leaves, how it goes on; and what evaluate makes of it."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qfleet.cli.summary import in_bytes

Cli = Callable[..., Any]
LastJson = Callable[..., dict[str, Any]]

SUMMARY_KEYS = {
    "run_dir", "env", "seed", "num_env_steps", "num_updates", "train_seconds", "total_seconds", "reached",
    "seconds_to_threshold", "env_steps_to_threshold", "eval", "samples_per_insert_asked",
    "samples_per_insert_measured", "parameters_sha256",
}  # fmt: skip
SCORE_KEYS = {"mean_return", "max_return", "min_return", "std_return", "episodes"}


@pytest.mark.usefixtures("drawing")
def test_run_says_what_it_runs_how_it_went_and_where_things_are(train: Cli, tmp_path: Path) -> None:
    result = train("--run-dir", "a", "--seed", "3")
    assert result.exit_code == 0, result.stderr
    first = result.stdout.splitlines()[0]
    for part in [
        "qfleet/Identity-v0 (recipe vector): dqn x serial x inline",
        "seed 3",
        "cpu, 1 thread",
        "replay: 2,000 transitions, 0.1 MB",
        "run dir: a",
    ]:
        assert part in first
    for part in [
        "held-out return, mean of 4 episodes",
        "env steps used up",
        "replay ratio, measured of asked",
        "qfleet evaluate a",
        "qfleet train --resume a --max-env-steps 800",
    ]:
        assert part in result.stdout
    for name in ["config.toml", "metrics.jsonl", "learning_curve.png", "checkpoints", "best"]:
        assert f"a/{name}" in result.stdout
        assert (tmp_path / "a" / name).exists()
    assert (tmp_path / "a" / "learning_curve.png").read_bytes().startswith(b"\x89PNG")


def test_json_has_every_key_and_is_the_only_line_of_standard_output(train: Cli, last_json: LastJson) -> None:
    result = train("--json", "--run-dir", "a")
    summary = last_json(result)
    assert len(result.stdout.splitlines()) == 1
    assert summary.keys() >= SUMMARY_KEYS
    assert summary["eval"].keys() >= SCORE_KEYS
    assert summary["run_dir"] == "a"
    assert summary["num_env_steps"] == 400
    assert len(summary["parameters_sha256"]) == 64
    assert summary["samples_per_insert_asked"] == 4.0
    assert summary["samples_per_insert_measured"] == pytest.approx(4.0, rel=0.05)
    assert "held-out return" in result.stderr, "the table goes to standard error"


def test_quiet_prints_one_line(train: Cli) -> None:
    result = train("--quiet", "--run-dir", "a")
    assert result.stderr == ""
    (line,) = result.stdout.splitlines()
    assert line.startswith("qfleet/Identity-v0 seed 0: held-out return ")


def test_options_are_fields_and_set_has_the_last_word(train: Cli, tmp_path: Path) -> None:
    options = ["--algo", "dqn", "--engine", "inline", "--max-seconds", "1e6", "--max-env-steps", "300"]
    assert train("--run-dir", "a", "--quiet", *options, "--set", "stop.max_env_steps=200").exit_code == 0
    stop = tomllib.loads((tmp_path / "a" / "config.toml").read_text())["stop"]
    assert (stop["max_seconds"], stop["max_env_steps"]) == (1e6, 200)


def test_recipe_that_names_its_environment_needs_no_argument(cli: Cli, tiny: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('[env]\nid = "qfleet/Bandit-v0"\n[stop]\nmax_env_steps = 100\n')
    settings = [f"--set={key}={json.dumps(value)}" for key, value in tiny.items() if not key.startswith("stop")]
    result = cli("train", "--recipe", "mine.toml", *settings)
    assert result.exit_code == 0, result.stderr
    assert "qfleet/Bandit-v0 (recipe mine)" in result.stdout


def test_resume_goes_on_and_a_complete_run_names_the_option_that_extends_it(
    train: Cli, cli: Cli, last_json: LastJson
) -> None:
    assert train("--run-dir", "a", "--quiet").exit_code == 0
    result = cli("train", "--resume", "a")
    assert result.exit_code == 2
    assert result.stderr == (
        "error: a: this run is complete: it has used up stop.max_env_steps = 400; to go on, raise --max-env-steps\n"
    )
    result = cli("train", "--resume", "a", "--max-env-steps", "600", "--json")
    assert result.exit_code == 0
    assert "resumed at 400 env steps" in result.stderr
    assert last_json(result)["num_env_steps"] == 600
    result = cli("train", "--resume", "a", "--max-env-steps", "900", "--seed", "1")
    assert result.exit_code == 2
    assert "--resume with seed" in result.stderr


def test_run_that_reached_its_target_goes_on_only_for_a_higher_one(train: Cli, cli: Cli, last_json: LastJson) -> None:
    target = ["--set", "evaluation.every_env_steps=100", "--set", "stop.until_return=-1"]
    summary = last_json(train("--run-dir", "a", "--json", *target))
    assert summary["stop_reason"] == "reached"
    assert summary["env_steps_to_threshold"] == summary["num_env_steps"] == 100
    result = cli("train", "--resume", "a", "--max-env-steps", "900")
    assert result.exit_code == 2
    assert "it reached its target of -1 at 100 env steps; to go on, raise --until-return" in result.stderr
    summary = last_json(cli("train", "--resume", "a", "--until-return", "1e9", "--max-env-steps", "300", "--json"))
    assert (summary["stop_reason"], summary["reached"], summary["num_env_steps"]) == ("max_env_steps", False, 300)


def test_run_that_lost_only_its_summary_plays_its_last_episodes(train: Cli, cli: Cli, tmp_path: Path) -> None:
    assert train("--run-dir", "a", "--quiet").exit_code == 0
    before = json.loads((tmp_path / "a" / "summary.json").read_bytes())
    (tmp_path / "a" / "summary.json").unlink()
    assert cli("train", "--resume", "a", "--quiet").exit_code == 0
    after = json.loads((tmp_path / "a" / "summary.json").read_bytes())
    for key in ("num_env_steps", "num_updates", "eval", "stop_reason"):
        assert after[key] == before[key]


def test_series_reports_its_spread_and_goes_on(train: Cli, cli: Cli, last_json: LastJson, tmp_path: Path) -> None:
    result = train("--run-dir", "s", "--seeds", "2", "--seed", "5", "--json")
    assert result.exit_code == 0, result.stderr
    summary = last_json(result)
    assert summary.keys() >= {"run_dir", "env", "seeds", "runs", "reached", "spread"}
    assert summary["seeds"] == [5, 6]
    assert [run["run_dir"] for run in summary["runs"]] == ["s/seed-5", "s/seed-6"]
    for name in ("eval_mean_return", "train_seconds", "num_env_steps"):
        assert summary["spread"][name].keys() == {"mean", "std", "min", "median", "max"}
    scores = [run["eval"]["mean_return"] for run in summary["runs"]]
    assert summary["spread"]["eval_mean_return"]["mean"] == pytest.approx(sum(scores) / 2)
    assert summary["spread"]["num_env_steps"] == {"mean": 400, "std": 0, "min": 400, "median": 400, "max": 400}
    assert (tmp_path / "s" / "learning_curve.png").exists()

    result = cli("train", "--resume", "s")
    assert result.exit_code == 2
    assert "all 2 runs are complete" in result.stderr
    result = cli("evaluate", "s")
    assert result.exit_code == 2
    assert "s/seed-5" in result.stderr

    # As if it had been stopped after the first seed: the second one starts anew, the first one is taken over.
    for path in sorted((tmp_path / "s" / "seed-6").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    again = last_json(cli("train", "--resume", "s", "--json"))
    assert again["runs"][0] == summary["runs"][0]
    assert again["runs"][1]["parameters_sha256"] == summary["runs"][1]["parameters_sha256"]


def test_evaluate_plays_other_episodes_for_another_seed_and_the_same_for_the_same(
    cli: Cli, last_json: LastJson, settings: list[str]
) -> None:
    assert cli("train", "CartPole-v1", *settings, "--run-dir", "a", "--quiet").exit_code == 0
    first = last_json(cli("evaluate", "a", "--episodes", "6", "--seed", "1", "--json"))
    assert first.keys() >= SCORE_KEYS | {"env", "run_dir", "version", "num_env_steps"}
    assert (first["env"], first["run_dir"], first["episodes"]) == ("CartPole-v1", "a", 6)
    assert first == last_json(cli("evaluate", "a", "--episodes", "6", "--seed", "1", "--json"))
    assert first != {**last_json(cli("evaluate", "a", "--episodes", "6", "--seed", "2", "--json")), "seed": 1}
    result = cli("evaluate", "a", "--quiet")
    assert result.exit_code == 0
    assert result.stdout.startswith("return ")
    assert "over 4 episodes" in result.stdout


def test_curve_that_cannot_be_drawn_is_a_warning(train: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError("no fonts")

    monkeypatch.setattr("qfleet.experiment.draw_learning_curve", broken)
    result = train("--run-dir", "a", "--quiet")
    assert result.exit_code == 0
    assert "note: learning_curve.png was not drawn: RuntimeError: no fonts" in result.stderr


def test_a_fleets_table_has_its_lags_bytes_and_times(train: Cli, last_json: LastJson) -> None:
    fleet = ["--strategy", "parameter_server", "--workers", "3", "--set", "strategy.wait=async"]
    result = train("--run-dir", "a", *fleet, "--set", "strategy.compression=bf16", "--set", "strategy.num_servers=2")
    assert result.exit_code == 0, result.stderr
    first = result.stdout.splitlines()[0]
    assert "3 workers, 2 servers, seed 0" in first
    # 667 transitions for each of the three, together one more than asked for.
    assert "replay: 2,001 transitions, 0.1 MB over 3 roles" in first
    words = " ".join(result.stdout.split())
    for part in ["lags, in parameter versions", "versions policy lag staleness", "time: environment", "time: learner"]:
        assert part in words
    assert ", 1 / 2.0 of float32" in words, "bfloat16 is half of it"
    assert "% of the time; " in words
    summary = last_json(train("--run-dir", "b", *fleet, "--json"))
    for name in ("staleness", "policy_lag"):
        lags = summary["lags"][name]
        assert sum(count for _, _, count in lags["rows"]) == lags["num"] > 0
    assert summary["lags"]["staleness"]["max"] > 0, "three workers push on what the others have changed meanwhile"
    assert sum(summary["time_shares"].values()) == pytest.approx(1.0)
    assert summary["bytes_pushed"] == summary["tallies"]["bytes_pushed"] == summary["bytes_uncompressed"]


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (12_345_678, "12.3 MB"), (5e15, "5,000.0 TB")])
def test_bytes_have_units(count: float, text: str) -> None:
    assert in_bytes(count) == text
