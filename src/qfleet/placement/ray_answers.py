"""What Ray answers, on its way to the coordinator: from Ray's threads into one queue, from there into the lanes."""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Callable, Iterable
from typing import Any

import ray

from qfleet.placement.lanes import Lanes
from qfleet.placement.ray_calls import (
    DEATHS,
    Call,
    Life,
    Meeting,
    Outcome,
    Settled,
    call_failed,
    cause_of_death,
    death,
    failure_of_task,
)
from qfleet.placement.ray_deadlines import Deadlines
from qfleet.placement.ray_groups import Groups
from qfleet.placement.ray_host import Answer
from qfleet.placement.traffic import Traffic

Handle = Callable[[Any, Any, BaseException | None, float], None]
_Arrival = tuple[Handle, object, object, BaseException | None, float]


class Arrivals:
    """What became of the references that somebody listens to, as Ray's threads bring it."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[_Arrival] = queue.SimpleQueue()

    def listen(self, ref: Any, handle: Handle, subject: object) -> None:
        """Have what becomes of a reference handed to `handle` in a later `take`, with when it came."""
        arrivals = self._queue

        def arrive(done: Any) -> None:  # in one of Ray's threads
            error = done.exception()
            arrivals.put((handle, subject, None if error is not None else done.result(), error, time.monotonic()))

        ref.future().add_done_callback(arrive)

    def take(self, seconds: float | None = 0.0) -> None:
        """All that is there; where there is nothing, wait for the first one."""
        with contextlib.suppress(queue.Empty):
            while True:
                handle, subject, value, error, at = self._queue.get(timeout=seconds)
                handle(subject, value, error, at)
                seconds = 0.0


class Answers:
    """The calls under way, each completed once: a life's in the order in which they were made.

    Ray runs an actor's calls in that order, but its threads may bring two answers the wrong way round; the later one
    is held back.

    Args:
        arrivals: that answers come through.
        lanes: that they are completed in.
        deadlines: by when.
        traffic: that counts what members of a group send each other.
    """

    def __init__(self, arrivals: Arrivals, lanes: Lanes, deadlines: Deadlines, traffic: Traffic) -> None:
        self._arrivals, self._lanes, self._deadlines, self._traffic = arrivals, lanes, deadlines, traffic
        self.groups = Groups(arrivals.listen)

    def watch(self, call: Call) -> None:
        """A call has been sent."""
        life = call.life
        if not life.calls and life.is_built:
            life.clock = time.monotonic()
        life.calls[call.number] = call
        self._deadlines.watch(life)
        self._arrivals.listen(call.refs[-1], self.on_answer, call)

    def lose(self, life: Life, cause: str) -> None:
        """It is dead from now on, and so is its process; its calls come back as RoleDied."""
        if life.cause is not None:
            return
        life.end(cause)
        self.groups.lose(life)
        calls, life.calls = list(life.calls.values()), {}
        for call in calls:
            self._settle(call, death(life, cause))

    def drop(self, lives: Iterable[Life]) -> None:
        """Forget their calls, which nobody will ask about."""
        for call in [call for life in lives for call in life.calls.values()]:
            self._lanes.of(call.future.lane).num_open -= 1
            if call.meeting is not None:
                self._hand_out(call.meeting, call.meeting.blame(call.life.name))
            call.life.calls = {}

    def on_answer(self, call: Call, answer: object, error: BaseException | None, at: float) -> None:
        """Ray has answered a call; it is completed once those before it are."""
        life = call.life
        if call.number not in life.calls:
            return  # of a dead role, or dropped
        if error is not None and not isinstance(error, ray.exceptions.RayTaskError) and isinstance(error, DEATHS):
            self.lose(life, cause_of_death(error))
            return
        call.outcome = Outcome(answer, error)
        life.clock = max(life.clock, at)
        while life.calls and (first := next(iter(life.calls.values()))).outcome is not None:
            del life.calls[first.number]
            self._complete(first, first.outcome)

    def _complete(self, call: Call, outcome: Outcome) -> None:
        future, answer = call.future, outcome.answer
        if not isinstance(answer, Answer):
            self._settle(call, failure_of_task(call, outcome.error))
            return
        if answer.receipt is not None:
            future.receipt, future.payload, future.sizes = answer.receipt, list(call.refs[:-1]), answer.sizes
        if call.meeting is not None:
            self._traffic.ring(answer.num_averaged, len(call.meeting.group.lives))
        self._settle(call, call_failed(future, answer.raised) if answer.raised is not None else None)

    def _settle(self, call: Call, error: Exception | None) -> None:
        """Hand a call to its lane; one whose group broke waits until it is known by whom."""
        if call.meeting is None:
            self._lanes.complete(call.future, error)
        else:
            self._hand_out(call.meeting, call.meeting.settle(call.future, error))

    def _hand_out(self, meeting: Meeting, settled: Settled) -> None:
        for future, error in settled:
            self._lanes.complete(future, error)
        if meeting.culprit is not None:
            self.groups.forget(meeting.group)
