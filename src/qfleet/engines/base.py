"""The narrow waist: all that a strategy can see of the machine it runs on.

A call answers in two parts: a small Receipt for the coordinator, and a payload (transitions, a gradient, a snapshot)
that stays where it was made and reaches another role when the completed future is passed on. So one coordinator
serves many roles and the data never crosses it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from qfleet.config import Section
from qfleet.types import Receipt


class EngineConfig(Section):
    """Fields of every engine. An engine's module extends this class as `Config`."""

    name: str


@dataclass(frozen=True, slots=True)
class RoleRef:
    """A role by name, wherever it lives."""

    name: str


@dataclass(eq=False, slots=True)
class Future:
    """One call on its way. Completed once `Engine.wait` has returned it.

    Attributes:
        role: the role called.
        method: name of the method called.
        lane: which completion queue it returns on.
        payload: where the engine keeps the answer's large half; for engines only.
    """

    role: RoleRef
    method: str
    lane: str
    receipt: Receipt | None = field(default=None, repr=False)
    payload: object = field(default=None, repr=False)
    error: BaseException | None = field(default=None, repr=False)


class Engine(Protocol):
    """Places roles and moves values between them.

    Lanes are separate completion queues over the same roles: the strategy works on "training", the session evaluates
    on "evaluation", and neither takes the other's answers.
    """

    def spawn(self, name: str, build: Callable[..., object], *args: object) -> RoleRef:
        """Make the role by calling build(*args) where it is to live; names are unique."""

    def submit(self, role: RoleRef, method: str, *args: object, lane: str = "training") -> Future:
        """Ask for role.method(*args). Arguments are values or completed futures, which stand for their payloads."""

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

    def now(self) -> float:
        """Seconds; virtual where time is simulated, a count of calls on inline."""

    def state_dict(self) -> dict[str, object]:
        """JSON values that continue the engine's own order of things (its random state), for a checkpoint."""

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Continue from `state_dict`."""

    def close(self) -> None:
        """End all roles."""
