"""Ray: every role in a process of its own, on this machine or a cluster. Values pass between roles by reference.

    waits for                       unblocked by
    wait()                          an answer (Ray's callbacks put them into one queue), a deadline, its own timeout
    a role's call                   the role's calls before it; Ray brings its arguments
    a group's members               see placement/collective.py
    stop(), close()                 the role's `close`, or `_CLOSE_SECONDS`, after which it is killed

Ray restarts and repeats nothing here. A role that does not answer within `role_timeout` is dead to this engine, and
is killed to make that true.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

try:
    import ray
except ImportError as error:
    from qfleet.errors import MissingExtraError

    raise MissingExtraError("engine = ray needs Ray, which is not installed: pip install 'qfleet[ray]'") from error

from pydantic import Field
from ray import cloudpickle

from qfleet.config import PositiveFloat, PositiveInt
from qfleet.engines.base import EngineConfig, Future, Placement, RoleRef, check_arguments, check_group
from qfleet.errors import ValueLost
from qfleet.placement.lanes import Lanes
from qfleet.placement.processes import Process, end
from qfleet.placement.ray_answers import Answers, Arrivals
from qfleet.placement.ray_calls import DEATHS, Call, Life, Meeting, cause_of_death, lay_out, why_hopeless
from qfleet.placement.ray_cluster import Cluster
from qfleet.placement.ray_deadlines import Deadlines
from qfleet.placement.ray_host import Home, Host, Order, Ticket
from qfleet.placement.traffic import Traffic
from qfleet.types import Receipt

ANYWHERE = Placement()
_CLOSE_SECONDS = 5.0
# Of role_timeout, what the members of a group wait for each other: they come back before they could be taken for dead.
_GROUP_SHARE = 0.75


class Config(EngineConfig):
    """The [engine] section of the ray engine.

    Attributes:
        address: "auto", "ip:port" or "ray://ip:port" of a cluster; not set: a Ray of this machine, for this run alone
        role_timeout: seconds without an answer after which a role is taken for dead and killed
        placement_timeout: seconds that a role waits for room; at the start that ends the run, later a worker leaves
        num_cpus_local: CPUs that a Ray started here has to give; not set: roles share the machine's freely
        object_store_memory: bytes of shared memory for a Ray started here; not set: half of what is free, at most 1 GiB
        working_dir: a folder of your own code that travels to the cluster and is where roles run
        py_modules: packages of your own code that travel to the cluster, as paths
        namespace: Ray's namespace; not set: one of its own
    """

    name: str = "ray"
    address: str | None = None
    role_timeout: PositiveFloat = 120.0
    placement_timeout: PositiveFloat = 60.0
    num_cpus_local: PositiveInt | None = None
    object_store_memory: int | None = Field(default=None, ge=80 << 20)
    working_dir: str | None = None
    py_modules: tuple[str, ...] = ()
    namespace: str | None = None


@dataclass(slots=True)
class _Role:
    packed: bytes
    placement: Placement
    life: Life


class Engine:
    """Places roles as Ray actors.

    Args:
        config: the [engine] section.
        seed: not needed: the order of things is that of time.
    """

    is_concurrent = True
    is_one_process = False

    def __init__(self, config: Config, seed: int) -> None:
        self.config = config
        self._cluster: Cluster | None = None
        self._roles: dict[str, _Role] = {}
        self._lanes = Lanes()
        self._arrivals = Arrivals()
        self._deadlines = Deadlines(config.role_timeout, config.placement_timeout)
        self.traffic = Traffic()
        self._answers = Answers(self._arrivals, self._lanes, self._deadlines, self.traffic)
        self._numbers = itertools.count()
        self._log_folder: str | None = None
        self._num_threads: int | None = None

    def set_up_hosts(self, log_folder: Path, num_threads: int) -> None:
        """Where each role's process writes its output, and how many threads torch has there."""
        self._log_folder, self._num_threads = str(log_folder.absolute()), num_threads

    def spawn(self, name: str, build: Callable[..., object], *args: object, placement: Placement = ANYWHERE) -> RoleRef:
        """Ask Ray for a process; it builds the role when it is there."""
        if name in self._roles:
            raise ValueError(f"role {name} exists already")
        packed = cloudpickle.dumps((build, args))
        self._roles[name] = _Role(packed, placement, self._give_life(name, 0, packed, placement))
        return RoleRef(name)

    def submit(self, role: RoleRef, method: str, *args: object, lane: str = "training", num_parts: int = 1) -> Future:
        """Send the call; Ray brings the payloads among its arguments straight from where they are."""
        check_arguments(role, method, args)
        future, life = self._open(role, method, lane, num_parts)
        error = why_hopeless(future, life, args)
        if error is not None or life is None:
            self._lanes.complete(future, error)
            return future
        layout, values, producers = lay_out(args)
        self.traffic.pass_on(role.name, args, lane)
        refs = life.method("call", 1 + num_parts).remote(layout, num_parts, method, *values)
        self._answers.watch(Call(next(self._numbers), future, life, refs, producers))
        return future

    def all_reduce(
        self, group: Sequence[RoleRef], method: str, args: Sequence[tuple[object, ...]], lane: str = "training"
    ) -> list[Future]:
        """Send a call to each member; they meet and average among themselves, see placement/collective.py."""
        check_group(group, method, args)
        opened = [self._open(role, method, lane, 1) for role in group]
        futures = [future for future, _ in opened]
        lives = tuple(life for _, life in opened if life is not None)
        errors = [why_hopeless(future, life, own) for (future, life), own in zip(opened, args, strict=True)]
        culprit = next((role.name for role, error in zip(group, errors, strict=True) if error is not None), None)
        if culprit is not None:
            for future, error in zip(futures, errors, strict=True):
                self._lanes.complete(future, error or ValueLost(culprit))
            return futures
        owns_gpus = all(self._roles[role.name].placement.num_gpus >= 1 for role in group)
        shared = self._answers.groups.of(lives)
        meeting = Meeting(shared, len(lives))
        # Nobody's time runs while one is being built: a call is not begun before all have said where they can be met.
        arrivals = [] if shared.has_met else shared.arrivals
        for rank, (future, life, own) in enumerate(zip(futures, lives, args, strict=True)):
            layout, values, producers = lay_out(own)
            self.traffic.pass_on(life.name, own, lane)
            seconds = _GROUP_SHARE * self.config.role_timeout
            dropped, life.dropped_groups = tuple(life.dropped_groups), []
            ticket = Ticket(shared.number, rank, len(lives), seconds, owns_gpus, len(arrivals), dropped)
            refs = life.method("reduce", 2).remote(ticket, layout, method, *arrivals, *values)
            self._answers.watch(Call(next(self._numbers), future, life, refs, producers, meeting))
        return futures

    def wait(self, timeout: float | None = None, lane: str = "training") -> Future | None:
        """The next completed call of the lane, from Ray's callbacks; each costs the same however many are under way."""
        mine = self._lanes.of(lane)
        last = float("inf") if timeout is None else time.monotonic() + timeout
        while True:
            self._arrivals.take()
            if mine.done:
                return mine.done.popleft()
            if not mine.num_open:
                return None
            now = time.monotonic()
            for life in self._deadlines.missed(now):
                self._give_up(life)
            if mine.done:
                continue
            if now >= last:
                return None
            horizon = min(last, self._deadlines.next())
            self._arrivals.take(None if horizon == float("inf") else horizon - now)

    def result(self, future: Future) -> Receipt:
        """The receipt, or the failure."""
        if future.error is not None:
            raise future.error
        if future.receipt is None:
            raise ValueError(f"{future.role.name}.{future.method} has not completed")
        return future.receipt

    def payload(self, future: Future) -> object:
        """Fetch the payload; arrays in it are read-only views of shared memory. In parts, it is a list."""
        self.result(future)
        assert isinstance(future.payload, list)
        try:
            pieces = ray.get(future.payload, timeout=self.config.role_timeout)
        except (ray.exceptions.ObjectLostError, ray.exceptions.GetTimeoutError, *DEATHS) as error:
            raise ValueLost(future.role.name) from error
        return pieces if future.num_parts > 1 else pieces[0]

    def stop(self, role: RoleRef) -> None:
        """Let the role close, then end its process; its unfinished calls are dropped."""
        known = self._roles.pop(role.name, None)
        if known is not None and known.life.cause is None:
            self._close_roles([known.life])

    def kill(self, role: RoleRef) -> None:
        """End the process; its unfinished calls come back as RoleDied."""
        known = self._roles.get(role.name)
        if known is not None:
            self._answers.lose(known.life, "killed")

    def respawn(self, role: RoleRef) -> None:
        """A new process, which builds the role anew."""
        self.kill(role)
        known = self._roles[role.name]
        known.life = self._give_life(role.name, known.life.incarnation + 1, known.packed, known.placement)

    def incarnation(self, role: RoleRef) -> int:
        """How often the role was respawned."""
        known = self._roles.get(role.name)
        return known.life.incarnation if known is not None else 0

    def process_of(self, role: RoleRef) -> Process | None:
        """Where the role's present life runs, on its node; None before it is placed and once it is known to be dead."""
        known = self._roles.get(role.name)
        return known.life.home.process if known and known.life.home and known.life.cause is None else None

    def room_for(self, placement: Placement) -> int:
        """By what the nodes have left. A Ray that was started here refuses none for want of a CPU."""
        return self._joined().room_for(placement)

    def now(self) -> float:
        """Seconds of a clock that never goes back."""
        return time.monotonic()

    def state_dict(self) -> dict[str, object]:
        """Nothing: time orders things here."""
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Nothing to continue."""

    def close(self) -> None:
        """Let all roles close, end their processes, and the Ray that was started for them."""
        lives = [role.life for role in self._roles.values()]
        self._roles.clear()
        self._close_roles([life for life in lives if life.cause is None])
        if self._cluster is not None:
            self._cluster.close()
            self._cluster = None

    # Lives

    def _joined(self) -> Cluster:
        if self._cluster is None:
            config = self.config
            travels = {"working_dir": config.working_dir, "py_modules": list(config.py_modules)}
            runtime_env: dict[str, object] = {key: value for key, value in travels.items() if value}
            self._cluster = Cluster(
                config.address, config.num_cpus_local, config.object_store_memory, runtime_env, config.namespace
            )
        return self._cluster

    def _give_life(self, name: str, incarnation: int, packed: bytes, placement: Placement) -> Life:
        options = self._joined().options(placement)
        actor = ray.remote(Host).options(**options).remote()
        life = Life(name, incarnation, actor, time.monotonic())
        order = Order(name, incarnation, packed, self._log_folder, self._num_threads)
        self._arrivals.listen(actor.place.remote(), self._on_placed, life)
        life.building = actor.build.remote(order)
        self._arrivals.listen(life.building, self._on_built, life)
        self._deadlines.watch(life)
        return life

    def _on_placed(self, life: Life, home: object, error: BaseException | None, at: float) -> None:
        if isinstance(home, Home):
            life.home, life.clock = home, at
            if life.cause is not None:  # ended before it could say where it is
                end(home.process)

    def _on_built(self, life: Life, nothing: object, error: BaseException | None, at: float) -> None:
        if error is None:
            life.is_built, life.clock = True, at
            self._deadlines.watch(life)
        else:
            self._answers.lose(life, cause_of_death(error))

    def _close_roles(self, lives: list[Life]) -> None:
        """Drop their calls, let them close themselves, end them."""
        self._answers.drop(lives)
        closing = [life.actor.close.remote() for life in lives]
        if closing:
            ray.wait(closing, num_returns=len(closing), timeout=_CLOSE_SECONDS)
        self._arrivals.take()  # among them may be where a role lives that was spawned a moment ago
        for life in lives:
            self._answers.lose(life, "killed")

    def _give_up(self, life: Life) -> None:
        """Its time is up: it was placed and does not answer, or it found no place."""
        if life.home is not None:
            self._answers.lose(life, "timeout")
            return
        why = self._joined().why_no_room(self._roles[life.name].placement)
        life.no_room = (
            f"role {life.name} found no place in {self.config.placement_timeout:g} s: it {why}; ask for less, or "
            "give a cluster that grows more time with --set engine.placement_timeout"
        )
        self._answers.lose(life, "no room")

    # Calls

    def _open(self, role: RoleRef, method: str, lane: str, num_parts: int) -> tuple[Future, Life | None]:
        known = self._roles.get(role.name)
        life = known.life if known is not None else None
        self._lanes.of(lane).num_open += 1
        return Future(role, method, lane, life.incarnation if life is not None else 0, num_parts), life
