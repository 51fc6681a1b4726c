"""Federated training with clients that die, send garbage or come late, and what leaves a client."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qfleet.engines.base import RoleRef
from qfleet.engines.inline import Engine
from qfleet.errors import CheckpointError, DivergenceError, UsageError
from qfleet.experiment import Experiment
from qfleet.roles.federated_client import FederatedClient
from qfleet.roles.federation import ClientUpdate
from qfleet.session import CheckpointSaved
from qfleet.strategies import federated
from qfleet.strategies.base import Drained, RoleRestarted, Rollout, Update
from qfleet.types import Receipt, Reply, Sample, Transitions

MakeExperiment = Callable[..., Experiment]
IDENTITY: dict[str, Any] = {
    "strategy": "federated",
    "strategy.num_workers": 5,
    "algo.learning_rate": 0.01,
    "algo.gamma": 0.0,
    "replay.samples_per_insert": 8.0,
    "stop.max_env_steps": 1000,
    "evaluation.every_env_steps": 250,
    "evaluation.final_episodes": 50,
}


class Garbage(FederatedClient):
    """worker-1 sends noise a thousand times too large, from which a loss would make NaN or nonsense."""

    def train_round(self, *args: Any) -> Reply:
        reply = super().train_round(*args)
        if self.name != "worker-1":
            return reply
        update = reply.payload
        assert isinstance(update, ClientUpdate)
        noise = np.random.default_rng(update.num_samples).normal(0.0, 1e3, update.vector.shape)
        return Reply(reply.receipt, dataclasses.replace(update, vector=noise.astype(np.float32)))


@pytest.mark.parametrize(
    ("rule", "solves"),
    [
        ({"strategy.aggregator": "median"}, True),
        ({"strategy.aggregator": "trimmed_mean"}, True),
        ({"strategy.aggregator": "krum"}, True),
        ({"strategy.aggregator": "multi_krum"}, True),
        ({"strategy.aggregator": "fedavg"}, False),
    ],
    ids=str,
)
def test_one_byzantine_client_of_five(
    experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch, rule: dict[str, Any], solves: bool
) -> None:
    monkeypatch.setattr("qfleet.strategies.base.clients.FederatedClient", Garbage)
    summary = experiment("qfleet/Identity-v0", IDENTITY | rule).run()
    score = summary["eval"]["mean_return"]  # type: ignore[index]
    assert score == 1.0 if solves else score < 0.9


class NotANumber(FederatedClient):
    """Some clients diverge in their every round."""

    broken: tuple[str, ...] = ("worker-1", "worker-3")

    def train(self, num_updates: int) -> Receipt:
        receipt = super().train(num_updates)
        if self.name in self.broken:
            raise DivergenceError("decoy 99")
        return receipt


@pytest.mark.parametrize(
    ("rule", "num_void"), [({"strategy.aggregator": "fedavg"}, False), ({"strategy.aggregator": "krum"}, True)], ids=str
)
def test_clients_that_diverge_are_refused_and_counted(
    experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch, rule: dict[str, Any], num_void: bool
) -> None:
    monkeypatch.setattr("qfleet.strategies.base.clients.FederatedClient", NotANumber)
    run = experiment("qfleet/Identity-v0", IDENTITY | rule | {"replay.min_transitions": 400})
    events = list(run.stream())
    assert run.session is not None
    tallies, counters = run.session.control.tallies, run.session.control.counters
    assert tallies["updates_refused"] == 2 * tallies["rounds"] > 0
    # Three are left, and Krum against one takes five: its rounds change nothing, and the run comes to its end.
    assert tallies.get("rounds_void", 0) == (tallies["rounds"] if num_void else 0)
    assert counters.num_updates == (0 if num_void else 10 * tallies["rounds"])
    assert_counts_add_up(run, events)


def test_where_all_diverge_the_run_says_so(experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qfleet.strategies.base.clients.FederatedClient", NotANumber)
    monkeypatch.setattr(NotANumber, "broken", tuple(f"worker-{rank}" for rank in range(5)))
    with pytest.raises(DivergenceError, match="not one of 5 client updates after update 0 is finite"):
        experiment("qfleet/Identity-v0", IDENTITY).run()


def assert_counts_add_up(run: Experiment, events: list[Any]) -> None:
    assert run.session is not None
    counters = run.session.control.counters
    receipts = [event.receipt for event in events if isinstance(event, Rollout | Update)]
    for name in ("num_env_steps", "num_inserted", "num_updates", "num_samples"):
        assert getattr(counters, name) == sum(getattr(receipt, name) for receipt in receipts), name


@pytest.mark.parametrize("victim", ["worker-2", "aggregator"])
@pytest.mark.parametrize("after_checkpoint", [False, True])
def test_a_death_is_counted_and_the_run_learns_all_the_same(
    experiment: MakeExperiment, victim: str, after_checkpoint: bool
) -> None:
    run = experiment("qfleet/Identity-v0", IDENTITY | {"checkpoint.every_env_steps": 300, "strategy.fraction": 0.6})
    events = []
    is_killed = False
    for event in run.stream():
        events.append(event)
        has_saved = any(isinstance(seen, CheckpointSaved) for seen in events)
        if not is_killed and isinstance(event, Rollout) and has_saved == after_checkpoint:
            assert run.session is not None
            if after_checkpoint or run.session.control.counters.num_updates >= 20:
                run.session.engine.kill(RoleRef(victim))
                is_killed = True
    assert run.session is not None
    control = run.session.control
    restarted = [event for event in events if isinstance(event, RoleRestarted)]
    assert [(event.role, event.cause, event.incarnation) for event in restarted] == [(victim, "killed", 1)]
    assert control.tallies["restarts.killed"] == 1
    assert ("transitions_lost" in control.tallies) == (victim != "aggregator")
    assert events[-1].summary["eval"]["mean_return"] == 1.0
    assert_counts_add_up(run, events)
    asked, measured = (events[-1].summary[f"samples_per_insert_{name}"] for name in ("asked", "measured"))
    assert 0.85 * asked < measured <= asked


def test_every_transition_is_in_a_replay_or_counted_as_lost(
    experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Clients die again and again between two checkpoints; some fail to save, which inserts the others' open windows.
    changes = {"algo.n_step": 3, "replay.capacity": 60_000, "checkpoint.every_env_steps": 100}
    limits = {"strategy.max_restarts": 1000, "strategy.max_restarts_per_minute": 1000, "strategy.local_steps": 2}
    run = experiment("CartPole-v1", IDENTITY | changes | limits)
    generator = np.random.default_rng(3)
    save, saves = FederatedClient.save, []

    def failing(self: FederatedClient, *args: Any) -> Any:
        saves.append(self.name)
        if len(saves) % 7 == 0:
            raise OSError("decoy 99")
        return save(self, *args)

    monkeypatch.setattr(FederatedClient, "save", failing)
    num_cuts = 0
    for event in run.stream():
        assert run.session is not None
        engine, control = run.session.engine, run.session.control
        clients = {name: role for name, role in engine._roles.items() if name.startswith("worker-")}  # type: ignore[attr-defined]
        if isinstance(event, Drained):
            num_cuts += 1
            held = sum(len(role.built.replay) for role in clients.values())
            assert held == control.counters.num_inserted - control.tallies.get("transitions_lost", 0)
        elif not control.is_ending and generator.random() < 0.05:
            engine.kill(RoleRef(sorted(clients)[int(generator.integers(len(clients)))]))
    assert num_cuts > 3
    assert control.tallies["restarts.killed"] > 10
    assert control.tallies["restarts.exception"] > 3
    assert control.tallies["transitions_lost"] > 100


def test_a_late_client_is_counted_and_its_steps_too(experiment: MakeExperiment) -> None:
    late = {"strategy.round_timeout": 2.0, "strategy.min_clients": 2, "strategy.aggregator": "median"}
    run = experiment("qfleet/Identity-v0", IDENTITY | late)
    events = list(run.stream())
    assert run.session is not None
    assert run.session.control.tallies["updates_late"] > 5
    assert_counts_add_up(run, events)
    assert events[-1].summary["eval"]["mean_return"] == 1.0


def arrays_in(value: object, seen: set[int] | None = None) -> Iterator[np.ndarray]:
    """Every array reachable from a value; transitions and samples are yielded as failures."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return
    seen.add(id(value))
    assert not isinstance(value, Transitions | Sample), "a transition is on its way"
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, dict):
        for entry in value.values():
            yield from arrays_in(entry, seen)
    elif isinstance(value, list | tuple | set):
        for entry in value:
            yield from arrays_in(entry, seen)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for entry in dataclasses.fields(value):
            yield from arrays_in(getattr(value, entry.name), seen)


