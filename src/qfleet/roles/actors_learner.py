"""Learner that actors elsewhere send trajectories to: one update per batch, and the next snapshot as its answer.

trajectories -> join along the environments -> gradient -> update -> ParamSnapshot version+1 -> actors (Espeholt et al.
2018).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from qfleet.roles.blueprint import Blueprint
from qfleet.roles.learner import TrajectoryLearner
from qfleet.roles.state_file import read_state, write_state
from qfleet.types import ParamSnapshot, Receipt, Reply, SavedFile, Trajectories


class ActorsLearner:
    """Network and optimizer.

    Args:
        blueprint: the run's plan.
        name: the role's name; its seeds and files are called after it.
    """

    timing_twin = "qfleet.roles.timed_trajectories:TimedActorsLearner"

    def __init__(self, blueprint: Blueprint, name: str) -> None:
        self.name = name
        self.learner = TrajectoryLearner(blueprint, name)

    def learn(self, *trajectories: Trajectories) -> Reply:
        """One update from a batch of trajectories.

        Returns:
            Counts, metrics, and as "policy_lag" how many versions the learner was ahead of each trajectory's; the
            payload is the new ParamSnapshot.

        Raises:
            DivergenceError: loss, gradient or a parameter is NaN or infinite.
        """
        started = time.perf_counter()
        learner = self.learner
        lags = [learner.version - one.version for one in trajectories]
        batch = join_trajectories(trajectories)
        learner.learn(batch)
        snapshot = learner.snapshot()
        receipt = Receipt(
            version=learner.version,
            num_updates=1,
            num_samples=batch.action.size,
            seconds={"learner": time.perf_counter() - started},
            metrics=learner.metrics(learner.loss, learner.mean_value),
            lags={"policy_lag": lags},
        )
        return Reply(receipt, snapshot)

    def snapshot(self) -> Reply:
        """The current parameters, as payload."""
        return Reply(Receipt(version=self.learner.version), self.learner.snapshot())

    def restore(self, folder: str, files: list[SavedFile], *published: ParamSnapshot) -> Receipt:
        """Begin a new life at the newest snapshot; only the optimizer's moments may be older.

        Args:
            folder: the run's checkpoints folder.
            files: this role's newest checkpoint, for the moments, and for all where it is as new; may be empty.
            published: the newest snapshot; none before the first.

        Returns:
            A receipt whose "moments_age" says by how many updates the moments are behind.
        """
        learner = self.learner
        if files:
            arrays, values = read_state(Path(folder), files[0])
            learner.load_state_dict(arrays, values)
        moments_version = learner.version
        if published and published[-1].version > moments_version:
            learner.online.load(published[-1])
            learner.version = published[-1].version
        return Receipt(version=learner.version, metrics={"moments_age": float(learner.version - moments_version)})

    def save(self, folder: str, tag: str, previous: list[SavedFile]) -> Receipt:
        """Write this learner's part of the checkpoint `tag`."""
        self.learner.snapshot()  # raises where a parameter is NaN or infinite: that is no good checkpoint
        arrays, values = self.learner.state_dict()
        file = write_state(Path(folder), self.name, tag, arrays, values)
        return Receipt(version=self.learner.version, files=[file])

    def load(self, folder: str, tag: str, files: list[SavedFile]) -> Receipt:
        """Continue from the file that `save` returned.

        Raises:
            CheckpointError: it does not fit this run.
        """
        arrays, values = read_state(Path(folder), files[0])
        self.learner.load_state_dict(arrays, values)
        return Receipt(version=self.learner.version)


def join_trajectories(parts: Sequence[Trajectories]) -> Trajectories:
    """Several of one length side by side, as one of all their environments; its version is the oldest."""
    if len(parts) == 1:
        return parts[0]
    masks = [part.action_mask for part in parts if part.action_mask is not None]
    last_masks = [part.last_action_mask for part in parts if part.last_action_mask is not None]
    return Trajectories(
        obs=np.concatenate([part.obs for part in parts], axis=1),
        action=np.concatenate([part.action for part in parts], axis=1),
        reward=np.concatenate([part.reward for part in parts], axis=1),
        discount=np.concatenate([part.discount for part in parts], axis=1),
        valid=np.concatenate([part.valid for part in parts], axis=1),
        log_prob=np.concatenate([part.log_prob for part in parts], axis=1),
        value=np.concatenate([part.value for part in parts], axis=1),
        last_obs=np.concatenate([part.last_obs for part in parts]),
        action_mask=np.concatenate(masks, axis=1) if masks else None,
        last_action_mask=np.concatenate(last_masks) if last_masks else None,
        version=min(part.version for part in parts),
    )
