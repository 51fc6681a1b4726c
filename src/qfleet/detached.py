"""Detached: a run whose coordinator is an actor of a Ray cluster, so that it goes on when the one who began it leaves.

    begin            Experiment -> a Coordinator on the cluster, RUN_DIR/detached.json
    DetachedRun      the same run seen from afar: its events, its counters, its end

    waits for                        unblocked by
    the coordinator's run            nobody: it is a thread of the actor's own
    DetachedRun.stream               the next record, every POLL_SECONDS; the actor's end, told by detached.json

The coordinator writes detached.json, so a reader knows that both see the same run directory. Floor 6.
"""

from __future__ import annotations

import copy
import json
import os
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from qfleet.checkpoint import CheckpointStore
from qfleet.config import StopConfig
from qfleet.errors import MissingExtraError, QfleetError, UsageError
from qfleet.experiment import Experiment, Finished
from qfleet.machine import DETACHED_NAME, RunLock
from qfleet.recipe import RunConfig, change_config, read_config
from qfleet.storage import write_file
from qfleet.strategies.base import Control, Drained, Event, Gradient, Rollout, SnapshotPublished, Update
from qfleet.tracker import Tracker

NAMESPACE = "qfleet"
POLL_SECONDS = 0.5
START_SECONDS = 120.0
LOST_SECONDS = 30.0
MAX_EVENTS = 1000
# Events that come by the thousand, or whose futures mean nothing elsewhere.
STAY = (Rollout, Gradient, Update, SnapshotPublished, Drained)


@dataclass(frozen=True, slots=True)
class Contact:
    """RUN_DIR/detached.json: where the coordinator is, and how it ended.

    Attributes:
        address: of the cluster, as "ip:port".
        namespace, actor: the coordinator's, in Ray.
        started: when, in ISO 8601.
        exit_code: None while it runs.
        error: the line that it failed with, None if it did not.
        summary: of a run that ended, complete or interrupted.
    """

    address: str
    namespace: str
    actor: str
    started: str
    exit_code: int | None = None
    error: str | None = None
    summary: dict[str, object] | None = None


@dataclass(slots=True)
class View:
    """What a display reads of a Session."""

    config: RunConfig
    control: Control
    schedule: object
    tracker: Tracker
    target_return: float | None
    stop_reason: str | None


@dataclass(slots=True)
class Record:
    """A coordinator's state, as it travels.

    Attributes:
        view: of the session, None before there is one.
        events: the newest ones, numbered from 0.
        warnings: the experiment's.
    """

    view: View | None = None
    events: list[tuple[int, Event]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


class Failed(QfleetError):
    """The run failed over there; the line is its own."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Coordinator:
    """The actor: an Experiment in a thread of its own.

    Args:
        packed: the pickled Experiment, whose run directory is absolute.
        contact: what to write into detached.json.
    """

    def __init__(self, packed: bytes, contact: dict[str, Any]) -> None:
        from ray import cloudpickle

        self.contact = Contact(**contact)
        self._failure: str | None = None
        try:
            self.experiment: Experiment = cloudpickle.loads(packed)
        except Exception as error:
            self._failure = f"{type(error).__name__}: {error}"
        self._events: deque[tuple[int, Event]] = deque(maxlen=MAX_EVENTS)
        self._num_events = 0
        self._next_record = 0.0
        self._packed_record = cloudpickle.dumps(Record())

    def begin(self) -> str | None:
        """Write detached.json and start; returns why not, None if all is well."""
        if self._failure is not None:
            return self._failure
        experiment = self.experiment
        try:
            experiment.is_detached = True
            experiment.check_run_dir()
            RunLock(experiment.run_dir).release()  # another one's detached.json must not be overwritten
            _write(experiment.run_dir, self.contact)
            _send_output_to(experiment.run_dir / "logs" / "coordinator.log")
        except QfleetError as error:
            return str(error)
        threading.Thread(target=self._run, name="coordinator").start()
        return None

    def record(self) -> bytes:
        """The newest Record, pickled."""
        return self._packed_record

    def stop(self) -> None:
        """Save and stop at the next opportunity."""
        self.experiment.interrupt()

    def _run(self) -> None:
        """The run, from its first event to detached.json's last word; then the process ends."""
        code, message, summary = 1, None, None
        try:
            for event in self.experiment.stream():
                self._note(event)
                if isinstance(event, Finished):
                    summary = event.summary
            code = 130 if summary is not None and summary["stop_reason"] == "interrupted" else 0
        except QfleetError as error:
            code, message = error.exit_code, " ".join(str(error).split())
            _send_output_to(self.experiment.run_dir / "logs" / "coordinator.log")  # the folder may have been removed
            traceback.print_exc()
        except BaseException as error:
            message = f"internal: {type(error).__name__}: {error}; see logs/coordinator.log in the run directory"
            traceback.print_exc()
        try:
            ended = Contact(
                **{**asdict(self.contact), "exit_code": code, "error": message, "summary": summary},
            )
            _write(self.experiment.run_dir, ended)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)  # a detached actor would stay for ever

    def _note(self, event: Event) -> None:
        from ray import cloudpickle

        if not isinstance(event, (*STAY, Finished)):
            self._events.append((self._num_events, event))
            self._num_events += 1
        now = time.monotonic()
        if now < self._next_record:
            return
        self._next_record = now + POLL_SECONDS
        record = Record(_view(self.experiment), list(self._events), list(self.experiment.warnings))
        self._packed_record = cloudpickle.dumps(record)


