"""The narrow waist: all that a strategy can see of the machine it runs on.

A call answers in two parts: a small Receipt for the coordinator, and a payload (transitions, a gradient, a snapshot)
that stays where it was made and reaches another role when the completed future is passed on. So one coordinator
serves many roles and the data never crosses it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from qfleet.config import Section
from qfleet.types import Receipt


class EngineConfig(Section):
    """Fields of every engine. An engine's module extends this class as `Config`."""

    name: str


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
    """

    role: RoleRef
    method: str
    lane: str
    incarnation: int = 0
    num_parts: int = 1
    receipt: Receipt | None = field(default=None, repr=False)
    payload: object = field(default=None, repr=False)
    error: BaseException | None = field(default=None, repr=False)

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


@runtime_checkable
class HostingEngine(Protocol):
    """An engine whose roles live in processes of their own."""

    def set_up_hosts(self, log_folder: Path, num_threads: int) -> None:
        """Before the first spawn: where each process writes its output, and torch's threads in each of them."""
