"""Who acts: hiring, letting go, resuming and reviving the actors that fill a replay or a queue elsewhere. Beside
learners.py and shards.py; what an actor is given to do is the strategy's.

waits for       unblocked by
a new actor     room for it; at the start of a run it is not waited for
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from qfleet.engines.base import Future, RoleRef
from qfleet.roles.blueprint import Blueprint
from qfleet.strategies.base import CrewChanged, Event, Saved, load_roles
from qfleet.strategies.base.supervisor import Supervisor


class ActorGroup:
    """The actors of a run.

    Args:
        supervisor: of all roles of the run; it knows where there is room, and what the user wants.
        blueprint: the run's plan; actors act on the CPU unless `worker_gpus` is above 0.
        role: an actor's class, built with (blueprint, name, rank, number of actors).
        joined: told of each that is hired.
        left: told of each that is let go; it is stopped by then.

    Attributes:
        refs: by name, those hired first in front.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        blueprint: Blueprint,
        role: Callable[..., object],
        joined: Callable[[RoleRef], None],
        left: Callable[[RoleRef], None],
    ) -> None:
        self.supervisor = supervisor
        self.engine, self.control, self.config = supervisor.engine, supervisor.control, supervisor.config
        self.blueprint = blueprint if self.config.worker_gpus else dataclasses.replace(blueprint, device="cpu")
        self.role = role
        self.joined, self.left = joined, left
        self.refs: dict[str, RoleRef] = {}
        self._ranks: dict[str, int] = {}
        self._num_ever = 0

    @property
    def num_wanted(self) -> int:
        """How many the user wants by now."""
        return max(1, self.control.num_workers or self.config.num_workers)

    def start(self, saved: Saved | None) -> None:
        """Hire those wanted; as many as a checkpoint knows go on where they were."""
        names: list[str] = []
        if saved is not None:
            known = saved.state["actors"]
            assert isinstance(known, list)
            names = [str(name) for name in known]
            self._num_ever = int(str(saved.state["num_ever"]))
        for number in range(self.num_wanted):
            ref = self._hire(names[number] if number < len(names) else None)
            if saved is not None and ref.name in names:
                load_roles(self.engine, [ref], self.control, saved)

    def state_dict(self) -> dict[str, object]:
        """JSON values for the checkpoint, of which `start` makes the same actors again."""
        return {"actors": list(self.refs), "num_ever": self._num_ever}

    def _hire(self, name: str | None = None) -> RoleRef:
        """An actor more, under the name that it had in a checkpoint, or a new one; at the lowest rank that is free."""
        if name is None:
            name = f"actor-{self._num_ever}"
            self._num_ever += 1
        taken, num_actors = self._ranks.values(), self.num_wanted
        rank = next(rank for rank in range(num_actors) if rank not in taken)
        placement = self.config.worker_placement()
        ref = self.engine.spawn(name, self.role, self.blueprint, name, rank, num_actors, placement=placement)
        self.refs[name], self._ranks[name] = ref, rank
        self.joined(ref)
        return ref

    def resize(self) -> Iterator[Event]:
        """Hire where there is room, or let the last ones go, until there are as many as the user wants by now."""
        for _ in range(self.supervisor.openings.num_to_hire(self.num_wanted - len(self.refs))):
            ref = self._hire()
            self.supervisor.joiners.add(ref.name)
            yield CrewChanged(len(self.refs), f"{ref.name} joined")
        while len(self.refs) > self.num_wanted:
            yield self.dismiss(next(reversed(self.refs.values())))

    def dismiss(self, ref: RoleRef, why: str = "") -> CrewChanged:
        """Let one go; what it had under way is lost."""
        self.engine.stop(ref)
        del self.refs[ref.name], self._ranks[ref.name]
        self.left(ref)
        return CrewChanged(len(self.refs), f"{ref.name} left{why}")

    def dismiss_without_room(self, ref: RoleRef) -> CrewChanged:
        """The same of one whose place is gone; another is hired once there is room."""
        return self.dismiss(ref, ": there is no room for it")

    def revive(self, ref: RoleRef) -> Future:
        """A new life begins with fresh episodes; the unfinished rollout is lost."""
        return self.engine.submit(ref, "restore", self.engine.incarnation(ref), self.control.saved_tag)
