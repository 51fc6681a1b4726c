"""The groups that have formed to average among themselves; they form at the first meeting and again after a break."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from qfleet.placement.collective import break_group
from qfleet.placement.ray_calls import Group, Life

MAX_GROUPS = 64
_TELL_SECONDS = 1.0
Listen = Callable[[object, Callable[..., None], object], None]


class Groups:
    """The groups that have formed, the one used last at the end.

    Args:
        listen: has what becomes of a reference of Ray's handed to a function.
    """

    def __init__(self, listen: Listen) -> None:
        self._listen = listen
        self._formed: dict[tuple[Life, ...], Group] = {}
        self._numbers = itertools.count()

    def of(self, lives: tuple[Life, ...]) -> Group:
        """The group of these lives: formed at its first meeting, and again after it broke."""
        group = self._formed.pop(lives, None)
        if group is None:
            group = Group(next(self._numbers), lives)
            if len(lives) > 1:
                group.arrivals = [life.actor.arrive.remote(group.number, life is lives[0]) for life in lives]
                for life, arrival in zip(lives, group.arrivals, strict=True):
                    self._listen(arrival, self._on_arrived, (group, life))
            else:
                group.arrived = dict.fromkeys(lives, 0.0)
            if len(self._formed) >= MAX_GROUPS:
                self.forget(next(iter(self._formed.values())))
        self._formed[lives] = group
        return group

    def forget(self, group: Group) -> None:
        """Drop it; its members hear of it with their next all_reduce."""
        if self._formed.get(group.lives) is group:
            del self._formed[group.lives]
            for life in group.lives:
                life.dropped_groups.append(group.number)

    def lose(self, life: Life) -> None:
        """Drop the groups that a dead member was in, and tell those who wait for it to come."""
        for group in [group for group in self._formed.values() if life in group.lives]:
            self.forget(group)
            group.is_lost = True
            _tell_those_who_wait(group)

    def _on_arrived(self, place: tuple[Group, Life], arrival: Any, error: BaseException | None, at: float) -> None:
        group, life = place
        if error is None:
            group.arrived[life] = at
            if life is group.lives[0]:
                group.address = arrival.store
                _tell_those_who_wait(group)


def _tell_those_who_wait(group: Group) -> None:
    """In the store, unless that is gone too; members that have met are told by their connections."""
    if group.is_lost and group.address is not None and not group.has_met and group.lives[0].cause is None:
        break_group(group.address, group.number, _TELL_SECONDS)
