"""Calibration where every role has a process: what an engine adds to a call, told apart into work and waiting.

    a role's call       its process's CPU seconds a call, the method among them      (cores are shared, [[machine]])
    the coordinator     this process's CPU seconds an answer
    latency             what is left: that at which the simulation of 1 worker makes as many updates as the run did
    a group's mean      two roles that do nothing else average a gradient, again and again

Floor 7.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from qfleet.engines.base import Engine, Future, HostingEngine, RoleRef
from qfleet.errors import QfleetError
from qfleet.placement.cluster_file import Cluster, ClusterFile, Compute, Link, Machine, Network
from qfleet.planning.calibration import Measured, Window, costs_of, metered_run
from qfleet.planning.cluster import PlannedCluster
from qfleet.planning.metering import Metering
from qfleet.planning.timing import simulate
from qfleet.plugins import load_plugin
from qfleet.run_config import RunConfig, change_config
from qfleet.types import EnvSpec, Receipt, Reply

NUM_HALVINGS = 9
MAX_LATENCY = 0.05
NUM_MEANS, FEW_MEANS = 200, 20
WORK_SECONDS = 1e-3  # between two means: who has waited for long has to be woken
NUM_PAYLOADS, NUM_TAKINGS = 4, 60
WORK_PRODUCTS, NUM_WORKINGS = 500, 25


def with_overhead(calls: Iterable[Metering], part: float = 1.0) -> list[Metering]:
    """Calls that last what they keep their role's process busy: the method, and `part` of what the engine adds."""
    return [
        dataclasses.replace(call, seconds=call.seconds + part * max(0.0, call.cpu_seconds - call.seconds))
        for call in calls
    ]


def local_cluster(
    measured: Measured, window: Window, latency: float, part: float, bandwidth: float, exchange: Exchange
) -> ClusterFile:
    """This machine as a simulated one: every role and the coordinator share its cores, less what others have of them.

    Args:
        measured: for what each payload adds to a call.
        window: the run with one worker.
        latency, bandwidth: of a message.
        part: of the engine's own work, how much counts.
        exchange: what roles pay for each other's values.
    """
    costs = costs_of(with_overhead(window.calls, part), [], "")
    tables = tuple(_with_slope(cost.table, measured, exchange.payload) for cost in costs)
    # A ring of two takes two latencies; whatever else may pass between workers is rare.
    links = (Link(between=("worker-*", "worker-*"), latency=exchange.meeting / 2.0),) if exchange.meeting else ()
    return ClusterFile(
        cluster=Cluster(coordinator_seconds=window.coordinator_cpu / max(1, len(window.calls))),
        network=Network(latency=latency, bandwidth=bandwidth),
        link=links,
        machine=(Machine(roles="*", cores=max(0.1, num_cores() - window.others), crowding=exchange.crowding),),
        compute=tables,
    )


def fit(
    config: RunConfig, spec: EnvSpec, wanted: float, build: Callable[[float, float], ClusterFile]
) -> tuple[ClusterFile, float, float]:
    """The cluster on which the simulation of `config` makes `wanted` updates a second: its file, latency and part.

    The latency is raised from 0 until it does. Where it is too slow at 0 already, some of the engine's work goes on
    beside the role's own, and its part is lowered instead.

    Args:
        config: of one worker, on engine sim with nothing computed.
        wanted: updates a second of the real run.
        build: the cluster at a latency and a part.
    """

    def rate(latency: float, part: float) -> float:
        return timed_on(config, spec, build(latency, part))

    if rate(0.0, 1.0) >= wanted:
        latency = _bisect(lambda value: rate(value, 1.0) - wanted, MAX_LATENCY)
        return build(latency, 1.0), latency, 1.0
    part = _bisect(lambda value: rate(0.0, value) - wanted, 1.0)
    return build(0.0, part), 0.0, part


def timed_on(config: RunConfig, spec: EnvSpec, file: ClusterFile) -> float:
    """Updates a second that the simulation of a configuration makes on a cluster."""
    with TemporaryDirectory(prefix="qfleet-plan-") as folder:
        path = Path(folder) / "cluster.toml"
        path.write_text(PlannedCluster(file, []).to_toml(), "utf-8")
        return simulate(change_config(config, [("engine.cluster", str(path))]), spec).updates


@dataclass(frozen=True, slots=True)
class Exchange:
    """What roles in processes pay for each other's values.

    Attributes:
        meeting: seconds of a mean of two members, beyond their own work.
        payload: seconds that one more payload among a call's arguments adds to it.
        crowding: how many times as long two take for the same work at once as one alone.
    """

    meeting: float = 0.0
    payload: float = 0.0
    crowding: float = 1.0


