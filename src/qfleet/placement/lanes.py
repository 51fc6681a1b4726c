"""Completion queues by name: what is done and was not taken yet, and how much is still under way."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from qfleet.engines.base import Future


@dataclass(slots=True)
class Lane:
    """One completion queue; `num_open` counts calls that are not completed."""

    num_open: int = 0
    done: deque[Future] = field(default_factory=deque)


class Lanes:
    """All of an engine's."""

    def __init__(self) -> None:
        self._lanes: dict[str, Lane] = {}

    def of(self, name: str) -> Lane:
        """The lane of this name, empty at first."""
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = Lane()
        return lane

    def complete(self, future: Future, error: Exception | None) -> None:
        """It has its answer, or its failure."""
        future.error = error
        lane = self.of(future.lane)
        lane.num_open -= 1
        lane.done.append(future)
