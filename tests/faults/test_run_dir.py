"""One process a run directory, a summary that is of the run as it stands, and the last whole checkpoint stays."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from qfleet.checkpoint import CheckpointStore
from qfleet.errors import UsageError
from qfleet.experiment import Experiment, Finished
from qfleet.session import CheckpointSaved
from qfleet.validation import Validated

MakeExperiment = Callable[..., Experiment]


def test_a_second_process_is_refused(experiment: MakeExperiment, tmp_path: Path) -> None:
    running = experiment("qfleet/Identity-v0", {"checkpoint.every_env_steps": 100}).stream()
    next(event for event in running if isinstance(event, CheckpointSaved))
    metrics = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(UsageError, match="another process is training here"):
        Experiment.resume(tmp_path / "run").run()
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == metrics
    assert any(isinstance(event, Finished) for event in running)
    assert (tmp_path / "run" / "summary.json").is_file()


def test_an_interrupted_run_has_no_summary(experiment: MakeExperiment, tmp_path: Path) -> None:
    first = experiment("qfleet/Identity-v0")
    first.interrupt()
    assert first.run()["stop_reason"] == "interrupted"
    assert not (tmp_path / "run" / "summary.json").exists()
    Experiment.resume(tmp_path / "run").run()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["stop_reason"] == "max_env_steps"


def test_a_run_that_goes_on_is_not_complete(experiment: MakeExperiment, tmp_path: Path) -> None:
    experiment("qfleet/Identity-v0").run()
    assert Experiment.resume(tmp_path / "run").why_complete() is not None
    longer = Experiment.resume(tmp_path / "run", {"stop.max_env_steps": 800}).stream()
    next(longer)
    longer.close()  # type: ignore[attr-defined]
    assert not (tmp_path / "run" / "summary.json").exists()
    assert Experiment.resume(tmp_path / "run").why_complete() is None


def test_the_last_whole_checkpoint_outlives_a_damaged_newer_one(experiment: MakeExperiment, tmp_path: Path) -> None:
    changes = {"checkpoint.every_env_steps": 100, "checkpoint.keep": 3}
    whole = experiment("qfleet/Identity-v0", changes, run_dir="whole").run()
    experiment("qfleet/Identity-v0", changes).run()
    folder = tmp_path / "run" / "checkpoints"
    good, *damaged = sorted(folder.glob("manifest-*.json"))
    for path in damaged:
        path.write_bytes(path.read_bytes()[:-20])
    resumed = Experiment.resume(tmp_path / "run", {"checkpoint.keep": 1})
    assert len(resumed.warnings) == len(damaged) == 2
    events = resumed.stream()
    next(events)
    assert good.is_file()
    assert CheckpointStore(folder, 1).newest_whole()[0] is not None
    summary = {}
    for event in events:
        summary = event.summary if isinstance(event, Finished) else summary
    assert summary["parameters_sha256"] == whole["parameters_sha256"]
    manifest, refused = CheckpointStore(folder, 1).newest_whole()
    assert manifest is not None
    assert refused == []


def test_the_final_validation_is_part_of_the_final_checkpoint(experiment: MakeExperiment, tmp_path: Path) -> None:
    # The checkpoint falls due at env step 200, and the update of the same turn uses up max_updates.
    changes = {"checkpoint.every_env_steps": 200, "stop.max_updates": 40, "stop.max_env_steps": "none"}
    events = list(experiment("qfleet/Identity-v0", changes).stream())
    assert sum(isinstance(event, Validated) for event in events) == 1
    manifest, _ = CheckpointStore(tmp_path / "run" / "checkpoints", 1).newest_whole()
    assert manifest is not None
    schedule = manifest.session["schedule"]
    assert isinstance(schedule, dict)
    assert schedule["num_evaluations"] == 1


def test_tensorboard_forgets_what_a_resumed_run_does_again(experiment: MakeExperiment, tmp_path: Path) -> None:
    changes = {"checkpoint.every_env_steps": 200, "logging.tensorboard": True, "logging.every_env_steps": 50}
    events = experiment("qfleet/Identity-v0", changes).stream()
    next(event for event in events if isinstance(event, CheckpointSaved))
    for _ in range(60):
        next(events)
    events.close()  # type: ignore[attr-defined]
    Experiment.resume(tmp_path / "run").run()
    log = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    log.Reload()
    steps = [scalar.step for scalar in log.Scalars("train/num_updates")]
    assert steps == sorted(set(steps))
    assert steps[-1] == 400
