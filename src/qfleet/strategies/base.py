"""What a strategy yields and what it is told. It never logs, evaluates, saves or decides to stop: the session does.

A strategy's module holds `Config` (its section of a recipe) and `run` (the generator):

    def run(engine, blueprint, config, control, saved=None) -> Iterator[Event]
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from qfleet.config import Section
from qfleet.engines.base import Engine, Future, RoleRef
from qfleet.roles.blueprint import Blueprint
from qfleet.types import Progress, Receipt, SavedFile


class StrategyConfig(Section):
    """Fields of every strategy. A strategy's module extends this class as `Config`."""

    name: str


@dataclass(slots=True)
class Counters:
    """The run's global counters, each with its unit."""

    num_env_steps: int = 0
    num_inserted: int = 0
    num_updates: int = 0
    num_samples: int = 0

    def add(self, receipt: Receipt) -> None:
        """Count what a call did."""
        self.num_env_steps += receipt.num_env_steps
        self.num_inserted += receipt.num_inserted
        self.num_updates += receipt.num_updates
        self.num_samples += receipt.num_samples

    def progress(self) -> Progress:
        """What schedules follow, to travel in a call."""
        return Progress(self.num_env_steps, self.num_updates)


@dataclass(slots=True)
class Control:
    """How the session speaks to a running strategy; read before each submit.

    Attributes:
        counters: kept by the strategy, read by the session.
        snapshot_wanted: publish the current parameters soon (SnapshotPublished).
        drain_tag: when set, let nothing new start, have every role save itself under this tag, and yield Drained; go
            on once it is None again.
        checkpoint_folder: where roles save to.
        saved_files: each role's files in the newest checkpoint.
    """

    checkpoint_folder: str
    counters: Counters = field(default_factory=Counters)
    snapshot_wanted: bool = False
    drain_tag: str | None = None
    saved_files: dict[str, list[SavedFile]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint that a strategy is to continue from."""

    tag: str
    files: dict[str, list[SavedFile]]
    state: dict[str, object]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened in a run."""


@dataclass(frozen=True, slots=True)
class Rollout(Event):
    """Transitions were collected and inserted."""

    role: str
    receipt: Receipt


@dataclass(frozen=True, slots=True)
class Update(Event):
    """Optimizer updates were applied."""

    role: str
    receipt: Receipt


@dataclass(frozen=True, slots=True)
class SnapshotPublished(Event):
    """A snapshot of the parameters is ready; `future` stands for it in further calls."""

    version: int
    future: Future


@dataclass(frozen=True, slots=True)
class Drained(Event):
    """Nothing is in flight and every role has saved itself: a consistent cut."""

    tag: str
    files: dict[str, list[SavedFile]]
    state: dict[str, object]


class Strategy(Protocol):
    """The generator's signature."""

    def __call__(
        self, engine: Engine, blueprint: Blueprint, config: StrategyConfig, control: Control, saved: Saved | None = None
    ) -> Iterator[Event]: ...


def call(engine: Engine, role: RoleRef, method: str, *args: object) -> tuple[Receipt, Future]:
    """Submit one call and wait for it; for a strategy that has nothing else in flight."""
    future = engine.submit(role, method, *args)
    done = engine.wait()
    assert done is future, "another call was in flight"
    return engine.result(done), done


def save_roles(engine: Engine, roles: list[RoleRef], control: Control, state: dict[str, object]) -> Drained:
    """Have each role write its part of the checkpoint `control.drain_tag`. Nothing may be in flight."""
    tag = control.drain_tag
    assert tag is not None
    files: dict[str, list[SavedFile]] = {}
    for role in roles:
        receipt, _ = call(engine, role, "save", control.checkpoint_folder, tag, control.saved_files.get(role.name, []))
        control.counters.add(receipt)
        files[role.name] = receipt.files
    return Drained(tag, files, state)


def load_roles(engine: Engine, roles: list[RoleRef], control: Control, saved: Saved) -> None:
    """Have each role load its part of a checkpoint."""
    for role in roles:
        call(engine, role, "load", control.checkpoint_folder, saved.tag, saved.files[role.name])
