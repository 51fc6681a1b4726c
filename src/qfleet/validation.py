"""Validation: greedy episodes on published snapshots, one snapshot at a time, and what follows from them.

    take(snapshot) -> episodes on each environment -> (confirmation on fresh episodes) -> best policy, target, Validated

waits for                    unblocked by
a call at the evaluator      its answer: inline plays it inside `poll(None)`; elsewhere `poll(0)` only looks
a snapshot that came later   the validation under way; a newer one takes its place

The evaluator is called on its own lane and once at a time, so that it never changes the order of training. Floor 6.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from qfleet.engines.base import Engine, Future
from qfleet.errors import RestartsExhausted, RoleDied, ValueLost
from qfleet.metrics import MetricsWriter
from qfleet.policy import save_policy
from qfleet.roles.blueprint import Blueprint
from qfleet.roles.evaluator import EvaluatorPool
from qfleet.run_config import RunConfig
from qfleet.schedule import Moment, Schedule, lower_bound, target_return
from qfleet.seeding import derive_seed
from qfleet.strategies.base import Control, Event, RoleRestarted, SnapshotPublished
from qfleet.types import ParamSnapshot, Receipt

LANE = "evaluation"
MAX_RESTARTS = 3  # of the evaluator, in one process


@dataclass(frozen=True, slots=True)
class Validated(Event):
    """Greedy validation episodes were played on a snapshot.

    Attributes:
        version: of the snapshot.
        mean_return, returns: over all of the strategy's environments.
        is_best: whether it became the best policy.
        is_reached: whether the target is confirmed.
        num_env_steps: when the snapshot was taken.
        by_name: mean returns by environment, where the strategy has several; "personal_" + name is a client's own
            snapshot on its own environment.
    """

    version: int
    mean_return: float
    returns: list[float]
    is_best: bool
    is_reached: bool = False
    num_env_steps: int = 0
    by_name: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Call:
    """Episodes to be played: `snapshot` on environment `env`; `label` is where the returns go."""

    label: str
    env: str
    snapshot: Future | ParamSnapshot
    num_episodes: int
    seed: int


@dataclass(slots=True)
class Job:
    """A snapshot's validation."""

    event: SnapshotPublished
    moment: Moment
    index: int = 0
    is_confirming: bool = False
    calls: deque[_Call] = field(default_factory=deque)
    returns: dict[str, list[float]] = field(default_factory=dict)


