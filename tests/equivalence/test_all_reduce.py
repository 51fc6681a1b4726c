"""All-reduce against serial training: one rank is serial bit for bit, N ranks are one learner on N batches."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qfleet.algos.base import Batch
from qfleet.experiment import Experiment
from qfleet.ops import q_learning
from qfleet.ops.importance import importance_weights
from qfleet.policy import make_blueprint
from qfleet.roles.blueprint import Blueprint
from qfleet.roles.rank_worker import RankWorker
from qfleet.types import Progress, Receipt, Sample

from .runs import records, stop_after_checkpoint
from .test_resume import ENVS, SCHEDULED, VARIANTS

MakeExperiment = Callable[..., Experiment]
COUNTS = ["num_env_steps", "num_updates", "num_episodes", "samples_per_insert_measured", "validation_return", "eval"]


def all_reduce(num_workers: int, **changes: Any) -> dict[str, Any]:
    return SCHEDULED | changes | {"strategy": "all_reduce", "strategy.num_workers": num_workers}


def without_lags(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records without what serial training has nothing to say about: how old things were when they were used."""
    return [{k: v for k, v in line.items() if not k.startswith(("policy_lag", "share_"))} for line in lines]


@pytest.mark.parametrize("env_id", ENVS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_one_rank_is_serial_bit_for_bit(experiment: MakeExperiment, tmp_path: Path, env_id: str, variant: str) -> None:
    changes = SCHEDULED | VARIANTS[variant]
    serial = experiment(env_id, changes, run_dir="serial").run()
    alone = experiment(env_id, all_reduce(1, **VARIANTS[variant]), run_dir="alone").run()
    assert alone["parameters_sha256"] == serial["parameters_sha256"] is not None
    assert {key: alone[key] for key in COUNTS} == {key: serial[key] for key in COUNTS}
    first, second = (without_lags(records(tmp_path / name)) for name in ("alone", "serial"))
    assert first == second, "losses, validations and their moments"
    assert serial["num_updates"] > 15


@pytest.mark.parametrize("env_id", ENVS)
@pytest.mark.parametrize("variant", ["uniform", "prioritized", "noisy", "normalized", "next-step-autoreset"])
def test_three_ranks_resumed_are_three_ranks_uninterrupted(
    experiment: MakeExperiment, tmp_path: Path, env_id: str, variant: str
) -> None:
    changes = all_reduce(3, **{**VARIANTS[variant], "replay.samples_per_insert": 6.0})
    whole = experiment(env_id, changes, run_dir="whole").run()
    stop_after_checkpoint(experiment(env_id, changes, run_dir="parts"), number=1, num_more_events=25)
    stop_after_checkpoint(Experiment.resume(tmp_path / "parts"), number=2, num_more_events=0)
    resumed = Experiment.resume(tmp_path / "parts").run()
    assert resumed["parameters_sha256"] == whole["parameters_sha256"] is not None
    assert records(tmp_path / "parts") == records(tmp_path / "whole")
    assert {key: resumed[key] for key in COUNTS} == {key: whole[key] for key in COUNTS}
    assert whole["num_updates"] > 15


def test_the_seed_decides_the_run_of_three_ranks(experiment: MakeExperiment) -> None:
    hashes = [
        experiment("qfleet/Script-v0", all_reduce(3, seed=seed), run_dir=name).run()["parameters_sha256"]
        for seed, name in [(3, "a"), (3, "b"), (4, "c")]
    ]
    assert hashes[0] == hashes[1] != hashes[2]


# One update of N ranks against one learner on their batches put together.


def ranks(experiment: MakeExperiment, num_ranks: int, changes: dict[str, Any]) -> tuple[Blueprint, list[RankWorker]]:
    """N ranks whose replays hold different transitions, and in prioritized replay different numbers of them."""
    made = experiment("CartPole-v1", {"algo.optimizer.max_grad_norm": 0.5, "algo.double": True, **changes})
    blueprint = make_blueprint(made.config, made.spec, "cpu")
    workers = [RankWorker(blueprint, f"worker-{rank}", rank, num_ranks) for rank in range(num_ranks)]
    for rank, worker in enumerate(workers):
        worker.collect(Progress(), 10 + 7 * rank)
    return blueprint, workers


def meet(workers: list[RankWorker], num_updates: int) -> list[Receipt]:
    """What an engine does with `train_together`, written out."""
    size = len(workers)
    steps: list[Generator[torch.Tensor, None, Receipt]] = [
        worker.train_together(num_updates, rank, size) for rank, worker in enumerate(workers)
    ]
    while True:
        tensors, receipts = [], []
        for own in steps:
            try:
                tensors.append(next(own))
            except StopIteration as end:
                receipts.append(end.value)
        if receipts:
            assert len(receipts) == size
            return receipts
        mean = torch.stack(tensors).mean(dim=0)
        for tensor in tensors:
            tensor.copy_(mean)


def reference_step(blueprint: Blueprint, worker: RankWorker, samples: list[Sample], rate: float) -> np.ndarray:
    """Plain SGD on the batches put together, by autograd in float64: double DQN, Huber, clipped by the global norm."""
    online = copy.deepcopy(worker.learner.online.module).double()
    target = copy.deepcopy(worker.learner.target.module).double()
    parameters = list(online.parameters())
    for parameter in parameters:
        parameter.grad = None
        parameter.requires_grad_(True)
    batches = [Batch.of(sample.transitions, torch.device("cpu")) for sample in samples]
    obs, next_obs = (torch.cat([getattr(b, name) for b in batches]).double() for name in ("obs", "next_obs"))
    reward, discount = (torch.cat([getattr(b, name) for b in batches]).double() for name in ("reward", "discount"))
    action = torch.cat([b.action for b in batches])
    with torch.no_grad():
        best = online(next_obs).argmax(dim=1, keepdim=True)
        goal = reward + discount * target(next_obs).gather(1, best).squeeze(1)
    error = online(obs).gather(1, action[:, None]).squeeze(1) - goal
    losses = q_learning.huber(error, 1.0)
    if blueprint.replay.sampler == "prioritized":
        # w = (N p)^-beta / max over the global batch; with the same share from each rank N p is in proportion to p.
        beta = blueprint.replay.importance_exponent_start
        probabilities = np.concatenate([sample.probabilities for sample in samples])
        weights = importance_weights(probabilities, 1, beta).astype(np.float64)
        losses = losses * torch.from_numpy(weights)
    losses.mean().backward()
    gradient = torch.cat([parameter.grad.reshape(-1) for parameter in parameters if parameter.grad is not None])
    limit = blueprint.algo.optimizer.max_grad_norm
    assert limit is not None
    gradient *= min(1.0, limit / float(gradient.norm()))
    vector = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
    return (vector - rate * gradient).numpy()


@pytest.mark.parametrize("sampler", ["uniform", "prioritized"])
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_an_update_is_one_learners_on_all_batches(experiment: MakeExperiment, num_ranks: int, sampler: str) -> None:
    changes = {"algo.optimizer": "sgd", "algo.learning_rate": 0.5, "replay.sampler": sampler}
    blueprint, workers = ranks(experiment, num_ranks, changes)
    for worker in workers:  # replays of very unequal priorities, so that the smallest probabilities differ
        if sampler == "prioritized":
            keys = np.arange(worker.replay.num_inserted)
            worker.replay.update_priorities(keys, np.linspace(0.1, 1.0 + worker.replay.num_inserted, len(keys)))
    twins = [copy.deepcopy(worker.replay) for worker in workers]
    samples = [twin.sample(blueprint.algo.batch_size) for twin in twins]
    expected = reference_step(blueprint, workers[0], samples, 0.5)
    alone = reference_step(blueprint, workers[0], samples[:1], 0.5)
    before = workers[0].learner.online.vector.numpy().copy()
    receipts = meet(workers, 1)
    for worker in workers:
        np.testing.assert_allclose(worker.learner.online.vector.numpy(), expected, rtol=0, atol=1e-6)
    assert np.abs(expected - alone).max() > 1e-4, "one rank's batch would have led elsewhere"
    assert np.abs(expected - before).max() > 1e-2
    assert [(r.num_updates, r.num_samples, r.version) for r in receipts] == [(1, 16, 1)] * num_ranks


VARIANTS_OF_RANKS = ["uniform", "prioritized", "noisy", "normalized", "schedules"]


@pytest.mark.parametrize("variant", VARIANTS_OF_RANKS)
def test_ranks_stay_equal(experiment: MakeExperiment, variant: str) -> None:
    _, workers = ranks(experiment, 3, VARIANTS[variant])
    first = workers[0].learner
    before = first.online.vector.clone()
    meet(workers, 12)
    meet(workers, 7)
    assert not torch.equal(first.online.vector, before)
    for worker in workers[1:]:
        mine, theirs = first.share(), worker.learner.share()
        for name in ("online", "online_buffers", "target", "target_buffers", "moments"):
            assert np.array_equal(getattr(mine, name), getattr(theirs, name)), name
        assert (mine.version, mine.optimizer_steps) == (theirs.version, theirs.optimizer_steps) == (19, 19.0)
    draws = {worker.replay.sampler_state().generator for worker in workers}
    assert len(draws) == 3, "what they draw is their own"


def test_statistics_are_the_mean_of_the_ranks(experiment: MakeExperiment) -> None:
    _, workers = ranks(experiment, 2, VARIANTS["normalized"])
    apart = [copy.deepcopy(worker) for worker in workers]
    for worker in apart:  # one batch each: the same that the group is going to draw
        worker.learner.gradient(worker.replay.sample(worker.batch_size))
    own = [worker.learner.online.buffers for worker in apart]
    assert not torch.allclose(own[0], own[1])
    meet(workers, 1)
    for worker in workers:
        torch.testing.assert_close(worker.learner.online.buffers, (own[0] + own[1]) / 2)
        assert torch.equal(worker.learner.target.buffers, worker.learner.online.buffers)


def test_a_rank_that_takes_over_goes_on_as_the_other_would(experiment: MakeExperiment) -> None:
    _, workers = ranks(experiment, 2, {})
    first, second = workers
    meet([first], 5)
    state = first.learner.share()
    second.learner.take_over(state)
    sample = first.replay.sample(16)
    for worker in workers:
        worker.learner.learn(sample)
    assert torch.equal(first.learner.online.vector, second.learner.online.vector), "moments and steps came along"
    assert not np.array_equal(state.online, first.learner.online.vector.numpy()), "what was shared stays as it was"
    with pytest.raises(ValueError, match="read-only"):
        state.moments[0, 0] = 99.0


def test_seconds_of_a_rank_are_its_own(experiment: MakeExperiment, tmp_path: Path) -> None:
    experiment("qfleet/Identity-v0", all_reduce(2)).run()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    named = {key for line in lines for key in line if key.startswith("seconds_")}
    assert {"seconds_learner", "seconds_replay", "seconds_environment"} <= named
    assert "seconds_all_reduce" not in named, "on inline, waiting is the others' work"
