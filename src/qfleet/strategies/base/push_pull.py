"""The push-pull loop: workers compute on what servers have published, servers merge what workers push.

    worker i, for ever:                               servers:
        pull the newest version                           collect the pushes of a set
        collect until its pace allows a gradient          stage, clip, commit: version + 1
        wait until clock_i - slowest <= bound             publish
        push gradient(sample of its own replay)

    waits for                        unblocked by
    a worker at its bound            the slowest clock of its group moving, or its owner leaving
    a set of pushes (rule "mean")    the last member's push; with backup workers, the first N pushes
    a pause (drain, snapshot)        owed updates made, those behind caught up with the set that is open

Parameter server and sync_groups are this loop with other rules. One group is the parameter server; a group of all
workers with bound 0 and means is synchronous (Dean et al. 2012, Chen et al. 2016), bound k stale synchronous (Ho et
al. 2013), no bound asynchronous.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from qfleet.engines.base import Engine, Future
from qfleet.errors import ValueLost
from qfleet.ops.staleness import may_start
from qfleet.roles.blueprint import Blueprint
from qfleet.strategies.base import (
    Control,
    CrewChanged,
    Event,
    Gradient,
    Rollout,
    Saved,
    Update,
    drained,
    submit_saves,
)
from qfleet.strategies.base.config import FleetConfig
from qfleet.strategies.base.roster import Arrived, Group, Member, Roster, Rules
from qfleet.strategies.base.servers import Merge, ServerGroup
from qfleet.strategies.base.supervisor import Loss, Supervisor
from qfleet.types import Receipt, Ticket


@dataclass(slots=True)
class _Job:
    """A call under way at a worker."""

    member: Member
    kind: str  # "collect", "push", "restore"
    clock: int = 0
    ticket: Ticket | None = None


class PushPull:
    """The coordinator of one run.

    Args:
        engine, blueprint, config, control: as the strategy got them.
        rules: how to wait and merge.
    """

    def __init__(
        self, engine: Engine, blueprint: Blueprint, config: FleetConfig, control: Control, rules: Rules
    ) -> None:
        self.engine = engine
        self.blueprint = blueprint
        self.config = config
        self.control = control
        self.rules = rules
        self.updates_per_push = max(1, rules.local_steps)
        self.supervisor = Supervisor(engine, config, control, lambda: self.members)
        self.servers = ServerGroup(
            engine, self.supervisor, blueprint, control, rules.num_servers, rules.local_steps > 0
        )
        self.roster = Roster(engine, blueprint, config, control, rules, self.servers.published)
        self.members = self.roster.members
        self._jobs: dict[Future, _Job] = {}
        self._ready: deque[Member] = deque()
        self._merging: dict[Merge, list[tuple[Member, int]]] = {}
        self._is_pausing = False
        self._cut_windows: dict[str, int] = {}  # by worker, what saving has inserted since the last checkpoint
        self._stalled: list[tuple[Member, bool]] = []  # those who wait for a server's parameters; which were restored

    def events(self, saved: Saved | None) -> Iterator[Event]:
        """The strategy's events, for ever."""
        control = self.control
        self.servers.start(saved)
        self.roster.start(saved)
        self._release_all()
        while True:
            # Where calls run one at a time, a snapshot is taken between rounds, as serial training takes it.
            runs_on = self.engine.is_concurrent and not control.is_ending
            if control.snapshot_wanted and (runs_on or self._is_quiet()):
                control.snapshot_wanted = False
                self.servers.ask_snapshot()
            wants_snapshot = control.snapshot_wanted or self.servers.is_assembling
            is_pausing = control.drain_tag is not None or (wants_snapshot and not runs_on)
            if is_pausing != self._is_pausing:
                self._is_pausing = is_pausing
                for group in self.roster.groups:
                    self._set_end(group)
                self._release_all()
            if not is_pausing:
                yield from self._resize()
            while self._ready:
                member = self._ready.popleft()
                member.is_listed = False
                self._go_on(member)
            if is_pausing and self._is_quiet():
                if not control.snapshot_wanted:
                    yield from self._save()
                continue
            future = self.engine.wait()
            assert future is not None, f"nothing is in flight, nobody may start: {self._describe()}"
            if self.servers.owns(future):
                for outcome in self.servers.receive(future):
                    if isinstance(outcome, Merge):
                        yield from self._merged(outcome)
                    else:
                        yield outcome
                if self._stalled and not self.servers.is_renewing:
                    self._resume_stalled()
            else:
                yield from self._answered(future)

    def _is_quiet(self) -> bool:
        return not self._jobs and not self._ready and self.servers.is_idle

    # saving and resizing

    def _save(self) -> Iterator[Event]:
        """All is quiet: the consistent cut. Afterwards all begin in the order of their ranks, as a resumed run does."""
        roles = [*self.servers.refs, *(member.ref for member in self.members.values())]
        saves = submit_saves(self.engine, roles, self.control)
        lost = self.supervisor.losses(saves)
        inserted = self._cut_windows
        for save in saves:  # also where the checkpoint will be taken again: a second cut finds no open windows
            if save.error is None and save.role.name in self.members:
                number = self.engine.result(save).num_inserted
                self.members[save.role.name].inserted(number)
                inserted[save.role.name] = inserted.get(save.role.name, 0) + number
        if lost:  # bring them back and try again
            for save in saves:
                if save.error is None:
                    self.control.counters.add(self.engine.result(save))
            for loss in lost:
                if loss.restarted is not None:
                    yield loss.restarted
                if loss.is_let_go:
                    yield self._let_go(self.members[loss.future.role.name], ": there is no room for it")
                elif loss.future.role.name in self.members:
                    self._restore(self.members[loss.future.role.name], self.roster.revive)
                else:
                    self.servers.revive(loss.future.role)
            return
        event, self._cut_windows = drained(self.engine, saves, self.control), {}
        yield dataclasses.replace(event, state=self.roster.state(), inserted=inserted)

    def _resize(self) -> Iterator[Event]:
        """Hire where there is room, or let the last ones go, until there are as many as the user wants by now."""
        wanted = self.roster.num_wanted
        for _ in range(self.supervisor.openings.num_to_hire(wanted - len(self.members))):
            member = self.roster.hire()
            self.supervisor.joiners.add(member.ref.name)
            self._restore(member, self.roster.join)
            yield CrewChanged(len(self.members), f"{member.ref.name} joined")
        while len(self.members) > wanted:
            yield self._let_go(list(self.members.values())[-1])

    def _let_go(self, member: Member, why: str = "") -> CrewChanged:
        self.roster.dismiss(member)
        self._jobs = {future: job for future, job in self._jobs.items() if job.member is not member}
        self._release(member.group)
        self._merge_if_whole(member.group)
        return CrewChanged(len(self.members), f"{member.ref.name} left{why}")

    def _restore(self, member: Member, how: Callable[[Member], Future]) -> None:
        member.num_calls += 1
        self._jobs[how(member)] = _Job(member, "restore")

    # what a worker does next

    def _go_on(self, member: Member) -> None:
        """Submit the worker's next call, or leave it waiting for its bound, its pushes or the end of a pause."""
        group, rules, name, pace = member.group, self.rules, member.ref.name, member.pace
        if name not in self.members or member.num_calls >= rules.in_flight:
            return
        clock = group.clocks.of[name] + member.num_unmerged
        # Where there are backups a pause leaves updates owed: some push of each set comes too late and is owed again.
        is_free = not self._is_pausing or (rules.is_mean and clock < group.end)
        if not is_free and rules.is_mean:
            return
        if not self._num_owed(member):
            # It acts on its own pushes merged, but for those that the rules let it run ahead by.
            may_lack = rules.in_flight - 1 if not rules.is_mean or rules.bound is None else rules.bound
            if is_free and not member.num_calls and member.num_unmerged <= may_lack:
                num_steps = self.blueprint.vector_steps(self.config.collect_steps)
                self._submit(_Job(member, "collect"), "collect_with", self.control.counters.progress(), num_steps)
            return
        if not rules.is_mean and member.num_unmerged >= rules.in_flight:
            return
        if not may_start(clock, group.clocks.slowest, rules.bound):
            group.blocked.append(member)
            return
        pace.reserve(self.updates_per_push)
        member.num_unmerged += 1
        member.newest_clock = clock
        ticket = Ticket(name, self.engine.incarnation(member.ref), member.sequence, self.servers.version)
        member.sequence += 1
        job = _Job(member, "push", clock, ticket)
        if rules.local_steps:
            self._submit(job, "local_update", rules.local_steps)
        else:
            self._submit(job, "gradient")
        self._list(member)  # it may have room for one more

    def _submit(self, job: _Job, method: str, *args: object) -> None:
        member, rules = job.member, self.rules
        parts = rules.num_servers if job.kind == "push" else 1
        future = self.engine.submit(member.ref, method, *args, *self.servers.published(), num_parts=parts)
        self._jobs[future] = job
        member.num_calls += 1

    def _num_owed(self, member: Member) -> int:
        """Pushes that it could make on what it has inserted already."""
        pace = member.pace
        return pace.updates_allowed() // self.updates_per_push if member.num_held >= pace.batch_size else 0

    def _set_end(self, group: Group) -> None:
        """In a pause: up to which clock the group goes on.

        Those behind catch up with the newest set that has a push, by collecting where they must. Beyond it a set is
        only begun if everybody owes a push of it: one that makes others collect, who owe more for it, might never end.
        """
        if not self._is_pausing or not self.rules.is_mean:
            return
        members = [self.members[name] for name in group.clocks.of]
        group.end = max((member.newest_clock + 1 for member in members if member.num_unmerged), default=0)
        if not self.rules.num_backup:
            clocks = [group.clocks.of[member.ref.name] + member.num_unmerged for member in members]
            owed = map(self._num_owed, members)
            group.end = max(group.end, min(map(sum, zip(clocks, owed, strict=True)), default=0))
        for member in members:
            self._list(member)

    def _list(self, member: Member) -> None:
        if not member.is_listed:
            member.is_listed = True
            self._ready.append(member)

    def _release(self, group: Group) -> None:
        blocked, group.blocked = group.blocked, []
        for member in blocked:
            self._list(member)

    def _release_all(self) -> None:
        """A pause begins or has ended: look at everybody anew, by rank."""
        self._ready.clear()
        for group in self.roster.groups:
            group.blocked = []
        for member in self.members.values():
            member.is_listed = True
            self._ready.append(member)

    # what has come back

    def _answered(self, future: Future) -> Iterator[Event]:
        job = self._jobs.pop(future, None)
        if job is None:
            return  # of a worker that was let go
        member = job.member
        member.num_calls -= 1
        outcome = self.supervisor.receive(future)
        if isinstance(outcome, Loss):
            yield from self._lost(job, outcome)
            return
        if job.kind == "collect":
            counters = self.control.counters
            outcome.lags["policy_lag"] = [self.servers.version - outcome.version]
            counters.add(outcome)
            member.inserted(outcome.num_inserted)
            yield Rollout(member.ref.name, outcome)
        elif job.kind == "restore":
            member.num_held = int(outcome.metrics["num_restored"])
        else:
            assert job.ticket is not None
            self.control.count("bytes_pushed", outcome.num_bytes)
            self._pushed(job, future, outcome)
            yield Gradient(member.ref.name, outcome)
        self._list(member)
        self._set_end(member.group)

    def _pushed(self, job: _Job, future: Future, receipt: Receipt) -> None:
        """A push is here: into its set, or straight on to the servers."""
        member, group = job.member, job.member.group
        assert job.ticket is not None
        ticket = Ticket(job.ticket.worker, job.ticket.incarnation, job.ticket.sequence, receipt.version)
        if not self.rules.is_mean:
            scale = None if self.rules.scales_with_staleness else 1.0
            merge = Merge([ticket], [future], self.updates_per_push, scale)
            self._merging[merge] = [(member, job.clock)]
            self.servers.add(merge)
        elif job.clock < group.merged:  # a backup was quicker; the clock of this one has moved with its set
            self.control.count("pushes_discarded")
            member.num_unmerged -= 1
            member.pace.release(self.updates_per_push)
        else:
            group.sets.setdefault(job.clock, []).append(Arrived(member, ticket, future))
            self._merge_if_whole(group)

    def _merge_if_whole(self, group: Group) -> None:
        """Send the group's next set to the servers once everybody's push, but for the backups', is in it."""
        waiting = group.sets.get(group.merged, [])
        if not waiting or len(waiting) < len(group.clocks.of) - self.rules.num_backup:
            return
        clock = group.merged
        del group.sets[clock]
        group.merged = clock + 1
        waiting.sort(key=lambda arrived: arrived.member.rank)  # the sum must not depend on who came first
        merge = Merge([one.ticket for one in waiting], [one.future for one in waiting], self.updates_per_push)
        self._merging[merge] = [(one.member, clock) for one in waiting]
        self.servers.add(merge)
        self._merge_if_whole(group)

    def _merged(self, merge: Merge) -> Iterator[Event]:
        """All servers have committed a set: its makers' clocks move, and whoever waited for them may start."""
        makers = self._merging.pop(merge)
        counters = self.control.counters
        num_pushes = len(merge.tickets) - merge.num_refused  # some may be gone with their makers' machine
        receipt = Receipt(
            version=self.servers.version,
            num_updates=merge.num_updates if num_pushes else 0,
            num_samples=num_pushes * self.updates_per_push * self.blueprint.batch_size,
            lags={"staleness": merge.staleness},
        )
        counters.add(receipt)
        for member, _ in makers:
            member.num_unmerged -= 1
        if self.rules.is_mean:
            group, clock = makers[0][0].group, makers[0][1] + 1
            behind = [name for name, own in group.clocks.of.items() if own < clock]  # those it did not wait for too
        else:
            group, clock = makers[0][0].group, None
            behind = [member.ref.name for member, _ in makers if member.ref.name in self.members]
        for name in behind:
            if group.clocks.advance(name, clock):
                self._release(group)
            self._list(self.members[name])
        self._set_end(group)
        yield Update(",".join(server.name for server in self.servers.refs), receipt)

    def _lost(self, job: _Job, loss: Loss) -> Iterator[Event]:
        """A worker's call gave nothing: give back what it had reserved, and its owner a new life where it died."""
        member = job.member
        if job.ticket is not None:
            member.num_unmerged -= 1
            is_of_a_dead_life = job.ticket.incarnation < self.engine.incarnation(member.ref)
            if not (is_of_a_dead_life and self.blueprint.learns_from_rollouts):  # whose rollout is lost too
                member.pace.release(self.updates_per_push)
        if loss.is_let_go:
            yield self._let_go(member, ": there is no room for it")
            return
        if loss.restarted is not None:
            yield loss.restarted
            member.sequence = 0
            self._restore(member, self.roster.revive)
        elif isinstance(loss.error, ValueLost):
            # All that a worker is given is published by servers. To ask again at once would be to ask for ever.
            self._stalled.append((member, job.kind == "restore"))
            self.servers.renew(loss.error.producer)
            return
        self._list(member)

    def _resume_stalled(self) -> None:
        stalled, self._stalled = self._stalled, []
        for member, is_restored in stalled:
            if member.ref.name not in self.members:
                continue
            if is_restored:
                self._restore(member, self.roster.revive)
            self._list(member)

    def _describe(self) -> str:
        return "; ".join(
            f"{name}: clock {member.group.clocks.of[name]}, {member.num_unmerged} unmerged"
            for name, member in self.members.items()
        )
