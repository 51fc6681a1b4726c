"""Openings: workers that are wanted and not there, because the cluster has had no room for them. Beside supervisor.py.

waits for      unblocked by
an opening     room_for(a worker's placement), asked every LOOK_SECONDS of engine.now() at most
"""

from __future__ import annotations

from qfleet.engines.base import Engine, Placement

LOOK_SECONDS = 5.0


class Openings:
    """Says how many workers to hire in the middle of a run.

    Args:
        engine: knows what room there is.
        placement: a worker's.
    """

    def __init__(self, engine: Engine, placement: Placement) -> None:
        self.engine = engine
        self.placement = placement
        self._next_look = float("-inf")

    def has_room(self) -> bool:
        """Whether one more worker would find a place now."""
        return self.engine.room_for(self.placement) >= 1

    def num_to_hire(self, num_missing: int) -> int:
        """How many of those missing find a place now; 0 until it is time to look again."""
        if num_missing <= 0:
            return 0
        now = self.engine.now()
        if now < self._next_look:
            return 0
        num_hired = min(num_missing, self.engine.room_for(self.placement))
        if num_hired < num_missing:
            self._next_look = now + LOOK_SECONDS
        return num_hired

    def wait(self) -> None:
        """One was let go for want of room just now: what the cluster says that it has may still be of before."""
        self._next_look = self.engine.now() + LOOK_SECONDS
