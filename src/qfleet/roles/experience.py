"""Experience: what a worker learns from, and how it comes by it. An actor with a replay, or with its present rollout.

Between environments and learner. Which one a worker has follows from `Algorithm.learns_from`; what it is makes no
difference to the worker, nor to the strategy that drives it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from qfleet.errors import CheckpointError
from qfleet.networks.flat import FlatNetwork
from qfleet.replay.buffer import Replay
from qfleet.replay.redistribute import ReplaySource, merge_replay
from qfleet.replay.rollouts import RolloutBuffer
from qfleet.replay.segments import load_replay, save_replay
from qfleet.roles.actor import Actor, BaseActor
from qfleet.roles.blueprint import Blueprint
from qfleet.roles.learner import Drawn
from qfleet.roles.rollout_actor import RolloutActor
from qfleet.seeding import derive_generator
from qfleet.types import Array, FloatArray, Progress, Receipt, Sample, SavedFile


@dataclass(frozen=True, slots=True)
class SavedExperience:
    """An experience's part of a checkpoint.

    Attributes:
        num_inserted: rows that the cut still brought, where it closed open n-step windows.
        arrays, values: for the role's state file.
        files: further ones, relative to the role's folder.
    """

    num_inserted: int
    arrays: dict[str, Array]
    values: dict[str, object]
    files: list[SavedFile]


class Experience(Protocol):
    """An actor and what it has collected.

    Attributes:
        actor: its environments and behaviour policy.
        replay: what `draw` draws from.
    """

    @property
    def actor(self) -> BaseActor: ...

    @property
    def replay(self) -> Replay | RolloutBuffer: ...

    @property
    def is_fresh(self) -> bool:
        """Whether the next draw is the first one of a rollout."""
        ...

    def collect(self, progress: Progress, num_vector_steps: int, version: int) -> Receipt:
        """Step the environments `num_vector_steps` times, with the network at `version`, and keep what they gave."""
        ...

    def draw(self, batch_size: int) -> Drawn:
        """What the next update is made from."""
        ...

    def learned(self, drawn: Drawn, priority: FloatArray) -> None:
        """Take back the |TD errors| of what was drawn."""
        ...

    def save(self, folder: Path, tag: str, previous: list[SavedFile]) -> SavedExperience:
        """Cut, then write what does not belong into a state file; `previous` are files that still hold rows of it."""
        ...

    def load(
        self, folder: Path, tag: str, arrays: dict[str, Array], values: dict[str, object], files: list[SavedFile]
    ) -> None:
        """Continue from what `save` returned."""
        ...

    def restore(self, sources: list[ReplaySource], *names: str | int) -> int:
        """Begin a new life called `names`, with what was saved of replays; returns how many rows are there now."""
        ...


class ReplayExperience:
    """An actor that feeds a replay: transitions of many policies."""

    is_fresh = False

    def __init__(self, blueprint: Blueprint, name: str, network: FlatNetwork, rank: int, num_workers: int) -> None:
        self.actor = Actor(blueprint, name, network, rank, num_workers)
        self.replay = blueprint.build_replay(name)
        self._is_prioritized = blueprint.replay.sampler == "prioritized"

    def collect(self, progress: Progress, num_vector_steps: int, version: int) -> Receipt:
        """See Experience."""
        receipt = Receipt(version=version)
        started = time.perf_counter()
        for _ in range(num_vector_steps):
            transitions = self.actor.step(progress, receipt)
            if len(transitions):
                self.replay.insert(transitions)
                receipt.num_inserted += len(transitions)
        seconds = receipt.seconds
        seconds["replay"] = time.perf_counter() - started - seconds["inference"] - seconds["environment"]
        receipt.metrics |= self.actor.metrics(progress)
        if len(self.replay) < min(self.replay.num_inserted, self.replay.capacity):  # frames ran out, rows went early
            receipt.metrics["num_live_transitions"] = float(len(self.replay))
        return receipt

    def draw(self, batch_size: int) -> Drawn:
        """See Experience."""
        return self.replay.sample(batch_size)

    def learned(self, drawn: Drawn, priority: FloatArray) -> None:
        """See Experience."""
        if self._is_prioritized:
            assert isinstance(drawn, Sample)
            self.replay.update_priorities(drawn.keys, priority.astype("float64"))

    def save(self, folder: Path, tag: str, previous: list[SavedFile]) -> SavedExperience:
        """See Experience."""
        flushed = self.actor.cut(tag)
        num_inserted = 0 if flushed is None else len(flushed)
        if flushed is not None and num_inserted:
            self.replay.insert(flushed)
        arrays, values = self.actor.state_dict()
        return SavedExperience(num_inserted, arrays, values, save_replay(self.replay, folder, previous, tag))

    def load(
        self, folder: Path, tag: str, arrays: dict[str, Array], values: dict[str, object], files: list[SavedFile]
    ) -> None:
        """See Experience."""
        load_replay(self.replay, folder, files)
        self.actor.load_state_dict(arrays, values, tag)

    def restore(self, sources: list[ReplaySource], *names: str | int) -> int:
        """See Experience."""
        self.actor.reseed(*names)
        return merge_replay(self.replay, sources) if sources else 0


class RolloutExperience:
    """An actor that makes one rollout at a time: steps of the present policy, which a new life has none of."""

    def __init__(self, blueprint: Blueprint, name: str, network: FlatNetwork, rank: int, num_workers: int) -> None:
        self.actor = RolloutActor(blueprint, name, network, rank, num_workers)
        self.algorithm = blueprint.build_rollout_algorithm()
        self._purpose = (blueprint.seed, name, "replay")
        self.replay = RolloutBuffer(blueprint.replay.capacity, derive_generator(*self._purpose))

    @property
    def is_fresh(self) -> bool:
        """See Experience."""
        return self.replay.is_fresh

    def collect(self, progress: Progress, num_vector_steps: int, version: int) -> Receipt:
        """See Experience."""
        receipt = Receipt(version=version)
        trajectories = self.actor.rollout(progress, num_vector_steps, version, receipt)
        started = time.perf_counter()
        self.replay.insert(self.algorithm.prepare(trajectories))
        receipt.seconds["replay"] = time.perf_counter() - started
        return receipt

    def draw(self, batch_size: int) -> Drawn:
        """See Experience."""
        return self.replay.sample(batch_size)

    def learned(self, drawn: Drawn, priority: FloatArray) -> None:
        """Nothing is drawn twice by its error."""

    def save(self, folder: Path, tag: str, previous: list[SavedFile]) -> SavedExperience:
        """See Experience."""
        self.actor.cut(tag)
        arrays, values = self.actor.state_dict()
        rows, counts = self.replay.state_dict()
        return SavedExperience(0, arrays | rows, values | {"rollout": counts}, [])

    def load(
        self, folder: Path, tag: str, arrays: dict[str, Array], values: dict[str, object], files: list[SavedFile]
    ) -> None:
        """See Experience."""
        counts = values.get("rollout")
        if not isinstance(counts, dict):
            raise CheckpointError(f"{folder}: the checkpoint is of an algorithm that learns from replay")
        self.replay.load_state_dict(arrays, counts)
        self.actor.load_state_dict(arrays, values, tag)

    def restore(self, sources: list[ReplaySource], *names: str | int) -> int:
        """See Experience."""
        self.actor.reseed(*names)
        self.replay = RolloutBuffer(self.replay.capacity, derive_generator(*self._purpose, *names))
        return 0


def build_experience(
    blueprint: Blueprint, name: str, network: FlatNetwork, rank: int = 0, num_workers: int = 1
) -> Experience:
    """What a worker learns from, by its algorithm. Arguments as those of an actor."""
    kind = RolloutExperience if blueprint.learns_from_rollouts else ReplayExperience
    return kind(blueprint, name, network, rank, num_workers)
