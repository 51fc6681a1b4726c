"""One transition, end to end: tagged by its reward, it is followed from the environment into the next snapshot.

envs -> actor and n-step adder -> replay row and key -> sample -> learner batch -> loss -> version+1 -> snapshot
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qfleet.algos.base import Batch
from qfleet.config import EvaluationConfig
from qfleet.envs.make import probe_spec
from qfleet.networks.flat import vector_sha256
from qfleet.policy import Policy, make_blueprint
from qfleet.roles.actor import Actor
from qfleet.roles.blueprint import Blueprint
from qfleet.roles.evaluator import Evaluator
from qfleet.roles.worker import Worker
from qfleet.run_config import build_config
from qfleet.types import ParamSnapshot, Progress, Receipt

TAG = 1000.0
GAMMA = 0.5


def plan(tiny: dict[str, Any], sampler: str) -> Blueprint:
    changes = tiny | {
        "env.id": "qfleet/Script-v0",
        "env.kwargs": {"rewards": (1.0, 2.0, TAG, 8.0, 16.0, 32.0), "ends": ("", "", "", "", "", "terminated")},
        "env.num_envs": 1,
        "algo.n_step": 2,
        "algo.gamma": GAMMA,
        "algo.double": False,
        "algo.loss": "mse",
        "replay.sampler": sampler,
        "replay.min_transitions": 1,
    }
    config = build_config({}, list(changes.items()))
    return make_blueprint(config, probe_spec(config.env))


def spy(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[tuple[tuple[Any, ...], Any]]:
    """Every call of owner.name from now on: (arguments, answer)."""
    calls: list[tuple[tuple[Any, ...], Any]] = []
    original: Callable[..., Any] = getattr(owner, name)

    def watched(*args: Any) -> Any:
        answer = original(*args)
        calls.append((args, answer))
        return answer

    monkeypatch.setattr(owner, name, watched)
    return calls


@pytest.mark.parametrize("sampler", ["uniform", "prioritized"])
def test_the_trip_of_one_transition(tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch, sampler: str) -> None:
    blueprint = plan(tiny, sampler)
    worker = Worker(blueprint, "worker-0")
    learner, actor, replay = worker.learner, worker.actor, worker.replay
    actor.envs.reset(seed=0)  # the script's tag, part of each observation, is this seed
    steps = spy(monkeypatch, actor.envs, "step")
    inserts = spy(monkeypatch, replay, "insert")
    samples = spy(monkeypatch, replay, "sample")
    losses = spy(monkeypatch, learner.algorithm, "backpropagate")
    updates = spy(monkeypatch, replay, "update_priorities")

    # Environment: the tagged reward comes with the third step, from [tag 0, episode 0, step 2, the last action].
    receipt = worker.collect(Progress(), 5)
    assert (receipt.num_env_steps, receipt.num_inserted) == (5, 4)
    (actions,), step = steps[2]
    assert step.reward.tolist() == [TAG]
    obs = np.array([0.0, 0.0, 2.0, steps[1][0][0][0]], np.float32)
    np.testing.assert_array_equal(steps[1][1].obs, [obs])

    # Actor and adder: its window of two closes with the fourth step. G = 1000 + 0.5 * 8, discount 0.5^2.
    (transitions,), keys = next((args, keys) for args, keys in inserts if args[0].reward[0] == TAG + GAMMA * 8.0)
    assert transitions.discount.tolist() == [0.25]
    np.testing.assert_array_equal(transitions.obs, [obs])
    np.testing.assert_array_equal(transitions.action, actions)
    np.testing.assert_array_equal(transitions.next_obs, steps[3][1].next_obs)
    assert transitions.next_obs[0, 2] == 4.0

    # Replay: the third window is the third insertion, and its row is where its key says.
    assert keys.tolist() == [2]
    row = replay.storage.gather(replay.storage.slots_of(keys))
    np.testing.assert_array_equal(row.obs, [obs])
    assert (row.reward.item(), row.discount.item(), row.action.item()) == (1004.0, 0.25, actions[0])

    # Sample, batch, loss: what the learner trains on is this row, with the target by hand.
    before = learner.online.vector.clone()
    with torch.no_grad():
        q_taken = float(learner.online.module(torch.from_numpy(row.obs.copy()))[0, actions[0]])
        q_next = float(learner.target.module(torch.from_numpy(row.next_obs.copy())).max())
    td_error = q_taken - (1004.0 + 0.25 * q_next)
    trained = worker.train(1)
    sample = samples[0][1]
    places = np.flatnonzero(sample.keys == 2)
    assert len(places) >= 1, "16 draws out of 4 rows"
    (online, target, batch, weights), output = losses[0]
    assert isinstance(batch, Batch)
    assert (online, target) == (learner.online, learner.target)
    np.testing.assert_array_equal(batch.obs[places], np.tile(obs, (len(places), 1)))
    np.testing.assert_array_equal(batch.reward[places], [1004.0] * len(places))
    np.testing.assert_allclose(output.priority[places], abs(td_error), rtol=1e-5)
    assert (weights is None) == (sampler == "uniform")

    # Priorities back under the same key, by which the next sample finds it far more often.
    if sampler == "prioritized":
        (sent_keys, sent), _ = updates[0]
        np.testing.assert_array_equal(sent_keys, sample.keys)
        np.testing.assert_allclose(sent[places], abs(td_error), rtol=1e-5)
        again = replay.sample(64)
        share = again.probabilities[again.keys == 2][0]
        assert share > 0.5 > sample.probabilities[places[0]] == pytest.approx(0.25)

    # Parameters: one version on, moved by a gradient that this transition had a part in.
    assert (learner.version, trained.version, trained.num_updates, trained.num_samples) == (1, 1, 1, 16)
    assert learner.online.gradient is not None
    assert torch.count_nonzero(learner.online.gradient) > 0
    assert not torch.equal(before, learner.online.vector)

    # Snapshot: these parameters, immutable, with their version.
    snapshot = worker.snapshot().payload
    assert isinstance(snapshot, ParamSnapshot)
    assert snapshot.version == 1
    np.testing.assert_array_equal(snapshot.vector, learner.online.vector)

    # Actor: this worker's acts on the very same vector; another one takes the snapshot over and acts alike.
    assert actor.network is learner.online
    other = Actor(blueprint, "actor-1", blueprint.build_network(trainable=False))
    assert vector_sha256(other.network.vector.numpy()) == vector_sha256(before.numpy()), "same first weights"
    other.network.load(snapshot)
    monkeypatch.setattr(Actor, "epsilon", lambda self, progress: 0.0)
    seen = other.envs.obs.copy()
    chosen = spy(monkeypatch, other.envs, "step")
    other.step(Progress(), Receipt())
    assert chosen[0][0][0][0] == Policy(blueprint, snapshot).act(seen[0])
    assert Evaluator(blueprint, EvaluationConfig(num_envs=2)).evaluate(snapshot, 2, seed=0).version == 1


def test_without_the_tag_nothing_would_be_found(tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    # Decoy: no other transition of the script has a return of 1004.
    worker = Worker(plan(tiny, "uniform"), "worker-0")
    inserts = spy(monkeypatch, worker.replay, "insert")
    worker.collect(Progress(), 5)
    returns = [float(value) for args, _ in inserts for value in args[0].reward]
    # 1 + 0.5 * 2, 2 + 0.5 * 1000, 1000 + 0.5 * 8, 8 + 0.5 * 16
    assert returns == [2.0, 502.0, 1004.0, 16.0]


def test_a_checkpoint_that_resets_the_environments_loses_no_transition(tiny: dict[str, Any], tmp_path: Path) -> None:
    # CartPole offers no state: its open windows, two per environment with n = 3, are closed as truncations and kept.
    changes = tiny | {"env.id": "CartPole-v1", "env.num_envs": 2, "algo.n_step": 3, "algo.gamma": GAMMA}
    config = build_config({}, list(changes.items()))
    worker = Worker(make_blueprint(config, probe_spec(config.env)), "worker-0")
    worker.collect(Progress(), 5)
    obs = worker.actor.envs.obs.copy()
    assert worker.replay.num_inserted == 2 * 3
    receipt = worker.save(str(tmp_path), "00000", [])
    assert (receipt.num_inserted, worker.replay.num_inserted) == (4, 10)
    rows = worker.replay.storage.gather(np.arange(6, 10))
    # Longer windows first: two steps held, then one. 1 + 0.5 * 1 with discount 0.25; 1 with 0.5; both from where it is.
    np.testing.assert_array_equal(rows.reward, [1.5, 1.5, 1.0, 1.0])
    np.testing.assert_array_equal(rows.discount, [0.25, 0.25, 0.5, 0.5])
    np.testing.assert_array_equal(rows.next_obs, np.concatenate([obs, obs]))
    assert not np.array_equal(worker.actor.envs.obs, obs), "and the environments began anew"


def test_a_checkpoint_of_an_environment_with_state_changes_nothing(tiny: dict[str, Any], tmp_path: Path) -> None:
    worker = Worker(plan(tiny, "uniform"), "worker-0")
    worker.collect(Progress(), 3)
    obs, num_inserted = worker.actor.envs.obs.copy(), worker.replay.num_inserted
    assert worker.save(str(tmp_path), "00000", []).num_inserted == 0
    np.testing.assert_array_equal(worker.actor.envs.obs, obs)
    assert worker.replay.num_inserted == num_inserted
