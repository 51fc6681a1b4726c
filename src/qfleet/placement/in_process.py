"""Roles, calls and groups of an engine whose roles live in this process and run in one thread: inline and sim."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Generator
from dataclasses import dataclass, field

import torch

from qfleet.engines.base import Future
from qfleet.errors import UsageError

Steps = Generator[torch.Tensor, None, object]


@dataclass(slots=True)
class Role:
    """A role of this process.

    Attributes:
        build, args: how it is made, in each of its lives.
        built: what that gave; None while it is dead.
        failure: why it could not be built.
        incarnation: which life this is.
    """

    build: Callable[..., object]
    args: tuple[object, ...]
    built: object = None
    failure: Exception | None = None
    incarnation: int = 0
    is_alive: bool = True

    def live(self) -> None:
        """Build it."""
        self.is_alive, self.failure = True, None
        try:
            self.built = self.build(*self.args)
        except Exception as error:
            self.failure = error

    def die(self) -> None:
        """Close it and forget what it has built up."""
        close = getattr(self.built, "close", None)
        if close is not None:
            close()
        self.is_alive, self.built = False, None


@dataclass(slots=True, eq=False)
class Group:
    """An all-reduce under way: members arrive one by one; their generators stand at a yield until all have.

    Attributes:
        names: the group's order, which is that of the sum.
        members: those that have arrived.
        broken_by: who was lost, if anybody was.
    """

    names: list[str]
    members: dict[str, tuple[Call, Steps]] = field(default_factory=dict)
    broken_by: str | None = None


@dataclass(slots=True, eq=False)
class Call:
    """A call that has not been answered yet."""

    future: Future
    args: tuple[object, ...]
    group: Group | None = None


def twin_of(build: Callable[..., object]) -> Callable[..., object]:
    """What answers in a role's place where nothing is to be computed: `timing_twin`, "module:Class", of its class.

    Raises:
        UsageError: it has none.
    """
    name = getattr(build, "timing_twin", None)
    if not isinstance(name, str):
        what = getattr(build, "__name__", build)
        raise UsageError(f"engine.compute = 'none': {what} has no timing_twin; take engine.compute=real")
    module, _, twin = name.partition(":")
    found: Callable[..., object] = getattr(importlib.import_module(module), twin)
    return found
