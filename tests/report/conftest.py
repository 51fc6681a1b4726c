"""Run directories as runs write them, without training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qfleet.machine import note_machine
from qfleet.recipe import find_recipe
from qfleet.run_config import build_config

WriteRun = Callable[..., Path]


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """write_run("a", seed=3, curve=[(100, 1.0)], **{"algo.gamma": 0.9}): a finished run; summary=None for one under
    way."""

    def write(
        name: str,
        seed: int = 0,
        curve: list[tuple[int, float]] | None = None,
        summary: dict[str, Any] | bool | None = True,
        **changes: Any,
    ) -> Path:
        path = tmp_path / name
        path.mkdir(parents=True)
        overrides = [("env.id", "CartPole-v1"), ("seed", seed), *changes.items()]
        (path / "config.toml").write_text(build_config(find_recipe("vector").values, overrides).to_toml())
        curve = [(100, 10.0), (200, 30.0)] if curve is None else curve
        records = []
        for steps, value in curve:
            common = {"num_env_steps": steps, "num_updates": steps // 10, "train_seconds": steps / 1000}
            train = {"mean_return": value / 2, "env_steps_per_second": 1000.0 + steps, "updates_per_second": 100.0}
            shares = {"share_environment": 0.25, "share_learner": 0.75, "samples_per_insert": 7.5, "restarts.killed": 2}
            records.append({"kind": "train", **common, **train, **shares})
            records.append({"kind": "evaluation", **common, "mean_return": value})
        (path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        if summary is not None:
            body = {
                "num_env_steps": curve[-1][0],
                "num_updates": curve[-1][0] // 10,
                "train_seconds": curve[-1][0] / 1000,
                "env_steps_per_second": 2000.0,
                "updates_per_second": 200.0,
                "target_return": 25.0,
                "eval": {"mean_return": curve[-1][1]},
                "samples_per_insert_asked": 8.0,
                "samples_per_insert_measured": 7.9,
                "time_shares": {"environment": 0.5, "learner": 0.3, "waiting": 0.2},
                "lags": {"staleness": {"num": 4, "mean": 0.5, "max": 1, "rows": [[0, 0, 2], [1, 1, 2]]}},
                "tallies": {"restarts.killed": 1, "restarts.timeout": 3},
                **(summary if isinstance(summary, dict) else {}),
            }
            (path / "summary.json").write_text(json.dumps(body))
        note_machine(path, device="cpu")
        return path

    return write