@pytest.mark.parametrize("personal", ["none", "head"])
def test_nothing_but_parameters_leaves_a_client(
    experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch, personal: str
) -> None:
    answered: list[tuple[str, Receipt, object]] = []
    wait = Engine.wait

    def watched(self: Engine, timeout: float | None = None, lane: str = "training") -> Any:
        future = wait(self, timeout, lane)
        if future is not None and future.role.name.startswith("worker-"):
            answered.append((future.method, self.result(future), future.payload))
        return future

    monkeypatch.setattr(Engine, "wait", watched)
    run = experiment(
        "qfleet/Script-v0",
        {"strategy": "federated", "strategy.personal": personal, "network.normalize_observations": True},
    )
    run.run()
    network = FederatedClient(run.session.blueprint, "probe", personal=personal)  # type: ignore[union-attr,arg-type]
    num_shared, num_buffers = int(network.is_shared.sum()), network.learner.online.buffers.numel()
    assert {method for method, _, _ in answered} >= {"train_round", "save"}
    for method, receipt, payload in answered:
        assert list(arrays_in(receipt)) == [], "a receipt holds counts"
        if method == "train_round":
            assert type(payload) is ClientUpdate
            assert sorted(len(array) for array in arrays_in(payload)) == sorted([num_shared, num_buffers])
        else:
            assert payload is None or method == "personal_snapshot"
    with pytest.raises(AssertionError, match="on its way"):  # the search finds what is hidden
        list(arrays_in({"hidden": [Transitions(*[np.zeros(1)] * 5)]}))


