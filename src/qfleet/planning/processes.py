"""Calibration where every role has a process: what an engine adds to a call, told apart into work and waiting.

    a role's call       its process's CPU seconds a call, the method among them      (cores are shared, [[machine]])
    the coordinator     this process's CPU seconds an answer
    latency             what is left: that at which the simulation of 1 worker makes as many updates as the run did

Floor 7.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from qfleet.errors import QfleetError
from qfleet.placement.cluster_file import Cluster, ClusterFile, Compute, Link, Machine, Network
from qfleet.planning.calibration import Measured, Window, costs_of, metered_run
from qfleet.planning.cluster import PlannedCluster
from qfleet.planning.exchange import Exchange
from qfleet.planning.metering import Metering
from qfleet.planning.solve import bisect
from qfleet.planning.timing import simulate
from qfleet.run_config import RunConfig, change_config
from qfleet.types import EnvSpec

MAX_LATENCY = 0.05


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
        latency = bisect(lambda value: rate(value, 1.0) - wanted, MAX_LATENCY)
        return build(latency, 1.0), latency, 1.0
    part = bisect(lambda value: rate(0.0, value) - wanted, 1.0)
    return build(0.0, part), 0.0, part


def timed_on(config: RunConfig, spec: EnvSpec, file: ClusterFile) -> float:
    """Updates a second that the simulation of a configuration makes on a cluster."""
    with PlannedCluster(file, []).on_disk() as path:
        return simulate(change_config(config, [("engine.cluster", path)]), spec).updates


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
