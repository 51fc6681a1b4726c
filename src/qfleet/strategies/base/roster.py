"""Who works: hiring, letting go, loading and reviving the workers of a push-pull run. Beside push_pull.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from qfleet.engines.base import Engine, Future, RoleRef
from qfleet.ops.pacing import Pace
from qfleet.replay.redistribute import ReplaySource, redistribution
from qfleet.roles.blueprint import Blueprint
from qfleet.roles.gradient_worker import GradientWorker
from qfleet.roles.push import Compression
from qfleet.strategies.base import Control, Saved, call
from qfleet.strategies.base.clocks import Clocks
from qfleet.strategies.base.config import FleetConfig
from qfleet.strategies.base.crew import replay_source, saved_workers, worker_name
from qfleet.types import Receipt, Ticket


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
class Member:
    """What the coordinator knows of one worker.

    Attributes:
        ref, rank, group: which one.
        pace: its own: what it has inserted, and the samples promised to pushes of its.
        num_held: transitions inserted into the replay of its present life, restored ones included.
        num_unsaved: those of them that are in no checkpoint: what its death would lose.
        sources: where its share of other workers' replays lies, until it is in a checkpoint of its own.
        sequence: number of its next push.
        num_unmerged: pushes submitted and neither merged nor discarded.
        newest_clock: which clock the newest of them is for.
        num_calls: calls under way.
        is_listed: whether it is on the list of those to be looked at.
    """

    ref: RoleRef
    rank: int
    group: Group
    pace: Pace
    num_held: int = 0
    num_unsaved: int = 0
    sources: list[ReplaySource] = field(default_factory=list)
    sequence: int = 0
    num_unmerged: int = 0
    newest_clock: int = -1
    num_calls: int = 0
    is_listed: bool = False

    def inserted(self, number: int) -> None:
        """So many transitions have come into its replay."""
        self.pace.num_inserted += number
        self.num_held += number
        self.num_unsaved += number


@dataclass(frozen=True, slots=True)
class Arrived:
    """A push that waits for its set."""

    member: Member
    ticket: Ticket
    future: Future


@dataclass(slots=True, eq=False)
class Group:
    """Members that wait for each other.

    Attributes:
        clocks: pushes merged, by member.
        sets: what has arrived for each clock that is not merged yet.
        merged: sets below this clock are merged, or being so.
        blocked: members at their bound.
        end: up to which clock it goes on during a pause.
    """

    clocks: Clocks = field(default_factory=Clocks)
    sets: dict[int, list[Arrived]] = field(default_factory=dict)
    merged: int = 0
    blocked: list[Member] = field(default_factory=list)
    end: int = 0


class Roster:
    """The workers, by name, in their groups.

    Args:
        engine, blueprint, config, control: as the strategy got them.
        rules: how many groups and backups, and how pushes travel.
        published: gives the arguments by which a worker pulls the newest version.
    """

    def __init__(
        self,
        engine: Engine,
        blueprint: Blueprint,
        config: FleetConfig,
        control: Control,
        rules: Rules,
        published: Callable[[], tuple[Future, ...]],
    ) -> None:
        self.engine = engine
        self.num_planned = config.num_workers + rules.num_backup * rules.num_groups
        self.blueprint = blueprint.share_replay(self.num_planned)
        self.config = config
        self.control = control
        self.rules = rules
        self.published = published
        self.groups = [Group() for _ in range(rules.num_groups)]
        self.members: dict[str, Member] = {}
        self._num_ever = 0

    @property
    def num_wanted(self) -> int:
        """How many the user wants by now, backups included."""
        return (self.control.num_workers or self.config.num_workers) + self.rules.num_backup * self.rules.num_groups

    def hire(self) -> Member:
        """Spawn one more worker, in the smallest group, at its slowest clock."""
        rank, rules, blueprint = self._num_ever, self.rules, self.blueprint
        self._num_ever += 1
        name = worker_name(rank)
        ref = self.engine.spawn(
            name,
            GradientWorker,
            blueprint,
            name,
            rank % self.num_planned,
            self.num_planned,
            rules.num_servers,
            rules.compression,
            rules.top_k_fraction,
            placement=self.config.worker_placement(),
        )
        replay = blueprint.replay
        pace = Pace(0, 0, replay.min_transitions, replay.samples_per_insert, blueprint.batch_size)
        group = min(self.groups, key=lambda group: len(group.clocks.of))
        group.clocks.join(name)
        member = self.members[name] = Member(ref, rank, group, pace)
        return member

    def dismiss(self, member: Member) -> None:
        """Let a worker go: its unfinished work and its replay are lost, and counted."""
        name, group = member.ref.name, member.group
        self.engine.stop(member.ref)
        del self.members[name]
        group.clocks.leave(name)
        for clock, waiting in group.sets.items():
            group.sets[clock] = [arrived for arrived in waiting if arrived.member is not member]
        self.control.count("transitions_lost", min(member.num_held, self.blueprint.replay.capacity))

    def start(self, saved: Saved | None) -> None:
        """Hire those wanted, and give them what a checkpoint holds, of however many workers."""
        for _ in range(self.num_wanted):
            self.hire()
        if saved is None:
            return
        workers, merged = saved.state["workers"], saved.state["merged"]
        assert isinstance(workers, dict)
        assert isinstance(merged, list)
        old = saved_workers(saved.files)
        if old == list(self.members):
            for name, member in self.members.items():
                call(self.engine, member.ref, "load", self.control.checkpoint_folder, saved.tag, saved.files[name])
                self._take(member, workers[name])
            for group, clock in zip(self.groups, merged, strict=True):
                group.merged = clock
        else:
            self._redistribute(saved, old, workers)
        self._num_ever = max(self._num_ever, int(str(saved.state["num_ever"])))

    def state(self) -> dict[str, object]:
        """JSON values for the checkpoint that has just been written."""
        for member in self.members.values():
            member.num_unsaved, member.sources = 0, []
        return {
            "workers": {name: self._counts(member) for name, member in self.members.items()},
            "merged": [group.merged for group in self.groups],
            "num_ever": self._num_ever,
        }

    def _counts(self, member: Member) -> dict[str, int]:
        return {
            "inserted": member.pace.num_inserted,
            "held": member.num_held,
            "samples": member.pace.num_samples_reserved,
            "sequence": member.sequence,
            "clock": member.group.clocks.of[member.ref.name],
        }

    def join(self, member: Member) -> Future:
        """Let a worker that was hired in the middle of a run begin there."""
        return self.engine.submit(member.ref, "restore", 0, "joined", [], *self.published())

    def revive(self, member: Member) -> Future:
        """A worker's new life: the newest parameters, its last checkpointed replay; what came later is lost."""
        name, control = member.ref.name, self.control
        files = control.saved_files.get(name, [])
        control.count("transitions_lost", min(member.num_unsaved, self.blueprint.replay.capacity))
        member.num_held = member.num_unsaved = 0
        self._drop_rollout(member)
        sources = member.sources or replay_source(control.checkpoint_folder, name, files)
        incarnation = self.engine.incarnation(member.ref)
        return self.engine.submit(member.ref, "restore", incarnation, control.saved_tag, sources, *self.published())

    def _take(self, member: Member, state: dict[str, int]) -> None:
        member.pace.num_inserted, member.num_held = state["inserted"], state["held"]
        member.pace.num_samples_reserved = state["samples"]
        member.sequence = state["sequence"]
        member.group.clocks.advance(member.ref.name, state["clock"])

    def _drop_rollout(self, member: Member) -> None:
        """A rollout in progress is lost; its updates are not to be made on the next one."""
        if self.blueprint.learns_from_rollouts:
            member.pace.drop_owed()

    def _redistribute(self, saved: Saved, old: list[str], workers: dict[str, dict[str, int]]) -> None:
        """Other workers than those that saved: deal out their replays and what their paces have counted."""
        shares = redistribution(old, list(self.members))
        next_sequence = max(state["sequence"] for state in workers.values()) + 1
        for name, member in self.members.items():
            sources: list[ReplaySource] = []
            for role, part, num_parts in shares[name]:
                files = saved.files[role]
                sources += replay_source(self.control.checkpoint_folder, role, files, part, num_parts)
                member.pace.num_inserted += _part_of(workers[role]["inserted"], part, num_parts)
                member.pace.num_samples_reserved += _part_of(workers[role]["samples"], part, num_parts)
            receipt: Receipt
            receipt, _ = call(self.engine, member.ref, "restore", 0, saved.tag, sources, *self.published())
            member.num_held, member.sources = int(receipt.metrics["num_restored"]), sources
            self._drop_rollout(member)
            member.sequence = next_sequence


def _part_of(total: int, part: int, num_parts: int) -> int:
    """How many of `total` things are at places k with k % num_parts == part."""
    return total // num_parts + (part < total % num_parts)
