"""A group of learners that stay equal, seen as one: takes orders of batches, publishes versions, survives deaths.

waits for                   unblocked by
an order                    a free place: one under way and one queued; with several learners one at a time
a publication               `publish_every` updates since the last one, or a snapshot asked for
a broken group              all calls back; then the living one with the newest version gives its state to the others,
                            or, if none lives, all begin again at the newest publication
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from qfleet.engines.base import Engine, Future, Placement, RoleRef
from qfleet.errors import QfleetError, ValueLost
from qfleet.roles.blueprint import Blueprint
from qfleet.roles.sample_learner import SampleLearner
from qfleet.strategies.base import Control, Event, Saved, SnapshotPublished, call
from qfleet.strategies.base.shards import Order
from qfleet.strategies.base.supervisor import Loss, Supervisor
from qfleet.types import Receipt

CALLS_AT_ONE = 2  # so that a learner alone goes on with the next call before the coordinator has heard of the last


@dataclass(slots=True, eq=False)
class Learned:
    """An order was trained on. `futures`, one a learner, hold the new priorities."""

    order: Order
    receipt: Receipt
    futures: list[Future]


@dataclass(slots=True, eq=False)
class Unlearned:
    """Orders that were not, or not wholly, trained on, because something died.

    Attributes:
        orders: their reserved updates are to be given back.
        num_updates: what the parameters have gained (part of a broken call) or lost (back to a publication) by it.
    """

    orders: list[Order]
    num_updates: int = 0


@dataclass(slots=True, eq=False)
class _Call:
    """One order at all learners."""

    order: Order
    futures: list[Future]
    receipts: dict[int, Receipt] = field(default_factory=dict)
    num_back: int = 0


@dataclass(slots=True)
class _Job:
    """A call under way at learner `index`."""

    kind: str  # "learn", "publish", "snapshot", "report", "adopt", "restore"
    index: int
    learning: _Call | None = None


class LearnerGroup:
    """Spawns the learners and keeps them busy, equal and published.

    Args:
        engine, control: as the strategy has them.
        supervisor: who decides about restarts.
        blueprint: the run's plan.
        num_learners: how many.
        publish_every: updates between two publications.
        num_gpus: of each learner.

    Attributes:
        refs: the learners' roles.
        version: the newest known.
        is_republishing: whether the actors are to wait for a publication.
    """

    def __init__(
        self,
        engine: Engine,
        supervisor: Supervisor,
        blueprint: Blueprint,
        control: Control,
        num_learners: int,
        publish_every: int,
        num_gpus: float,
    ) -> None:
        self.engine = engine
        self.supervisor = supervisor
        self.control = control
        self.publish_every = publish_every
        placement = Placement(num_gpus=num_gpus, near="pack")
        self.refs: list[RoleRef] = [
            engine.spawn(f"learner-{i}", SampleLearner, blueprint, f"learner-{i}", i, num_learners, placement=placement)
            for i in range(num_learners)
        ]
        self.version = 0
        self.is_republishing = False
        self._newest: Future | None = None
        self._with_target: Future | None = None
        self._published_version = 0  # of `_newest`
        self._wants_target = True
        self._wants_snapshot = False
        self._jobs: dict[Future, _Job] = {}
        self._num_learning = 0
        self._phase: Literal["well", "broken", "asking", "spreading"] = "well"
        self._mended_version = 0
        self._new_lives: set[int] = set()  # learners that have to be given a state
        self._reports: dict[int, tuple[Receipt, Future]] = {}
        self._unlearned: list[Order] = []

    def start(self, saved: Saved | None) -> None:
        """Load a checkpoint, of however many learners. Nothing else is in flight."""
        if saved is not None:
            for ref in self.refs:
                files = saved.files.get(ref.name, saved.files["learner-0"])
                receipt, _ = call(self.engine, ref, "load", self.control.checkpoint_folder, saved.tag, files)
                self.version = receipt.version
        self.republish()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is in flight or asked for."""
        return not self._jobs and not self._wants_snapshot

    @property
    def is_free(self) -> bool:
        """Whether another order may be given."""
        if self._phase != "well" or self._wants_snapshot or self.is_republishing:
            return False
        return self._num_learning < (CALLS_AT_ONE if len(self.refs) == 1 else 1)

    @property
    def is_snapshotting(self) -> bool:
        """Whether a snapshot was asked for and is not here yet."""
        return self._wants_snapshot or any(job.kind == "snapshot" for job in self._jobs.values())

    def published(self) -> tuple[Future, Future]:
        """The newest publication, and the newest that carries the target: what an actor pulls."""
        assert self._newest is not None
        assert self._with_target is not None
        return self._newest, self._with_target

    def owns(self, future: Future) -> bool:
        """Whether the call is one of this group's."""
        return future in self._jobs

    def republish(self) -> None:
        """Publish as a resumed run does first of all; nothing goes on before it is out."""
        self.is_republishing = True
        self._wants_target = True
        self._pump()

    def renew(self) -> None:
        """What was published is gone with its machine: publish again, or find out that the learner is dead.

        Nobody else would: as long as actors cannot pull, nothing is inserted and no learner is called.
        """
        if not self.is_republishing:
            self.republish()

    def ask_snapshot(self) -> None:
        """Publish, and make a snapshot of the same version for the session."""
        self._wants_snapshot = True
        self._pump()

    def learn(self, order: Order) -> None:
        """Give an order to the learners; `is_free` comes first."""
        args = [
            (order.num_transitions, shares, *draws) for shares, draws in zip(order.shares, order.draws, strict=True)
        ]
        if len(self.refs) == 1:
            futures = [self.engine.submit(self.refs[0], "learn", *args[0])]
        else:
            futures = self.engine.all_reduce(self.refs, "learn_together", args)
        learning = _Call(order, futures)
        self._num_learning += 1
        for index, future in enumerate(futures):
            self._jobs[future] = _Job("learn", index, learning)

    def receive(self, future: Future) -> Iterator[Event | Learned | Unlearned]:
        """Take in a completed call; yields what came of it."""
        job = self._jobs.pop(future)
        outcome = self.supervisor.receive(future)
        if isinstance(outcome, Loss):
            yield from self._lost(job, outcome)
        elif job.kind == "publish":
            self._newest, self._published_version = future, outcome.version
            if outcome.metrics["has_target"]:
                self._with_target = future
            self.is_republishing = False
        elif job.kind == "snapshot":
            yield SnapshotPublished(outcome.version, future)
        elif job.kind == "report":
            self._reports[job.index] = (outcome, future)
        elif job.kind != "learn":
            self._restored(job, outcome)
        if job.learning is not None:
            yield from self._back(job, outcome)
        if self._phase != "well" and not self._jobs:
            yield from self._mend()
        self._pump()

    def revive(self, refs: list[RoleRef]) -> None:
        """These were respawned while nothing was in flight: give them a state again."""
        if refs:
            self._new_lives.update(self.refs.index(ref) for ref in refs)
            self._ask()

    def _pump(self) -> None:
        if self._phase != "well" or any(job.kind in ("publish", "snapshot") for job in self._jobs.values()):
            return
        if self._wants_snapshot:
            self._wants_snapshot = False
            self._submit("publish", 0, self._wants_target)
            self._submit("snapshot", 0)
        elif self.is_republishing or self.version - self._published_version >= self.publish_every:
            self._submit("publish", 0, self._wants_target)

    def _submit(self, method: str, index: int, *args: object) -> None:
        self._jobs[self.engine.submit(self.refs[index], method, *args)] = _Job(method, index)
        if method == "publish":
            self._wants_target = False

    def _back(self, job: _Job, outcome: Receipt | Loss) -> Iterator[Learned | Unlearned]:
        """One learner's answer to an order; with the last one it is known what became of it."""
        learning = job.learning
        assert learning is not None
        learning.num_back += 1
        if isinstance(outcome, Receipt):
            learning.receipts[job.index] = outcome
        if learning.num_back < len(self.refs):
            return
        self._num_learning -= 1
        if len(learning.receipts) == len(self.refs):
            receipt = learning.receipts[0]
            receipt.num_samples = sum(part.num_samples for part in learning.receipts.values())
            self.version = max(self.version, receipt.version)
            yield Learned(learning.order, receipt, learning.futures)
        elif len(self.refs) > 1 or self._phase != "well":
            self._phase = "broken"  # the living may have come unequally far
            self._unlearned.append(learning.order)
        else:
            yield Unlearned([learning.order])  # a draw was lost with its shard's machine

    def _lost(self, job: _Job, loss: Loss) -> Iterator[Event]:
        if loss.restarted is not None:
            yield loss.restarted
            if self._phase == "well":
                self._phase = "broken"
            self._new_lives.add(job.index)
        if job.kind == "snapshot":
            self._wants_snapshot = True
        elif job.kind == "publish":
            self._wants_target = True
        elif job.kind == "restore" and isinstance(loss.error, ValueLost):
            raise QfleetError(
                f"the published parameters are gone with {loss.error.producer}'s machine; --resume the run"
            ) from loss.error

    # after a death: broken (calls still out) -> asking the living -> spreading the newest state -> well

    def _mend(self) -> Iterator[Unlearned]:
        """All calls are back: the next phase."""
        if self._phase == "asking" and self._reports:
            self._spread()
        elif self._phase == "spreading" and not self._new_lives:
            self._phase = "well"
        else:
            self._ask()
        if self._phase == "well":
            difference = self._mended_version - self.version
            orders, self._unlearned = self._unlearned, []
            self.version = self._mended_version
            self._wants_target = True
            yield Unlearned(orders, difference)

    def _ask(self) -> None:
        """Ask the living for all of their state; where none lives, all begin at the newest publication."""
        self._reports = {}
        living = [index for index in range(len(self.refs)) if index not in self._new_lives]
        self._phase = "asking" if living else "spreading"
        for index in living:
            self._submit("report", index)
        if not living:
            # The same files for all: their moments must be equal too.
            files = self.control.saved_files.get("learner-0", [])
            published = [] if self._newest is None else [self._with_target, self._newest]
            for index in range(len(self.refs)):
                self._submit("restore", index, self.control.checkpoint_folder, files, *published)

    def _spread(self) -> None:
        """The newest state goes to all the others."""
        leader = max(self._reports, key=lambda index: (self._reports[index][0].version, -index))
        receipt, state = self._reports[leader]
        self._mended_version = receipt.version
        others = [index for index in range(len(self.refs)) if index != leader]
        self._new_lives.update(others)
        self._phase = "spreading" if others else "well"
        for index in others:
            self._submit("adopt", index, state)

    def _restored(self, job: _Job, receipt: Receipt) -> None:
        self._new_lives.discard(job.index)
        self._mended_version = receipt.version
        if job.kind == "restore":
            tallies = self.control.tallies
            age = int(receipt.metrics["moments_age"])
            tallies["moments_age_updates"] = max(tallies.get("moments_age_updates", 0), age)