class DetachedRun:
    """A run on a cluster, seen from here; has what a display asks of an Experiment.

    Args:
        run_dir: the run directory.

    Attributes:
        config: the run's configuration.
        session: the newest View.
        was_interrupted: whether it ended by being stopped.

    Raises:
        UsageError: no detached run there.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir.absolute()
        self.contact = read_contact(run_dir)
        self.config: RunConfig | None = None
        self.session: View | None = None
        self.warnings: list[str] = []
        self.was_interrupted = False
        self._stop_wanted = False
        self._actor: Any = None

    def stop(self) -> None:
        """Ask it to save and stop, once `open` has found it."""
        self._stop_wanted = True

    def open(self) -> None:
        """Find the run, and wait until it has a configuration.

        Raises:
            Failed: the run failed before that.
            QfleetError: its actor is gone without a word, or its cluster is.
        """
        path = self.run_dir / "config.toml"
        if self._ended() is None:
            self._find()
            if self._stop_wanted:
                self._call("stop")
            while not path.is_file() and self._call("record") is not None:
                time.sleep(POLL_SECONDS)
        if not path.is_file():
            self._raise_failure(self._ended() or self._gone())
        self.config = read_config(path)

    def interrupt(self) -> None:
        """Nothing: whoever looks on leaves without the run."""

    def check_run_dir(self) -> None:
        """Nothing to refuse."""

    def describe(self) -> str:
        """Where it runs."""
        contact = self.contact
        return f"{self.run_dir}: detached on {contact.address} since {contact.started}, actor {contact.actor}"

    def stream(self) -> Iterator[Event]:
        """The events that a display wants, as they come; the last one is Finished.

        Raises:
            Failed: the run did.
            QfleetError: its actor is gone without a word.
        """
        yield from self._follow()
        ended = self._ended() or self._gone()
        self._raise_failure(ended)
        assert ended.summary is not None
        self.was_interrupted = ended.summary["stop_reason"] == "interrupted"
        yield Finished(ended.summary)

    def _raise_failure(self, ended: Contact) -> None:
        if ended.error is not None:
            raise Failed(ended.error, ended.exit_code or 1)

    def _ended(self) -> Contact | None:
        """What the coordinator has left, if it has ended."""
        self.contact = read_contact(self.run_dir)
        return self.contact if self.contact.exit_code is not None else None

    def _find(self) -> None:
        ray = _ray()
        try:
            _connect(self.contact.address, self.contact.namespace)
            self._actor = ray.get_actor(self.contact.actor, namespace=self.contact.namespace)
        except MissingExtraError:
            raise
        except UsageError as error:
            raise QfleetError(f"{error}; {self._advice()}") from error
        except ValueError:
            self._actor = None

    def _follow(self) -> Iterator[Event]:
        from ray import cloudpickle

        seen = -1
        while self._actor is not None:
            packed = self._call("record")
            if packed is None:
                return
            record: Record = cloudpickle.loads(packed)
            self.session, self.warnings = record.view or self.session, record.warnings
            if self.session is not None:
                self.config = self.session.config
            for number, event in record.events:
                if number > seen:
                    seen = number
                    yield event
            yield Event()  # so that a display looks at the clock
            time.sleep(POLL_SECONDS)

    def _call(self, method: str) -> Any:
        ray = _ray()
        if self._actor is None:
            return None
        try:
            return ray.get(getattr(self._actor, method).remote(), timeout=LOST_SECONDS)
        except ray.exceptions.RayError:
            self._actor = None
            return None

    def _gone(self) -> Contact:
        raise QfleetError(f"{self.run_dir}: its coordinator is gone without a word; {self._advice()}")

    def _advice(self) -> str:
        newest, _ = CheckpointStore(self.run_dir / "checkpoints", 1).newest_whole(None)
        if newest is None:
            return "there is no checkpoint; start it anew"
        name = f"manifest-{newest.tag}.json"
        return f"newest checkpoint: {name}; continue with: qfleet train --resume {self.run_dir} --detach"


def begin(experiment: Experiment) -> Contact:
    """Start an experiment on the cluster of its engine.address, and return once it has begun.

    Raises:
        UsageError: its engine has no address, there is no cluster, or the run directory is not free.
        QfleetError: the coordinator did not start, or does not see this run directory.
    """
    address = getattr(experiment.config.engine, "address", None)
    if address is None:
        raise UsageError(
            "--detach needs a cluster that stays: --engine ray --set engine.address=auto (or ip:port); "
            "a Ray that this command starts ends with it"
        )
    ray = _ray()
    from ray import cloudpickle

    experiment.check_run_dir()
    experiment.run_dir = experiment.run_dir.absolute()
    source = experiment.config.init.from_run
    if source is not None:
        experiment.config = change_config(experiment.config, [("init.from", str(Path(source).absolute()))])
    cluster = _connect(address, NAMESPACE, experiment.config.engine)
    name = f"{experiment.run_dir.name}-{os.urandom(4).hex()}"
    where = ray.get_runtime_context().gcs_address
    contact = Contact(where, NAMESPACE, name, datetime.now().isoformat(timespec="seconds"))
    actor = (
        ray.remote(Coordinator)
        .options(
            name=name,
            namespace=NAMESPACE,
            lifetime="detached",
            num_cpus=0,
            max_concurrency=8,
            max_restarts=0,
            scheduling_strategy=cluster.beside_head(),
        )
        .remote(cloudpickle.dumps(experiment), asdict(contact))
    )
    try:
        fault = ray.get(actor.begin.remote(), timeout=START_SECONDS)
    except ray.exceptions.RayError as error:
        fault = " ".join(str(error).split())[-300:] or type(error).__name__
    if fault is None and not (experiment.run_dir / DETACHED_NAME).is_file():
        fault = f"it does not write to {experiment.run_dir} of this machine: put run directories on a shared filesystem"
    if fault is not None:
        ray.kill(actor)
        raise QfleetError(f"the run did not start on {address}: {fault}")
    return contact


def read_contact(run_dir: Path) -> Contact:
    """detached.json.

    Raises:
        UsageError: missing, or not ours.
    """
    path = run_dir / DETACHED_NAME
    try:
        return Contact(**json.loads(path.read_bytes()))
    except FileNotFoundError:
        raise UsageError(f"{run_dir}: no detached run here ({DETACHED_NAME} is missing)") from None
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from error


def _view(experiment: Experiment) -> View | None:
    session = experiment.session
    if session is None:
        return None
    # Seconds on this machine's clock mean nothing elsewhere.
    tracker = copy.copy(session.tracker)
    tracker.stop_clock()
    control = Control("", copy.copy(session.control.counters), tallies=dict(session.control.tallies))
    schedule = copy.copy(session.schedule)
    return View(session.config, control, schedule, tracker, session.target_return, session.stop_reason)


def _connect(address: str, namespace: str, engine: object = None) -> Any:
    from qfleet.placement.ray_cluster import Cluster

    travels = {name: getattr(engine, name, None) for name in ("working_dir", "py_modules")}
    runtime_env: dict[str, object] = {
        name: list(value) if isinstance(value, tuple) else value for name, value in travels.items() if value
    }
    return Cluster(address, runtime_env=runtime_env, namespace=namespace)


def _ray() -> ModuleType:
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError(
            "a detached run needs Ray, which is not installed: pip install 'qfleet[ray]'"
        ) from error
    module: ModuleType = ray
    return module


def _write(run_dir: Path, contact: Contact) -> None:
    write_file(run_dir, DETACHED_NAME, json.dumps(asdict(contact), indent=1).encode())


def _send_output_to(path: Path) -> None:
    from qfleet.placement.ray_host import write_to

    write_to(path)
