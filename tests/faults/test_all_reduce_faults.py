"""All-reduce under fire: ranks that die at seeded moments, in the middle of an update, all at once, or come and go."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qfleet.engines.base import Future, RoleRef
from qfleet.engines.inline import Config as EngineConfig
from qfleet.engines.inline import Engine
from qfleet.errors import CallFailed, DivergenceError, QfleetError, RestartsExhausted, ValueLost
from qfleet.experiment import Experiment
from qfleet.networks.flat import vector_sha256
from qfleet.policy import make_blueprint
from qfleet.roles.blueprint import Blueprint
from qfleet.roles.rank_worker import RankWorker
from qfleet.strategies import all_reduce
from qfleet.strategies.base import (
    Control,
    Counters,
    CrewChanged,
    Drained,
    Event,
    RoleRestarted,
    Rollout,
    Saved,
    SnapshotPublished,
    Update,
)
from qfleet.types import Receipt

BATCH = 16
PLAN: dict[str, Any] = {
    "algo.batch_size": BATCH,
    "replay.min_transitions": 48,
    "replay.capacity": 3000,
    "replay.samples_per_insert": 8.0,
}


class Fleet:
    """A run of the strategy without a session: what it yields is checked as it comes."""

    def __init__(
        self,
        blueprint: Blueprint,
        folder: Path,
        num_workers: int,
        *,
        seed: int = 0,
        engine: type[Engine] = Engine,
        saved: Saved | None = None,
        counters: Counters | None = None,
        max_restarts: int = 1000,
    ) -> None:
        self.blueprint = blueprint
        self.engine = engine(EngineConfig(), seed)
        self.control = Control(checkpoint_folder=str(folder), counters=counters or Counters())
        config = all_reduce.Config(
            num_workers=num_workers, max_restarts=max_restarts, max_restarts_per_minute=1_000_000
        )
        self.events = all_reduce.run(self.engine, blueprint, config, self.control, saved)
        self.seen: list[Event] = []
        self.counted = Counters()
        self.before = Counters(**vars_of(self.control.counters))
        self.group_size = num_workers

    def step(self) -> Event:
        """One event, and the books must be in order after it."""
        event = next(self.events)
        self.seen.append(event)
        counters, replay = self.control.counters, self.blueprint.replay
        if isinstance(event, Rollout | Update):
            self.counted.add(event.receipt)
        if isinstance(event, CrewChanged):
            self.group_size = event.num_workers
        if isinstance(event, Update):
            assert event.receipt.version == counters.num_updates, "versions count on"
            assert event.receipt.num_updates > 0
        if isinstance(event, Drained):
            self.counted.num_inserted += sum(event.inserted.values())
        for name in ("num_env_steps", "num_inserted", "num_updates", "num_samples"):
            assert getattr(counters, name) == getattr(self.before, name) + getattr(self.counted, name), name
        allowed = replay.samples_per_insert * max(0, counters.num_inserted - replay.min_transitions)
        assert counters.num_samples <= allowed
        return event

    def until(self, is_met: Callable[[Event], bool], limit: int = 4000) -> Event:
        for _ in range(limit):
            event = self.step()
            if is_met(event):
                return event
        raise AssertionError(f"not met within {limit} events: {Counter(type(e).__name__ for e in self.seen)}")

    def until_updates(self, number: int) -> None:
        self.until(lambda _: self.control.counters.num_updates >= number)

    def save(self, tag: str) -> Saved:
        self.control.drain_tag = tag
        event = self.until(lambda event: isinstance(event, Drained))
        assert isinstance(event, Drained)
        self.control.drain_tag, self.control.saved_files, self.control.saved_tag = None, event.files, tag
        return Saved(tag, event.files, event.state)

    def rank(self, name: str) -> RankWorker:
        built = self.engine._roles[name].built
        assert isinstance(built, RankWorker)
        return built

    def ranks(self) -> list[RankWorker]:
        return [known.built for known in self.engine._roles.values() if isinstance(known.built, RankWorker)]

    def kill(self, *names: str) -> None:
        for name in names:
            self.engine.kill(RoleRef(name))

    def check_equal(self) -> None:
        """All ranks of the run are at the newest version with the same state."""
        states = [rank.learner.share() for rank in self.ranks()]
        for state in states:
            assert state.version == self.control.counters.num_updates
            for field in ("online", "target", "moments"):
                assert np.array_equal(getattr(state, field), getattr(states[0], field)), field

    def of(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.seen if isinstance(event, kind)]


def vars_of(counters: Counters) -> dict[str, int]:
    return {name: getattr(counters, name) for name in Counters.__slots__}


@pytest.fixture
def blueprint(experiment: Callable[..., Experiment]) -> Blueprint:
    made = experiment("qfleet/Script-v0", PLAN)
    return make_blueprint(made.config, made.spec, "cpu")


def rows(fleet: Fleet) -> Counter[tuple[Any, ...]]:
    """Every transition held, as a multiset."""
    found: Counter[tuple[Any, ...]] = Counter()
    for rank in fleet.ranks():
        storage = rank.replay.storage
        if len(rank.replay):
            held = storage.gather(storage.slots_of(np.arange(storage.first_live_key, storage.num_inserted)))
            for i in range(len(held)):
                found[(held.obs[i].tobytes(), int(held.action[i]), float(held.reward[i]), float(held.discount[i]))] += 1
    return found


def under_fire(blueprint: Blueprint, folder: Path, seed: int) -> Fleet:
    """Kills, checkpoints, validations and changes of crew at moments drawn from the seed."""
    draw = random.Random(seed)
    fleet = Fleet(blueprint, folder, 3, seed=seed)
    num_saved = 0
    while fleet.control.counters.num_updates < 60:
        event = fleet.step()
        if isinstance(event, SnapshotPublished):
            assert event.version == fleet.control.counters.num_updates
        names = [name for name, known in fleet.engine._roles.items() if known.built is not None]
        chance = draw.random()
        if chance < 0.06:
            fleet.kill(*draw.sample(names, min(len(names), draw.choice([1, 1, 2, 4]))))
        elif chance < 0.09 and fleet.control.drain_tag is None:
            fleet.save(f"{num_saved:05d}")
            num_saved += 1
        elif chance < 0.12:
            fleet.control.snapshot_wanted = True
        elif chance < 0.14:
            fleet.control.num_workers = draw.choice([1, 2, 3, 4])
    return fleet


@pytest.mark.parametrize("seed", range(24))
def test_a_run_under_fire_goes_on_and_its_books_are_in_order(blueprint: Blueprint, tmp_path: Path, seed: int) -> None:
    fleet = under_fire(blueprint, tmp_path, seed)
    restarts = sum(count for name, count in fleet.control.tallies.items() if name.startswith("restarts."))
    assert restarts == len(fleet.of(RoleRestarted)) > 0
    fleet.until_updates(70)  # a change of the crew that was asked for at the last moment has been made by then
    fleet.save("last")
    fleet.check_equal()
    assert len(fleet.ranks()) == (fleet.control.num_workers or 3)


def test_a_run_under_fire_replays_from_its_seed(blueprint: Blueprint, tmp_path: Path) -> None:
    outcomes = []
    for number, seed in enumerate((5, 5, 6)):
        fleet = under_fire(blueprint, tmp_path / str(number), seed)
        fleet.save("last")
        tallies = tuple(sorted(fleet.control.tallies.items()))
        outcomes.append((vector_sha256(fleet.ranks()[0].learner.online.vector.numpy()), tallies, len(fleet.seen)))
    assert outcomes[0] == outcomes[1] != outcomes[2]


def test_the_group_goes_on_without_the_dead_and_takes_them_back(blueprint: Blueprint, tmp_path: Path) -> None:
    fleet = Fleet(blueprint, tmp_path, 3)
    fleet.until_updates(6)
    held = fleet.rank("worker-1").replay.num_inserted
    fleet.kill("worker-1")
    fleet.until(lambda event: isinstance(event, CrewChanged) and event.num_workers == 3)
    changes = [(event.num_workers, event.why) for event in fleet.of(CrewChanged)]
    assert changes == [(2, "worker-1 left"), (3, "worker-1 joined")]
    assert fleet.control.tallies == {"restarts.killed": 1, "transitions_lost": held}
    assert fleet.rank("worker-1").learner.version == fleet.control.counters.num_updates
    first = next(event for event in reversed(fleet.seen) if isinstance(event, Update))
    assert first.role == "worker-0,worker-2", "meanwhile the two went on"
    assert first.receipt.num_samples == first.receipt.num_updates * 2 * BATCH
    again = fleet.until(lambda event: isinstance(event, Update))
    assert isinstance(again, Update)
    assert again.receipt.num_samples == again.receipt.num_updates * 3 * BATCH
    fleet.check_equal()


def test_a_rank_back_from_a_checkpoint_has_its_replay(blueprint: Blueprint, tmp_path: Path) -> None:
    fleet = Fleet(blueprint, tmp_path, 2)
    fleet.until_updates(10)
    fleet.save("00000")
    saved = len(fleet.rank("worker-0").replay)
    fleet.until_updates(20)
    lost = len(fleet.rank("worker-0").replay) - saved
    fleet.kill("worker-0")
    fleet.until(lambda event: isinstance(event, RoleRestarted))
    fleet.until_updates(30)
    assert fleet.control.tallies["transitions_lost"] == lost > 0
    assert len(fleet.rank("worker-0").replay) > saved
    assert "updates_lost" not in fleet.control.tallies
    fleet.check_equal()


def test_a_death_between_two_updates_of_a_call_loses_none_that_was_made(blueprint: Blueprint, tmp_path: Path) -> None:
    fleet = Fleet(blueprint, tmp_path, 3, seed=2)
    fleet.until_updates(6)
    version = fleet.control.counters.num_updates
    # Rank 1 fails when it draws its third sample of a call of at least four updates. The engine lets the ranks go on
    # in turn, so by then the one before it has made two updates, and the one after it, which is yet to be let on, one.
    fleet.control.counters.num_samples -= 4 * 3 * BATCH
    fleet.before.num_samples -= 4 * 3 * BATCH
    replay = fleet.rank("worker-1").replay
    real, drawn = replay.sample, []

    def sample(batch_size: int) -> Any:
        drawn.append(batch_size)
        if len(drawn) == 3:
            raise ValueError("decoy 99")
        return real(batch_size)

    replay.sample = sample  # type: ignore[method-assign]
    survivors = fleet.rank("worker-0"), fleet.rank("worker-2")
    fleet.until(lambda event: isinstance(event, RoleRestarted))
    behind, ahead = sorted(survivors, key=lambda rank: rank.learner.version)
    assert (behind.learner.version, ahead.learner.version) == (version + 1, version + 2)
    further = ahead.learner.share()
    event = fleet.until(lambda event: isinstance(event, Update))
    assert isinstance(event, Update)
    assert (event.receipt.num_updates, event.receipt.num_samples) == (2, 2 * 3 * BATCH)
    assert event.receipt.version == version + 2
    fleet.until(lambda event: isinstance(event, Rollout))
    assert np.array_equal(behind.learner.share().moments, further.moments), "it was given the other's state"
    assert np.array_equal(behind.learner.online.vector.numpy(), further.online)
    assert fleet.control.tallies["groups_broken"] == 1
    assert fleet.control.tallies["restarts.exception"] == 1
    fleet.until_updates(version + 20)
    fleet.save("last")
    fleet.check_equal()


@pytest.mark.parametrize("num_workers", [1, 3])
@pytest.mark.parametrize("is_saved", [True, False])
def test_when_all_die_at_once_the_last_checkpoint_goes_on(
    blueprint: Blueprint, tmp_path: Path, num_workers: int, is_saved: bool
) -> None:
    fleet = Fleet(blueprint, tmp_path, num_workers)
    fleet.until_updates(10)
    version, state = 0, RankWorker(blueprint, "worker-9").learner.share()
    if is_saved:
        fleet.save("00000")
        version, state = fleet.control.counters.num_updates, fleet.rank("worker-0").learner.share()
    fleet.until_updates(25)
    known = fleet.control.counters.num_updates
    fleet.kill(*(rank.name for rank in fleet.ranks()))
    # Before the first update of the new lives: the group is founded at the next rollout at the latest.
    for _ in range(num_workers):
        fleet.until(lambda event: isinstance(event, RoleRestarted))
    fleet.until(lambda event: isinstance(event, Rollout))
    assert fleet.control.tallies["updates_lost"] == known - version > 0
    first = fleet.rank("worker-0").learner
    assert np.array_equal(first.online.vector.numpy(), state.online)
    assert np.array_equal(first.optimizer.moments.numpy(), state.moments)
    assert first.version == known, "versions never go back"
    fleet.until_updates(known + 10)
    fleet.save("last")
    fleet.check_equal()


def test_ranks_come_and_go(blueprint: Blueprint, tmp_path: Path) -> None:
    fleet = Fleet(blueprint, tmp_path, 2)
    fleet.until_updates(6)
    fleet.control.num_workers = 4
    fleet.until(lambda event: isinstance(event, CrewChanged) and event.num_workers == 4)
    event = fleet.until(lambda event: isinstance(event, Update))
    assert isinstance(event, Update)
    assert event.role == "worker-0,worker-1,worker-2,worker-3"
    assert event.receipt.num_samples == event.receipt.num_updates * 4 * BATCH
    fleet.check_equal()
    held = sum(len(fleet.rank(f"worker-{i}").replay) for i in (1, 2, 3))
    fleet.control.num_workers = 1
    fleet.until(lambda event: isinstance(event, CrewChanged) and event.num_workers == 1)
    assert fleet.control.tallies == {"transitions_lost": held}
    assert [rank.name for rank in fleet.ranks()] == ["worker-0"]
    fleet.control.num_workers = 2
    fleet.until(lambda event: isinstance(event, CrewChanged) and event.num_workers == 2)
    assert fleet.of(CrewChanged)[-1].why == "worker-4 joined", "a name is never used twice"
    fleet.until_updates(40)
    fleet.check_equal()


def test_those_let_go_are_not_the_ones_that_know_the_most(blueprint: Blueprint, tmp_path: Path) -> None:
    fleet = Fleet(blueprint, tmp_path, 2)
    fleet.until_updates(10)
    fleet.kill("worker-0")
    fleet.until(lambda event: isinstance(event, RoleRestarted))
    fleet.control.num_workers = 1
    fleet.until(lambda event: isinstance(event, Update) and len(fleet.ranks()) == 1)
    assert [rank.name for rank in fleet.ranks()] == ["worker-1"], "worker-0 had yet to be brought back"
    assert "updates_lost" not in fleet.control.tallies


@pytest.mark.parametrize("num_after", [1, 2, 4, 5])
def test_another_number_of_ranks_resumes_with_every_transition(
    blueprint: Blueprint, tmp_path: Path, num_after: int
) -> None:
    before = Fleet(blueprint, tmp_path, 3)
    before.until_updates(20)
    saved = before.save("00000")
    state = before.rank("worker-0").learner.share()
    counters = Counters(**vars_of(before.control.counters))
    after = Fleet(blueprint, tmp_path, num_after, saved=saved, counters=counters)
    after.control.saved_files = saved.files
    event = after.step()
    assert isinstance(event, Rollout)
    assert len(after.ranks()) == num_after
    kept, wanted = rows(after), rows(before)
    assert not wanted - kept, "nothing was dropped"
    assert sum(wanted.values()) == before.control.counters.num_inserted
    for rank in after.ranks():
        assert rank.learner.version == state.version
        assert np.array_equal(rank.learner.online.vector.numpy(), state.online)
        assert np.array_equal(rank.learner.optimizer.moments.numpy(), state.moments)
    after.until_updates(state.version + 20)
    after.check_equal()
    update = after.of(Update)[0]
    assert update.receipt.num_samples == update.receipt.num_updates * num_after * BATCH


@pytest.mark.parametrize("num_after", [2, 4])
def test_a_rank_that_dies_before_its_first_checkpoint_has_its_share_again(
    blueprint: Blueprint, tmp_path: Path, num_after: int
) -> None:
    before = Fleet(blueprint, tmp_path, 3)
    before.until_updates(20)
    saved = before.save("00000")
    counters = Counters(**vars_of(before.control.counters))
    after = Fleet(blueprint, tmp_path, num_after, saved=saved, counters=counters)
    after.control.saved_files = saved.files
    after.step()
    after.kill("worker-0")
    after.until(lambda event: isinstance(event, RoleRestarted))
    after.save("00001")
    kept, wanted = rows(after), rows(before)
    assert not wanted - kept, "all that the checkpoint held"
    assert sum(kept.values()) == after.control.counters.num_inserted - after.control.tallies["transitions_lost"]


def test_a_rank_that_failed_while_saving_is_saved_in_the_end(blueprint: Blueprint, tmp_path: Path) -> None:
    fleet = Fleet(blueprint, tmp_path, 3)
    fleet.until_updates(6)
    fleet.rank("worker-2").actor.cut = None  # type: ignore[assignment,method-assign]
    saved = fleet.save("00000")
    assert sorted(saved.files) == ["worker-0", "worker-1", "worker-2"]
    assert [event.role for event in fleet.of(RoleRestarted)] == ["worker-2"]
    fleet.check_equal()


def test_a_diverged_rank_ends_the_run(blueprint: Blueprint, tmp_path: Path) -> None:
    fleet = Fleet(blueprint, tmp_path, 3)
    fleet.until_updates(6)
    fleet.rank("worker-1").learner.online.vector.fill_(float("nan"))
    with pytest.raises(CallFailed, match="worker-1") as caught:
        fleet.until_updates(100)
    assert isinstance(caught.value.__cause__, DivergenceError)
    assert not fleet.of(RoleRestarted)


def test_past_its_budget_the_run_saves_itself_and_says_so(blueprint: Blueprint, tmp_path: Path) -> None:
    fleet = Fleet(blueprint, tmp_path, 2, max_restarts=1)
    for life in (1, 2):
        assert fleet.control.failure is None
        fleet.until_updates(fleet.control.counters.num_updates + 4)
        fleet.kill("worker-1")
        event = fleet.until(lambda event: isinstance(event, RoleRestarted))
        assert isinstance(event, RoleRestarted)
        assert event.incarnation == life
    assert isinstance(fleet.control.failure, RestartsExhausted)
    assert "strategy.max_restarts" in str(fleet.control.failure)
    assert sorted(fleet.save("last").files) == ["worker-0", "worker-1"]


class Deaf(Engine):
    """An engine whose ranks live and never meet, as behind a firewall."""

    def result(self, future: Future) -> Receipt:
        if future.method == "train_together":
            raise ValueLost("worker-0")
        return super().result(future)

    def all_reduce(self, group: Any, method: str, args: Any, lane: str = "training") -> list[Future]:
        futures = [self.submit(role, "standing", lane=lane) for role in group]
        for future in futures:
            future.method = "train_together"
        self.deaf = futures
        return futures

    def _prepare(self, call: Any) -> Any:
        if call.future.method == "train_together":
            call.future.method = "standing"
            try:
                return super()._prepare(call)
            finally:
                call.future.method = "train_together"
        return super()._prepare(call)


def test_ranks_that_never_meet_end_the_run(blueprint: Blueprint, tmp_path: Path) -> None:
    fleet = Fleet(blueprint, tmp_path, 2, engine=Deaf, max_restarts=3)
    with pytest.raises(QfleetError, match=r"2 ranks have failed to meet 4 times in a row"):
        fleet.until_updates(1)
    assert fleet.control.tallies["groups_broken"] == 4
    assert fleet.control.counters.num_updates == 0
