"""The narrow waist: all that a strategy can see of the machine it runs on.

A call answers in two parts: a small Receipt for the coordinator, and a payload (transitions, a gradient, a snapshot)
that stays where it was made and reaches another role when the completed future is passed on. So one coordinator
serves many roles and the data never crosses it.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import torch

from qfleet.config import Section
from qfleet.errors import CallFailed, QfleetError, ValueLost
from qfleet.types import Receipt, Reply


class EngineConfig(Section):
    """Fields of every engine. An engine's module extends this class as `Config`."""

    name: str

    @property
    def computes_nothing(self) -> bool:
        """Whether roles answer with counts and sizes alone, so that there is nothing to save and to resume."""
        return False


@dataclass(frozen=True, slots=True)
class Placement:
    """What a role asks of the machine it is to live on; engines of one process ignore it.

    Attributes:
        num_cpus, num_gpus: shares of a machine's.
        custom: further resources by name, as the cluster's nodes offer them.
        near: "pack" beside the other packed roles, "spread" away from its like.
    """

    num_cpus: float = 1.0
    num_gpus: float = 0.0
    custom: Mapping[str, float] = field(default_factory=dict)
    near: Literal["pack", "spread"] = "spread"


@dataclass(frozen=True, slots=True)
class RoleRef:
    """A role by name, wherever it lives; a respawned role keeps its reference."""

    name: str


@dataclass(eq=False, slots=True)
class Future:
    """One call on its way. Completed once `Engine.wait` has returned it.

    Attributes:
        role: the role called.
        method: name of the method called.
        lane: which completion queue it returns on.
        incarnation: which life of the role was called; the first is 0.
        num_parts: how many pieces the payload was asked to come in.
        payload: where the engine keeps the answer's large half; for engines only.
        sizes, takers: bytes of the payload's pieces, and which role has had which; for placement/traffic.py only.
    """

    role: RoleRef
    method: str
    lane: str
    incarnation: int = 0
    num_parts: int = 1
    receipt: Receipt | None = field(default=None, repr=False)
    payload: object = field(default=None, repr=False)
    error: BaseException | None = field(default=None, repr=False)
    sizes: tuple[int, ...] | None = field(default=None, repr=False)
    takers: set[tuple[str, int]] | None = field(default=None, repr=False)

    @property
    def is_completed(self) -> bool:
        """Whether it has an answer or a failure."""
        return self.receipt is not None or self.error is not None


@dataclass(frozen=True, slots=True)
class Part:
    """One piece of the payload of a call submitted with `num_parts` > 1, as an argument of another call."""

    future: Future
    index: int


class Engine(Protocol):
    """Places roles and moves values between them.

    Lanes are separate completion queues over the same roles: the strategy works on "training", the session evaluates
    on "evaluation", and neither takes the other's answers.

    Failures are three kinds. RoleDied: the role called is gone, by itself, by `kill`, or because it did not answer in
    time. ValueLost: a healthy role could not get an argument, or a group's mean, because the role that was to give it
    is gone. CallFailed: the role's method raised; the role lives on.

    Attributes:
        is_concurrent: whether calls run beside the caller; if not, they run inside `wait`.
    """

    is_concurrent: bool

    def spawn(self, name: str, build: Callable[..., object], *args: object, placement: Placement = ...) -> RoleRef:
        """Make the role by calling build(*args) where it is to live; names are unique.

        A failure to build it is the failure of its first call.
        """

    def submit(self, role: RoleRef, method: str, *args: object, lane: str = "training", num_parts: int = 1) -> Future:
        """Ask for role.method(*args). Arguments are values, or completed futures and parts, for their payloads.

        With `num_parts` above 1 the payload must be a sequence of that length, whose pieces travel apart.
        """

    def all_reduce(
        self, group: Sequence[RoleRef], method: str, args: Sequence[tuple[object, ...]], lane: str = "training"
    ) -> list[Future]:
        """Ask each member for member.method(*args of its own), a generator that yields tensors to be averaged.

        Each time all members have yielded (float tensors of one shape), the mean over the group is written into each
        one's tensor and all go on, until all return their answers. Members must yield equally often. A member's
        death or failure breaks the call for all: RoleDied or CallFailed for itself, ValueLost(it) for the others.
        """

    def wait(self, timeout: float | None = None, lane: str = "training") -> Future | None:
        """The next call of this lane to complete; None after `timeout` seconds or when none is under way."""

    def result(self, future: Future) -> Receipt:
        """The receipt of a completed call.

        Raises:
            RoleDied, ValueLost, CallFailed: see errors.py.
        """

    def payload(self, future: Future) -> object:
        """Bring a completed call's payload to the caller (a session saving the best policy)."""

    def stop(self, role: RoleRef) -> None:
        """End a role; its unfinished calls are dropped."""

    def kill(self, role: RoleRef) -> None:
        """End a role without asking it; its unfinished calls come back as RoleDied."""

    def respawn(self, role: RoleRef) -> None:
        """A new incarnation of a role, built as the first one was; calls to the former one that are under way fail."""

    def incarnation(self, role: RoleRef) -> int:
        """Which life of the role is the present one; the first is 0."""

    def room_for(self, placement: Placement) -> int:
        """How many more roles of this placement would find room now."""

    def now(self) -> float:
        """Seconds; virtual where time is simulated, a count of calls on inline."""

    def state_dict(self) -> dict[str, object]:
        """JSON values that continue the engine's own order of things (its random state), for a checkpoint."""

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Continue from `state_dict`."""

    def close(self) -> None:
        """End all roles."""


class InProcess:
    """For engines whose payloads are objects of this process: the part of them that is the same."""

    def result(self, future: Future) -> Receipt:
        """The receipt, or the role's own failure."""
        if future.error is not None:
            raise future.error
        if future.receipt is None:
            raise ValueError(f"{future.role.name}.{future.method} has not completed")
        return future.receipt

    def payload(self, future: Future) -> object:
        """The payload itself: nothing is copied here."""
        self.result(future)
        return future.payload

    def room_for(self, placement: Placement) -> int:
        """Room enough for any number."""
        return 1 << 30


