"""What is read of run directories: finished, under way, several of one configuration, damaged, foreign."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qfleet.errors import UsageError
from qfleet.histogram import LagHistogram
from qfleet.machine import RunLock
from qfleet.report.groups import differences, make_groups
from qfleet.report.make import best_run, make_report
from qfleet.report.runs import find_runs, fingerprint, read_run, read_runs

WriteRun = Callable[..., Path]


def test_a_finished_run(write_run: WriteRun) -> None:
    run = read_run(write_run("a", seed=3))
    assert (run.state, run.config.seed, run.num_env_steps, run.target) == ("finished", 3, 200, 25.0)
    assert run.trace.returns.tolist() == [10.0, 30.0]
    assert run.num_restarts == {"killed": 1, "timeout": 3}
    assert [machine["device"] for machine in run.machines] == ["cpu"]


def test_a_run_without_a_summary_tells_as_much_as_it_has_written(write_run: WriteRun) -> None:
    path = write_run("a", summary=None, **{"stop.until_return": 40.0})
    lags = LagHistogram()
    lags.add([0, 0, 5])
    (path / "checkpoints").mkdir()
    for tag, histogram in (("00001", LagHistogram()), ("00002", lags)):
        body = {"session": {"tracker": {"lags": {"staleness": histogram.state_dict()}}}}
        (path / "checkpoints" / f"manifest-{tag}.json").write_text(json.dumps(body))
    run = read_run(path)
    assert (run.state, run.num_env_steps, run.target) == ("stopped", 200, 40.0)
    assert run.summary["time_shares"] == {"environment": 0.25, "learner": 0.75}
    assert (run.summary["samples_per_insert_asked"], run.summary["samples_per_insert_measured"]) == (8.0, 7.5)
    assert run.num_restarts == {"killed": 2}
    assert run.summary["lags"] == {"staleness": lags.summary()}
    lock = RunLock(path)
    assert read_run(path).state == "under way"
    lock.release()


def test_a_run_that_has_written_nothing_yet(write_run: WriteRun) -> None:
    run = read_run(write_run("a", curve=[], summary=None))
    assert (run.num_env_steps, len(run.trace.returns), run.target) == (0, 0, None)
    (group,) = make_groups([run])
    assert (group.curve("seconds").x, group.time_shares(), group.lags("staleness").num) == ([], {}, 0)


DAMAGE = {
    "no directory": (lambda path: path.rename(path.with_name("gone")), "no such directory"),
    "no configuration": (lambda path: (path / "config.toml").unlink(), "no run here (config.toml is missing)"),
    "cut configuration": (lambda path: (path / "config.toml").write_text("[algo\n"), "not TOML"),
    "configuration of something else": (lambda path: (path / "config.toml").write_text("[decoy]\na = 1\n"), "decoy"),
    "cut summary": (lambda path: (path / "summary.json").write_text('{"num_env'), "a damaged run (JSONDecodeError"),
    "another summary": (lambda path: (path / "summary.json").write_text("[1]"), "summary.json holds no table"),
    "other metrics": (lambda path: (path / "metrics.jsonl").write_text('{"loss": 1}\n'), "a damaged run (KeyError"),
    "numbers for records": (lambda path: (path / "metrics.jsonl").write_text("3\n"), "a damaged run (TypeError"),
    "bytes": (lambda path: (path / "metrics.jsonl").write_bytes(b"\xff\xfe\x00"), "a damaged run (UnicodeDecodeError"),
    "text for numbers": (
        lambda path: (path / "metrics.jsonl").write_text('{"kind": "evaluation", "num_env_steps": "x"}\n'),
        "a damaged run (ValueError",
    ),
}


@pytest.mark.parametrize(("damage", "why"), DAMAGE.values(), ids=DAMAGE.keys())
def test_what_cannot_be_read_is_one_line_and_the_others_are_reported(
    write_run: WriteRun, damage: Callable[[Path], Any], why: str
) -> None:
    good, bad = write_run("good"), write_run("bad")
    damage(bad)
    runs, (one,) = read_runs([bad, good])
    assert [run.path for run in runs] == [good]
    assert one.path == bad
    assert why in one.why
    assert "\n" not in one.why
    with pytest.raises(UsageError, match="bad: "):
        make_report([bad], has_film=False)


def test_a_line_cut_off_by_a_crash_is_left_out(write_run: WriteRun) -> None:
    path = write_run("a")
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "evalu')
    assert read_run(path).trace.returns.tolist() == [10.0, 30.0]


def test_a_series_stands_for_its_runs_in_the_order_of_seeds(write_run: WriteRun, tmp_path: Path) -> None:
    for seed in (10, 9):
        write_run(f"s/seed-{seed}", seed=seed)
    single = write_run("a")
    found = find_runs([tmp_path / "s", single, tmp_path / "s" / "seed-9", tmp_path / "nowhere"])
    assert [str(path.relative_to(tmp_path)) for path in found] == ["s/seed-9", "s/seed-10", "a", "nowhere"]


def test_a_comparison_stands_for_its_runs(write_run: WriteRun, tmp_path: Path) -> None:
    for name in ("b/seed-0", "a/seed-1", "a/seed-0"):
        write_run(f"c/runs/{name}")
    assert find_runs([tmp_path / "c"]) == [tmp_path / "c"], "not without comparison.json"
    (tmp_path / "c" / "comparison.json").write_text("{}")
    found = [str(path.relative_to(tmp_path / "c" / "runs")) for path in find_runs([tmp_path / "c"])]
    assert found == ["a/seed-0", "a/seed-1", "b/seed-0"]


def test_runs_that_differ_in_their_seed_only_are_one_group(write_run: WriteRun) -> None:
    paths = [
        write_run("a", seed=2),
        write_run("b", seed=1, **{"logging.tensorboard": False, "checkpoint.keep": 5}),
        write_run("c", **{"algo.gamma": 0.9}),
        write_run("d", strategy="parameter_server"),
    ]
    groups = make_groups(read_runs(paths)[0])
    assert [[run.config.seed for run in group.runs] for group in groups] == [[1, 2], [0], [0]]
    gamma = read_run(paths[0]).config.algo.gamma  # type: ignore[attr-defined]
    assert [group.label for group in groups] == [
        f"dqn x serial x inline, algo.gamma={gamma}",
        "dqn x serial x inline, algo.gamma=0.9",
        f"dqn x parameter_server x inline, algo.gamma={gamma}",
    ]
    differing = differences([group.config for group in groups])
    assert differing["algo.gamma"] == [f"{gamma}", "0.9", f"{gamma}"]
    assert differing["strategy.wait"] == [None, None, "sync"], "a field that the others do not have"
    assert not {"seed", "logging.tensorboard", "checkpoint.keep", "env.id"} & set(differing)


def test_numbers_of_a_group_are_over_its_runs(write_run: WriteRun) -> None:
    more = {"lags": {"staleness": {"num": 2, "mean": 20.0, "max": 20, "rows": [[16, 31, 2]]}}, "tallies": {}}
    paths = [write_run("a", seed=0), write_run("b", seed=1, curve=[(100, 20.0), (200, 50.0)], summary=more)]
    (group,) = make_groups(read_runs(paths)[0])
    assert group.measures()["held_out_return"].seeds == [30.0, 50.0]
    # 25 is reached at 200 by both.
    assert group.measures()["env_steps_to_threshold"].value == 200
    assert group.curve("env_steps").mean[-1] == 40.0
    assert group.train_curve("train_seconds", "mean_return").mean[-1] == 20.0
    assert group.time_shares() == {"environment": 0.5, "learner": 0.3, "waiting": 0.2}
    lags = group.lags("staleness")
    assert lags.rows() == [(0, 0, 2), (1, 1, 2), (16, 31, 2)]
    # Six values, of which 0, 0, 1, 1 and two of 20: 42 in all.
    assert lags.numbers() == {"mean": 7.0, "p50": 1, "p95": 20, "max": 20}
    assert group.restarts() == {"killed": 1, "timeout": 3}
    assert group.mean("samples_per_insert_measured") == 7.9


def test_the_best_run_is_by_held_out_return_else_by_validation(write_run: WriteRun) -> None:
    runs = read_runs([write_run("a"), write_run("b", curve=[(100, 90.0), (200, 60.0)]), write_run("c")])[0]
    best = best_run(runs)
    assert best is not None
    assert best.path.name == "b"
    late = read_runs([write_run("d", summary=None), write_run("e", curve=[(1, 99.0), (2, 0.0)], summary=None)])[0]
    best = best_run(late)
    assert best is not None
    assert best.path.name == "e"
    assert best_run([read_run(write_run("f", curve=[], summary=None))]) is None


def test_fingerprint_changes_when_something_is_written(write_run: WriteRun, tmp_path: Path) -> None:
    path = write_run("a", summary=None)
    before = fingerprint([path, tmp_path / "nowhere"])
    assert fingerprint([path, tmp_path / "nowhere"]) == before
    with (path / "metrics.jsonl").open("a") as file:
        file.write("{}\n")
    assert fingerprint([path]) != before
