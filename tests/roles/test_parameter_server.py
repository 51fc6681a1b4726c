"""A parameter server takes each push once: delivered twice, refused and counted, or after a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from qfleet.algos import dqn
from qfleet.config import ReplayConfig
from qfleet.engines.base import RoleRef
from qfleet.envs.config import EnvConfig
from qfleet.networks.optimizer import OptimizerConfig
from qfleet.networks.torso import NetworkConfig
from qfleet.roles.blueprint import Blueprint
from qfleet.roles.parameter_server import ParameterServer
from qfleet.roles.push import Push
from qfleet.types import EnvSpec, Ticket


@pytest.fixture
def server() -> ParameterServer:
    """Plain SGD with a step size of 0.5."""
    return ParameterServer(
        Blueprint(
            env=EnvConfig(id="none"),
            env_factory=None,
            spec=EnvSpec("none", (2,), "float32", 2),
            algo_name="dqn",
            algo=dqn.Config(learning_rate=0.5, optimizer=OptimizerConfig(name="sgd", max_grad_norm=None)),
            network=NetworkConfig(hidden=(3,)),
            replay=ReplayConfig(),
            seed=0,
        ),
        "server-0",
    )


def push(server: ParameterServer, value: float) -> Push:
    return Push(len(server.online), np.full(len(server.online), value, np.float32))


def test_a_set_that_is_staged_twice_is_applied_once(server: ParameterServer) -> None:
    before = server.online.clone()
    tickets = [Ticket("worker-0", 0, 0, 0), Ticket("worker-1", 0, 0, 0)]
    pushes = push(server, 2.0), push(server, 4.0)
    first, again = server.stage(tickets, *pushes), server.stage(tickets, *pushes)
    assert first == again
    assert again.metrics["num_refused"] == 0.0
    server.commit(first.metrics["norm"], 1.0, 1)
    assert server.version == 1
    assert (before - server.online).numpy() == pytest.approx(0.5 * 3.0, rel=1e-5), "the mean, once"
    assert server.stage(tickets, *pushes).metrics["num_refused"] == 2.0, "once they are applied they are old"
    server.commit(99.0, 1.0, 1)
    assert server.version == 1


def test_a_smaller_set_takes_the_place_of_one_that_is_staged(server: ParameterServer) -> None:
    before = server.online.clone()
    tickets = [Ticket("worker-0", 0, 0, 0), Ticket("worker-1", 0, 0, 0)]
    pushes = push(server, 2.0), push(server, 4.0)
    server.stage(tickets, *pushes)
    again = server.stage(tickets[1:], pushes[1])
    assert again.metrics["num_refused"] == 0.0, "nothing of the first set was applied"
    server.commit(again.metrics["norm"], 1.0, 1)
    assert (before - server.online).numpy() == pytest.approx(0.5 * 4.0, rel=1e-5)
    assert server.acknowledged == {"worker-1": (0, 0)}
    server.stage([Ticket("worker-0", 0, 1, 1)], push(server, 1.0))
    server.stage([])
    server.commit(0.0, 1.0, 1)
    assert server.version == 1, "nothing is left of the set"
    assert server.acknowledged == {"worker-1": (0, 0)}


def test_an_update_says_how_many_pushes_it_has_refused(server: ParameterServer) -> None:
    old, new = Ticket("worker-0", 0, 0, 0), Ticket("worker-0", 0, 1, 0)
    assert server.update([old], 1.0, 1, push(server, 1.0)).receipt.metrics["num_refused"] == 0.0
    assert server.update([old], 1.0, 1, push(server, 1.0)).receipt.metrics["num_refused"] == 1.0
    assert server.version == 1
    assert server.update([old, new], 1.0, 1, *[push(server, 1.0)] * 2).receipt.metrics["num_refused"] == 1.0
    assert server.version == 2


@pytest.mark.parametrize("num_servers", [1, 2])
def test_a_worker_that_had_been_restarted_is_heard_after_a_resume(fleet: Callable[..., Any], num_servers: int) -> None:
    # Lives are counted from 0 again in a new process, while the servers knew of life 1.
    changes = {
        "env.id": "qfleet/Identity-v0",
        "strategy": "parameter_server",
        "strategy.num_workers": 2,
        "strategy.num_servers": num_servers,
    }
    first = fleet(changes)
    first.until(lambda counters: counters.num_updates >= 5)
    first.engine.kill(RoleRef("worker-1"))
    first.until(lambda counters: counters.num_updates >= 15)
    assert first.engine.incarnation(RoleRef("worker-1")) == 1
    saved = first.drain("00000")
    resumed = fleet(changes, saved)
    before = saved[1].num_updates
    resumed.until(lambda counters: counters.num_updates >= before + 10)
    assert "pushes_refused" not in resumed.control.tallies
    assert resumed.role("server-0").version >= before + 10, "and every update that is counted was made"
    assert resumed.role("server-0").acknowledged.keys() == {"worker-0", "worker-1"}