def local_values(args: Sequence[object]) -> list[object]:
    """For engines whose payloads are objects of this process: futures and parts as their payloads.

    Raises:
        ValueLost: one of them came to nothing; None would pass for a payload.
    """
    values = []
    for argument in args:
        source = argument.future if isinstance(argument, Part) else argument
        if isinstance(source, Future):
            if source.error is not None:
                raise ValueLost(source.role.name)
            if isinstance(argument, Part):
                assert isinstance(source.payload, Sequence)
                argument = source.payload[argument.index]
            else:
                argument = source.payload
        values.append(argument)
    return values


def check_arguments(role: RoleRef, method: str, args: Sequence[object]) -> None:
    """For engines: refuse a call before it is queued.

    Raises:
        ValueError: an argument is a future that is not completed yet.
    """
    for argument in args:
        source = argument.future if isinstance(argument, Part) else argument
        if isinstance(source, Future) and not source.is_completed:
            raise ValueError(f"{role.name}.{method}: an argument of {source.method} is not completed yet")


def check_group(group: Sequence[RoleRef], method: str, args: Sequence[tuple[object, ...]]) -> None:
    """For engines: refuse an all_reduce before any of its calls is queued.

    Raises:
        ValueError: a role is in the group twice, or there are not as many tuples of arguments as members, or an
            argument is not completed yet.
    """
    names = [role.name for role in group]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"all_reduce of {method}: {', '.join(twice)} is in the group twice and would wait for itself")
    for role, own in zip(group, args, strict=True):
        check_arguments(role, method, own)


def split_answer(answer: object, num_parts: int) -> tuple[Receipt, object]:
    """For engines: the receipt and the payload in what a method returned.

    Raises:
        ValueError: the payload is not a sequence of `num_parts`.
    """
    if not isinstance(answer, Reply):
        answer = Reply(answer if isinstance(answer, Receipt) else Receipt(), None)
    pieces = answer.payload
    if num_parts > 1 and not (isinstance(pieces, Sequence) and len(pieces) == num_parts):
        raise ValueError(f"a payload in {num_parts} parts was asked for; this one is no sequence of that length")
    return answer.receipt, pieces


def call_failed(future: Future, error: BaseException) -> CallFailed:
    """For engines: what a method raised, as the failure of the call; the user's own errors keep their words."""
    cause = str(error) if isinstance(error, QfleetError) else f"{type(error).__name__}: {error}"
    failure = CallFailed(future.role.name, future.method, cause, "".join(traceback.format_exception(error)))
    failure.__cause__ = error
    return failure


@torch.no_grad()
def average(tensors: Sequence[torch.Tensor], num_members: int) -> None:
    """For engines: write the mean into each one of `tensors`; their order is the order of the sum.

    Raises:
        ValueError: not every member has yielded one.
    """
    if len(tensors) != num_members:
        raise ValueError("the members of a group must yield equally often")
    mean = tensors[0].clone()
    for tensor in tensors[1:]:
        if tensor.shape != mean.shape:
            raise ValueError(
                f"the members of a group must yield one shape, not {list(mean.shape)}, {list(tensor.shape)}"
            )
        mean += tensor
    mean /= num_members
    for tensor in tensors:
        tensor.copy_(mean)


def is_virtual(engine: Engine) -> bool:
    """Whether `now` is a simulated clock, by which the run's seconds are to be told; an engine says `is_virtual`."""
    return bool(getattr(engine, "is_virtual", False))


@runtime_checkable
class WarningEngine(Protocol):
    """An engine that is told of machines before they are taken away."""

    def notices(self) -> Mapping[str, float]:
        """Roles whose machine will be gone, and when by `now`. One that is killed begins elsewhere if there is room."""


@runtime_checkable
class HostingEngine(Protocol):
    """An engine whose roles live in processes of their own."""

    def set_up_hosts(self, log_folder: Path, num_threads: int) -> None:
        """Before the first spawn: where each process writes its output, and torch's threads in each of them."""
