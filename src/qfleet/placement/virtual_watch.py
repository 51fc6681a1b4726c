"""Who of a simulated cluster still answers: one that has not for `role_timeout` virtual seconds is taken for dead."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from qfleet.placement.virtual_calls import Home
from qfleet.placement.virtual_clock import VirtualClock


class Watch:
    """Looks at roles that have been called.

    Args:
        clock: the cluster's.
        homes: of the roles that are there.
        role_timeout: virtual seconds without an answer.
        die: ends a role's life: when, whose, the cause, and what to say beyond that.
    """

    def __init__(
        self,
        clock: VirtualClock,
        homes: Mapping[str, Home],
        role_timeout: float,
        die: Callable[[float, Home, str, str], None],
    ) -> None:
        self._clock = clock
        self._homes = homes
        self._role_timeout = role_timeout
        self._die = die

    def begin(self, home: Home) -> None:
        """Look when it could be late."""
        home.is_watched = True
        self._clock.at(home.clock + self._role_timeout, self._look, home)

    def _look(self, time: float, home: Home) -> None:
        """Is it late? Who waits for a place or for a group is not."""
        home.is_watched = False
        if not home.open or self._homes.get(home.name) is not home:
            return
        running = home.running
        waits = running is not None and running.group is not None and home.frozen_until <= time
        if not home.has_place or waits:
            home.clock = time
        if time >= home.clock + self._role_timeout:  # the very sum that `begin` makes
            self._die(time, home, "timeout", "")
        else:
            self.begin(home)
