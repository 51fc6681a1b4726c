"""What trials have found, made small: each once ran for ever, or lost something in silence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qfleet.engines.base import RoleRef
from qfleet.strategies.base import Gradient, SnapshotPublished, Update


def test_an_idle_learners_lost_machine_is_noticed(fleet: Callable[..., Any]) -> None:
    # Actors could not pull, so nothing was inserted, so no learner was called, so nobody learned that it was dead.
    num_idle = 0
    for moment in range(20, 80, 3):
        one = fleet(
            {
                "env.id": "qfleet/Identity-v0",
                "engine": "sim",
                "strategy": "distributed_replay",
                "strategy.num_learners": 2,
                "seed": moment,
            }
        )
        for _ in range(moment):
            next(one.events)
        num_idle += not one.engine.machines.homes["learner-0"].open
        one.engine.machines.lose("learner-0")
        answers = 0
        wait = one.engine.wait

        def counted(*args: Any, wait: Any = wait, **kwargs: Any) -> Any:
            nonlocal answers
            answers += 1
            if answers > 5000:
                pytest.fail("nobody gets any further")
            return wait(*args, **kwargs)

        one.engine.wait = counted
        before = one.control.counters.num_updates
        one.until(lambda counters, before=before: counters.num_updates >= before + 5)
        assert one.engine._roles["learner-0"].incarnation == 1
        one.engine.close()
    assert num_idle > 3


def test_servers_leave_out_a_push_that_one_of_them_cannot_get(fleet: Callable[..., Any], tmp_path: Path) -> None:
    # server-0 had staged it when its maker's machine was lost, and server-1, in a new life, had not: one slice of the
    # parameters was a version ahead of the other.
    cluster = tmp_path / "cluster.toml"
    cluster.write_text("[cluster]\nstartup_seconds = 0.01\n")
    num_lost = 0
    for moment in range(3, 40, 3):
        settings: dict[str, Any] = {"strategy.wait": "async", "strategy.num_servers": 2, "strategy.num_workers": 2}
        settings |= {"strategy": "parameter_server", "engine": "sim", "engine.cluster": str(cluster)}
        one = fleet({**settings, "env.id": "qfleet/Identity-v0", "seed": 3})
        one.until(lambda counters: counters.num_updates >= 3)
        for _ in range(moment):
            next(one.events)
        event = next(event for event in one.events if isinstance(event, Gradient))
        one.engine.kill(RoleRef("server-1"))
        server = one.engine._roles["server-0"].built
        before = dict(server.acknowledged)
        wait, has_struck = one.engine.wait, False

        def striking(*args: Any, **kwargs: Any) -> Any:
            nonlocal has_struck
            if not has_struck and server.acknowledged != before:  # noqa: B023
                has_struck = True
                one.engine.machines.lose(event.role)  # noqa: B023
            return wait(*args, **kwargs)  # noqa: B023

        one.engine.wait = striking
        for _ in range(60):
            if isinstance(next(one.events), Update):
                servers = [one.engine._roles[name].built for name in ("server-0", "server-1")]
                assert len({server.version for server in servers if server is not None}) == 1
        num_lost += one.control.tallies.get("values_lost", 0)
        one.engine.close()
    assert num_lost > 0


def test_a_snapshot_waits_for_a_group_to_take_it_of(fleet: Callable[..., Any]) -> None:
    # The only rank left to ask died while a joiner was to be made equal to it; the snapshot was then asked of nobody.
    one = fleet(
        {
            "env.id": "qfleet/Identity-v0",
            "engine": "sim",
            "strategy": "all_reduce",
            "strategy.num_workers": 2,
            "strategy.max_restarts": 100,
            "strategy.max_restarts_per_minute": 100,
        }
    )
    one.until(lambda counters: counters.num_updates >= 3)
    one.engine.kill(RoleRef("worker-1"))
    submit, num_killed = one.engine.submit, 0

    def killing(role: RoleRef, method: str, *args: Any, **kwargs: Any) -> Any:
        nonlocal num_killed
        future = submit(role, method, *args, **kwargs)
        if method == "learner_state" and not num_killed:
            num_killed += 1
            one.control.snapshot_wanted = True
            one.engine.kill(role)
        return future

    one.engine.submit = killing
    event = next(event for event in one.events if isinstance(event, SnapshotPublished))
    assert one.engine.result(event.future).version == event.version
    assert num_killed == 1
