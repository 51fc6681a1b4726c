"""A role's lives and the calls to them, as the ray engine keeps its books; and what Ray's errors mean in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import cloudpickle
from ray.exceptions import NodeDiedError, ObjectLostError, RayActorError, WorkerCrashedError

from qfleet.engines.base import Future, Part
from qfleet.errors import CallFailed, NoRoom, RoleDied, ValueLost
from qfleet.placement.processes import end, wait_until_gone
from qfleet.placement.ray_host import Home, Raised

DEATHS = (RayActorError, NodeDiedError, WorkerCrashedError)
_END_SECONDS = 5.0
Settled = list[tuple[Future, Exception | None]]


@dataclass(slots=True, eq=False)
class Life:
    """One incarnation of a role.

    Attributes:
        name, incarnation: whose, and which one.
        actor: Ray's handle.
        clock: since when its first call under way, or its building, is the role's to answer.
        home: where it lives, once it is placed.
        is_built: whether its first calls can run.
        cause: of its death, None while it lives.
        calls: under way, oldest first, by number.
        dropped_groups: numbers of groups that it is to forget, to travel with its next all_reduce.
        entry: when the engine looks at it next, None if never.
        building: Ray's reference to the end of its building.
        no_room: what it asked for and what there was, where it died of that.
    """

    name: str
    incarnation: int
    actor: Any  # Ray's handles have no type of their own
    clock: float
    home: Home | None = None
    is_built: bool = False
    cause: str | None = None
    calls: dict[int, Call] = field(default_factory=dict)
    dropped_groups: list[int] = field(default_factory=list)
    entry: float | None = None
    building: Any = None
    no_room: str | None = None
    _methods: dict[tuple[str, int], Any] = field(default_factory=dict)

    def method(self, name: str, num_returns: int) -> Any:
        """A method of the host's, ready to be called again and again."""
        key = (name, num_returns)
        if key not in self._methods:
            self._methods[key] = getattr(self.actor, name).options(num_returns=num_returns)
        return self._methods[key]

    def end(self, cause: str) -> None:
        """It is dead from now on, and so is its process."""
        self.cause = cause
        ray.kill(self.actor, no_restart=True)
        if self.home is not None:
            end(self.home.process)  # Ray would give a frozen one five seconds more
            wait_until_gone([self.home.process], _END_SECONDS)


@dataclass(slots=True, eq=False)
class Group:
    """Lives that average together, again and again; the first one holds the store that they meet in.

    Attributes:
        number: its name among the hosts.
        lives: the members.
        arrivals: Ray's references to where each member can be met.
        arrived: when each member has said so.
        address: of the first member's store, once it is there.
        has_met: whether they have averaged before, so that nobody waits in the store any more.
        is_lost: whether a member is dead.
    """

    number: int
    lives: tuple[Life, ...]
    arrivals: list[object] = field(default_factory=list)
    arrived: dict[Life, float] = field(default_factory=dict)
    address: str | None = None
    has_met: bool = False
    is_lost: bool = False


@dataclass(slots=True, eq=False)
class Meeting:
    """One all_reduce of a group. Those who found it broken are held back until it is known who broke it."""

    group: Group
    num_open: int
    culprit: str | None = None
    _held: list[Future] = field(default_factory=list)

    def settle(self, future: Future, error: Exception | None) -> Settled:
        """One member's outcome, no receipt and no error where it found the group broken; returns who is done."""
        self.num_open -= 1
        done: Settled = []
        if error is None and future.receipt is None:
            self._held.append(future)
        else:
            self.group.has_met |= error is None
            done.append((future, error))
        if isinstance(error, RoleDied | CallFailed):
            self.culprit = self.culprit or future.role.name
        if self._held and self.culprit is None and self.num_open == 0:
            # Nobody failed, and yet they did not meet: a network that parts them, or one who came too late.
            names = [life.name for life in self.group.lives]
            self.culprit = next(name for name in names if name != self._held[0].role.name)
        return done + (self.blame(self.culprit) if self.culprit is not None else [])

    def blame(self, name: str) -> Settled:
        """It is known who broke it."""
        self.culprit = self.culprit or name
        held, self._held = self._held, []
        return [(future, ValueLost(self.culprit)) for future in held]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What Ray said of a call: the host's answer, or why there is none."""

    answer: object
    error: BaseException | None


