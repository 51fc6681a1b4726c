"""Bytes that roles get from each other over a run, by hand, and over two runs that are one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qfleet.experiment import Experiment

MakeExperiment = Callable[..., Experiment]
# 4 x 16 + 16 + 16 x 4 + 4 = 148 parameters in float32, and no buffers.
VECTOR = 592


def two_workers(strategy: str, **changes: Any) -> dict[str, Any]:
    return {"strategy.name": strategy, "strategy.num_workers": 2, "checkpoint.every_env_steps": 10**6, **changes}


@pytest.mark.parametrize("engine", ["inline", "threads", "sim"])
def test_ranks_exchange_their_gradients_in_a_ring(experiment: MakeExperiment, engine: str) -> None:
    run = experiment("qfleet/Identity-v0", two_workers("all_reduce", **{"engine.name": engine}))
    summary = run.run()
    # At each update each of two ranks sends 2 (2 - 1) / 2 of a gradient.
    assert summary["bytes_moved"] == int(str(summary["num_updates"])) * 2 * VECTOR
    assert summary["bytes_pushed"] == 0


def test_a_serial_run_moves_nothing(experiment: MakeExperiment) -> None:
    assert experiment("qfleet/Identity-v0").run()["bytes_moved"] == 0


def test_a_resumed_run_counts_on(experiment: MakeExperiment, tmp_path: Path) -> None:
    first = experiment("qfleet/Identity-v0", two_workers("all_reduce")).run()
    whole = Experiment.resume(tmp_path / "run", {"stop.max_env_steps": 2 * int(str(first["num_env_steps"]))}).run()
    assert int(str(whole["num_updates"])) > int(str(first["num_updates"]))
    assert whole["bytes_moved"] == int(str(whole["num_updates"])) * 2 * VECTOR
