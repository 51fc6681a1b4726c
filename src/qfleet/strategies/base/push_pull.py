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

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from qfleet.engines.base import Engine, Future, RoleRef
from qfleet.errors import ValueLost
from qfleet.ops.pacing import Pace
from qfleet.ops.staleness import may_start
from qfleet.replay.redistribute import ReplaySource, redistribution
from qfleet.roles.blueprint import Blueprint
from qfleet.roles.gradient_worker import GradientWorker
from qfleet.roles.push import Compression
from qfleet.strategies.base import (
    Control,
    CrewChanged,
    Event,
    Gradient,
    Rollout,
    Saved,
    Update,
    call,
    drained,
    submit_saves,
)
from qfleet.strategies.base.clocks import Clocks
from qfleet.strategies.base.config import FleetConfig
from qfleet.strategies.base.servers import Merge, ServerGroup
from qfleet.strategies.base.supervisor import Loss, Supervisor
from qfleet.types import Receipt, SavedFile, Ticket


@dataclass(frozen=True, slots=True)
class Rules:
    """How workers wait and how pushes merge.

    Attributes:
        num_groups: into how many groups the workers are dealt; they wait and merge within their own.
        bound: how many clocks a worker may be ahead of the slowest of its group; None for no bound.
        is_mean: a set of one push per member is merged as its mean; else each push is applied as it arrives.
        num_backup: of each set so many pushes are not waited for; they are discarded when they come.
        scales_with_staleness: whether an arriving push weighs 1 / (1 + staleness).
        in_flight: how many pushes of a worker may be under way where they are applied as they arrive.
        local_steps: 0 pushes gradients; H pushes the difference that H updates of the worker's own make.
        num_servers: slices of the parameter vector.
        compression, top_k_fraction: how a push travels.
    """

    num_groups: int = 1
    bound: int | None = 0
    is_mean: bool = True
    num_backup: int = 0
    scales_with_staleness: bool = False
    in_flight: int = 1
    local_steps: int = 0
    num_servers: int = 1
    compression: Compression = "none"
    top_k_fraction: float = 0.01


@dataclass(slots=True, eq=False)
class _Member:
    """What the coordinator knows of one worker."""

    ref: RoleRef
    rank: int
    group: _Group
    pace: Pace
    num_held: int = 0  # transitions in the replay of its present life, as far as it takes to fill a batch
    sequence: int = 0
    num_unmerged: int = 0  # pushes submitted and neither merged nor discarded
    num_calls: int = 0  # calls under way
    is_listed: bool = False


@dataclass(slots=True, eq=False)
class _Group:
    """Members that wait for each other, and their open sets of pushes by clock."""

    clocks: Clocks = field(default_factory=Clocks)
    sets: dict[int, list[tuple[_Member, Ticket, Future, Receipt]]] = field(default_factory=dict)
    merged: int = 0  # sets up to this clock are merged (or being so)
    blocked: list[_Member] = field(default_factory=list)


