"""All-reduce: N data-parallel learners, each with its own environments and replay, one mean gradient a step.

repeat, all ranks at the same time:
    collect k vector steps into the rank's own replay
    as many times as samples_per_insert allows for batches of N B transitions:
        g_i <- grad L(w; B transitions of rank i's replay)
        g <- mean over ranks of g_i                                  the only thing that they exchange
        w <- optimizer step on g, the same one at every rank

waits for                     unblocked by
a rank's gradient             the last gradient of its group, or a member's end, which breaks the call for all
a broken group                asking the survivors: all go on from the one that came furthest
a rank outside of the group   its replay holding enough; it is given the group's state before each step till then

Goyal et al. 2017; Sergeev and Del Balso 2018 (Horovod).
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field

from qfleet.engines.base import Engine, Future, RoleRef
from qfleet.errors import QfleetError
from qfleet.ops.pacing import updates_allowed
from qfleet.replay.redistribute import ReplaySource
from qfleet.roles.blueprint import Blueprint
from qfleet.roles.rank_worker import RankWorker
from qfleet.strategies.base import (
    Control,
    CrewChanged,
    Event,
    Rollout,
    Saved,
    SnapshotPublished,
    Update,
    call,
    drained,
    submit_saves,
)
from qfleet.strategies.base.config import FleetConfig
from qfleet.strategies.base.crew import replay_shares, replay_source, saved_workers, worker_name, worker_number
from qfleet.strategies.base.supervisor import Loss, Supervisor
from qfleet.types import Receipt, SavedFile

Answers = Generator[Event, None, dict[str, Receipt]]

NEEDS = frozenset({"replay", "rollouts"})


class Config(FleetConfig):
    """The [strategy] section of all-reduce; `num_workers` is the world size, an update trains on as many batches."""

    name: str = "all_reduce"


@dataclass(slots=True, eq=False)
class _Member:
    """What the coordinator knows of one rank. `sources` are its share of others' replays, until it saves its own."""

    ref: RoleRef
    sources: list[ReplaySource] = field(default_factory=list)
    num_held: int = 0  # transitions in its replay
    is_ready: bool = True  # not so while a new life is being restored
    is_in_group: bool = True


def run(
    engine: Engine, blueprint: Blueprint, config: Config, control: Control, saved: Saved | None = None
) -> Iterator[Event]:
    """Collect together, train together, repeat."""
    yield from _AllReduce(engine, blueprint, config, control).events(saved)


