"""Other numbers of roles: asked for while a run goes on, and given when it is resumed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qfleet.errors import UsageError
from qfleet.experiment import Experiment, Finished
from qfleet.metrics import read_metrics
from qfleet.recipe import find_recipe
from qfleet.run_config import RESUMABLE_COUNTS, build_config, change_config, is_resumable
from qfleet.steering import CONTROL_NAME, Steering, ask_workers
from qfleet.strategies.base import CrewChanged, Event, Rollout

MakeExperiment = Callable[..., Experiment]
Cli = Callable[..., Any]
FLEET: dict[str, Any] = {"strategy": "parameter_server", "strategy.num_workers": 2}


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for a wish at each event."""
    monkeypatch.setattr("qfleet.steering.LOOK_SECONDS", 0.0)


def test_a_wish_is_read_once_and_nonsense_is_none(tmp_path: Path) -> None:
    ask_workers(tmp_path, 9)
    steering = Steering(tmp_path)
    assert steering.poll() is None, "it was meant for an earlier process"
    ask_workers(tmp_path, 3)
    assert (steering.poll(), steering.poll()) == (3, None)
    ask_workers(tmp_path, 5)
    assert steering.poll() == 5
    for text in ["", "[]", '{"num_workers": "7"}', '{"num_workers": 0}', '{"num_workers": true}', "{}"]:
        (tmp_path / CONTROL_NAME).unlink()
        (tmp_path / CONTROL_NAME).write_text(text)
        assert steering.poll() is None, text


def test_looks_are_a_second_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [10.0]
    monkeypatch.setattr("qfleet.steering.LOOK_SECONDS", 1.0)
    monkeypatch.setattr("qfleet.steering.time.monotonic", lambda: now[0])
    steering = Steering(tmp_path)
    assert steering.poll() is None
    ask_workers(tmp_path, 4)
    now[0] = 10.9
    assert steering.poll() is None
    now[0] = 11.0
    assert steering.poll() == 4


def test_scale_while_it_runs(experiment: MakeExperiment, cli: Cli, tmp_path: Path, monkeypatch: Any) -> None:
    run = experiment("qfleet/Identity-v0", FLEET | {"stop.max_env_steps": 800})
    monkeypatch.chdir(tmp_path)
    changes: list[CrewChanged] = []
    after: set[str] = set()
    summary: dict[str, Any] = {}
    wishes = {100: 4, 400: 1}
    for event in run.stream():
        assert run.session is not None
        steps = run.session.control.counters.num_env_steps
        for at, number in list(wishes.items()):
            if steps >= at:
                del wishes[at]
                result = cli("scale", tmp_path / "run", "--workers", number, "--json")
                assert result.exit_code == 0, result.stderr
                assert json.loads(result.stdout) == {"run_dir": str(tmp_path / "run"), "num_workers": number}
        changes += [event] if isinstance(event, CrewChanged) else []
        if isinstance(event, Rollout) and 250 < steps < 400:
            after.add(event.role)
        summary = event.summary if isinstance(event, Finished) else summary
    assert [event.num_workers for event in changes] == [3, 4, 3, 2, 1]
    assert after == {f"worker-{i}" for i in range(4)}
    noted = [record for record in read_metrics(tmp_path / "run") if record["kind"] == "event"]
    assert [record["num_workers"] for record in noted] == [3, 4, 3, 2, 1]
    assert noted[0]["why"] == "worker-2 joined"
    assert summary["num_env_steps"] >= 800
    result = cli("scale", tmp_path / "run", "--workers", 2)
    assert (result.exit_code, "this run is finished" in result.stderr) == (2, True)


def test_what_cannot_be_scaled_is_refused(experiment: MakeExperiment, cli: Cli, tmp_path: Path) -> None:
    def refused(*args: object) -> str:
        result = cli("scale", *args)
        assert result.exit_code == 2
        (line,) = result.stderr.splitlines()
        return str(line)

    assert "nowhere: no run here" in refused("nowhere", "--workers", 2)
    assert "--workers" in refused("nowhere", "--workers", 0)
    events = experiment("qfleet/Identity-v0").stream()
    next(events)
    line = refused(tmp_path / "run", "--workers", 2)
    assert "strategy serial runs one worker; choose --strategy" in line
    assert "parameter_server" in line
    assert "always runs one worker" in refused(tmp_path / "run", "--workers", 1)
    events.close()
    stopped = experiment("qfleet/Identity-v0", FLEET, run_dir="stopped").stream()
    next(stopped)
    stopped.close()
    line = refused(tmp_path / "stopped", "--workers", 3)
    assert line.endswith(
        f"nobody is training here; continue it with: qfleet train --resume {tmp_path / 'stopped'} --workers 3"
    )
    assert not list(tmp_path.glob(f"*/{CONTROL_NAME}"))


