"""How fast a run learned: env steps and seconds until its validations came to a share of the way to the target.

    level(share) = random + share * (target - random)

random is the mean return of uniformly random legal actions, played when this is asked; the target is the run's own, or
where it has none its best validation return. A level is reached at the first validation whose mean is at or above it,
and its env steps and seconds are those when that snapshot was taken. Floor 7.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

from qfleet.errors import CheckpointError
from qfleet.metrics import read_metrics
from qfleet.recipe import read_config
from qfleet.report.measures import Trace, read_trace
from qfleet.schedule import target_return
from qfleet.types import EnvSpec

SHARES = (0.25, 0.5, 0.75, 0.9, 1.0)
RANDOM_EPISODES = 32


@dataclass(frozen=True, slots=True)
class Level:
    """One step of the way.

    Attributes:
        share: of the way from random to the target.
        level: the return that this is.
        num_env_steps, train_seconds: where the run came to it; None where it did not.
    """

    share: float
    level: float
    num_env_steps: int | None
    train_seconds: float | None


@dataclass(frozen=True, slots=True)
class Convergence:
    """A run's way to its target.

    Attributes:
        random_return: where it begins, the return of chance.
        target_return: where it ends.
        is_asked: whether the run was given this target; else it is its best validation return.
        train_seconds, num_env_steps: of the whole run, as far as it is written down.
        average_return: area under the curve of validation returns against env steps, divided by its width.
        area: the same with chance as 0 and the target as 1; None where the target is not above chance.
        levels: SHARES of the way; only the whole of it where the target is not above chance.
    """

    random_return: float
    target_return: float
    is_asked: bool
    train_seconds: float
    num_env_steps: int
    average_return: float
    area: float | None
    levels: list[Level]

    def to_json(self) -> dict[str, object]:
        """JSON values."""
        return asdict(self)


def read_convergence(run_dir: Path, spec: EnvSpec, random_return: float) -> Convergence | None:
    """From what a run wrote down; None where it has not been validated yet.

    Args:
        run_dir: the run directory.
        spec: of its environment, for the registered threshold.
        random_return: of chance on it.

    Raises:
        QfleetError: config.toml or metrics.jsonl is missing or damaged.
    """
    asked = target_return(read_config(run_dir / "config.toml"), spec)
    try:
        trace, records = read_trace(run_dir), read_metrics(run_dir)
        num_env_steps = max((int(record["num_env_steps"]) for record in records), default=0)
        train_seconds = max((float(record.get("train_seconds", 0.0)) for record in records), default=0.0)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{run_dir}: metrics.jsonl is damaged ({type(error).__name__}: {error})") from error
    return convergence(trace, asked, random_return, num_env_steps, train_seconds) if len(trace.returns) else None


def convergence(
    trace: Trace, asked: float | None, random_return: float, num_env_steps: int, train_seconds: float
) -> Convergence:
    """The same from numbers.

    Args:
        trace: at least one validation.
        asked: the run's target, None for its best validation return.
        random_return: of chance.
        num_env_steps, train_seconds: of the whole run.
    """
    target = float(trace.returns.max()) if asked is None else asked
    way = target - random_return
    average = trace.average()
    assert average is not None
    return Convergence(
        random_return=random_return,
        target_return=target,
        is_asked=asked is not None,
        train_seconds=train_seconds,
        num_env_steps=num_env_steps,
        average_return=average,
        area=(average - random_return) / way if way > 0 else None,
        levels=[
            # The last one is the target itself, not what rounding makes of random + (target - random).
            _reached(trace, share, target if share == 1.0 else random_return + share * way)
            for share in SHARES
            if way > 0 or share == 1.0
        ],
    )


def _reached(trace: Trace, share: float, level: float) -> Level:
    env_steps, seconds = trace.reach("env_steps", level), trace.reach("seconds", level)
    assert env_steps is not None
    assert seconds is not None
    if math.isinf(env_steps):
        return Level(share, level, None, None)
    return Level(share, level, int(env_steps), seconds)
