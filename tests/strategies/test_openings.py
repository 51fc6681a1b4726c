"""Workers whose place went with their machine: let go, missed, and hired again once there is room."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from qfleet.engines.base import Future, Placement, RoleRef
from qfleet.engines.inline import Engine
from qfleet.errors import NoRoom, RoleDied
from qfleet.experiment import Experiment
from qfleet.strategies.base import CrewChanged, RoleRestarted
from qfleet.strategies.base.openings import LOOK_SECONDS, Openings
from qfleet.types import Receipt

MakeExperiment = Callable[..., Experiment]


class Clocked:
    """What Openings sees of an engine."""

    def __init__(self) -> None:
        self.seconds, self.room, self.num_asked = 100.0, 0, 0

    def now(self) -> float:
        return self.seconds

    def room_for(self, placement: Placement) -> int:
        self.num_asked += 1
        return self.room


def test_room_is_looked_for_every_few_seconds_while_somebody_is_missing() -> None:
    engine = Clocked()
    openings = Openings(engine, Placement())  # type: ignore[arg-type]
    assert [openings.num_to_hire(0) for _ in range(3)] == [0, 0, 0]
    assert engine.num_asked == 0, "nobody is missing"
    assert [openings.num_to_hire(2) for _ in range(3)] == [0, 0, 0]
    assert engine.num_asked == 1
    engine.room = 1
    engine.seconds += LOOK_SECONDS - 0.01
    assert openings.num_to_hire(2) == 0
    engine.seconds += 0.01
    assert openings.num_to_hire(2) == 1, "there is room for one of the two"
    engine.room = 99
    assert openings.num_to_hire(1) == 0
    engine.seconds += LOOK_SECONDS
    assert openings.num_to_hire(1) == 1, "no more than are missing"
    openings.wait()
    assert openings.num_to_hire(1) == 0, "what the cluster says may be of before"


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Room left on a cluster, where deaths are those of machines."""
    left = [0]
    truth = Engine.result

    def result(self: Engine, future: Future) -> Receipt:
        try:
            return truth(self, future)
        except RoleDied as error:
            raise RoleDied(error.role, error.incarnation, "node lost") from error

    monkeypatch.setattr(Engine, "result", result)
    monkeypatch.setattr(Engine, "room_for", lambda self, placement: left[0])
    return left


@pytest.mark.parametrize("wait", ["sync", "async", "all_reduce"])
def test_a_worker_without_a_place_is_let_go_and_another_joins(
    experiment: MakeExperiment, room: list[int], wait: str
) -> None:
    changes: dict[str, Any] = {"strategy": wait} if wait == "all_reduce" else {"strategy.wait": wait}
    overrides = {"strategy": "parameter_server", "strategy.num_workers": 3, "stop.max_env_steps": 1200, **changes}
    run = experiment("qfleet/Identity-v0", overrides)
    crew, restarts = [], []
    for told, event in enumerate(run.stream()):
        assert run.session is not None
        if told == 30:
            run.session.engine.kill(RoleRef("worker-1"))
        if told == 90:
            room[0] = 5
        if isinstance(event, CrewChanged):
            crew.append((event.num_workers, event.why.partition(":")[0], told < 90))
        if isinstance(event, RoleRestarted):
            restarts.append(event.role)
    assert crew == [(2, "worker-1 left", True), (3, "worker-3 joined", False)]
    assert restarts == []
    assert run.session is not None
    assert run.session.control.tallies["workers_without_room"] == 1
    assert run.session.stop_reason == "max_env_steps"


def test_with_room_left_a_lost_worker_lives_again(experiment: MakeExperiment, room: list[int]) -> None:
    room[0] = 1
    run = experiment("qfleet/Identity-v0", {"strategy": "parameter_server", "strategy.num_workers": 3})
    restarts = []
    for number, event in enumerate(run.stream()):
        assert not isinstance(event, CrewChanged)
        if number == 30:
            assert run.session is not None
            run.session.engine.kill(RoleRef("worker-1"))
        if isinstance(event, RoleRestarted):
            restarts.append((event.role, event.cause))
    assert restarts == [("worker-1", "node lost")]


def test_the_last_worker_is_not_let_go(experiment: MakeExperiment, room: list[int]) -> None:
    run = experiment("qfleet/Identity-v0", {"strategy": "parameter_server", "strategy.num_workers": 1})
    restarts = []
    for number, event in enumerate(run.stream()):
        assert not isinstance(event, CrewChanged)
        if number == 30:
            assert run.session is not None
            run.session.engine.kill(RoleRef("worker-0"))
        if isinstance(event, RoleRestarted):
            restarts.append(event.role)
    assert restarts == ["worker-0"]


def test_those_that_a_run_begins_with_must_find_room(
    experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = Engine.result

    def result(self: Engine, future: Future) -> Receipt:
        if future.role.name == "worker-2":
            raise NoRoom("worker-2", 0, "role worker-2 found no place in 7 s")
        return truth(self, future)

    monkeypatch.setattr(Engine, "result", result)
    run = experiment("qfleet/Identity-v0", {"strategy": "parameter_server", "strategy.num_workers": 3})
    with pytest.raises(NoRoom, match=r"^role worker-2 found no place in 7 s$"):
        run.run()
