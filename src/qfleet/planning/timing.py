"""Timing: one strategy at one size on the simulated cluster, with nothing computed; rates, lags, and who is busy.

    warm up -> window of virtual time between two updates -> counters, and each role's share of it at work

Floor 7.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from qfleet.config import ReplayConfig
from qfleet.engines.base import Engine
from qfleet.errors import QfleetError
from qfleet.experiment import load_engine
from qfleet.ops.pacing import measured_samples_per_insert
from qfleet.placement.cluster_file import ClusterFile
from qfleet.placement.virtual_calls import Usage
from qfleet.placement.virtual_network import COORDINATOR
from qfleet.planning.calibration import kind_of
from qfleet.plugins import load_plugin
from qfleet.policy import make_blueprint
from qfleet.run_config import RunConfig
from qfleet.strategies.base import Control, Event, Gradient, Rollout, Update
from qfleet.types import EnvSpec

CALLS_PER_ROLE = 40
MIN_CALLS, MAX_CALLS = 3_000, 200_000
PACED = 0.9  # of samples_per_insert, from where on a run is taken to run evenly


class SimulatedEngine(Engine, Protocol):
    """What is looked at of engine sim."""

    file: ClusterFile

    @property
    def num_calls(self) -> int: ...

    def usage(self) -> dict[str, Usage]: ...


@dataclass(frozen=True, slots=True)
class Share:
    """Of the roles of one kind, over the window: parts of the time, from 0 to 1.

    Attributes:
        number: roles.
        mean, highest, lowest: at work.
        bytes_out, bytes_in: the busiest port's part of its bandwidth.
    """

    number: int
    mean: float
    highest: float
    lowest: float
    bytes_out: float = 0.0
    bytes_in: float = 0.0


@dataclass(frozen=True, slots=True)
class Timing:
    """A configuration that runs evenly, per second of virtual time.

    Attributes:
        updates, env_steps, samples: a second.
        staleness: mean versions that a merged push was behind; of actors the policy's lag; None where there is none.
        shares: by kind of role, the coordinator among them.
        seconds: length of the window.
    """

    updates: float
    env_steps: float
    samples: float
    staleness: float | None
    shares: Mapping[str, Share]
    seconds: float


def simulate(config: RunConfig, spec: EnvSpec, calls_per_role: int = CALLS_PER_ROLE) -> Timing:
    """Time a configuration.

    Args:
        config: on engine sim with compute "none" and the cluster's file.
        spec: the environment's facts.
        calls_per_role: calls in the window for each role; MIN_CALLS in all at least.

    Raises:
        QfleetError: it cannot run, or comes to no update.
    """
    engine = cast(SimulatedEngine, load_engine(config, Path()))
    blueprint = make_blueprint(config, spec, "cpu")
    control = Control("unused")
    try:
        events = load_plugin("strategy", config.strategy.name).run(engine, blueprint, config.strategy, control)
        first = next(events)
        num_calls = max(MIN_CALLS, min(MAX_CALLS, calls_per_role * len(engine.usage())))
        window = _Window(engine, control)
        window.take(first)
        _until_update(events, window, 2, num_calls * 10)
        _until_update(events, window, window.num_updates + 1, num_calls * 10, engine.num_calls + num_calls // 4)
        _until_paced(events, window, config.pace, 4 * num_calls)
        window.begin()
        _until_update(events, window, window.num_updates + 1, num_calls * 20, engine.num_calls + num_calls)
        return window.timing()
    finally:
        engine.close()


def _until_update(events: Iterator[Event], window: _Window, num_updates: int, limit: int, num_calls: int = 0) -> None:
    """Go on until so many updates are made, and so many calls, and the last event is an update."""
    last = window.engine.num_calls + limit
    for event in events:
        window.take(event)
        is_update = isinstance(event, Update)
        if is_update and window.num_updates >= num_updates and window.engine.num_calls >= num_calls:
            return
        if window.engine.num_calls > last:
            raise QfleetError(f"no update in {limit:,} calls: no timing")


def _until_paced(events: Iterator[Event], window: _Window, pace: ReplayConfig, limit: int) -> None:
    """Go on until the updates that the first transitions allow are made: till then there are too few collect calls."""
    counters, last = window.counters, window.engine.num_calls + limit
    for event in events:
        window.take(event)
        ratio = measured_samples_per_insert(counters.num_inserted, counters.num_samples, pace.min_transitions)
        is_paced = ratio >= PACED * pace.samples_per_insert or window.engine.num_calls > last
        if is_paced and isinstance(event, Update):
            return


class _Window:
    """Counts between two moments."""

    def __init__(self, engine: SimulatedEngine, control: Control) -> None:
        self.engine = engine
        self.counters = control.counters
        self.num_answers = 0
        self._staleness: list[int] = []
        self._policy_lags: list[int] = []
        self.begin()

    @property
    def num_updates(self) -> int:
        return self.counters.num_updates

    def begin(self) -> None:
        """From here on."""
        counters = self.counters
        self._staleness.clear()
        self._policy_lags.clear()
        self._time, self._usage = self.engine.now(), self.engine.usage()
        self._num_calls = self.engine.num_calls
        self._before = (counters.num_updates, counters.num_env_steps, counters.num_samples)

    def take(self, event: Event) -> None:
        """An event's lags."""
        if isinstance(event, Rollout | Update | Gradient):
            self._staleness += event.receipt.lags.get("staleness", [])
            self._policy_lags += event.receipt.lags.get("policy_lag", [])

    def timing(self) -> Timing:
        """Everything since `begin`."""
        seconds = self.engine.now() - self._time
        counters = self.counters
        after = (counters.num_updates, counters.num_env_steps, counters.num_samples)
        updates, env_steps, samples = (
            (now - then) / seconds if seconds > 0 else math.inf for now, then in zip(after, self._before, strict=True)
        )
        lags = self._staleness or self._policy_lags
        lag = statistics.fmean(lags) if lags else None
        return Timing(updates, env_steps, samples, lag, self._shares(seconds), seconds)

    def _shares(self, seconds: float) -> dict[str, Share]:
        groups: dict[str, list[tuple[float, float, float]]] = {}
        bandwidth = self.engine.file.network.bandwidth
        nothing = Usage(0.0, 0, 0)
        for name, usage in self.engine.usage().items():
            before = self._usage.get(name, nothing)
            busy = (usage.busy_seconds - before.busy_seconds) / seconds
            sent = (usage.num_bytes_out - before.num_bytes_out) / bandwidth / seconds
            got = (usage.num_bytes_in - before.num_bytes_in) / bandwidth / seconds
            groups.setdefault(kind_of(name), []).append((min(busy, 1.0), sent, got))
        shares = {
            kind: Share(
                len(rows),
                statistics.fmean(row[0] for row in rows),
                max(row[0] for row in rows),
                min(row[0] for row in rows),
                max(row[1] for row in rows),
                max(row[2] for row in rows),
            )
            for kind, rows in groups.items()
        }
        thinking = self.engine.file.cluster.coordinator_seconds * (self.engine.num_calls - self._num_calls) / seconds
        return shares | {COORDINATOR: Share(1, min(1.0, thinking), min(1.0, thinking), min(1.0, thinking))}
