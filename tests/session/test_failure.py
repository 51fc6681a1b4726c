"""Past its restart budget a run saves itself and says so; tallies and saved files are the newest checkpoint's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qfleet.checkpoint import CheckpointStore, Manifest
from qfleet.errors import DivergenceError, RestartsExhausted
from qfleet.experiment import Experiment, Finished
from qfleet.roles.gradient_worker import GradientWorker
from qfleet.session import CheckpointSaved
from qfleet.strategies.base import Gradient, RoleRestarted

MakeExperiment = Callable[..., Experiment]
FLEET: dict[str, Any] = {
    "strategy": "parameter_server",
    "strategy.num_workers": 2,
    "strategy.max_restarts": 1,
    "checkpoint.every_env_steps": 80,
}


def newest(run_dir: Path) -> Manifest:
    manifest, refused = CheckpointStore(run_dir / "checkpoints", 1).newest_whole()
    assert manifest is not None
    assert refused == []
    return manifest


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """From its 30th collect on, worker-1 fails for as many times as the number in this list says."""
    left = [2]
    collect = GradientWorker.collect_with
    calls = 0

    def failing(self: GradientWorker, *args: Any) -> Any:
        nonlocal calls
        calls += self.name == "worker-1"
        if self.name == "worker-1" and calls > 30 and left[0] > 0:
            left[0] -= 1
            raise ValueError("the decoy simulator 99 fell over")
        return collect(self, *args)

    monkeypatch.setattr(GradientWorker, "collect_with", failing)
    return left


def test_a_spent_restart_budget_saves_the_run_and_names_the_way_on(
    experiment: MakeExperiment, broken: list[int], tmp_path: Path
) -> None:
    run = experiment("qfleet/Identity-v0", FLEET)
    saved: list[CheckpointSaved] = []
    with pytest.raises(RestartsExhausted) as caught:
        for event in run.stream():
            saved = [event] if isinstance(event, CheckpointSaved) else []
    assert len(saved) == 1, "the last thing before it failed"
    line = str(caught.value)
    assert "worker-1 failed again after 1 restarts" in line
    assert f"saved as {saved[0].manifest}" in line
    assert line.endswith(f"go on with: qfleet train --resume {tmp_path / 'run'}")
    assert "\n" not in line
    assert "in failing" in caught.value.remote_traceback
    assert (tmp_path / "run" / "logs" / "failure.txt").read_text() == caught.value.remote_traceback
    assert newest(tmp_path / "run").counters["num_env_steps"] > 80
    # Repaired, it goes on from there, and what was counted stays counted.
    assert broken == [0]
    resumed = Experiment.resume(tmp_path / "run").run()
    assert resumed["num_env_steps"] >= 400  # type: ignore[operator]
    assert resumed["tallies"]["restarts.exception"] == 2  # type: ignore[index]


def test_when_it_cannot_be_saved_either_the_last_good_checkpoint_is_named(
    experiment: MakeExperiment, broken: list[int], tmp_path: Path
) -> None:
    # It falls over in what is owed before the cut, too.
    broken[0] = 10**6
    run = experiment("qfleet/Identity-v0", FLEET)
    with pytest.raises(RestartsExhausted) as caught:
        run.run()
    good = tmp_path / "run" / "checkpoints" / f"manifest-{newest(tmp_path / 'run').tag}.json"
    assert "the decoy simulator 99 fell over" in str(caught.value)
    assert "it could not be saved then" in str(caught.value)
    assert f"last good checkpoint: {good}; go on with" in str(caught.value)


def test_the_command_line_shows_the_traceback_with_debug_only(
    train: Callable[..., Any], broken: list[int], tmp_path: Path
) -> None:
    options = [f"--set={key}={value}" for key, value in FLEET.items()]
    broken[0] = 10**6
    result = train("--run-dir", "a", "--quiet", *options)
    assert result.exit_code == 1
    assert "Traceback" not in result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "--resume a" in errors[0]
    result = train("--run-dir", "b", "--quiet", "--debug", *options)
    assert result.exit_code == 1
    assert 'raise ValueError("the decoy simulator 99 fell over")' in result.stderr


def test_a_restart_within_the_budget_is_told_counted_and_written_down(
    experiment: MakeExperiment, broken: list[int], tmp_path: Path
) -> None:
    broken[0] = 1
    events = list(experiment("qfleet/Identity-v0", FLEET | {"logging.every_env_steps": 50}).stream())
    (restart,) = [event for event in events if isinstance(event, RoleRestarted)]
    assert (restart.role, restart.incarnation, restart.cause) == ("worker-1", 1, "exception")
    assert isinstance(events[-1], Finished)
    tallies = events[-1].summary["tallies"]
    assert isinstance(tallies, dict)
    assert tallies["restarts.exception"] == 1
    assert tallies == newest(tmp_path / "run").session["tallies"]
    from qfleet.metrics import read_metrics

    records = read_metrics(tmp_path / "run")
    (noted,) = [record for record in records if record["kind"] == "event"]
    assert (noted["event"], noted["role"], noted["cause"]) == ("RoleRestarted", "worker-1", "exception")
    logged = [record for record in records if record["kind"] == "train"]
    assert logged[-1]["restarts.exception"] == 1
    pushes = sum(isinstance(event, Gradient) for event in events)
    # 4 x 16 + 16 + 16 x 4 + 4 = 148 parameters in float32, and no buffers.
    assert logged[-1]["bytes_pushed"] <= tallies["bytes_pushed"] == events[-1].summary["bytes_pushed"] == pushes * 592
    assert events[-1].summary["bytes_uncompressed"] == pushes * 592
    # Beyond what was pushed, workers got snapshots.
    assert int(str(events[-1].summary["bytes_moved"])) > pushes * 592


def test_a_diverging_worker_names_the_checkpoint(experiment: MakeExperiment, tmp_path: Path) -> None:
    changes = FLEET | {
        "algo.learning_rate": 1e30,
        "algo.optimizer": "sgd",
        "algo.loss": "mse",
        "stop.max_env_steps": 2000,
    }
    changes |= {"algo.target_period_updates": 1, "checkpoint.every_env_steps": 20}
    with pytest.raises(DivergenceError, match=r"last good checkpoint: .*manifest-\d+.json"):
        experiment("qfleet/Identity-v0", changes).run()


def test_control_knows_the_newest_checkpoint(experiment: MakeExperiment, tmp_path: Path) -> None:
    run = experiment("qfleet/Identity-v0", {"checkpoint.every_env_steps": 100})
    for event in run.stream():
        if isinstance(event, CheckpointSaved):
            assert run.session is not None
            tag = event.manifest.stem.removeprefix("manifest-")
            assert run.session.control.saved_tag == tag
            assert run.session.control.saved_files == newest(tmp_path / "run").roles
    resumed = Experiment.resume(tmp_path / "run", {"stop.max_env_steps": 420})
    next(resumed.stream())
    assert resumed.session is not None
    assert resumed.session.control.saved_tag == newest(tmp_path / "run").tag
    assert resumed.session.control.saved_files == newest(tmp_path / "run").roles
