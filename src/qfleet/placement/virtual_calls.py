"""Calls, values and lanes of a simulated cluster: what is on its way, where it is, and what it waits for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from qfleet.engines.base import Future, Part
from qfleet.errors import ValueLost
from qfleet.placement.cost_model import RoleCosts
from qfleet.placement.in_process import Call, Group
from qfleet.placement.virtual_network import VirtualNetwork, payload_bytes


@dataclass(slots=True, eq=False)
class Home:
    """Where a role lives, in all its lives.

    Attributes:
        name, costs: the role's.
        epoch: how many machines it has lost.
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
    costs: RoleCosts
    epoch: int = 0
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


@dataclass(slots=True, eq=False)
class VirtualCall(Call):
    """A call on the virtual clock.

    `future` holds what the role has answered; `public`, which the caller has, gets it when the answer has arrived.

    Attributes:
        number: counts calls.
        home: the role's.
        is_here: whether the request has arrived.
        num_missing: arguments that have not.
        lost: maker of an argument that never will.
        began, ready, ends: when the role began it, came to its group's last mean, and will have finished it.
        busy: seconds of work so far.
        is_replied: whether the answer is on its way.
        is_over: whether the caller has it, or never will.
    """

    public: Future = field(kw_only=True)
    number: int = field(kw_only=True)
    home: Home = field(kw_only=True)
    is_here: bool = False
    num_missing: int = 0
    lost: str | None = None
    began: float = 0.0
    ready: float = 0.0
    ends: float = 0.0
    busy: float = 0.0
    is_replied: bool = False
    is_over: bool = False

    def values(self) -> list[object]:
        """The arguments, futures and parts as their payloads.

        Raises:
            ValueLost: one of them came to nothing, or is gone.
        """
        if self.lost is not None:
            raise ValueLost(self.lost)
        values = []
        for argument in self.args:
            source, index = _source(argument)
            if isinstance(source, Future):
                if source.error is not None:
                    raise ValueLost(source.role.name)
                assert isinstance(source.payload, Value)
                argument = source.payload.piece(index)
            values.append(argument)
        return values


@dataclass(slots=True, eq=False)
class Step:
    """A group's step under way: what is to be averaged, when the last one was through so far, and how many are not."""

    group: Group
    tensors: list[torch.Tensor]
    last: float
    num_missing: int


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
        return self.epoch < self.home.epoch

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


def count_payloads(args: Sequence[object]) -> int:
    """How many of the arguments are other calls' payloads, or parts of them."""
    return sum(isinstance(argument, Future | Part) for argument in args)


def values_of(args: Sequence[object]) -> Iterator[tuple[Value, int]]:
    """The payloads among arguments, with the part that is wanted; those that came to nothing are left out."""
    for argument in args:
        source, index = _source(argument)
        if isinstance(source, Future) and isinstance(source.payload, Value):
            yield source.payload, index


def _source(argument: object) -> tuple[object, int]:
    return (argument.future, argument.index) if isinstance(argument, Part) else (argument, -1)


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
        for value, index in values_of(call.args):
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
