"""Worker: environments, local replay and a learner in one role. Serial training is one worker.

collect: actor -> n-step adder -> replay          train: replay -> learner -> parameters (and priorities back)
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from qfleet.errors import CheckpointError
from qfleet.replay.segments import load_replay, save_replay
from qfleet.roles.actor import Actor
from qfleet.roles.blueprint import Blueprint
from qfleet.roles.learner import Learner
from qfleet.roles.state_file import read_state, write_state
from qfleet.types import Progress, Receipt, Reply, SavedFile


class Worker:
    """One self-sufficient trainer.

    Args:
        blueprint: the run's plan.
        name: the role's name; its seeds and files are called after it.
        rank, num_workers: which of how many workers this is, for per-environment epsilons.
    """

    timing_twin = "qfleet.roles.timing_twins:TimedWorker"

    def __init__(self, blueprint: Blueprint, name: str, rank: int = 0, num_workers: int = 1) -> None:
        self.name = name
        self.learner = self.build_learner(blueprint)
        self.actor = Actor(blueprint, name, self.learner.online, rank, num_workers)
        self.replay = blueprint.build_replay(name)
        self.batch_size = blueprint.algo.batch_size
        self._own_paths: set[str] = set()  # files that hold this very replay's rows: a later save may keep them
        self._is_prioritized = blueprint.replay.sampler == "prioritized"

    def collect(self, progress: Progress, num_vector_steps: int) -> Receipt:
        """Step the environments `num_vector_steps` times and insert what they gave."""
        receipt = Receipt(version=self.learner.version)
        started = time.perf_counter()
        for _ in range(num_vector_steps):
            transitions = self.actor.step(progress, receipt)
            if len(transitions):
                self.replay.insert(transitions)
                receipt.num_inserted += len(transitions)
        seconds = receipt.seconds
        seconds["replay"] = time.perf_counter() - started - seconds["inference"] - seconds["environment"]
        receipt.metrics["epsilon"] = self.actor.mean_epsilon(progress)
        if len(self.replay) < min(self.replay.num_inserted, self.replay.capacity):  # frames ran out, rows went early
            receipt.metrics["num_live_transitions"] = float(len(self.replay))
        return receipt

    def train(self, num_updates: int) -> Receipt:
        """`num_updates` updates, each on a fresh sample of `algo.batch_size`."""
        receipt = Receipt()
        learner, replay = self.learner, self.replay
        clock = time.perf_counter
        learning = sampling = loss = value = 0.0
        for _ in range(num_updates):
            started = clock()
            sample = replay.sample(self.batch_size)
            sampled = clock()
            priority = learner.learn(sample)
            learned = clock()
            if self._is_prioritized:
                replay.update_priorities(sample.keys, priority.astype("float64"))
            sampling += sampled - started + clock() - learned
            learning += learned - sampled
            loss += learner.loss
            value += learner.mean_value
        receipt.version = learner.version
        receipt.num_updates = num_updates
        receipt.num_samples = num_updates * self.batch_size
        receipt.seconds = {"replay": sampling, "learner": learning}
        receipt.metrics = {
            "loss": loss / num_updates,
            "mean_q": value / num_updates,
            "grad_norm": learner.gradient_norm,
        }
        return receipt

    def snapshot(self) -> Reply:
        """The current parameters, as payload."""
        return Reply(Receipt(version=self.learner.version), self.learner.snapshot())

    def save(self, folder: str, tag: str, previous: list[SavedFile]) -> Receipt:
        """Write this role's part of the checkpoint `tag`.

        Args:
            folder: the run's checkpoints folder.
            tag: the checkpoint's name.
            previous: this role's files in the previous checkpoint; replay segments among them are kept, not rewritten.
        """
        receipt = Receipt(version=self.learner.version)
        flushed = self.actor.cut(tag)
        if flushed is not None and len(flushed):
            self.replay.insert(flushed)
            receipt.num_inserted = len(flushed)
        self.learner.snapshot()  # raises where a parameter is NaN or infinite: that is no good checkpoint
        learner_arrays, learner_values = self.learner.state_dict()
        actor_arrays, actor_values = self.actor.state_dict()
        arrays = {**learner_arrays, **actor_arrays, **self.extra_state()}
        root = Path(folder)
        # The state comes first: `load` reads it as files[0], and the replay's files are all the others.
        receipt.files = [write_state(root, self.name, tag, arrays, {"learner": learner_values, "actor": actor_values})]
        replay_files = [_strip(self.name, file) for file in previous[1:] if file.path in self._own_paths]
        saved = save_replay(self.replay, root / self.name, replay_files, tag)
        receipt.files += [SavedFile(f"{self.name}/{file.path}", file.num_bytes, file.sha256) for file in saved]
        self._own_paths = {file.path for file in receipt.files}
        return receipt

    def load(self, folder: str, tag: str, files: list[SavedFile]) -> Receipt:
        """Continue from the files that `save` returned for the checkpoint `tag`.

        Raises:
            CheckpointError: a file does not fit this run; nothing is half loaded, for the run does not start.
        """
        root = Path(folder)
        arrays, learner_values, actor_values = read_worker_state(root, files[0])
        self.learner.load_state_dict(arrays, learner_values)
        load_replay(self.replay, root / self.name, [_strip(self.name, file) for file in files[1:]])
        self.actor.load_state_dict(arrays, actor_values, tag)
        self.load_extra_state(arrays)
        self._own_paths = {file.path for file in files}
        return Receipt(version=self.learner.version)

    def build_learner(self, blueprint: Blueprint) -> Learner:
        """What this kind of worker trains with."""
        return Learner(blueprint, self.name)

    def extra_state(self) -> dict[str, np.ndarray]:
        """Arrays that a kind of worker has to save beside those of every worker."""
        return {}

    def load_extra_state(self, arrays: dict[str, np.ndarray]) -> None:
        """Continue from `extra_state`."""

    def close(self) -> None:
        """Close the environments."""
        self.actor.close()


State = tuple[dict[str, np.ndarray], dict[str, object], dict[str, object]]


def read_worker_state(root: Path, file: SavedFile) -> State:
    """The arrays of a worker's state file, and the JSON values of its learner and its actor.

    Raises:
        CheckpointError: it is missing, damaged or of another version.
    """
    arrays, values = read_state(root, file)
    learner, actor = values.get("learner"), values.get("actor")
    if not isinstance(learner, dict) or not isinstance(actor, dict):
        raise CheckpointError(f"{root / file.path}: not a worker's state file of this version")
    return arrays, learner, actor


def _strip(name: str, file: SavedFile) -> SavedFile:
    return SavedFile(file.path.removeprefix(f"{name}/"), file.num_bytes, file.sha256)
