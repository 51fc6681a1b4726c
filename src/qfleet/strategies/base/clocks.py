"""Clocks of a set of workers, with the slowest known at once: the M of stale synchronous parallel (Ho et al. 2013)."""

from __future__ import annotations


class Clocks:
    """How many steps each live worker has finished. Finding the slowest takes the same time for ten or a thousand."""

    def __init__(self) -> None:
        self.of: dict[str, int] = {}
        self.slowest = 0
        self._num_at: dict[int, int] = {}

    def join(self, name: str, clock: int | None = None) -> None:
        """A worker joins, at the slowest live clock unless told otherwise."""
        clock = self.slowest if clock is None else clock
        if not self.of or clock < self.slowest:
            self.slowest = clock
        self.of[name] = clock
        self._num_at[clock] = self._num_at.get(clock, 0) + 1

    def leave(self, name: str) -> None:
        """A worker is gone; it holds nobody up any more."""
        self._depart(self.of.pop(name))
        self._catch_up()

    def advance(self, name: str, to: int | None = None) -> bool:
        """Set one worker's clock, by one step unless told otherwise; True where the slowest clock has moved."""
        before, slowest = self.of[name], self.slowest
        after = before + 1 if to is None else to
        if after == before:
            return False
        self.of[name] = after
        self._num_at[after] = self._num_at.get(after, 0) + 1
        self._depart(before)
        self._catch_up()
        return self.slowest != slowest

    def _depart(self, clock: int) -> None:
        self._num_at[clock] -= 1
        if not self._num_at[clock]:
            del self._num_at[clock]

    def _catch_up(self) -> None:
        while self.of and self.slowest not in self._num_at:
            self.slowest += 1
