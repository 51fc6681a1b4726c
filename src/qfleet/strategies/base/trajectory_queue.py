"""The bounded queue between actors and a learner, which keeps the policy lag of all that is trained on within a bound.

waits for                  unblocked by
beginning a trajectory     a place in the queue; the learner's version being near enough to what it will be trained at
taking a batch             enough trajectories; those still under way that would become too old meanwhile
"""

from __future__ import annotations

from dataclasses import dataclass

from qfleet.engines.base import Future
from qfleet.ops.staleness import lag_is_bounded


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """A finished rollout: the call whose payload it is, who made it, and the version that acted."""

    future: Future
    actor: str
    version: int


class TrajectoryQueue:
    """Trajectories begun and waiting, by version. Whoever would break a bound has to wait; none is dropped for it but
    those of a batch that could not be trained on, where later batches have meanwhile made them too old.

    What holds at any time: if the learner takes the oldest first from now on, no lag exceeds the bound. Neither side
    waits for the other for ever: with nothing under way, the oldest batch may be taken, or else a trajectory by the
    newest parameters may begin.

    Args:
        size: trajectories that may wait; a place is taken when one is begun.
        batch_size: trajectories in an update; at most `size`.
        max_policy_lag: the bound, in versions.
    """

    def __init__(self, size: int, batch_size: int, max_policy_lag: int) -> None:
        self.size = size
        self.batch_size = batch_size
        self.max_policy_lag = max_policy_lag
        self._under_way: list[int] = []  # versions that act now
        self._waiting: list[Trajectory] = []

    @property
    def num_waiting(self) -> int:
        """Trajectories that the learner may take."""
        return len(self._waiting)

    @property
    def num_missing(self) -> int:
        """How many more must be begun for those begun and waiting to fill whole batches."""
        return -(len(self._under_way) + len(self._waiting)) % self.batch_size

    def may_begin(self, version: int, next_version: int) -> bool:
        """Whether a trajectory by parameters `version` may begin, with the learner's next update at `next_version`."""
        if len(self._under_way) + len(self._waiting) >= self.size:
            return False
        return self._is_bounded([*self._under_way, version], self._waiting, next_version)

    def begin(self, version: int) -> None:
        """One begins; `may_begin` comes first."""
        self._under_way.append(version)

    def abandon(self, version: int) -> None:
        """One by these parameters will not come: its actor has died, or has left."""
        self._under_way.remove(version)

    def put(self, trajectory: Trajectory) -> None:
        """One is finished."""
        self._under_way.remove(trajectory.version)
        self._waiting.append(trajectory)

    def take(self, next_version: int) -> list[Trajectory]:
        """The oldest batch, to be trained on at `next_version`; empty where it has to wait."""
        if len(self._waiting) < self.batch_size:
            return []
        oldest_first = sorted(self._waiting, key=lambda one: one.version)  # equally old: first come, first served
        batch, rest = oldest_first[: self.batch_size], oldest_first[self.batch_size :]
        if not self._is_bounded(self._under_way, rest, next_version + 1):
            return []
        self._waiting = rest
        return batch

    def give_back(self, batch: list[Trajectory], next_version: int) -> int:
        """These were taken and not trained on; how many of them are dropped, too old for an update at `next_version`.

        One too old that stayed would break the bound when taken, and nobody could begin anything before.
        """
        kept = [one for one in batch if next_version - one.version <= self.max_policy_lag]
        self._waiting = [*kept, *self._waiting]
        return len(batch) - len(kept)

    def clear(self) -> int:
        """Drop those that wait; how many."""
        num = len(self._waiting)
        self._waiting = []
        return num

    def _is_bounded(self, under_way: list[int], waiting: list[Trajectory], next_version: int) -> bool:
        versions = [*under_way, *(one.version for one in waiting)]
        return lag_is_bounded(versions, next_version, self.batch_size, self.max_policy_lag)