@pytest.mark.parametrize("num_workers", [1, 3])
def test_resume_with_another_number_of_workers(
    experiment: MakeExperiment, cli: Cli, tmp_path: Path, num_workers: int, last_json: Callable[..., dict[str, Any]]
) -> None:
    experiment("qfleet/Identity-v0", FLEET).run()
    result = cli("train", "--resume", tmp_path / "run", "--workers", num_workers, "--max-env-steps", 600, "--json")
    assert result.exit_code == 0, result.stderr
    assert f"{num_workers} worker{'s' if num_workers > 1 else ''}, 1 server, seed 0" in result.stderr
    summary = last_json(result)
    assert summary["num_env_steps"] >= 600
    assert summary["num_updates"] > 30
    assert summary["num_roles"] == num_workers


def test_workers_on_resume_are_refused_where_there_are_none(
    experiment: MakeExperiment, cli: Cli, tmp_path: Path
) -> None:
    experiment("qfleet/Identity-v0").run()
    result = cli("train", "--resume", tmp_path / "run", "--workers", 2)
    assert (result.exit_code, "strategy serial runs one worker" in result.stderr) == (2, True)
    result = cli("train", "--resume", tmp_path / "run", "--workers", 1, "--max-env-steps", 500, "--quiet")
    assert result.exit_code == 0, result.stderr


def test_what_may_change_on_resume() -> None:
    for key in ["stop.max_updates", "engine", "engine.name", "device", "strategy.worker_resources.tpu"]:
        assert is_resumable(key), key
    for name in RESUMABLE_COUNTS:
        assert is_resumable(f"strategy.{name}")
    for key in ["seed", "strategy", "strategy.name", "strategy.wait", "env.num_envs", "num_workers", "algo.gamma"]:
        assert not is_resumable(key), key


def test_the_digest_leaves_out_what_may_change() -> None:
    fleet = build_config({}, [("strategy", "parameter_server"), ("env.id", "CartPole-v1")])
    digest = fleet.learning_sha256()
    placed = {
        "num_workers": 7,
        "num_servers": 3,
        "max_restarts": 0,
        "worker_cpus": 2.0,
        "worker_resources": {"tpu": 1.0},
    }
    for name, value in placed.items():
        assert change_config(fleet, [(f"strategy.{name}", value)]).learning_sha256() == digest, name
    for key, value in {"strategy.wait": "async", "strategy.collect_steps": 2, "algo.gamma": 0.5, "seed": 1}.items():
        assert change_config(fleet, [(key, value)]).learning_sha256() != digest, key


def test_the_digest_of_older_serial_runs_is_still_theirs() -> None:
    # Written by version 0.1.0 before an engine might change.
    plain = build_config({}, [("env.id", "CartPole-v1")])
    assert plain.learning_sha256() == "b3627fefb617b0486e5fa5d16a7095370192f47d5c86c12a7b0ad6408954c2eb"
    changed = build_config(find_recipe("cartpole").values, [("seed", 3), ("strategy.collect_steps", 2)])
    assert changed.learning_sha256() == "d35532de4839320bd6a2cb6ad8878a093cfb232277d7523b7ef3e8cdf440cefb"


def test_another_engine_begins_with_its_own_settings(
    experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # An engine of a user's, in a file of its own, with a setting that inline does not know.
    folder = tmp_path / "engines"
    folder.mkdir()
    (folder / "own_engine.py").write_text(
        "from qfleet.engines import inline\n"
        "class Config(inline.Config):\n"
        "    name: str = 'own_engine'\n"
        "    patience: float = 1.0\n"
        "class Engine(inline.Engine):\n"
        "    is_one_process = False\n"
    )
    import qfleet.engines

    monkeypatch.setattr(qfleet.engines, "__path__", [*qfleet.engines.__path__, str(folder)])
    changes = {"engine": "own_engine", "engine.patience": 5.0, "num_threads": "auto"}
    first = experiment("qfleet/Identity-v0", changes)
    assert "1 thread per role" in first.describe()
    first.run()
    more = {"stop.max_env_steps": 500}
    resumed = Experiment.resume(tmp_path / "run", {"engine": "inline", **more})
    assert resumed.config.engine.name == "inline"
    assert "1 thread," in resumed.describe()
    assert resumed.run()["num_env_steps"] == 500
    with pytest.raises(
        UsageError, match=r"--resume with algo.gamma: a resumed run keeps.*engine.*strategy.num_workers"
    ):
        Experiment.resume(tmp_path / "run", {"algo.gamma": 0.1})


def test_the_display_tells_of_workers_that_come_and_go(
    experiment: MakeExperiment, capsys: pytest.CaptureFixture[str]
) -> None:
    from qfleet.cli.progress import Progress

    run = experiment("qfleet/Identity-v0", FLEET)
    with Progress(run, "a label", is_shown=True) as display:
        events: list[Event] = []
        for event in run.stream():
            assert run.session is not None
            run.session.control.num_workers = 3
            display.update(event)
            events.append(event)
    assert "3 workers: worker-2 joined" in capsys.readouterr().err.splitlines()
