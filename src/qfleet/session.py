"""Session: consumes a strategy's events and does for every strategy alike what a strategy never does itself.

Metrics, validation and checkpoint schedules, best policy, stop rule. At most one of validation and drain is asked for
at a time, validation first, so the order of things at one env step is always the same. Floor 6.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qfleet.checkpoint import CheckpointStore, Manifest
from qfleet.config import StopConfig
from qfleet.engines.base import Engine, Future
from qfleet.errors import CallFailed, DivergenceError, QfleetError
from qfleet.metrics import MetricsWriter
from qfleet.networks.flat import vector_sha256
from qfleet.policy import save_policy
from qfleet.recipe import RunConfig
from qfleet.roles.blueprint import Blueprint
from qfleet.roles.evaluator import Evaluator
from qfleet.seeding import derive_seed
from qfleet.strategies.base import (
    Control,
    Counters,
    Drained,
    Event,
    Rollout,
    Saved,
    SnapshotPublished,
    Strategy,
    Update,
)
from qfleet.tracker import Tracker
from qfleet.types import EnvSpec, ParamSnapshot


@dataclass(frozen=True, slots=True)
class Validated(Event):
    """Greedy validation episodes were played on a snapshot."""

    version: int
    mean_return: float
    returns: list[float]
    is_best: bool


@dataclass(frozen=True, slots=True)
class CheckpointSaved(Event):
    """A checkpoint is committed."""

    manifest: Path


@dataclass(frozen=True, slots=True)
class Logged(Event):
    """A record went to metrics.jsonl."""

    record: dict[str, float | int | None]


@dataclass(slots=True)
class Schedule:
    """The session's own small state; all of it goes into checkpoints."""

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
    parameters_sha256: str | None = None
    metrics_offset: int = 0


