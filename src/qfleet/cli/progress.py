"""The display of a run under way: a few lines that renew themselves on a terminal, plain lines elsewhere.

An event costs one look at the clock. A renewal is timed and the next one put off until all of them together take less
than a hundredth of the run, so the display can never be what slows training down.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from qfleet.bottleneck import bottleneck
from qfleet.experiment import Experiment
from qfleet.session import CheckpointSaved, Session
from qfleet.strategies.base import CrewChanged, Event, RoleRestarted
from qfleet.validation import Validated

if TYPE_CHECKING:
    from rich.text import Text

RENEW_SECONDS = 0.25
PLAIN_SECONDS = 5.0
PLAIN_SECONDS_AFTER_VALIDATION = 1.0
COST_FACTOR = 150.0  # a renewal that took t seconds is followed by at least 150 t of rest
BAR_WIDTH = 32


@dataclass(frozen=True, slots=True)
class Status:
    """What a run has done so far, as shown; None where there is nothing to show yet."""

    num_env_steps: int
    num_frames: int
    max_env_steps: int | None
    num_updates: int
    mean_return: float | None
    validation: float | None
    best_validation: float | None
    target: float | None
    env_steps_per_second: float
    updates_per_second: float
    ratio_asked: float
    ratio_measured: float
    epsilon: float | None
    fraction: float
    seconds_left: float | None
    shares: Mapping[str, float]
    lags: Mapping[str, Mapping[str, float]]

    def returns(self) -> str:
        """Returns and epsilon."""
        parts = [f"training return {_number(self.mean_return)}"]
        if self.validation is not None:
            parts.append(f"validation {_number(self.validation)} (best {_number(self.best_validation)})")
        if self.target is not None:
            parts.append(f"target {self.target:g}")
        if self.epsilon is not None:
            parts.append(f"epsilon {self.epsilon:.3f}")
        return "  ".join(parts)

    def speeds(self) -> str:
        """Rates and the replay ratio."""
        return (
            f"{self.env_steps_per_second:,.0f} env steps/s  {self.updates_per_second:,.0f} updates/s  "
            f"replay ratio {self.ratio_measured:.2f} of {self.ratio_asked:g}"
        )

    def steps(self) -> str:
        """Env steps, of how many; and frames, where those are more."""
        limit = "" if self.max_env_steps is None else f" of {self.max_env_steps:,}"
        frames = f" ({self.num_frames:,} frames)" if self.num_frames != self.num_env_steps else ""
        return f"{self.num_env_steps:,}{limit} env steps{frames}"

    def times(self) -> str:
        """Where the roles' time goes."""
        return "  ".join(["time:", *(f"{name} {share:.0%}" for name, share in self.shares.items())])

    def delays(self) -> str:
        """Lags in short; empty where nothing lags."""
        return "  ".join(
            f"{name.replace('_', ' ')} p50 {numbers['p50']:g} p95 {numbers['p95']:g}"
            for name, numbers in self.lags.items()
            if numbers
        )

    def left(self) -> str:
        """Time left; an upper bound, since a run also ends when it reaches its target."""
        return "" if self.seconds_left is None else f"at most {clock(self.seconds_left)} left"


