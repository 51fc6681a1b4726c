"""Sim: inline on a virtual clock. Calls, messages and faults take the time that a cluster's file says; values are real.

    waits for                     unblocked by
    wait()                        the next event: it sets the clock; `timeout` virtual seconds
    a call                        its role's calls before it; its request; its arguments, over the network
    a generator's yield           the last member's step and the ring's seconds
    a role that does not answer   role_timeout virtual seconds after its last answer, when it is taken for dead
    a role without a place        a machine that arrives; placement_timeout, when its calls fail

One thread, one process: a call runs for real when it begins, and its answer reaches the coordinator when its virtual
time is over. The seed is the only source of order, so a run replays bit for bit, faults included.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

from qfleet.config import PositiveFloat
from qfleet.engines import inline
from qfleet.engines.base import Future, Placement, RoleRef
from qfleet.errors import NoRoom, RoleDied, ValueLost
from qfleet.placement.cluster_file import read_cluster
from qfleet.placement.cost_model import CostModel, measured
from qfleet.placement.event_log import EventLog
from qfleet.placement.fault_schedule import FaultSchedule
from qfleet.placement.in_process import Call, Group, twin_of
from qfleet.placement.virtual_calls import Home, Step, Transfers, Usage, Value, VirtualCall, Way, count_payloads
from qfleet.placement.virtual_clock import VirtualClock
from qfleet.placement.virtual_cores import VirtualCores
from qfleet.placement.virtual_machines import VirtualMachines
from qfleet.placement.virtual_network import COORDINATOR, VirtualNetwork

# A yield of less than this share of the largest one of its method is no step of its own: only its ring is charged.
SMALL_SHARE = 0.125


class Config(inline.Config):
    """The [engine] section of the simulated cluster.

    Attributes:
        cluster: TOML file of what calls, messages and machines cost and which faults strike; not set: defaults
        compute: "real" computes every value; "none" computes none, for time alone: roles answer with counts and sizes
        role_timeout: virtual seconds without an answer after which a role is taken for dead
        placement_timeout: virtual seconds that a role waits for a place
        event_log: file for one JSON line an event; not set: none is written
    """

    name: str = "sim"
    cluster: str | None = None
    compute: Literal["real", "none"] = "real"
    role_timeout: PositiveFloat = 120.0
    placement_timeout: PositiveFloat = 60.0
    event_log: str | None = None


class Engine(inline.Engine):
    """Runs every role in this thread, on a clock of its own.

    Args:
        config: the [engine] section.
        seed: of all that is drawn.

    Raises:
        ConfigError: the cluster's file is wrong.
    """

    is_virtual = True
    config: Config

    def __init__(self, config: Config, seed: int) -> None:
        super().__init__(config, seed)
        self.file = read_cluster(config.cluster)
        self.log = EventLog(config.event_log)
        self.clock = VirtualClock()
        self.costs = CostModel(self.file, seed)
        self.network = VirtualNetwork(self.file, self.clock.at)
        self.cores = VirtualCores(self.file.machine, self.clock)
        self.machines = VirtualMachines(
            self.file,
            self.clock,
            self.network,
            self.log,
            config.placement_timeout,
            self._die,
            lambda name: self._roles[name].is_alive,
            self._start,
        )
        self.faults = FaultSchedule(self.file.fault, seed, self.machines, self.clock.at)
        self._transfers = Transfers(self.network, self._start)
        self._ways: dict[str, Way] = {}
        self._num_submitted = 0
        self._largest: dict[str, int] = {}  # bytes of the largest tensor that a method's generators have yielded
        self._cost_states: dict[str, object] = {}  # of a checkpoint, for roles that are not there yet

    # What a strategy sees

    def spawn(
        self, name: str, build: Callable[..., object], *args: object, placement: Placement = inline.ANYWHERE
    ) -> RoleRef:
        """Build the role here and now; it takes its first call when it has a place and has started up.

        Raises:
            UsageError: nothing is to be computed, and the role's class has no twin that answers without.
        """
        if self.config.compute == "none":
            build = twin_of(build)
        role = super().spawn(name, build, *args, placement=placement)
        home = self.machines.homes[name] = Home(name, self.costs.of_role(name, placement.num_gpus > 0))
        home.costs.load_state(self._cost_states.get(name))
        self._note("spawn", name)
        self.machines.settle(home)
        return role

    def wait(self, timeout: float | None = None, lane: str = "training") -> Future | None:
        """Let time pass until a call of the lane is answered, at most `timeout` virtual seconds."""
        way, clock = self._way(lane), self.clock
        now = clock.time
        last = float("inf") if timeout is None else now + timeout
        while not way.done:
            if not way.num_open:
                return None
            if clock.next() > last:
                clock.time = last
                return None
            clock.step()
        moment, future = way.done.popleft()
        way.num_open -= 1
        self.cores.spend(max(now, moment), COORDINATOR, self.file.cluster.coordinator_seconds)
        return future

    def payload(self, future: Future) -> object:
        """The payload itself; looking at it takes no time."""
        self.result(future)
        value = future.payload
        assert isinstance(value, Value)
        if value.is_lost:
            raise ValueLost(future.role.name)
        return value.content

    def stop(self, role: RoleRef) -> None:
        """Forget the role and its pending calls; its place is free."""
        home = self.machines.homes.get(role.name)
        if home is None:
            return
        for call in home.open:
            call.is_over = True
            self._way(call.public.lane).num_open -= 1
        self.cores.drop(self.clock.time, role.name)
        super().stop(role)
        self.machines.leave(role.name)
        self._note("stop", role.name)

    def kill(self, role: RoleRef) -> None:
        """Forget what the role has built up; all its calls that were not answered come back as RoleDied."""
        home = self.machines.homes.get(role.name)
        if home is not None:
            self._die(self.clock.time, home, "killed", "")

    def respawn(self, role: RoleRef) -> None:
        """Build the role anew, on its machine if that is there, else on another one."""
        super().respawn(role)
        self._note("respawn", role.name)
        self.machines.settle(self.machines.homes[role.name])

    def room_for(self, placement: Placement) -> int:
        """Places that are free; each holds one role of any kind."""
        free = self.machines.num_free
        return super().room_for(placement) if free is None else free

    def now(self) -> float:
        """Virtual seconds since the run began."""
        return self.clock.time

    def state_dict(self) -> dict[str, object]:
        """The clock, and where all draws stand; nothing is under way."""
        states = {name: home.costs.state() for name, home in self.machines.homes.items()}
        return {
            "time": self.clock.time,
            "costs": self._cost_states | {name: state for name, state in states.items() if state is not None},
            "faults": self.faults.state_dict(),
            "places": self.machines.places,
        }

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Continue the clock and the draws where a checkpoint left them; after another engine's all begins anew."""
        if "faults" not in state:
            return
        costs, faults, places = state["costs"], state["faults"], state["places"]
        assert isinstance(costs, dict)
        assert isinstance(faults, dict)
        self.clock.time = float(str(state["time"]))
        self._cost_states = dict(costs)
        for name, home in self.machines.homes.items():
            home.costs.load_state(costs.get(name))
        self.machines.places = None if places is None else int(str(places))
        self.faults.load_state_dict(faults)

    def close(self) -> None:
        """Close every role, and the log."""
        super().close()
        self.log.close()

    @property
    def num_calls(self) -> int:
        """Calls submitted so far to roles that lived."""
        return self._num_submitted

    def usage(self) -> dict[str, Usage]:
        """What each role that is here has done so far."""
        return {
            name: Usage(home.busy_seconds, home.num_calls, port.num_bytes_out, port.num_bytes_in)
            for name, home in self.machines.homes.items()
            for port in [self.network.port(name)]
        }

    # From the coordinator to the role

    def _way(self, lane: str) -> Way:
        way = self._ways.get(lane)
        if way is None:
            way = self._ways[lane] = Way()
        return way

    def _queue(
        self, role: RoleRef, method: str, args: tuple[object, ...], lane: str, num_parts: int, group: Group | None
    ) -> Future:
        incarnation, time = self.incarnation(role), self.clock.time
        public = Future(role, method, lane, incarnation, num_parts)
        self._way(lane).num_open += 1
        home = self.machines.homes.get(role.name)
        if home is None or not self._roles[role.name].is_alive:
            public.error = RoleDied(role.name, incarnation, "killed" if home is None else home.death)
            if group is not None:
                self._break(group, role.name)
            self._way(lane).done.append((time, public))
            return public
        self._num_submitted += 1
        shadow = Future(role, method, lane, incarnation, num_parts)
        call = VirtualCall(shadow, args, group, public=public, number=self._num_submitted, home=home)
        if not home.open:
            home.clock = time
        home.open[call] = None
        home.inbox.append(call)
        self._watch(home)
        arrives = self.network.signal_at(COORDINATOR, home.name, time)
        if self.faults.is_armed and (delay := self.faults.take("delay", home.name, method)) is not None:
            assert delay.seconds is not None
            arrives += delay.seconds
        self.clock.at(arrives, self._take_in, call)
        return public

    def _take_in(self, time: float, call: VirtualCall) -> None:
        """The request is here: ask for its arguments."""
        if not call.is_over:
            call.is_here = True
            self._transfers.fetch(time, call)
            self._start(time, call.home)

    def _start(self, time: float, home: Home) -> None:
        """Begin the role's next call, if it is free and all that the call needs is here."""
        if home.running is not None or not home.inbox:
            return
        call = home.inbox[0]
        if not call.is_here or call.num_missing:
            return
        free_at = max(home.free_at, home.frozen_until)
        if free_at > time:
            if free_at < float("inf"):
                self.clock.at(free_at, self._start, home)
            return
        home.running = home.inbox.popleft()
        call.began = call.ready = time
        self._note("begin", home.name, call)
        if call.group is not None:
            self._arrive(call, call.group)
            return
        self._run(call)
        first = call.future
        if self.faults.is_armed and self.faults.take("duplicate", home.name, first.method) is not None:
            call.future = Future(first.role, first.method, first.lane, first.incarnation, first.num_parts)
            self._run(call)
            call.future = first  # the answer that comes first is the one that counts
        num_payloads = count_payloads(call.args)
        call.busy = home.costs.seconds(first.method, time, first.receipt, num_payloads) * home.slowness(time)
        call.ends = time + call.busy
        self.cores.work(time, home.name, call.busy, self._end, call)

    def _values(self, call: Call) -> list[object]:
        assert isinstance(call, VirtualCall)
        return call.values()

    # From the role to the coordinator

    def _end(self, time: float, call: VirtualCall) -> None:
        """The call's time is over, unless its role died or was frozen meanwhile."""
        if call.is_over or call.home.running is not call:
            return
        if time < call.ends:
            self.clock.at(call.ends, self._end, call)
        elif self.faults.is_armed and self.faults.take("lost_reply", call.home.name, call.future.method) is not None:
            self._die(time, call.home, "process died", "")
        else:
            self._reply(time, call)

    def _complete(self, call: Call, error: BaseException | None) -> None:
        """A group's member has its answer."""
        assert isinstance(call, VirtualCall)
        call.future.error = error
        if not call.is_over and not call.is_replied:
            call.home.clock = self.clock.time  # until now it was for the others to answer
            self._reply(self.clock.time, call)

    def _reply(self, time: float, call: VirtualCall) -> None:
        home, answer = call.home, call.future
        call.is_replied = True
        home.busy_seconds += call.busy
        home.num_calls += 1
        if answer.receipt is not None:
            answer.payload = Value(answer.payload, home, home.epoch)
            if answer.receipt.seconds:
                elapsed = time - call.began
                waiting = max(0.0, elapsed - call.busy) if call.group is not None else 0.0
                answer.receipt.seconds = measured(answer.receipt, elapsed, waiting)
        self._note("end", home.name, call)
        if home.running is call:
            home.running = None
            self._start(time, home)
        self.clock.at(self.network.signal_at(home.name, COORDINATOR, time), self._hand_over, call)

    def _hand_over(self, time: float, call: VirtualCall) -> None:
        """The answer is at the coordinator."""
        if call.is_over:
            return
        call.is_over = True
        home, public, answer = call.home, call.public, call.future
        home.open.pop(call, None)
        home.clock = time
        if answer.error is not None:
            public.error = answer.error
        else:
            public.receipt, public.payload = answer.receipt, answer.payload
        self._note("answer", home.name, call)
        self._way(public.lane).done.append((time, public))

    # Groups

    def _meet(self, group: Group) -> None:
        """All members are here, or have the last mean: each one's next step, and then the ring."""
        tensors = self._advance(group)
        if not tensors:
            return
        time, num_bytes = self.clock.time, max(tensor.nbytes for tensor in tensors)
        calls = [call for call, _ in group.members.values() if isinstance(call, VirtualCall)]
        method = calls[0].future.method
        is_step = num_bytes >= SMALL_SHARE * self._largest.get(method, 0)
        self._largest[method] = max(num_bytes, self._largest.get(method, 0))
        step = Step(group, tensors, time, len(calls) if is_step else 0)
        for call in calls if is_step else ():
            seconds = call.home.costs.draw(method, time) * call.home.slowness(time)
            call.busy += seconds
            self.cores.work(call.ready, call.home.name, seconds, self._stepped, step)
        if not is_step:
            self._ring(step)

    def _stepped(self, time: float, step: Step) -> None:
        """A member is through with a step."""
        step.num_missing -= 1
        step.last = max(step.last, time)
        if not step.num_missing:
            self._ring(step)

    def _ring(self, step: Step) -> None:
        names, num_bytes = step.group.names, max(tensor.nbytes for tensor in step.tensors)
        begins = self.network.ring_passes_at(names, step.last)
        ends = begins + self.network.ring_seconds(names, num_bytes)
        self.clock.at(ends, self._met, step.group, step.tensors)

    def _met(self, time: float, group: Group, tensors: list[torch.Tensor]) -> None:
        if group not in self._groups:
            return  # it broke meanwhile
        calls = [call for call, _ in group.members.values() if isinstance(call, VirtualCall)]
        thaws = max(call.home.frozen_until for call in calls)
        if thaws > time:
            self.clock.at(thaws, self._met, group, tensors)
        elif self._average(group, tensors):
            for call in calls:
                call.ready = time
            self._meet(group)

    # Deaths

    def _watch(self, home: Home) -> None:
        if not home.is_watched:
            home.is_watched = True
            self.clock.at(home.clock + self.config.role_timeout, self._look, home)

    def _look(self, time: float, home: Home) -> None:
        """A role that has not answered for role_timeout is dead; who waits for a place or for a group is not."""
        home.is_watched = False
        if not home.open or self.machines.homes.get(home.name) is not home:
            return
        running = home.running
        waits = running is not None and running.group is not None and home.frozen_until <= time
        if not home.has_place or waits:
            home.clock = time
        if time >= home.clock + self.config.role_timeout:  # the very sum that `_watch` makes
            self._die(time, home, "timeout", "")
        else:
            self._watch(home)

    def _die(self, time: float, home: Home, cause: str, message: str) -> None:
        """End a role's life; its caller knows at once where it is the cause, else when the connection breaks."""
        known = self._roles[home.name]
        if not known.is_alive:
            return
        self._note("die", home.name, facts={"cause": cause})
        known.die()
        home.death, home.frozen_until = cause, 0.0
        self.cores.drop(time, home.name)
        for call in self._drop(home.name):
            assert isinstance(call, VirtualCall)
            is_by_caller = cause in ("killed", "timeout", "no room")
            if call.is_replied and not is_by_caller:
                continue  # its answer had left already
            died = RoleDied(home.name, known.incarnation, cause)
            call.future.error = NoRoom(home.name, known.incarnation, message) if message else died
            if call.group is not None and not call.is_replied:
                self._break(call.group, home.name)
            call.is_replied = True
            if is_by_caller:
                self._hand_over(time, call)
            else:
                self.clock.at(self.network.signal_at(home.name, COORDINATOR, time), self._hand_over, call)

    def _drop(self, name: str) -> list[Call]:
        """Take away a role's unfinished calls, those that stand at a yield included."""
        home = self.machines.homes[name]
        home.inbox.clear()
        home.running = None
        for group in self._groups:
            if name in group.members:
                group.members.pop(name)[1].close()
        return list(home.open)

    def _note(
        self, event: str, role: str, call: VirtualCall | None = None, facts: dict[str, object] | None = None
    ) -> None:
        if self.log.is_on:
            if call is not None:
                error = call.future.error
                facts = {"method": call.future.method, "call": call.number, "life": call.future.incarnation}
                if event in ("end", "answer") and error is not None:
                    facts["error"] = type(error).__name__
            self.log.write(self.clock.time, event, role, facts)
