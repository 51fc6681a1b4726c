"""A replay that is cut into shards, seen as one: inserts take turns, draws follow the shards' total priorities.

waits for                  unblocked by
an insertion               a shard that is alive; one that dies meanwhile hands it on to the next
an order of batches        the last shard's draw; lost where a shard dies before that
a dead shard               its checkpoint loaded again; what it was given since is lost, and counted
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from qfleet.engines.base import Engine, Future, Placement, RoleRef
from qfleet.errors import ValueLost
from qfleet.ops.sharding import draw_counts, shard_shares
from qfleet.replay.redistribute import ReplaySource
from qfleet.roles.blueprint import Blueprint
from qfleet.roles.replay_shard import ReplayShard
from qfleet.seeding import derive_generator, generator_state, set_generator_state
from qfleet.strategies.base import Control, Event, Saved, call
from qfleet.strategies.base.supervisor import Loss, Supervisor
from qfleet.types import Receipt, SavedFile


@dataclass(slots=True, eq=False)
class Collected:
    """An actor's transitions on their way into a shard.

    Attributes:
        actor: name of the role that made them.
        future: the call that made them; its payload is an Insertion.
        receipt: of that call; once they are in, with `num_inserted`.
        num_transitions: how many.
    """

    actor: str
    future: Future
    receipt: Receipt
    num_transitions: int


@dataclass(slots=True, eq=False)
class Order:
    """Batches for one call of the learners, being drawn or drawn.

    Attributes:
        version: the learners' when it was asked for; the age of its priorities counts from there.
        num_updates: batches for each learner.
        num_transitions: over all shards.
        draws: completed or pending calls by learner, in order of the shards.
        shares: each draw's shard's share of the total priority, by learner.
        shards: index of each draw's shard, by learner.
        num_missing: draws that are not in yet.
        is_lost: whether one of them never will be.
    """

    version: int
    num_updates: int
    num_transitions: int
    draws: list[list[Future]] = field(default_factory=list)
    shares: list[list[float]] = field(default_factory=list)
    shards: list[list[int]] = field(default_factory=list)
    num_missing: int = 0
    is_lost: bool = False


@dataclass(slots=True)
class _Job:
    """A call under way at shard `index`."""

    kind: str  # "insert", "sample", "priorities", "restore"
    index: int
    collected: Collected | None = None
    order: Order | None = None


class ShardGroup:
    """Spawns the shards, deals out insertions, draws over all of them, and brings a dead one back.

    Args:
        engine, control: as the strategy has them.
        supervisor: who decides about restarts.
        blueprint: the run's plan.
        num_shards: S.

    Attributes:
        refs: the shards' roles.
        totals: float64 [S], each shard's total priority as it last said; 0 while it is being brought back.
        sizes: int64 [S], each shard's number of transitions, likewise.
    """

    def __init__(
        self, engine: Engine, supervisor: Supervisor, blueprint: Blueprint, control: Control, num_shards: int
    ) -> None:
        self.engine = engine
        self.supervisor = supervisor
        self.control = control
        share = blueprint.share_replay(num_shards)
        self.refs: list[RoleRef] = [
            engine.spawn(f"shard-{i}", ReplayShard, share, f"shard-{i}", i, placement=Placement(near="pack"))
            for i in range(num_shards)
        ]
        self.totals = np.zeros(num_shards)
        self.sizes = np.zeros(num_shards, np.int64)
        self._generator = derive_generator(blueprint.seed, "coordinator", "draws")
        self._turn = 0
        self._held: deque[Collected] = deque()
        self._jobs: dict[Future, _Job] = {}
        self._reviving: set[int] = set()
        self._num_unsaved = [0] * num_shards  # transitions given to each since its newest checkpoint
        self._sources: list[list[ReplaySource]] = [[] for _ in self.refs]  # instead of a checkpoint of their own

    def start(self, saved: Saved | None) -> None:
        """Load a checkpoint, of however many shards. Nothing else is in flight."""
        if saved is None:
            return
        state = saved.state["shards"]
        assert isinstance(state, dict)
        set_generator_state(self._generator, state["generator"])
        folder = self.control.checkpoint_folder
        if len(state["sizes"]) == len(self.refs):
            self._turn = state["turn"]
            for index, ref in enumerate(self.refs):
                self._know(index, call(self.engine, ref, "load", folder, saved.tag, saved.files[ref.name])[0])
            return
        self._sources = even_sources(Path(folder), saved.files, state["sizes"], len(self.refs))
        for index, ref in enumerate(self.refs):
            self._know(index, call(self.engine, ref, "restore", 0, folder, [], self._sources[index])[0])

    def state_dict(self) -> dict[str, object]:
        """JSON values for a checkpoint."""
        return {"generator": generator_state(self._generator), "turn": self._turn, "sizes": self.sizes.tolist()}

    def committed(self) -> None:
        """A checkpoint is whole: what was inserted up to it cannot be lost any more."""
        self._num_unsaved = [0] * len(self.refs)
        self._sources = [[] for _ in self.refs]

    @property
    def is_idle(self) -> bool:
        """Whether nothing is in flight or held back."""
        return not self._jobs and not self._held

    @property
    def is_reviving(self) -> bool:
        """Whether a shard is being brought back."""
        return bool(self._reviving)

    @property
    def num_transitions(self) -> int:
        """In all shards that are alive, as far as is known."""
        return int(self.sizes.sum())

    def owns(self, future: Future) -> bool:
        """Whether the call is one of this group's."""
        return future in self._jobs

    def insert(self, collected: Collected) -> None:
        """Give transitions to the next shard in turn."""
        self._held.append(collected)
        self._hand_out()

    def order(self, num_learners: int, num_updates: int, batch_size: int, version: int) -> Order:
        """Ask for `num_updates` batches for each learner, drawn over all shards in proportion to their totals."""
        order = Order(version, num_updates, self.num_transitions)
        shares_S = shard_shares(self.totals)
        for _ in range(num_learners):
            batches = [draw_counts(self.totals, batch_size, self._generator) for _ in range(num_updates)]
            counts_US = np.stack(batches)
            indices = [int(index) for index in np.flatnonzero(counts_US.any(axis=0))]
            order.shards.append(indices)
            order.shares.append([float(shares_S[index]) for index in indices])
            order.draws.append([])
            for index in indices:
                future = self._submit(_Job("sample", index, order=order), "sample", counts_US[:, index].tolist())
                order.draws[-1].append(future)
                order.num_missing += 1
        return order

    def write(self, order: Order, learned: list[Future]) -> None:
        """Send each learner's priorities back to the shards that its transitions came from."""
        for indices, future in zip(order.shards, learned, strict=True):
            for index in indices:
                self._submit(_Job("priorities", index), "update_priorities", future)

    def receive(self, future: Future) -> Iterator[Event | Order | Collected]:
        """Take in a completed call; yields what came of it: an order (drawn or lost), or transitions that are in."""
        job = self._jobs.pop(future)
        outcome = self.supervisor.receive(future)
        if isinstance(outcome, Loss):
            yield from self._lost(job, outcome)
            return
        is_former = future.incarnation != self.engine.incarnation(future.role)
        if not is_former:
            if job.kind == "restore":
                self._reviving.discard(job.index)
                self._hand_out()
            self._know(job.index, outcome)
        if job.kind == "insert":
            assert job.collected is not None
            if is_former:  # overtaken by the news of that life's end: they are gone with it, and in no checkpoint
                self._hand_on(job.collected)
                return
            self._num_unsaved[job.index] += outcome.num_inserted
            job.collected.receipt.num_inserted = outcome.num_inserted
            seconds = job.collected.receipt.seconds
            seconds["replay"] = seconds.get("replay", 0.0) + outcome.seconds["replay"]
            yield job.collected
        elif job.kind == "sample":
            assert job.order is not None
            yield from self._drawn(job.order)
        elif job.kind == "priorities" and outcome.metrics["num_refused"]:
            self.control.count("priorities_refused", int(outcome.metrics["num_refused"]))

    def revive(self, ref: RoleRef) -> None:
        """Bring back a shard that was respawned: its newest checkpoint, under a new incarnation."""
        index, control = self.refs.index(ref), self.control
        lost = min(self._num_unsaved[index], int(self.sizes[index])) if index not in self._reviving else 0
        control.count("transitions_lost", lost)
        self._num_unsaved[index] = 0
        self._reviving.add(index)
        self.totals[index] = self.sizes[index] = 0
        sources = self._sources[index]
        files = [] if sources else control.saved_files.get(ref.name, [])
        incarnation, folder = self.engine.incarnation(ref), control.checkpoint_folder
        self._submit(_Job("restore", index), "restore", incarnation, folder, files, sources)

    def _submit(self, job: _Job, method: str, *args: object) -> Future:
        future = self.engine.submit(self.refs[job.index], method, *args)
        self._jobs[future] = job
        return future

    def _hand_out(self) -> None:
        num_shards = len(self.refs)
        while self._held and len(self._reviving) < num_shards:
            while self._turn in self._reviving:
                self._turn = (self._turn + 1) % num_shards
            collected = self._held.popleft()
            self._submit(_Job("insert", self._turn, collected), "insert", collected.future)
            self._turn = (self._turn + 1) % num_shards

    def _hand_on(self, collected: Collected) -> None:
        """Not acknowledged by a life that lasts, and still where it was made: the next shard's, before all others."""
        self._held.appendleft(collected)
        self._hand_out()

    def _know(self, index: int, receipt: Receipt) -> None:
        if index not in self._reviving:
            self.totals[index] = receipt.metrics["total_priority"]
            self.sizes[index] = int(receipt.metrics["num_transitions"])

    def _drawn(self, order: Order) -> Iterator[Order]:
        order.num_missing -= 1
        if not order.num_missing:
            yield order

    def _lost(self, job: _Job, loss: Loss) -> Iterator[Event | Order | Collected]:
        if loss.restarted is not None:
            yield loss.restarted
            self.revive(self.refs[job.index])
        if job.kind == "insert":
            assert job.collected is not None
            if isinstance(loss.error, ValueLost):  # gone with the actor's machine
                self.control.count("transitions_not_inserted", job.collected.num_transitions)
                yield job.collected
            else:
                self._hand_on(job.collected)
        elif job.kind == "sample":
            assert job.order is not None
            job.order.is_lost = True
            yield from self._drawn(job.order)


def even_sources(
    root: Path, files: dict[str, list[SavedFile]], sizes: list[int], num_new: int
) -> list[list[ReplaySource]]:
    """How shards that held `sizes` transitions are dealt out to `num_new` others, like cards: as even as can be.

    With as much room in all as before nothing is dropped, which dealing whole shards could not promise.
    """
    plan: list[list[ReplaySource]] = [[] for _ in range(num_new)]
    first = 0  # who gets the next card
    for index, size in enumerate(sizes):
        name = f"shard-{index}"
        own = [dataclasses.replace(file, path=file.path.removeprefix(f"{name}/")) for file in files[name]]
        for part in range(num_new):
            plan[(first + part) % num_new].append(ReplaySource(root / name, own, part, num_new))
        first = (first + size) % num_new
    return plan
