"""The clock of a simulated cluster: a heap of what is to happen when."""

from __future__ import annotations

from collections.abc import Callable, Sized
from heapq import heappop, heappush


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
        heappush(self._events, (moment, self._num_events, happen, args))

    def run(self, last: float, awaited: Sized = ()) -> bool:
        """Let events happen up to the moment `last`, or until something is in `awaited`; whether something is."""
        events = self._events
        while not awaited:
            if not events or events[0][0] > last:
                return False
            moment, _, happen, args = heappop(events)
            if moment > self.time:  # after a checkpoint was loaded, some moments are past
                self.time = moment
            happen(self.time, *args)
        return True
