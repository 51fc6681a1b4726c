"""Simulated roles that share cores, by seconds worked out by hand: calls, rings, the coordinator, faults, payloads."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch

from qfleet.engines.base import RoleRef
from qfleet.engines.sim import Config, Engine
from qfleet.types import Receipt, Reply

MakeEngine = Callable[..., Engine]
ONE_CORE = [{"roles": "worker-*", "cores": 1}]


class Probe:
    """Its calls take what the cost model says."""

    def work(self, *values: object) -> Receipt:
        return Receipt()

    def make(self, num_bytes: int) -> Reply:
        return Reply(Receipt(), np.zeros(num_bytes, np.uint8))

    def average(self, num_rounds: int) -> Iterator[torch.Tensor]:
        for _ in range(num_rounds):
            yield torch.ones(100)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[MakeEngine]:
    """cluster(machine=[...]): an engine; calls take a second of a core, messages nothing, unless told otherwise."""
    made: list[Engine] = []

    def make(log: Path | None = None, **tables: Any) -> Engine:
        base = {"network": {"latency": 0.0, "bandwidth": 1e30}, "compute": [{"seconds": 1.0}]}
        path = tmp_path / f"cluster-{len(made)}.toml"
        path.write_text(tomli_w.dumps({**base, **tables}))
        made.append(Engine(Config(cluster=str(path), event_log=None if log is None else str(log)), 0))
        return made[-1]

    yield make
    for one in made:
        one.close()


def arrivals(engine: Engine, roles: list[RoleRef]) -> dict[str, float]:
    """When each one's call of `work`, all submitted now, is answered."""
    for role in roles:
        engine.submit(role, "work")
    return _arrivals(engine, len(roles))


def _arrivals(engine: Engine, number: int) -> dict[str, float]:
    moments = {}
    for _ in range(number):
        future = engine.wait()
        assert future is not None
        moments[future.role.name] = engine.now()
    return moments


def spawn(engine: Engine, *names: str) -> list[RoleRef]:
    return [engine.spawn(name, Probe) for name in names]


def test_two_calls_on_one_core_take_two_seconds_and_one_elsewhere_its_own(cluster: MakeEngine) -> None:
    engine = cluster(machine=ONE_CORE)
    roles = spawn(engine, "worker-0", "worker-1", "server-0")
    assert arrivals(engine, roles) == {"server-0": 1.0, "worker-0": 2.0, "worker-1": 2.0}


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_who_is_gone_leaves_the_core_to_the_others(cluster: MakeEngine, end: str) -> None:
    engine = cluster(machine=ONE_CORE)
    one, other = spawn(engine, "worker-0", "worker-1")
    for role in (one, other):
        engine.submit(role, "work")
    assert engine.wait(timeout=1.0) is None
    getattr(engine, end)(one)
    moments = _arrivals(engine, 2 if end == "kill" else 1)
    assert moments["worker-1"] == 1.5, "half of the core for 1 s, all of it for the other half"


def test_a_frozen_role_ends_so_much_later_than_its_share_lets_it(cluster: MakeEngine) -> None:
    fault = [{"kind": "freeze", "role": "worker-0", "at": 0.5, "seconds": 3.0}]
    engine = cluster(machine=ONE_CORE, fault=fault)
    moments = arrivals(engine, spawn(engine, "worker-0", "worker-1"))
    assert moments == {"worker-1": 2.0, "worker-0": 2.0 + 3.0}


def test_members_of_a_group_make_their_steps_on_the_cores_that_they_share(cluster: MakeEngine) -> None:
    # Two steps of 1 s for each of two members on one core: 2 s a step. A third, elsewhere, waits for them.
    engine = cluster(machine=ONE_CORE)
    group = spawn(engine, "worker-0", "worker-1", "server-0")
    futures = engine.all_reduce(group, "average", [(2,)] * 3)
    assert set(_arrivals(engine, len(futures)).values()) == {4.0}
    assert {name: one.busy_seconds for name, one in engine.usage().items()} == dict.fromkeys(
        ["worker-0", "worker-1", "server-0"], 2.0
    )


def test_the_coordinator_shares_too(cluster: MakeEngine) -> None:
    # worker-0 is done at 1.0, as server-0 has a core of its own; then the coordinator's 0.5 s beside server-1's.
    compute = [{"role": "server-1", "seconds": 2.0}, {"seconds": 1.0}]
    machine = [{"roles": "server-1", "cores": 1}, {"roles": "coordinator", "cores": 1}]
    alone = cluster(machine=machine, compute=compute, cluster={"coordinator_seconds": 0.5})
    assert arrivals(alone, spawn(alone, "worker-0", "server-1")) == {"worker-0": 1.5, "server-1": 2.5}
    shared = cluster(machine=[{"roles": "*[!0]", "cores": 1}], compute=compute, cluster={"coordinator_seconds": 0.5})
    # server-1 has 1 s left at 1.0; the coordinator gets its 0.5 s in 1 s, until 2.0; server-1 then has 0.5 s left.
    assert arrivals(shared, spawn(shared, "worker-0", "server-1")) == {"worker-0": 2.0, "server-1": 3.0}


@pytest.mark.parametrize("machine", [[], [{"roles": "worker-*", "cores": 2}]])
def test_what_happens_while_the_coordinator_thinks_happens_at_its_own_time(
    cluster: MakeEngine, tmp_path: Path, machine: list[dict[str, Any]]
) -> None:
    log = tmp_path / "events.jsonl"
    compute = [{"role": "worker-0", "seconds": 1.0}, {"seconds": 1.25}]
    engine = cluster(log, machine=machine, compute=compute, cluster={"coordinator_seconds": 0.5})
    assert arrivals(engine, spawn(engine, "worker-0", "worker-1")) == {"worker-0": 1.5, "worker-1": 2.0}
    engine.close()
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(one["role"], one["time"]) for one in events if one["event"] == "end"] == [
        ("worker-0", 1.0),
        ("worker-1", 1.25),
    ]


def test_payloads_cost_their_taker_seconds_and_come_in_through_its_port(cluster: MakeEngine) -> None:
    compute = [{"method": "work", "seconds": 1.0, "payload_seconds": 0.25}, {"seconds": 0.0}]
    engine = cluster(compute=compute, speed={"server-0": 0.5})
    maker, server = spawn(engine, "worker-0", "server-0")
    made = [engine.submit(maker, "make", size) for size in (40, 2)]
    _arrivals(engine, 2)
    engine.submit(server, "work", "no payload", *made)
    assert _arrivals(engine, 1) == {"server-0": (1.0 + 2 * 0.25) / 0.5}
    usage = engine.usage()
    assert (usage["worker-0"].num_bytes_out, usage["worker-0"].num_bytes_in) == (42, 0)
    assert (usage["server-0"].num_bytes_out, usage["server-0"].num_bytes_in) == (0, 42)
