"""kill -9 at any moment costs the work since the last whole checkpoint and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qfleet.checkpoint import CheckpointStore
from qfleet.experiment import Experiment

Drive = Callable[..., dict[str, Any]]
NUM_MOMENTS = 10
SIGKILLED = -9


@pytest.fixture(scope="module")
def whole(drive: Drive, saving: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The uninterrupted run: its points and its summary."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    answer = drive(run_dir, saving)
    assert answer["status"] == 0, answer["error"]
    return {"points": answer["points"], "summary": json.loads((run_dir / "summary.json").read_text())}


def moments(points: list[str], seed: int) -> list[int]:
    """Ten points: six anywhere after the run has begun, four around the writing of files."""
    generator = np.random.default_rng(seed)
    begun = points.index("Rollout")
    writing = [i for i, label in enumerate(points) if i > begun and label.startswith(("before", "after"))]
    anywhere = generator.choice(np.arange(begun, len(points)), NUM_MOMENTS - 4, replace=False)
    return sorted({int(i) for i in [*anywhere, *generator.choice(writing, 4, replace=False)]})


def assert_clean(run_dir: Path) -> None:
    """Nothing half written is left, and every file belongs to a checkpoint."""
    store = CheckpointStore(run_dir / "checkpoints", 1)
    listed = {store.folder / file.path for path in store._paths() for file in store._files_of(store.read(path))}
    found = {path for path in store.folder.rglob("*") if path.is_file() and not path.name.startswith("manifest-")}
    assert found == listed


def test_killed_at_ten_random_moments(
    drive: Drive, saving: dict[str, Any], whole: dict[str, Any], tmp_path: Path
) -> None:
    chosen = moments(whole["points"], seed=7)
    assert len(chosen) >= NUM_MOMENTS - 1  # two draws may fall on one point
    for kill_at in chosen:
        run_dir = tmp_path / f"killed-at-{kill_at}"
        killed = drive(run_dir, saving, kill_at=kill_at)
        assert killed["status"] == SIGKILLED
        assert killed["points"] == whole["points"][: kill_at + 1], "the killed run was the same run"
        # Resumed here, in another process than the one that was killed.
        summary = Experiment.resume(run_dir).run()
        for name in ("parameters_sha256", "eval", "num_env_steps", "num_updates"):
            assert summary[name] == whole["summary"][name], f"killed at {kill_at}, {killed['points'][-1]}: {name}"
        assert_clean(run_dir)


def test_killed_again_and_again(drive: Drive, saving: dict[str, Any], whole: dict[str, Any], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    generator = np.random.default_rng(8)
    first = whole["points"].index("Rollout") + 40
    assert drive(run_dir, saving, kill_at=first)["status"] == SIGKILLED
    num_kills = 1
    for _ in range(60):
        answer = drive(run_dir, kill_at=int(generator.integers(40, 120)))
        num_kills += answer["status"] == SIGKILLED
        if answer["status"] == 0:
            break
    assert answer["status"] == 0, answer["error"]
    assert num_kills >= 3
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["parameters_sha256"] == whole["summary"]["parameters_sha256"]
    assert_clean(run_dir)


def test_killed_before_the_configuration_is_there(
    drive: Drive, saving: dict[str, Any], whole: dict[str, Any], tmp_path: Path
) -> None:
    # Nothing has begun: the same command may simply be given again.
    run_dir = tmp_path / "run"
    assert whole["points"][0] == "before fsync"
    assert drive(run_dir, saving, kill_at=0)["status"] == SIGKILLED
    assert not (run_dir / "config.toml").exists()
    again = drive(run_dir, saving)
    assert again["status"] == 0, again["error"]


def test_every_kind_of_moment_is_among_the_points(whole: dict[str, Any]) -> None:
    kinds = set(whole["points"])
    assert {"Rollout", "Update", "Drained", "CheckpointSaved", "Validated", "Logged", "Finished"} <= kinds
    assert {f"{when} {what}" for when in ("before", "after") for what in ("fsync", "replace", "unlink")} <= kinds
    assert whole["points"].count("CheckpointSaved") == 5
