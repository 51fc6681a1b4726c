"""Actor-learner: actors send whole trajectories, one learner corrects them for the versions they lag behind (IMPALA).

    actor i, for ever                                    learner, for ever
        mu <- newest snapshot                                take the oldest trajectories from the queue
        T vector steps by mu                                 v, A <- V-trace(trajectories, pi / mu)
        (x, a, r, mu(a | x), version) into the queue         w <- w - alpha grad(policy, value, entropy)
                                                             publish w as version + 1

    waits for                        unblocked by
    an actor                         a place in the queue; its trajectory being sure to lag max_policy_lag at most
    the learner                      a batch; trajectories under way that one more update would make too old
    a pause (drain, end)             nothing under way, nothing waiting: the last batch is filled up first

Espeholt et al. 2018, IMPALA: Scalable Distributed Deep-RL with Importance Weighted Actor-Learner Architectures.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Self

from pydantic import model_validator

from qfleet.config import NonNegativeFloat, NonNegativeInt, PositiveInt
from qfleet.engines.base import Engine, Future, Placement, RoleRef
from qfleet.errors import QfleetError, ValueLost
from qfleet.roles.actors_learner import ActorsLearner
from qfleet.roles.blueprint import Blueprint
from qfleet.roles.trajectory_actor import TrajectoryActor
from qfleet.strategies.base import (
    Control,
    Event,
    Rollout,
    Saved,
    SnapshotPublished,
    Update,
    drained,
    load_roles,
    submit_saves,
)
from qfleet.strategies.base.actors import ActorGroup
from qfleet.strategies.base.config import FleetConfig
from qfleet.strategies.base.supervisor import Loss, Supervisor
from qfleet.strategies.base.trajectory_queue import Trajectory, TrajectoryQueue
from qfleet.types import Receipt

NEEDS = frozenset({"trajectories"})
CALLS_AT_LEARNER = 2  # so that it goes on with the next batch before the coordinator has heard of the last


class Config(FleetConfig):
    """The [strategy] section of actors and a learner. `num_workers` are the actors.

    Attributes:
        trajectories_per_update: trajectories, of algo.rollout_steps x env.num_envs steps each, in an update.
        max_policy_lag: the most updates that may lie between the parameters that acted and those that are updated; 0 is
            on-policy, and every actor waits for every update.
        queue_size: trajectories that may be under way or wait for the learner.
        learner_gpus: GPUs that the learner asks of a cluster. Actors act on the CPU unless `worker_gpus` is above 0.
    """

    name: str = "actor_learner"
    trajectories_per_update: PositiveInt = 2
    max_policy_lag: NonNegativeInt = 4
    queue_size: PositiveInt = 32
    learner_gpus: NonNegativeFloat = 0.0

    @model_validator(mode="after")
    def _a_batch_fits(self) -> Self:
        if self.queue_size < self.trajectories_per_update:
            raise ValueError(
                f"queue_size {self.queue_size} can never hold the {self.trajectories_per_update} trajectories of an "
                "update; raise it, or lower trajectories_per_update"
            )
        return self


def run(
    engine: Engine, blueprint: Blueprint, config: Config, control: Control, saved: Saved | None = None
) -> Iterator[Event]:
    """Actors, a queue and a learner under one coordinator; see strategies/base for the protocol."""
    yield from ActorLearner(engine, blueprint, config, control).events(saved)


@dataclass(slots=True)
class _Job:
    """A call under way: at an actor "rollout" or "restore", at the learner "learn", "snapshot" or "restore"."""

    kind: str
    version: int = 0  # that acts, of a rollout
    batch: list[Trajectory] = field(default_factory=list)  # that is learned from


class ActorLearner:
    """The coordinator of one run.

    Args:
        engine, blueprint, config, control: as the strategy got them.
    """

    def __init__(self, engine: Engine, blueprint: Blueprint, config: Config, control: Control) -> None:
        self.engine = engine
        self.blueprint = blueprint
        self.config = config
        self.control = control
        self.supervisor = Supervisor(engine, config, control, lambda: self.actors.refs)
        self.queue = TrajectoryQueue(config.queue_size, config.trajectories_per_update, config.max_policy_lag)
        placement = Placement(num_gpus=config.learner_gpus)
        self.learner = engine.spawn("learner-0", ActorsLearner, blueprint, "learner-0", placement=placement)
        self._idle: deque[RoleRef] = deque()
        self.actors = ActorGroup(self.supervisor, blueprint, TrajectoryActor, self._joined, self._left)
        self._jobs: dict[Future, _Job] = {}
        self._newest: Future | None = None  # whose payload is the newest snapshot
        self._version = 0  # of that
        self._is_publishing = False  # whether all wait for the learner to say what it has
        self._is_mending = False  # whether it begins a new life
        self._is_pausing = False

    def events(self, saved: Saved | None) -> Iterator[Event]:
        """The strategy's events, for ever."""
        control = self.control
        self._start(saved)
        while True:
            is_there = self._newest is not None and not self._is_publishing
            if control.snapshot_wanted and is_there and (not control.is_ending or self._is_quiet):
                control.snapshot_wanted = False
                assert self._newest is not None
                yield SnapshotPublished(self._version, self._newest)
            self._is_pausing = control.drain_tag is not None or control.is_ending
            if control.failure is not None and self.queue.num_waiting:  # nobody may be able to fill the last batch
                control.count("trajectories_lost", self.queue.clear())
            if not self._is_pausing:
                yield from self.actors.resize()
            elif self._is_quiet and not control.snapshot_wanted:
                yield from self._save()
                continue
            self._feed()
            future = self.engine.wait()
            assert future is not None, "nothing is in flight, nobody may start"
            yield from self._receive(future)

    # the algorithm: who goes on, and what has come back

    def _feed(self) -> None:
        """Give the learner its next batches and the actors their next trajectories, as far as the bounds allow."""
        if self._is_publishing:
            return
        while not self._is_mending and self._num_learning < CALLS_AT_LEARNER:
            batch = self.queue.take(self._next_version)
            if not batch:
                break
            self._submit(_Job("learn", batch=batch), self.learner, "learn", *(one.future for one in batch))
        while self._idle and self._may_begin():
            self.queue.begin(self._version)
            job, num_steps = _Job("rollout", self._version), self.blueprint.vector_steps(1)
            progress = self.control.counters.progress()
            self._submit(job, self._idle.popleft(), "rollout", progress, num_steps, self._newest)

    def _may_begin(self) -> bool:
        """Whether another trajectory by the newest parameters may; in a pause, where the last batch lacks one."""
        if self._is_pausing and (not self.queue.num_missing or self.control.failure is not None):
            return False
        return self.queue.may_begin(self._version, self._next_version)

    @property
    def _num_learning(self) -> int:
        return sum(job.kind == "learn" for job in self._jobs.values())

    @property
    def _next_version(self) -> int:
        """What the learner will be at when it is given one more batch."""
        return self._version + self._num_learning

    def _receive(self, future: Future) -> Iterator[Event]:
        """Take in a completed call."""
        job = self._jobs.pop(future, None)
        if job is None:
            return  # of an actor that was let go
        outcome = self.supervisor.receive(future)
        if isinstance(outcome, Loss):
            yield from self._lost(job, outcome)
        elif future.role == self.learner:
            yield from self._from_learner(job, future, outcome)
        else:
            self._idle.append(future.role)
            if job.kind == "rollout":
                self.control.counters.add(outcome)
                self.queue.put(Trajectory(future, future.role.name, outcome.version))
                yield Rollout(future.role.name, outcome)

    def _from_learner(self, job: _Job, future: Future, outcome: Receipt) -> Iterator[Event]:
        """A new version, or an old one again in a new life."""
        if job.kind == "restore":
            tallies, age = self.control.tallies, int(outcome.metrics["moments_age"])
            tallies["moments_age_updates"] = max(tallies.get("moments_age_updates", 0), age)
            self._is_mending = False
            if self._is_publishing:  # its last life has not come to it
                self._publish()
            return
        assert outcome.version >= self._version, "a version went back"
        self._newest, self._version = future, outcome.version
        if job.kind == "snapshot":
            self._is_publishing = False
            return
        self.control.counters.add(outcome)
        yield Update(self.learner.name, outcome)

    def _submit(self, job: _Job, role: RoleRef, method: str, *args: object) -> None:
        self._jobs[self.engine.submit(role, method, *args)] = job

    # starting, saving, resizing

    def _start(self, saved: Saved | None) -> None:
        if saved is not None:
            load_roles(self.engine, [self.learner], self.control, saved)
        self.actors.start(saved)
        self._publish()

    def _publish(self) -> None:
        """Have the learner publish what it has; nothing goes on before it is out."""
        self._is_publishing = True
        self._submit(_Job("snapshot"), self.learner, "snapshot")

    def _joined(self, ref: RoleRef) -> None:
        self._idle.append(ref)

    def _left(self, ref: RoleRef) -> None:
        """An actor has been let go: nobody waits for it any more."""
        for future in [future for future in self._jobs if future.role == ref]:
            job = self._jobs.pop(future)
            if job.kind == "rollout":
                self.queue.abandon(job.version)
        self._rest(ref)

    def _rest(self, ref: RoleRef) -> None:
        """It is not there to begin anything."""
        if ref in self._idle:
            self._idle.remove(ref)

    @property
    def _is_quiet(self) -> bool:
        return not self._jobs and not self.queue.num_waiting

    def _save(self) -> Iterator[Event]:
        """All is quiet: a consistent cut. Afterwards all begin in order, and with a snapshot, as a resumed run does."""
        saves = submit_saves(self.engine, [self.learner, *self.actors.refs.values()], self.control)
        lost = self.supervisor.losses(saves)
        for loss in lost:  # bring them back and try again
            if loss.restarted is not None:
                yield loss.restarted
                self._rest(loss.future.role)
                self._revive(loss.future.role)
            elif loss.is_let_go:
                yield self.actors.dismiss_without_room(loss.future.role)
        if lost:
            return
        yield drained(self.engine, saves, self.control, self.actors.state_dict())
        self._idle = deque(self.actors.refs.values())
        self._publish()

    # what died

    def _lost(self, job: _Job, loss: Loss) -> Iterator[Event]:
        """A call gave no answer: what it was about goes back, or is lost with who made it."""
        role = loss.future.role
        if job.kind == "rollout":
            self.queue.abandon(job.version)
        elif job.kind == "learn":
            # A trajectory may be gone with its maker's machine; the others of the batch are as good as before.
            gone = loss.error.producer if isinstance(loss.error, ValueLost) else ""
            kept = [one for one in job.batch if one.actor != gone]
            # The batch behind this one is trained on in its place, and may make them too old; not if the learner died.
            next_version = self._next_version if isinstance(loss.error, ValueLost) else self._version
            num_lost = len(job.batch) - len(kept) + self.queue.give_back(kept, next_version)
            if num_lost:
                self.control.count("trajectories_lost", num_lost)
        if loss.restarted is not None:
            yield loss.restarted
            self._revive(role)
        elif loss.is_let_go:
            yield self.actors.dismiss_without_room(role)
        elif isinstance(loss.error, ValueLost) and job.kind == "restore":
            raise QfleetError(
                f"the newest parameters are gone with {loss.error.producer}'s machine; --resume the run"
            ) from loss.error
        elif role != self.learner and role.name in self.actors.refs:
            self._idle.append(role)  # it is well, and was given what is not there any more
            if isinstance(loss.error, ValueLost) and not self._is_publishing:
                self._publish()

    def _revive(self, role: RoleRef) -> None:
        """A new life: an actor's begins with fresh episodes, the learner's with the newest snapshot."""
        control = self.control
        if role == self.learner:
            self._is_mending = True
            published = [] if self._newest is None else [self._newest]
            files = control.saved_files.get(role.name, [])
            self._submit(_Job("restore"), role, "restore", control.checkpoint_folder, files, *published)
        else:
            self._jobs[self.actors.revive(role)] = _Job("restore")
