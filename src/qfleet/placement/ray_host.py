"""Host: a role inside its Ray actor. It builds the role, runs its methods, and never raises what the role raises.

A failure goes back as data, so that a failed Ray task always means that Ray itself lost something. The receipt and
each piece of the payload are objects of their own; the payload's stay on this machine until a role needs them. What is
smaller than Ray's inlining size (100 KB) rides in the reply message instead.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ray import cloudpickle, get_runtime_context
from ray.util import get_node_ip_address

from qfleet.errors import QfleetError
from qfleet.placement.payload_size import part_sizes
from qfleet.placement.processes import Process, keep_large_blocks, this_process
from qfleet.types import Receipt, Reply

if TYPE_CHECKING:
    from torch._C._distributed_c10d import TCPStore

    from qfleet.placement.collective import Arrival, Door, Group


@dataclass(frozen=True, slots=True)
class Order:
    """What a host needs to build its role.

    Attributes:
        role, incarnation: whose life it is.
        packed: the pickled (build, args).
        log_folder: where its output goes, None to leave that to Ray.
        num_threads: torch's, None to leave torch as it is.
    """

    role: str
    incarnation: int
    packed: bytes
    log_folder: str | None
    num_threads: int | None


@dataclass(frozen=True, slots=True)
class Home:
    """Where a role lives."""

    process: Process
    node_id: str


@dataclass(frozen=True, slots=True)
class Raised:
    """What a role's method raised: one line, the traceback, and the pickled exception if it can be pickled."""

    cause: str
    traceback: str
    packed: bytes | None


@dataclass(frozen=True, slots=True)
class Answer:
    """The half of an answer that goes to the coordinator: a receipt, what was raised, or that the group broke.

    Attributes:
        sizes: bytes of the payload's pieces.
        num_averaged: bytes of the tensors that a group's member had averaged.
    """

    receipt: Receipt | None = None
    raised: Raised | None = None
    is_broken: bool = False
    sizes: tuple[int, ...] = ()
    num_averaged: int = 0


@dataclass(frozen=True, slots=True)
class Ticket:
    """A member's place in a group.

    Attributes:
        group_id, rank, size: which group, which member, of how many.
        seconds: for the whole call.
        owns_gpus: see Group in collective.py.
        num_arrivals: how many of the values say where the members meet: all at a group's first calls, then none.
        dropped: groups that are no more.
    """

    group_id: int
    rank: int
    size: int
    seconds: float
    owns_gpus: bool
    num_arrivals: int
    dropped: tuple[int, ...] = ()


