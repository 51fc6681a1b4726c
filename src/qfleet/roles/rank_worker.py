"""Rank of an all-reduce group: a worker whose every update is made from the mean gradient of all ranks.

replay -> gradient -> mean over the group -> optimizer, the same one step at every rank, so that all stay equal.
Goyal et al. 2017 (large minibatch SGD); Sergeev and Del Balso 2018 (Horovod).
"""

from __future__ import annotations

import time
from collections.abc import Generator
from pathlib import Path

import numpy as np
import torch

from qfleet.ops.importance import global_scale
from qfleet.replay.redistribute import ReplaySource
from qfleet.roles.blueprint import Blueprint
from qfleet.roles.worker import Worker, read_worker_state
from qfleet.seeding import derive_seed
from qfleet.types import LearnerState, Receipt, Reply, Sample, SavedFile


class RankWorker(Worker):
    """Environments, local replay and a learner that is the same at every rank.

    Parameters, target, optimizer state and version are equal at all ranks after each call, observation statistics
    too; environments, replay and random numbers are a rank's own.

    Args:
        blueprint: the run's plan, with this rank's share of the replay.
        name: the role's name; its seeds and files are called after it.
        rank, num_workers: which of how many ranks this is, for per-environment epsilons.
    """

    timing_twin = "qfleet.roles.timing_twins:TimedRank"

    def __init__(self, blueprint: Blueprint, name: str, rank: int = 0, num_workers: int = 1) -> None:
        super().__init__(blueprint, name, rank, num_workers)
        self.seed = blueprint.seed
        self.is_prioritized = blueprint.replay.sampler == "prioritized"

    def train_together(self, num_updates: int, rank: int, world_size: int) -> Generator[torch.Tensor, None, Receipt]:
        """`num_updates` updates of the whole group, each on `algo.batch_size` transitions of every rank.

        Yields tensors into which the engine writes their mean over the group: for each update the gradient (float32
        [P]; with prioritized replay the smallest probabilities before it, float64 [R]), at the end the observation
        statistics where there are any. Between two calls each rank's statistics follow its own batches.

        Args:
            num_updates: the same number at every rank.
            rank, world_size: this one's place in the group, and the group's size.

        Returns:
            A receipt of this rank's own samples. seconds["all_reduce"] is the time at a yield.
        """
        receipt = Receipt()
        learner, experience = self.learner, self.experience
        gradient = learner.online.gradient
        assert gradient is not None
        clock = time.perf_counter
        learning = sampling = waiting = loss = value = 0.0
        for _ in range(num_updates):
            started = clock()
            sample = experience.draw(self.batch_size)
            sampled = clock()
            priority = learner.gradient(sample)
            learned = clock()
            scale = 1.0
            if self.is_prioritized:
                assert isinstance(sample, Sample)
                scale = yield from self._weigh(sample, rank, world_size)
                gradient.mul_(scale)
            yield gradient
            met = clock()
            learner.measure(sample)
            learner.step(sample)
            stepped = clock()
            experience.learned(sample, priority)
            sampling += sampled - started + clock() - stepped
            learning += learned - sampled + stepped - met
            waiting += met - learned
            loss += learner.loss * scale
            value += learner.mean_value
        if learner.has_statistics:
            yield learner.online.buffers
            learner.follow_statistics()
        receipt.version = learner.version
        receipt.num_updates = num_updates
        receipt.num_samples = num_updates * self.batch_size
        receipt.seconds = {"replay": sampling, "learner": learning, "all_reduce": waiting}
        receipt.metrics = learner.metrics(loss / num_updates, value / num_updates)
        return receipt

    def _weigh(self, sample: Sample, rank: int, world_size: int) -> Generator[torch.Tensor, None, float]:
        """The factor that makes this batch's importance weights those of the global batch."""
        # A mean is all that a group can take: each rank fills its own place, the others' zeros leave it as it is.
        smallest = torch.zeros(world_size, dtype=torch.float64, device=self.learner.online.vector.device)
        smallest[rank] = float(sample.probabilities.min())
        yield smallest
        return global_scale(smallest.cpu().numpy(), rank, self.learner.importance_exponent())

    def standing(self) -> Receipt:
        """Which version this rank is at."""
        return Receipt(version=self.learner.version)

    def stand_at(self, version: int) -> Receipt:
        """Count on from `version`: that of a group which is lost, so that versions never go back."""
        self.learner.version = version
        return self.standing()

    def learner_state(self) -> Reply:
        """Parameters, target, optimizer state and version, for a rank that joins."""
        state = self.learner.share()
        return Reply(Receipt(version=state.version, num_bytes=_num_bytes(state)), state)

    def take_learner_state(self, state: LearnerState) -> Receipt:
        """Become equal to the rank that gave `state`."""
        self.learner.take_over(state)
        return self.standing()

    def restore(
        self, incarnation: int, tag: str, folder: str, state: SavedFile | None, sources: list[ReplaySource]
    ) -> Receipt:
        """Begin a new life: fresh episodes, own random numbers, a saved learner, and what was saved of the replay.

        Args:
            incarnation: which life; part of the seeds.
            tag: the checkpoint's name, part of the seeds; "" without one.
            folder: the run's checkpoints folder.
            state: any rank's state file, they are all equal; None keeps the first weights.
            sources: where replay rows are to come from; may be empty.

        Returns:
            A receipt with the number of transitions that the replay holds now.
        """
        learner = self.learner
        if state is not None:
            arrays, values, _ = read_worker_state(Path(folder), state)
            learner.load_state_dict(arrays, values)
        learner.noise_generator.manual_seed(
            derive_seed(self.seed, self.name, "learner-noise", "life", incarnation, tag)
        )
        num_rows = self.experience.restore(sources, "life", incarnation, tag)
        return Receipt(version=learner.version, metrics={"num_restored": num_rows})


def _num_bytes(state: LearnerState) -> int:
    arrays: list[np.ndarray] = [
        state.online,
        state.online_buffers,
        state.target,
        state.target_buffers,
        state.moments,
    ]
    return sum(array.nbytes for array in arrays)
