"""Validation beside training: what goes on meanwhile, which snapshot is next, who dies, what the end waits for."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qfleet.checkpoint import CheckpointStore
from qfleet.engines.base import Future
from qfleet.engines.inline import Engine
from qfleet.envs.toy import Identity
from qfleet.errors import RestartsExhausted, ValueLost
from qfleet.experiment import Experiment, Finished
from qfleet.policy import read_policy
from qfleet.roles.evaluator import Evaluator
from qfleet.session import CheckpointSaved, Logged
from qfleet.strategies import serial
from qfleet.strategies.base import Event, RoleRestarted, Rollout, SnapshotPublished, Update
from qfleet.types import ParamSnapshot, Receipt
from qfleet.validation import MAX_RESTARTS, Validated

MakeExperiment = Callable[..., Experiment]
Beside = Callable[..., Any]
EVERY_100 = {"evaluation.every_env_steps": 100}


def records(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def scripted(monkeypatch: pytest.MonkeyPatch, answers: dict[int, list[float]]) -> list[tuple[int, int]]:
    """Mean returns in turn, by the number of episodes asked, then 0; returns the (episodes, version) asked."""
    asked: list[tuple[int, int]] = []

    def evaluate(self: Evaluator, snapshot: ParamSnapshot, num_episodes: int, seed: int) -> Receipt:
        asked.append((num_episodes, snapshot.version))
        own = answers.get(num_episodes, [])
        return Receipt(episode_returns=[own.pop(0) if own else 0.0] * num_episodes)

    monkeypatch.setattr(Evaluator, "evaluate", evaluate)
    return asked


def test_training_goes_on_meanwhile(experiment: MakeExperiment, beside: Beside) -> None:
    beside(looks_needed=12)
    events = list(experiment("qfleet/Identity-v0", EVERY_100).stream())
    taken = next(i for i, event in enumerate(events) if isinstance(event, SnapshotPublished))
    known = next(i for i, event in enumerate(events) if isinstance(event, Validated))
    between = [type(event) for event in events[taken:known]]
    # Twelve looks, one after each event from the snapshot itself on.
    assert between.count(Rollout) + between.count(Update) >= 10
    validated = events[known]
    assert isinstance(validated, Validated)
    assert validated.num_env_steps == 100


def test_on_inline_it_does_not(experiment: MakeExperiment) -> None:
    events = list(experiment("qfleet/Identity-v0", EVERY_100).stream())
    for i, event in enumerate(events):
        if isinstance(event, SnapshotPublished):
            assert isinstance(events[i + 1], Validated)


def test_what_is_learned_is_the_same(experiment: MakeExperiment, beside: Beside) -> None:
    changes = EVERY_100 | {"checkpoint.every_env_steps": 1_000_000}
    blocking = experiment("qfleet/Identity-v0", changes, run_dir="a").run()
    beside()
    meanwhile = experiment("qfleet/Identity-v0", changes, run_dir="b").run()
    assert meanwhile["parameters_sha256"] == blocking["parameters_sha256"] is not None
    assert meanwhile["eval"] == blocking["eval"]


def test_a_newer_snapshot_replaces_the_one_that_waits_and_the_last_one_is_waited_for(
    experiment: MakeExperiment, beside: Beside, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = scripted(monkeypatch, {})
    beside(looks_needed=10**6)  # never by itself: only the end waits
    changes = {"evaluation.every_env_steps": 50, "evaluation.episodes": 3, "evaluation.final_episodes": 7}
    events = list(experiment("qfleet/Identity-v0", changes).stream())
    published = [event.version for event in events if isinstance(event, SnapshotPublished)]
    assert len(published) >= 8
    assert sorted(set(published)) == published
    # The first is under way until the end; of those that came meanwhile only the last one is played.
    assert asked == [(3, published[0]), (3, published[-1]), (7, published[0])]
    summary = events[-1]
    assert isinstance(summary, Finished)
    assert summary.summary["num_updates"] == published[-1], "the last one is of the last update"
    assert len(str(summary.summary["parameters_sha256"])) == 64
    manifest, _ = CheckpointStore(tmp_path / "run" / "checkpoints", 1).newest_whole()
    assert manifest is not None
    schedule = manifest.session["schedule"]
    assert isinstance(schedule, dict)
    assert (schedule["num_evaluations"], schedule["validated_version"]) == (2, published[-1])
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert Experiment.resume(tmp_path / "run").run()["parameters_sha256"] == summary.summary["parameters_sha256"]
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before, "a finished run has nothing left to do"


def test_the_target_counts_from_the_snapshot_and_is_known_later(
    experiment: MakeExperiment, beside: Beside, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Validation 2, confirmation 4: the second snapshot (200 env steps) is confirmed.
    asked = scripted(monkeypatch, {2: [1.0, 9.0], 4: [9.5]})
    beside(looks_needed=6)
    changes = EVERY_100 | {
        "stop.until_return": 9.0,
        "stop.confirm_episodes": 4,
        "stop.max_env_steps": 10_000,
        "evaluation.episodes": 2,
        "evaluation.final_episodes": 7,
    }
    events = list(experiment("qfleet/Identity-v0", changes).stream())
    versions = [event.version for event in events if isinstance(event, SnapshotPublished)]
    # Both steps of the check and the held-out episodes are on the second snapshot.
    assert asked == [(2, versions[0]), (2, versions[1]), (4, versions[1]), (7, versions[1])]
    assert isinstance(events[-1], Finished)
    summary = events[-1].summary
    assert (summary["stop_reason"], summary["env_steps_to_threshold"]) == ("reached", 200)
    assert summary["num_env_steps"] > 200
    assert summary["seconds_until_known"] > summary["seconds_to_threshold"] > 0  # type: ignore[operator]
    _, _, best, facts = read_policy(tmp_path / "run" / "best")
    assert (best.version, facts) == (versions[1], {"mean_return": 9.5, "episodes": 4, "num_env_steps": 200})
    assert summary["parameters_sha256"] is None, "no snapshot was taken of the last update"


def test_a_checkpoint_taken_meanwhile_has_the_validation_still_before_it(
    experiment: MakeExperiment, beside: Beside, tmp_path: Path
) -> None:
    beside(looks_needed=10**6)
    changes = EVERY_100 | {"checkpoint.every_env_steps": 160}
    events = experiment("qfleet/Identity-v0", changes).stream()
    next(event for event in events if isinstance(event, CheckpointSaved))
    events.close()
    beside(looks_needed=1)
    resumed = Experiment.resume(tmp_path / "run").stream()
    first = next(event for event in resumed if isinstance(event, Validated))
    assert first.num_env_steps == 160, "the lost one is played at once"
    assert records(tmp_path / "run", "evaluation")[0]["num_env_steps"] == 160


def test_an_evaluator_that_dies_is_replaced_and_training_never_notices(
    experiment: MakeExperiment, beside: Beside, tmp_path: Path
) -> None:
    beside(looks_needed=2)
    calm = experiment("qfleet/Identity-v0", EVERY_100, run_dir="calm").run()
    beside(looks_needed=2, num_deaths=MAX_RESTARTS)
    events = list(experiment("qfleet/Identity-v0", EVERY_100).stream())
    restarts = [event for event in events if isinstance(event, RoleRestarted)]
    assert [event.incarnation for event in restarts] == list(range(1, MAX_RESTARTS + 1))
    assert isinstance(events[-1], Finished)
    summary = events[-1].summary
    assert summary["parameters_sha256"] == calm["parameters_sha256"]
    assert summary["tallies"] == {"restarts.killed": MAX_RESTARTS}
    noted = records(tmp_path / "run", "event")
    assert [record["event"] for record in noted] == ["RoleRestarted"] * MAX_RESTARTS
    assert noted[0]["role"] == "evaluator"
    # The same episodes are played again, so that what is found is the same too.
    found = [record["mean_return"] for record in records(tmp_path / "run", "evaluation")]
    assert found == [record["mean_return"] for record in records(tmp_path / "calm", "evaluation")]


def test_an_evaluator_that_keeps_dying_ends_the_run_saved(
    experiment: MakeExperiment, beside: Beside, tmp_path: Path
) -> None:
    beside(looks_needed=2, num_deaths=99)
    with pytest.raises(RestartsExhausted, match=r"evaluator failed again after 3 restarts.*saved as .*--resume"):
        experiment("qfleet/Identity-v0", EVERY_100).run()
    manifest, _ = CheckpointStore(tmp_path / "run" / "checkpoints", 1).newest_whole()
    assert manifest is not None
    assert manifest.counters["num_env_steps"] >= 100
    beside()
    assert Experiment.resume(tmp_path / "run").run()["num_env_steps"] == 400


class Valued(Identity):
    """Rewards times a factor, so that the environments of two clients can be told apart."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor

    def step(self, action: int) -> Any:
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward * 0.0 + self.factor, terminated, truncated, info


