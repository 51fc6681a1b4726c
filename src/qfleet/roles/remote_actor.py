"""Remote actor: acts for a learner that lives elsewhere; how such a role begins anew, is saved and ends."""

from __future__ import annotations

from pathlib import Path

from qfleet.roles.actor import BaseActor
from qfleet.roles.state_file import read_state, write_state
from qfleet.types import Receipt, SavedFile


class RemoteActor:
    """What actors of a replay and actors of a learner share.

    Attributes:
        name: the role's name; its files are called after it.
        actor: the environments and the behaviour policy; the only thing that is saved.
        version: of the parameters it acts on; -1 before the first ones.
    """

    name: str
    actor: BaseActor
    version: int

    def restore(self, incarnation: int, tag: str) -> Receipt:
        """Begin a new life with fresh episodes; `tag` names the checkpoint that it follows, "" where there is none."""
        self.actor.reseed("life", incarnation, tag)
        return Receipt(version=self.version)

    def save(self, folder: str, tag: str, previous: list[SavedFile]) -> Receipt:
        """Write this actor's part of the checkpoint `tag`; its environments have been cut for it."""
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
