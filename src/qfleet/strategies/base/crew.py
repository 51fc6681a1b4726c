"""What a coordinator of federated rounds knows of one client."""

from __future__ import annotations

from dataclasses import dataclass

from qfleet.engines.base import Future, RoleRef


@dataclass(slots=True, eq=False)
class Client:
    """One client, in all its lives.

    Attributes:
        ref: the role.
        num_inserted, num_samples: what it has inserted and trained on; what its pace is counted from.
        num_saved: of the transitions inserted, those before its newest checkpoint.
        future: its call under way, None while it is free.
        personal: the newest call that gave its own whole snapshot.
    """

    ref: RoleRef
    num_inserted: int = 0
    num_samples: int = 0
    num_saved: int = 0
    future: Future | None = None
    personal: Future | None = None

    def counts(self) -> dict[str, int]:
        """For a checkpoint."""
        return {"inserted": self.num_inserted, "samples": self.num_samples}
