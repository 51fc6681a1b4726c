"""Learner that is fed by replay shards: draws of several shards become one batch, one update, and priorities back.

shard -> draw (probability within the shard, times the shard's share) -> gradient -> update -> publish (Horgan et al.
2018). Several learners average their gradients, each on a batch of its own, and stay equal.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from pathlib import Path

import numpy as np
import torch

from qfleet.networks.flat import as_tensor
from qfleet.ops.importance import global_scale
from qfleet.ops.sharding import global_probabilities
from qfleet.replay.packing import PackedSample, unpack_sample
from qfleet.roles.blueprint import Blueprint
from qfleet.roles.learner import Learner
from qfleet.roles.replay_actor import join_transitions
from qfleet.roles.replay_shard import Draw, NewPriorities
from qfleet.roles.state_file import read_state, write_state
from qfleet.types import FloatArray, IntArray, LearnerState, ParamSlice, Receipt, Reply, Sample, SavedFile


class SampleLearner:
    """A Learner as a role of its own.

    Args:
        blueprint: the run's plan.
        name: the role's name; its seeds and files are called after it.
        rank, num_learners: which of how many learners that average their gradients.
    """

    timing_twin = "qfleet.roles.timed_replay:TimedLearner"

    def __init__(self, blueprint: Blueprint, name: str, rank: int = 0, num_learners: int = 1) -> None:
        self.name = name
        self.rank = rank
        self.num_learners = num_learners
        self.config = blueprint.replay_algo
        self.learner = Learner(blueprint, name)
        self._is_prioritized = blueprint.replay.sampler == "prioritized"
        self._published_target = -1  # the version of the target that was published last

    def learn(self, num_transitions: int, shares: list[float], *draws: Draw) -> Reply:
        """One update per batch of the draws.

        Args:
            num_transitions: N over all shards.
            shares: each draw's shard's share of the total priority, as it was when the draws were asked for.
            draws: of different shards, equally many batches.

        Returns:
            Counts and metrics; the payload is a list of NewPriorities, one a draw (empty for a uniform replay).
        """
        started = time.perf_counter()
        priorities = [
            self.learner.learn(join_draws(draws, shares, index, num_transitions))
            for index in range(len(draws[0].samples))
        ]
        return self._reply(draws, priorities, started)

    def learn_together(
        self, num_transitions: int, shares: list[float], *draws: Draw
    ) -> Generator[torch.Tensor, None, Reply]:
        """`learn`, with the gradient averaged over the group; yields tensors for the mean.

        Importance weights are those of the global batch: divided by the largest one of all learners' together.
        """
        started = time.perf_counter()
        learner = self.learner
        gradient = learner.online.gradient
        assert gradient is not None
        priorities = []
        for index in range(len(draws[0].samples)):
            sample = join_draws(draws, shares, index, num_transitions)
            priorities.append(learner.gradient(sample))
            if self._is_prioritized:
                # Each fills its own place, and the others' zeros leave it as it is but for a common factor.
                smallest = torch.zeros(self.num_learners, dtype=torch.float64, device=gradient.device)
                smallest[self.rank] = float(sample.probabilities.min())
                yield smallest
                gradient.mul_(global_scale(smallest.cpu().numpy(), self.rank, learner.importance_exponent()))
            yield gradient
            if learner.has_statistics:
                yield learner.online.buffers
                learner.follow_statistics()
            learner.measure(sample)
            learner.step(sample)
        return self._reply(draws, priorities, started)

    def publish(self, with_target: bool) -> Reply:
        """The whole vector as a ParamSlice; the target's comes along when asked for, or when it has changed."""
        snapshot = self.learner.snapshot()
        target_version = self.target_version
        target = None
        if with_target or target_version != self._published_target:
            target = self.learner.target.vector.cpu().numpy().copy()
            target.setflags(write=False)
            self._published_target = target_version
        part = ParamSlice(
            version=snapshot.version,
            offset=0,
            vector=snapshot.vector,
            target=target,
            target_version=target_version,
            buffers=snapshot.buffers,
            layout_hash=snapshot.layout_hash,
        )
        return Reply(Receipt(version=part.version, metrics={"has_target": float(target is not None)}), part)

    def snapshot(self) -> Reply:
        """The current parameters, as payload."""
        return Reply(Receipt(version=self.learner.version), self.learner.snapshot())

    @property
    def target_version(self) -> int:
        """The version at which the target changed last."""
        config, version = self.config, self.learner.version
        return version if config.target_update == "soft" else version - version % config.target_period_updates

    def report(self) -> Reply:
        """All of this learner's state but its random numbers, as payload."""
        return Reply(Receipt(version=self.learner.version), self.learner.share())

    def adopt(self, state: LearnerState) -> Receipt:
        """Become equal to another learner; the random numbers stay this one's own."""
        self.learner.take_over(state)
        return Receipt(version=self.learner.version)

    def restore(self, folder: str, files: list[SavedFile], *published: ParamSlice) -> Receipt:
        """Begin a new life at the newest publication; only the optimizer's moments may be older.

        Args:
            folder: the run's checkpoints folder.
            files: a learner's newest checkpoint, for the moments, and for all where it is as new; may be empty.
            published: the newest publication that carries the target's vector, and the newest; none before the first.

        Returns:
            A receipt whose "moments_age" says by how many updates the moments are behind.
        """
        moments_version = 0
        learner = self.learner
        if files:
            arrays, values = read_state(Path(folder), files[0])
            moments_version = int(str(values["version"]))
            self._load_without_noise(arrays, values)
        if published and published[-1].version > moments_version:
            learner.pull(*published)
            for network in (learner.online, learner.target):
                network.buffers.copy_(as_tensor(np.asarray(published[-1].buffers)))
        age = learner.version - moments_version
        return Receipt(version=learner.version, metrics={"moments_age": float(age)})

    def save(self, folder: str, tag: str, previous: list[SavedFile]) -> Receipt:
        """Write this learner's part of the checkpoint `tag`."""
        self.learner.snapshot()  # raises where a parameter is NaN or infinite: that is no good checkpoint
        arrays, values = self.learner.state_dict()
        file = write_state(Path(folder), self.name, tag, arrays, values)
        return Receipt(version=self.learner.version, files=[file])

    def load(self, folder: str, tag: str, files: list[SavedFile]) -> Receipt:
        """Continue from the file that `save` returned; from another learner's, with random numbers of its own.

        Raises:
            CheckpointError: it does not fit this run.
        """
        arrays, values = read_state(Path(folder), files[0])
        if files[0].path.startswith(f"{self.name}/"):
            self.learner.load_state_dict(arrays, values)
        else:
            self._load_without_noise(arrays, values)
        return Receipt(version=self.learner.version)

    def _load_without_noise(self, arrays: dict[str, np.ndarray], values: dict[str, object]) -> None:
        """Another learner's state, or this one's of long ago; the random numbers stay what they are."""
        noise = self.learner.noise_generator.get_state().numpy()
        self.learner.load_state_dict({**arrays, "learner_noise": noise}, values)

    def _reply(self, draws: Sequence[Draw], priorities: list[FloatArray], started: float) -> Reply:
        learner = self.learner
        receipt = Receipt(
            version=learner.version,
            num_updates=len(priorities),
            num_samples=sum(len(part) for part in priorities),
            seconds={"learner": time.perf_counter() - started},
            metrics=learner.metrics(learner.loss, learner.mean_value),
        )
        return Reply(receipt, split_priorities(draws, priorities) if self._is_prioritized else [])