def newest_manifest(run: Experiment) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads(max((run.run_dir / "checkpoints").glob("manifest-*.json")).read_text())
    return manifest


def inserted(run: Experiment) -> dict[str, int]:
    """By client, from the newest checkpoint."""
    clients = newest_manifest(run)["strategy"]["clients"]
    return {name: counts["inserted"] for name, counts in clients.items()}


def resumed(run_dir: Path, num_workers: int, max_env_steps: int) -> Experiment:
    run = Experiment.resume(run_dir, {"stop.max_env_steps": max_env_steps})
    make = federated.run

    def asked(engine: Any, blueprint: Any, config: Any, control: Any, saved: Any = None) -> Any:
        control.num_workers = num_workers
        return make(engine, blueprint, config, control, saved)

    federated.run = asked
    try:
        run.run()
    finally:
        federated.run = make
    return run


def test_another_number_of_clients_leaves_everybodys_data_where_it_is(experiment: MakeExperiment) -> None:
    first = experiment("qfleet/Identity-v0", IDENTITY | {"strategy.num_workers": 4, "stop.max_env_steps": 400})
    first.run()
    before, files_before = inserted(first), newest_manifest(first)["roles"]
    fewer = resumed(first.run_dir, 2, 800)
    after = inserted(fewer)
    assert set(after) == set(before) == {f"worker-{rank}" for rank in range(4)}
    for rank, name in enumerate(sorted(before)):
        assert (after[name] > before[name]) == (rank < 2), "those that are away neither lose nor gain"
    roles = newest_manifest(fewer)["roles"]
    assert roles["worker-3"] == files_before["worker-3"], "their files are kept as they were"
    assert roles["worker-0"] != files_before["worker-0"]
    assert all((first.run_dir / "checkpoints" / file["path"]).is_file() for file in roles["worker-3"])
    assert fewer.session is not None
    assert fewer.session.control.tallies["transitions_set_aside"] == before["worker-2"] + before["worker-3"]
    more = resumed(first.run_dir, 5, 1600)
    again = inserted(more)
    assert again["worker-2"] > before["worker-2"], "it is back, with what it had"
    assert again["worker-4"] > 0
    assert more.session is not None
    asked, measured = 8.0, more.session.tracker.samples_per_insert
    assert 0.8 * asked < measured <= asked


