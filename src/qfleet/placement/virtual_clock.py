"""The clock of a simulated cluster: a heap of what is to happen when."""

from __future__ import annotations

import heapq
from collections.abc import Callable


class VirtualClock:
    """Events in the order of their moments; of one moment, in the order in which they were asked for.

    Attributes:
        time: virtual seconds: of the event that is happening, or of the coordinator between two waits.
    """

    def __init__(self) -> None:
        self.time = 0.0
        self._events: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._num_events = 0

    def at(self, moment: float, happen: Callable[..., None], *args: object) -> None:
        """Call happen(moment, *args) when it is time."""
        self._num_events += 1
        heapq.heappush(self._events, (moment, self._num_events, happen, args))

    def next(self) -> float:
        """When the next event is; infinity where there is none."""
        return self._events[0][0] if self._events else float("inf")

    def step(self) -> None:
        """Let the next event happen."""
        moment, _, happen, args = heapq.heappop(self._events)
        if moment > self.time:  # after a checkpoint was loaded, some moments are past
            self.time = moment
        happen(self.time, *args)
