"""Actors and a learner that only take notes: the bound of the policy lag on thousands of seeded schedules, with deaths,
departures and pauses in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qfleet.algos.vtrace import Config as AlgoConfig
from qfleet.config import ReplayConfig
from qfleet.engines.base import Future, RoleRef
from qfleet.engines.inline import Config as EngineConfig
from qfleet.engines.inline import Engine
from qfleet.envs.config import EnvConfig
from qfleet.errors import ConfigError, RoleDied
from qfleet.networks.torso import NetworkConfig
from qfleet.roles.blueprint import Blueprint
from qfleet.run_config import build_config
from qfleet.strategies import actor_learner
from qfleet.strategies.actor_learner import CALLS_AT_LEARNER, ActorLearner
from qfleet.strategies.base import Control, CrewChanged, Drained, RoleRestarted, Rollout, SnapshotPublished, Update
from qfleet.strategies.base.trajectory_queue import Trajectory, TrajectoryQueue
from qfleet.types import EnvSpec, Receipt, Reply

BLUEPRINT = Blueprint(
    env=EnvConfig(id="none"),
    env_factory=None,
    spec=EnvSpec("none", (2,), "float32", 2),
    algo_name="vtrace",
    algo=AlgoConfig(),
    network=NetworkConfig(),
    replay=ReplayConfig(),
    seed=0,
)


class StubActor:
    def __init__(self, *args: object) -> None:
        self.num = 0

    def rollout(self, progress: object, num_vector_steps: int, newest: int) -> Reply:
        return Reply(Receipt(version=newest, num_env_steps=1, num_inserted=1), newest)

    def restore(self, *args: object) -> Receipt:
        return Receipt()

    def save(self, *args: object) -> Receipt:
        return Receipt()


class StubLearner:
    """Its payload, and a trajectory's, is a version."""

    def __init__(self, *args: object) -> None:
        self.version = 0

    def learn(self, *acted: int) -> Reply:
        lags = [self.version - version for version in acted]
        self.version += 1
        receipt = Receipt(version=self.version, num_updates=1, num_samples=len(acted), lags={"policy_lag": lags})
        return Reply(receipt, self.version)

    def snapshot(self) -> Reply:
        return Reply(Receipt(version=self.version), self.version)

    def restore(self, folder: str, files: object, *published: int) -> Receipt:
        self.version = max(published, default=0)
        return Receipt(version=self.version, metrics={"moments_age": 0.0})

    def save(self, *args: object) -> Receipt:
        return Receipt(version=self.version)


@pytest.fixture(autouse=True)
def stubs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actor_learner, "TrajectoryActor", StubActor)
    monkeypatch.setattr(actor_learner, "ActorsLearner", StubLearner)


def start(seed: int, tmp_path: Path, **settings: Any) -> tuple[Engine, Control, ActorLearner, Any]:
    engine, control = Engine(EngineConfig(), seed), Control(str(tmp_path))
    config = actor_learner.Config(max_restarts=10_000, max_restarts_per_minute=10_000, **settings)
    coordinator = ActorLearner(engine, BLUEPRINT, config, control)
    return engine, control, coordinator, coordinator.events(None)


def check_lags(events: list[Any], bound: int, batch: int) -> list[int]:
    """All lags; the versions go up one by one, and none of them is made of more or fewer trajectories than asked."""
    updates = [event.receipt for event in events if isinstance(event, Update)]
    assert [receipt.version for receipt in updates] == list(range(1, len(updates) + 1)), "a version went back"
    assert {receipt.num_samples for receipt in updates} <= {batch}
    lags = [lag for receipt in updates for lag in receipt.lags["policy_lag"]]
    assert min(lags, default=0) >= 0
    assert max(lags, default=0) <= bound
    return lags


def test_no_lag_exceeds_the_bound_on_thousands_of_schedules(tmp_path: Path) -> None:
    largest: dict[int, int] = {}
    for seed in range(2500):
        generator = np.random.default_rng(seed)
        num_workers, batch, bound = (int(generator.integers(low, 6)) for low in (1, 1, 0))
        size = batch + int(generator.integers(0, 12))
        settings = {"num_workers": num_workers, "trajectories_per_update": batch, "queue_size": size}
        engine, control, coordinator, stream = start(seed, tmp_path, max_policy_lag=bound, **settings)
        events: list[Any] = []
        for _ in range(6):
            for event in stream:
                events.append(event)
                # What a learner had taken when it died waits again, beside those that have a place.
                given_back = batch * CALLS_AT_LEARNER * any(isinstance(one, RoleRestarted) for one in events)
                num_begun = coordinator.queue.num_waiting + len(coordinator.queue._under_way)
                assert num_begun <= size + given_back
                if len(events) % 12 == 0:
                    break
            _disturb(generator, engine, control, coordinator, stream, events)
        check_lags(events, bound, batch)
        largest[bound] = max([largest.get(bound, 0), *check_lags(events, bound, batch)])
        assert sum(isinstance(event, Update) for event in events) > 0
    assert largest == {bound: bound for bound in range(6)}, "the bound is reached, so that it is what holds them back"


