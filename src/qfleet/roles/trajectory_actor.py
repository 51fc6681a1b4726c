"""Actor of a learner that lives elsewhere: a network of its own, loaded with a snapshot before each trajectory.

snapshot -> T vector steps of all environments -> Trajectories with log-probabilities and version -> learner
(Espeholt et al. 2018).
"""

from __future__ import annotations

from pathlib import Path

from qfleet.roles.blueprint import Blueprint
from qfleet.roles.rollout_actor import RolloutActor
from qfleet.roles.state_file import read_state, write_state
from qfleet.types import ParamSnapshot, Progress, Receipt, Reply, SavedFile


class TrajectoryActor:
    """Environments and a frozen copy of the network.

    Args:
        blueprint: the run's plan.
        name: the role's name; its seeds and files are called after it.
        rank, num_actors: which of how many actors.

    Attributes:
        version: of the parameters it acts on; -1 before the first ones.
    """

    def __init__(self, blueprint: Blueprint, name: str, rank: int = 0, num_actors: int = 1) -> None:
        self.name = name
        self.network = blueprint.build_network(trainable=False)
        self.actor = RolloutActor(blueprint, name, self.network, rank, num_actors)
        self.version = -1

    def rollout(self, progress: Progress, num_vector_steps: int, newest: ParamSnapshot) -> Reply:
        """Load the newest parameters and step the environments; the payload is a Trajectories."""
        if newest.version != self.version:
            self.network.load(newest)
            self.version = newest.version
        receipt = Receipt(version=self.version)
        trajectories = self.actor.rollout(progress, num_vector_steps, self.version, receipt)
        return Reply(receipt, trajectories)

    def restore(self, incarnation: int, tag: str) -> Receipt:
        """Begin a new life with fresh episodes; `tag` names the checkpoint that it follows, "" where there is none."""
        self.actor.reseed("life", incarnation, tag)
        return Receipt(version=self.version)

    def save(self, folder: str, tag: str, previous: list[SavedFile]) -> Receipt:
        """Write this actor's part of the checkpoint `tag`; environments that cannot be saved start anew, see cut."""
        self.actor.cut(tag)
        arrays, values = self.actor.state_dict()
        return Receipt(version=self.version, files=[write_state(Path(folder), self.name, tag, arrays, values)])

    def load(self, folder: str, tag: str, files: list[SavedFile]) -> Receipt:
        """Continue from the file that `save` returned for the checkpoint `tag`.

        Raises:
            CheckpointError: it does not fit this run.
        """
        arrays, values = read_state(Path(folder), files[0])
        self.actor.load_state_dict(arrays, values, tag)
        return Receipt(version=self.version)

    def close(self) -> None:
        """Close the environments."""
        self.actor.close()
