"""Actor of a replay that lives elsewhere: a network of its own, and the initial priorities of what it sends.

publish -> pull -> rollout -> n-step adder -> |TD error| by the actor's own Q-values -> shard (Horgan et al. 2018).
"""

from __future__ import annotations

import time

import numpy as np

from qfleet.algos.base import Batch
from qfleet.replay.packing import pack
from qfleet.roles.actor import Actor
from qfleet.roles.blueprint import Blueprint, copy_network, stores_frames_once
from qfleet.roles.remote_actor import RemoteActor
from qfleet.roles.replay_shard import Insertion
from qfleet.types import ParamSlice, ParamSnapshot, Progress, Receipt, Reply, Transitions


class ReplayActor(RemoteActor):
    """Environments and a frozen copy of the networks.

    Args:
        blueprint: the run's plan.
        name: the role's name; its seeds and files are called after it.
        rank, num_actors: which of how many actors, for per-environment epsilons over all of them.

    Attributes:
        version: of the parameters it acts on.
    """

    timing_twin = "qfleet.roles.timed_replay:TimedActor"

    def __init__(self, blueprint: Blueprint, name: str, rank: int = 0, num_actors: int = 1) -> None:
        self.name = name
        self.online = blueprint.build_network(trainable=False)
        self.target = copy_network(self.online)
        self.actor: Actor = Actor(blueprint, name, self.online, rank, num_actors)
        self.algorithm = blueprint.build_replay_algorithm()
        self.version = self._target_version = -1
        self._sends_packed = stores_frames_once(blueprint.replay, blueprint.spec)
        self._is_prioritized = blueprint.replay.sampler == "prioritized"

    def rollout(self, progress: Progress, num_vector_steps: int, newest: ParamSlice, with_target: ParamSlice) -> Reply:
        """Pull, and step the environments `num_vector_steps` times; the payload is an Insertion.

        Args:
            progress: the global counters, for schedules.
            num_vector_steps: how many.
            newest: the newest publication.
            with_target: the newest one that carries the target's vector; may be the same.
        """
        self._pull(newest, with_target)
        receipt = Receipt(version=self.version)
        pieces = [_copied(self.actor.step(progress, receipt)) for _ in range(num_vector_steps)]
        receipt.metrics |= self.actor.metrics(progress)
        return self._insertion(receipt, join_transitions(pieces))

    def cut(self, tag: str) -> Reply:
        """Bring the environments to a state that a checkpoint can hold; see Actor.cut. The payload is an Insertion."""
        flushed = self.actor.cut(tag)
        if flushed is None or not len(flushed):
            return Reply(Receipt(version=self.version, metrics={"num_transitions": 0.0}), None)
        return self._insertion(Receipt(version=self.version), _copied(flushed))

    def _pull(self, newest: ParamSlice, with_target: ParamSlice) -> None:
        if newest.version != self.version:
            self.online.load(ParamSnapshot(newest.version, newest.vector, newest.buffers, newest.layout_hash))
            self.target.follow_statistics(self.online)  # observation statistics, as the learner keeps them
            self.version = newest.version
        source = newest if newest.target is not None else with_target
        if source.target_version != self._target_version:
            assert source.target is not None
            self.target.load(ParamSnapshot(source.target_version, source.target, newest.buffers, newest.layout_hash))
            self._target_version = source.target_version

    def _insertion(self, receipt: Receipt, transitions: Transitions) -> Reply:
        started = time.perf_counter()
        priorities = None
        if self._is_prioritized and len(transitions):
            batch = Batch.of(transitions, self.online.vector.device)
            errors = self.algorithm.priorities(self.online, self.target, batch)
            priorities = errors.cpu().numpy().astype(np.float64)
        receipt.metrics["num_transitions"] = float(len(transitions))
        receipt.seconds["inference"] = receipt.seconds.get("inference", 0.0) + time.perf_counter() - started
        sent = pack(transitions) if self._sends_packed and len(transitions) else transitions
        return Reply(receipt, Insertion(sent, priorities, self.version))


def join_transitions(pieces: list[Transitions]) -> Transitions:
    """Several batches of transitions as one, copied."""
    masks = [piece.next_action_mask for piece in pieces if piece.next_action_mask is not None]
    return Transitions(
        obs=np.concatenate([piece.obs for piece in pieces]),
        action=np.concatenate([piece.action for piece in pieces]),
        reward=np.concatenate([piece.reward for piece in pieces]),
        discount=np.concatenate([piece.discount for piece in pieces]),
        next_obs=np.concatenate([piece.next_obs for piece in pieces]),
        next_action_mask=np.concatenate(masks) if masks else None,
    )


def _copied(transitions: Transitions) -> Transitions:
    """Own arrays: the environments write into theirs again at the next step."""
    return join_transitions([transitions])
