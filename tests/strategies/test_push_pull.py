"""The push-pull loop with roles that only take notes: bounds, sets and backups on thousands of seeded schedules."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from qfleet.algos.dqn import Config as AlgoConfig
from qfleet.config import ReplayConfig
from qfleet.engines.inline import Config as EngineConfig
from qfleet.engines.inline import Engine
from qfleet.envs.config import EnvConfig
from qfleet.networks.torso import NetworkConfig
from qfleet.roles.blueprint import Blueprint
from qfleet.strategies import parameter_server, sync_groups
from qfleet.strategies.base import Control, Update
from qfleet.strategies.base import roster as roster_module
from qfleet.strategies.base import servers as servers_module
from qfleet.types import EnvSpec, Receipt, Reply

BATCH = 4
SPEC = EnvSpec("none", (2,), "float32", 2)
BLUEPRINT = Blueprint(
    env=EnvConfig(id="none"),
    env_factory=None,
    spec=SPEC,
    algo_name="dqn",
    algo=AlgoConfig(batch_size=BATCH),
    network=NetworkConfig(),
    replay=ReplayConfig(capacity=4000, min_transitions=4, samples_per_insert=4.0),
    seed=0,
)


class Notes:
    """What all stub roles of one run have written down."""

    def __init__(self) -> None:
        self.started: Counter[str] = Counter()
        self.applied: Counter[str] = Counter()
        self.leads: list[int] = []
        self.sets: list[list[str]] = []
        self.workers: list[str] = []


NOTES = Notes()


class StubWorker:
    def __init__(self, blueprint: Blueprint, name: str, *args: object) -> None:
        self.name = name
        NOTES.workers.append(name)

    def collect_with(self, *args: object) -> Receipt:
        return Receipt(num_env_steps=4, num_inserted=4)

    def gradient(self, *args: object) -> Reply:
        # How many clocks this worker is ahead of the slowest as it starts, by what the servers have applied.
        NOTES.leads.append(NOTES.started[self.name] - min(NOTES.applied[name] for name in NOTES.workers))
        NOTES.started[self.name] += 1
        return Reply(Receipt(num_samples=BATCH), self.name)


class StubServer:
    def __init__(self, *args: object) -> None:
        self.version = 0

    def publish(self) -> Reply:
        return Reply(Receipt(version=self.version, metrics={"target_version": 0.0}), self.version)

    def update(self, tickets: list[Any], scale: float, num_updates: int, *pushes: str) -> Reply:
        assert [ticket.worker for ticket in tickets] == list(pushes)
        NOTES.sets.append(list(pushes))
        NOTES.applied.update(pushes)
        self.version += 1
        return self.publish()


@pytest.fixture(autouse=True)
def stubs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roster_module, "GradientWorker", StubWorker)
    monkeypatch.setattr(servers_module, "ParameterServer", StubServer)


def play(strategy: Any, config: Any, seed: int, num_updates: int) -> Notes:
    """Run until the servers have made `num_updates` updates and return what the roles noted."""
    global NOTES
    NOTES = Notes()
    control = Control(checkpoint_folder="unused")
    events = strategy.run(Engine(EngineConfig(), seed), BLUEPRINT, config, control)
    for event in events:
        if isinstance(event, Update) and control.counters.num_updates >= num_updates:
            break
    events.close()
    return NOTES


def server_config(**values: Any) -> parameter_server.Config:
    return parameter_server.Config(**values)


@pytest.mark.parametrize("merge", ["arrival", "mean"])
@pytest.mark.parametrize("bound", [0, 1, 3])
def test_no_schedule_breaks_the_bound(bound: int, merge: str) -> None:
    config = server_config(wait="ssp", bound=bound, merge=merge, num_workers=5)
    most = 0
    for seed in range(400):
        notes = play(parameter_server, config, seed, 40 if merge == "arrival" else 8)
        assert max(notes.leads) <= bound, f"seed {seed}"
        most = max(most, *notes.leads)
    assert most == bound, "and it is used to the full"


def test_without_a_bound_workers_run_away() -> None:
    leads = [
        max(play(parameter_server, server_config(wait="async", num_workers=5), seed, 200).leads) for seed in range(5)
    ]
    assert min(leads) >= 4


def test_a_synchronous_set_holds_each_worker_once_in_order_of_rank() -> None:
    for seed in range(300):
        notes = play(parameter_server, server_config(num_workers=4), seed, 10)
        assert all(names == [f"worker-{rank}" for rank in range(4)] for names in notes.sets)
        assert len(notes.sets) == 10


def test_backups_make_sets_of_the_first_and_the_late_are_discarded() -> None:
    config = server_config(num_workers=3, backup_workers=2)
    control = Control(checkpoint_folder="unused")
    global NOTES
    NOTES = Notes()
    events = parameter_server.run(Engine(EngineConfig(), 3), BLUEPRINT, config, control)
    for _ in events:
        if control.counters.num_updates >= 400:
            break
    assert {len(names) for names in NOTES.sets} == {3}
    assert all(len(set(names)) == 3 for names in NOTES.sets)
    assert set(NOTES.applied) == {f"worker-{rank}" for rank in range(5)}, "each one is among the first some time"
    discarded = control.tallies["pushes_discarded"]
    assert discarded > 100
    # Every push was merged, discarded, or is under way or waiting.
    left = sum(NOTES.started.values()) - sum(NOTES.applied.values()) - discarded
    assert 0 <= left <= 5
    assert control.counters.num_samples == sum(NOTES.applied.values()) * BATCH


def test_groups_wait_inside_and_not_between() -> None:
    uneven = 0
    for seed in range(50):
        notes = play(sync_groups, sync_groups.Config(num_workers=6, num_groups=2), seed, 30)
        groups = [{"worker-0", "worker-2", "worker-4"}, {"worker-1", "worker-3", "worker-5"}]
        assert all(set(names) in groups and len(names) == 3 for names in notes.sets)
        uneven += notes.applied["worker-0"] != notes.applied["worker-1"]
    assert uneven > 10, "one group gets ahead of the other"


def test_arrivals_are_applied_one_by_one() -> None:
    notes = play(parameter_server, server_config(wait="async", num_workers=3), 0, 50)
    assert {len(names) for names in notes.sets} == {1}


@pytest.mark.parametrize("seed", range(3))
def test_the_seed_decides_the_schedule(seed: int) -> None:
    config = server_config(wait="async", num_workers=4)
    first, again = (play(parameter_server, config, seed, 60).sets for _ in range(2))
    assert first == again != play(parameter_server, config, seed + 99, 60).sets


def test_workers_join_and_leave_while_it_runs(tmp_path: Path) -> None:
    global NOTES
    NOTES = Notes()
    control = Control(checkpoint_folder=str(tmp_path))
    StubWorker.restore = lambda self, *args: Receipt(metrics={"num_restored": 0.0})  # type: ignore[attr-defined]
    events = parameter_server.run(Engine(EngineConfig(), 1), BLUEPRINT, server_config(num_workers=2), control)
    sizes: dict[int, set[int]] = {2: set(), 4: set(), 1: set()}
    for wanted in sizes:
        control.num_workers = wanted
        until = control.counters.num_updates + 30
        for _ in events:
            if control.counters.num_updates >= until:
                break
            if control.counters.num_updates > until - 10:
                sizes[wanted].add(len(NOTES.sets[-1]))
    assert sizes == {2: {2}, 4: {4}, 1: {1}}
    assert control.tallies["transitions_lost"] > 0, "those who left took their replay with them"
