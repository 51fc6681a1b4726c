"""Replay shard: a part of a replay that is cut over several roles, between the actors and the learners.

actor -> insert -> shard -> sample -> learner -> priorities back (Horgan et al. 2018). Every receipt says how much the
shard weighs, so that draws over all shards follow the sum of their priorities.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from qfleet.replay.packing import PackedSample, PackedTransitions
from qfleet.replay.redistribute import ReplaySource, merge_replay
from qfleet.replay.segments import load_replay, save_replay
from qfleet.roles.blueprint import Blueprint, stores_frames_once
from qfleet.types import IntArray, Receipt, Reply, Sample, SavedFile, Transitions


@dataclass(frozen=True, slots=True)
class Insertion:
    """What an actor sends.

    Attributes:
        transitions: N of them, packed where frames are stored once.
        priorities: float64 [N], |TD error| by the actor's own network; None for a uniform replay.
        version: of the parameters that chose the actions.
    """

    transitions: Transitions | PackedTransitions
    priorities: npt.NDArray[np.float64] | None
    version: int


@dataclass(frozen=True, slots=True)
class Draw:
    """One shard's part of some batches.

    Attributes:
        shard: index of the shard.
        incarnation: which life of it; its keys mean nothing to another one.
        samples: one a batch, packed where frames are stored once, None where the batch has nothing of this shard;
            probabilities are those within the shard.
    """

    shard: int
    incarnation: int
    samples: list[Sample | PackedSample | None]


@dataclass(frozen=True, slots=True)
class NewPriorities:
    """What goes back to one life of a shard.

    Attributes:
        shard, incarnation: as in the Draw.
        keys: int64 [K]; where one comes twice the last one counts.
        priorities: float64 [K], |TD error|.
    """

    shard: int
    incarnation: int
    keys: IntArray
    priorities: npt.NDArray[np.float64]


class ReplayShard:
    """Owner of one shard.

    Args:
        blueprint: the run's plan, with this shard's share of the replay.
        name: the role's name; its seeds and files are called after it.
        index: which shard.

    Attributes:
        incarnation: which life this is, as `restore` was told.
    """

    timing_twin = "qfleet.roles.timed_replay:TimedShard"

    def __init__(self, blueprint: Blueprint, name: str, index: int = 0) -> None:
        self.blueprint = blueprint
        self.name = name
        self.index = index
        self.incarnation = 0
        self.replay = blueprint.build_replay(name)
        self.sends_packed = stores_frames_once(blueprint.replay, blueprint.spec)
        self._own_paths: set[str] = (
            set()
        )  # files that hold this very replay's rows, by this life or one it went on from

    def insert(self, insertion: Insertion) -> Receipt:
        """Store an actor's transitions."""
        started = time.perf_counter()
        self.replay.insert(insertion.transitions, insertion.priorities)
        receipt = self._receipt(started)
        receipt.version, receipt.num_inserted = insertion.version, len(insertion.transitions)
        return receipt

    def sample(self, counts: list[int]) -> Reply:
        """Draw `counts[k]` transitions for batch k, one batch after the other; the payload is a Draw.

        Raises:
            EmptyReplayError: nothing was inserted yet.
        """
        started = time.perf_counter()
        draw = self.replay.sample_packed if self.sends_packed else self.replay.sample
        samples = [draw(count) if count else None for count in counts]
        return Reply(self._receipt(started), Draw(self.index, self.incarnation, samples))

    def update_priorities(self, changes: list[NewPriorities]) -> Receipt:
        """Take those of the new priorities that are for this shard.

        A key that was overwritten is left out by the replay; those of a former life are refused whole.

        Returns:
            A receipt whose metrics have "num_refused" beside the shard's weight.
        """
        started = time.perf_counter()
        num_refused = 0
        for change in changes:
            if change.shard != self.index:
                continue
            if change.incarnation == self.incarnation:
                self.replay.update_priorities(change.keys, change.priorities)
            else:
                num_refused += len(change.keys)
        receipt = self._receipt(started)
        receipt.metrics["num_refused"] = float(num_refused)
        return receipt

    def restore(self, incarnation: int, folder: str, files: list[SavedFile], sources: list[ReplaySource]) -> Receipt:
        """Begin a new life with what was saved.

        Args:
            incarnation: which life.
            folder: the run's checkpoints folder.
            files: this shard's own newest checkpoint, whose rows keep their keys; may be empty.
            sources: parts of other shards' checkpoints instead; rows get new keys.
        """
        self.incarnation = incarnation
        self.replay = self.blueprint.build_replay(f"{self.name}.{incarnation}" if incarnation else self.name)
        self._own_paths = set()
        if files:
            self._load(folder, files)
        elif sources:
            merge_replay(self.replay, sources)
        return self._receipt(time.perf_counter())

    def save(self, folder: str, tag: str, previous: list[SavedFile]) -> Receipt:
        """Write this shard's part of the checkpoint `tag`; segments among its own `previous` files are kept."""
        receipt = self._receipt(time.perf_counter())
        kept = [file for file in self._stripped(previous) if file.path in self._own_paths]
        saved = save_replay(self.replay, Path(folder) / self.name, kept, tag)
        self._own_paths.update(file.path for file in saved)
        receipt.files = [SavedFile(f"{self.name}/{file.path}", file.num_bytes, file.sha256) for file in saved]
        return receipt

    def load(self, folder: str, tag: str, files: list[SavedFile]) -> Receipt:
        """Continue from the files that `save` returned: content, keys and draws.

        Raises:
            CheckpointError: a file does not fit this run.
        """
        self._load(folder, files)
        return self._receipt(time.perf_counter())

    def _load(self, folder: str, files: list[SavedFile]) -> None:
        own = self._stripped(files)
        load_replay(self.replay, Path(folder) / self.name, own)
        self._own_paths = {file.path for file in own}

    def _stripped(self, files: list[SavedFile]) -> list[SavedFile]:
        return [SavedFile(file.path.removeprefix(f"{self.name}/"), file.num_bytes, file.sha256) for file in files]

    def _receipt(self, started: float) -> Receipt:
        metrics = {"total_priority": self.replay.total, "num_transitions": float(len(self.replay))}
        return Receipt(seconds={"replay": time.perf_counter() - started}, metrics=metrics)