def _disturb(
    generator: np.random.Generator,
    engine: Engine,
    control: Control,
    coordinator: ActorLearner,
    stream: Any,
    events: list[Any],
) -> None:
    """Kill somebody, hire or dismiss some, or pause."""
    names = [*coordinator.actors.refs, "learner-0"]
    what = int(generator.integers(5))
    if what < 2:
        engine.kill(RoleRef(names[int(generator.integers(len(names)))] if what else "learner-0"))
    elif what == 2:
        control.num_workers = int(generator.integers(1, 7))
    elif what == 3:
        control.drain_tag = "00000"
        drained = next_of(Drained, stream, events)
        assert drained.state["actors"] == list(coordinator.actors.refs)
        assert coordinator.queue.num_waiting == 0
        control.drain_tag = None
    else:
        control.snapshot_wanted = True
        published = next_of(SnapshotPublished, stream, events)
        assert published.version == control.counters.num_updates == engine.payload(published.future)


def next_of(kind: type, stream: Any, events: list[Any]) -> Any:
    for event in stream:
        events.append(event)
        if isinstance(event, kind):
            return event
    raise AssertionError("the strategy has ended")


@pytest.mark.parametrize("bound", [0, 1, 3])
def test_the_learner_waits_for_a_slow_actor_and_the_others_wait_then(tmp_path: Path, bound: int) -> None:
    engine, _, coordinator, stream = start(0, tmp_path, num_workers=3, trajectories_per_update=1, max_policy_lag=bound)
    # actor-0 is chosen only when nobody else has anything to do.
    engine.choose = lambda names: sorted(names, reverse=True)[0]  # type: ignore[method-assign]
    events = []
    while not events or events[-1].role != "actor-0":
        events.append(next(stream))
    # Its trajectory is of version 0, so that version `bound` is the last that may be updated with it: until it is there
    # no more than `bound` updates are made.
    assert sum(isinstance(event, Update) for event in events) == bound
    assert coordinator.queue.num_waiting <= bound + 2
    events.append(next(event for event in stream if isinstance(event, Update)))
    assert events[-1].receipt.lags["policy_lag"] == [bound]


def test_without_a_lag_every_update_is_on_policy_and_actors_wait_for_it(tmp_path: Path) -> None:
    _, _, _, stream = start(1, tmp_path, num_workers=4, trajectories_per_update=4, max_policy_lag=0)
    events = [next(stream) for _ in range(100)]
    kinds = ["u" if isinstance(event, Update) else "r" for event in events]
    assert "".join(kinds) == "rrrru" * 20
    assert set(check_lags(events, 0, 4)) == {0}


def test_a_pause_fills_up_the_last_batch(tmp_path: Path) -> None:
    """Three trajectories an update and one actor: whenever the pause comes, nothing is left over or dropped."""
    for num_events in range(1, 30):
        _, control, _, stream = start(2, tmp_path, num_workers=1, trajectories_per_update=3, max_policy_lag=2)
        events: list[Any] = [next(stream) for _ in range(num_events)]
        control.drain_tag = "00000"
        next_of(Drained, stream, events)
        counters = control.counters
        assert counters.num_inserted == counters.num_samples == 3 * counters.num_updates
        assert control.tallies == {}


def test_actors_come_and_go(tmp_path: Path) -> None:
    _, control, coordinator, stream = start(3, tmp_path, num_workers=2)
    events: list[Any] = [next(stream) for _ in range(20)]
    control.num_workers = 4
    events += [next(stream) for _ in range(60)]
    assert list(coordinator.actors.refs) == ["actor-0", "actor-1", "actor-2", "actor-3"]
    control.num_workers = 1
    late = [next(stream) for _ in range(60)]
    assert list(coordinator.actors.refs) == ["actor-0"]
    assert {event.role for event in late[30:] if isinstance(event, Rollout)} == {"actor-0"}
    changes = [event.num_workers for event in [*events, *late] if isinstance(event, CrewChanged)]
    assert changes == [3, 4, 3, 2, 1]
    check_lags([*events, *late], 4, 2)


