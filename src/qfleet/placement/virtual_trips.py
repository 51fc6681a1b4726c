"""A call's trip on a simulated cluster: to its role, its arguments after it, its time there, and its answer back.

    request -> arguments here -> role free: carried out for real -> its seconds are over -> answer at the coordinator

What an event does is done in the event: this is what a simulation's wall clock goes into.
"""

from __future__ import annotations

from collections.abc import Callable

from qfleet.engines.base import call_failed, split_answer
from qfleet.errors import ValueLost
from qfleet.placement.cost_model import measured
from qfleet.placement.event_log import EventLog
from qfleet.placement.fault_schedule import ArmedFaults
from qfleet.placement.in_process import Group
from qfleet.placement.virtual_calls import Home, Transfers, Value, VirtualCall
from qfleet.placement.virtual_clock import VirtualClock
from qfleet.placement.virtual_cores import VirtualCores
from qfleet.placement.virtual_network import COORDINATOR, VirtualNetwork


class Trips:
    """Moves calls on from event to event.

    Args:
        clock, network, log: the cluster's.
        cores: those that roles share; None where each has its own.
        armed: faults that strike messages.
        arrive: takes a group's member whose turn has come.
        die: ends a role's life: when, whose, the cause, and what to say beyond that.
    """

    def __init__(
        self,
        clock: VirtualClock,
        network: VirtualNetwork,
        cores: VirtualCores | None,
        log: EventLog,
        armed: ArmedFaults,
        arrive: Callable[[VirtualCall, Group], None],
        die: Callable[[float, Home, str, str], None],
    ) -> None:
        self._clock = clock
        self._at = clock.at
        self._network = network
        self._cores = cores
        self._log = log if log.is_on else None
        self._armed = armed
        self._arrive = arrive
        self._die = die
        self._transfers = Transfers(network, self.start)

    def depart(self, call: VirtualCall) -> None:
        """The request is sent."""
        home = call.home
        arrives = self._network.signal_at(COORDINATOR, home.name, self._clock.time)
        if self._armed.faults:
            delay = self._armed.take("delay", home.name, call.public.method)
            if delay is not None:
                assert delay.seconds is not None
                arrives += delay.seconds
        self._at(arrives, self._take_in, call)

    def _take_in(self, time: float, call: VirtualCall) -> None:
        """The request is here: ask for its arguments."""
        if call.is_over:
            return
        call.is_here = True
        if call.needs:
            self._transfers.fetch(time, call)
        if not call.num_missing:
            self.start(time, call.home)

    def start(self, time: float, home: Home) -> None:
        """Begin the role's next call, if it is free and all that the call needs is here."""
        if home.running is not None or not home.inbox:
            return
        call = home.inbox[0]
        if not call.is_here or call.num_missing:
            return
        free_at = home.free_at if home.free_at > home.frozen_until else home.frozen_until
        if free_at > time:
            if free_at < float("inf"):
                self._at(free_at, self.start, home)
            return
        home.running = home.inbox.popleft()
        call.began = call.ready = time
        if self._log is not None:
            self.note("begin", call)
        if call.group is not None:
            self._arrive(call, call.group)
            return
        carry_out(call)
        method = call.public.method
        if self._armed.faults and self._armed.take("duplicate", home.name, method) is not None:
            first = (call.receipt, call.payload, call.error)
            carry_out(call)
            call.receipt, call.payload, call.error = first  # the answer that comes first is the one that counts
        call.busy = home.costs.seconds(method, time, call.receipt, len(call.needs))
        if home.slowed:
            call.busy *= home.slowness(time)
        call.ends = time + call.busy
        if self._cores is None:
            self._at(call.ends, self._end, call)
        else:
            self._cores.work(time, home.name, call.busy, self._worked, call)

    def _worked(self, time: float, call: VirtualCall) -> None:
        """The call's work on cores that may be shared is done; what its role stood frozen meanwhile comes after it."""
        call.ends = time + (call.ends - (call.began + call.busy))
        self._end(time, call)

    def _end(self, time: float, call: VirtualCall) -> None:
        """The call's time is over, unless its role died or was frozen meanwhile."""
        home = call.home
        if call.is_over or home.running is not call:
            return
        if time < call.ends:
            self._at(call.ends, self._end, call)
        elif self._armed.faults and self._armed.take("lost_reply", home.name, call.public.method) is not None:
            self._die(time, home, "process died", "")
        else:
            self.reply(time, call)

    def reply(self, time: float, call: VirtualCall) -> None:
        """The answer, or the failure, is there, and leaves for the coordinator."""
        home, receipt = call.home, call.receipt
        call.is_replied = True
        home.busy_seconds += call.busy
        home.num_calls += 1
        if receipt is not None:
            call.payload = Value(call.payload, home, home.epoch)
            if receipt.seconds:
                elapsed = time - call.began
                waiting = max(0.0, elapsed - call.busy) if call.group is not None else 0.0
                receipt.seconds = measured(receipt, elapsed, waiting)
        if self._log is not None:
            self.note("end", call)
        if home.running is call:
            home.running = None
            if home.inbox:
                self.start(time, home)
        self.return_home(time, call)

    def return_home(self, time: float, call: VirtualCall) -> None:
        """What there is to say of the call travels to the coordinator."""
        self._at(self._network.signal_at(call.home.name, COORDINATOR, time), self.hand_over, call)

    def hand_over(self, time: float, call: VirtualCall) -> None:
        """The answer is at the coordinator."""
        if call.is_over:
            return
        call.is_over = True
        home, public = call.home, call.public
        home.open.pop(call, None)
        home.clock = time
        if call.error is not None:
            public.error = call.error
        else:
            public.receipt, public.payload = call.receipt, call.payload
        if self._log is not None:
            self.note("answer", call)
        call.way.done.append((time, public))

    def note(self, event: str, call: VirtualCall) -> None:
        """For the log."""
        if self._log is None:
            return
        public = call.public
        facts: dict[str, object] = {"method": public.method, "call": call.number, "life": public.incarnation}
        if event != "begin" and call.error is not None:
            facts["error"] = type(call.error).__name__
        self._log.write(self._clock.time, event, call.home.name, facts)


def carry_out(call: VirtualCall) -> None:
    """Let the role answer, here and now."""
    public, role = call.public, call.home.role
    try:
        values = call.values()
    except ValueLost as error:
        call.error = error
        return
    try:
        if role.failure is not None:
            raise role.failure
        answer = getattr(role.built, public.method)(*values)
        call.receipt, call.payload = split_answer(answer, public.num_parts)
    except Exception as error:
        call.error = call_failed(public, error)