def test_transitions_that_a_checkpoint_cuts_off_are_counted_for_their_client(experiment: MakeExperiment) -> None:
    run = experiment("CartPole-v1", {"strategy": "federated", "algo.n_step": 3, "checkpoint.every_env_steps": 150})
    events = list(run.stream())
    assert run.session is not None
    counted = sum(event.receipt.num_inserted for event in events if isinstance(event, Rollout))
    assert sum(inserted(run).values()) == run.session.control.counters.num_inserted > counted


def test_a_damaged_file_of_a_client_is_named(experiment: MakeExperiment) -> None:
    run = experiment("qfleet/Identity-v0", IDENTITY)
    run.run()
    (state,) = (run.run_dir / "checkpoints" / "worker-3").glob("state-*.safetensors")
    state.write_bytes(state.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="worker-3"):
        Experiment.resume(run.run_dir, {"stop.max_env_steps": 2000}).run()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"lenght": 1.0}, r"attributes\.lenght = 1\.0: it has no number of that name; did you mean length"),
        ({"id": "Acrobot-v1"}, r"client_envs\.1: its obs_shape is \(6,\), the run's is \(4,\)"),
        ({"num_envs": 0}, r"client_envs\.1\.num_envs = 0"),
        ({"kwargs": {"wind": 1}}, "wind"),
    ],
)
def test_an_unknown_client_environment_stops_the_run_before_it_starts(
    experiment: MakeExperiment, entry: dict[str, Any], message: str
) -> None:
    run = experiment("CartPole-v1", {"strategy": "federated", "strategy.client_envs": [{"length": 1.0}, entry]})
    with pytest.raises(UsageError, match=message) as caught:
        run.run()
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert not run.run_dir.exists()


def test_clients_step_their_own_environments(experiment: MakeExperiment) -> None:
    envs = [{"length": 0.5}, {"length": 2.0, "num_envs": 3}]
    run = experiment("CartPole-v1", {"strategy": "federated", "strategy.client_envs": envs, "strategy.num_workers": 3})
    stream = run.stream()
    for event in stream:
        if isinstance(event, Update):
            break
    assert run.session is not None
    engine = run.session.engine
    assert isinstance(engine, Engine)
    found = {}
    for rank in range(3):
        client = engine._roles[f"worker-{rank}"].built
        assert isinstance(client, FederatedClient)
        inner = client.actor.envs._env.unwrapped
        found[rank] = (inner.length, inner.polemass_length, client.actor.envs.num_envs)  # type: ignore[attr-defined]
    stream.close()
    assert found == {0: (0.5, 0.05, 4), 1: (2.0, 0.2, 3), 2: (0.5, 0.05, 4)}
    config = run.config.strategy
    assert isinstance(config, federated.Config)
    blueprints = federated.evaluation_blueprints(run.session.blueprint, config)
    assert [plan.env.attributes["length"] for plan in blueprints.values()] == [0.5, 2.0, 0.5]
    assert list(blueprints) == ["worker-0", "worker-1", "worker-2"]
