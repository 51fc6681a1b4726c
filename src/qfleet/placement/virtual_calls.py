"""Calls, values and lanes of a simulated cluster: what is on its way, where it is, and what it waits for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

from qfleet.engines.base import Future, Part, RoleRef, check_arguments
from qfleet.errors import ValueLost
from qfleet.placement.cost_model import RoleCosts
from qfleet.placement.in_process import Call, Group, Role
from qfleet.placement.payload_size import payload_bytes
from qfleet.placement.traffic import LANE
from qfleet.placement.virtual_network import VirtualNetwork
from qfleet.types import Receipt

Need = tuple[int, Future, int]  # place among the arguments, whose payload, which part of it


@dataclass(slots=True, eq=False)
class Home:
    """Where a role lives, in all its lives.

    Attributes:
        role, costs: of the one that lives here.
        epoch: which machine it is on, counted from 0.
        left: those that it has moved away from before they are lost.
        gone: those that are lost.
        has_place: whether it is on a machine now.
        free_at: before this moment it begins nothing; infinity while it has no place.
        frozen_until: before this moment nothing goes on.
        slowed: (until, factor) of the slow times that have hit it.
        inbox, running, open: calls that wait here, the one that runs, and all that are not answered.
        clock: when it last answered, or was first asked.
        death: how its last life ended.
        is_watched: whether somebody will look whether it still answers.
        busy_seconds, num_calls: for those who look on.
    """

    name: str
    role: Role
    costs: RoleCosts
    epoch: int = 0
    left: set[int] = field(default_factory=set)
    gone: set[int] = field(default_factory=set)
    has_place: bool = False
    free_at: float = 0.0
    frozen_until: float = 0.0
    slowed: list[tuple[float, float]] = field(default_factory=list)
    inbox: deque[VirtualCall] = field(default_factory=deque)
    running: VirtualCall | None = None
    open: dict[VirtualCall, None] = field(default_factory=dict)
    clock: float = 0.0
    death: str = "killed"
    is_watched: bool = False
    busy_seconds: float = 0.0
    num_calls: int = 0

    def slowness(self, time: float) -> float:
        """How many times as long a call takes that begins now."""
        factor = 1.0
        if self.slowed:
            self.slowed = [one for one in self.slowed if one[0] > time]
            for _, its_factor in self.slowed:
                factor *= its_factor
        return factor


class VirtualCall(Call):
    """A call on the virtual clock.

    `public` is what the caller has: it gets the answer when that has arrived. `future` is where a group's member puts
    its own; of all other calls it is the public one.

    Args:
        number: counts calls.
        home: the role's.
        way: the lane that it is answered on.
        public: the caller's.
        args: as they were given.
        needs: which of them are payloads: (place, future, part), -1 for the whole.
        group: the group that it is a member's call of.

    Attributes:
        receipt, payload, error: what the role has answered.
        is_here: whether the request has arrived.
        num_missing: arguments that have not.
        lost: maker of an argument that never will.
        began, ready, ends: when the role began it, came to its group's last mean, and will have finished it.
        busy: seconds of work so far.
        is_replied: whether the answer is on its way.
        is_over: whether the caller has it, or never will.
    """

    __slots__ = (
        "began",
        "busy",
        "ends",
        "error",
        "home",
        "is_here",
        "is_over",
        "is_replied",
        "lost",
        "needs",
        "num_missing",
        "number",
        "payload",
        "public",
        "ready",
        "receipt",
        "way",
    )

    def __init__(
        self,
        number: int,
        home: Home,
        way: Way,
        public: Future,
        args: tuple[object, ...],
        needs: list[Need],
        group: Group | None,
    ) -> None:
        self.number = number
        self.home = home
        self.way = way
        self.public = self.future = public
        self.args = args
        self.needs = needs
        self.group = group
        if group is not None:
            self.future = Future(public.role, public.method, public.lane, public.incarnation, public.num_parts)
        self.receipt: Receipt | None = None
        self.payload: object = None
        self.error: BaseException | None = None
        self.is_here = self.is_replied = self.is_over = False
        self.num_missing = 0
        self.lost: str | None = None
        self.began = self.ready = self.ends = self.busy = 0.0

    def values(self) -> Sequence[object]:
        """The arguments, futures and parts as their payloads.

        Raises:
            ValueLost: one of them came to nothing, or is gone.
        """
        if self.lost is not None:
            raise ValueLost(self.lost)
        if not self.needs:
            return self.args
        values = list(self.args)
        for place, source, index in self.needs:
            if source.error is not None:
                raise ValueLost(source.role.name)
            value = source.payload
            assert isinstance(value, Value)
            values[place] = value.content if index < 0 else value.piece(index)
        return values


@dataclass(slots=True, eq=False)
class Value:
    """A payload: on the machine where it was made, and on those that it has been sent to since.

    Attributes:
        content: what the role returned.
        home, epoch: the machine where it was made.
        copies: by machine and part: the calls that wait for it to arrive, None once it has.
        sizes: bytes by part; -1 is the whole.
    """

    content: object
    home: Home
    epoch: int
    copies: dict[tuple[str, int, int], list[VirtualCall] | None] = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)

    @property
    def is_lost(self) -> bool:
        """Whether it is gone with the machine where it was made; copies elsewhere are not."""
        return self.epoch in self.home.gone

    def piece(self, index: int) -> object:
        """A part of it, or with -1 all of it."""
        if index < 0:
            return self.content
        assert isinstance(self.content, Sequence)
        return self.content[index]

    def num_bytes(self, index: int) -> int:
        """What a part takes on the wire."""
        size = self.sizes.get(index)
        if size is None:
            size = self.sizes[index] = payload_bytes(self.piece(index))
        return size


@dataclass(slots=True)
class Way:
    """A lane: answers as they have arrived, and how many are to come."""

    done: deque[tuple[float, Future]] = field(default_factory=deque)
    num_open: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """What a role has done: seconds at work, calls, and bytes that have left its port and come in through it."""

    busy_seconds: float
    num_calls: int
    num_bytes_out: int
    num_bytes_in: int = 0


def payloads_among(role: RoleRef, method: str, args: Sequence[object]) -> list[Need]:
    """Which arguments of role.method are payloads of other calls.

    Raises:
        ValueError: one of them is not completed yet.
    """
    needs: list[Need] = []
    for place, argument in enumerate(args):
        kind = type(argument)
        if kind is Future:
            source, index = cast(Future, argument), -1
        elif kind is Part:
            part = cast(Part, argument)
            source, index = part.future, part.index
        else:
            continue
        if source.receipt is None and source.error is None:
            check_arguments(role, method, args)
        needs.append((place, source, index))
    return needs


class Transfers:
    """Brings payloads to the roles whose calls need them; once to each machine.

    Args:
        network: carries them.
        start: called when a role may have got all that its next call needs.
    """

    def __init__(self, network: VirtualNetwork, start: Callable[[float, Home], None]) -> None:
        self.network = network
        self._start = start

    def fetch(self, time: float, call: VirtualCall) -> None:
        """Ask for what the call's role does not have; `call.num_missing` and `call.lost` say what came of it."""
        home = call.home
        for _, source, index in call.needs:
            value = source.payload
            if not isinstance(value, Value):
                continue  # it came to nothing
            if value.home is home and value.epoch == home.epoch:
                continue
            key = (home.name, home.epoch, index)
            if key in value.copies:
                waiting = value.copies[key]
                if waiting is not None:
                    waiting.append(call)
                    call.num_missing += 1
            elif value.is_lost:
                call.lost = value.home.name
            else:
                value.copies[key] = [call]
                call.num_missing += 1
                if call.public.lane == LANE:
                    self.network.traffic.num_bytes += value.num_bytes(index)
                asked = self.network.signal_at(home.name, value.home.name, time)
                self.network.at(asked, self._send, value, key)

    def _send(self, time: float, value: Value, key: tuple[str, int, int]) -> None:
        if value.is_lost:
            for call in value.copies.pop(key, None) or []:
                call.lost = value.home.name
                self._arrived(time, call)
            return
        target, _, index = key
        self.network.send(time, value.home.name, target, value.num_bytes(index), self._deliver, value, key)

    def _deliver(self, time: float, value: Value, key: tuple[str, int, int]) -> None:
        waiting, value.copies[key] = value.copies.get(key), None
        for call in waiting or []:
            self._arrived(time, call)

    def _arrived(self, time: float, call: VirtualCall) -> None:
        call.num_missing -= 1
        if not call.num_missing and not call.is_over:
            self._start(time, call.home)
