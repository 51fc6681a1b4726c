"""What roles in processes pay for each other's values and company, measured with two that do nothing else.

    a group's mean    both average a gradient, again and again
    a payload         a call that takes several of them, against one that takes one
    crowding          a chain of calls beside another, against one chain by itself

A chain is call after call at one role, each with the payload of the one before, as a worker's calls are. What two of
them make beyond what one does is less than the CPU seconds allow: threads that are woken wait for cores that are about
to be free. The crowding is that with which the simulation of both chains takes as long as they did. Floor 7.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from qfleet.engines.base import Engine, Future, HostingEngine, RoleRef
from qfleet.placement.cluster_file import Cluster, ClusterFile, Compute, Machine, Network
from qfleet.planning.cluster import PlannedCluster
from qfleet.planning.solve import bisect
from qfleet.plugins import load_plugin
from qfleet.run_config import RunConfig, change_config
from qfleet.types import Receipt, Reply

NUM_MEANS, FEW_MEANS = 200, 20
WORK_SECONDS = 1e-3  # of a call or between two means: who has waited for long has to be woken
NUM_PAYLOADS, NUM_TAKINGS = 4, 60
NUM_LAPS, NUM_LINKS = 9, 100  # of a chain, in turns with two; calls of each
MAX_CROWDING = 2.0  # beyond 1


@dataclass(frozen=True, slots=True)
class Exchange:
    """What roles in processes pay for each other's values.

    Attributes:
        meeting: seconds of a mean of two members, beyond their own work.
        payload: seconds that one more payload among a call's arguments adds to it.
        crowding: how many times as long work takes while all cores are busy as while one is; see Machine.
    """

    meeting: float = 0.0
    payload: float = 0.0
    crowding: float = 1.0


@dataclass(frozen=True, slots=True)
class Chains:
    """One chain of calls, and two at once.

    Attributes:
        alone, both: seconds from a call to the chain's next.
        role_cpu, coordinator_cpu: CPU seconds of a call, of its role's process and of this one, with one chain.
    """

    alone: float
    both: float
    role_cpu: float
    coordinator_cpu: float


class Prober:
    """A role that knows nothing of learning: it meets others of its kind, and takes what it is given."""

    def __init__(self) -> None:
        self._cpu = time.process_time()

    def give(self, size: int) -> Reply:
        """A payload of `size` floats."""
        return Reply(Receipt(), np.zeros(size, np.float32))

    def take(self, *values: object) -> Receipt:
        """Answer."""
        return Receipt()

    def hand_on(self, size: int, seconds: float, *values: object) -> Reply:
        """A payload of `size` floats after `seconds` of work, and the CPU seconds since the last one."""
        tensor, ends = torch.zeros(size), time.perf_counter() + seconds
        while time.perf_counter() < ends:
            tensor.mul_(1.0)
        before, self._cpu = self._cpu, time.process_time()
        return Reply(Receipt(metrics={"cpu": self._cpu - before}), tensor.numpy())

    def meet(self, number: int, size: int, seconds: float) -> Generator[torch.Tensor, None, Receipt]:
        """Average `number` times a tensor of `size`, each time after `seconds` of work."""
        tensor = torch.zeros(size)
        for _ in range(number):
            ends = time.perf_counter() + seconds
            while time.perf_counter() < ends:
                tensor.mul_(1.0)
            yield tensor
        return Receipt()


def measure_exchange(config: RunConfig, size: int, folder: Path, cores: float) -> Exchange:
    """What two roles that do nothing else take for a mean of `size` floats, for a payload of as many, and as company.

    Args:
        config: names the engine.
        size: of the parameter vector.
        folder: for what the engine logs.
        cores: that they share.
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
        chains = _measure_chains(engine, group, size)
    finally:
        engine.close()
    return Exchange(
        meeting=max(0.0, (many - few) / NUM_MEANS - WORK_SECONDS),
        payload=max(0.0, (several - one) / (NUM_PAYLOADS - 1)),
        crowding=crowding_of(chains, config, cores),
    )


def crowding_of(chains: Chains, config: RunConfig, cores: float) -> float:
    """The crowding with which two simulated chains take as long as the measured ones; at least 1.

    What one chain takes is met first: by a latency where that is more than its CPU seconds, otherwise by counting less
    of the role's, since some of its work goes on beside the coordinator's.

    Args:
        config: of any run.
        cores: that the roles and the coordinator share.
    """
    on_the_path = chains.alone - chains.coordinator_cpu
    seconds, latency = min(chains.role_cpu, on_the_path), max(0.0, on_the_path - chains.role_cpu) / 2

    def simulated(crowding: float) -> float:
        file = ClusterFile(
            cluster=Cluster(coordinator_seconds=chains.coordinator_cpu),
            network=Network(latency=latency),
            machine=(Machine(roles="*", cores=cores, crowding=crowding),),
            compute=(Compute(seconds=max(1e-6, seconds)),),
        )
        with PlannedCluster(file, []).on_disk() as path:
            on_sim = change_config(config, [("engine.name", "sim"), ("engine.cluster", path)])
            engine: Engine = load_plugin("engine", "sim").Engine(on_sim.engine, 0)
            group = [engine.spawn(f"probe-{rank}", Prober) for rank in range(2)]
            return _chained(engine, group, 1, 0.0)[0]

    if simulated(1.0) >= chains.both:
        return 1.0
    return 1.0 + bisect(lambda value: chains.both - simulated(1.0 + value), MAX_CROWDING)


def _measure_chains(engine: Engine, group: Sequence[RoleRef], size: int) -> Chains:
    """In turns, so that a machine that gets slower meanwhile does so for both."""
    _chained(engine, group, size, WORK_SECONDS)
    alone, both, role_cpu, coordinator_cpu = [], [], [], []
    for _ in range(NUM_LAPS):
        began = time.process_time()
        seconds, cpu = _chained(engine, group[:1], size, WORK_SECONDS)
        coordinator_cpu.append((time.process_time() - began) / NUM_LINKS)
        alone.append(seconds)
        role_cpu.append(cpu)
        both.append(_chained(engine, group, size, WORK_SECONDS)[0])
    return Chains(*map(statistics.median, (alone, both, role_cpu, coordinator_cpu)))


def _chained(engine: Engine, group: Sequence[RoleRef], size: int, seconds: float) -> tuple[float, float]:
    """Seconds from a call to its chain's next and the role's CPU seconds, of a chain of NUM_LINKS at each role."""
    began, cpu = engine.now(), []
    under_way = {engine.submit(role, "hand_on", size, seconds): 1 for role in group}
    while under_way:
        done = engine.wait()
        assert done is not None
        number = under_way.pop(done)
        cpu.append(engine.result(done).metrics["cpu"])
        if number < NUM_LINKS:
            under_way[engine.submit(done.role, "hand_on", size, seconds, done)] = number + 1
    return (engine.now() - began) / NUM_LINKS, statistics.median(cpu)


def _meet(engine: Engine, group: Sequence[RoleRef], number: int, size: int) -> float:
    began = time.perf_counter()
    _gather(engine, engine.all_reduce(group, "meet", [(number, size, WORK_SECONDS)] * len(group)))
    return time.perf_counter() - began


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
