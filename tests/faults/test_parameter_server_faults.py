"""Roles of a parameter server are killed at drawn moments: the run goes on, counts add up, versions never go back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from qfleet.engines.base import RoleRef
from qfleet.errors import RestartsExhausted
from qfleet.experiment import Experiment
from qfleet.replay.rollouts import RolloutBuffer
from qfleet.roles.gradient_worker import GradientWorker
from qfleet.roles.parameter_server import ParameterServer
from qfleet.strategies.base import Drained, Gradient, RoleRestarted, Rollout, Update
from qfleet.types import RolloutBatch

MakeExperiment = Callable[..., Experiment]
RULES: dict[str, dict[str, Any]] = {
    "sync": {},
    "async": {"strategy.wait": "async", "strategy.in_flight": 2},
    "ssp-mean": {"strategy.wait": "ssp", "strategy.merge": "mean"},
    "three-servers": {"strategy.num_servers": 3},
    "backups": {"strategy.backup_workers": 1},
    "groups": {"strategy": "sync_groups", "strategy.num_groups": 2},
}
BASE = {
    "strategy": "parameter_server",
    "strategy.num_workers": 4,
    "strategy.max_restarts": 10_000,
    "strategy.max_restarts_per_minute": 10_000,
    "algo.learning_rate": 0.01,
    "algo.gamma": 0.0,
    "replay.samples_per_insert": 8.0,
    "stop.max_env_steps": 2000,
    "checkpoint.every_env_steps": 300,
    "evaluation.every_env_steps": 500,
}


def kill_while_it_runs(run: Experiment, seed: int, mean_events: float, kinds: tuple[str, ...]) -> dict[str, int]:
    """Kill a drawn role of these kinds every `mean_events` events or so; returns how often each was."""
    generator = np.random.default_rng(seed)
    killed: dict[str, int] = {}
    version = 0
    for event in run.stream():
        if isinstance(event, Update):
            assert event.receipt.version >= version, "versions never go back"
            version = event.receipt.version
        if isinstance(event, Rollout | Gradient | Update) and generator.random() < 1.0 / mean_events:
            assert run.session is not None
            engine = run.session.engine
            names = [name for name in engine._roles if name.startswith(kinds)]  # type: ignore[attr-defined]
            name = names[int(generator.integers(len(names)))]
            if not run.session.control.is_ending:
                engine.kill(RoleRef(name))
                killed[name] = killed.get(name, 0) + 1
    return killed


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize(
    "kinds",
    [
        ("worker-", "server-"),
        pytest.param(("worker-",), marks=pytest.mark.slow),
        pytest.param(("server-",), marks=pytest.mark.slow),
    ],
    ids="+".join,
)
def test_kills_lose_unfinished_work_only(experiment: MakeExperiment, rules: str, kinds: tuple[str, ...]) -> None:
    for seed in range(2):
        run = experiment("qfleet/Identity-v0", {**BASE, **RULES[rules], "seed": seed}, run_dir=f"run-{seed}")
        killed = kill_while_it_runs(run, seed, 40.0, kinds)
        assert sum(killed.values()) >= 5
        assert run.session is not None
        control, session = run.session.control, run.session
        restarts = sum(number for name, number in control.tallies.items() if name.startswith("restarts."))
        # A role that is killed twice before it is called again dies once.
        assert 0.5 * sum(killed.values()) <= restarts <= sum(killed.values())
        counters = control.counters
        assert session.stop_reason == "max_env_steps"
        assert counters.num_env_steps == counters.num_inserted >= 2000
        batch_size = run.config.algo.batch_size
        assert counters.num_samples % batch_size == 0
        assert counters.num_updates <= counters.num_samples // batch_size
        asked = run.config.replay.samples_per_insert
        assert 0.8 * asked <= session.tracker.samples_per_insert <= asked + 0.1
    from qfleet.policy import load_policy

    policy = load_policy(run.run_dir)
    obs = np.eye(4, dtype=np.float32)[:, : policy.spec.obs_shape[0]]
    assert policy.act(obs).tolist() == [0, 1, 2, 3], "and it has learned"


@pytest.mark.parametrize("rules", ["sync", "async"])
def test_every_transition_is_in_a_replay_or_counted_as_lost(
    experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch, rules: str
) -> None:
    # Workers die again and again between two checkpoints; some fail to save, which inserts the others' open windows.
    changes = {"algo.n_step": 3, "replay.capacity": 60_000, "checkpoint.every_env_steps": 100}
    run = experiment("CartPole-v1", {**BASE, **RULES[rules], **changes})
    generator = np.random.default_rng(3)
    num_cuts = 0
    save, saves = GradientWorker.save, []

    def failing(self: GradientWorker, *args: Any) -> Any:
        saves.append(self.name)
        if len(saves) % 7 == 0:
            raise OSError("decoy 99")
        return save(self, *args)

    monkeypatch.setattr(GradientWorker, "save", failing)
    for event in run.stream():
        assert run.session is not None
        engine, control = run.session.engine, run.session.control
        workers = {name: role for name, role in engine._roles.items() if name.startswith("worker-")}  # type: ignore[attr-defined]
        if isinstance(event, Drained):
            num_cuts += 1
            held = sum(len(role.built.replay) for role in workers.values())
            assert held == control.counters.num_inserted - control.tallies.get("transitions_lost", 0)
        elif not control.is_ending and generator.random() < 0.02:
            engine.kill(RoleRef(sorted(workers)[int(generator.integers(len(workers)))]))
    assert num_cuts > 5
    assert control.tallies["restarts.killed"] > 20
    assert control.tallies["transitions_lost"] > 200


@pytest.mark.parametrize("rules", ["sync", "async", "groups", "all_reduce"])
def test_a_rollout_dies_with_its_worker_and_with_it_what_it_owed(
    experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch, rules: str
) -> None:
    insert, drawn = RolloutBuffer.insert, []

    def watched(self: RolloutBuffer, rows: RolloutBatch) -> None:
        drawn.append(self._num_drawn / self.capacity)
        insert(self, rows)

    monkeypatch.setattr(RolloutBuffer, "insert", watched)
    changes = {key: value for key, value in BASE.items() if not key.startswith("replay.")}
    changes |= RULES.get(rules, {"strategy": rules})
    changes |= {"algo": "pqn", "algo.num_epochs": 8, "algo.num_minibatches": 4}
    run = experiment("qfleet/Identity-v0", changes)
    killed = kill_while_it_runs(run, 1, 40.0, ("worker-",))
    assert sum(killed.values()) >= 3
    assert run.session is not None
    assert run.session.stop_reason == "max_env_steps"
    control = run.session.control
    assert control.counters.num_env_steps == control.counters.num_inserted >= 2000
    # Those that died were gone over less often, and no other one makes up for it.
    assert 2.0 < run.session.tracker.samples_per_insert < 8.0
    assert max(drawn) == 8.0
    assert control.tallies["transitions_lost"] <= 16 * control.tallies["restarts.killed"]
    from qfleet.policy import load_policy

    assert load_policy(run.run_dir).act(np.eye(4, dtype=np.float32)).tolist() == [0, 1, 2, 3], "and it has learned"


@pytest.mark.parametrize("num_workers", [2, 5])
def test_a_worker_that_dies_before_its_first_checkpoint_has_its_share_again(
    experiment: MakeExperiment, num_workers: int
) -> None:
    first = experiment("qfleet/Identity-v0", {**BASE, "replay.capacity": 60_000, "stop.max_env_steps": 600})
    first.run()
    changes = {"strategy.num_workers": num_workers, "stop.max_env_steps": 1200}
    resumed = Experiment.resume(first.run_dir, changes)
    stream = resumed.stream()
    is_killed = False
    for number, event in enumerate(stream):
        # The old ones' paces and the shares that the new ones got of them are out of step.
        assert number < 1500, "the pause never ends: one worker's push makes the others collect, and so on"
        assert resumed.session is not None
        engine, control = resumed.session.engine, resumed.session.control
        if isinstance(event, Rollout) and not is_killed:
            engine.kill(RoleRef("worker-0"))
            is_killed = True
        if isinstance(event, Drained):
            break
    workers = [role for name, role in engine._roles.items() if name.startswith("worker-")]  # type: ignore[attr-defined]
    assert len(workers) == num_workers
    assert control.tallies["restarts.killed"] == 1
    lost = control.tallies["transitions_lost"]
    assert sum(len(role.built.replay) for role in workers) == control.counters.num_inserted - lost
    assert lost < 100, "a little that it had inserted since"


def test_a_push_is_applied_once_also_when_the_call_is_made_again(experiment: MakeExperiment) -> None:
    # Every third update takes effect and then its answer is lost, with the server.
    applied: list[tuple[str, int, int]] = []
    real = ParameterServer.update
    lives: dict[int, int] = {}

    def update(self: ParameterServer, tickets: Any, *args: Any) -> Any:
        before = self.version
        reply = real(self, tickets, *args)
        lives[id(self)] = lives.get(id(self), 0) + 1
        if lives[id(self)] % 3 == 0:
            raise RuntimeError("the answer is lost")
        assert self.version == before + 1
        applied.extend((ticket.worker, ticket.incarnation, ticket.sequence) for ticket in tickets)
        return reply

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ParameterServer, "update", update)
        run = experiment("qfleet/Identity-v0", {**BASE, "strategy.wait": "async"})
        restarts = [event for event in run.stream() if isinstance(event, RoleRestarted)]
    assert len(restarts) > 20
    assert {event.cause for event in restarts} == {"exception"}
    assert len(applied) == len(set(applied)), "no push has acted twice"
    assert run.session is not None
    assert len(applied) == run.session.control.counters.num_updates
    assert run.session.control.tallies["moments_age_updates"] > 0


def test_a_server_refuses_what_it_has_applied_and_what_a_former_life_sends(experiment: MakeExperiment) -> None:
    from qfleet.roles.push import Push
    from qfleet.types import Ticket

    run = experiment("qfleet/Identity-v0", {})
    server = ParameterServer(run._blueprint(run.spec, "cpu"), "server-0")
    push = Push(len(server.online), np.ones(len(server.online), np.float32))

    def send(incarnation: int, sequence: int) -> tuple[int, float]:
        receipt = server.stage([Ticket("worker-0", incarnation, sequence, 0)], push)
        return server.commit(receipt.metrics["norm"], 1.0, 1).receipt.version, receipt.metrics["num_refused"]

    assert send(0, 0) == (1, 0.0)
    assert send(0, 1) == (2, 0.0)
    assert send(0, 1) == (2, 1.0), "the same push once more"
    assert send(1, 0) == (3, 0.0), "a new life counts from 0"
    assert send(0, 2) == (3, 1.0), "a late push of the former one"


def test_past_the_budget_the_run_saves_itself_and_stops_with_the_first_traceback(experiment: MakeExperiment) -> None:
    def gradient(self: GradientWorker, *args: Any) -> Any:
        if self.name == "worker-2":
            raise ZeroDivisionError("decoy 99")
        return real(self, *args)

    real = GradientWorker.gradient
    changes = {**BASE, "strategy.max_restarts": 2, "strategy.wait": "async"}
    run = experiment("qfleet/Identity-v0", changes)
    restarts = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GradientWorker, "gradient", gradient)
        with pytest.raises(RestartsExhausted, match=r"worker-2 failed again after 2 restarts.*decoy 99") as caught:
            restarts.extend(event for event in run.stream() if isinstance(event, RoleRestarted))
    assert "ZeroDivisionError: decoy 99" in caught.value.remote_traceback
    assert run.session is not None
    assert run.session.last_checkpoint is not None, "what there is has been saved"
    saved_steps = run.session.control.counters.num_env_steps
    resumed = Experiment.resume(run.run_dir).run()
    assert resumed["num_env_steps"] >= 2000 > saved_steps


def test_the_same_kills_give_the_same_run(experiment: MakeExperiment) -> None:
    def sha256(name: str) -> object:
        run = experiment("qfleet/Identity-v0", {**BASE, **RULES["async"]}, run_dir=name)
        kill_while_it_runs(run, 7, 20.0, ("worker-", "server-"))
        assert run.session is not None
        return run.session.parameters_sha256()

    assert sha256("a") == sha256("b")
