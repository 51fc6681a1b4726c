"""Roles of distributed replay die at seeded moments: nothing acknowledged is missing without being counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from qfleet.errors import RestartsExhausted
from qfleet.roles.learner import Learner
from qfleet.roles.replay_actor import ReplayActor
from qfleet.roles.replay_shard import ReplayShard
from qfleet.roles.sample_learner import SampleLearner
from qfleet.strategies.base import RoleRestarted, Rollout, Update
from qfleet.types import ParamSlice

MakeFleet = Callable[..., Any]
FLEET: dict[str, Any] = {
    "seed": 3,
    "env.id": "CartPole-v1",
    "strategy": "distributed_replay",
    "strategy.num_workers": 3,
    "strategy.collect_steps": 1,
    "strategy.num_shards": 2,
    "strategy.publish_every": 5,
    "strategy.max_restarts": 99,
    "strategy.max_restarts_per_minute": 999,
    "env.num_envs": 2,
    "algo.n_step": 2,
    "replay.sampler": "prioritized",
    "replay.min_transitions": 30,
    "replay.capacity": 20_000,  # nothing is overwritten, so every transition can be accounted for
    "replay.samples_per_insert": 2.0,
}
BATCH = 16
OWNERS = [SampleLearner, ReplayShard, ReplayActor]


def rows(fleet: Any) -> int:
    return sum(len(role.built.replay) for name, role in fleet.engine._roles.items() if name.startswith("shard-"))


def check_the_books(fleet: Any, num_learners: int = 1) -> None:
    """All is quiet: what the counters say is what the roles hold."""
    counters, tallies, pace = fleet.control.counters, fleet.control.tallies, FLEET["replay.samples_per_insert"]
    learners = [fleet.role(f"learner-{i}").learner for i in range(num_learners)]
    assert {learner.version for learner in learners} == {counters.num_updates}
    for learner in learners[1:]:
        np.testing.assert_array_equal(learner.online.vector.numpy(), learners[0].online.vector.numpy())
        np.testing.assert_array_equal(learner.target.vector.numpy(), learners[0].target.vector.numpy())
        np.testing.assert_array_equal(learner.optimizer.moments.numpy(), learners[0].optimizer.moments.numpy())
    assert counters.num_samples == counters.num_updates * BATCH * num_learners
    assert rows(fleet) == counters.num_inserted - tallies.get("transitions_lost", 0)
    budget = (counters.num_inserted - FLEET["replay.min_transitions"]) * pace
    assert budget - 2 * BATCH * num_learners < counters.num_samples <= budget, "the pace is kept, neither side behind"


def check_the_events(events: list[Any], fleet: Any) -> None:
    """No lag is negative, and the updates add up to the counter."""
    assert min(event.receipt.lags["policy_lag"][0] for event in events if isinstance(event, Rollout)) >= 0
    updates = [event.receipt for event in events if isinstance(event, Update)]
    counters, tallies = fleet.control.counters, fleet.control.tallies
    lost = tallies.get("updates_lost", 0)
    assert sum(receipt.num_updates for receipt in updates) - lost == counters.num_updates
    assert min(age for receipt in updates for age in receipt.lags.get("priority_age", [0])) >= 0


CREWS = {
    "actor": (["actor-1"], 1),
    "shard": (["shard-0"], 1),
    "the-only-shard": (["shard-0"], 1),
    "learner": (["learner-0"], 1),
    "one-of-two-learners": (["learner-1"], 2),
    "leader-of-two": (["learner-0"], 2),
    "both-learners": (["learner-0", "learner-1"], 2),
    "one-of-each": (["actor-0", "shard-1", "learner-0"], 1),
    "all": (["actor-0", "actor-1", "actor-2", "shard-0", "shard-1", "learner-0"], 1),
}


@pytest.fixture
def pulled(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """Versions of the publications that each actor was given, in order."""
    versions: dict[str, list[int]] = {}
    pull = ReplayActor._pull

    def note(actor: ReplayActor, newest: ParamSlice, with_target: ParamSlice) -> None:
        versions.setdefault(actor.name, []).append(newest.version)
        pull(actor, newest, with_target)

    monkeypatch.setattr(ReplayActor, "_pull", note)
    return versions


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("crew", CREWS)
def test_deaths_at_seeded_moments(fleet: MakeFleet, pulled: dict[str, list[int]], crew: str, seed: int) -> None:
    names, num_learners = CREWS[crew]
    changes = FLEET | {"seed": seed, "strategy.num_learners": num_learners}
    if crew == "the-only-shard":
        changes["strategy.num_shards"] = 1
    made = fleet(changes)
    generator = np.random.default_rng([seed, len(crew)])
    events: list[Any] = []
    for checkpoint in range(3):
        for _ in range(3):
            events += [next(made.events) for _ in range(int(generator.integers(20, 90)))]
            for name in names:
                made.engine.kill(next(ref for ref in refs(made) if ref.name == name))
        events += made.until(lambda counters, n=made.control.counters.num_updates: counters.num_updates >= n + 10)
        made.control.snapshot_wanted = True
        while made.control.snapshot_wanted:
            events.append(next(made.events))
        saved, counters = drain(made, f"{checkpoint:05d}", events)
        check_the_books(made, num_learners)
    check_the_events(events, made)
    for versions in pulled.values():
        assert versions == sorted(versions), "a version went back"
        assert versions[-1] > 50
    restarts = [event for event in events if isinstance(event, RoleRestarted)]
    assert len(restarts) == made.control.tallies["restarts.killed"] == 9 * len(names)
    assert {event.role for event in restarts} == set(names)
    if crew == "learner":
        assert 0 < made.control.tallies["updates_lost"] <= 9 * (5 + 2)
        assert made.control.tallies["moments_age_updates"] > 0
    if crew == "one-of-two-learners":
        assert "updates_lost" not in made.control.tallies, "the other one knew"
    if crew in ("shard", "the-only-shard", "all"):
        assert made.control.tallies["transitions_lost"] > 0
    if crew == "actor":
        assert "transitions_lost" not in made.control.tallies, "a rollout that was never acknowledged is not lost"
    # The checkpoint after all this is good for another run, which learns on.
    again = fleet(changes, (saved, counters))
    again.until(lambda later: later.num_updates >= counters.num_updates + 10)


def refs(made: Any) -> list[Any]:
    from qfleet.engines.base import RoleRef

    return [RoleRef(name) for name in made.engine._roles]


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


def test_a_run_with_deaths_replays_from_its_seed(fleet: MakeFleet) -> None:
    vectors = []
    for _ in range(2):
        made = fleet(FLEET)
        for number in range(240):
            next(made.events)
            if number % 60 == 59:
                name = ["shard-0", "learner-0", "actor-2", "shard-1"][number // 60]
                made.engine.kill(next(ref for ref in refs(made) if ref.name == name))
        vectors.append(made.until_snapshot().vector)
    np.testing.assert_array_equal(vectors[0], vectors[1])


def test_a_shard_comes_back_with_its_checkpoint(fleet: MakeFleet) -> None:
    made = fleet(FLEET)
    made.until(lambda counters: counters.num_inserted >= 200)
    made.drain("00000")
    held = len(made.role("shard-0").replay)
    made.until(lambda counters: counters.num_inserted >= 300)
    gained = len(made.role("shard-0").replay) - held
    assert gained > 20
    made.engine.kill(next(ref for ref in refs(made) if ref.name == "shard-0"))
    made.until(lambda counters: counters.num_inserted >= 310)
    lost = made.control.tallies["transitions_lost"]
    assert gained - 12 <= lost <= gained + 12, "but for what was under way"
    assert made.role("shard-0").incarnation == 1
    assert len(made.role("shard-0").replay) >= held


def test_a_dead_learner_goes_back_to_the_publication_and_says_how_old_its_moments_are(fleet: MakeFleet) -> None:
    made = fleet(FLEET | {"strategy.publish_every": 7})
    made.until(lambda counters: counters.num_updates >= 20)
    made.drain("00000")
    saved_version = made.control.counters.num_updates
    made.until(lambda counters: counters.num_updates >= saved_version + 24)
    before = made.control.counters.num_updates
    made.engine.kill(next(ref for ref in refs(made) if ref.name == "learner-0"))
    events: list[Any] = []
    while not any(isinstance(event, RoleRestarted) for event in events):
        events.append(next(made.events))
    while "updates_lost" not in made.control.tallies:
        events.append(next(made.events))
    lost = made.control.tallies["updates_lost"]
    assert 0 < lost <= 7 + 2
    assert made.control.counters.num_updates <= before - lost + 2
    assert made.control.tallies["moments_age_updates"] == made.control.counters.num_updates - saved_version > 7


def test_past_the_budget_the_run_says_so_saves_and_ends(fleet: MakeFleet) -> None:
    made = fleet(FLEET | {"strategy.max_restarts": 2})
    for _ in range(3):
        for _ in range(40):
            next(made.events)
        made.engine.kill(next(ref for ref in refs(made) if ref.name == "shard-1"))
    for _ in range(40):
        next(made.events)
    assert isinstance(made.control.failure, RestartsExhausted)
    assert "shard-1 failed again after 2 restarts" in str(made.control.failure)
    saved, _ = made.drain("00000")
    assert set(saved.files) == {"learner-0", "shard-0", "shard-1", "actor-0", "actor-1", "actor-2"}


def failing_once(monkeypatch: pytest.MonkeyPatch, owner: type, method: str, which: Callable[[Any], bool]) -> list[str]:
    """Let the first such call of each role that `which` picks raise; the names of those that did."""
    original = getattr(owner, method)
    failed: list[str] = []

    def wrapped(role: Any, *args: Any) -> Any:
        if role.name not in failed and which(role):
            failed.append(role.name)
            raise RuntimeError("planted")
        return original(role, *args)

    monkeypatch.setattr(owner, method, wrapped)
    return failed


@pytest.mark.parametrize(
    "names",
    [["learner-0"], ["learner-1"], ["learner-0", "learner-1"], ["learner-0", "learner-1", "shard-0", "actor-1"]],
)
def test_failures_while_saving_are_mended_before_the_checkpoint_is_whole(
    fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch, names: list[str]
) -> None:
    made = fleet(FLEET | {"strategy.num_learners": 2})
    made.until(lambda counters: counters.num_updates >= 30)
    made.drain("00000")
    made.until(lambda counters: counters.num_updates >= 60)
    failed = [failing_once(monkeypatch, owner, "save", lambda role: role.name in names) for owner in OWNERS]
    made.drain("00001")
    assert sorted(name for names_of_owner in failed for name in names_of_owner) == sorted(names)
    assert made.control.tallies["restarts.exception"] == len(names)
    check_the_books(made, 2)
    made.until(lambda counters: counters.num_updates >= 80)
    made.drain("00002")
    check_the_books(made, 2)


def test_what_a_broken_call_had_done_is_kept_where_a_learner_lives(
    fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = fleet(FLEET | {"strategy.num_learners": 2, "strategy.updates_per_call": 3})
    made.until(lambda counters: counters.num_updates >= 30)
    before = made.control.counters.num_updates
    broken = made.role("learner-1").learner
    gradient = Learner.gradient

    def wrapped(learner: Learner, *args: Any) -> Any:
        if learner is broken and learner.version % 3 == 2:
            raise RuntimeError("planted in the third batch of a call, when two are done")
        return gradient(learner, *args)

    monkeypatch.setattr(Learner, "gradient", wrapped)
    seen: list[Any] = []
    while not any(isinstance(event, RoleRestarted) for event in seen):
        seen.append(next(made.events))
    seen += made.until(lambda counters: counters.num_updates >= before + 12)
    assert 2 in [event.receipt.num_updates for event in seen if isinstance(event, Update)]
    assert made.control.tallies["restarts.exception"] == 1
    assert "updates_lost" not in made.control.tallies
    made.drain("00000")
    check_the_books(made, 2)


def test_nothing_piles_up_at_a_slow_role(fleet: MakeFleet) -> None:
    for slow in ("shard-0", "learner-0", "actor-0"):
        made = fleet(FLEET | {"strategy.prefetch": 2, "replay.samples_per_insert": 8.0})
        generator = np.random.default_rng(0)

        def choose(names: list[str], slow: str = slow, generator: Any = generator) -> str:
            quick = [name for name in names if name != slow]
            if not quick or (slow in names and generator.random() < 0.01):
                return slow
            return quick[generator.integers(len(quick))]

        made.engine.choose = lambda names, choose=choose: choose(sorted(names))
        longest: dict[str, int] = {}
        while made.control.counters.num_updates < 150:
            next(made.events)
            for name, queue in made.engine._lanes["training"].queues.items():
                longest[name] = max(longest.get(name, 0), len(queue))
        # An actor has one rollout. A learner has two calls and a publication. A shard has for each of the two
        # prefetched orders and the two calls at the learner a draw or new priorities, and two insertions an actor.
        bounds = {"actor": 1, "learner": 3, "shard": 2 + 2 + 2 + 2 * 3}
        assert all(number <= bounds[name.split("-")[0]] for name, number in longest.items()), (slow, longest)
