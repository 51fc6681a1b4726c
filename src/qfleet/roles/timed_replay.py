"""Timing twins of distributed replay: an actor, a shard that counts what it holds, a learner; see timing_twins.py."""

from __future__ import annotations

from collections.abc import Generator

import torch

from qfleet.replay.packing import PackedSample
from qfleet.roles.blueprint import Blueprint
from qfleet.roles.replay_shard import Draw, Insertion, NewPriorities
from qfleet.roles.timing_twins import Twin, blank, blank_transitions
from qfleet.types import LearnerState, ParamSlice, Progress, Receipt, Reply, Sample


class TimedActor(Twin):
    """Of an actor of a distributed replay."""

    def rollout(self, progress: Progress, num_vector_steps: int, newest: ParamSlice, with_target: ParamSlice) -> Reply:
        """Every environment gives a transition a step."""
        self.version = newest.version
        number = num_vector_steps * self.blueprint.env.num_envs
        receipt = Receipt(version=self.version, num_env_steps=number, metrics={"num_transitions": float(number)})
        receipt.seconds = {"environment": 1.0}
        is_prioritized = self.blueprint.replay.sampler == "prioritized"
        priorities = blank((number,), "float64") if is_prioritized else None
        return Reply(receipt, Insertion(blank_transitions(self.blueprint, number), priorities, self.version))

    def cut(self, tag: str) -> Reply:
        """No window is open."""
        return Reply(Receipt(version=self.version, metrics={"num_transitions": 0.0}), None)

    def restore(self, incarnation: int, tag: str) -> Receipt:
        """Begin a new life."""
        return Receipt(version=self.version)


class TimedShard(Twin):
    """Of a replay shard: it counts what it holds, and every transition weighs 1."""

    def __init__(self, blueprint: Blueprint, name: str, index: int = 0) -> None:
        super().__init__(blueprint, name)
        self.index = index
        self.incarnation = self.num_held = 0

    def insert(self, insertion: Insertion) -> Receipt:
        """Up to the capacity."""
        number = len(insertion.transitions)
        self.num_held = min(self.num_held + number, self.blueprint.replay.capacity)
        receipt = self._receipt()
        receipt.version, receipt.num_inserted = insertion.version, number
        return receipt

    def sample(self, counts: list[int]) -> Reply:
        """Batches of the real size."""
        samples: list[Sample | PackedSample | None] = [self._sample(count) if count else None for count in counts]
        return Reply(self._receipt(), Draw(self.index, self.incarnation, samples))

    def update_priorities(self, changes: list[NewPriorities]) -> Receipt:
        """None is refused but those of a former life."""
        old = [one for one in changes if one.shard == self.index and one.incarnation != self.incarnation]
        receipt = self._receipt()
        receipt.metrics["num_refused"] = float(sum(len(one.keys) for one in old))
        return receipt

    def restore(self, incarnation: int, *_: object) -> Receipt:
        """A new life holds nothing."""
        self.incarnation, self.num_held = incarnation, 0
        return self._receipt()

    def _sample(self, count: int) -> Sample:
        transitions = blank_transitions(self.blueprint, count)
        return Sample(blank((count,), "int64"), transitions, blank((count,), "float64"), self.num_held)

    def _receipt(self) -> Receipt:
        held = float(self.num_held)
        return Receipt(seconds={"replay": 1.0}, metrics={"total_priority": held, "num_transitions": held})


class TimedLearner(Twin):
    """Of a learner that replay shards feed."""

    published_target = -1

    def learn(self, num_transitions: int, shares: list[float], *draws: Draw) -> Reply:
        """A version further by each batch."""
        number = len(draws[0].samples)
        self.version += number
        drawn = [sum(len(sample.keys) for sample in draw.samples if sample is not None) for draw in draws]
        receipt = Receipt(version=self.version, num_updates=number, num_samples=sum(drawn), seconds={"learner": 1.0})
        if self.blueprint.replay.sampler == "uniform":
            return Reply(receipt, [])
        pairs = zip(draws, drawn, strict=True)
        changes = [
            NewPriorities(draw.shard, draw.incarnation, blank((count,), "int64"), blank((count,), "float64"))
            for draw, count in pairs
        ]
        return Reply(receipt, changes)

    def learn_together(
        self, num_transitions: int, shares: list[float], *draws: Draw
    ) -> Generator[torch.Tensor, None, Reply]:
        """As many means as batches."""
        yield from self.gradients(len(draws[0].samples))
        return self.learn(num_transitions, shares, *draws)

    def publish(self, with_target: bool) -> Reply:
        """The vector, and the target's when asked for or changed."""
        config = self.blueprint.replay_algo
        is_soft, period = config.target_update == "soft", config.target_period_updates
        target_version = self.version if is_soft else self.version - self.version % period
        with_target = with_target or target_version != self.published_target
        self.published_target = target_version
        metrics = {"has_target": float(with_target)}
        return Reply(Receipt(version=self.version, metrics=metrics), self.published(target_version, with_target))

    def report(self) -> Reply:
        """All of its state."""
        return self.learner_state()

    def adopt(self, state: LearnerState) -> Receipt:
        """Become equal to another one."""
        return self.take_learner_state(state)

    def restore(self, folder: str, files: object, *published: ParamSlice) -> Receipt:
        """Begin a new life at the newest publication."""
        self.version = published[-1].version if published else 0
        return Receipt(version=self.version, metrics={"moments_age": 0.0})