class Progress:
    """Shows a run while it goes; use as a context manager and give it every event.

    Args:
        experiment: the run.
        label: what to call it.
        is_shown: False shows nothing.
    """

    def __init__(self, experiment: Experiment, label: str, is_shown: bool) -> None:
        self.experiment = experiment
        self.label = label
        self._is_shown = is_shown
        self._is_terminal = is_shown and sys.stderr.isatty()
        self._live: Live | None = None
        self._validation: float | None = None
        self._is_told = False  # that training is over; a last checkpoint of several roles may be saved in two goes
        now = time.perf_counter()
        self._next = now + (RENEW_SECONDS if self._is_terminal else PLAIN_SECONDS)
        self._last_line = now
        self._origin: tuple[float, list[float], bool] | None = None

    def __enter__(self) -> Progress:
        if self._is_terminal:
            self._live = Live()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the display away; nothing is shown from here on. May be called from a signal handler."""
        self._is_shown = False
        live, self._live = self._live, None
        if live is not None:
            # A handler may have struck in the middle of a renewal; an untidy line is no reason to fail.
            with contextlib.suppress(Exception):
                live.close()

    def update(self, event: Event) -> None:
        """Take note of an event, and renew the display when it is time."""
        if not self._is_shown:
            return
        now = time.perf_counter()
        kind = type(event)
        if kind is Validated:
            assert isinstance(event, Validated)
            self._validation = event.mean_return
            if not self._is_terminal:
                self._next = min(self._next, max(now, self._last_line + PLAIN_SECONDS_AFTER_VALIDATION))
        elif kind is CheckpointSaved:
            self._tell_last_episodes()
        elif isinstance(event, RoleRestarted | CrewChanged):
            self._tell(event)
        if now >= self._next:
            self._renew(now)

    def _renew(self, now: float) -> None:
        session = self.experiment.session
        if session is None:
            return
        status = self._read(session, now)
        if self._live is not None:
            self._live.show(self._lines(status))
        else:
            parts = [status.steps(), status.returns(), status.speeds(), status.left()]
            if len(session.tracker.roles) > 1:  # say too how they get on with each other
                parts += [status.delays(), bottleneck(status.shares) or ""]
            print("  ".join(part for part in parts if part), file=sys.stderr)
        self._last_line = now
        done = time.perf_counter()
        rest = RENEW_SECONDS if self._is_terminal else PLAIN_SECONDS
        self._next = done + max(rest, COST_FACTOR * (done - now))

    def _tell(self, event: RoleRestarted | CrewChanged) -> None:
        """One line for what happened to the roles, which stays."""
        session = self.experiment.session
        if isinstance(event, CrewChanged):
            line = f"{event.num_workers} workers: {event.why}"
        else:
            tallies = {} if session is None else session.control.tallies
            counts = [
                f"{name.removeprefix('restarts.')} {count}"
                for name, count in tallies.items()
                if name.startswith("restarts.")
            ]
            line = f"restarted {event.role} (life {event.incarnation}): {event.message}; restarts: {', '.join(counts)}"
        if self._live is not None:
            self._live.say(line)
        else:
            print(line, file=sys.stderr)

    def _tell_last_episodes(self) -> None:
        """Training is over and the held-out episodes are next; on a slow environment that takes a while."""
        session = self.experiment.session
        if self._is_told or session is None or session.stop_reason in (None, "interrupted"):
            return
        self._is_told = True
        line = f"training is over; playing {self.experiment.config.evaluation.final_episodes} held-out episodes"
        if self._live is not None:
            from rich.text import Text

            self._live.show(Text(line))
        else:
            print(line, file=sys.stderr)
        self._next = float("inf")

    def _read(self, session: Session, now: float) -> Status:
        tracker, counters, stop = session.tracker, session.control.counters, session.config.stop
        env_steps_per_second, updates_per_second = tracker.rates()
        limits = [
            (float(counters.num_env_steps), stop.max_env_steps),
            (float(counters.num_updates), stop.max_updates),
            (tracker.train_seconds, stop.max_seconds),
        ]
        done = [value for value, limit in limits if limit is not None]
        asked = [float(limit) for _, limit in limits if limit is not None]
        return Status(
            num_env_steps=counters.num_env_steps,
            num_frames=counters.num_frames,
            max_env_steps=stop.max_env_steps,
            num_updates=counters.num_updates,
            mean_return=tracker.mean_return(),
            validation=self._validation,
            best_validation=session.schedule.best_return,
            target=session.target_return,
            env_steps_per_second=env_steps_per_second,
            updates_per_second=updates_per_second,
            ratio_asked=session.config.pace.samples_per_insert,
            ratio_measured=tracker.samples_per_insert,
            epsilon=tracker.metrics.get("epsilon"),
            fraction=max((min(value / limit, 1.0) for value, limit in zip(done, asked, strict=True)), default=0.0),
            seconds_left=self._seconds_left(now, done, asked, counters.num_updates > 0),
            shares=tracker.time_shares(),
            lags={name: histogram.numbers() for name, histogram in tracker.lags.items()},
        )

    def _seconds_left(self, now: float, done: list[float], asked: list[float], is_learning: bool) -> float | None:
        """Until the nearest limit, at the pace since learning began (validations included)."""
        if self._origin is None or (is_learning and not self._origin[2]):
            self._origin = (now, done, is_learning)
            return None
        since, before, _ = self._origin
        left = [
            (now - since) * (limit - value) / (value - start)
            for value, start, limit in zip(done, before, asked, strict=True)
            if value > start
        ]
        return max(min(left), 0.0) if left else None

    def _lines(self, status: Status) -> Text:
        from rich.text import Text

        filled = round(status.fraction * BAR_WIDTH)
        return Text.assemble(
            (f"{self.label} ", "bold"),
            ("━" * filled, "cyan"),
            ("━" * (BAR_WIDTH - filled), "bright_black"),
            f" {status.fraction:4.0%}  {status.left()}\n",
            f"  {status.returns()}\n",
            f"  {status.steps()}  {status.speeds()}\n",
            f"  {status.times()}\n",
            f"  {bottleneck(status.shares) or ''}",
            f"\n  {status.delays()}" if status.lags else "",
            no_wrap=True,
            overflow="ellipsis",
        )


class Live:
    """A few lines at the bottom of the terminal that replace themselves."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live as RichLive
        from rich.text import Text

        # No refresh thread: it would take turns with training for the interpreter.
        console = Console(stderr=True, highlight=False)
        self._live = RichLive(Text("starting"), console=console, auto_refresh=False, transient=True)
        self._live.start()

    def show(self, text: Text) -> None:
        """Replace what is shown."""
        self._live.update(text, refresh=True)

    def say(self, line: str) -> None:
        """Print a line above, where it stays."""
        self._live.console.print(line, markup=False)

    def close(self) -> None:
        """Take the lines away."""
        self._live.stop()


def clock(seconds: float) -> str:
    """12 s as 0:12, longer as 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
