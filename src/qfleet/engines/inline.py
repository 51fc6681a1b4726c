"""Inline: one thread, one process, the embedded default.

    waits for                 unblocked by
    wait()                    running one pending call itself: drawn from the seed among the first calls of each role
    a generator's yield       the last member of its group to yield; then all members go on in turn

Nothing runs before `wait`, and the draw is the only source of order, so every run, asynchronous strategies included,
replays bit for bit from its seed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence

import torch

from qfleet.engines.base import (
    EngineConfig,
    Future,
    InProcess,
    Placement,
    RoleRef,
    average,
    call_failed,
    check_arguments,
    check_group,
    local_values,
    split_answer,
)
from qfleet.errors import RoleDied, ValueLost
from qfleet.placement.in_process import Call, Group, Role
from qfleet.placement.traffic import Traffic
from qfleet.seeding import derive_generator, generator_state, set_generator_state
from qfleet.types import Receipt

ANYWHERE = Placement()


class Config(EngineConfig):
    """The [engine] section of the inline engine; it has no settings of its own."""

    name: str = "inline"


class Lane:
    """Pending calls of one lane, by role; drawing one costs the same whether ten roles wait or a thousand."""

    def __init__(self) -> None:
        self.queues: dict[str, deque[Call]] = {}
        self.names: list[str] = []  # of the roles with pending calls, in no order
        self.places: dict[str, int] = {}
        self.done: deque[Future] = deque()  # completed together with another one

    def add(self, name: str, call: Call) -> None:
        queue = self.queues.get(name)
        if queue is None:
            queue = self.queues[name] = deque()
            self.places[name] = len(self.names)
            self.names.append(name)
        queue.append(call)

    def take(self, name: str) -> Call:
        queue = self.queues[name]
        call = queue.popleft()
        if not queue:
            self.drop(name)
        return call

    def drop(self, name: str) -> deque[Call]:
        queue = self.queues.pop(name, None)
        if queue is None:
            return deque()
        place, last = self.places.pop(name), self.names.pop()
        if last != name:
            self.names[place] = last
            self.places[last] = place
        return queue


class Engine(InProcess):
    """Runs every role in this thread.

    Args:
        config: the [engine] section.
        seed: fixes the order in which pending calls run.
    """

    is_concurrent = False

    def __init__(self, config: Config, seed: int) -> None:
        self.config = config
        self._generator = derive_generator(seed, "engine", "inline")
        self._roles: dict[str, Role] = {}
        self._lanes: dict[str, Lane] = {}
        self._groups: dict[Group, None] = {}  # in which a member has arrived
        self._num_calls = 0
        self.traffic = Traffic()

    def spawn(self, name: str, build: Callable[..., object], *args: object, placement: Placement = ANYWHERE) -> RoleRef:
        """Build the role here and now."""
        if name in self._roles:
            raise ValueError(f"role {name} exists already")
        self._roles[name] = Role(build, args)
        self._roles[name].live()
        return RoleRef(name)

    def submit(self, role: RoleRef, method: str, *args: object, lane: str = "training", num_parts: int = 1) -> Future:
        """Queue the call; it runs inside a later `wait`."""
        check_arguments(role, method, args)
        return self._queue(role, method, args, lane, num_parts, None)

    def all_reduce(
        self, group: Sequence[RoleRef], method: str, args: Sequence[tuple[object, ...]], lane: str = "training"
    ) -> list[Future]:
        """Queue a call at each member; the mean is taken when the last one has yielded, in the group's order."""
        check_group(group, method, args)
        shared = Group([role.name for role in group])
        return [self._queue(role, method, own, lane, 1, shared) for role, own in zip(group, args, strict=True)]

    def wait(self, timeout: float | None = None, lane: str = "training") -> Future | None:
        """Run pending calls of the lane until one completes and return it; None when nothing is pending."""
        pending = self._lanes.get(lane)
        if pending is None:
            return None
        while not pending.done:
            names = pending.names
            if not names:
                return None
            call = pending.take(names[0] if len(names) == 1 else self.choose(names))
            if call.group is not None:
                self._arrive(call, call.group)
            else:
                self._run(call)
                return call.future
        return pending.done.popleft()

    def choose(self, names: list[str]) -> str:
        """Which of the roles with pending calls comes next; at least two, in no order."""
        return names[int(self._generator.integers(len(names)))]

    def stop(self, role: RoleRef) -> None:
        """Forget the role and its pending calls."""
        known = self._roles.pop(role.name, None)
        for call in self._drop(role.name):
            if call.group is not None:
                self._break(call.group, role.name)
        if known is not None:
            known.die()

    def kill(self, role: RoleRef) -> None:
        """Forget what the role has built up; its pending calls come back as RoleDied."""
        known = self._roles.get(role.name)
        if known is None or not known.is_alive:
            return
        known.die()
        for call in self._drop(role.name):
            self._complete(call, RoleDied(role.name, known.incarnation, "killed"))
            if call.group is not None:
                self._break(call.group, role.name)

    def respawn(self, role: RoleRef) -> None:
        """Build the role anew."""
        self.kill(role)
        known = self._roles[role.name]
        known.incarnation += 1
        known.live()

    def incarnation(self, role: RoleRef) -> int:
        """How often the role was respawned."""
        known = self._roles.get(role.name)
        return known.incarnation if known is not None else 0

    def now(self) -> float:
        """The number of calls run so far."""
        return float(self._num_calls)

    def state_dict(self) -> dict[str, object]:
        """The draw's random state and the call count, for a checkpoint."""
        return {"generator": generator_state(self._generator), "num_calls": self._num_calls}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Continue the draws where a checkpoint left them; another engine's checkpoint leaves them as they are."""
        if "generator" in state:
            set_generator_state(self._generator, state["generator"])
            self._num_calls = int(str(state["num_calls"]))

    def close(self) -> None:
        """Close every role."""
        for name in list(self._roles):
            self.stop(RoleRef(name))

    def _queue(
        self, role: RoleRef, method: str, args: tuple[object, ...], lane: str, num_parts: int, group: Group | None
    ) -> Future:
        future = Future(role, method, lane, self.incarnation(role), num_parts)
        self.traffic.pass_on(role.name, args, lane)
        pending = self._lanes.get(lane)
        if pending is None:
            pending = self._lanes[lane] = Lane()
        pending.add(role.name, Call(future, args, group))
        return future

    def _run(self, call: Call) -> None:
        future = call.future
        method, values = self._prepare(call)
        if method is None:
            return
        try:
            future.receipt, future.payload = split_answer(method(*values), future.num_parts)
        except Exception as error:
            future.error = call_failed(future, error)

    def _prepare(self, call: Call) -> tuple[Callable[..., object] | None, Sequence[object]]:
        """The role's method and the arguments' values; where there are none, the call has failed."""
        self._num_calls += 1
        future = call.future
        known = self._roles.get(future.role.name)
        if known is None or not known.is_alive or known.incarnation != future.incarnation:
            future.error = RoleDied(future.role.name, future.incarnation, "killed")
            return None, []
        if known.failure is not None:
            future.error = call_failed(future, known.failure)
            return None, []
        try:
            return getattr(known.built, future.method), self._values(call)
        except (ValueLost, AttributeError) as error:
            future.error = error if isinstance(error, ValueLost) else call_failed(future, error)
            return None, []

    def _values(self, call: Call) -> Sequence[object]:
        return local_values(call.args)

    def _arrive(self, call: Call, group: Group) -> None:
        """Start one member's generator; with the last one here, run the group to its end."""
        future = call.future
        if group.broken_by is not None:
            self._num_calls += 1
            self._complete(call, ValueLost(group.broken_by))
            return
        method, values = self._prepare(call)
        if method is not None:
            try:
                steps = method(*values)
                assert isinstance(steps, Generator), f"{future.role.name}.{future.method} is no generator"
                group.members[future.role.name] = (call, steps)
                self._groups[group] = None
            except Exception as error:
                future.error = call_failed(future, error)
        if future.error is not None:
            self._complete(call, future.error)
            self._break(group, future.role.name)
        elif len(group.members) == len(group.names):
            self._meet(group)

    def _meet(self, group: Group) -> None:
        """All are here: turn by turn to the end."""
        while tensors := self._advance(group):
            if not self._average(group, tensors):
                break

    def _advance(self, group: Group) -> list[torch.Tensor]:
        """Each member up to its next yield: what they yield, nothing once they have answered, or one has failed."""
        tensors: list[torch.Tensor] = []
        answers: list[tuple[Receipt, object]] = []
        members = [group.members[name] for name in group.names]
        for call, steps in members:
            try:
                tensors.append(next(steps))
            except StopIteration as end:
                answers.append(split_answer(end.value, call.future.num_parts))
            except Exception as error:
                self._complete(call, call_failed(call.future, error))
                self._break(group, call.future.role.name)
                return []
        if len(answers) == len(members):
            del self._groups[group]
            for (call, _), (call.future.receipt, call.future.payload) in zip(members, answers, strict=True):
                self._complete(call, None)
        return tensors

    def _average(self, group: Group, tensors: list[torch.Tensor]) -> bool:
        """Write the mean into all their tensors; False where they do not fit together, which is no one's fault."""
        try:
            average(tensors, len(group.names))
            self.traffic.ring(tensors[0].nbytes, len(group.names), len(group.names))
        except Exception as error:
            for call, _ in group.members.values():
                self._complete(call, call_failed(call.future, error))
            self._break(group, group.names[0])
            return False
        return True

    def _complete(self, call: Call, error: BaseException | None) -> None:
        """Hand it out at a later turn of `wait`."""
        future = call.future
        future.error = error
        self._lanes[future.lane].done.append(future)

    def _drop(self, name: str) -> list[Call]:
        """Take away a role's unfinished calls, those that stand at a yield included."""
        calls = [call for pending in self._lanes.values() for call in pending.drop(name)]
        for group in self._groups:
            if name in group.members:
                call, steps = group.members.pop(name)
                steps.close()
                calls.append(call)
        return calls

    def _break(self, group: Group, name: str) -> None:
        """A member is lost: those that wait for it have lost the mean; those still to come will find it broken."""
        if group.broken_by is not None:
            return
        group.broken_by = name
        self._groups.pop(group, None)
        for call, steps in group.members.values():
            steps.close()
            if call.future.error is None:
                self._complete(call, ValueLost(name))
