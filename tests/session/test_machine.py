"""machine.json: where a run was started and resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qfleet.experiment import Experiment
from qfleet.machine import MACHINE_NAME, note_machine, read_machines


def test_a_run_notes_where_it_starts_and_goes_on(experiment: Any) -> None:
    run = experiment("qfleet/Identity-v0")
    run.run()
    (start,) = read_machines(run.run_dir)
    assert start.keys() >= {"time", "platform", "cores", "gpu", "python", "torch", "qfleet", "numpy", "gymnasium"}
    assert (start["device"], start["threads"]) == ("cpu", "1")
    Experiment.resume(run.run_dir, {"stop.max_env_steps": 500}).run()
    assert read_machines(run.run_dir)[0] == start
    assert len(read_machines(run.run_dir)) == 2


@pytest.mark.parametrize("text", ["", "[]", '{"starts": 3}', '{"starts": [1]}', "\x00"])
def test_a_damaged_file_is_nothing_and_is_begun_anew(tmp_path: Path, text: str) -> None:
    (tmp_path / MACHINE_NAME).write_text(text)
    assert read_machines(tmp_path) == []
    note_machine(tmp_path, device="cpu")
    assert [start["device"] for start in read_machines(tmp_path)] == ["cpu"]
    assert json.loads((tmp_path / MACHINE_NAME).read_text())["format"] == 1


def test_starts_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qfleet.machine.MAX_STARTS", 2)
    for device in ("a", "b", "c"):
        note_machine(tmp_path, device=device)
    assert [start["device"] for start in read_machines(tmp_path)] == ["b", "c"]