@dataclass(slots=True, eq=False)
class Call:
    """A call under way: Ray's references to its payload's pieces and its answer, and whose payloads it takes.

    Its outcome is there once Ray has answered; it is kept until the role's calls before it have theirs.
    """

    number: int
    future: Future
    life: Life
    refs: list[Any]
    producers: tuple[Future, ...] = ()
    meeting: Meeting | None = None
    outcome: Outcome | None = None


def why_hopeless(future: Future, life: Life | None, args: Sequence[object]) -> RoleDied | ValueLost | None:
    """Why a call need not even be sent: the role is dead, or an argument never came to be."""
    if life is None or life.cause is not None:
        return (
            RoleDied(future.role.name, future.incarnation, "killed")
            if life is None
            else death(life, life.cause or "killed")
        )
    for argument in args:
        source = argument.future if isinstance(argument, Part) else argument
        if isinstance(source, Future) and source.error is not None:
            return ValueLost(source.role.name)
    return None


def death(life: Life, cause: str) -> RoleDied:
    """A life's end, as the failure of its calls."""
    if life.no_room is not None:
        return NoRoom(life.name, life.incarnation, life.no_room)
    return RoleDied(life.name, life.incarnation, cause)


def lay_out(args: Sequence[object]) -> tuple[tuple[int, ...], list[object], tuple[Future, ...]]:
    """Arguments in a row, since Ray brings only what stands for itself; see `arrange` in ray_host.py."""
    layout: list[int] = []
    values: list[object] = []
    producers: list[Future] = []
    for argument in args:
        source = argument.future if isinstance(argument, Part) else argument
        num_pieces = 0
        if not isinstance(source, Future):
            values.append(argument)
        else:
            assert isinstance(source.payload, list), "a future of another engine"
            producers.append(source)
            if isinstance(argument, Part):
                values.append(source.payload[argument.index])
            else:
                values += source.payload
                num_pieces = source.num_parts if source.num_parts > 1 else 0
        layout.append(num_pieces)
    return tuple(layout), values, tuple(producers)


def cause_of_death(error: BaseException) -> str:
    """In a few words."""
    text = str(error)
    if isinstance(error, NodeDiedError) or "node has died" in text or "node died" in text:
        return "node lost"
    return "out of memory" if "OutOfMemory" in text or "memory pressure" in text else "process died"


def call_failed(future: Future, raised: Raised) -> CallFailed:
    """What the role's method raised, over there."""
    failure = CallFailed(future.role.name, future.method, raised.cause, raised.traceback)
    if raised.packed is not None:
        try:
            failure.__cause__ = cloudpickle.loads(raised.packed)
        except Exception:  # of a class that this process does not have; its words are in the message
            failure.__cause__ = None
    return failure


def failure_of_task(call: Call, error: BaseException | None) -> ValueLost | CallFailed:
    """A task that Ray could not run for want of an argument, or whose answer it could not store."""
    future = call.future
    if isinstance(error, (*DEATHS, ObjectLostError)):
        dead = getattr(getattr(error, "cause", error), "actor_id", None)
        for life in call.meeting.group.lives if call.meeting is not None else ():
            if life.actor._actor_id.hex() == dead:  # it was to open the store, or to be built
                return ValueLost(life.name)
        lost = getattr(getattr(error, "cause", error), "object_ref_hex", None)
        for source in call.producers:
            if isinstance(source.payload, list) and lost in [ref.hex() for ref in source.payload]:
                return ValueLost(source.role.name)
        if call.producers:
            return ValueLost(call.producers[0].role.name)
    lines = str(error).strip().splitlines() or [repr(error)]
    return CallFailed(future.role.name, future.method, lines[-1], str(error))