class Session:
    """One run, from the first event to the last checkpoint.

    Args:
        config: the complete configuration.
        blueprint: the plan for the roles.
        engine: where they live.
        strategy: the generator function.
        run_dir: where everything goes.
        manifest: the checkpoint to continue from, or None.

    Attributes:
        stop_reason: why the run ended: "reached", "max_env_steps", "max_updates", "max_seconds" or "interrupted".
    """

    def __init__(
        self,
        config: RunConfig,
        blueprint: Blueprint,
        engine: Engine,
        strategy: Strategy,
        run_dir: Path,
        manifest: Manifest | None,
    ) -> None:
        self.config = config
        self.blueprint = blueprint
        self.engine = engine
        self.strategy = strategy
        self.run_dir = run_dir
        self.store = CheckpointStore(run_dir / "checkpoints", config.checkpoint.keep)
        self.control = Control(checkpoint_folder=str(self.store.folder.absolute()))
        self.tracker = Tracker(self.control.counters, config.replay.min_transitions)
        self.schedule = Schedule(
            config.evaluation.every_env_steps, config.checkpoint.every_env_steps, config.logging.every_env_steps
        )
        self.stop_reason: str | None = None
        self.target_return = target_return(config, blueprint.spec)
        self.last_checkpoint: Path | None = None
        self._interrupted = False
        self._saved_moment: tuple[int, ...] | None = None
        self._last_snapshot: Future | None = None
        self._saved = self._restore(manifest) if manifest is not None else None
        self.metrics = MetricsWriter(
            run_dir,
            tensorboard=config.logging.tensorboard,
            offset=self.schedule.metrics_offset,
            resumed_at=None if manifest is None else self.control.counters.num_env_steps,
        )
        self.evaluator = engine.spawn("evaluator", Evaluator, blueprint, config.evaluation)

    def interrupt(self) -> None:
        """Save at the next opportunity and stop; safe to call from a signal handler."""
        self._interrupted = True

    def stream(self) -> Iterator[Event]:
        """Every event of the strategy and the session's own, as they happen, until the run stops.

        Raises:
            DivergenceError: naming the update, the batch's range and the last good checkpoint.
            QfleetError: what a role raised, if it is one of ours (EnvError, CheckpointError).
            CallFailed: a role failed otherwise; nothing that was saved is lost.
        """
        events = self.strategy(self.engine, self.blueprint, self.config.strategy, self.control, self._saved)
        handlers: dict[type[Event], Callable[..., Iterator[Event]]] = {
            SnapshotPublished: self._on_snapshot,
            Drained: self._on_drained,
        }
        tracker, schedule, counters = self.tracker, self.schedule, self.control.counters
        tracker.start_clock()
        try:
            if self._plan():
                for event in events:
                    if isinstance(event, Rollout | Update):
                        tracker.add(event.receipt)
                    yield event
                    handler = handlers.get(type(event))
                    if handler is not None:
                        yield from handler(event)
                    if counters.num_env_steps >= schedule.next_log:
                        yield self._log("train")
                    if not self._plan():
                        break
        except CallFailed as error:
            cause = error.__cause__
            if isinstance(cause, DivergenceError):
                raise DivergenceError(f"{cause}; last good checkpoint: {self.last_checkpoint or 'none'}") from error
            if isinstance(cause, QfleetError):
                error.__cause__ = None  # it is the other way round from here on: no circle
                raise cause from error
            raise
        finally:
            tracker.stop_clock()
            close = getattr(events, "close", None)
            if close is not None:
                close()
            self.metrics.close()

    def parameters_sha256(self) -> str | None:
        """SHA-256 of the flat parameter vector after the last update; None if the run was interrupted before that."""
        if self.schedule.validated_version != self.control.counters.num_updates:
            return None
        if self._last_snapshot is None:  # a finished run, resumed
            return self.schedule.parameters_sha256
        snapshot = self.engine.payload(self._last_snapshot)
        assert isinstance(snapshot, ParamSnapshot)
        return vector_sha256(snapshot.vector)

    def evaluate(self, snapshot: Future | ParamSnapshot, num_episodes: int, *seed_names: str | int) -> list[float]:
        """Greedy returns of complete episodes, seeded by name."""
        seed = derive_seed(self.config.seed, *seed_names)
        self.engine.submit(self.evaluator, "evaluate", snapshot, num_episodes, seed, lane="evaluation")
        done = self.engine.wait(lane="evaluation")
        assert done is not None
        return self.engine.result(done).episode_returns

    def _plan(self) -> bool:
        """Ask the strategy for the next validation or drain, if one is due; False once the run is over."""
        control, schedule, stop = self.control, self.schedule, self.config.stop
        if control.snapshot_wanted or control.drain_tag is not None:
            return True
        counters = control.counters
        if self.stop_reason is None:
            if self._interrupted:
                self.stop_reason = "interrupted"
            else:
                self.stop_reason = limit_met(stop, counters, self.tracker.train_seconds)
        is_over = self.stop_reason is not None
        control.is_ending = is_over
        validation_due = counters.num_env_steps >= schedule.next_evaluation
        if is_over and self.stop_reason not in ("interrupted", "reached"):
            validation_due = schedule.validated_version != counters.num_updates
        if validation_due and self.stop_reason not in ("interrupted", "reached"):
            control.snapshot_wanted = True
        elif is_over or counters.num_env_steps >= schedule.next_checkpoint:
            if is_over and self.last_checkpoint is not None and self._is_saved():
                return False
            control.drain_tag = f"{schedule.num_checkpoints:05d}"
        return True

    def _is_saved(self) -> bool:
        """Whether the newest checkpoint is of this very moment."""
        return self._saved_moment == self._moment()

    def _moment(self) -> tuple[int, ...]:
        return (*dataclasses.astuple(self.control.counters), self.schedule.num_evaluations)

    def _on_snapshot(self, event: SnapshotPublished) -> Iterator[Event]:
        self.tracker.stop_clock()  # validation, and keeping its best policy, is no training time
        config, schedule = self.config, self.schedule
        counters = self.control.counters
        self._last_snapshot = event.future
        schedule.num_evaluations += 1
        index = schedule.num_evaluations
        returns = self.evaluate(event.future, config.evaluation.episodes, "validation", index)
        reached = False
        if self.target_return is not None and np.mean(returns) >= self.target_return:
            if config.stop.confirm_episodes > len(returns):
                returns = self.evaluate(event.future, config.stop.confirm_episodes, "confirmation", index)
            reached = lower_bound(returns, config.stop.confirm_stderr) >= self.target_return
        mean_return = float(np.mean(returns))
        is_best = reached or schedule.best_return is None or mean_return > schedule.best_return
        if is_best:
            schedule.best_return = mean_return
            snapshot = self.engine.payload(event.future)
            assert isinstance(snapshot, ParamSnapshot)
            facts = {"mean_return": mean_return, "episodes": len(returns), "num_env_steps": counters.num_env_steps}
            save_policy(self.run_dir / "best", config, self.blueprint.spec, snapshot, facts)
        if reached and schedule.env_steps_to_threshold is None:
            schedule.env_steps_to_threshold = counters.num_env_steps
            schedule.seconds_to_threshold = self.tracker.train_seconds
            schedule.reached_return = self.target_return
        if reached:
            self.stop_reason = "reached"
        schedule.validated_version = counters.num_updates
        every = config.evaluation.every_env_steps
        schedule.next_evaluation = (counters.num_env_steps // every + 1) * every
        values: dict[str, float | int | None] = {
            "num_updates": counters.num_updates,
            "train_seconds": round(self.tracker.train_seconds, 4),
            "mean_return": mean_return,
            "std_return": float(np.std(returns)),
            "min_return": min(returns),
            "max_return": max(returns),
            "episodes": len(returns),
        }
        self.metrics.write("evaluation", counters.num_env_steps, values)
        self.tracker.start_clock()
        yield Validated(event.version, mean_return, returns, is_best)

    def _on_drained(self, event: Drained) -> Iterator[Event]:
        counters, schedule = self.control.counters, self.schedule
        schedule.num_checkpoints += 1
        schedule.metrics_offset = self.metrics.offset
        schedule.parameters_sha256 = self.parameters_sha256()
        every = self.config.checkpoint.every_env_steps
        schedule.next_checkpoint = (counters.num_env_steps // every + 1) * every
        manifest = Manifest(
            tag=event.tag,
            counters=dataclasses.asdict(counters),
            session={"schedule": dataclasses.asdict(schedule), "tracker": self.tracker.state_dict()},
            strategy=event.state,
            engine=self.engine.state_dict(),
            roles=event.files,
            spec=dataclasses.asdict(self.blueprint.spec),
            config_sha256=self.config.learning_sha256(),
        )
        self.last_checkpoint = self.store.commit(manifest)
        self.control.saved_files = event.files
        self.control.drain_tag = None
        self._saved_moment = self._moment()
        yield CheckpointSaved(self.last_checkpoint)

    def _log(self, kind: str) -> Event:
        counters = self.control.counters
        every = self.config.logging.every_env_steps
        self.schedule.next_log = (counters.num_env_steps // every + 1) * every
        record = self.tracker.record()
        self.metrics.write(kind, counters.num_env_steps, record)
        return Logged({"num_env_steps": counters.num_env_steps, **record})

    def _restore(self, manifest: Manifest) -> Saved:
        schedule, tracker = manifest.session["schedule"], manifest.session["tracker"]
        assert isinstance(schedule, dict)
        assert isinstance(tracker, dict)
        self.schedule = Schedule(**schedule)
        if has_reached(self.schedule, self.target_return):
            self.stop_reason = "reached"
        else:  # a resumed run may aim higher than before
            self.schedule.env_steps_to_threshold = self.schedule.seconds_to_threshold = None
        self.tracker.load_state_dict(tracker)
        for name, value in manifest.counters.items():
            setattr(self.control.counters, name, value)
        self.engine.load_state_dict(manifest.engine)
        self.control.saved_files = manifest.roles
        self.last_checkpoint = self.store.folder / f"manifest-{manifest.tag}.json"
        self._saved_moment = self._moment()
        self.store.collect_garbage()  # what a kill between commit and cleaning up has left
        return Saved(manifest.tag, manifest.roles, manifest.strategy)


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
