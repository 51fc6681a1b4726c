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
from dataclasses import dataclass, field

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
from qfleet.seeding import derive_generator, generator_state, set_generator_state
from qfleet.types import Receipt

ANYWHERE = Placement()
Steps = Generator[torch.Tensor, None, object]


class Config(EngineConfig):
    """The [engine] section of the inline engine; it has no settings of its own."""

    name: str = "inline"


@dataclass(slots=True)
class _Role:
    build: Callable[..., object]
    args: tuple[object, ...]
    built: object = None
    failure: Exception | None = None  # why it could not be built
    incarnation: int = 0
    is_alive: bool = True


@dataclass(slots=True, eq=False)
class _Group:
    """An all-reduce under way: members arrive one by one; their generators stand at a yield until all have."""

    names: list[str]  # the group's order, which is that of the sum
    members: dict[str, tuple[Future, Steps]] = field(default_factory=dict)
    broken_by: str | None = None


@dataclass(slots=True)
class _Call:
    future: Future
    args: tuple[object, ...]
    group: _Group | None = None


class _Lane:
    """Pending calls of one lane, by role; drawing one costs the same whether ten roles wait or a thousand."""

    def __init__(self) -> None:
        self.queues: dict[str, deque[_Call]] = {}
        self.names: list[str] = []  # of the roles with pending calls, in no order
        self.places: dict[str, int] = {}
        self.done: deque[Future] = deque()  # completed together with another one

    def add(self, name: str, call: _Call) -> None:
        queue = self.queues.get(name)
        if queue is None:
            queue = self.queues[name] = deque()
            self.places[name] = len(self.names)
            self.names.append(name)
        queue.append(call)

    def take(self, name: str) -> _Call:
        queue = self.queues[name]
        call = queue.popleft()
        if not queue:
            self.drop(name)
        return call

    def drop(self, name: str) -> deque[_Call]:
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
        self._roles: dict[str, _Role] = {}
        self._lanes: dict[str, _Lane] = {}
        self._groups: dict[_Group, None] = {}  # in which a member has arrived
        self._num_calls = 0

    def spawn(self, name: str, build: Callable[..., object], *args: object, placement: Placement = ANYWHERE) -> RoleRef:
        """Build the role here and now."""
        if name in self._roles:
            raise ValueError(f"role {name} exists already")
        self._roles[name] = _Role(build, args)
        _build(self._roles[name])
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
        shared = _Group([role.name for role in group])
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
            _close(known)

    def kill(self, role: RoleRef) -> None:
        """Forget what the role has built up; its pending calls come back as RoleDied."""
        known = self._roles.get(role.name)
        if known is None or not known.is_alive:
            return
        _close(known)
        known.is_alive, known.built = False, None
        for call in self._drop(role.name):
            self._complete(call.future, RoleDied(role.name, known.incarnation, "killed"))
            if call.group is not None:
                self._break(call.group, role.name)

    def respawn(self, role: RoleRef) -> None:
        """Build the role anew."""
        self.kill(role)
        known = self._roles[role.name]
        known.incarnation += 1
        _build(known)

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
        self, role: RoleRef, method: str, args: tuple[object, ...], lane: str, num_parts: int, group: _Group | None
    ) -> Future:
        future = Future(role, method, lane, self.incarnation(role), num_parts)
        pending = self._lanes.get(lane)
        if pending is None:
            pending = self._lanes[lane] = _Lane()
        pending.add(role.name, _Call(future, args, group))
        return future

    def _run(self, call: _Call) -> None:
        future = call.future
        method, values = self._prepare(call)
        if method is None:
            return
        try:
            future.receipt, future.payload = split_answer(method(*values), future.num_parts)
        except Exception as error:
            future.error = call_failed(future, error)

    def _prepare(self, call: _Call) -> tuple[Callable[..., object] | None, list[object]]:
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
            return getattr(known.built, future.method), local_values(call.args)
        except (ValueLost, AttributeError) as error:
            future.error = error if isinstance(error, ValueLost) else call_failed(future, error)
            return None, []

    def _arrive(self, call: _Call, group: _Group) -> None:
        """Start one member's generator; with the last one here, run the group to its end."""
        future = call.future
        if group.broken_by is not None:
            self._num_calls += 1
            self._complete(future, ValueLost(group.broken_by))
            return
        method, values = self._prepare(call)
        if method is not None:
            try:
                steps = method(*values)
                assert isinstance(steps, Generator), f"{future.role.name}.{future.method} is no generator"
                group.members[future.role.name] = (future, steps)
                self._groups[group] = None
            except Exception as error:
                future.error = call_failed(future, error)
        if future.error is not None:
            self._complete(future, future.error)
            self._break(group, future.role.name)
        elif len(group.members) == len(group.names):
            self._reduce(group)

    def _reduce(self, group: _Group) -> None:
        """Turn by turn: each member up to its next yield, then the mean into all their tensors."""
        members = [group.members[name] for name in group.names]
        answers: list[tuple[Receipt, object]] = []
        while len(answers) < len(members):
            tensors: list[torch.Tensor] = []
            for future, steps in members:
                try:
                    tensors.append(next(steps))
                except StopIteration as end:
                    answers.append(split_answer(end.value, future.num_parts))
                except Exception as error:
                    self._complete(future, call_failed(future, error))
                    self._break(group, future.role.name)
                    return
            if not tensors:
                continue
            try:
                average(tensors, len(members))
            except Exception as error:  # they do not fit together: no one member's fault
                for future, _ in members:
                    self._complete(future, call_failed(future, error))
                self._break(group, group.names[0])
                return
        del self._groups[group]
        for (future, _), (future.receipt, future.payload) in zip(members, answers, strict=True):
            self._complete(future, None)

    def _complete(self, future: Future, error: BaseException | None) -> None:
        """Hand it out at a later turn of `wait`."""
        future.error = error
        self._lanes[future.lane].done.append(future)

    def _drop(self, name: str) -> list[_Call]:
        """Take away a role's unfinished calls, those that stand at a yield included."""
        calls = [call for pending in self._lanes.values() for call in pending.drop(name)]
        for group in self._groups:
            if name in group.members:
                future, steps = group.members.pop(name)
                steps.close()
                calls.append(_Call(future, (), group))
        return calls

    def _break(self, group: _Group, name: str) -> None:
        """A member is lost: those that wait for it have lost the mean; those still to come will find it broken."""
        if group.broken_by is not None:
            return
        group.broken_by = name
        self._groups.pop(group, None)
        for future, steps in group.members.values():
            steps.close()
            if future.error is None:
                self._complete(future, ValueLost(name))


def _build(role: _Role) -> None:
    role.is_alive, role.failure = True, None
    try:
        role.built = role.build(*role.args)
    except Exception as error:
        role.failure = error


def _close(role: _Role) -> None:
    close = getattr(role.built, "close", None)
    if close is not None:
        close()
