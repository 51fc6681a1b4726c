"""Session: consumes a strategy's events and does for every strategy alike what a strategy never does itself.

Metrics, validation and checkpoint schedules, stop rule, the user's wishes while it runs. At most one of validation and
drain is asked for at a time, validation first, so the order of things at one env step is always the same. Where calls
run beside each other, a run ends the other way round: drain, then the snapshot of that very cut is validated. Floor 6.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from qfleet.checkpoint import CheckpointStore, Manifest
from qfleet.engines.base import Engine, Future
from qfleet.errors import CallFailed, DivergenceError, QfleetError, RestartsExhausted, RoleDied, ValueLost
from qfleet.metrics import MetricsWriter, Record
from qfleet.networks.flat import vector_sha256
from qfleet.notices import Notices
from qfleet.remote_logs import open_remote_logs
from qfleet.roles.blueprint import Blueprint
from qfleet.run_config import RunConfig
from qfleet.schedule import Moment, Schedule, has_reached, limit_met, target_return
from qfleet.steering import Steering
from qfleet.storage import write_file
from qfleet.strategies.base import (
    Control,
    CrewChanged,
    Drained,
    Event,
    Gradient,
    RoleRestarted,
    Rollout,
    Saved,
    SnapshotPublished,
    Strategy,
    Update,
)
from qfleet.tracker import make_tracker
from qfleet.types import ParamSnapshot
from qfleet.validation import Validated, Validation

TRACEBACK_NAME = "logs/failure.txt"


@dataclass(frozen=True, slots=True)
class CheckpointSaved(Event):
    """A checkpoint is committed."""

    manifest: Path


@dataclass(frozen=True, slots=True)
class Logged(Event):
    """A record went to metrics.jsonl."""

    record: Record


class Session:
    """One run, from the first event to the last checkpoint.

    Args:
        config: the complete configuration.
        blueprint: the plan for the roles.
        engine: where they live.
        strategy: the generator function.
        run_dir: where everything goes.
        manifest: the checkpoint to continue from, or None.
        evaluation_blueprints: what to evaluate on, by name; None takes the blueprint's own environment.

    Attributes:
        stop_reason: why the run ended: "reached", "max_env_steps", "max_updates", "max_seconds", "interrupted" or
            "failed".
    """

    def __init__(
        self,
        config: RunConfig,
        blueprint: Blueprint,
        engine: Engine,
        strategy: Strategy,
        run_dir: Path,
        manifest: Manifest | None,
        evaluation_blueprints: Mapping[str, Blueprint] | None = None,
    ) -> None:
        self.config = config
        self.blueprint = blueprint
        self.engine = engine
        self.strategy = strategy
        self.run_dir = run_dir
        self.store = CheckpointStore(run_dir / "checkpoints", config.checkpoint.keep)
        self.control = Control(checkpoint_folder=str(self.store.folder.absolute()))
        self.control.counters.frames_per_step = blueprint.spec.frames_per_step
        self.tracker = make_tracker(self.control.counters, config.pace.min_transitions, engine)
        self.schedule = Schedule(
            config.evaluation.every_env_steps, config.checkpoint.every_env_steps, config.logging.every_env_steps
        )
        self.stop_reason: str | None = None
        self.target_return = target_return(config, blueprint.spec)
        self.last_checkpoint: Path | None = None
        self._interrupted = False
        self._saved_moment: tuple[int, ...] | None = None
        self._cut: Drained | None = None
        self._is_last_asked = False
        self._last_snapshot: Future | None = None
        self._saved = self._restore(manifest) if manifest is not None else None
        self.steering = Steering(run_dir)
        self.notices = Notices(engine, config)
        self.metrics = MetricsWriter(
            run_dir,
            tensorboard=config.logging.tensorboard,
            offset=self.schedule.metrics_offset,
            resumed_at=None if manifest is None else self.control.counters.num_env_steps,
            remote=open_remote_logs(config, run_dir),
        )
        blueprints = {"": blueprint} if evaluation_blueprints is None else evaluation_blueprints
        self.validation = Validation(config, blueprints, engine, run_dir, self.control, self.schedule, self.metrics)

    def interrupt(self) -> None:
        """Save at the next opportunity and stop; safe to call from a signal handler."""
        self._interrupted = True

    def stream(self) -> Iterator[Event]:
        """Every event of the strategy and the session's own, as they happen, until the run stops.

        Raises:
            DivergenceError: naming the update, the batch's range and the last good checkpoint.
            RestartsExhausted: naming the checkpoint that was saved because of it, or the last good one.
            QfleetError: what a role raised, if it is one of ours (EnvError, CheckpointError).
            CallFailed: a role failed otherwise; nothing that was saved is lost.
        """
        events = self.strategy(self.engine, self.blueprint, self.config.strategy, self.control, self._saved)
        self.tracker.start_clock()
        try:
            if self._plan():
                for event in events:
                    if isinstance(event, Rollout | Update | Gradient):
                        self.tracker.add(event.receipt, event.role)
                    yield event
                    yield from self._react(event)
                    if not self._plan():
                        break
            yield from self._conclude()
        except QfleetError as error:
            final = self._final_error(error)
            if final is error:
                raise
            raise final from error
        finally:
            self.tracker.stop_clock()
            close = getattr(events, "close", None)
            if close is not None:
                close()
            self.metrics.close()

    def parameters_sha256(self) -> str | None:
        """SHA-256 of the flat parameter vector after the last update; None if no snapshot was taken of that moment."""
        if self.schedule.validated_version != self.control.counters.num_updates:
            return None
        if self._last_snapshot is None:  # a finished run, resumed
            return self.schedule.parameters_sha256
        try:
            snapshot = self.engine.payload(self._last_snapshot)
        except (RoleDied, ValueLost):  # it went with the machine that held it
            return None
        assert isinstance(snapshot, ParamSnapshot)
        return vector_sha256(snapshot.vector)

    def _react(self, event: Event) -> Iterator[Event]:
        """What the session does after an event of the strategy's."""
        if isinstance(event, SnapshotPublished):
            yield from self._on_snapshot(event)
        elif isinstance(event, Drained):
            yield from self._on_drained(event)
        elif isinstance(event, RoleRestarted | CrewChanged):
            self._note(event)
        if self.validation.is_busy:
            yield from self._judge(self.validation.poll(0.0))
        if self.control.counters.num_env_steps >= self.schedule.next_log:
            yield self._log("train")
        wanted = self.steering.poll()
        if wanted is not None:
            self.control.num_workers = wanted

    def _plan(self) -> bool:
        """Ask the strategy for the next validation or drain, if one is due; False once the run is over."""
        control, schedule, counters = self.control, self.schedule, self.control.counters
        if control.failure is not None and self.stop_reason != "failed":
            self.stop_reason = "failed"
            control.snapshot_wanted, control.is_ending = False, True
        if control.snapshot_wanted or control.drain_tag is not None:
            return True
        if self.stop_reason is None:
            if self._interrupted:
                self.stop_reason = "interrupted"
            else:
                self.stop_reason = limit_met(self.config.stop, counters, self.tracker.train_seconds)
        control.is_ending = self.stop_reason is not None
        if self.stop_reason is None:
            if counters.num_env_steps >= schedule.next_evaluation:
                control.snapshot_wanted = True
                if self.engine.is_concurrent:  # it may be a while until it is there; one is enough
                    self._put_off_evaluation()
            elif counters.num_env_steps >= schedule.next_checkpoint or self.notices.is_due():
                self._ask_drain()
            return True
        is_validated = not self._is_last_validation_due()
        if not is_validated and not self.engine.is_concurrent:
            control.snapshot_wanted = True
        elif self._saved_moment == self._moment() and (is_validated or not self.engine.is_concurrent):
            return False
        else:
            self._ask_drain()
        return True

    def _put_off_evaluation(self) -> None:
        every = self.config.evaluation.every_env_steps
        self.schedule.next_evaluation = (self.control.counters.num_env_steps // every + 1) * every

    def _ask_drain(self) -> None:
        self.control.drain_tag = f"{self.schedule.num_checkpoints:05d}"

    def _is_last_validation_due(self) -> bool:
        """Whether the run is over and its last parameters are still to be validated."""
        if self.stop_reason in (None, "interrupted", "reached", "failed") or self._is_last_asked:
            return False
        return self.schedule.validated_version != self.control.counters.num_updates

    def _moment(self) -> tuple[int, ...]:
        """What a checkpoint is of. Beside training a validation belongs to none: the last manifest is written again."""
        num_evaluations = 0 if self.engine.is_concurrent else self.schedule.num_evaluations
        return (*dataclasses.astuple(self.control.counters), num_evaluations)

    def _on_snapshot(self, event: SnapshotPublished) -> Iterator[Event]:
        if self.control.failure is not None:
            return
        schedule, counters, tracker = self.schedule, self.control.counters, self.tracker
        is_beside = self.engine.is_concurrent
        if not is_beside:
            tracker.stop_clock()  # validation, and keeping its best policy, is no training time
        is_of_now = not is_beside or self._is_last_asked
        self._last_snapshot = event.future
        schedule.validated_version = counters.num_updates if is_of_now else event.version
        self._put_off_evaluation()
        self.validation.take(event, Moment(counters.num_env_steps, counters.num_updates, tracker.train_seconds))
        if not is_beside:
            results = list(self.validation.poll(None))
            tracker.start_clock()
            yield from self._judge(results)
        elif self._is_last_asked:
            self.control.drain_tag = None

    def _judge(self, results: Iterable[Event]) -> Iterator[Event]:
        for event in results:
            if isinstance(event, RoleRestarted):
                self._note(event)
            if isinstance(event, Validated) and event.is_reached:
                if self.schedule.seconds_until_known is None:
                    self.schedule.seconds_until_known = self.tracker.train_seconds
                if self.stop_reason not in ("interrupted", "failed"):
                    self.stop_reason = "reached"
            yield event

    def _on_drained(self, event: Drained) -> Iterator[Event]:
        control = self.control
        self._cut = event
        self.schedule.num_checkpoints += 1
        every = self.config.checkpoint.every_env_steps
        self.schedule.next_checkpoint = (control.counters.num_env_steps // every + 1) * every
        yield from self._commit(event)
        if self.stop_reason is None:
            self.notices.move()
        if self.engine.is_concurrent and self._is_last_validation_due():
            # Still drained, so that the snapshot is of this cut; nothing trains any more.
            self._is_last_asked = control.snapshot_wanted = True
        else:
            control.drain_tag = None

    def _commit(self, cut: Drained) -> Iterator[Event]:
        """Write the manifest of a cut; once more, where the validation of that cut has ended since.

        Where nothing is computed there is nothing to go on from, and none is written.
        """
        control, schedule = self.control, self.schedule
        self._saved_moment = self._moment()
        if self.config.engine.computes_nothing:
            return
        schedule.metrics_offset = self.metrics.offset
        schedule.parameters_sha256 = self.parameters_sha256()
        under_way = self.validation.job
        if under_way is not None:  # a resumed run takes that validation anew
            schedule = dataclasses.replace(
                schedule,
                next_evaluation=under_way.moment.num_env_steps,
                num_evaluations=under_way.index - 1,
                validated_version=-1,
            )
        manifest = Manifest(
            tag=cut.tag,
            counters=dataclasses.asdict(control.counters),
            session={
                "schedule": dataclasses.asdict(schedule),
                "tracker": self.tracker.state_dict(),
                "tallies": dict(control.tallies),
            },
            strategy=cut.state,
            engine=self.engine.state_dict(),
            roles=cut.files,
            spec=dataclasses.asdict(self.blueprint.spec),
            config_sha256=self.config.learning_sha256(),
        )
        self.last_checkpoint = self.store.commit(manifest)
        control.saved_files, control.saved_tag = cut.files, cut.tag
        yield CheckpointSaved(self.last_checkpoint)

    def _conclude(self) -> Iterator[Event]:
        """After the last event: wait for the validation under way, and say why the run failed."""
        self.tracker.stop_clock()
        if self.validation.is_busy and self.stop_reason not in ("interrupted", "reached", "failed"):
            yield from self._judge(self.validation.poll(None))
            if self._cut is not None:
                yield from self._commit(self._cut)
        if self.control.failure is not None:
            raise self.control.failure

    def _final_error(self, error: QfleetError) -> QfleetError:
        """What to tell the user: the cause, if it is one of ours, and the checkpoint to go on from."""
        failure = self.control.failure
        where = f"last good checkpoint: {self.last_checkpoint or 'none'}"
        if failure is not None:
            self._keep_traceback(failure)
            if failure is error and self.stop_reason == "failed":
                where = f"saved as {self.last_checkpoint}"
            elif failure is not error:
                where = f"it could not be saved then ({error}); {where}"
            failure.args = (f"{failure}; {where}; go on with: qfleet train --resume {self.run_dir}",)
            return failure
        if isinstance(error, RestartsExhausted):
            self._keep_traceback(error)
            error.args = (f"{error}; {where}",)
            return error
        cause = error.__cause__
        if not isinstance(error, CallFailed) or not isinstance(cause, QfleetError):
            return error
        if isinstance(cause, DivergenceError):
            return DivergenceError(f"{cause}; {where}")
        error.__cause__ = None  # it is the other way round from here on: no circle
        return cause

    def _keep_traceback(self, failure: QfleetError) -> None:
        text = getattr(failure, "remote_traceback", "")
        if text:
            write_file(self.run_dir, TRACEBACK_NAME, text.encode())

    def _log(self, kind: str) -> Event:
        counters = self.control.counters
        every = self.config.logging.every_env_steps
        self.schedule.next_log = (counters.num_env_steps // every + 1) * every
        record = {**self.tracker.record(), **self.control.tallies}
        self.metrics.write(kind, counters.num_env_steps, record, self.tracker.lags)
        return Logged({"num_env_steps": counters.num_env_steps, **record})

    def _note(self, event: RoleRestarted | CrewChanged) -> None:
        """A record of what happened to the roles."""
        values: Record = {"event": type(event).__name__, **dataclasses.asdict(event)}
        self.metrics.write("event", self.control.counters.num_env_steps, values)

    def _restore(self, manifest: Manifest) -> Saved:
        schedule, tracker = manifest.session["schedule"], manifest.session["tracker"]
        tallies = manifest.session.get("tallies", {})
        assert isinstance(schedule, dict)
        assert isinstance(tracker, dict)
        assert isinstance(tallies, dict)
        self.schedule = Schedule(**schedule)
        if has_reached(self.schedule, self.target_return):
            self.stop_reason = "reached"
        else:  # a resumed run may aim higher than before
            self.schedule.env_steps_to_threshold = self.schedule.seconds_to_threshold = None
            self.schedule.seconds_until_known = None
        self.tracker.load_state_dict(tracker)
        for name, value in manifest.counters.items():
            setattr(self.control.counters, name, value)
        self.control.tallies.update(tallies)
        self.engine.load_state_dict(manifest.engine)
        self.control.saved_files, self.control.saved_tag = manifest.roles, manifest.tag
        self.last_checkpoint = self.store.folder / f"manifest-{manifest.tag}.json"
        self._saved_moment = self._moment()
        self.store.collect_garbage()  # what a kill between commit and cleaning up has left
        return Saved(manifest.tag, manifest.roles, manifest.strategy)
