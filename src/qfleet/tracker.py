"""Tracker: what a run has done so far, from its receipts; the numbers behind the progress line and the summary.

The training clock stops while a validation runs in the same thread; where it runs beside training the clock goes on. On
an engine with a clock of its own (`is_virtual`) all seconds are that clock's. Floor 6.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import numpy as np

from qfleet.bottleneck import time_shares
from qfleet.engines.base import Engine, is_virtual
from qfleet.histogram import LagHistogram
from qfleet.metrics import Record
from qfleet.ops.pacing import measured_samples_per_insert
from qfleet.placement.traffic import Traffic
from qfleet.strategies.base import Counters
from qfleet.types import Receipt

RETURN_WINDOW = 100


class Tracker:
    """Counts, rates, lags and shares of time of one run.

    Args:
        counters: the run's global counters (kept by the strategy).
        min_transitions: inserts before the replay ratio counts.
        is_concurrent: whether the roles are busy side by side.
        now: the clock, in seconds; None is this machine's.
        traffic: what roles get from each other, where the engine counts it.

    Attributes:
        lags: histograms of the receipts' lags ("staleness", "policy_lag", "priority_age"), over the whole run.
        roles: names of those that reported busy seconds in this process.
        num_pushes, num_bytes: payloads pushed over the wire, and their bytes.
    """

    def __init__(
        self,
        counters: Counters,
        min_transitions: int,
        is_concurrent: bool = False,
        now: Callable[[], float] | None = None,
        traffic: Traffic | None = None,
    ) -> None:
        self._traffic = traffic
        self._moved_before = 0
        self.counters = counters
        self._now = now or (lambda: time.perf_counter())
        self.min_transitions = min_transitions
        self.is_concurrent = is_concurrent
        self.lags: dict[str, LagHistogram] = {}
        self.num_pushes = 0
        self.num_bytes = 0
        self.roles: set[str] = set()
        # Shares of time are this process's own, as rates are: another one may have had other roles.
        self._seconds_before: dict[str, float] = {}
        self._shares_since = 0.0
        self.returns: deque[float] = deque(maxlen=RETURN_WINDOW)
        self.num_episodes = 0
        self.seconds: dict[str, float] = {}
        self.metrics: dict[str, float] = {}
        self._trained_before = 0.0
        self._clock_started: float | None = None
        # Rates count from the first update on, so that a warm-up without learning does not flatter them.
        self._rate_origin: tuple[float, int, int] | None = None

    def start_clock(self) -> None:
        """Training goes on."""
        self._clock_started = self._now()

    def stop_clock(self) -> None:
        """Training pauses (validation) or ends."""
        self._trained_before = self.train_seconds
        self._clock_started = None

    @property
    def train_seconds(self) -> float:
        """Seconds of training, validation excluded."""
        running = 0.0 if self._clock_started is None else self._now() - self._clock_started
        return self._trained_before + running

    @property
    def bytes_moved(self) -> int | None:
        """Bytes that roles have got from each other, over the whole run; None where nobody counts them."""
        return None if self._traffic is None else self._moved_before + self._traffic.num_bytes

    @property
    def samples_per_insert(self) -> float:
        """The measured replay ratio."""
        counters = self.counters
        return measured_samples_per_insert(counters.num_inserted, counters.num_samples, self.min_transitions)

    def add(self, receipt: Receipt, role: str = "") -> None:
        """Take in what a role's call reports beside its counts."""
        if receipt.episode_returns:
            self.returns.extend(receipt.episode_returns)
            self.num_episodes += len(receipt.episode_returns)
        seconds = self.seconds
        for activity, value in receipt.seconds.items():
            seconds[activity] = seconds.get(activity, 0.0) + value
        if receipt.seconds:
            self.roles.add(role)
        if receipt.num_bytes:
            self.num_pushes += 1
            self.num_bytes += receipt.num_bytes
        for name, values in receipt.lags.items():
            histogram = self.lags.get(name)
            if histogram is None:
                histogram = self.lags[name] = LagHistogram()
            histogram.add(values)
        if receipt.metrics:
            self.metrics.update(receipt.metrics)
        if receipt.num_updates and self._rate_origin is None:
            self._rate_origin = (self.train_seconds, self.counters.num_env_steps, self.counters.num_updates)

    def rates(self) -> tuple[float, float]:
        """Env steps per second and updates per second of training, since learning began."""
        counters = self.counters
        since, env_steps, updates = self._rate_origin or (0.0, 0, 0)
        elapsed = max(self.train_seconds - since, 1e-9)
        return (counters.num_env_steps - env_steps) / elapsed, (counters.num_updates - updates) / elapsed

    def mean_return(self) -> float | None:
        """Mean raw return of the newest training episodes (at most 100), None before the first one ended."""
        return float(np.mean(self.returns)) if self.returns else None

    def time_shares(self) -> dict[str, float]:
        """Shares of the roles' time by activity, and of waiting, since this process began; see bottleneck.py."""
        before = self._seconds_before
        seconds = {name: value - before.get(name, 0.0) for name, value in self.seconds.items()}
        elapsed = self.train_seconds - self._shares_since
        return time_shares(seconds, elapsed, len(self.roles), self.is_concurrent)

    def record(self) -> Record:
        """One line for metrics.jsonl."""
        env_steps_per_second, updates_per_second = self.rates()
        counters = self.counters
        return {
            "num_frames": counters.num_frames,
            "num_updates": counters.num_updates,
            "num_samples": counters.num_samples,
            "num_inserted": counters.num_inserted,
            "num_episodes": self.num_episodes,
            "train_seconds": round(self.train_seconds, 4),
            "mean_return": self.mean_return(),
            "env_steps_per_second": round(env_steps_per_second, 1),
            "updates_per_second": round(updates_per_second, 1),
            "samples_per_insert": round(self.samples_per_insert, 4),
            **{f"seconds_{name}": round(value, 4) for name, value in self.seconds.items()},
            **{f"share_{name}": round(value, 4) for name, value in self.time_shares().items()},
            **{
                f"{name}_{statistic}": value
                for name, histogram in self.lags.items()
                for statistic, value in histogram.numbers().items()
            },
            **self.metrics,
        }

    def state_dict(self) -> dict[str, object]:
        """For a checkpoint."""
        return {
            "returns": list(self.returns),
            "num_episodes": self.num_episodes,
            "seconds": self.seconds,
            "metrics": self.metrics,
            "train_seconds": self.train_seconds,
            "lags": {name: histogram.state_dict() for name, histogram in self.lags.items()},
            "num_pushes": self.num_pushes,
            "num_bytes": self.num_bytes,
            "bytes_moved": self.bytes_moved or 0,
        }

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Continue from a checkpoint; rates start anew, for they are this process's own."""
        returns, seconds, metrics = state["returns"], state["seconds"], state["metrics"]
        assert isinstance(returns, list)
        assert isinstance(seconds, dict)
        assert isinstance(metrics, dict)
        self.returns.extend(returns)
        self.num_episodes = int(str(state["num_episodes"]))
        self.seconds = dict(seconds)
        self.metrics = dict(metrics)
        self._seconds_before = dict(seconds)
        self._trained_before = self._shares_since = float(str(state["train_seconds"]))
        lags = state.get("lags", {})
        assert isinstance(lags, dict)
        self.lags = {name: LagHistogram.of_state(values) for name, values in lags.items()}
        self.num_pushes, self.num_bytes = (int(str(state.get(name, 0))) for name in ("num_pushes", "num_bytes"))
        self._moved_before = int(str(state.get("bytes_moved", 0)))


def make_tracker(counters: Counters, min_transitions: int, engine: Engine) -> Tracker:
    """A tracker by the engine's own clock where that is virtual; its roles are busy side by side there."""
    traffic = getattr(engine, "traffic", None)
    if is_virtual(engine):
        return Tracker(counters, min_transitions, True, engine.now, traffic)
    return Tracker(counters, min_transitions, engine.is_concurrent, None, traffic)