class Validation:
    """Plays validations, keeps the best policy, and says when the target is reached.

    Args:
        config: the complete configuration.
        blueprints: what to evaluate on, by name: `evaluation_blueprints` of the strategy's module, else
            {"": blueprint}. Each is played with all of `evaluation.episodes`; the validation return is the mean over
            all of them. Where a client keeps parameters of its own, its own snapshot is what counts there, and is kept
            as best/<name> beside the global one.
        engine, run_dir, control, schedule, metrics: the session's.
    """

    def __init__(
        self,
        config: RunConfig,
        blueprints: Mapping[str, Blueprint],
        engine: Engine,
        run_dir: Path,
        control: Control,
        schedule: Schedule,
        metrics: MetricsWriter,
    ) -> None:
        self.config = config
        self.blueprints = dict(blueprints)
        self.engine = engine
        self.run_dir = run_dir
        self.control = control
        self.schedule = schedule
        self.metrics = metrics
        self.spec = next(iter(self.blueprints.values())).spec
        self.target_return = target_return(config, self.spec)
        self.role = engine.spawn("evaluator", EvaluatorPool, self.blueprints, config.evaluation)
        self.job: Job | None = None
        self._waiting: Job | None = None
        self._future: Future | None = None
        self._num_restarts = 0

    @property
    def is_busy(self) -> bool:
        """Whether a validation is under way."""
        return self.job is not None

    def take(self, event: SnapshotPublished, moment: Moment) -> None:
        """Validate a snapshot: now, or after the one under way unless a newer one comes before that."""
        job = Job(event, moment)
        if self.job is None:
            self._begin(job)
        else:
            self._waiting = job

    def drop(self) -> None:
        """Forget what is under way."""
        self.job = self._waiting = self._future = None

    def poll(self, timeout: float | None) -> Iterator[Event]:
        """What has come in: Validated, and RoleRestarted of the evaluator.

        Args:
            timeout: 0 looks and goes on; None waits until no validation is left.

        Raises:
            QfleetError: what the evaluator raised. A death past its restart budget becomes `control.failure` instead.
        """
        while self.job is not None:
            future = self.engine.wait(timeout, lane=LANE)
            if future is None:
                return
            if future is not self._future:
                continue  # of a former life of the evaluator
            try:
                receipt = self.engine.result(future)
            except RoleDied as error:
                try:
                    yield self._respawn(error)
                    self._submit(self.job.calls[0])
                except RestartsExhausted as failure:
                    self.control.failure = failure
                    self.drop()
                continue
            except ValueLost:  # the snapshot is gone with its maker; there will be others
                self.control.count("validations_lost")
                self._next()
                continue
            yield from self._received(self.job, receipt)

    def play(
        self,
        snapshot: ParamSnapshot,
        num_episodes: int,
        *seed_names: str | int,
        personal: Mapping[str, ParamSnapshot] | None = None,
    ) -> dict[str, list[float]]:
        """Wait for complete episodes on every environment, seeded by name; their returns by environment.

        Args:
            snapshot: what plays, but where `personal` has another one of the environment's name.
            num_episodes: on each environment.
            seed_names: of the episodes.
            personal: what plays instead, by environment.

        Raises:
            RestartsExhausted: the evaluator died too often.
        """
        self.drop()
        returns: dict[str, list[float]] = {}
        for call in self._calls(snapshot, num_episodes, seed_names, personal):
            while call.label not in returns:
                self._submit(call)
                done = None
                while done is None or done is not self._future:
                    done = self.engine.wait(lane=LANE)
                try:
                    returns[call.label] = self.engine.result(done).episode_returns
                except RoleDied as error:
                    self._respawn(error)
        return returns

    def _calls(
        self,
        snapshot: Future | ParamSnapshot,
        num_episodes: int,
        seed_names: tuple[str | int, ...],
        personal: Mapping[str, Future] | Mapping[str, ParamSnapshot] | None = None,
    ) -> Iterator[_Call]:
        for name in self.blueprints:
            names = (*seed_names, name) if name else seed_names
            playing = (personal or {}).get(name, snapshot)
            yield _Call(name, name, playing, num_episodes, derive_seed(self.config.seed, *names))

    def _begin(self, job: Job) -> None:
        self.schedule.num_evaluations += 1
        job.index = self.schedule.num_evaluations
        num_episodes, seed_names = self.config.evaluation.episodes, ("validation", job.index)
        job.calls.extend(self._calls(job.event.future, num_episodes, seed_names))
        for name, snapshot in job.event.personal.items():
            if name in self.blueprints:  # the same episodes as the global one's on that environment
                seed = derive_seed(self.config.seed, *seed_names, name)
                job.calls.append(_Call(f"personal_{name}", name, snapshot, num_episodes, seed))
        self.job = job
        self._submit(job.calls[0])

    def _submit(self, call: _Call) -> None:
        args = (call.env, call.snapshot, call.num_episodes, call.seed)
        self._future = self.engine.submit(self.role, "evaluate", *args, lane=LANE)

    def _next(self) -> None:
        """Go on with the snapshot that waits, if one does."""
        self.job, waiting, self._waiting = None, self._waiting, None
        if waiting is not None:
            self._begin(waiting)

    def _received(self, job: Job, receipt: Receipt) -> Iterator[Event]:
        job.returns[job.calls.popleft().label] = receipt.episode_returns
        stop = self.config.stop
        if not job.calls and not job.is_confirming and self._is_at_target(job):
            job.is_confirming = True
            if stop.confirm_episodes > self.config.evaluation.episodes:
                seed_names = ("confirmation", job.index)
                calls = self._calls(job.event.future, stop.confirm_episodes, seed_names, job.event.personal)
                job.calls.extend(dataclasses.replace(call, label=self._judged(job, call.env)) for call in calls)
        if job.calls:
            self._submit(job.calls[0])
            return
        validated = self._conclude(job)
        self._next()
        yield validated

    def _is_at_target(self, job: Job) -> bool:
        return self.target_return is not None and float(np.mean(self._returns(job))) >= self.target_return

    def _returns(self, job: Job) -> list[float]:
        return [value for name in self.blueprints for value in job.returns[self._judged(job, name)]]

    def _judged(self, job: Job, name: str) -> str:
        """Whose returns count on an environment: those of the client's own snapshot, where it keeps one."""
        return f"personal_{name}" if name in job.event.personal else name

    def _conclude(self, job: Job) -> Validated:
        schedule, moment, returns = self.schedule, job.moment, self._returns(job)
        target = self.target_return
        reached = target is not None and lower_bound(returns, self.config.stop.confirm_stderr) >= target
        mean_return = float(np.mean(returns))
        is_best = reached or schedule.best_return is None or mean_return > schedule.best_return
        if is_best:
            is_best = self._keep(job, mean_return, len(returns))
        if reached and schedule.env_steps_to_threshold is None:
            schedule.env_steps_to_threshold = moment.num_env_steps
            schedule.seconds_to_threshold = moment.train_seconds
            schedule.reached_return = target
        by_name = {name: float(np.mean(values)) for name, values in job.returns.items() if name}
        schedule.by_name = by_name
        values: dict[str, float | int | str | None] = {
            "num_updates": moment.num_updates,
            "train_seconds": round(moment.train_seconds, 4),
            "mean_return": mean_return,
            "std_return": float(np.std(returns)),
            "min_return": min(returns),
            "max_return": max(returns),
            "episodes": len(returns),
            **{f"return_{name}": value for name, value in by_name.items()},
        }
        self.metrics.write("evaluation", moment.num_env_steps, values)
        version, num_env_steps = job.event.version, moment.num_env_steps
        return Validated(version, mean_return, returns, is_best, reached, num_env_steps, by_name)

    def _keep(self, job: Job, mean_return: float, num_episodes: int) -> bool:
        """Save a snapshot, and the personal ones, as the best policy; False where one is gone with its maker."""
        best = self.run_dir / "best"
        futures = {best / name: future for name, future in job.event.personal.items() if name in self.blueprints}
        try:
            snapshots = {folder: self.engine.payload(future) for folder, future in futures.items()}
            snapshots[best] = self.engine.payload(job.event.future)
        except (RoleDied, ValueLost):
            self.control.count("validations_lost")
            return False
        facts = {"mean_return": mean_return, "episodes": num_episodes, "num_env_steps": job.moment.num_env_steps}
        for folder, snapshot in snapshots.items():
            assert isinstance(snapshot, ParamSnapshot)
            save_policy(folder, self.config, self.spec, snapshot, facts)
        self.schedule.best_return = mean_return
        return True

    def _respawn(self, error: RoleDied) -> RoleRestarted:
        if self._num_restarts >= MAX_RESTARTS:
            raise RestartsExhausted(
                f"{error.role} failed again after {self._num_restarts} restarts: {error}; evaluation needs it"
            ) from error
        self._num_restarts += 1
        self.control.count(f"restarts.{error.cause}")
        self.engine.respawn(self.role)
        return RoleRestarted(error.role, self.engine.incarnation(self.role), error.cause, str(error))
