"""What a strategy yields and what it is told. It never logs, evaluates, saves or decides to stop: the session does.

A strategy's module holds `Config` (its section of a recipe) and `run` (the generator):

    def run(engine, blueprint, config, control, saved=None) -> Iterator[Event]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from qfleet.config import Section
from qfleet.engines.base import Engine, Future, RoleRef
from qfleet.errors import QfleetError
from qfleet.roles.blueprint import Blueprint
from qfleet.types import Progress, Receipt, SavedFile


class StrategyConfig(Section):
    """Fields of every strategy. A strategy's module extends this class as `Config`."""

    name: str


@dataclass(slots=True)
class Counters:
    """The run's global counters, each with its unit; `frames_per_step` is the environment's, and no count."""

    num_env_steps: int = 0
    num_inserted: int = 0
    num_updates: int = 0
    num_samples: int = 0
    frames_per_step: int = 1

    @property
    def num_frames(self) -> int:
        """Frames of the game that the env steps showed, as the field counts them: steps times the frame skip."""
        return self.num_env_steps * self.frames_per_step

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
        is_ending: the stop rule is met: only what is owed is done any more, and the last snapshot is taken when all is
            quiet.
        checkpoint_folder: where roles save to.
        saved_files: each role's files in the newest checkpoint.
        saved_tag: the newest checkpoint's name, "" before the first.
        num_workers: how many workers the user wants by now; None leaves it at the configuration's.
        tallies: what else is counted: restarts by cause, pushes discarded or refused, transitions lost, bytes pushed.
        failure: why the run has to end once it has saved itself.
    """

    checkpoint_folder: str
    counters: Counters = field(default_factory=Counters)
    snapshot_wanted: bool = False
    drain_tag: str | None = None
    is_ending: bool = False
    saved_files: dict[str, list[SavedFile]] = field(default_factory=dict)
    saved_tag: str = ""
    num_workers: int | None = None
    tallies: dict[str, int] = field(default_factory=dict)
    failure: QfleetError | None = None

    def count(self, name: str, number: int = 1) -> None:
        """Add to a tally."""
        self.tallies[name] = self.tallies.get(name, 0) + number


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
class Gradient(Event):
    """A gradient was computed; it is yet to be merged."""

    role: str
    receipt: Receipt


@dataclass(frozen=True, slots=True)
class RoleRestarted(Event):
    """A role failed and was respawned."""

    role: str
    incarnation: int
    cause: str
    message: str


@dataclass(frozen=True, slots=True)
class CrewChanged(Event):
    """Workers have joined or left."""

    num_workers: int
    why: str


@dataclass(frozen=True, slots=True)
class SnapshotPublished(Event):
    """A snapshot of the parameters is ready; `future` stands for it in further calls.

    Attributes:
        version, future: the run's model.
        personal: by worker, the completed call whose payload is that worker's own whole snapshot, where workers keep
            some parameters to themselves.
    """

    version: int
    future: Future
    personal: Mapping[str, Future] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Drained(Event):
    """Nothing is in flight and every role has saved itself: a consistent cut.

    Attributes:
        tag: the checkpoint's name.
        files: by role.
        state: the strategy's own, as JSON values.
        inserted: transitions that each role still inserted, where the cut closed its open n-step windows.
    """

    tag: str
    files: dict[str, list[SavedFile]]
    state: dict[str, object]
    inserted: dict[str, int] = field(default_factory=dict)


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


def submit_saves(engine: Engine, roles: list[RoleRef], control: Control) -> list[Future]:
    """Have all roles write their parts of the checkpoint `control.drain_tag`, side by side; the completed calls.

    Nothing else may be in flight.
    """
    tag, folder = control.drain_tag, control.checkpoint_folder
    assert tag is not None
    saves = [engine.submit(role, "save", folder, tag, control.saved_files.get(role.name, [])) for role in roles]
    for _ in saves:
        assert engine.wait() is not None
    return saves


def drained(engine: Engine, saves: list[Future], control: Control, state: dict[str, object] | None = None) -> Drained:
    """The event that a list of completed saves makes; `state` is the strategy's own.

    Raises:
        QfleetError: one of them failed.
    """
    tag = control.drain_tag
    assert tag is not None
    files: dict[str, list[SavedFile]] = {}
    inserted: dict[str, int] = {}
    for save in saves:
        receipt = engine.result(save)
        control.counters.add(receipt)
        files[save.role.name] = receipt.files
        inserted[save.role.name] = receipt.num_inserted
    return Drained(tag, files, state or {}, inserted)


def save_roles(engine: Engine, roles: list[RoleRef], control: Control, state: dict[str, object]) -> Drained:
    """Save all roles of a strategy that restarts none. Nothing may be in flight."""
    return drained(engine, submit_saves(engine, roles, control), control, state)


def load_roles(engine: Engine, roles: list[RoleRef], control: Control, saved: Saved) -> None:
    """Have each role load its part of a checkpoint."""
    for role in roles:
        call(engine, role, "load", control.checkpoint_folder, saved.tag, saved.files[role.name])
