"""Which faults strike a simulated cluster, when and whom: fixed moments, and intervals drawn from the seed.

A fault with `every` has a generator of its own, so that one more fault shifts no other one. Faults of messages are
armed first, and hit the next call that matches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Protocol

from qfleet.placement.cluster_file import Fault
from qfleet.placement.virtual_network import At
from qfleet.seeding import derive_generator, generator_state, set_generator_state

MESSAGE_FAULTS = ("lost_reply", "delay", "duplicate")


class Struck(Protocol):
    """What faults need of the cluster; roles by name."""

    def living(self, pattern: str) -> list[str]:
        """Names of the living roles that match, in a fixed order."""

    def crash(self, name: str) -> None:
        """Its process dies."""

    def lose(self, name: str) -> None:
        """Its machine is gone, with all that it held."""

    def give_notice(self, name: str, seconds: float) -> None:
        """Its machine will be gone after so many seconds."""

    def freeze(self, name: str, seconds: float) -> None:
        """It does nothing for so many seconds."""

    def slow_down(self, name: str, seconds: float, factor: float) -> None:
        """Calls that it begins within so many seconds take `factor` times as long."""

    def part(self, one: str, other: str, seconds: float) -> None:
        """Nothing passes between roles of the two patterns."""

    def add_places(self, number: int) -> None:
        """Machines with room for so many roles arrive."""

    def note(self, event: str, role: str, facts: dict[str, object]) -> None:
        """For the log."""


class ArmedFaults:
    """Faults of messages that wait for one, oldest first.

    Args:
        note: writes into the log: an event, a role, further facts.
    """

    def __init__(self, note: Callable[[str, str, dict[str, object]], None]) -> None:
        self.faults: list[Fault] = []
        self._note = note

    def take(self, kind: str, role: str, method: str) -> Fault | None:
        """The oldest one of this kind that a call of `role.method` sets off, if there is one; used up by it."""
        for place, fault in enumerate(self.faults):
            if fault.kind == kind and fnmatchcase(role, fault.role) and fnmatchcase(method, fault.method):
                del self.faults[place]
                self._note("fault", role, {"kind": kind, "method": method})
                return fault
        return None


class FaultSchedule:
    """Strikes.

    Args:
        faults: the cluster file's.
        seed: of the random ones.
        cluster: whom they strike.
        armed: takes those that strike messages.
        at: schedules a function for a moment.
    """

    def __init__(self, faults: Sequence[Fault], seed: int, cluster: Struck, armed: ArmedFaults, at: At) -> None:
        self.faults = faults
        self.cluster = cluster
        self._at = at
        self._generators = [derive_generator(seed, "sim", "fault", index) for index in range(len(faults))]
        self._next: list[float | None] = [
            fault.at if fault.at is not None else self._after(index, 0.0) for index, fault in enumerate(faults)
        ]
        self._armed = armed
        self._epoch = 0
        self._schedule()

    def state_dict(self) -> dict[str, object]:
        """JSON values for a checkpoint."""
        return {
            "generators": [generator_state(generator) for generator in self._generators],
            "next": self._next,
            "armed": [self.faults.index(fault) for fault in self._armed.faults],
        }

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Continue from `state_dict` of the same faults; of others, begin with these."""
        generators, moments, armed = state["generators"], state["next"], state["armed"]
        assert isinstance(generators, list)
        assert isinstance(moments, list)
        assert isinstance(armed, list)
        if len(moments) != len(self.faults):
            return
        for generator, its_state in zip(self._generators, generators, strict=True):
            set_generator_state(generator, its_state)
        self._next, self._armed.faults = list(moments), [self.faults[index] for index in armed]
        self._epoch += 1
        self._schedule()

    def _schedule(self) -> None:
        for index, moment in enumerate(self._next):
            if moment is not None:
                self._at(moment, self._strike, index, self._epoch)

    def _after(self, index: int, time: float) -> float | None:
        fault = self.faults[index]
        if fault.every is None:
            return None
        moment = time + fault.every * float(self._generators[index].standard_exponential())
        return moment if fault.until is None or moment <= fault.until else None

    def _strike(self, time: float, index: int, epoch: int) -> None:
        if epoch != self._epoch:
            return  # of before the checkpoint was loaded
        fault, cluster = self.faults[index], self.cluster
        moment = self._next[index] = self._after(index, time)
        if moment is not None:
            self._at(moment, self._strike, index, epoch)
        if fault.kind in MESSAGE_FAULTS:
            self._armed.faults.append(fault)
        elif fault.kind == "partition":
            assert fault.seconds is not None
            assert fault.others is not None
            cluster.note("fault", fault.role, {"kind": fault.kind, "others": fault.others, "seconds": fault.seconds})
            cluster.part(fault.role, fault.others, fault.seconds)
        elif fault.kind == "arrival":
            assert fault.places is not None
            cluster.note("fault", "", {"kind": fault.kind, "places": fault.places})
            cluster.add_places(fault.places)
        else:
            names = cluster.living(fault.role)
            if names and fault.every is not None:
                names = [names[int(self._generators[index].integers(len(names)))]]
            for name in names:
                cluster.note("fault", name, {"kind": fault.kind})
                self._hit(fault, name)

    def _hit(self, fault: Fault, name: str) -> None:
        cluster = self.cluster
        if fault.kind == "crash":
            cluster.crash(name)
        elif fault.kind == "loss":
            cluster.lose(name)
        elif fault.kind == "preemption":
            assert fault.notice is not None
            cluster.give_notice(name, fault.notice)
        else:
            assert fault.seconds is not None
            if fault.kind == "freeze":
                cluster.freeze(name, fault.seconds)
            else:
                assert fault.factor is not None
                cluster.slow_down(name, fault.seconds, fault.factor)
