"""Federated rounds with roles that only take notes: draws, late clients and counts on hundreds of seeded schedules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from qfleet.algos.dqn import Config as AlgoConfig
from qfleet.config import ReplayConfig
from qfleet.engines.base import Future, RoleRef
from qfleet.engines.inline import Config as EngineConfig
from qfleet.engines.inline import Engine
from qfleet.envs.config import EnvConfig
from qfleet.errors import ValueLost
from qfleet.networks.torso import NetworkConfig
from qfleet.roles.blueprint import Blueprint
from qfleet.strategies import federated
from qfleet.strategies.base import Control, CrewChanged, Event, RoleRestarted, Rollout, Update
from qfleet.types import EnvSpec, Progress, Receipt, Reply

BATCH, STEPS = 4, 3
BLUEPRINT = Blueprint(
    env=EnvConfig(id="none"),
    env_factory=None,
    spec=EnvSpec("none", (2,), "float32", 2),
    algo_name="dqn",
    algo=AlgoConfig(batch_size=BATCH),
    network=NetworkConfig(),
    replay=ReplayConfig(capacity=4000, min_transitions=4, samples_per_insert=1.0),
    seed=0,
)


class Notes:
    """What all stub roles of one run have written down."""

    def __init__(self) -> None:
        self.started: Counter[str] = Counter()
        self.sets: list[list[tuple[str, int]]] = []  # of each aggregation: who, and from which version
        self.versions: list[int] = []  # the version that each aggregation began at
        self.revived: list[tuple[str, tuple[int, ...]]] = []


NOTES = Notes()


class StubClient:
    def __init__(self, blueprint: Blueprint, name: str, *args: object) -> None:
        self.name = name

    def train_round(
        self, progress: Progress, num_inserted: int, num_samples: int, num_updates: int, steps: int, *published: int
    ) -> Reply:
        NOTES.started[self.name] += 1
        assert num_inserted == num_samples == (NOTES.started[self.name] - 1) * STEPS * BATCH
        done = Receipt(
            version=published[0],
            num_env_steps=STEPS * BATCH,
            num_inserted=STEPS * BATCH,
            num_updates=num_updates,
            num_samples=num_updates * BATCH,
        )
        return Reply(done, (self.name, published[0]))

    def revive(self, folder: str, tag: str, files: list[Any], *life: int) -> Receipt:
        NOTES.revived.append((self.name, life))
        return Receipt()


class StubAggregator:
    def __init__(self, *args: object) -> None:
        self.version = 0

    def publish(self) -> Reply:
        return Reply(Receipt(version=self.version, metrics={"target_version": float(self.version)}), self.version)

    def aggregate(self, num_updates: int, *updates: tuple[str, int]) -> Reply:
        NOTES.sets.append(list(updates))
        NOTES.versions.append(self.version)
        self.version += num_updates
        reply = self.publish()
        reply.receipt.metrics |= {"num_aggregated": float(len(updates)), "num_refused": 0.0}
        return reply

    def restore(self, folder: str, files: list[Any], newest: int, target: int) -> Reply:
        self.version = newest
        return self.publish()


@pytest.fixture(autouse=True)
def stubs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qfleet.strategies.base.clients.FederatedClient", StubClient)
    monkeypatch.setattr("qfleet.strategies.base.rounds.Aggregator", StubAggregator)


class Game:
    """One run of stubs: `play` goes on until so many rounds are aggregated."""

    def __init__(self, seed: int, **values: Any) -> None:
        global NOTES
        NOTES = self.notes = Notes()
        self.config = federated.Config(local_steps=STEPS, **values)
        self.control = Control(checkpoint_folder="unused")
        self.engine = Engine(EngineConfig(), seed)
        self.events: Iterator[Event] = federated.run(self.engine, BLUEPRINT, self.config, self.control)

    def play(self, num_rounds: int) -> list[Event]:
        seen: list[Event] = []
        for event in self.events:
            seen.append(event)
            if isinstance(event, Update) and event.role == "aggregator" and len(self.notes.sets) >= num_rounds:
                break
        return seen

    def names(self) -> list[list[str]]:
        return [[name for name, _ in updates] for updates in self.notes.sets]

    def check_counts(self) -> None:
        """Whatever was done is counted: aggregated, late, and still under way."""
        counters, notes = self.control.counters, self.notes
        answered = counters.num_samples // (STEPS * BATCH)
        assert counters.num_updates == STEPS * len(notes.sets)
        assert counters.num_env_steps == counters.num_inserted == counters.num_samples
        merged, late = sum(map(len, notes.sets)), self.control.tallies.get("updates_late", 0)
        assert answered == merged + late == sum(notes.started.values())
        for begun, updates in zip(notes.versions, notes.sets, strict=True):
            assert {version for _, version in updates} == {begun}, "no update of a former round is merged"


def test_all_take_part_in_order_of_rank() -> None:
    for seed in range(100):
        game = Game(seed, num_workers=4)
        game.play(6)
        assert game.names() == [[f"worker-{rank}" for rank in range(4)]] * 6
        game.check_counts()
        assert game.control.tallies["rounds"] == 6


def test_a_fraction_is_drawn_anew_each_round() -> None:
    drawn: Counter[str] = Counter()
    orders = set()
    for seed in range(60):
        game = Game(seed, num_workers=6, fraction=0.5)
        game.play(5)
        assert all(len(names) == len(set(names)) == 3 and names == sorted(names) for names in game.names())
        drawn.update(name for names in game.names() for name in names)
        orders.add(str(game.names()))
        game.check_counts()
    assert len(orders) == 1, "the draw is the coordinator's own, whatever the engine's order"
    game = Game(0, num_workers=6, fraction=0.5)
    game.play(100)
    counts = Counter(name for names in game.names() for name in names)
    assert len(counts) == 6
    assert min(counts.values()) > 30  # 50 expected of 100, standard deviation 5


def test_a_late_client_stalls_nobody_and_may_take_part_again() -> None:
    late, sizes = 0, Counter[int]()
    for seed in range(300):
        game = Game(seed, num_workers=5, round_timeout=3.0, min_clients=2)
        game.play(8)
        game.check_counts()
        assert all(len(names) == len(set(names)) and names == sorted(names) for names in game.names())
        sizes.update(len(names) for names in game.names())
        late += game.control.tallies.get("updates_late", 0)
    assert late > 500
    assert min(sizes) == 2, "enough is enough once the time is up"
    game = Game(1, num_workers=5, round_timeout=3.0, min_clients=2)
    game.play(60)
    assert min(Counter(name for names in game.names() for name in names).values()) > 15


def test_no_round_ends_with_too_few_however_long_it_takes() -> None:
    for seed in range(50):
        game = Game(seed, num_workers=5, round_timeout=0.5, min_clients=4)
        game.play(8)
        assert all(len(names) >= 4 for names in game.names())
        game.check_counts()


def test_krum_waits_for_as_many_as_it_needs() -> None:
    game = Game(0, num_workers=6, aggregator="krum", num_byzantine=1, round_timeout=0.5)
    game.play(10)
    assert {len(names) for names in game.names()} == {5}


@pytest.mark.parametrize("victim", ["worker-1", "aggregator"])
def test_a_role_that_dies_gets_a_new_life_and_the_rounds_go_on(victim: str) -> None:
    restarts = num_short = 0
    for seed in range(100):
        game = Game(seed, num_workers=3)
        game.play(2)
        next(game.events)  # a round is under way
        game.engine.kill(RoleRef(victim))
        events = game.play(6)
        restarts += sum(isinstance(event, RoleRestarted) for event in events)
        assert game.control.tallies["restarts.killed"] == 1
        sizes = [len(names) for names in game.names()]
        assert min(sizes) >= 2
        num_short += sum(size < 3 for size in sizes)
        assert game.notes.versions == [STEPS * number for number in range(len(sizes))], "no round is lost or doubled"
        if victim != "aggregator":
            assert game.notes.revived[0][0] == victim
    assert restarts == 100
    # The round that it died in, and those that its new life came too late for: one or two.
    assert num_short == 0 if victim == "aggregator" else 50 < num_short < 200


class Forgetful(Engine):
    """Loses the value of one client in the first aggregation of all."""

    lost = False

    def result(self, future: Future) -> Receipt:
        if future.method == "aggregate" and not self.lost:
            self.lost = True
            NOTES.sets.pop()  # it never happened
            NOTES.versions.pop()
            raise ValueLost("worker-1")
        return super().result(future)


def test_an_update_whose_value_is_lost_is_done_without() -> None:
    for needed, merged in ((1, ["worker-0", "worker-2"]), (3, ["worker-0", "worker-1", "worker-2"])):
        game = Game(0, num_workers=3, min_clients=needed)
        game.engine.__class__ = Forgetful
        game.play(2)
        assert game.names() == [merged, ["worker-0", "worker-1", "worker-2"]]
        assert game.control.tallies["values_lost"] == 1


def test_where_too_few_are_left_another_is_invited() -> None:
    game = Game(3, num_workers=5, fraction=0.4, min_clients=2)
    game.play(3)
    first = next(game.events)
    assert isinstance(first, Rollout)
    for name in {f"worker-{rank}" for rank in range(5)} - {first.role}:  # those that wait and those that are free
        game.engine.kill(RoleRef(name))
    game.play(8)
    assert {len(names) for names in game.names()} == {2}
    assert first.role in game.names()[3], "what was in already is not thrown away"
    assert game.control.tallies["restarts.killed"] >= 2


def test_clients_join_and_leave_between_rounds_and_keep_their_names() -> None:
    game = Game(0, num_workers=3)
    game.play(2)
    game.control.num_workers = 5
    joined = [event for event in game.play(4) if isinstance(event, CrewChanged)]
    assert [event.why for event in joined] == ["worker-3 joined", "worker-4 joined"]
    game.control.num_workers = 2
    left = [event for event in game.play(8) if isinstance(event, CrewChanged)]
    assert [event.why for event in left] == ["worker-4 left", "worker-3 left", "worker-2 left"]
    assert game.names()[-1] == ["worker-0", "worker-1"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_clients": 3, "fraction": 0.5}, "min_clients 3 of the 2 clients of a round"),
        ({"aggregator": "krum"}, "num_byzantine 1 takes at least 5 of the 4 clients"),
        ({"aggregator": "trimmed_mean", "trim": 2}, "trim 2 takes at least 5 of the 4"),
        ({"aggregator": "multi_krum", "num_workers": 5, "num_selected": 5}, "num_selected 5 .* at most 4"),
        ({"mu": 0.5}, "mu = 0.5 is not read with aggregator 'fedavg'; it goes with fedprox"),
        ({"aggregator": "krum", "num_workers": 9, "num_selected": 2}, "num_selected = 2 is not read"),
        ({"fraction": 0.0}, "greater than 0"),
        ({"round_timeout": 0.0}, "greater than 0"),
    ],
)
def test_what_does_not_go_together_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        federated.Config(**values)


def test_half_a_client_is_rounded_up_and_there_is_always_one() -> None:
    config = federated.Config(num_workers=10, fraction=0.25)
    assert [config.num_participants(number) for number in (1, 2, 4, 6, 10)] == [1, 1, 1, 2, 3]
