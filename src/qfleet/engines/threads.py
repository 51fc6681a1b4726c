"""Threads: a thread per role in this process. They share memory: a payload is the very object, nothing is copied.

    waits for                   unblocked by
    wait()                      a call of its lane that ends or dies; its timeout; a call that exceeds role_timeout
    a role's thread             its next call, or None, which ends it
    a role to be built          the end of the build under way: one at a time, torch's initialisers share one generator
    a generator's yield         the last member of its group to yield; the first one to fail, be killed or be stopped
    stop(), close()             the end of the calls that are running; at most GRACE_SECONDS

One lock guards the books; no role's code runs while it is held. One thread, the coordinator, calls the engine.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Sequence
from queue import Empty

import torch

from qfleet.config import PositiveFloat
from qfleet.engines.base import (
    EngineConfig,
    Future,
    InProcess,
    Placement,
    RoleRef,
    average,
    call_failed,
    check_arguments,
    check_group,
    local_values,
    split_answer,
)
from qfleet.errors import QfleetError, RoleDied, ValueLost
from qfleet.placement.thread_calls import Call, Group, Lane, Life, Lost
from qfleet.placement.traffic import Traffic
from qfleet.types import Receipt

ANYWHERE = Placement()
GRACE_SECONDS = 5.0
Steps = Generator[torch.Tensor, None, object]

# Of the process, as torch's global generator is: roles draw their first weights from it, seeded, and give it back.
_BUILDING = threading.Lock()


class Config(EngineConfig):
    """The [engine] section of the threads engine."""

    name: str = "threads"
    role_timeout: PositiveFloat = 300.0


class Engine(InProcess):
    """Runs each role in a thread of its own; its calls run in the order in which they were submitted.

    Args:
        config: the [engine] section.
        seed: not needed: the order of things is the operating system's.
    """

    is_concurrent = True

    def __init__(self, config: Config, seed: int) -> None:
        self.config = config
        self._start = time.monotonic()
        self._lock = threading.Lock()
        self._lives: dict[str, Life] = {}
        self._former: list[Life] = []  # killed; their threads end when the call that they are in returns
        self._lanes: dict[str, Lane] = {}
        # What runs now, the oldest first: (its start, role, method) by life; the build under way by "build".
        self._running: OrderedDict[object, tuple[float, str, str]] = OrderedDict()
        self._stuck: set[str] = set()  # roles that `wait` has given up on
        self.traffic = Traffic()

    def spawn(self, name: str, build: Callable[..., object], *args: object, placement: Placement = ANYWHERE) -> RoleRef:
        """Start the role's thread, which builds it."""
        if name in self._lives:
            raise ValueError(f"role {name} exists already")
        self._begin(Life(name, build, args))
        return RoleRef(name)

    def submit(self, role: RoleRef, method: str, *args: object, lane: str = "training", num_parts: int = 1) -> Future:
        """Put the call into the role's inbox."""
        check_arguments(role, method, args)
        return self._queue(role, method, args, lane, num_parts)

    def all_reduce(
        self, group: Sequence[RoleRef], method: str, args: Sequence[tuple[object, ...]], lane: str = "training"
    ) -> list[Future]:
        """Put a call into each member's inbox; the last member to yield takes the mean, in the group's order."""
        check_group(group, method, args)
        shared = Group([role.name for role in group], threading.Condition(self._lock))
        return [self._queue(role, method, own, lane, 1, shared) for role, own in zip(group, args, strict=True)]

    def wait(self, timeout: float | None = None, lane: str = "training") -> Future | None:
        """The next call of this lane to end.

        Raises:
            QfleetError: a call runs for longer than `role_timeout`. A thread cannot be killed: the run must end.
        """
        known = self._lanes.get(lane)
        deadline = None if timeout is None else time.monotonic() + timeout
        while known is not None and known.num_open:
            try:
                call = known.done.get(timeout=0.0)
            except Empty:
                now = time.monotonic()
                until = self._next_overdue(now)
                if deadline is not None:
                    until = min(until, deadline)
                if until <= now:
                    return None
                try:
                    call = known.done.get(timeout=min(until - now, threading.TIMEOUT_MAX))
                except Empty:
                    continue
            if self._hand_out(call):
                return call.future
        return None

    def stop(self, role: RoleRef) -> None:
        """Drop the role's calls and end its thread; the call that is running is given a moment to return."""
        life = self._lives.get(role.name)
        if life is not None:
            self._drop(life)
            self._join([life])

    def kill(self, role: RoleRef) -> None:
        """All its calls that were not handed out come back as RoleDied; the one that is running is abandoned."""
        life = self._lives.get(role.name)
        if life is None or life.is_dead:
            return
        with self._lock:
            self._end(life)
            for call in life.open:
                call.receipt, call.payload = None, None
                call.error = RoleDied(life.name, life.incarnation, "killed")
                if not call.is_over:
                    call.is_over = True
                    call.lane.done.put(call)
                    if call.group is not None:
                        call.group.break_by(life.name)

    def respawn(self, role: RoleRef) -> None:
        """A new thread builds the role anew; the former one ends by itself."""
        life = self._lives.get(role.name)
        if life is None:
            raise ValueError(f"role {role.name} was never spawned, or was stopped")
        self.kill(role)
        self._former = [former for former in self._former if former.thread is not None and former.thread.is_alive()]
        self._former.append(life)
        self._begin(Life(life.name, life.build, life.args, life.incarnation + 1))

    def incarnation(self, role: RoleRef) -> int:
        """How often the role was respawned."""
        life = self._lives.get(role.name)
        return life.incarnation if life is not None else 0

    def now(self) -> float:
        """Seconds since the engine was made."""
        return time.monotonic() - self._start

    def state_dict(self) -> dict[str, object]:
        """Nothing: there is no order of its own to continue."""
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Any engine's checkpoint will do."""

    def close(self) -> None:
        """End all threads; one that does not end in time dies with the process."""
        lives = list(self._lives.values())
        for life in lives:
            self._drop(life)
        self._join([*self._former, *lives])
        self._former = []

    # The coordinator's side.

    def _begin(self, life: Life) -> None:
        self._lives[life.name] = life
        thread_name = f"{life.name}.{life.incarnation}"
        life.thread = threading.Thread(target=self._live, args=(life,), name=thread_name, daemon=True)
        life.thread.start()

    def _queue(
        self,
        role: RoleRef,
        method: str,
        args: tuple[object, ...],
        name: str,
        num_parts: int,
        group: Group | None = None,
    ) -> Future:
        lane = self._lanes.setdefault(name, Lane())
        life = self._lives.get(role.name) or Life(role.name, RoleRef, (), is_dead=True)
        future = Future(role, method, name, life.incarnation, num_parts)
        call = Call(future, args, life, lane, group)
        with self._lock:
            self.traffic.pass_on(role.name, args, name)
            lane.num_open += 1
            life.open[call] = None
            if life.is_dead:
                self._finish(call, None, None, RoleDied(life.name, life.incarnation, "killed"))
            else:
                life.inbox.put(call)
        return future

    def _hand_out(self, call: Call) -> bool:
        """Complete its future, unless it was dropped meanwhile."""
        with self._lock:
            if call not in call.life.open:
                return False
            del call.life.open[call]
            call.lane.num_open -= 1
            future = call.future
            future.receipt, future.payload, future.error = call.receipt, call.payload, call.error
        return True

    def _next_overdue(self, now: float) -> float:
        """The moment at which a call may have run for too long, if none ends before."""
        with self._lock:
            oldest = next(iter(self._running.values()), None)
        if oldest is None:
            return now + self.config.role_timeout
        started, name, method = oldest
        if now - started >= self.config.role_timeout:
            self._stuck.add(name)
            raise QfleetError(
                f"role {name}: {method} has not returned for {self.config.role_timeout:g} s and a thread cannot be "
                "killed; if that is no fault, raise engine.role_timeout"
            )
        return started + self.config.role_timeout

    def _end(self, life: Life) -> None:
        """No further call of this life runs, and the one that does is off the clock; the lock is held."""
        life.is_dead = True
        self._running.pop(life, None)
        life.inbox.put(None)

    def _drop(self, life: Life) -> None:
        del self._lives[life.name]
        with self._lock:
            self._end(life)
            for call in life.open:
                call.is_over = True
                call.lane.num_open -= 1
                if call.group is not None:
                    call.group.break_by(life.name)
            life.open.clear()

    def _join(self, lives: Iterable[Life]) -> None:
        deadline = time.monotonic() + GRACE_SECONDS
        for life in lives:
            if life.thread is not None and life.name not in self._stuck:
                life.thread.join(max(0.0, deadline - time.monotonic()))

    # The roles' side.

    def _live(self, life: Life) -> None:
        """A role's thread, from its building to its close."""
        with _BUILDING:
            with self._lock:
                self._running["build"] = (time.monotonic(), life.name, "building it")
            try:
                if not life.is_dead:
                    life.built = life.build(*life.args)
            except BaseException as error:
                life.failure = error
            with self._lock:
                del self._running["build"]
        while (call := life.inbox.get()) is not None:
            self._run(call)
        close = getattr(life.built, "close", None)
        if close is not None:
            close()

    def _run(self, call: Call) -> None:
        life, future = call.life, call.future
        with self._lock:
            if call.is_over:
                return
            self._start_clock(call)
        receipt: Receipt | None = None
        payload: object = None
        error: QfleetError | None = None
        try:
            if life.failure is not None:
                raise life.failure
            try:
                values = local_values(call.args)
            except ValueLost as lost:
                raise Lost(lost.producer) from None
            answer = getattr(life.built, future.method)(*values)
            if call.group is not None:
                answer = self._meet(call, call.group, answer)
            receipt, payload = split_answer(answer, future.num_parts)
        except Lost as lost:
            error = ValueLost(lost.producer)
        except BaseException as raised:  # SystemExit too: it is the role's failure, not the run's end
            error = call_failed(future, raised)
        with self._lock:
            self._running.pop(life, None)
            if not call.is_over:
                self._finish(call, receipt, payload, error)

    def _start_clock(self, call: Call) -> None:
        self._running[call.life] = (time.monotonic(), call.life.name, call.future.method)

    def _finish(self, call: Call, receipt: Receipt | None, payload: object, error: BaseException | None) -> None:
        """Give the call its outcome; the lock is held."""
        call.receipt, call.payload, call.error = receipt, payload, error
        call.is_over = True
        call.lane.done.put(call)
        if call.group is not None and error is not None:
            call.group.break_by(call.life.name)

    def _meet(self, call: Call, group: Group, steps: object) -> object:
        """A member's side of an all-reduce; its answer."""
        assert isinstance(steps, Generator), f"{call.life.name}.{call.future.method} is no generator"
        try:
            while True:
                try:
                    tensor = next(steps)
                except StopIteration as end:
                    self._arrive(call, group, None)
                    return end.value
                self._arrive(call, group, tensor)
        finally:
            steps.close()

    def _arrive(self, call: Call, group: Group, tensor: torch.Tensor | None) -> None:
        """Return once all members have yielded and the mean is in their tensors, or once all have ended."""
        with group.condition:
            group.check()
            group.standing[call.life.name] = tensor
            if len(group.standing) < len(group.names):
                turn = group.turn
                self._running.pop(call.life, None)  # whoever is waited for is on the clock, not who waits
                # Also of a broken group nobody goes on while the mean is being written into its tensor.
                while (group.turn == turn and group.broken_by is None) or group.is_averaging:
                    group.condition.wait()
                group.check()
                self._start_clock(call)
                return
            group.is_averaging = True
        is_written = False
        try:
            tensors = [one for name in group.names if (one := group.standing[name]) is not None]
            if tensors:
                average(tensors, len(group.names))
            is_written = True
        finally:
            with group.condition:
                group.is_averaging = False
                group.standing.clear()
                group.turn += 1
                if not is_written:
                    group.break_by(call.life.name)
                elif tensors:
                    self.traffic.ring(tensors[0].nbytes, len(tensors), len(tensors))
                group.condition.notify_all()
