"""Worker: environments, local replay and a learner in one role. Serial training is one worker.

collect: actor -> n-step adder -> replay          train: replay -> learner -> parameters (and priorities back)
         actor -> one rollout -> targets                 its minibatches -> learner -> parameters
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from qfleet.errors import CheckpointError
from qfleet.replay.buffer import Replay
from qfleet.replay.rollouts import RolloutBuffer
from qfleet.roles.actor import BaseActor
from qfleet.roles.blueprint import Blueprint
from qfleet.roles.experience import build_experience
from qfleet.roles.learner import BaseLearner, Drawn, Learner, RolloutLearner
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
        self.experience = build_experience(blueprint, name, self.learner.online, rank, num_workers)
        self.batch_size = blueprint.batch_size
        self._prefetches = prefetches(blueprint)
        self._own_paths: set[str] = set()  # files that hold this very replay's rows: a later save may keep them

    @property
    def actor(self) -> BaseActor:
        """Environments and behaviour policy."""
        return self.experience.actor

    @property
    def replay(self) -> Replay | RolloutBuffer:
        """What updates are made from."""
        return self.experience.replay

    def collect(self, progress: Progress, num_vector_steps: int) -> Receipt:
        """Step the environments `num_vector_steps` times and keep what they gave."""
        return self.experience.collect(progress, num_vector_steps, self.learner.version)

    def train(self, num_updates: int) -> Receipt:
        """`num_updates` updates, each on what is drawn for it."""
        receipt = Receipt()
        learner, experience = self.learner, self.experience
        clock = time.perf_counter
        learning = drawing = loss = value = 0.0
        draws = self._draws(num_updates)
        for _ in range(num_updates):
            started = clock()
            drawn = next(draws)
            sampled = clock()
            priority = learner.learn(drawn)
            learned = clock()
            experience.learned(drawn, priority)
            drawing += sampled - started + clock() - learned
            learning += learned - sampled
            loss += learner.loss
            value += learner.mean_value
        receipt.version = learner.version
        receipt.num_updates = num_updates
        receipt.num_samples = num_updates * self.batch_size
        receipt.seconds = {"replay": drawing, "learner": learning}
        receipt.metrics = learner.metrics(loss / num_updates, value / num_updates)
        return receipt

    def _draws(self, num_updates: int) -> Iterator[Drawn]:
        """What `num_updates` updates are made from; the next one is drawn while the learner works on one, where it may.

        The draws are the same ones: only this draws from the replay's generator, and nothing is inserted meanwhile.
        """
        draw, size = self.experience.draw, self.batch_size
        if not self._prefetches or num_updates == 1:
            for _ in range(num_updates):
                yield draw(size)
            return
        with ThreadPoolExecutor(1, "prefetch") as thread:
            drawing = thread.submit(draw, size)
            for left in range(num_updates - 1, -1, -1):
                drawn = drawing.result()
                if left:
                    drawing = thread.submit(draw, size)
                yield drawn

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
        self.learner.snapshot()  # raises where a parameter is NaN or infinite: that is no good checkpoint
        root = Path(folder)
        kept = [_strip(self.name, file) for file in previous[1:] if file.path in self._own_paths]
        saved = self.experience.save(root / self.name, tag, kept)
        arrays, learner_values = self.learner.state_dict()
        arrays = {**arrays, **saved.arrays, **self.extra_state()}
        # The state comes first: `load` reads it as files[0], and the replay's files are all the others.
        state = write_state(root, self.name, tag, arrays, {"learner": learner_values, "actor": saved.values})
        files = [state] + [SavedFile(f"{self.name}/{file.path}", file.num_bytes, file.sha256) for file in saved.files]
        self._own_paths = {file.path for file in files}
        return Receipt(version=self.learner.version, num_inserted=saved.num_inserted, files=files)

    def load(self, folder: str, tag: str, files: list[SavedFile]) -> Receipt:
        """Continue from the files that `save` returned for the checkpoint `tag`.

        Raises:
            CheckpointError: a file does not fit this run; nothing is half loaded, for the run does not start.
        """
        root = Path(folder)
        arrays, learner_values, actor_values = read_worker_state(root, files[0])
        self.learner.load_state_dict(arrays, learner_values)
        own = [_strip(self.name, file) for file in files[1:]]
        self.experience.load(root / self.name, tag, arrays, actor_values, own)
        self.load_extra_state(arrays)
        self._own_paths = {file.path for file in files}
        return Receipt(version=self.learner.version)

    def build_learner(self, blueprint: Blueprint) -> BaseLearner:
        """What this kind of worker trains with."""
        return (RolloutLearner if blueprint.learns_from_rollouts else Learner)(blueprint, self.name)

    def extra_state(self) -> dict[str, np.ndarray]:
        """Arrays that a kind of worker has to save beside those of every worker."""
        return {}

    def load_extra_state(self, arrays: dict[str, np.ndarray]) -> None:
        """Continue from `extra_state`."""

    def close(self) -> None:
        """Close the environments."""
        self.actor.close()


def prefetches(blueprint: Blueprint) -> bool:
    """Whether the next sample is drawn during an update: where that leaves the draws as they are, and saves time.

    Priorities change with each update, so nothing can be drawn by them before. With replay in memory and the learner
    on the same cores a second thread would only take time from it.
    """
    replay = blueprint.replay
    takes_time = blueprint.device != "cpu" or replay.directory is not None or replay.compression is not None
    return takes_time and replay.sampler == "uniform" and not blueprint.learns_from_rollouts


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