class Prober:
    """A role that knows nothing of learning: it meets others of its kind, and takes what it is given."""

    def give(self, size: int) -> Reply:
        """A payload of `size` floats."""
        return Reply(Receipt(), np.zeros(size, np.float32))

    def take(self, *values: object) -> Receipt:
        """Answer."""
        return Receipt()

    def work(self) -> Receipt:
        """Some milliseconds of small matrices; how long they took."""
        generator = torch.Generator().manual_seed(0)
        batch, weights = (torch.rand(shape, generator=generator) for shape in ((128, 64), (64, 64)))
        began = time.perf_counter()
        for _ in range(WORK_PRODUCTS):
            torch.relu(batch @ weights).sum()
        return Receipt(metrics={"seconds": time.perf_counter() - began})

    def meet(self, number: int, size: int, seconds: float) -> Generator[torch.Tensor, None, Receipt]:
        """Average `number` times a tensor of `size`, each time after `seconds` of work."""
        tensor = torch.zeros(size)
        for _ in range(number):
            ends = time.perf_counter() + seconds
            while time.perf_counter() < ends:
                tensor.mul_(1.0)
            yield tensor
        return Receipt()


def measure_exchange(config: RunConfig, size: int, folder: Path) -> Exchange:
    """What two roles that do nothing else take for a mean of `size` floats, and for a payload of as many.

    Args:
        config: names the engine.
        size: of the parameter vector.
        folder: for what the engine logs.
    """
    engine: Engine = load_plugin("engine", config.engine.name).Engine(config.engine, config.seed)
    if isinstance(engine, HostingEngine):
        engine.set_up_hosts(folder / "logs", 1)
    try:
        group = [engine.spawn(f"probe-{rank}", Prober) for rank in range(2)]
        _gather(engine, [engine.submit(role, "take") for role in group])
        _meet(engine, group, FEW_MEANS, size)  # they get to know each other
        few = statistics.median(_meet(engine, group, FEW_MEANS, size) for _ in range(5))
        many = statistics.median(_meet(engine, group, NUM_MEANS + FEW_MEANS, size) for _ in range(5))
        one, several = (_taking(engine, group, size, number) for number in (1, NUM_PAYLOADS))
        alone, both = (statistics.median(_working(engine, group[:number])) for number in (1, 2))
    finally:
        engine.close()
    return Exchange(
        meeting=max(0.0, (many - few) / NUM_MEANS - WORK_SECONDS),
        payload=max(0.0, (several - one) / (NUM_PAYLOADS - 1)),
        crowding=max(1.0, both / alone),
    )


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def measure_window(config: RunConfig, spec: EnvSpec, folder: Path, seconds: float) -> Window:
    """A metered run that has something to tell.

    Raises:
        QfleetError: no update in it.
    """
    window = metered_run(config, spec, folder, seconds)
    if not window.num_updates or not window.calls:
        raise QfleetError(f"{config.strategy.name}: no update in {seconds:g} s; nothing to calibrate by")
    return window


def _with_slope(table: Compute, measured: Measured, payload: float) -> Compute:
    """What each payload beyond the first adds to a call that merges several: the role's own part and the engine's."""
    for cost in measured.costs:
        one = cost.table
        if (one.role, one.method) == (table.role, table.method) and one.payload_seconds:
            slope = one.payload_seconds + payload
            values = tuple(max(0.0, value - slope) for value in table.values or ())
            return table.model_copy(update={"payload_seconds": slope, "values": values})
    return table


def _bisect(above: Callable[[float], float], highest: float) -> float:
    """Where a falling function crosses 0, between 0 and `highest`."""
    low, high = 0.0, highest
    for _ in range(NUM_HALVINGS):
        middle = (low + high) / 2 if low else high / 8
        if above(middle) > 0:
            low = middle
        else:
            high = middle
    return float(f"{(low + high) / 2:.3g}")


def _meet(engine: Engine, group: Sequence[RoleRef], number: int, size: int) -> float:
    began = time.perf_counter()
    _gather(engine, engine.all_reduce(group, "meet", [(number, size, WORK_SECONDS)] * len(group)))
    return time.perf_counter() - began


def _working(engine: Engine, group: Sequence[RoleRef]) -> list[float]:
    """Seconds of the same work, at all of them at once, again and again."""
    laps = []
    for _ in range(NUM_WORKINGS):
        futures = [engine.submit(role, "work") for role in group]
        _gather(engine, futures)
        laps += [engine.result(future).metrics["seconds"] for future in futures]
    return laps


def _taking(engine: Engine, group: Sequence[RoleRef], size: int, number: int) -> float:
    """Median seconds of a call that takes so many fresh payloads of another role."""
    giver, taker = group
    laps = []
    for _ in range(NUM_TAKINGS):
        given = [engine.submit(giver, "give", size) for _ in range(number)]
        _gather(engine, given)
        began = time.perf_counter()
        _gather(engine, [engine.submit(taker, "take", *given)])
        laps.append(time.perf_counter() - began)
    return statistics.median(laps)


def _gather(engine: Engine, futures: Sequence[Future]) -> None:
    for _ in futures:
        done = engine.wait()
        assert done is not None
        engine.result(done)
