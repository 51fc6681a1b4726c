"""By when each life must have answered. One entry per life, corrected when it comes up, so a call costs no entry."""

from __future__ import annotations

import heapq
import itertools

from qfleet.placement.ray_calls import Life


class Deadlines:
    """A heap of lives that something is asked of.

    Args:
        role_timeout: seconds for each call, from when it is the role's first under way.
        placement_timeout: seconds to find a place, and once more for the building.
    """

    def __init__(self, role_timeout: float, placement_timeout: float) -> None:
        self._role_timeout, self._placement_timeout = role_timeout, placement_timeout
        self._entries: list[tuple[float, int, Life]] = []
        self._numbers = itertools.count()

    def watch(self, life: Life) -> None:
        """Something new is asked of it, or it has come a step further. Costs nothing where it has an earlier entry."""
        deadline = self._deadline(life, life.clock)
        if deadline is not None and (life.entry is None or deadline < life.entry):
            self._push(deadline, life)

    def next(self) -> float:
        """When to look again, infinity if there is nothing to look for."""
        return self._entries[0][0] if self._entries else float("inf")

    def missed(self, now: float) -> list[Life]:
        """Those whose time is up; they are watched no more."""
        late = []
        while self._entries and self._entries[0][0] <= now:
            entry, _, life = heapq.heappop(self._entries)
            if entry != life.entry:
                continue  # an earlier one has taken its place
            life.entry = None
            deadline = self._deadline(life, now)
            if deadline is not None and deadline > now:
                self._push(deadline, life)
            elif deadline is not None:
                late.append(life)
        return late

    def _push(self, deadline: float, life: Life) -> None:
        life.entry = deadline
        heapq.heappush(self._entries, (deadline, next(self._numbers), life))

    def _deadline(self, life: Life, now: float) -> float | None:
        """None if nothing is asked of it."""
        if life.cause is not None or (life.is_built and not life.calls):
            return None
        if life.home is None:
            return life.clock + self._placement_timeout
        if not life.is_built:
            return life.clock + self._placement_timeout + self._role_timeout
        meeting = next(iter(life.calls.values())).meeting
        start = life.clock
        if meeting is not None:
            group = meeting.group
            if not all(member.is_built for member in group.lives):
                return now + self._role_timeout  # the one that is still being built is watched itself
            # Nobody's call begins before all have arrived; whoever has not is waited for, and watched, itself.
            if len(group.arrived) == len(group.lives):
                start = max(start, *group.arrived.values())
            elif life in group.arrived:
                return now + self._role_timeout
        return start + self._role_timeout
