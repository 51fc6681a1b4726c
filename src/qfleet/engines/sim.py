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

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch

from qfleet.config import PositiveFloat
from qfleet.engines import inline
from qfleet.engines.base import Future, Placement, RoleRef
from qfleet.errors import NoRoom, RoleDied, ValueLost
from qfleet.placement.cluster_file import read_cluster
from qfleet.placement.cost_model import CostModel
from qfleet.placement.event_log import EventLog
from qfleet.placement.fault_schedule import ArmedFaults, FaultSchedule
from qfleet.placement.in_process import Call, Group, twin_of
from qfleet.placement.virtual_calls import Home, Usage, Value, VirtualCall, Way, payloads_among
from qfleet.placement.virtual_clock import VirtualClock
from qfleet.placement.virtual_cores import VirtualCores
from qfleet.placement.virtual_machines import VirtualMachines
from qfleet.placement.virtual_network import COORDINATOR, VirtualNetwork
from qfleet.placement.virtual_rings import Rings, member_calls
from qfleet.placement.virtual_trips import Trips
from qfleet.placement.virtual_watch import Watch


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

    @property
    def computes_nothing(self) -> bool:
        """Whether time alone is simulated."""
        return self.compute == "none"


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
        self.network = VirtualNetwork(self.file, self.clock.at, self.traffic)
        self._cores = VirtualCores(self.file.machine, self.clock) if self.file.machine else None
        armed = ArmedFaults(self._note)
        self._rings = Rings(self.clock, self.network, self._cores, self._met)
        self._trips = Trips(self.clock, self.network, self._cores, self.log, armed, self._arrive, self._die)
        self.machines = VirtualMachines(
            self.file, self.clock, self.network, self.log, config.placement_timeout, self._die, self._trips.start
        )
        self._homes = self.machines.homes
        self._watch = Watch(self.clock, self._homes, config.role_timeout, self._die)
        self.faults = FaultSchedule(self.file.fault, seed, self.machines, armed, self.clock.at)
        self._coordinator_seconds = self.file.cluster.coordinator_seconds
        self._ways: dict[str, Way] = {}
        self._num_submitted = 0
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
        costs = self.costs.of_role(name, placement.num_gpus > 0)
        costs.load_state(self._cost_states.get(name))
        home = self._homes[name] = Home(name, self._roles[name], costs)
        self._note("spawn", name)
        self.machines.settle(home)
        return role

    def submit(self, role: RoleRef, method: str, *args: object, lane: str = "training", num_parts: int = 1) -> Future:
        """Send the request; what comes of it happens inside a later `wait`."""
        return self._queue(role, method, args, lane, num_parts, None)

    def wait(self, timeout: float | None = None, lane: str = "training") -> Future | None:
        """Let time pass until a call of the lane is answered, at most `timeout` virtual seconds."""
        way, clock = self._way(lane), self.clock
        now = clock.time
        last = float("inf") if timeout is None else now + timeout
        if not way.done:
            if not way.num_open:
                return None
            if not clock.run(last, way.done):
                clock.time = now if timeout is None else last
                return None
        moment, future = way.done.popleft()
        way.num_open -= 1
        now = max(now, moment)
        if self._cores is not None:
            self._cores.spend(now, COORDINATOR, self._coordinator_seconds)
        else:
            clock.run(now + self._coordinator_seconds)  # what happens meanwhile
            clock.time = now + self._coordinator_seconds
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
        home = self._homes.get(role.name)
        if home is None:
            return
        for call in home.open:
            call.is_over = True
            call.way.num_open -= 1
        if self._cores is not None:
            self._cores.drop(self.clock.time, role.name)
        super().stop(role)
        self.machines.leave(role.name)
        self._note("stop", role.name)

    def kill(self, role: RoleRef) -> None:
        """Forget what the role has built up; all its calls that were not answered come back as RoleDied."""
        home = self._homes.get(role.name)
        if home is not None:
            cause = "preempted" if home.name in self.machines.leaving else "killed"
            self._die(self.clock.time, home, cause, "")

    def respawn(self, role: RoleRef) -> None:
        """Build the role anew, on its machine if that is there, else on another one.

        An answer of its former life that is still on its way will not be heard any more.
        """
        super().respawn(role)
        self._note("respawn", role.name)
        home = self._homes[role.name]
        for call in list(home.open):
            if call.error is None:
                call.receipt, call.error = None, RoleDied(home.name, call.public.incarnation, home.death or "killed")
            self._trips.hand_over(self.clock.time, call)
        self.machines.settle(home)

    def room_for(self, placement: Placement) -> int:
        """Places that are free; each holds one role of any kind."""
        free = self.machines.num_free
        return super().room_for(placement) if free is None else free

    def notices(self) -> Mapping[str, float]:
        """Roles that live on machines which are about to be preempted, and when these will be gone."""
        return self.machines.leaving

    def now(self) -> float:
        """Virtual seconds since the run began."""
        return self.clock.time

    def state_dict(self) -> dict[str, object]:
        """The clock, and where all draws stand; nothing is under way."""
        states = {name: home.costs.state() for name, home in self._homes.items()}
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
        for name, home in self._homes.items():
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
            for name, home in self._homes.items()
            for port in [self.network.port(name)]
        }

    # Calls

    def _way(self, lane: str) -> Way:
        way = self._ways.get(lane)
        if way is None:
            way = self._ways[lane] = Way()
        return way

    def _queue(
        self, role: RoleRef, method: str, args: tuple[object, ...], lane: str, num_parts: int, group: Group | None
    ) -> Future:
        needs = payloads_among(role, method, args)
        way, home, time = self._way(lane), self._homes.get(role.name), self.clock.time
        incarnation = 0 if home is None else home.role.incarnation
        public = Future(role, method, lane, incarnation, num_parts)
        way.num_open += 1
        if home is None or not home.role.is_alive:
            public.error = RoleDied(role.name, incarnation, "killed" if home is None else home.death)
            if group is not None:
                self._break(group, role.name)
            way.done.append((time, public))
            return public
        self._num_submitted += 1
        call = VirtualCall(self._num_submitted, home, way, public, args, needs, group)
        if not home.open:
            home.clock = time
        home.open[call] = None
        home.inbox.append(call)
        if not home.is_watched:
            self._watch.begin(home)
        self._trips.depart(call)
        return public

    def _values(self, call: Call) -> Sequence[object]:
        assert isinstance(call, VirtualCall)
        return call.values()

    # Groups

    def _complete(self, call: Call, error: BaseException | None) -> None:
        """A group's member has its answer."""
        assert isinstance(call, VirtualCall)
        if not call.is_over and not call.is_replied:
            own = call.future
            call.receipt, call.payload, call.error = own.receipt, own.payload, error
            call.home.clock = self.clock.time  # until now it was for the others to answer
            self._trips.reply(self.clock.time, call)

    def _meet(self, group: Group) -> None:
        """All members are here, or have the last mean: each one's next step, and then the ring."""
        tensors = self._advance(group)
        if tensors:
            self._rings.begin(group, tensors)

    def _met(self, time: float, group: Group, tensors: list[torch.Tensor]) -> None:
        if group not in self._groups:
            return  # it broke meanwhile
        calls = member_calls(group)
        thaws = max(call.home.frozen_until for call in calls)
        if thaws > time:
            self.clock.at(thaws, self._met, group, tensors)
        elif self._average(group, tensors):
            for call in calls:
                call.ready = time
            self._meet(group)

    # Deaths

    def _die(self, time: float, home: Home, cause: str, message: str) -> None:
        """End a role's life; its caller knows at once where it is the cause, else when the connection breaks."""
        known = home.role
        if not known.is_alive:
            return
        self._note("die", home.name, {"cause": cause})
        known.die()
        home.death, home.frozen_until = cause, 0.0
        if self._cores is not None:
            self._cores.drop(time, home.name)
        for call in self._drop(home.name):
            assert isinstance(call, VirtualCall)
            is_by_caller = cause in ("killed", "preempted", "timeout", "no room")
            if call.is_replied and not is_by_caller:
                continue  # its answer had left already
            died = RoleDied(home.name, known.incarnation, cause)
            call.receipt, call.error = None, NoRoom(home.name, known.incarnation, message) if message else died
            if call.group is not None and not call.is_replied:
                self._break(call.group, home.name)
            call.is_replied = True
            if is_by_caller:
                self._trips.hand_over(time, call)
            else:
                self._trips.return_home(time, call)

    def _drop(self, name: str) -> list[Call]:
        """Take away a role's unfinished calls, those that stand at a yield included."""
        home = self._homes[name]
        home.inbox.clear()
        home.running = None
        for group in self._groups:
            if name in group.members:
                group.members.pop(name)[1].close()
        return list(home.open)

    def _note(self, event: str, role: str, facts: dict[str, object] | None = None) -> None:
        self.log.write(self.clock.time, event, role, facts)
