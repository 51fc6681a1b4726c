"""Deterministic fault testing: drawn runs on drawn clusters with drawn faults; see trial.py for what must hold.

A few dozen seeds here, and thousands with `make test-sim`. A seed that fails says how to replay it. Bugs that are
planted show that each kind of books is kept in earnest.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qfleet.errors import RoleDied
from qfleet.ops import pacing, staleness
from qfleet.placement.cost_model import RoleCosts
from qfleet.replay.storage import RingStorage
from qfleet.roles.parameter_server import ParameterServer
from qfleet.roles.push import Encoder
from qfleet.strategies import distributed_replay
from qfleet.strategies.base import Event, SnapshotPublished, push_pull

from .course import Course
from .ledger import Ledger, Violation
from .plans import SCENARIOS, draw_plan
from .trial import Outcome, attempts, play, summarise

NUM_SEEDS = 200
NUM_MANY = 5000


def replay(seed: int, only: str | None = None) -> Outcome:
    """Play a trial, and say how to play it again if it fails."""
    try:
        return play(seed, only)
    except Exception as error:
        more = f" --only {only}" if only else ""
        command = f"python tests/simulation/trial.py --seed {seed}{more}"
        raise AssertionError(f"seed {seed}: {error}; replay it with: {command}") from error


@pytest.mark.parametrize("only", SCENARIOS)
def test_drawn_faults_break_nothing(only: str) -> None:
    outcomes = [replay(seed, only) for seed in range(NUM_SEEDS // len(SCENARIOS))]
    assert sum(outcome.end == "done" for outcome in outcomes) > len(outcomes) / 2 - 2 * (only == "serial")
    if SCENARIOS[only][2] and only != "serial":
        # Restarts before the last checkpoint change nothing of what a resumed run is to equal.
        restarted = [one for one in outcomes if any(name.startswith("restarts.") for name in one.numbers)]
        assert sum(one.numbers.get("versions compared", 0) for one in restarted) > 0


def test_many_trials_are_summed_up() -> None:
    outcomes = [
        Outcome("sync", "done", {"merges": 3}, {"crash": 2}),
        Outcome("sync", "gave up", {"merges": 1}, {}),
        Outcome("serial", "died", {}, {"crash": 1, "loss": 1}),
    ]
    lines = summarise(outcomes, 1, 8.0).splitlines()
    assert lines[0] == "3 seeds passed, 1 failed, in 8 s (0.50 seeds/s)"
    assert [line.split() for line in lines if line.startswith("  s")] == [
        ["sync", "2", "1", "done,", "1", "gave", "up"],
        ["ssp", "0"],
        ["ssp-mean", "0"],
        ["staleness", "0"],
        ["serial", "1", "1", "died"],
    ]
    assert lines[-2:] == ["faults struck: crash 3, loss 1", "counted: merges 4"]


@pytest.mark.simulation
def test_two_processes_see_what_one_sees() -> None:
    jobs: list[tuple[int, str | None]] = [(seed, None) for seed in range(8)]
    assert list(attempts(jobs, 2)) == list(attempts(jobs, 1))


def test_a_trial_is_its_seed() -> None:
    assert replay(5) == replay(5)


def test_a_call_that_is_too_slow_ends_a_resumed_run_at_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    # Seed 577 once drew 0.325 s of a Pareto distribution for it; a role that is silent for 0.06 s is taken for dead.
    draw = RoleCosts.draw

    def slow(self: RoleCosts, method: str, time: float) -> float:
        is_slow = method == "publish" and not self.model.file.fault  # not in the trial's own run
        return 0.325 if is_slow else draw(self, method, time)

    monkeypatch.setattr(RoleCosts, "draw", slow)
    outcome = replay(2, "staleness")
    assert outcome.end == "done"
    assert outcome.numbers["resumes too slow"] == 1
    assert "versions compared" not in outcome.numbers


def test_what_an_emptied_shard_owes_at_a_cut_is_made_after_it() -> None:
    # The only shard had just been revived, with nothing in it: 424 samples were owed at the cut, and then drawn.
    assert replay(773, "replay").end == "done"


@pytest.mark.parametrize(("cause", "num_events"), [("process died", 0), ("timeout", 1)])
def test_any_other_death_that_ends_a_resumed_run_is_a_failure(
    cause: str, num_events: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = Course.progress

    def dying(self: Course, num_inserted: int = 8) -> None:
        if self.engine.file.fault:  # the trial's own run
            return progress(self, num_inserted)
        for _ in range(num_events):
            self.step()
        raise RoleDied("server-0", 0, cause)

    monkeypatch.setattr(Course, "progress", dying)
    with pytest.raises(RoleDied, match=cause):
        play(2, "staleness")


def test_a_snapshot_that_is_gone_with_its_machine_ends_no_trial(tmp_path: Path) -> None:
    # Seed 3011 asked for one while the learner, in a new life on another machine, waited for the same parameters.
    course = Course(draw_plan(3011, "actor-learner"), tmp_path, Ledger(None))
    while course.version < 3:
        course.step()
    course.engine.machines.lose("learner-0")
    course.struck["loss"] += 1
    course.parameters()
    course.engine.close()
    assert course.control.tallies["validations_lost"] == 1


def test_a_snapshot_that_is_gone_without_a_fault_is_a_failure(tmp_path: Path) -> None:
    course = Course(draw_plan(3011, "actor-learner"), tmp_path, Ledger(None))
    while course.version < 3:
        course.step()
    course.engine.machines.lose("learner-0")
    assert not course.struck
    with pytest.raises(Violation, match="no machine was lost"):
        course.parameters()
    course.engine.close()


def test_a_snapshot_that_goes_with_its_makers_machine_ends_no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    # Seed 5042 once drew it: a server had answered across a partition, and its machine was lost before the answer came.
    until, num_asked = Course.until, 0

    def losing(self: Course, kind: type[Event]) -> Event:
        nonlocal num_asked
        event = until(self, kind)
        if isinstance(event, SnapshotPublished):
            num_asked += 1
            self.engine.machines.lose(event.future.role.name)
            self.struck["loss"] += 1
        return event

    monkeypatch.setattr(Course, "until", losing)
    outcome = replay(1, "all-reduce")  # where the other ranks have the parameters
    assert outcome.end == "done"
    assert outcome.numbers["validations_lost"] == outcome.numbers["restarts.node lost"] == num_asked == 2


@pytest.mark.simulation
@pytest.mark.parametrize("first", range(0, NUM_MANY, 100))
def test_drawn_faults_break_nothing_in_thousands_of_trials(first: int) -> None:
    for seed in range(1000 + first, 1100 + first):
        replay(seed)


Plant = Callable[[pytest.MonkeyPatch], None]


def forget_the_acknowledged(patch: pytest.MonkeyPatch) -> None:
    """A server applies whatever comes, how often it comes."""
    stage = ParameterServer.stage

    def staged(self: ParameterServer, tickets: Any, *pushes: Any) -> Any:
        self.acknowledged = {}
        return stage(self, tickets, *pushes)

    patch.setattr(ParameterServer, "stage", staged)


def loosen_the_bound(patch: pytest.MonkeyPatch) -> None:
    """One clock more than the stale synchronous bound."""

    def may_start(clock: int, slowest: int, bound: int | None) -> bool:
        return staleness.may_start(clock, slowest, None if bound is None else bound + 1)

    patch.setattr(push_pull, "may_start", may_start)


def reuse_a_key(patch: pytest.MonkeyPatch) -> None:
    """A slot's number instead of the insertion's."""
    insert = RingStorage.insert
    patch.setattr(RingStorage, "insert", lambda self, transitions: insert(self, transitions) % 16)


def forget_a_future(patch: pytest.MonkeyPatch) -> None:
    """A push that failed is still counted as unmerged."""
    lost = push_pull.PushPull._lost

    def forgetful(self: Any, job: Any, loss: Any) -> Any:
        if job.kind == "push":
            job.member.num_unmerged += 1
        yield from lost(self, job, loss)

    patch.setattr(push_pull.PushPull, "_lost", forgetful)


def lose_the_feedback(patch: pytest.MonkeyPatch) -> None:
    """What top-k has not sent is thrown away."""
    encode = Encoder.encode

    def forgetful(self: Encoder, vector: Any, buffers: Any) -> Any:
        pieces = encode(self, vector, buffers)
        self.residual = self.residual * 0
        return pieces

    patch.setattr(Encoder, "encode", forgetful)


def train_half(patch: pytest.MonkeyPatch) -> None:
    """Half of the updates that are due are never made."""
    allowed = pacing.updates_allowed

    def fewer(inserted: int, samples: int, first: int, ratio: float, batch: int) -> int:
        return allowed(inserted, samples, first, ratio / 2, batch)

    patch.setattr(pacing, "updates_allowed", fewer)


def promise_twice(patch: pytest.MonkeyPatch) -> None:
    """Each update is counted as two, so that nobody waits for the half that is never made."""
    reserve = pacing.Pace.reserve

    def reserved(self: pacing.Pace, num_updates: int) -> None:
        reserve(self, num_updates)
        self.num_samples_reserved += num_updates * self.batch_size

    patch.setattr(pacing.Pace, "reserve", reserved)


def forgive_at_a_cut(patch: pytest.MonkeyPatch) -> None:
    """The updates owed on what a dead shard has held are never made if a checkpoint comes first."""
    save = distributed_replay.DistributedReplay._save

    def saved(self: Any) -> Any:
        for event in save(self):
            self.pace.drop_owed()
            yield event

    patch.setattr(distributed_replay.DistributedReplay, "_save", saved)


# How many seeds it takes from 0 on: 39, 2, 1, 19, 2, 2 and 2; the first is begun near the one that shows it, and the
# last at it.
PLANTED: dict[str, tuple[Plant, str, range]] = {
    "the dedup is dropped": (forget_the_acknowledged, "async", range(36, 90)),
    "the bound is off by one": (loosen_the_bound, "ssp", range(60)),
    "a replay key is reused": (reuse_a_key, "sync", range(60)),
    "a pending future is forgotten": (forget_a_future, "sync", range(60)),
    "the error feedback is lost": (lose_the_feedback, "sync", range(60)),
    "half of the samples are missing": (train_half, "async", range(60)),
    "half of the samples of shards are missing": (promise_twice, "replay", range(60)),
    "what was owed at a cut is forgotten": (forgive_at_a_cut, "replay", range(773, 774)),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_caught(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, only, seeds = PLANTED[bug]
    plant(monkeypatch)
    for seed in seeds:
        try:
            play(seed, only)
        except Exception:
            return
    raise AssertionError(f"{bug}: not caught within {len(seeds)} seeds")
