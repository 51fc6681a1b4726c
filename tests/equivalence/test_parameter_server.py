"""Parameter server and synchronous groups are the serial learner, mapped: the equalities of docs/architecture.md."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qfleet.algos.base import Batch
from qfleet.envs.make import probe_spec
from qfleet.experiment import Experiment
from qfleet.ops.slices import slice_bounds
from qfleet.policy import make_blueprint
from qfleet.roles.blueprint import Blueprint
from qfleet.roles.gradient_worker import GradientWorker
from qfleet.roles.parameter_server import ParameterServer
from qfleet.roles.push import Push
from qfleet.run_config import build_config
from qfleet.types import ParamSlice, Progress, Ticket

from .runs import stop_after_checkpoint

MakeExperiment = Callable[..., Experiment]
SERVER = {"strategy": "parameter_server"}
VARIANTS: dict[str, dict[str, Any]] = {
    "uniform": {},
    "prioritized": {"replay.sampler": "prioritized", "replay.importance_anneal_updates": 20},
    "noisy": {"algo.noisy": True, "algo.exploration": "none"},
    "normalized": {"network.normalize_observations": True},
    "n-step": {"algo.n_step": 3},
    "schedules": {
        "algo.optimizer.schedule": "cosine",
        "algo.optimizer.decay_updates": 30,
        "algo.optimizer.name": "rmsprop",
        "algo.target_update": "soft",
        "algo.exploration": "per_env",
    },
}
COMMON = {"checkpoint.every_env_steps": 160, "evaluation.every_env_steps": 220}


def outcome(experiment: Experiment) -> tuple[object, ...]:
    summary = experiment.run()
    return tuple(summary[key] for key in ("parameters_sha256", "num_env_steps", "num_updates", "validation_return"))


@pytest.mark.parametrize("wait", ["sync", "ssp", "async"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_one_worker_and_one_server_are_serial_bit_for_bit(experiment: MakeExperiment, variant: str, wait: str) -> None:
    changes = {**COMMON, **VARIANTS[variant]}
    serial = outcome(experiment("CartPole-v1", changes, run_dir="serial"))
    fleet = {**changes, **SERVER, "strategy.num_workers": 1, "strategy.wait": wait}
    assert outcome(experiment("CartPole-v1", fleet, run_dir="fleet")) == serial


def test_one_group_of_one_is_serial_bit_for_bit(experiment: MakeExperiment) -> None:
    serial = outcome(experiment("CartPole-v1", COMMON, run_dir="serial"))
    fleet = {**COMMON, "strategy": "sync_groups", "strategy.num_workers": 1, "strategy.num_groups": 1}
    assert outcome(experiment("CartPole-v1", fleet, run_dir="fleet")) == serial


def test_bound_zero_is_synchronous_and_no_bound_asynchronous(experiment: MakeExperiment) -> None:
    def run(**rules: Any) -> tuple[object, ...]:
        fields = {f"strategy.{key}": value for key, value in rules.items()}
        return outcome(experiment("CartPole-v1", {**COMMON, **SERVER, **fields}, run_dir=str(rules)))

    for merge in ("mean", "arrival", "staleness"):
        assert run(wait="ssp", bound=0, merge=merge) == run(wait="sync", merge=merge), merge
    for merge in ("arrival", "staleness"):
        assert run(wait="ssp", bound=10**9, merge=merge) == run(wait="async", merge=merge), merge
    assert run(wait="ssp", bound=1) != run(wait="async"), "the bound is felt"


@pytest.mark.parametrize("compression", ["none", "top_k"])
def test_several_servers_are_one(experiment: MakeExperiment, compression: str) -> None:
    def snapshot(num_servers: int) -> np.ndarray:
        changes = {
            **SERVER,
            "strategy.num_servers": num_servers,
            "strategy.compression": compression,
            "strategy.top_k_fraction": 0.3,
            "strategy.num_workers": 2,
            "algo.optimizer.max_grad_norm": 0.5,  # bites: the norm has to be that of all slices together
            "stop.max_env_steps": 120,
        }
        run = experiment("qfleet/Identity-v0", changes, run_dir=f"servers-{num_servers}")
        for _ in run.stream():
            pass
        [file] = (run.run_dir / "best").glob("policy-*.safetensors")
        from safetensors.numpy import load_file

        return load_file(file)["vector"]

    one = snapshot(1)
    for num_servers in (2, 3, 7):
        np.testing.assert_allclose(snapshot(num_servers), one, rtol=0, atol=1e-6)


def blueprint_of(overrides: dict[str, Any]) -> Blueprint:
    config = build_config({}, [("env.id", "CartPole-v1"), ("device", "cpu"), *overrides.items()])
    return make_blueprint(config, probe_spec(config.env), "cpu")


@pytest.mark.parametrize("num_workers", [2, 4])
def test_n_workers_make_the_update_of_one_learner_on_n_batches(num_workers: int, tiny: dict[str, Any]) -> None:
    rate = 0.1
    blueprint = blueprint_of(
        {
            "algo.optimizer.name": "sgd",
            "algo.learning_rate": rate,
            "algo.optimizer.max_grad_norm": "none",
            "algo.batch_size": 16,
            "network.hidden": [16],
            "replay.min_transitions": 40,
        }
    )
    server = ParameterServer(blueprint, "server-0")
    published = server.publish().payload
    assert isinstance(published, ParamSlice)
    pushes, batches = [], []
    for rank in range(num_workers):
        worker = GradientWorker(blueprint, f"worker-{rank}", rank, num_workers)
        worker.collect_with(Progress(), 40, published)
        sample, samples = worker.replay.sample, []
        worker.replay.sample = lambda size, sample=sample, samples=samples: samples.append(sample(size)) or samples[0]
        reply = worker.gradient(published)
        assert isinstance(reply.payload, Push)
        pushes.append(reply.payload)
        batches.append(Batch.of(samples[0].transitions, torch.device("cpu")))
    tickets = [Ticket(f"worker-{rank}", 0, 0, 0) for rank in range(num_workers)]
    merged = server.update(tickets, 1.0, 1, *pushes).payload
    assert isinstance(merged, ParamSlice)

    # The reference: one double-precision network, the Huber loss of the joint batch by autograd, one step of SGD.
    network = blueprint.build_network()
    module = network.module.double()
    for parameter in module.parameters():
        parameter.requires_grad_(True)
        parameter.grad = None

    def join(field: str) -> torch.Tensor:
        return torch.cat([getattr(batch, field) for batch in batches])

    with torch.no_grad():
        next_values = module(join("next_obs").double())
        chosen = next_values.argmax(dim=1) if blueprint.algo.double else None  # type: ignore[attr-defined]
        best = next_values.max(dim=1).values if chosen is None else next_values.gather(1, chosen[:, None])[:, 0]
        target = join("reward").double() + join("discount").double() * best
    values = module(join("obs").double()).gather(1, join("action")[:, None])[:, 0]
    torch.nn.functional.huber_loss(values, target).backward()
    expected = torch.cat([(p - rate * p.grad).detach().reshape(-1) for p in module.parameters()])
    np.testing.assert_allclose(merged.vector, expected.numpy(), rtol=0, atol=1e-6)
    assert np.abs(merged.vector - published.vector).max() > 1e-3, "something was learned"


def test_slices_cover_the_vector_once() -> None:
    blueprint = blueprint_of({})
    whole = ParameterServer(blueprint, "server-0").publish().payload
    assert isinstance(whole, ParamSlice)
    parts = [ParameterServer(blueprint, f"server-{i}", i, 3).publish().payload for i in range(3)]
    joined = np.concatenate([part.vector for part in parts if isinstance(part, ParamSlice)])
    np.testing.assert_array_equal(joined, whole.vector)
    assert slice_bounds(len(whole.vector), 3)[1][0] == parts[1].offset  # type: ignore[attr-defined]


RESUMED: dict[str, dict[str, Any]] = {
    "sync": {},
    "async": {"strategy.wait": "async", "strategy.in_flight": 2},
    "ssp": {"strategy.wait": "ssp", "strategy.bound": 2},
    "ssp-mean": {"strategy.wait": "ssp", "strategy.bound": 1, "strategy.merge": "mean"},
    "servers-top-k": {"strategy.num_servers": 3, "strategy.compression": "top_k", "strategy.top_k_fraction": 0.1},
    "backups": {"strategy.backup_workers": 1},
    "local": {"strategy.local_steps": 3},
    "groups": {"strategy": "sync_groups", "strategy.num_groups": 2},
}


@pytest.mark.parametrize("rules", RESUMED)
def test_interrupted_and_resumed_is_uninterrupted_bit_for_bit(experiment: MakeExperiment, rules: str) -> None:
    changes = {
        **SERVER,
        "strategy.num_workers": 3,
        "seed": 5,
        "replay.sampler": "prioritized",
        "replay.capacity": 150,
        "replay.samples_per_insert": 8.0,
        "evaluation.every_env_steps": 130,
        "checkpoint.every_env_steps": 90,
        "checkpoint.keep": 9,
        **RESUMED[rules],
    }
    whole = experiment("CartPole-v1", changes, run_dir="whole")
    expected = outcome(whole)
    torn = experiment("CartPole-v1", changes, run_dir="torn")
    stop_after_checkpoint(torn, 2, num_more_events=17)
    assert outcome(Experiment.resume(torn.run_dir)) == expected
    assert counters_of(torn.run_dir) == counters_of(whole.run_dir)


def counters_of(run_dir: Path) -> dict[str, int]:
    newest = sorted((run_dir / "checkpoints").glob("manifest-*.json"))[-1]
    counters: dict[str, int] = json.loads(newest.read_text())["counters"]
    return counters


def test_the_seed_decides_an_asynchronous_run(experiment: MakeExperiment) -> None:
    changes = {**SERVER, "strategy.wait": "async"}
    first, again, other = (
        outcome(experiment("CartPole-v1", {**changes, "seed": seed}, run_dir=name))
        for seed, name in ((3, "a"), (3, "b"), (4, "c"))
    )
    assert first == again != other


@pytest.mark.parametrize(("num_workers", "num_servers"), [(1, 1), (2, 3), (4, 2), (7, 1)])
def test_a_checkpoint_resumes_on_another_number_of_roles(
    experiment: MakeExperiment, num_workers: int, num_servers: int
) -> None:
    changes = {**SERVER, "strategy.num_workers": 4, "strategy.num_servers": 2, "checkpoint.every_env_steps": 200}
    first = experiment("CartPole-v1", changes, run_dir="first")
    stop_after_checkpoint(first, 1, 0)
    saved = counters_of(first.run_dir)
    resumed = Experiment.resume(
        first.run_dir, {"strategy.num_workers": num_workers, "strategy.num_servers": num_servers}
    )
    events = resumed.stream()
    next(events)
    assert resumed.session is not None
    roles = resumed.session.engine._roles  # type: ignore[attr-defined]
    workers = [role.built for name, role in roles.items() if name.startswith("worker-")]
    servers = [role.built for name, role in roles.items() if name.startswith("server-")]
    assert (len(workers), len(servers)) == (num_workers, num_servers)
    held = sum(len(worker.replay) for worker in workers)
    assert 0 <= held - saved["num_inserted"] <= 4, "all of the replay is there, and the first new step"
    assert {server.version for server in servers} == {saved["num_updates"]}
    for _ in events:
        pass
    assert resumed.session.control.counters.num_updates > saved["num_updates"]
    assert {server.version for server in servers} == {resumed.session.control.counters.num_updates}
