"""Costs from a past run's metrics: its roles' busy seconds by activity, over what they did with them.

    environment + inference + insertion, an env step          learner + drawing, an update of one worker

What a run does not tell (servers, messages, the coordinator) keeps the cost model's defaults, and is said so. Floor 7.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from qfleet.errors import UsageError
from qfleet.placement.cluster_file import Compute
from qfleet.planning.calibration import Cost
from qfleet.recipe import read_config

METRICS_NAME = "metrics.jsonl"
COLLECTING = ("environment", "inference")
LEARNING = ("learner", "replay")


def costs_of_run(run_dir: Path) -> list[Cost]:
    """What its last record tells.

    Raises:
        UsageError: no run there, or its metrics hold no seconds.
    """
    path = run_dir / METRICS_NAME
    if not path.is_file():
        raise UsageError(f"--from-run {run_dir}: no run here ({METRICS_NAME} is missing)")
    config = read_config(run_dir / "config.toml")
    record = _last(path)
    num_env_steps, num_samples = _number(record, "num_env_steps"), _number(record, "num_samples")
    collecting = sum(_number(record, f"seconds_{name}") for name in COLLECTING)
    learning = sum(_number(record, f"seconds_{name}") for name in LEARNING)
    batch_size = getattr(config.algo, "batch_size", None)
    if not (num_env_steps and num_samples and collecting and learning) or not isinstance(batch_size, int):
        raise UsageError(
            f"--from-run {run_dir}: its metrics hold no seconds of collecting and learning from replay; leave it out, "
            "and costs are measured"
        )
    step, update = collecting / num_env_steps, learning / (num_samples / batch_size)
    origin = f"from {run_dir} ({config.strategy.name} on {config.engine.name})"
    number = int(num_samples / batch_size)
    tables = [
        Compute(method="collect*", per="env_step", seconds=_rounded(step)),
        Compute(method="rollout", per="env_step", seconds=_rounded(step)),
        Compute(method="gradient", seconds=_rounded(update)),
        Compute(method="*_together", seconds=_rounded(update)),
        Compute(method="train*", per="update", seconds=_rounded(update)),
        Compute(method="learn", per="update", seconds=_rounded(update)),
        Compute(method="local_update", per="sample", seconds=_rounded(update / batch_size)),
    ]
    return [Cost(table, number, origin) for table in tables]


def _last(path: Path) -> Mapping[str, object]:
    """The newest record of training."""
    found: Mapping[str, object] = {}
    for line in path.read_text("utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue  # a line that a crash has cut
        if isinstance(record, dict) and "num_samples" in record:
            found = record
    return found


def _number(record: Mapping[str, object], name: str) -> float:
    value = record.get(name, 0.0)
    return float(value) if isinstance(value, int | float) else 0.0


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")