def join_draws(draws: Sequence[Draw], shares: Sequence[float], index: int, num_transitions: int) -> Sample:
    """Batch `index` of all draws as one sample, with the probabilities that one big replay would have given.

    Keys are those of each draw's own shard.
    """
    parts = [
        (sample, share)
        for sample, share in ((draw.samples[index], share) for draw, share in zip(draws, shares, strict=True))
        if sample is not None
    ]
    samples = [unpack_sample(sample) if isinstance(sample, PackedSample) else sample for sample, _ in parts]
    probabilities = [global_probabilities(sample.probabilities, share) for sample, share in parts]
    return Sample(
        keys=np.concatenate([sample.keys for sample in samples]),
        transitions=join_transitions([sample.transitions for sample in samples]),
        probabilities=np.concatenate(probabilities),
        num_transitions=num_transitions,
    )


def split_priorities(draws: Sequence[Draw], priorities: Sequence[FloatArray]) -> list[NewPriorities]:
    """The priorities of joined batches, each for the shard that its transitions came from, in order of the batches."""
    keys: list[list[IntArray]] = [[] for _ in draws]
    values: list[list[FloatArray]] = [[] for _ in draws]
    for index, batch in enumerate(priorities):
        start = 0
        for place, draw in enumerate(draws):
            sample = draw.samples[index]
            if sample is not None:
                end = start + len(sample.keys)
                keys[place].append(sample.keys)
                values[place].append(batch[start:end])
                start = end
    return [
        NewPriorities(
            draw.shard, draw.incarnation, np.concatenate(keys[place]), np.concatenate(values[place]).astype(np.float64)
        )
        for place, draw in enumerate(draws)
    ]