def test_a_trajectory_that_is_lost_with_its_machine_is_counted_and_its_batch_filled_up(tmp_path: Path) -> None:
    _, control, coordinator, stream = start(4, tmp_path, num_workers=2, trajectories_per_update=3, max_policy_lag=2)
    events: list[Any] = [next(stream) for _ in range(2)]
    lost = coordinator.queue._waiting[0]
    lost.future.error = RoleDied(lost.actor, 0, "node lost")
    num_of_that_actor = sum(one.actor == lost.actor for one in coordinator.queue._waiting)
    events += [next(stream) for _ in range(40)]
    num_lost = control.tallies["trajectories_lost"]
    assert num_of_that_actor <= num_lost <= 3, "what lay on that machine, and no more than a batch"
    assert control.tallies == {"trajectories_lost": num_lost, "values_lost": 1}
    check_lags(events, 2, 3)
    control.drain_tag = "00000"
    next_of(Drained, stream, events)
    assert control.counters.num_samples == control.counters.num_inserted - num_lost


def test_what_the_batch_behind_has_made_too_old_is_dropped(tmp_path: Path) -> None:
    """The learner is at version 1 and has (c, d) of version 0 and (e, f) of 1; no lag may exceed 1. The machine of c is
    lost: (e, f) makes version 2 of 1, where d would lag 2 behind, and nobody else may begin while d waits."""
    engine, control, coordinator, stream = start(6, tmp_path, num_workers=4, max_policy_lag=1)
    # The learner comes when no actor has anything to do.
    engine.choose = lambda names: min(names)  # type: ignore[method-assign]
    events: list[Any] = [next(stream) for _ in range(7)]
    (job,) = coordinator._jobs.values()
    assert [one.version for one in job.batch] == [0, 0]
    assert [one.version for one in coordinator.queue._waiting] == [1, 1], "the learner is given them next"
    lost = job.batch[0]
    lost.future.error = RoleDied(lost.actor, 0, "node lost")
    events += [next(stream) for _ in range(40)]
    assert control.tallies == {"values_lost": 1, "trajectories_lost": 2}
    check_lags(events, 1, 2)


def test_a_snapshot_that_is_lost_is_published_again(tmp_path: Path) -> None:
    _, control, coordinator, stream = start(5, tmp_path, num_workers=2)
    events: list[Any] = [next(stream) for _ in range(20)]
    lost = coordinator._newest
    assert lost is not None
    lost.error = RoleDied("learner-0", 0, "node lost")
    events += [next(stream) for _ in range(40)]
    assert control.tallies.keys() <= {"values_lost"}
    check_lags(events, 4, 2)


def test_a_batch_must_fit_into_the_queue() -> None:
    with pytest.raises(ConfigError, match="queue_size 3 can never hold the 4 trajectories of an update"):
        build_config(
            {"strategy": {"name": "actor_learner", "queue_size": 3, "trajectories_per_update": 4}, "algo": "vtrace"}, []
        )


def trajectory(version: int, actor: str = "actor-0") -> Trajectory:
    return Trajectory(Future(RoleRef(actor), "rollout", "training"), actor, version)


def test_the_queue_gives_the_oldest_first() -> None:
    queue = TrajectoryQueue(size=9, batch_size=2, max_policy_lag=9)
    for version in (3, 1, 3, 2):
        queue.begin(version)
    made = [trajectory(version) for version in (3, 1, 3, 2)]
    for one in made:
        queue.put(one)
    assert queue.take(3) == [made[1], made[3]]
    assert queue.take(4) == [made[0], made[2]], "equally old: first come, first served"
    assert queue.take(5) == []


def test_the_queue_takes_back_what_was_not_trained_on() -> None:
    queue = TrajectoryQueue(size=4, batch_size=2, max_policy_lag=0)
    for _ in range(2):
        assert queue.may_begin(5, 5)
        queue.begin(5)
    assert not queue.may_begin(5, 5), "a third one would meet version 6"
    for _ in range(2):
        queue.put(trajectory(5))
    batch = queue.take(5)
    assert len(batch) == 2
    assert not queue.may_begin(5, 6)
    assert queue.give_back(batch, 5) == 0
    assert queue.take(5) == batch
    assert queue.give_back(batch, 6) == 2, "another batch was trained on in its place"
    queue.begin(6)
    queue.abandon(6)
    assert (queue.num_waiting, queue.num_missing) == (0, 0)