def play_north_and_south(monkeypatch: pytest.MonkeyPatch, personal: Callable[[Future], dict[str, Future]]) -> None:
    """Serial training that is validated on two environments, and publishes `personal` with each snapshot."""

    def blueprints(blueprint: Any, config: Any) -> dict[str, Any]:
        factors = {"north": 1.0, "south": 4.0}
        return {
            name: dataclasses.replace(blueprint, env_factory=lambda factor=factor: Valued(factor))
            for name, factor in factors.items()
        }

    run = serial.run

    def with_personal(*args: Any) -> Iterator[Event]:
        for event in run(*args):
            if isinstance(event, SnapshotPublished):
                event = dataclasses.replace(event, personal=personal(event.future))
            yield event

    monkeypatch.setattr(serial, "evaluation_blueprints", blueprints, raising=False)
    monkeypatch.setattr(serial, "run", with_personal)


@pytest.mark.parametrize("concurrent", [False, True])
def test_several_environments_and_personal_snapshots(
    experiment: MakeExperiment, beside: Beside, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, concurrent: bool
) -> None:
    if concurrent:
        beside(looks_needed=2)

    play_north_and_south(monkeypatch, lambda future: {"south": future, "decoy": future})
    changes = EVERY_100 | {"evaluation.episodes": 3, "evaluation.final_episodes": 5}
    summary = experiment("Valued-v99", changes, env=Valued).run()
    for record in records(tmp_path / "run", "evaluation"):
        # Episodes of one step, worth 1 and 4: three each, their mean 2.5; the personal one counts by itself.
        assert (record["mean_return"], record["episodes"]) == (2.5, 6)
        assert (record["return_north"], record["return_south"], record["return_personal_south"]) == (1.0, 4.0, 4.0)
        assert "return_personal_decoy" not in record
    score = summary["eval"]
    assert isinstance(score, dict)
    assert (score["mean_return"], score["episodes"], score["return_north"], score["return_south"]) == (
        2.5,
        10,
        1.0,
        4.0,
    )
    assert summary["validation_by_name"] == {"return_north": 1.0, "return_south": 4.0, "return_personal_south": 4.0}


def test_a_lost_personal_snapshot_is_not_the_best_and_ends_no_run(
    experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lost: list[Future] = []

    def first_is_lost(future: Future) -> dict[str, Future]:
        own = copy.copy(future)
        lost.extend([] if lost else [own])
        return {"south": own}

    payload = Engine.payload

    def found(self: Engine, future: Future) -> object:
        if any(future is one for one in lost):
            raise ValueLost("worker-1")
        return payload(self, future)

    play_north_and_south(monkeypatch, first_is_lost)
    monkeypatch.setattr(Engine, "payload", found)
    events = list(experiment("Valued-v99", EVERY_100, env=Valued).stream())
    validated = [event.is_best for event in events if isinstance(event, Validated)]
    # All returns are equal: the first would have been the best, had its parts been there; no later one is better.
    assert validated[:3] == [False, True, False]
    _, _, _, facts = read_policy(tmp_path / "run" / "best")
    assert facts["num_env_steps"] == 200
    assert (tmp_path / "run" / "best" / "south").is_dir()
    logged = [event.record for event in events if isinstance(event, Logged)]
    assert logged[-1]["validations_lost"] == 1
