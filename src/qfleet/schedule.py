"""When a run validates, saves, logs and stops: the session's small state, which goes into checkpoints. Floor 6."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from qfleet.config import StopConfig
from qfleet.run_config import RunConfig
from qfleet.strategies.base import Counters
from qfleet.types import EnvSpec


@dataclass(frozen=True, slots=True)
class Moment:
    """Where training stood when a snapshot was taken."""

    num_env_steps: int
    num_updates: int
    train_seconds: float


@dataclass(slots=True)
class Schedule:
    """What is due next, and what validation has found.

    `env_steps_to_threshold` and `seconds_to_threshold` are of the moment when the snapshot that reached the target was
    taken; `seconds_until_known` is when its episodes had been played, which is later where training goes on meanwhile.
    `by_name` holds the newest validation's mean returns by environment, where a strategy has several.
    """

    next_evaluation: int
    next_checkpoint: int
    next_log: int
    num_evaluations: int = 0
    num_checkpoints: int = 0
    validated_version: int = -1
    best_return: float | None = None
    reached_return: float | None = None
    env_steps_to_threshold: int | None = None
    seconds_to_threshold: float | None = None
    seconds_until_known: float | None = None
    parameters_sha256: str | None = None
    metrics_offset: int = 0
    by_name: dict[str, float] = field(default_factory=dict)


def target_return(config: RunConfig, spec: EnvSpec) -> float | None:
    """The return that ends the run: a number, the environment's registered threshold, or None."""
    wanted = config.stop.until_return
    if wanted == "never":
        return None
    return spec.return_threshold if wanted == "registered" else float(wanted)


def limit_met(stop: StopConfig, counters: Counters, train_seconds: float) -> str | None:
    """Name of the first limit of the stop rule that is used up, None while there is room."""
    if stop.max_env_steps is not None and counters.num_env_steps >= stop.max_env_steps:
        return "max_env_steps"
    if stop.max_updates is not None and counters.num_updates >= stop.max_updates:
        return "max_updates"
    if stop.max_seconds is not None and train_seconds >= stop.max_seconds:
        return "max_seconds"
    return None


def has_reached(schedule: Schedule, target: float | None) -> bool:
    """Whether a validation has already been confirmed at this target or a higher one."""
    reached = schedule.reached_return
    return target is not None and reached is not None and reached >= target


def lower_bound(returns: list[float], num_stderr: float) -> float:
    """mean - num_stderr * std / sqrt(n)."""
    return float(np.mean(returns) - num_stderr * np.std(returns) / np.sqrt(len(returns)))
