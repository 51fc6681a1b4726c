"""DetachedRun: a run on a cluster (detached.py) as those who look on see it: its events, its counters, its end.

waits for             unblocked by
open                  config.toml, or the coordinator's end
stream                the next record, every POLL_SECONDS; the coordinator's end, told by detached.json

Floor 6.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qfleet.checkpoint import CheckpointStore
from qfleet.detached import POLL_SECONDS, Contact, Record, View, connect, read_contact, require_ray
from qfleet.errors import MissingExtraError, QfleetError, UsageError
from qfleet.experiment import Finished
from qfleet.recipe import read_config
from qfleet.run_config import RunConfig
from qfleet.strategies.base import Event

LOST_SECONDS = 30.0
NUM_LOOKS = 10  # a shared filesystem may take a moment to show the coordinator's last word


class Failed(QfleetError):
    """The run failed over there; the line is its own."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


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
            self._raise_failure(self._end())
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
        ended = self._end()
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
        ray = require_ray()
        try:
            connect(self.contact.address, self.contact.namespace)
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
        ray = require_ray()
        if self._actor is None:
            return None
        try:
            return ray.get(getattr(self._actor, method).remote(), timeout=LOST_SECONDS)
        except ray.exceptions.RayError:
            self._actor = None
            return None

    def _end(self) -> Contact:
        for _ in range(NUM_LOOKS):
            ended = self._ended()
            if ended is not None:
                return ended
            time.sleep(POLL_SECONDS)
        raise QfleetError(f"{self.run_dir}: its coordinator is gone without a word; {self._advice()}")

    def _advice(self) -> str:
        newest, _ = CheckpointStore(self.run_dir / "checkpoints", 1).newest_whole(None)
        if newest is None:
            return "there is no checkpoint; start it anew"
        name = f"manifest-{newest.tag}.json"
        return f"newest checkpoint: {name}; continue with: qfleet train --resume {self.run_dir} --detach"
