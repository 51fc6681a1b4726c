"""The machines of a simulated cluster: who has a place, and what faults do to those who live there.

A place holds one role. A role whose machine is lost takes another free place when it is respawned; without one its
calls fail after `placement_timeout`.
"""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase

from qfleet.placement.cluster_file import ClusterFile
from qfleet.placement.event_log import EventLog
from qfleet.placement.virtual_calls import Home
from qfleet.placement.virtual_clock import VirtualClock
from qfleet.placement.virtual_network import Partition, VirtualNetwork

FOREVER = float("inf")
End = Callable[[float, Home, str, str], None]


class VirtualMachines:
    """Homes by role; what a fault needs of the cluster.

    Args:
        file: the cluster's.
        clock, network, log: the engine's.
        placement_timeout: virtual seconds that a role waits for a place.
        die: ends a role's life: when, whose, the cause, and what to say beyond that.
        start: called when a role may begin its next call.

    Attributes:
        homes: those of all roles that were spawned and not stopped.
        places: how many roles find room in all; None for any number.
        leaving: roles on machines that are about to be preempted, and when these will be gone.
    """

    def __init__(
        self,
        file: ClusterFile,
        clock: VirtualClock,
        network: VirtualNetwork,
        log: EventLog,
        placement_timeout: float,
        die: End,
        start: Callable[[float, Home], None],
    ) -> None:
        self.startup_seconds = file.cluster.startup_seconds
        self.places = file.cluster.places
        self.homes: dict[str, Home] = {}
        self.leaving: dict[str, float] = {}
        self._clock = clock
        self._network = network
        self._log = log
        self._placement_timeout = placement_timeout
        self._die = die
        self._start = start
        self._num_placed = 0

    @property
    def num_free(self) -> int | None:
        """Places that nobody has taken; None where there is no limit."""
        return None if self.places is None else max(0, self.places - self._num_placed)

    def settle(self, home: Home) -> None:
        """A life begins: on the machine where the role has been, or on one that has room, if that is about to go."""
        if home.has_place and home.name in self.leaving and self.num_free != 0:
            del self.leaving[home.name]
            home.left.add(home.epoch)  # nobody else takes its place there
            home.epoch += 1
            home.has_place = False
        if not home.has_place:
            self._place(home)
        if home.has_place:
            home.free_at = self._clock.time + self.startup_seconds
        else:
            home.free_at = FOREVER
            self._clock.at(self._clock.time + self._placement_timeout, self._give_up, home, home.epoch)

    def leave(self, name: str) -> None:
        """A role is stopped."""
        home = self.homes.pop(name, None)
        if home is not None:
            self._num_placed -= home.has_place
            home.has_place = False
            self.leaving.pop(name, None)
            self._network.drop(name)

    # faults

    def living(self, pattern: str) -> list[str]:
        """Names of the living roles that match, in the order of their spawning."""
        return [name for name, home in self.homes.items() if fnmatchcase(name, pattern) and home.role.is_alive]

    def crash(self, name: str) -> None:
        """Its process dies; its machine, and the payloads there, remain."""
        self._die(self._clock.time, self.homes[name], "process died", "")

    def lose(self, name: str) -> None:
        """Its machine is gone for good, with the payloads that lay there and nowhere else."""
        home = self.homes[name]
        if not home.has_place:
            return
        home.has_place = False
        self.leaving.pop(name, None)
        self._lose_machine(home, home.epoch)
        home.epoch += 1
        self._die(self._clock.time, home, "node lost", "")

    def give_notice(self, name: str, seconds: float) -> None:
        """Its machine will be lost; what is over by then is not."""
        home, moment = self.homes[name], self._clock.time + seconds
        if home.has_place:
            self.leaving[name] = min(moment, self.leaving.get(name, moment))
            self._clock.at(moment, self._preempt, home, home.epoch)

    def freeze(self, name: str, seconds: float) -> None:
        """Nothing goes on there for a time; the call that is running ends so much later."""
        home, time = self.homes[name], self._clock.time
        before = max(home.frozen_until, time)
        home.frozen_until = max(before, time + seconds)
        if home.running is not None and home.running.group is None and not home.running.is_replied:
            home.running.ends += home.frozen_until - before

    def slow_down(self, name: str, seconds: float, factor: float) -> None:
        """Calls that begin within a time take longer."""
        self.homes[name].slowed.append((self._clock.time + seconds, factor))

    def part(self, one: str, other: str, seconds: float) -> None:
        """Nothing passes between two groups for a time."""
        self._network.partitions.append(Partition(self._clock.time + seconds, one, other))

    def add_places(self, number: int) -> None:
        """Machines arrive: those who wait for a place come first."""
        if self.places is None:
            return
        self.places += number
        for home in self.homes.values():
            if not home.has_place and home.role.is_alive and self._place(home):
                home.free_at = self._clock.time + self.startup_seconds
                self._start(self._clock.time, home)

    def note(self, event: str, role: str, facts: dict[str, object]) -> None:
        """For the log."""
        self._log.write(self._clock.time, event, role, facts)

    def _place(self, home: Home) -> bool:
        home.has_place = self.places is None or self._num_placed < self.places
        self._num_placed += home.has_place
        return home.has_place

    def _preempt(self, time: float, home: Home, epoch: int) -> None:
        if epoch in home.left:
            home.left.discard(epoch)
            self._lose_machine(home, epoch)
        elif home.epoch == epoch and self.homes.get(home.name) is home:
            self.lose(home.name)

    def _lose_machine(self, home: Home, epoch: int) -> None:
        home.gone.add(epoch)
        self._num_placed -= 1
        if self.places is not None:
            self.places -= 1

    def _give_up(self, time: float, home: Home, epoch: int) -> None:
        is_waiting = not home.has_place and home.epoch == epoch and self.homes.get(home.name) is home
        if is_waiting and home.role.is_alive:
            message = (
                f"role {home.name} found no place in {self._placement_timeout:g} virtual seconds: all {self.places} "
                "are taken; ask for fewer roles, or raise places in the cluster's file"
            )
            self._die(time, home, "no room", message)
