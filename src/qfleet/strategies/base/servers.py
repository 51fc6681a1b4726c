"""A group of parameter servers, each with its slice of the vector, seen as one that merges a set of pushes at a time.

waits for             unblocked by
a merge               its turn: merges are committed one after the other, so every reader sees one version
commit on each        the norm of all slices, when the last `stage` is in
the next merge        the last `commit`, or a server's new life having done it again
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from qfleet.engines.base import Engine, Future, Part, Placement, RoleRef
from qfleet.errors import QfleetError, ValueLost
from qfleet.roles.blueprint import Blueprint
from qfleet.roles.parameter_server import ParameterServer
from qfleet.strategies.base import Control, Event, Saved, SnapshotPublished, call
from qfleet.strategies.base.supervisor import Loss, Supervisor
from qfleet.types import Receipt, Ticket


@dataclass(slots=True, eq=False)
class Merge:
    """A set of pushes that become one update.

    Attributes:
        tickets, pushes: one each per push; the second are the workers' completed calls.
        num_updates: by how much the version grows.
        rate_scale: what the learning rate is multiplied by; None asks for 1 / (1 + staleness).
        staleness: how many versions old each push was when it was merged; known at the end.
        attempt: how often the set has shrunk while it was staged; what is staged of a former one does not count.
        is_committing: whether a server has been told to apply it.
    """

    tickets: list[Ticket]
    pushes: list[Future]
    num_updates: int = 1
    rate_scale: float | None = 1.0
    staleness: list[int] = field(default_factory=list)
    num_refused: int = 0
    scale: float = 1.0
    norms: dict[int, float] = field(default_factory=dict)
    committed: dict[int, Future] = field(default_factory=dict)
    attempt: int = 0
    is_committing: bool = False


@dataclass(slots=True)
class _Job:
    """A call under way at server `index`."""

    kind: str  # "update", "stage", "commit", "restore", "assemble", "publish"
    index: int
    merge: Merge | None = None
    attempt: int = 0


class ServerGroup:
    """Spawns the servers, feeds them merges in order, publishes versions, and brings a dead server back.

    Args:
        engine, control: as the strategy has them.
        supervisor: who decides about restarts.
        blueprint: the run's plan.
        num_servers: how many slices.
        is_difference: whether pushes are parameter differences.

    Attributes:
        version: the newest one that all servers have published.
        refs: the servers' roles.
    """

    def __init__(
        self,
        engine: Engine,
        supervisor: Supervisor,
        blueprint: Blueprint,
        control: Control,
        num_servers: int,
        is_difference: bool,
    ) -> None:
        self.engine = engine
        self.supervisor = supervisor
        self.control = control
        self.refs: list[RoleRef] = [
            engine.spawn(
                f"server-{index}",
                ParameterServer,
                blueprint,
                f"server-{index}",
                index,
                num_servers,
                is_difference,
                placement=Placement(near="pack"),
            )
            for index in range(num_servers)
        ]
        self.version = 0
        self._latest: list[Future] = []
        self._targets: list[Future] = []  # the newest publication of each server that carries its target
        self._acknowledged: dict[str, tuple[int, int]] = {}
        self._queue: deque[Merge] = deque()
        self._current: Merge | None = None
        self._reviving: set[int] = set()
        self._owes_snapshot = False
        self._jobs: dict[Future, _Job] = {}

    def start(self, saved: Saved | None) -> None:
        """Load a checkpoint, of however many servers, and publish for the first time. Nothing else is in flight."""
        for ref in self.refs:
            if saved is not None:
                files = [files[0] for role, files in saved.files.items() if role.startswith("server-")]
                call(self.engine, ref, "load", self.control.checkpoint_folder, saved.tag, files)
            receipt, future = call(self.engine, ref, "publish")
            self._latest.append(future)
            self.version = receipt.version
        self._targets = list(self._latest)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is in flight or queued."""
        return not self._jobs and self._current is None and not self._queue

    @property
    def is_assembling(self) -> bool:
        """Whether a snapshot was asked for and is not there yet."""
        return self._owes_snapshot or any(job.kind == "assemble" for job in self._jobs.values())

    @property
    def is_renewing(self) -> bool:
        """Whether a server was asked to publish again what was lost, or is being brought back."""
        return bool(self._reviving) or any(job.kind == "publish" for job in self._jobs.values())

    def published(self) -> tuple[Future, ...]:
        """Arguments by which a worker pulls the newest version."""
        if len(self._latest) == 1 and self._latest[0] is self._targets[0]:
            return (self._latest[0],)
        return (*self._latest, *(target for target in self._targets if target not in self._latest))

    def owns(self, future: Future) -> bool:
        """Whether a completed call is one of this group's."""
        return future in self._jobs

    def add(self, merge: Merge) -> None:
        """Queue a set of pushes."""
        self._queue.append(merge)
        self._begin()

    def ask_snapshot(self) -> None:
        """Have the newest version put together; `receive` will yield SnapshotPublished."""
        self._owes_snapshot = False
        future = self.engine.submit(self.refs[0], "assemble", *self._latest)
        self._jobs[future] = _Job("assemble", 0)

    def renew(self, name: str) -> None:
        """What this server has published is gone with its machine: have it publish again, or find out that it is dead.

        Nobody else would: as long as workers cannot pull, no server is called.
        """
        index = [ref.name for ref in self.refs].index(name)
        asked = any(job.kind == "publish" and job.index == index for job in self._jobs.values())
        if not asked and index not in self._reviving:
            self._jobs[self.engine.submit(self.refs[index], "publish")] = _Job("publish", index)

    def revive(self, role: RoleRef) -> None:
        """Give a server that was respawned elsewhere its state back."""
        self._revive(self.refs.index(role))

    def receive(self, future: Future) -> Iterator[Event | Merge]:
        """Take in a completed call of this group; yields events, and a merge once all servers have committed it."""
        job = self._jobs.pop(future)
        outcome = self.supervisor.receive(future)
        if isinstance(outcome, Loss):
            yield from self._lost(job, outcome)
            return
        if job.kind == "assemble":
            yield SnapshotPublished(outcome.version, future)
        elif job.kind == "restore":
            self._restored(job.index, future, outcome)
        elif job.kind == "publish":
            self._renewed(job.index, future, outcome)
        elif job.kind == "stage":
            assert job.merge is not None
            if job.attempt == job.merge.attempt:
                self._staged(job.merge, job.index, outcome)
        else:
            assert job.merge is not None
            if job.kind == "update":
                job.merge.num_refused = int(outcome.metrics.get("num_refused", 0))
            job.merge.committed[job.index] = future
            if len(job.merge.committed) == len(self.refs):
                yield self._finish(job.merge)

    def _begin(self) -> None:
        if self._current is not None or not self._queue:
            return
        merge = self._current = self._queue.popleft()
        merge.staleness = [self.version - ticket.version for ticket in merge.tickets]
        scale = merge.rate_scale
        merge.scale = 1.0 / (1.0 + max(merge.staleness, default=0)) if scale is None else scale
        for index in range(len(self.refs)):
            if index not in self._reviving:
                self._feed(index, merge)

    def _feed(self, index: int, merge: Merge) -> None:
        """Give one server the pushes of the merge that is on."""
        server = self.refs[index]
        if len(self.refs) == 1:
            job, method = _Job("update", index, merge, merge.attempt), "update"
            args: tuple[object, ...] = (merge.tickets, merge.scale, merge.num_updates, *merge.pushes)
        else:
            job, method = _Job("stage", index, merge, merge.attempt), "stage"
            args = (merge.tickets, *(Part(push, index) for push in merge.pushes))
        self._jobs[self.engine.submit(server, method, *args)] = job

    def _staged(self, merge: Merge, index: int, receipt: Receipt) -> None:
        again = index in merge.norms  # a new life has been given the pushes once more; the others have gone on
        merge.norms[index] = receipt.metrics["norm"]
        merge.num_refused = max(merge.num_refused, int(receipt.metrics["num_refused"]))
        if again:
            self._commit(merge, index)
        elif len(merge.norms) == len(self.refs):
            for other in range(len(self.refs)):
                if other not in self._reviving:
                    self._commit(merge, other)

    def _commit(self, merge: Merge, index: int) -> None:
        merge.is_committing = True
        norm = math.hypot(*(merge.norms[other] for other in sorted(merge.norms)))
        future = self.engine.submit(self.refs[index], "commit", norm, merge.scale, merge.num_updates)
        self._jobs[future] = _Job("commit", index, merge)

    def _finish(self, merge: Merge) -> Merge:
        for index, future in merge.committed.items():
            receipt = self.engine.result(future)
            self._latest[index] = future
            if receipt.metrics["target_version"] == receipt.version:
                self._targets[index] = future
            self.version = receipt.version
        for ticket in merge.tickets:
            self._acknowledged[ticket.worker] = (ticket.incarnation, ticket.sequence)
        if merge.num_refused:
            self.control.count("pushes_refused", merge.num_refused)
        self._current = None
        self._begin()
        return merge

    def _lost(self, job: _Job, loss: Loss) -> Iterator[Event]:
        error, merge = loss.error, job.merge
        if loss.restarted is not None:
            yield loss.restarted
            self._revive(job.index)
        if job.kind == "assemble":
            self._owes_snapshot = True
            if isinstance(error, ValueLost):
                self.renew(error.producer)
            elif not self.is_renewing:
                self.ask_snapshot()
        elif isinstance(error, ValueLost):
            if merge is not None and job.attempt < merge.attempt:
                return  # the set has shrunk already
            if merge is not None and not merge.is_committing:
                self._shrink(merge, error.producer)
                return
            what = "newest parameters are" if merge is None else "push that some servers have applied is"
            raise QfleetError(
                f"the {what} gone with {error.producer}'s machine, and no other machine holds it; continue from the "
                "last checkpoint with qfleet train --resume RUN_DIR"
            ) from error

    def _shrink(self, merge: Merge, producer: str) -> None:
        """Pushes are gone with their maker's machine: the others make the update, and do so on every server."""
        keep = [i for i, push in enumerate(merge.pushes) if push.role.name != producer]
        merge.tickets = [merge.tickets[i] for i in keep]
        merge.pushes = [merge.pushes[i] for i in keep]
        merge.attempt += 1
        merge.norms, merge.num_refused = {}, 0
        for index in range(len(self.refs)):
            if index not in self._reviving:
                self._feed(index, merge)

    def _revive(self, index: int) -> None:
        """A server's new life starts from the newest published version and the pushes acknowledged up to it."""
        self._reviving.add(index)
        ref, control = self.refs[index], self.control
        files = control.saved_files.get(ref.name, [])
        future = self.engine.submit(
            ref,
            "restore",
            dict(self._acknowledged),
            control.checkpoint_folder,
            files,
            self._latest[index],
            self._targets[index],
        )
        self._jobs[future] = _Job("restore", index)

    def _renewed(self, index: int, future: Future, receipt: Receipt) -> None:
        if receipt.version == self.version:  # else a commit is on its way, whose answer is the newest
            self._latest[index] = self._targets[index] = future
        self._pay_snapshot()

    def _pay_snapshot(self) -> None:
        if self._owes_snapshot and not self.is_renewing:
            self.ask_snapshot()

    def _restored(self, index: int, future: Future, receipt: Receipt) -> None:
        self._reviving.discard(index)
        self.control.tallies["moments_age_updates"] = max(
            self.control.tallies.get("moments_age_updates", 0), int(receipt.metrics["moments_age"])
        )
        self._latest[index] = self._targets[index] = future
        self._pay_snapshot()
        merge = self._current
        if merge is not None and index not in merge.committed:
            self._feed(index, merge)
