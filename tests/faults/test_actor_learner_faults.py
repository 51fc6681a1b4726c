"""Actors and the learner die at seeded moments: versions never go back, and every finished trajectory is trained on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from qfleet.engines.base import RoleRef
from qfleet.errors import RestartsExhausted
from qfleet.roles.actors_learner import ActorsLearner
from qfleet.roles.trajectory_actor import TrajectoryActor
from qfleet.strategies.base import RoleRestarted, Rollout, Update
from qfleet.types import ParamSnapshot, Progress, Reply

MakeFleet = Callable[..., Any]
BOUND = 3
FLEET: dict[str, Any] = {
    "seed": 3,
    "env.id": "CartPole-v1",
    "algo": "vtrace",
    "strategy": "actor_learner",
    "env.num_envs": 2,
    "algo.rollout_steps": 4,
    "strategy.num_workers": 3,
    "strategy.trajectories_per_update": 2,
    "strategy.max_policy_lag": BOUND,
    "strategy.max_restarts": 99,
    "strategy.max_restarts_per_minute": 999,
}
ROWS = 2 * 4
CREWS = {
    "actor": ["actor-1"],
    "learner": ["learner-0"],
    "one-of-each": ["actor-0", "learner-0"],
    "all": ["actor-0", "actor-1", "actor-2", "learner-0"],
}


@pytest.fixture
def impala(fleet: MakeFleet) -> MakeFleet:
    """impala({...}, saved=None): a tiny one to drive by hand."""
    return lambda changes, saved=None: fleet(FLEET | changes, saved)


@pytest.fixture
def acted(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """Versions that each actor was given, in order."""
    versions: dict[str, list[int]] = {}
    rollout = TrajectoryActor.rollout

    def note(actor: TrajectoryActor, progress: Progress, num_vector_steps: int, newest: ParamSnapshot) -> Reply:
        versions.setdefault(actor.name, []).append(newest.version)
        return rollout(actor, progress, num_vector_steps, newest)

    monkeypatch.setattr(TrajectoryActor, "rollout", note)
    return versions


def check_the_books(made: Any) -> None:
    """All is quiet: every trajectory that came was trained on once, and the learner is where the counters say."""
    counters = made.control.counters
    assert made.role("learner-0").learner.version == counters.num_updates
    assert counters.num_samples == counters.num_updates * 2 * ROWS
    assert counters.num_inserted == counters.num_samples
    assert not {"trajectories_lost", "updates_lost"} & set(made.control.tallies)


def kill(made: Any, *names: str) -> None:
    for name in names:
        made.engine.kill(RoleRef(name))


def drain(made: Any, tag: str, events: list[Any]) -> Any:
    """Fleet.drain, with the events on the way kept."""
    kept = made.events

    def keeping() -> Any:
        for event in kept:
            events.append(event)
            yield event

    made.events = keeping()
    result = made.drain(tag)
    made.events = kept
    return result


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("crew", CREWS)
def test_deaths_at_seeded_moments(impala: MakeFleet, acted: dict[str, list[int]], crew: str, seed: int) -> None:
    names, made = CREWS[crew], impala({"seed": seed})
    generator = np.random.default_rng([seed, len(crew)])
    events: list[Any] = []
    for checkpoint in range(3):
        for _ in range(3):
            events += [next(made.events) for _ in range(int(generator.integers(10, 60)))]
            kill(made, *names)
        events += made.until(lambda counters, n=made.control.counters.num_updates: counters.num_updates >= n + 10)
        saved, counters = drain(made, f"{checkpoint:05d}", events)
        check_the_books(made)
    updates = [event.receipt for event in events if isinstance(event, Update)]
    assert [receipt.version for receipt in updates] == list(range(1, counters.num_updates + 1)), "a version went back"
    lags = [lag for receipt in updates for lag in receipt.lags["policy_lag"]]
    assert (min(lags), max(lags)) == (0, BOUND)
    assert len(lags) == sum(isinstance(event, Rollout) for event in events)
    for versions in acted.values():
        assert versions == sorted(versions)
        assert versions[-1] > 30
    restarts = [event for event in events if isinstance(event, RoleRestarted)]
    assert len(restarts) == made.control.tallies["restarts.killed"] == 9 * len(names)
    assert {event.role for event in restarts} == set(names)
    if "learner-0" in names:
        assert made.control.tallies["moments_age_updates"] > 0
    # The checkpoint after all this is good for another run, which learns on.
    again = impala({"seed": seed}, (saved, counters))
    again.until(lambda later: later.num_updates >= counters.num_updates + 10)


def test_a_run_with_deaths_replays_from_its_seed(impala: MakeFleet) -> None:
    vectors = []
    for _ in range(2):
        made = impala({})
        for name in ["actor-0", "learner-0", "actor-2"]:
            for _ in range(40):
                next(made.events)
            kill(made, name)
        made.until(lambda counters: counters.num_updates >= 60)
        vectors.append(made.until_snapshot().vector)
    np.testing.assert_array_equal(vectors[0], vectors[1])


def test_a_dead_learner_goes_on_from_the_newest_snapshot_and_says_how_old_its_moments_are(impala: MakeFleet) -> None:
    made = impala({})
    made.until(lambda counters: counters.num_updates >= 20)
    made.drain("00000")
    saved_version = made.control.counters.num_updates
    made.until(lambda counters: counters.num_updates >= saved_version + 9)
    before = made.until_snapshot()
    kill(made, "learner-0")
    after = made.until_snapshot()
    assert after.version == before.version
    np.testing.assert_array_equal(after.vector, before.vector)
    made.until(lambda counters: counters.num_updates >= saved_version + 12)
    assert made.control.tallies["moments_age_updates"] == before.version - saved_version


def test_a_learner_that_fails_before_it_has_published_anything_begins_anew(
    impala: MakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot, calls = ActorsLearner.snapshot, []

    def wrapped(learner: ActorsLearner) -> Reply:
        calls.append(learner)
        if len(calls) == 1:
            raise RuntimeError("planted")
        return snapshot(learner)

    monkeypatch.setattr(ActorsLearner, "snapshot", wrapped)
    made = impala({})
    made.until(lambda counters: counters.num_updates >= 5)
    assert made.control.tallies == {"restarts.exception": 1, "moments_age_updates": 0}
    assert len(calls) == 2


def test_an_update_that_fails_is_made_again_from_the_same_trajectories(
    impala: MakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = impala({})
    made.until(lambda counters: counters.num_updates >= 10)
    learn, batches = ActorsLearner.learn, []

    def wrapped(learner: ActorsLearner, *trajectories: Any) -> Reply:
        batches.append(trajectories)
        if len(batches) == 1:
            raise RuntimeError("planted")
        return learn(learner, *trajectories)

    monkeypatch.setattr(ActorsLearner, "learn", wrapped)
    made.until(lambda counters: counters.num_updates >= 20)
    assert made.control.tallies["restarts.exception"] == 1
    oldest = sorted(one.version for one in batches[0])
    assert oldest == sorted(one.version for one in batches[1])
    assert {id(one) for one in batches[0]} <= {id(one) for batch in batches[1:4] for one in batch}
    made.drain("00000")
    check_the_books(made)


@pytest.mark.parametrize("names", [["learner-0"], ["actor-1"], ["learner-0", "actor-0", "actor-2"]])
def test_failures_while_saving_are_mended_before_the_checkpoint_is_whole(
    impala: MakeFleet, monkeypatch: pytest.MonkeyPatch, names: list[str]
) -> None:
    made = impala({})
    made.until(lambda counters: counters.num_updates >= 10)
    made.drain("00000")
    made.until(lambda counters: counters.num_updates >= 20)
    failed: list[str] = []

    def failing(save: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(role: Any, *args: Any) -> Any:
            if role.name in names and role.name not in failed:
                failed.append(role.name)
                raise RuntimeError("planted")
            return save(role, *args)

        return wrapped

    for owner in (ActorsLearner, TrajectoryActor):
        monkeypatch.setattr(owner, "save", failing(owner.save))
    saved, _ = made.drain("00001")
    assert sorted(failed) == sorted(names)
    assert set(saved.files) == {"learner-0", "actor-0", "actor-1", "actor-2"}
    assert made.control.tallies["restarts.exception"] == len(names)
    check_the_books(made)
    made.until(lambda counters: counters.num_updates >= 40)
    made.drain("00002")
    check_the_books(made)


@pytest.mark.parametrize("name", ["actor-1", "learner-0"])
def test_past_the_budget_the_run_says_so_saves_and_ends(impala: MakeFleet, name: str) -> None:
    made = impala({"strategy.max_restarts": 2})
    for _ in range(3):
        for _ in range(20):
            next(made.events)
        kill(made, name)
    while made.control.failure is None:
        next(made.events)
    assert isinstance(made.control.failure, RestartsExhausted)
    assert f"{name} failed again after 2 restarts" in str(made.control.failure)
    made.control.is_ending = True
    saved, counters = made.drain("00000")
    assert set(saved.files) == {"learner-0", "actor-0", "actor-1", "actor-2"}
    assert made.role("learner-0").learner.version == counters.num_updates
