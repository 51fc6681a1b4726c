"""A full disk ends the run with one line and costs nothing that was saved before."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qfleet.checkpoint import CheckpointStore
from qfleet.errors import QfleetError
from qfleet.experiment import Experiment
from qfleet.session import CheckpointSaved
from qfleet.storage import read_verified, write_file

MakeExperiment = Callable[..., Experiment]
Drive = Callable[..., dict[str, Any]]


class FullDisk:
    """Lets `room` files be synced, then has no space left."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room = 10**9
        self.num_refused = 0
        self._fsync = os.fsync
        monkeypatch.setattr(os, "fsync", self)

    def __call__(self, descriptor: int) -> None:
        if self.room <= 0:
            self.num_refused += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= 1
        self._fsync(descriptor)


@pytest.fixture
def whole_sha256(experiment: MakeExperiment, saving: dict[str, Any]) -> str:
    return str(experiment("CartPole-v1", saving, run_dir="whole").run()["parameters_sha256"])


# A checkpoint is: the worker's state, a chunk of rows, the replay's state, the folder, the manifest. Room 0 to 4 fails
# at each of them.
@pytest.mark.parametrize("room", range(5))
def test_no_space_in_a_checkpoint(
    experiment: MakeExperiment,
    saving: dict[str, Any],
    whole_sha256: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    room: int,
) -> None:
    disk = FullDisk(monkeypatch)
    run_dir = tmp_path / "run"
    events = experiment("CartPole-v1", saving).stream()
    first = next(event for event in events if isinstance(event, CheckpointSaved))
    before = {path: path.read_bytes() for path in (run_dir / "checkpoints").rglob("*") if path.is_file()}
    # Validation, at 90 env steps, writes the best policy: two files before the checkpoint at 120, if it is the best.
    seen: list[Any] = []
    with pytest.raises(QfleetError) as caught:
        for event in events:
            seen.append(event)
            if getattr(event, "is_best", None) is not None:
                disk.room = room
    assert disk.num_refused >= 1
    line = str(caught.value)
    assert "No space left on device" in line
    assert "\n" not in line
    assert not [event for event in seen if isinstance(event, CheckpointSaved)]
    assert {path: path.read_bytes() for path in before} == before, "what was saved is untouched"
    manifest, refused = CheckpointStore(run_dir / "checkpoints", 1).newest_whole()
    assert manifest is not None
    assert first.manifest.name == f"manifest-{manifest.tag}.json"
    assert refused == []
    disk.room = 10**9  # somebody made room
    assert Experiment.resume(run_dir).run()["parameters_sha256"] == whole_sha256


def test_no_space_for_the_best_policy(
    experiment: MakeExperiment,
    saving: dict[str, Any],
    whole_sha256: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk = FullDisk(monkeypatch)
    events = experiment("CartPole-v1", saving).stream()
    next(event for event in events if isinstance(event, CheckpointSaved))
    disk.room = 0
    with pytest.raises(QfleetError, match=r"cannot write .*policy-\d+.safetensors: No space left.*free space"):
        for _ in events:
            pass
    disk.room = 10**9
    assert Experiment.resume(tmp_path / "run").run()["parameters_sha256"] == whole_sha256


def test_no_space_for_the_metrics(
    drive: Drive, experiment: MakeExperiment, saving: dict[str, Any], whole_sha256: str, tmp_path: Path
) -> None:
    # A real limit on the size of a file, in a process of its own: metrics.jsonl is the one that grows.
    changes = saving | {"logging.every_env_steps": 4}
    run_dir = tmp_path / "limited"
    answer = drive(run_dir, changes, file_limit=24_000)
    size = (run_dir / "metrics.jsonl").stat().st_size
    assert answer["status"] == 1, answer
    assert answer["points"].count("CheckpointSaved") >= 1
    assert answer["error"].startswith("error QfleetError: cannot write")
    assert "metrics.jsonl: File too large; free space and --resume" in answer["error"]
    assert size <= 24_000
    assert Experiment.resume(run_dir).run()["parameters_sha256"] == whole_sha256
    steps = [record["num_env_steps"] for record in read_train_records(run_dir)]
    assert steps == sorted(set(steps)), "the line that was cut is gone, and none is twice"


def test_a_reader_never_sees_half_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_file(tmp_path, "deep/file", b"old")
    path = tmp_path / "deep" / "file"
    order: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def watched_fsync(descriptor: int) -> None:
        assert path.read_bytes() == (b"new" if "renamed" in order else b"old")
        order.append("synced")
        fsync(descriptor)

    def watched_replace(self: Path, target: Path) -> Path:
        assert (self.read_bytes(), path.read_bytes()) == (b"new", b"old")
        order.append("renamed")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(Path, "replace", watched_replace)
    saved = write_file(tmp_path, "deep/file", b"new")
    assert order == ["synced", "renamed", "synced"]  # the last one is the folder's
    assert path.read_bytes() == b"new"
    assert read_verified(tmp_path, saved) == b"new"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def read_train_records(run_dir: Path) -> list[dict[str, Any]]:
    from qfleet.metrics import read_metrics

    records = read_metrics(run_dir)
    assert len(records) == len((run_dir / "metrics.jsonl").read_text().splitlines())
    return [record for record in records if record["kind"] == "train"]
