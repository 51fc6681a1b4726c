"""Actors of a replay and of a learner: names, ranks, resuming, and what becomes of one whose place is gone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qfleet.engines.base import Future, RoleRef
from qfleet.engines.inline import Config as EngineConfig
from qfleet.engines.inline import Engine
from qfleet.errors import NoRoom, RoleDied
from qfleet.experiment import Experiment
from qfleet.strategies.base import Control, CrewChanged, RoleRestarted, Saved
from qfleet.strategies.base.actors import ActorGroup
from qfleet.strategies.base.config import FleetConfig
from qfleet.strategies.base.supervisor import Supervisor
from qfleet.types import Receipt, SavedFile

MakeExperiment = Callable[..., Experiment]


class Crew:
    """Three actors that only note how they are made, on a cluster with as much room as the test says."""

    def __init__(self, folder: Path, saved: Saved | None = None) -> None:
        self.engine, self.control = Engine(EngineConfig(), 0), Control(str(folder))
        self.room = 0
        self.engine.room_for = lambda placement: self.room  # type: ignore[method-assign]
        supervisor = Supervisor(self.engine, FleetConfig(name="test", num_workers=3), self.control)
        self.built: list[tuple[str, int, int]] = []
        self.loaded: list[tuple[str, list[SavedFile]]] = []
        self.joined: list[str] = []
        self.left: list[str] = []
        crew = self

        class Stub:
            def __init__(self, blueprint: object, name: str, rank: int, num_actors: int) -> None:
                self.name = name
                crew.built.append((name, rank, num_actors))

            def load(self, folder: str, tag: str, files: list[SavedFile]) -> Receipt:
                crew.loaded.append((f"{tag} {self.name}", files))
                return Receipt()

        self.actors = ActorGroup(
            supervisor,
            None,  # type: ignore[arg-type]
            Stub,
            lambda ref: self.joined.append(ref.name),
            lambda ref: self.left.append(ref.name),
        )
        self.actors.start(saved)

    def resize(self) -> list[tuple[int, str]]:
        return [(event.num_workers, event.why) for event in self.actors.resize() if isinstance(event, CrewChanged)]


@pytest.fixture
def no_blueprint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qfleet.strategies.base.actors.dataclasses.replace", lambda blueprint, **changes: blueprint)


@pytest.mark.usefixtures("no_blueprint")
def test_a_joiner_takes_the_rank_that_is_free(tmp_path: Path) -> None:
    """Epsilon goes by rank: with two of one rank the others' exploration would be missing."""
    crew = Crew(tmp_path)
    assert crew.built == [("actor-0", 0, 3), ("actor-1", 1, 3), ("actor-2", 2, 3)]
    assert crew.actors.dismiss_without_room(RoleRef("actor-1")).why == "actor-1 left: there is no room for it"
    assert crew.resize() == [], "there is no room"
    crew.room = 9
    crew.engine.now = lambda: 1e6  # type: ignore[method-assign]
    assert crew.resize() == [(3, "actor-3 joined")]
    assert crew.built[3:] == [("actor-3", 1, 3)]
    assert crew.actors.supervisor.joiners == {"actor-3"}, "it may find no room; those of the beginning must"
    crew.control.num_workers = 1
    assert crew.resize() == [(2, "actor-3 left"), (1, "actor-2 left")], "the last ones first"
    assert (crew.joined[-1], crew.left) == ("actor-3", ["actor-1", "actor-3", "actor-2"])


@pytest.mark.usefixtures("no_blueprint")
def test_actors_of_a_checkpoint_go_on_under_their_names(tmp_path: Path) -> None:
    first = Crew(tmp_path)
    first.actors.dismiss(RoleRef("actor-1"))
    state = first.actors.state_dict()
    assert state == {"actors": ["actor-0", "actor-2"], "num_ever": 3}
    files = {name: [SavedFile(f"{name}/x", 1, "99")] for name in ("actor-0", "actor-1", "actor-2")}
    again = Crew(tmp_path, Saved("00007", files, state))
    assert again.built == [("actor-0", 0, 3), ("actor-2", 1, 3), ("actor-3", 2, 3)]
    assert again.loaded == [("00007 actor-0", files["actor-0"]), ("00007 actor-2", files["actor-2"])]


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


FLEETS = {
    "distributed_replay": {"strategy": "distributed_replay"},
    "actor_learner": {"algo": "vtrace", "strategy": "actor_learner"},
}


@pytest.mark.parametrize("strategy", FLEETS)
@pytest.mark.parametrize("is_pausing", [False, True], ids=["acting", "saving"])
def test_an_actor_without_a_place_is_let_go_and_another_joins(
    experiment: MakeExperiment, room: list[int], strategy: str, is_pausing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = {**FLEETS[strategy], "strategy.num_workers": 3, "strategy.max_restarts": 0, "stop.max_env_steps": 1500}
    run = experiment("qfleet/Identity-v0", overrides | {"checkpoint.every_env_steps": 400})
    events: list[Any] = []
    submit = Engine.submit

    def kill_in_save(self: Engine, role: RoleRef, method: str, *args: object, **where: Any) -> Future:
        if is_pausing and method == "save" and role.name == "actor-1":
            self.kill(role)
        return submit(self, role, method, *args, **where)

    monkeypatch.setattr(Engine, "submit", kill_in_save)
    for event in run.stream():
        events.append(event)
        assert run.session is not None
        if len(events) == 30 and not is_pausing:
            run.session.engine.kill(RoleRef("actor-1"))
        if run.session.control.counters.num_env_steps > 900:
            room[0] = 5
    crew = [(event.num_workers, event.why) for event in events if isinstance(event, CrewChanged)]
    assert crew == [(2, "actor-1 left: there is no room for it"), (3, "actor-3 joined")]
    assert not [event for event in events if isinstance(event, RoleRestarted)]
    assert run.session is not None
    assert run.session.control.tallies["workers_without_room"] == 1
    assert run.session.stop_reason == "max_env_steps"


@pytest.fixture
def no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """actor-2 waits for a place in vain."""
    truth = Engine.result

    def result(self: Engine, future: Future) -> Receipt:
        if future.role.name == "actor-2":
            raise NoRoom("actor-2", 0, "role actor-2 found no place in 7 s")
        return truth(self, future)

    monkeypatch.setattr(Engine, "result", result)


@pytest.mark.usefixtures("no_place")
@pytest.mark.parametrize("strategy", FLEETS)
def test_a_joiner_that_finds_no_room_spends_no_restarts(experiment: MakeExperiment, strategy: str) -> None:
    changes = {**FLEETS[strategy], "strategy.max_restarts": 0, "strategy.num_workers": 2}
    run, crew = experiment("qfleet/Identity-v0", changes), []
    for number, event in enumerate(run.stream()):
        assert run.session is not None
        if number == 20:
            run.session.control.num_workers = 3
        if isinstance(event, CrewChanged):
            crew.append(event.why)
    assert crew[:2] == ["actor-2 joined", "actor-2 left: there is no room for it"]
    assert run.session is not None
    assert run.session.stop_reason == "max_env_steps"


@pytest.mark.usefixtures("no_place")
@pytest.mark.parametrize("strategy", FLEETS)
def test_those_that_a_run_begins_with_must_find_room(experiment: MakeExperiment, strategy: str) -> None:
    run = experiment("qfleet/Identity-v0", {**FLEETS[strategy], "strategy.num_workers": 3})
    with pytest.raises(NoRoom, match=r"^role actor-2 found no place in 7 s$"):
        run.run()
