"""Detached: a run whose coordinator is an actor of a Ray cluster, so that it goes on when the one who began it leaves.

    begin: Experiment -> a Coordinator on the cluster -> RUN_DIR/detached.json -> attached.py looks on

The run is a thread of the actor's own, which waits for nobody outside. The coordinator, not its beginner, writes
detached.json, so whoever finds it there sees the same run directory as the cluster. Floor 6.
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
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from qfleet.errors import MissingExtraError, QfleetError, UsageError, in_one_line
from qfleet.experiment import Experiment, Finished
from qfleet.machine import DETACHED_NAME, RunLock
from qfleet.run_config import RunConfig, change_config
from qfleet.storage import write_file
from qfleet.strategies.base import Control, Drained, Event, Gradient, Rollout, SnapshotPublished, Update
from qfleet.tracker import Tracker

if TYPE_CHECKING:
    from qfleet.placement.ray_cluster import Cluster

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
        self._packed_record: bytes = cloudpickle.dumps(Record())

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
            code, message = error.exit_code, in_one_line(error)
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
    ray = require_ray()
    from ray import cloudpickle

    experiment.check_run_dir()
    experiment.run_dir = experiment.run_dir.absolute()
    source = experiment.config.init.from_run
    if source is not None:
        experiment.config = change_config(experiment.config, [("init.from", str(Path(source).absolute()))])
    cluster = connect(address, NAMESPACE, experiment.config.engine)
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
        fault = in_one_line(error)[-300:] or type(error).__name__
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


def connect(address: str, namespace: str, engine: object = None) -> Cluster:
    """Join the cluster with the code that an [engine] section says travels.

    Raises:
        UsageError: there is none, or it is of other versions.
    """
    from qfleet.placement.ray_cluster import Cluster

    travels = {name: getattr(engine, name, None) for name in ("working_dir", "py_modules")}
    runtime_env: dict[str, object] = {
        name: list(value) if isinstance(value, tuple) else value for name, value in travels.items() if value
    }
    return Cluster(address, runtime_env=runtime_env, namespace=namespace)


def require_ray() -> ModuleType:
    """The module.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("detached runs need Ray, which is not installed: pip install 'qfleet[ray]'") from error
    module: ModuleType = ray
    return module


def _write(run_dir: Path, contact: Contact) -> None:
    write_file(run_dir, DETACHED_NAME, json.dumps(asdict(contact), indent=1).encode())


def _send_output_to(path: Path) -> None:
    from qfleet.placement.ray_host import write_to

    write_to(path)