@dataclass(slots=True)
class _Job:
    """A call under way at a worker."""

    member: _Member
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
        self.supervisor = Supervisor(engine, config, control)
        self.servers = ServerGroup(
            engine, self.supervisor, blueprint, control, rules.num_servers, rules.local_steps > 0
        )
        self.groups = [_Group() for _ in range(rules.num_groups)]
        self.members: dict[str, _Member] = {}
        self._num_ever = 0
        self._jobs: dict[Future, _Job] = {}
        self._ready: deque[_Member] = deque()
        self._merging: dict[Merge, list[tuple[_Member, int]]] = {}
        self._is_pausing = False
        self._saved_state: dict[str, object] = {}

    def events(self, saved: Saved | None) -> Iterator[Event]:
        """The strategy's events, for ever."""
        control = self.control
        self._start(saved)
        while True:
            if control.snapshot_wanted and (self.engine.is_concurrent or self._is_quiet()):
                control.snapshot_wanted = False
                self.servers.ask_snapshot()
            # Where calls run one at a time, a snapshot is taken between rounds, as serial training takes it.
            wants_snapshot = control.snapshot_wanted or self.servers.is_assembling
            is_pausing = control.drain_tag is not None or (wants_snapshot and not self.engine.is_concurrent)
            if is_pausing != self._is_pausing:
                self._is_pausing = is_pausing
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
            else:
                yield from self._answered(future)

    def _is_quiet(self) -> bool:
        return not self._jobs and not self._ready and self.servers.is_idle

    # starting and saving

    def _start(self, saved: Saved | None) -> None:
        self.servers.start(saved)
        wanted = self.control.num_workers or self.config.num_workers
        for _ in range(wanted + self.rules.num_backup * self.rules.num_groups):
            self._hire()
        if saved is None:
            return
        paces = saved.state["workers"]
        assert isinstance(paces, dict)
        old = [role for role in saved.files if role.startswith("worker-")]
        new = list(self.members)
        self._num_ever = int(str(saved.state["num_ever"]))
        if old == new:
            for name, member in self.members.items():
                call(self.engine, member.ref, "load", self.control.checkpoint_folder, saved.tag, saved.files[name])
                state = paces[name]
                member.pace.num_inserted, member.pace.num_samples_reserved = state["inserted"], state["samples"]
                member.sequence, member.num_held = state["sequence"], state["inserted"]
                member.group.clocks.advance(name, state["clock"])
            for group, merged in zip(self.groups, saved.state["merged"], strict=True):  # type: ignore[call-overload]
                group.merged = merged
        else:
            self._redistribute(saved, old, paces)
        self._saved_state = saved.state

    def _redistribute(self, saved: Saved, old: list[str], paces: dict[str, dict[str, int]]) -> None:
        """Other workers than those that saved: deal out their replays and what their paces have counted."""
        shares = redistribution(old, list(self.members))
        for name, member in self.members.items():
            member.sequence = max(state["sequence"] for state in paces.values()) + 1
            sources = []
            for role, part, num_parts in shares[name]:
                sources.append(self._source(role, saved.files[role], part, num_parts))
                member.pace.num_inserted += -(-paces[role]["inserted"] // num_parts)
                member.pace.num_samples_reserved += paces[role]["samples"] // num_parts
            receipt, _ = call(self.engine, member.ref, "restore", 0, saved.tag, sources, *self.servers.published())
            member.num_held = int(receipt.metrics["num_restored"])

    def _source(self, role: str, files: list[SavedFile], part: int = 0, num_parts: int = 1) -> ReplaySource:
        """Where a worker's saved replay lies; its first file is the state, the others are the replay's."""
        own = [SavedFile(file.path.removeprefix(f"{role}/"), file.num_bytes, file.sha256) for file in files[1:]]
        return ReplaySource(Path(self.control.checkpoint_folder) / role, own, part, num_parts)

    def _hire(self) -> _Member:
        rank, rules = self._num_ever, self.rules
        self._num_ever += 1
        name = f"worker-{rank}"
        wanted = self.config.num_workers + rules.num_backup * rules.num_groups
        blueprint = self.blueprint.share_replay(self.config.num_workers)
        ref = self.engine.spawn(
            name,
            GradientWorker,
            blueprint,
            name,
            rank % wanted,
            wanted,
            rules.num_servers,
            rules.compression,
            rules.top_k_fraction,
            placement=self.config.worker_placement(),
        )
        replay, batch_size = blueprint.replay, blueprint.algo.batch_size
        pace = Pace(0, 0, replay.min_transitions, replay.samples_per_insert, batch_size)
        group = min(self.groups, key=lambda group: len(group.clocks.of))
        member = self.members[name] = _Member(ref, rank, group, pace)
        group.clocks.join(name)
        self._list(member)
        return member

    def _save(self) -> Iterator[Event]:
        """All is quiet: the consistent cut. Afterwards all begin in the order of their ranks, as a resumed run does."""
        workers = {
            name: {
                "inserted": member.pace.num_inserted,
                "samples": member.pace.num_samples_reserved,
                "sequence": member.sequence,
                "clock": member.group.clocks.of[name],
            }
            for name, member in self.members.items()
        }
        state: dict[str, object] = {
            "workers": workers,
            "merged": [group.merged for group in self.groups],
            "num_ever": self._num_ever,
        }
        roles = [*self.servers.refs, *(member.ref for member in self.members.values())]
        saves = submit_saves(self.engine, roles, self.control)
        lost = [outcome for outcome in map(self.supervisor.receive, saves) if isinstance(outcome, Loss)]
        if lost:  # bring them back and try again
            for loss in lost:
                if loss.restarted is not None:
                    yield loss.restarted
                if loss.future.role.name in self.members:
                    self._revive(self.members[loss.future.role.name])
                else:
                    self.servers.revive(loss.future.role)
            return
        event = drained(self.engine, saves, self.control, state)
        for name, num_inserted in event.inserted.items():
            if num_inserted:
                self.members[name].pace.num_inserted += num_inserted
                workers[name]["inserted"] += num_inserted
        self._saved_state = state
        yield event

    def _resize(self) -> Iterator[Event]:
        """Hire, or let the last ones go, until there are as many workers as the user wants by now."""
        wanted = self.control.num_workers
        if wanted is None:
            return
        wanted += self.rules.num_backup * self.rules.num_groups
        while len(self.members) < wanted:
            member = self._hire()
            member.num_calls += 1
            future = self.engine.submit(member.ref, "restore", 0, "joined", [], *self.servers.published())
            self._jobs[future] = _Job(member, "restore")
            yield CrewChanged(len(self.members), f"{member.ref.name} joined")
        while len(self.members) > max(1, wanted):
            member = list(self.members.values())[-1]
            self._dismiss(member)
            yield CrewChanged(len(self.members), f"{member.ref.name} left")

    def _dismiss(self, member: _Member) -> None:
        """Let a worker go: its unfinished work and its replay are lost, and counted."""
        name = member.ref.name
        self.engine.stop(member.ref)
        del self.members[name]
        for future in [future for future, job in self._jobs.items() if job.member is member]:
            del self._jobs[future]
        self.control.count("transitions_lost", member.pace.num_inserted)
        member.group.clocks.leave(name)
        self._release(member.group)
        for clock in sorted(member.group.sets):
            self._merge_if_whole(member.group, clock)

    # what a worker does next

    def _go_on(self, member: _Member) -> None:
        """Submit the worker's next call, or leave it waiting for its bound, its pushes or the end of a pause."""
        if member.num_calls or member.ref.name not in self.members:
            return
        group, rules, name = member.group, self.rules, member.ref.name
        clock = group.clocks.of[name] + member.num_unmerged
        pace = member.pace
        owes = member.num_held >= pace.batch_size and pace.updates_allowed() >= self.updates_per_push
        if not owes:
            # A pause lets those behind catch up with the set that is open, and everybody make the updates they owe.
            if self._is_pausing and not (rules.is_mean and clock < self._open_until(group)):
                return
            self._submit(
                _Job(member, "collect"), "collect_with", self.control.counters.progress(), self.config.collect_steps
            )
            return
        if not rules.is_mean and member.num_unmerged >= rules.in_flight:
            return
        if not may_start(clock, group.clocks.slowest, rules.bound):
            group.blocked.append(member)
            return
        pace.reserve(self.updates_per_push)
        member.num_unmerged += 1
        ticket = Ticket(name, self.engine.incarnation(member.ref), member.sequence, self.servers.version)
        member.sequence += 1
        job = _Job(member, "push", clock, ticket)
        if rules.local_steps:
            self._submit(job, "local_update", rules.local_steps)
        else:
            self._submit(job, "gradient")

    def _submit(self, job: _Job, method: str, *args: object) -> None:
        member, rules = job.member, self.rules
        parts = rules.num_servers if job.kind == "push" else 1
        future = self.engine.submit(member.ref, method, *args, *self.servers.published(), num_parts=parts)
        self._jobs[future] = job
        member.num_calls += 1

    def _open_until(self, group: _Group) -> int:
        """Clocks below this have a push under way or waiting: a pause lets those behind reach it."""
        return max((group.clocks.of[member.ref.name] + member.num_unmerged for member in self._of(group)), default=0)

    def _of(self, group: _Group) -> Iterator[_Member]:
        return (self.members[name] for name in group.clocks.of)

    def _list(self, member: _Member) -> None:
        if not member.is_listed:
            member.is_listed = True
            self._ready.append(member)

    def _release(self, group: _Group) -> None:
        blocked, group.blocked = group.blocked, []
        for member in blocked:
            self._list(member)

    def _release_all(self) -> None:
        """A pause begins or has ended: look at everybody anew, by rank."""
        self._ready.clear()
        for group in self.groups:
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
        elif job.kind == "collect":
            counters = self.control.counters
            outcome.lags["policy_lag"] = [self.servers.version - outcome.version]
            counters.add(outcome)
            member.pace.num_inserted += outcome.num_inserted
            member.num_held += outcome.num_inserted
            yield Rollout(member.ref.name, outcome)
        elif job.kind == "restore":
            member.num_held = int(outcome.metrics["num_restored"])
        else:
            assert job.ticket is not None
            self.control.count("bytes_pushed", outcome.num_bytes)
            self._pushed(job, future, outcome)
            yield Gradient(member.ref.name, outcome)
        self._list(member)

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
        elif job.clock < group.merged:
            self._discard(member, group)
        else:
            group.sets.setdefault(job.clock, []).append((member, ticket, future, receipt))
            self._merge_if_whole(group, job.clock)

    def _discard(self, member: _Member, group: _Group) -> None:
        """A push that came after its set was merged: a backup was quicker. Its owner goes on with the others."""
        self.control.count("pushes_discarded")
        member.num_unmerged -= 1
        member.pace.release(self.updates_per_push)
        # Sets are begun in order, so those merged meanwhile are behind this worker now.
        if group.clocks.advance(member.ref.name, max(group.clocks.of[member.ref.name], group.merged)):
            self._release(group)

    def _merge_if_whole(self, group: _Group, clock: int) -> None:
        waiting = group.sets.get(clock, [])
        if not waiting or clock != group.merged or len(waiting) < len(group.clocks.of) - self.rules.num_backup:
            return
        del group.sets[clock]
        group.merged = clock + 1
        waiting.sort(key=lambda entry: entry[0].rank)  # the sum must not depend on who came first
        merge = Merge([entry[1] for entry in waiting], [entry[2] for entry in waiting], self.updates_per_push)
        self._merging[merge] = [(entry[0], clock) for entry in waiting]
        self.servers.add(merge)
        self._merge_if_whole(group, clock + 1)

    def _merged(self, merge: Merge) -> Iterator[Event]:
        """All servers have committed a set: its makers' clocks move, and whoever waited for them may start."""
        makers = self._merging.pop(merge)
        counters = self.control.counters
        num_pushes = len(makers) - merge.num_refused
        receipt = Receipt(
            version=self.servers.version,
            num_updates=merge.num_updates if num_pushes else 0,
            num_samples=num_pushes * self.updates_per_push * self.blueprint.algo.batch_size,
            lags={"staleness": merge.staleness},
        )
        counters.add(receipt)
        for member, clock in makers:
            name, group = member.ref.name, member.group
            member.num_unmerged = max(0, member.num_unmerged - 1)
            if name not in self.members:
                continue
            if group.clocks.advance(name, max(group.clocks.of[name], clock + 1) if self.rules.is_mean else None):
                self._release(group)
            self._list(member)
        yield Update(",".join(server.name for server in self.servers.refs), receipt)

    def _lost(self, job: _Job, loss: Loss) -> Iterator[Event]:
        """A worker's call gave nothing: give back what it had reserved, and its owner a new life where it died."""
        member = job.member
        if job.kind == "push":
            member.num_unmerged -= 1
            member.pace.release(self.updates_per_push)
        if loss.restarted is not None:
            yield loss.restarted
            member.sequence = 0
            self._revive(member)
        elif job.kind == "restore" and isinstance(loss.error, ValueLost):
            self._revive(member)

    def _revive(self, member: _Member) -> None:
        """A worker's new life: the newest parameters, its last checkpointed replay; what came later is lost."""
        name, control = member.ref.name, self.control
        files = control.saved_files.get(name, [])
        workers = self._saved_state.get("workers", {})
        assert isinstance(workers, dict)
        held = workers.get(name, {}).get("inserted", 0)
        control.count("transitions_lost", max(0, member.pace.num_inserted - held))
        member.num_held = 0
        member.num_calls += 1
        future = self.engine.submit(
            member.ref,
            "restore",
            self.engine.incarnation(member.ref),
            control.saved_tag,
            [self._source(name, files)] if len(files) > 1 else [],
            *self.servers.published(),
        )
        self._jobs[future] = _Job(member, "restore")

    def _describe(self) -> str:
        return "; ".join(
            f"{name}: clock {member.group.clocks.of[name]}, {member.num_unmerged} unmerged"
            for name, member in self.members.items()
        )
