"""A role's lives, its calls and the groups it averages in, as the threads engine keeps its books under its one lock."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue

import torch

from qfleet.engines.base import Future
from qfleet.errors import ValueLost
from qfleet.types import Receipt


class Lost(ValueLost):
    """The engine's own, which a ValueLost that a role raises must not pass for."""


@dataclass(slots=True, eq=False)
class Lane:
    """Calls that have ended, in that order, for `wait` to hand out."""

    done: SimpleQueue[Call] = field(default_factory=SimpleQueue)
    num_open: int = 0  # calls that `wait` has yet to hand out


@dataclass(slots=True, eq=False)
class Life:
    """One incarnation of a role, and its thread."""

    name: str
    build: Callable[..., object]
    args: tuple[object, ...]
    incarnation: int = 0
    is_dead: bool = False
    inbox: SimpleQueue[Call | None] = field(default_factory=SimpleQueue)
    open: dict[Call, None] = field(default_factory=dict)  # its calls that `wait` has yet to hand out
    thread: threading.Thread | None = None
    built: object = None
    failure: BaseException | None = None  # why it could not be built


@dataclass(slots=True, eq=False)
class Group:
    """An all-reduce under way; `condition` holds the engine's lock."""

    names: list[str]  # the group's order, which is that of the sum
    condition: threading.Condition
    standing: dict[str, torch.Tensor | None] = field(default_factory=dict)  # None: its generator ended
    turn: int = 0
    is_averaging: bool = False
    broken_by: str | None = None

    def break_by(self, name: str) -> None:
        """Release those that wait; the lock is held."""
        if self.broken_by is None:
            self.broken_by = name
            self.condition.notify_all()

    def check(self) -> None:
        """Raise where it is broken; the lock is held."""
        if self.broken_by is not None:
            raise Lost(self.broken_by)


@dataclass(slots=True, eq=False)
class Call:
    """A call; `is_over` once it has its one outcome, which reaches the future when `wait` hands it out."""

    future: Future
    args: tuple[object, ...]
    life: Life
    lane: Lane
    group: Group | None = None
    receipt: Receipt | None = None
    payload: object = None
    error: BaseException | None = None
    is_over: bool = False
