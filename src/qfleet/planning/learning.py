"""Learning in virtual time: the whole run, with real gradients, on the simulated cluster, seed by seed.

Whoever does not reach the target within the budget of env steps has failed, and is counted so. Faults of the cluster's
file strike here as in any run on engine sim. Floor 7.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from qfleet.errors import QfleetError, in_one_line
from qfleet.experiment import Experiment
from qfleet.planning.grid import Cell
from qfleet.run_config import RunConfig, change_config

NEVER = 10**12


@dataclass(frozen=True, slots=True)
class LearnedRun:
    """One seed.

    Attributes:
        label, num_workers, seed: which run.
        seconds, env_steps: of virtual time and of the environment to the target; None where it was not reached.
        used_seconds: of virtual time until the end of the run, whatever came of it.
        best_return: the best validation.
        error: of a run that failed otherwise, in a line.
    """

    label: str
    num_workers: int
    seed: int
    seconds: float | None
    env_steps: int | None
    used_seconds: float
    best_return: float | None
    error: str | None = None

    @property
    def key(self) -> tuple[str, int]:
        """Its cell."""
        return self.label, self.num_workers


@dataclass(frozen=True, slots=True)
class Learned:
    """All seeds of a configuration.

    Attributes:
        num_runs, num_reached: seeds, and those that reached the target.
        seconds: median to the target over all seeds, one that never got there counting as infinite.
        least, most: of those that did.
        env_steps: median likewise.
    """

    num_runs: int
    num_reached: int
    seconds: float
    least: float
    most: float
    env_steps: float

    @staticmethod
    def of(runs: Sequence[LearnedRun]) -> Learned:
        """Sum up the runs of one configuration."""
        seconds = [math.inf if run.seconds is None else run.seconds for run in runs]
        steps = [math.inf if run.env_steps is None else float(run.env_steps) for run in runs]
        there = [one for one in seconds if math.isfinite(one)]
        return Learned(
            len(runs),
            len(there),
            statistics.median_high(seconds),
            min(there, default=math.inf),
            max(there, default=math.inf),
            statistics.median_high(steps),
        )


def learn(cells: Sequence[Cell], num_seeds: int, target: float, max_env_steps: int | None) -> Iterator[LearnedRun]:
    """Each run as it ends: the first seed of each cell, then the second of each.

    Args:
        cells: those that can be, on engine sim with the cluster's file.
        num_seeds: from the recipe's seed on.
        target: the return to reach.
        max_env_steps: the budget of a run; None takes the recipe's.
    """
    for index in range(num_seeds):
        for cell in cells:
            assert cell.config is not None
            config = learning_config(cell.config, cell.config.seed + index, target, max_env_steps)
            yield _run(cell, config)


def learning_config(config: RunConfig, seed: int, target: float, max_env_steps: int | None) -> RunConfig:
    """The run's own configuration: real gradients, until the target is confirmed or the budget is used up."""
    changes: list[tuple[str, object]] = [
        ("engine.compute", "real"),
        ("seed", seed),
        ("stop.until_return", target),
        ("logging.tensorboard", False),
        ("checkpoint.every_env_steps", NEVER),  # nobody goes on with it, and each one restarts the episodes
    ]
    if max_env_steps is not None:
        changes.append(("stop.max_env_steps", max_env_steps))
    return change_config(config, changes)


def _run(cell: Cell, config: RunConfig) -> LearnedRun:
    with TemporaryDirectory(prefix="qfleet-plan-") as folder:
        try:
            summary = Experiment(config, Path(folder) / "run").run()
        except QfleetError as error:
            text = in_one_line(error)
            return LearnedRun(*cell.key, config.seed, None, None, math.nan, None, text)
    reached = summary["reached"] is True
    return LearnedRun(
        *cell.key,
        config.seed,
        _number(summary["seconds_to_threshold"]) if reached else None,
        int(str(summary["env_steps_to_threshold"])) if reached else None,
        float(str(summary["train_seconds"])),
        _number(summary["validation_return"]),
    )


def _number(value: object) -> float | None:
    return None if value is None else float(str(value))
