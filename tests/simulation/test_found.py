"""What trials have found, made small: each once ran for ever, or lost something in silence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


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