class _AllReduce:
    """The coordinator of one run. Between two phases nothing is in flight but the restoring of dead ranks."""

    def __init__(self, engine: Engine, blueprint: Blueprint, config: Config, control: Control) -> None:
        self.engine = engine
        self.blueprint = blueprint
        self.share = blueprint.share_replay(config.num_workers)
        self.config = config
        self.control = control
        self.supervisor = Supervisor(engine, config, control, lambda: self.members)
        self.members: dict[str, _Member] = {}
        # Before its first update serial training holds min_transitions, be they fewer than a batch: so does a rank.
        self._num_needed = max(1, min(blueprint.batch_size, self.share.replay.min_transitions))
        self._num_ever = 0
        self._num_wanted = config.num_workers
        self._restoring: set[Future] = set()
        self._announced: list[str] = []
        self._broken_size = 0  # of the group whose last call broke, until it is known how far it came
        self._num_broken = 0  # calls in a row that broke though nobody had died

    def events(self, saved: Saved | None) -> Iterator[Event]:
        """The strategy's events, for ever."""
        control = self.control
        self._start(saved)
        self._announced = self._names()
        while True:
            if control.drain_tag is None:
                self._resize()
            if any(member.is_ready and not member.is_in_group for member in self.members.values()) or not self._group():
                yield from self._regroup()
            yield from self._announce()
            if control.snapshot_wanted:
                yield from self._publish()
            elif control.drain_tag is not None:
                yield from self._save()
            else:
                yield from self._collect()
                yield from self._train()

    # who is there

    def _group(self) -> list[_Member]:
        return [member for member in self.members.values() if member.is_in_group]

    def _names(self) -> list[str]:
        return [member.ref.name for member in self._group()]

    def _start(self, saved: Saved | None) -> None:
        """Build the ranks; those of the checkpoint where there are as many, else its replays are dealt out."""
        wanted = self._num_wanted = self.control.num_workers or self.config.num_workers
        old = saved_workers(saved.files) if saved is not None else []
        for name in old if len(old) == wanted else map(worker_name, range(wanted)):
            self._hire(name)
        if saved is None:
            return
        self._num_ever = max(self._num_ever, int(str(saved.state["num_ever"])))
        folder, new = self.control.checkpoint_folder, list(self.members)
        if old == new:
            states = saved.state["workers"]
            assert isinstance(states, dict)
            for name, member in self.members.items():
                call(self.engine, member.ref, "load", folder, saved.tag, saved.files[name])
                member.num_held, member.is_in_group = states[name]["held"], states[name]["in_group"]
            return
        shares = replay_shares(folder, saved.files, new)
        for name, member in self.members.items():
            state = saved.files[old[0]][0]
            receipt, _ = call(self.engine, member.ref, "restore", 0, saved.tag, folder, state, shares[name])
            member.num_held, member.sources = int(receipt.metrics["num_restored"]), shares[name]

    def _hire(self, name: str) -> _Member:
        number = worker_number(name)
        self._num_ever = max(self._num_ever, number + 1)
        num_workers = self.config.num_workers
        place = number % num_workers
        placement = self.config.worker_placement()
        ref = self.engine.spawn(name, RankWorker, self.share, name, place, num_workers, placement=placement)
        member = self.members[name] = _Member(ref)
        return member

    def _resize(self) -> None:
        """Hire where there is room, or let ranks go, those outside of the group first, until all wanted are there."""
        wanted = self.control.num_workers or self._num_wanted
        for _ in range(self.supervisor.openings.num_to_hire(wanted - len(self.members))):
            member = self._hire(worker_name(self._num_ever))
            self.supervisor.joiners.add(member.ref.name)
            self._revive(member)
        while len(self.members) > wanted:
            self._let_go(max(self.members, key=lambda name: (not self.members[name].is_in_group, worker_number(name))))

    def _let_go(self, name: str) -> None:
        member = self.members.pop(name)
        member.is_in_group = False
        self.engine.stop(member.ref)
        self._restoring = {future for future in self._restoring if future.role.name != name}
        self.control.count("transitions_lost", member.num_held)

    def _announce(self) -> Iterator[Event]:
        """Tell who makes the next update, where that has changed."""
        before, now = self._announced, self._names()
        if before == now:
            return
        self._announced = now
        left = [name for name in before if name not in now]
        joined = [name for name in now if name not in before]
        parts = [f"{', '.join(names)} {verb}" for names, verb in ((left, "left"), (joined, "joined")) if names]
        yield CrewChanged(len(now), "; ".join(parts))

    # calls to several, and what becomes of those that fail

    def _gather(self, calls: list[Future], *, and_restores: bool = False) -> Answers:
        """Wait for these calls, and with `and_restores` for all ranks that are being restored; answers by name."""
        answers: dict[str, Receipt] = {}
        waiting = set(calls)
        while waiting or (and_restores and self._restoring):
            done = self.engine.wait()
            assert done is not None, "a call has not come back"
            is_restore = done in self._restoring
            if not is_restore and done not in waiting:
                continue  # of a rank that was let go
            waiting.discard(done)
            self._restoring.discard(done)
            name = done.role.name
            if name not in self.members:
                continue  # likewise, for want of room
            outcome = self.supervisor.receive(done)
            if isinstance(outcome, Loss):
                if outcome.is_let_go:
                    self._let_go(name)
                elif outcome.restarted is not None:
                    yield outcome.restarted
                    self._revive(self.members[name])
            elif is_restore:
                self._restored(self.members[name], outcome)
            else:
                answers[name] = outcome
        # In the order of the calls: nothing may depend on who answered first.
        return {call.role.name: answers[call.role.name] for call in calls if call.role.name in answers}

    def _ask(self, members: list[_Member], method: str, *args: object) -> Answers:
        return (yield from self._gather([self.engine.submit(member.ref, method, *args) for member in members]))

    def _revive(self, member: _Member) -> None:
        """Begin a new life beside the group: the last checkpointed replay; what came later is lost."""
        control, name = self.control, member.ref.name
        member.is_ready = member.is_in_group = False
        files = control.saved_files
        old = saved_workers(files)
        state: SavedFile | None = files[old[0]][0] if old else None
        folder = control.checkpoint_folder
        sources = member.sources or replay_source(folder, name, files.get(name, []))
        life = self.engine.incarnation(member.ref)
        self._restoring.add(self.engine.submit(member.ref, "restore", life, control.saved_tag, folder, state, sources))

    def _restored(self, member: _Member, receipt: Receipt) -> None:
        num_rows = int(receipt.metrics["num_restored"])
        self.control.count("transitions_lost", max(0, member.num_held - num_rows))
        member.num_held = num_rows
        member.is_ready = True

    # the group

    def _regroup(self) -> Iterator[Event]:
        """Make all ready ranks equal to one of the group, and let those in that hold enough to train on."""
        while not self._group():
            yield from self._found()
        source = self._group()[0]
        future = self.engine.submit(source.ref, "learner_state")
        if not (yield from self._gather([future])):
            return
        joiners = [member for member in self.members.values() if member.is_ready and not member.is_in_group]
        equal = yield from self._ask(joiners, "take_learner_state", future)
        for member in joiners:
            member.is_in_group = member.ref.name in equal and member.num_held >= self._num_needed

    def _found(self) -> Iterator[Event]:
        """Begin a group with the rank that has come furthest, and count what the broken one has done or lost."""
        ready = [member for member in self.members.values() if member.is_ready]
        if not ready:
            yield from self._gather([], and_restores=True)
            return
        standings = yield from self._ask(ready, "standing")
        there = [member for member in ready if member.ref.name in standings]
        if not there:
            return
        source = max(
            there, key=lambda member: (standings[member.ref.name].version, member.num_held >= self._num_needed)
        )
        version, known = standings[source.ref.name].version, self.control.counters.num_updates
        if version < known:  # nobody is left who was there: a checkpoint's parameters go on under the newest version
            self.control.count("updates_lost", known - version)
            if not (yield from self._ask([source], "stand_at", known)):
                return
        source.is_in_group = True
        if version > known:
            yield self._updated(version - known, self._broken_size, {})

    # what they do

    def _publish(self) -> Iterator[Event]:
        group = self._group()
        if not group:
            return  # whoever was to be the others' source has just died; ask the next group
        self.control.snapshot_wanted = False
        future = self.engine.submit(group[0].ref, "snapshot")
        answers = yield from self._gather([future])
        if not answers:
            self.control.snapshot_wanted = True  # of another one, then
        for receipt in answers.values():
            yield SnapshotPublished(receipt.version, future)

    def _collect(self) -> Iterator[Event]:
        """All ranks collect, those outside of the group too; told in the order of the ranks."""
        counters = self.control.counters
        ready = [member for member in self.members.values() if member.is_ready]
        answers = yield from self._ask(
            ready, "collect", counters.progress(), self.blueprint.vector_steps(self.config.collect_steps)
        )
        version = counters.num_updates
        for member in ready:
            receipt = answers.get(member.ref.name)
            if receipt is None:
                continue
            self._hold(member, receipt.num_inserted)
            receipt.lags["policy_lag"] = [version - receipt.version]
            counters.add(receipt)
            yield Rollout(member.ref.name, receipt)

    def _hold(self, member: _Member, num_inserted: int) -> None:
        member.num_held = min(member.num_held + num_inserted, self.share.replay.capacity)

    def _train(self) -> Iterator[Event]:
        """The updates that are due, in one call; the ranks meet at each of them without the coordinator."""
        group, counters = self._group(), self.control.counters
        replay, size = self.blueprint.replay, len(group)
        num_updates = updates_allowed(
            counters.num_inserted,
            counters.num_samples,
            replay.min_transitions,
            replay.samples_per_insert,
            max(1, size) * self.blueprint.batch_size,
        )
        if self.blueprint.updates_per_rollout is not None:  # what a broken group still owed went with its rollouts
            num_updates = min(num_updates, self.blueprint.updates_per_rollout)
        if not num_updates or not group or any(member.num_held < self._num_needed for member in group):
            return
        yield from self._announce()
        calls = self.engine.all_reduce(
            [member.ref for member in group], "train_together", [(num_updates, rank, size) for rank in range(size)]
        )
        answers = yield from self._gather(calls)
        if len(answers) == size:
            self._num_broken = 0
            yield self._updated(num_updates, size, answers)
        else:
            self._break_up(group)

    def _break_up(self, group: list[_Member]) -> None:
        """A call has failed; who has made the last update and who has not is for `_found` to ask."""
        self.control.count("groups_broken")
        self._num_broken = 0 if any(not member.is_in_group for member in group) else self._num_broken + 1
        if self._num_broken > self.config.max_restarts:
            raise QfleetError(
                f"{len(group)} ranks have failed to meet {self._num_broken} times in a row though all of them live; "
                "see whether their machines reach each other, or set strategy.num_workers=1"
            )
        self._broken_size = len(group)
        for member in group:
            member.is_in_group = False

    def _updated(self, num_updates: int, size: int, answers: dict[str, Receipt]) -> Update:
        """One event for what the group has done together: samples and seconds of all, metrics as their mean."""
        counters = self.control.counters
        receipt = Receipt(
            version=counters.num_updates + num_updates,
            num_updates=num_updates,
            num_samples=num_updates * size * self.blueprint.batch_size,
        )
        for own in answers.values():
            for activity, value in own.seconds.items():
                # Where calls run one at a time, a rank that waits waits for the others' work, which they report.
                if activity != "all_reduce" or self.engine.is_concurrent:
                    receipt.seconds[activity] = receipt.seconds.get(activity, 0.0) + value
            for name, value in own.metrics.items():
                receipt.metrics[name] = receipt.metrics.get(name, 0.0) + value / len(answers)
        counters.add(receipt)
        return Update(",".join(answers), receipt)

    def _save(self) -> Iterator[Event]:
        """The consistent cut, once those that are being restored are back."""
        if self._restoring:
            yield from self._gather([], and_restores=True)
            return  # they have yet to be made equal to the others
        members = list(self.members.values())
        saves = submit_saves(self.engine, [member.ref for member in members], self.control)
        answers = yield from self._gather_saves(saves)
        for name, receipt in answers.items():
            self._hold(self.members[name], receipt.num_inserted)
        if len(answers) < len(members):  # bring the others back and try again
            for receipt in answers.values():
                self.control.counters.add(receipt)
            return
        for member in members:
            member.sources = []
        workers = {member.ref.name: {"held": member.num_held, "in_group": member.is_in_group} for member in members}
        yield drained(self.engine, saves, self.control, {"workers": workers, "num_ever": self._num_ever})

    def _gather_saves(self, saves: list[Future]) -> Answers:
        """What `_gather` does, for calls that are completed."""
        answers: dict[str, Receipt] = {}
        for save in saves:
            outcome = self.supervisor.receive(save)
            if not isinstance(outcome, Loss):
                answers[save.role.name] = outcome
            elif outcome.is_let_go:
                self._let_go(save.role.name)
            elif outcome.restarted is not None:
                yield outcome.restarted
                self._revive(self.members[save.role.name])
        return answers
