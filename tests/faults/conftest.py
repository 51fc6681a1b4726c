"""The killing driver, started once, and a small run with many checkpoints."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Drive = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def drive() -> Iterator[Drive]:
    """drive(run_dir, overrides, kill_at=...): one run in a process of its own; see driver.py."""
    driver = Path(__file__).parent / "driver.py"
    with subprocess.Popen(
        [sys.executable, str(driver)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def send(
            run_dir: Path,
            overrides: dict[str, Any] | None = None,
            kill_at: int | None = None,
            file_limit: int | None = None,
        ) -> dict[str, Any]:
            command = {
                "run_dir": str(run_dir),
                "env": "CartPole-v1",
                "overrides": overrides,
                "kill_at": kill_at,
                "file_limit": file_limit,
            }
            stdin.write(json.dumps(command) + "\n")
            stdin.flush()
            answer: dict[str, Any] = json.loads(stdout.readline())
            return answer

        yield send
        stdin.close()


@pytest.fixture(scope="session")
def saving(tiny: dict[str, Any]) -> dict[str, Any]:
    """Overrides of a run of 300 env steps with five checkpoints."""
    return tiny | {
        "seed": 11,
        "algo.n_step": 3,
        "num_threads": 1,
        "logging.every_env_steps": 20,
        "evaluation.every_env_steps": 90,
        "checkpoint.every_env_steps": 60,
        "stop.max_env_steps": 300,
    }
