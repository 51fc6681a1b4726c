"""Distributed replay: many actors fill a replay cut into shards, learners draw from all of it (Ape-X).

    actor i, epsilon_i = eps^(1 + 7 i / (N - 1))             learner
        pull the newest publication                              take the next batches that are drawn already
        roll out k vector steps                                  one update a batch (several: average the gradients)
        priorities = |TD error| by its own Q-values              priorities back to the shards
        insert into the next shard                               publish every so many updates

    waits for                        unblocked by
    an actor                         samples_per_insert allowing its next rollout; its last insertion but one
    an order of batches              samples_per_insert allowing them; a place among `prefetch`
    the learners                     an order whose draws are all in
    a pause (drain, snapshot)        rollouts in, updates owed made, nothing under way

Horgan et al. 2018, Distributed Prioritized Experience Replay.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from qfleet.config import NonNegativeFloat, PositiveInt
from qfleet.engines.base import Engine, Future, RoleRef
from qfleet.errors import ValueLost
from qfleet.ops.pacing import Pace, insert_slack
from qfleet.roles.blueprint import Blueprint
from qfleet.roles.replay_actor import ReplayActor
from qfleet.strategies.base import (
    Control,
    Event,
    Rollout,
    Saved,
    Update,
    drained,
    submit_saves,
)
from qfleet.strategies.base.actors import ActorGroup
from qfleet.strategies.base.config import FleetConfig
from qfleet.strategies.base.learners import Learned, LearnerGroup, Unlearned
from qfleet.strategies.base.shards import Collected, Order, ShardGroup
from qfleet.strategies.base.supervisor import Loss, Supervisor
from qfleet.types import Receipt

MAX_UNACKNOWLEDGED = 2  # an actor's rollouts that are not in their shard yet, the one under way included


class Config(FleetConfig):
    """The [strategy] section of distributed replay. `num_workers` are the actors; with several learners an update is
    made of `algo.batch_size` transitions for each.

    Attributes:
        collect_steps: vector steps of one rollout.
        num_shards: roles that hold the replay between them.
        num_learners: learners that average their gradients, each on a batch of `algo.batch_size` of its own.
        prefetch: calls of the learners whose batches may be drawn, or under way, before their turn.
        updates_per_call: updates that a learner makes in one call, each on its own batch.
        publish_every: updates between two publications of the parameters for the actors.
        learner_gpus: GPUs that a learner asks of a cluster. Actors act on the CPU unless `worker_gpus` is above 0.
    """

    name: str = "distributed_replay"
    collect_steps: PositiveInt = 4
    num_shards: PositiveInt = 1
    num_learners: PositiveInt = 1
    prefetch: PositiveInt = 4
    updates_per_call: PositiveInt = 1
    publish_every: PositiveInt = 10
    learner_gpus: NonNegativeFloat = 0.0


def run(
    engine: Engine, blueprint: Blueprint, config: Config, control: Control, saved: Saved | None = None
) -> Iterator[Event]:
    """Actors, shards and learners under one coordinator; see strategies/base for the protocol."""
    yield from DistributedReplay(engine, blueprint, config, control).events(saved)


@dataclass(slots=True, eq=False)
class _Member:
    """What the coordinator knows of one actor."""

    ref: RoleRef
    num_unacknowledged: int = 0  # rollouts begun that are not in their shard yet
    is_busy: bool = False
    is_listed: bool = False


@dataclass(slots=True)
class _Job:
    """A call under way at an actor, and how many transitions it is expected to bring."""

    member: _Member
    kind: str  # "rollout", "cut", "restore"
    num_expected: int = 0


class DistributedReplay:
    """The coordinator of one run.

    Args:
        engine, blueprint, config, control: as the strategy got them.
    """

    def __init__(self, engine: Engine, blueprint: Blueprint, config: Config, control: Control) -> None:
        self.engine = engine
        self.blueprint = blueprint
        self.config = config
        self.control = control
        self.supervisor = Supervisor(engine, config, control, lambda: self.members)
        self.actors = ActorGroup(self.supervisor, blueprint, ReplayActor, self._joined, self._left)
        self.shards = ShardGroup(engine, self.supervisor, blueprint, control, config.num_shards)
        self.learners = LearnerGroup(
            engine,
            self.supervisor,
            blueprint,
            control,
            config.num_learners,
            config.publish_every,
            config.learner_gpus,
        )
        replay, self.batch_size = blueprint.replay, blueprint.batch_size
        per_update = self.batch_size * config.num_learners
        self.pace = Pace(0, 0, replay.min_transitions, replay.samples_per_insert, per_update)
        self.members: dict[str, _Member] = {}
        self._idle: deque[_Member] = deque()
        self._jobs: dict[Future, _Job] = {}
        self._num_coming = 0  # transitions that rollouts under way will bring
        self._num_drawing = 0
        self._ready: deque[Order] = deque()
        self._is_pausing = False
        self._is_cut = False

    def events(self, saved: Saved | None) -> Iterator[Event]:
        """The strategy's events, for ever."""
        control = self.control
        self._start(saved)
        while True:
            # Where calls run one at a time, a snapshot is taken between rounds, as serial training takes it.
            runs_on = self.engine.is_concurrent and not control.is_ending
            if control.snapshot_wanted and (runs_on or self._is_quiet()):
                control.snapshot_wanted = False
                self.learners.ask_snapshot()
            wants_snapshot = control.snapshot_wanted or self.learners.is_snapshotting
            self._is_pausing = control.drain_tag is not None or (wants_snapshot and not runs_on)
            if not self._is_pausing:
                yield from self.actors.resize()
            self._feed()
            if self._is_pausing and self._is_quiet():
                if not control.snapshot_wanted:
                    yield from self._save()
                continue
            future = self.engine.wait()
            assert future is not None, f"nothing is in flight, nobody may start: {self.pace}"
            if self.shards.owns(future):
                for outcome in self.shards.receive(future):
                    yield from self._from_shard(outcome)
            elif self.learners.owns(future):
                for result in self.learners.receive(future):
                    yield from self._from_learner(result)
            else:
                yield from self._from_actor(future)

    # starting, saving, resizing

    def _start(self, saved: Saved | None) -> None:
        self.shards.start(saved)
        counters = self.control.counters
        self.pace.num_inserted, self.pace.num_samples_reserved = counters.num_inserted, counters.num_samples
        self.actors.start(saved)
        self.learners.start(saved)

    def _joined(self, ref: RoleRef) -> None:
        member = self.members[ref.name] = _Member(ref)
        self._list(member)

    def _left(self, ref: RoleRef) -> None:
        """An actor has been let go: nobody waits for it any more; what it has sent to the shards comes in."""
        member = self.members.pop(ref.name)
        for future in [future for future, job in self._jobs.items() if job.member is member]:
            self._num_coming -= self._jobs.pop(future).num_expected
        if member.is_listed:
            self._idle.remove(member)

    def _is_quiet(self) -> bool:
        is_owing = self.pace.updates_allowed() >= self.config.updates_per_call and self._can_draw
        nothing_waits = not self._jobs and not self._ready and not self._num_drawing and not is_owing
        return nothing_waits and self.shards.is_idle and self.learners.is_idle

    def _save(self) -> Iterator[Event]:
        """All is quiet: cut the environments, let in what that gives, and then save the consistent cut.

        Afterwards all begin in the order of their ranks and with a publication, as a resumed run does.
        """
        tag = self.control.drain_tag
        assert tag is not None
        if not self._is_cut:
            self._is_cut = True
            for member in self.members.values():
                self._submit(_Job(member, "cut"), "cut", tag)
            return
        roles = [*self.learners.refs, *self.shards.refs, *(member.ref for member in self.members.values())]
        saves = submit_saves(self.engine, roles, self.control)
        lost = self.supervisor.losses(saves)
        if lost:
            yield from self._bring_back(lost)
            return
        state = self.actors.state_dict() | {"shards": self.shards.state_dict()}
        yield drained(self.engine, saves, self.control, state)
        self._is_cut = False
        self.shards.committed()
        self._idle = deque(self.members.values())  # all of them were idle
        self.learners.republish()

    def _bring_back(self, lost: list[Loss]) -> Iterator[Event]:
        """Those that could not save; the cut is tried again when they are there."""
        restarted: list[RoleRef] = []
        for loss in lost:
            ref = loss.future.role
            if loss.is_let_go:
                yield self.actors.dismiss_without_room(ref)
            elif loss.restarted is not None:
                yield loss.restarted
                restarted.append(ref)
        for ref in restarted:
            if ref.name in self.members:
                self._revive(self.members[ref.name])
            elif ref in self.shards.refs:
                self.shards.revive(ref)
        self.learners.revive([ref for ref in restarted if ref in self.learners.refs])

    # who goes on

    @property
    def _can_draw(self) -> bool:
        """Whether the living shards hold enough for a batch; after a shard's death they may not."""
        enough = min(self.batch_size, self.pace.min_transitions)
        return self.shards.num_transitions >= max(1, enough)

    def _feed(self) -> None:
        """Give everybody as much work as pace and bounds allow."""
        if self.learners.is_republishing:
            return
        config, pace = self.config, self.pace
        while self._num_drawing + len(self._ready) < config.prefetch:
            if pace.updates_allowed() < config.updates_per_call or not self._can_draw:
                break
            pace.reserve(config.updates_per_call)
            self._num_drawing += 1
            self.shards.order(config.num_learners, config.updates_per_call, self.batch_size, self.learners.version)
        while self._ready and self.learners.is_free:
            self.learners.learn(self._ready.popleft())
        rollout_size = config.collect_steps * self.blueprint.env.num_envs
        slack = insert_slack(
            pace.samples_per_insert, pace.batch_size * config.updates_per_call, len(self.members) * rollout_size
        )
        # Shards that have lost their content must be filled before anything can be drawn, whatever the pace says.
        is_starving = not self._can_draw and not self.shards.is_reviving
        while self._idle and not self._is_pausing:
            if pace.inserts_allowed(slack, self._num_coming) < rollout_size and not is_starving:
                break
            member = self._idle.popleft()
            member.is_listed = False
            member.num_unacknowledged += 1
            job = _Job(member, "rollout", rollout_size)
            self._num_coming += rollout_size
            progress = self.control.counters.progress()
            self._submit(job, "rollout", progress, config.collect_steps, *self.learners.published())

    def _submit(self, job: _Job, method: str, *args: object) -> None:
        self._jobs[self.engine.submit(job.member.ref, method, *args)] = job
        job.member.is_busy = True

    def _list(self, member: _Member) -> None:
        """An actor may be given its next rollout if it has none, and not too many that are not acknowledged."""
        is_free = not member.is_busy and member.num_unacknowledged < MAX_UNACKNOWLEDGED
        if is_free and not member.is_listed and member.ref.name in self.members:
            member.is_listed = True
            self._idle.append(member)

    # what has come back

    def _from_actor(self, future: Future) -> Iterator[Event]:
        job = self._jobs.pop(future, None)
        if job is None:
            return  # of an actor that was let go
        member = job.member
        member.is_busy = False
        outcome = self.supervisor.receive(future)
        if isinstance(outcome, Loss):
            self._num_coming -= job.num_expected
            if job.kind == "rollout":
                member.num_unacknowledged -= 1
            if outcome.restarted is not None:
                yield outcome.restarted
                self._revive(member)
            elif outcome.is_let_go:
                yield self.actors.dismiss_without_room(member.ref)
            elif isinstance(outcome.error, ValueLost):
                self.learners.renew()
        elif job.kind != "restore":
            num = int(outcome.metrics.pop("num_transitions"))
            self._num_coming += num - job.num_expected
            collected = Collected(member.ref.name, future, outcome, num)
            if job.kind == "cut":
                member.num_unacknowledged += 1
            if num:
                self.shards.insert(collected)
            else:
                yield from self._inserted(collected)
        self._list(member)

    def _inserted(self, collected: Collected) -> Iterator[Event]:
        """Transitions are in their shard (or lost): they count, and their actor may go on."""
        receipt = collected.receipt
        self._num_coming -= collected.num_transitions
        receipt.lags["policy_lag"] = [self.learners.version - receipt.version]
        self.control.counters.add(receipt)
        self.pace.num_inserted += receipt.num_inserted
        member = self.members.get(collected.actor)
        if member is not None:
            member.num_unacknowledged -= 1
            self._list(member)
        yield Rollout(collected.actor, receipt)

    def _from_shard(self, outcome: Event | Order | Collected) -> Iterator[Event]:
        if isinstance(outcome, Event):
            yield outcome
        elif isinstance(outcome, Collected):
            yield from self._inserted(outcome)
        else:
            self._num_drawing -= 1
            if outcome.is_lost:
                self.pace.release(outcome.num_updates)
            else:
                self._ready.append(outcome)

    def _from_learner(self, result: Event | Learned | Unlearned) -> Iterator[Event]:
        if isinstance(result, Event):
            yield result
        elif isinstance(result, Unlearned):
            yield from self._unlearned(result)
        else:
            receipt, order = result.receipt, result.order
            if self.blueprint.replay.sampler == "prioritized":
                # A learner that died has gone back to its publication, which may be older than the draw.
                age = max(0, self.learners.version - order.version)
                receipt.lags["priority_age"] = [age] * receipt.num_updates
                self.shards.write(order, result.futures)
            self.control.counters.add(receipt)
            yield Update(",".join(ref.name for ref in self.learners.refs), receipt)

    def _unlearned(self, result: Unlearned) -> Iterator[Event]:
        """A death among the learners: reserved samples are given back, and the counts follow the parameters."""
        self.pace.release(sum(order.num_updates for order in result.orders))
        difference, counters = result.num_updates, self.control.counters
        num_samples = difference * self.pace.batch_size
        self.pace.num_samples_reserved += num_samples
        if difference > 0:  # what a broken call had done before it broke
            receipt = Receipt(version=self.learners.version, num_updates=difference, num_samples=num_samples)
            counters.add(receipt)
            yield Update(",".join(ref.name for ref in self.learners.refs), receipt)
        elif difference < 0:  # back to the newest publication
            self.control.count("updates_lost", -difference)
            counters.num_updates += difference
            counters.num_samples += num_samples

    def _revive(self, member: _Member) -> None:
        self._jobs[self.actors.revive(member.ref)] = _Job(member, "restore")
        member.is_busy = True