class Host:
    """One role. Ray calls its methods one after the other, in the order of their submission."""

    def __init__(self) -> None:
        self._role: object = None
        self._failure: Raised | None = None
        self._groups: dict[int, Group] = {}
        self._doors: dict[int, Door] = {}
        self._lost_groups: set[int] = set()
        self._store: tuple[TCPStore, str] | None = None

    def place(self) -> Home:
        """Say where this is; the answer means that there was room."""
        return Home(this_process(), get_runtime_context().get_node_id())

    def build(self, order: Order) -> None:
        """Make the role; a failure to do so is kept for its calls."""
        if order.log_folder is not None:
            write_to(Path(order.log_folder) / f"{order.role}-{order.incarnation}.log")
        try:
            build, args = cloudpickle.loads(order.packed)
            _set_up_torch(order.num_threads)
            self._role = build(*args)
            _set_up_torch(order.num_threads)
        except Exception as error:
            self._failure = describe(error)

    def call(self, layout: tuple[int, ...], num_parts: int, method: str, *values: object) -> tuple[object, ...]:
        """role.method(*values): the payload's pieces, then the Answer. See `arrange` for `layout`.

        Ray stores them in this order, so that a piece which cannot be pickled leaves no Answer that says all is well.
        """
        if self._failure is not None:
            return (*[None] * num_parts, Answer(raised=self._failure))
        try:
            return _split(getattr(self._role, method)(*arrange(layout, values)), num_parts)
        except Exception as error:
            return (*[None] * num_parts, Answer(raised=describe(error)))

    def arrive(self, group_id: int, is_first: bool) -> Arrival:
        """Say where the other members of a group can meet this one."""
        from qfleet.placement.collective import Door, open_store

        if is_first and self._store is None:
            self._store = open_store(get_node_ip_address())
        door = self._doors[group_id] = Door(self._store[1] if is_first and self._store is not None else "")
        return door.arrival

    def reduce(self, ticket: Ticket, layout: tuple[int, ...], method: str, *values: object) -> tuple[object, ...]:
        """role.method(*values), a generator, in step with the other members of its group."""
        from qfleet.placement.collective import BrokenGroup, announce_failure, run_averaging

        deadline = time.monotonic() + ticket.seconds
        group = None
        try:
            group = self._join(ticket, values[: ticket.num_arrivals])
            if self._failure is not None:
                announce_failure(group, deadline)
                return None, Answer(raised=self._failure)
            try:
                steps = getattr(self._role, method)(*arrange(layout, values[ticket.num_arrivals :]))
                iter(steps)
            except Exception:
                announce_failure(group, deadline)
                raise
            before = group.num_bytes if group is not None else 0
            answer = run_averaging(steps, group, deadline)
            return _split(answer, 1, group.num_bytes - before if group is not None else 0)
        except BrokenGroup:
            self._lost_groups.add(ticket.group_id)
            self._leave(ticket.group_id)
            return None, Answer(is_broken=True)
        except Exception as error:
            return None, Answer(raised=describe(error))

    def close(self) -> None:
        """Let the role close what it holds."""
        close = getattr(self._role, "close", None)
        if close is not None:
            close()

    def _join(self, ticket: Ticket, arrivals: Sequence[object]) -> Group | None:
        from qfleet.placement.collective import BrokenGroup, Group

        for group_id in ticket.dropped:
            self._leave(group_id)
            self._lost_groups.discard(group_id)
        if ticket.size == 1:
            return None
        if ticket.group_id in self._lost_groups:
            raise BrokenGroup("it broke before")
        if ticket.group_id not in self._groups:
            self._groups[ticket.group_id] = Group(
                ticket.group_id,
                ticket.rank,
                self._doors.pop(ticket.group_id),
                cast("list[Arrival]", list(arrivals)),
                get_node_ip_address(),
                ticket.seconds,
                ticket.owns_gpus,
            )
        return self._groups[ticket.group_id]

    def _leave(self, group_id: int) -> None:
        group = self._groups.pop(group_id, None)
        if group is not None:
            group.close()
        door = self._doors.pop(group_id, None)
        if door is not None:
            door.close()


def arrange(layout: tuple[int, ...], values: Sequence[object]) -> list[object]:
    """The arguments of a call from its values in a row: 0 takes the next one, n > 0 the next n together as a list."""
    if not any(layout):
        return list(values)
    arguments: list[object] = []
    place = 0
    for count in layout:
        arguments.append(list(values[place : place + count]) if count else values[place])
        place += count or 1
    return arguments


def describe(error: BaseException) -> Raised:
    """An exception as data."""
    cause = str(error) if isinstance(error, QfleetError) else f"{type(error).__name__}: {error}"
    text = "".join(traceback.format_exception(error))
    try:
        packed = cloudpickle.dumps(error)
        cloudpickle.loads(packed)  # some cannot be read back, for want of arguments
    except Exception:
        packed = None
    return Raised(cause, text, packed)


def _split(answer: object, num_parts: int, num_averaged: int = 0) -> tuple[object, ...]:
    if not isinstance(answer, Reply):
        answer = Reply(answer if isinstance(answer, Receipt) else Receipt(), None)
    pieces = answer.payload
    if num_parts == 1:
        return pieces, Answer(answer.receipt, sizes=part_sizes(pieces, 1), num_averaged=num_averaged)
    if not (isinstance(pieces, Sequence) and len(pieces) == num_parts):
        raise ValueError(f"a payload in {num_parts} parts was asked for; this one is no sequence of that length")
    return (*pieces, Answer(answer.receipt, sizes=part_sizes(pieces, num_parts)))


def _set_up_torch(num_threads: int | None) -> None:
    """Small networks lose more to a second thread's wake-up than it brings; denormals are slow and mean nothing."""
    torch = sys.modules.get("torch")  # a role without torch need not wait for it
    if torch is not None and num_threads is not None:
        torch.set_num_threads(num_threads)
        torch.set_flush_denormal(True)
        keep_large_blocks()


def write_to(path: Path) -> None:
    """Send this process's output, C++'s too, to a file of its own; without the folder it stays with Ray's."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError:
        return
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
