"""What is measured of a run: numbers and curves, from the summary and metrics.jsonl that it wrote.

    axis        env steps, updates, seconds of training at which validations were taken
    threshold   the first validation whose mean return is at or above it; infinity where none was

Floor 7.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from qfleet.metrics import read_metrics
from qfleet.ops.bootstrap import Statistic

Floats = npt.NDArray[np.float64]
AXES = {"env_steps": "num_env_steps", "updates": "num_updates", "seconds": "train_seconds"}
Format = Literal["return", "count", "seconds", "rate", "lag", "bytes"]


@dataclass(frozen=True, slots=True)
class Trace:
    """A run's validations in the order of env steps.

    Attributes:
        axes: by name of AXES, float64 [N].
        returns: mean greedy return of each validation, float64 [N].
    """

    axes: Mapping[str, Floats]
    returns: Floats

    def reach(self, axis: str, threshold: float | None) -> float | None:
        """Where the first validation was at or above the threshold; infinity where none was, None without one."""
        if threshold is None:
            return None
        above = np.flatnonzero(self.returns >= threshold)
        return float(self.axes[axis][above[0]]) if len(above) else math.inf

    def curve(self, axis: str) -> tuple[Floats, Floats]:
        """Returns against an axis, in its order."""
        return self.axes[axis], self.returns

    def average(self) -> float | None:
        """Mean return over the run: the area under the curve against env steps, divided by its width."""
        if not len(self.returns):
            return None
        steps = self.axes["env_steps"]
        width = steps[-1] - steps[0]
        return float(np.trapezoid(self.returns, steps) / width) if width > 0 else float(self.returns[-1])


def read_trace(run_dir: Path) -> Trace:
    """The validations in a run's metrics.jsonl."""
    records = [record for record in read_metrics(run_dir) if record["kind"] == "evaluation"]
    # A validation beside training may be written down after one of a younger snapshot.
    records.sort(key=lambda record: record["num_env_steps"])
    axes = {axis: np.array([float(record[name]) for record in records]) for axis, name in AXES.items()}
    return Trace(axes, np.array([float(record["mean_return"]) for record in records]))


@dataclass(frozen=True, slots=True)
class Measured:
    """A run: what it wrote down. `summary` is that of a finished one, or as much of it as is known."""

    summary: Mapping[str, object]
    trace: Trace
    threshold: float | None


@dataclass(frozen=True, slots=True)
class Measure:
    """A number that each run has.

    Attributes:
        name: in JSON.
        title: in tables.
        format: how it is written.
        statistic: over seeds. A median where a few seeds may be far off, or never get there.
        read: the number of a run, None where it has none.
        meaning: a sentence for the page.
    """

    name: str
    title: str
    format: Format
    statistic: Statistic
    read: Callable[[Measured], float | None]
    meaning: str


def _field(name: str) -> Callable[[Measured], float | None]:
    def read(cell: Measured) -> float | None:
        value = cell.summary.get(name)
        return float(value) if isinstance(value, int | float) else None

    return read


def _reach(axis: str) -> Callable[[Measured], float | None]:
    return lambda cell: cell.trace.reach(axis, cell.threshold)


def _lag(name: str, statistic: str) -> Callable[[Measured], float | None]:
    def read(cell: Measured) -> float | None:
        lags = cell.summary.get("lags")
        lag = lags.get(name, {}) if isinstance(lags, Mapping) else {}
        value = lag.get(statistic)
        return float(value) if isinstance(value, int | float) else None

    return read


def _held_out(cell: Measured) -> float | None:
    score = cell.summary.get("eval")
    return float(score["mean_return"]) if isinstance(score, Mapping) else None


def _bytes(cell: Measured) -> float | None:
    """None where several roles exchanged something that no receipt counts, such as all-reduce."""
    pushed, num_roles = cell.summary.get("bytes_pushed"), cell.summary.get("num_roles")
    if not isinstance(pushed, int | float) or (not pushed and num_roles != 1):
        return None
    return float(pushed)


MEASURES = [
    Measure(
        "held_out_return", "held-out return", "return", "mean", _held_out,
        "Mean return of the best policy of a run on episode seeds that no decision has looked at.",
    ),
    Measure(
        "average_return", "average return", "return", "mean", lambda cell: cell.trace.average(),
        "Mean validation return over the run: the area under the curve against env steps, divided by its width.",
    ),
    Measure(
        "env_steps_to_threshold", "env steps to it", "count", "median", _reach("env_steps"),
        "Env steps at the first validation at or above the threshold.",
    ),
    Measure(
        "updates_to_threshold", "updates to it", "count", "median", _reach("updates"),
        "Updates at the first validation at or above the threshold.",
    ),
    Measure(
        "seconds_to_threshold", "seconds to it", "seconds", "median", _reach("seconds"),
        "Seconds of training at the first validation at or above the threshold.",
    ),
    Measure("env_steps", "env steps", "count", "median", _field("num_env_steps"), "Env steps of the whole run."),
    Measure("updates", "updates", "count", "median", _field("num_updates"), "Updates of the whole run."),
    Measure(
        "train_seconds", "seconds", "seconds", "median", _field("train_seconds"),
        "Seconds of training of the whole run, without validation where that holds training up.",
    ),
    Measure(
        "env_steps_per_second", "env steps/s", "rate", "median", _field("env_steps_per_second"),
        "Env steps per second of training, since learning began.",
    ),
    Measure(
        "updates_per_second", "updates/s", "rate", "median", _field("updates_per_second"),
        "Updates per second of training, since learning began.",
    ),
    Measure(
        "staleness", "staleness", "lag", "mean", _lag("staleness", "mean"),
        "Mean over pushes of the version at merging minus the version that a push was computed from.",
    ),
    Measure(
        "staleness_max", "worst staleness", "lag", "median", _lag("staleness", "max"),
        "The largest staleness of a run.",
    ),
    Measure(
        "policy_lag", "policy lag", "lag", "mean", _lag("policy_lag", "mean"),
        "Mean over rollouts of the learner's version minus the version that acted.",
    ),
    Measure(
        "priority_age", "priority age", "lag", "mean", _lag("priority_age", "mean"),
        "Mean over samples of the learner's version minus the version that gave their priority.",
    ),
    Measure(
        "bytes_moved", "moved", "bytes", "mean", _field("bytes_moved"),
        "Bytes that roles got from each other in training: pushes, parameters, batches of replay, trajectories and the "
        "means of an all-reduce as a ring exchanges them; counted as if each role had a machine of its own.",
    ),
    Measure(
        "bytes_pushed", "pushed", "bytes", "mean", _bytes,
        "Of these, gradients or parameters that workers sent to servers or an aggregator; a dash where nobody pushes.",
    ),
]  # fmt: skip
