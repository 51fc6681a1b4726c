"""Cores that roles of a simulated machine share: each busy one gets an equal part of them, and one core at most.

    rate of each of n busy roles on c cores = min(1, c / n) / (1 + (crowding - 1) (min(n, c) - 1) / (c - 1))

Processor sharing (Kleinrock 1967); crowding is what busy cores take from each other, 1 where that is nothing.

All on a machine go at one rate, so each machine keeps one count of work that its busy roles have each done: a call that
takes w seconds of a core ends when that count has grown by w, and only the next end of a machine is on the clock.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from qfleet.placement.cluster_file import Machine
from qfleet.placement.virtual_clock import VirtualClock

End = Callable[..., None]  # end(time, *args)


@dataclass(slots=True, eq=False)
class _Task:
    """Work of one role; `is_over` where it has been done, or its role is gone."""

    name: str
    end: End
    args: tuple[object, ...]
    is_over: bool = False


@dataclass(slots=True, eq=False)
class _Cores:
    """One machine.

    Attributes:
        number: its cores.
        crowding: see Machine.
        done: seconds of a core that a role would have had by `time`, had it been busy from the beginning.
        tasks: (done at which it ends, order, task).
        num_busy: of the tasks those that are not over.
        edition: of what is on the clock; older ones are void.
    """

    number: float
    crowding: float
    time: float = 0.0
    done: float = 0.0
    tasks: list[tuple[float, int, _Task]] = field(default_factory=list)
    num_busy: int = 0
    edition: int = 0

    def advance(self, time: float) -> None:
        """Everybody's work up to now."""
        if time > self.time:
            if self.num_busy:
                self.done += (time - self.time) * self.rate()
            self.time = time

    def rate(self) -> float:
        """Of each busy role; at least one is."""
        busy = min(float(self.num_busy), self.number)
        crowd = (busy - 1.0) / (self.number - 1.0) if self.number > 1.0 else 0.0
        return min(1.0, self.number / self.num_busy) / (1.0 + (self.crowding - 1.0) * max(0.0, crowd))


class VirtualCores:
    """The machines of a cluster's file.

    Args:
        machines: their tables; the first one that matches a role is the role's.
        clock: the engine's.
    """

    def __init__(self, machines: tuple[Machine, ...], clock: VirtualClock) -> None:
        self._tables = machines
        self._clock = clock
        self._machines = [_Cores(table.cores, table.crowding) for table in machines]
        self._of: dict[str, _Cores | None] = {}
        self._tasks: dict[str, _Task] = {}
        self._num_tasks = 0

    def work(self, time: float, name: str, seconds: float, end: End, *args: object) -> None:
        """Have `end(moment, *args)` called once the role has worked for `seconds` of a core, from `time` on.

        A role that shares its cores has one piece of work at a time, which begins now.
        """
        cores = self._find(name)
        if cores is None:
            self._clock.at(time + seconds, end, *args)
            return
        now = max(time, self._clock.time)
        cores.advance(now)
        task = self._tasks[name] = _Task(name, end, args)
        self._num_tasks += 1
        heapq.heappush(cores.tasks, (cores.done + seconds, self._num_tasks, task))
        cores.num_busy += 1
        self._plan(now, cores)

    def spend(self, time: float, name: str, seconds: float) -> None:
        """Let time pass until the role has worked for `seconds` from `time` on; what happens meanwhile happens."""
        clock = self._clock
        if seconds and self._find(name) is not None:
            clock.time = max(clock.time, time)
            ends: list[float] = []
            self.work(clock.time, name, seconds, ends.append)
            clock.run(float("inf"), ends)
            return
        time += seconds
        clock.run(time)
        clock.time = time

    def drop(self, time: float, name: str) -> None:
        """The role is dead: the others get what it had."""
        task, cores = self._tasks.pop(name, None), self._of.get(name)
        if task is not None and cores is not None and not task.is_over:
            cores.advance(time)
            task.is_over = True
            cores.num_busy -= 1
            self._plan(time, cores)

    def _find(self, name: str) -> _Cores | None:
        if not self._tables:
            return None
        if name not in self._of:
            pairs = zip(self._tables, self._machines, strict=True)
            self._of[name] = next((cores for table, cores in pairs if fnmatchcase(name, table.roles)), None)
        return self._of[name]

    def _plan(self, time: float, cores: _Cores) -> None:
        """Put the machine's next end on the clock, in place of the one that is there."""
        cores.edition += 1
        while cores.tasks and cores.tasks[0][2].is_over:
            heapq.heappop(cores.tasks)
        if cores.tasks:
            left = max(0.0, cores.tasks[0][0] - cores.done)
            self._clock.at(time + left / cores.rate(), self._finish, cores, cores.edition)
        else:
            cores.done = 0.0  # so that a resumed run, which begins at rest, rounds as this one does

    def _finish(self, time: float, cores: _Cores, edition: int) -> None:
        if edition != cores.edition:
            return
        done, _, task = heapq.heappop(cores.tasks)
        cores.time, cores.done = max(time, cores.time), max(done, cores.done)  # to the bit: what it was put there for
        cores.num_busy -= 1
        task.is_over = True
        self._tasks.pop(task.name, None)
        self._plan(time, cores)
        task.end(time, *task.args)
