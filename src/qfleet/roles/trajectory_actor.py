"""Actor of a learner that lives elsewhere: a network of its own, loaded with a snapshot before each trajectory.

snapshot -> T vector steps of all environments -> Trajectories with log-probabilities and version -> learner
(Espeholt et al. 2018).
"""

from __future__ import annotations

from qfleet.roles.blueprint import Blueprint
from qfleet.roles.remote_actor import RemoteActor
from qfleet.roles.rollout_actor import RolloutActor
from qfleet.types import ParamSnapshot, Progress, Receipt, Reply, SavedFile


class TrajectoryActor(RemoteActor):
    """Environments and a frozen copy of the network.

    Args:
        blueprint: the run's plan.
        name: the role's name; its seeds and files are called after it.
        rank, num_actors: which of how many actors.

    Attributes:
        version: of the parameters it acts on; -1 before the first ones.
    """

    timing_twin = "qfleet.roles.timed_trajectories:TimedTrajectoryActor"

    def __init__(self, blueprint: Blueprint, name: str, rank: int = 0, num_actors: int = 1) -> None:
        self.name = name
        self.network = blueprint.build_network(trainable=False)
        self.actor: RolloutActor = RolloutActor(blueprint, name, self.network, rank, num_actors)
        self.version = -1

    def rollout(self, progress: Progress, num_vector_steps: int, newest: ParamSnapshot) -> Reply:
        """Load the newest parameters and step the environments; the payload is a Trajectories."""
        if newest.version != self.version:
            self.network.load(newest)
            self.version = newest.version
        receipt = Receipt(version=self.version)
        trajectories = self.actor.rollout(progress, num_vector_steps, self.version, receipt)
        return Reply(receipt, trajectories)

    def save(self, folder: str, tag: str, previous: list[SavedFile]) -> Receipt:
        """Write this actor's part of the checkpoint `tag`; environments that cannot be saved start anew, see cut."""
        self.actor.cut(tag)
        return super().save(folder, tag, previous)
