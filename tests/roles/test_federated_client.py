"""A federated client: local updates from the global model, the proximal term, personal heads, new lives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qfleet.algos.dqn import Config as DQNConfig
from qfleet.config import ReplayConfig
from qfleet.envs.config import EnvConfig
from qfleet.envs.make import probe_spec
from qfleet.networks.torso import NetworkConfig
from qfleet.roles.aggregator import AggregationRule, Aggregator
from qfleet.roles.blueprint import Blueprint
from qfleet.roles.federated_client import FederatedClient
from qfleet.roles.federation import ClientUpdate, GlobalModel
from qfleet.types import ParamSnapshot, Progress, Receipt


def blueprint(**algo: Any) -> Blueprint:
    env = EnvConfig(id="qfleet/Identity-v0", num_envs=2)
    settings = {"batch_size": 8, "gamma": 0.0, "optimizer": "sgd", "learning_rate": 0.1} | algo
    replay = ReplayConfig(capacity=64, min_transitions=8, samples_per_insert=4.0)
    return Blueprint(
        env, None, probe_spec(env), "dqn", DQNConfig(**settings), NetworkConfig(hidden=(4,)), replay, seed=1
    )


def published(plan: Blueprint) -> GlobalModel:
    model = Aggregator(plan, "aggregator", AggregationRule()).publish().payload
    assert isinstance(model, GlobalModel)
    return model


def train(client: FederatedClient, *models: GlobalModel, num_updates: int = 4) -> tuple[Receipt, ClientUpdate]:
    reply = client.train_round(Progress(), 0, 0, num_updates, 1, *models)
    assert isinstance(reply.payload, ClientUpdate)
    return reply.receipt, reply.payload


def test_a_round_collects_as_its_pace_demands_and_makes_its_updates() -> None:
    plan = blueprint()
    client = FederatedClient(plan, "worker-0")
    receipt, sent = train(client, published(plan))
    # 4 updates of 8 samples at 4 samples an insert take 8 inserts beyond the first 8: 16, two environments at a time.
    assert (receipt.num_env_steps, receipt.num_inserted, receipt.num_updates, receipt.num_samples) == (16, 16, 4, 32)
    assert sent.num_samples == 32
    assert receipt.num_bytes == sent.num_bytes == 4 * client.learner.online.num_parameters
    # The counts are the coordinator's: told that 8 more inserts are owed for, it trains on what it has.
    reply = client.train_round(Progress(), 32, 64, 2, 1, published(plan))
    assert (reply.receipt.num_env_steps, reply.receipt.num_updates) == (0, 2)


def test_every_round_begins_at_the_global_model() -> None:
    plan = blueprint()
    client, model = FederatedClient(plan, "worker-0"), published(plan)
    moved = replace(model, vector=model.vector + 1.0, version=50)
    frozen = blueprint(learning_rate=1e-30)
    still = FederatedClient(frozen, "worker-0")
    train(client, model)
    _, sent = train(still, moved, num_updates=1)
    assert np.array_equal(sent.vector, moved.vector), "a step of nothing leaves the global parameters"
    assert still.learner.version == 51


def test_the_target_comes_from_the_older_model_where_the_newer_has_none() -> None:
    plan = blueprint(target_update="hard", target_period_updates=1000)
    client, model = FederatedClient(plan, "worker-0"), published(plan)
    older = replace(model, target=model.vector + 7.0)
    newer = replace(model, vector=model.vector + 1.0, version=3, target=None)
    train(client, newer, older)
    assert np.array_equal(client.learner.target.vector.numpy(), model.vector + 7.0)


def test_a_strong_proximal_term_holds_the_client_at_the_global_model() -> None:
    plan = blueprint()
    model = published(plan)
    drift = {}
    for mu in (0.0, 5.0):
        _, sent = train(FederatedClient(plan, "worker-0", mu=mu), model, num_updates=20)
        drift[mu] = float(np.linalg.norm(sent.vector - model.vector))
    assert 0.0 < drift[5.0] < 0.5 * drift[0.0]


def test_the_proximal_term_is_added_between_gradient_and_step() -> None:
    plan = blueprint()
    model = published(plan)
    plain, drawn = FederatedClient(plan, "worker-0"), FederatedClient(plan, "worker-0", mu=2.0)
    for client in (plain, drawn):
        train(client, model, num_updates=1)
        client.learner.online.vector.copy_(client.learner.anchor + 0.25)
    sample = plain.replay.sample(8)
    for client in (plain, drawn):
        client.learner.gradient(sample)
    assert plain.learner.online.gradient is not None
    assert drawn.learner.online.gradient is not None
    extra = (drawn.learner.online.gradient - plain.learner.online.gradient).numpy()
    assert np.allclose(extra, 2.0 * 0.25, atol=1e-6)
    assert drawn.learner.gradient_norm == pytest.approx(float(drawn.learner.online.gradient.norm()))


def test_a_personal_head_is_neither_sent_nor_overwritten() -> None:
    plan = blueprint()
    client, model = FederatedClient(plan, "worker-0", personal="head"), published(plan)
    _, sent = train(client, model, num_updates=10)
    is_head = ~client.is_shared
    own = client.learner.online.vector.numpy()[is_head].copy()
    assert len(sent.vector) == int(client.is_shared.sum()) == len(model.vector) - (4 * 4 + 4)
    assert not np.array_equal(own, model.vector[is_head]), "it has learned"
    moved = replace(model, vector=model.vector + 5.0, version=9)
    snapshot = client.personal_snapshot(moved).payload
    assert isinstance(snapshot, ParamSnapshot)
    assert np.array_equal(snapshot.vector[is_head], own)
    assert np.array_equal(snapshot.vector[~is_head], moved.vector[~is_head])
    still = FederatedClient(blueprint(learning_rate=1e-30), "worker-0", personal="head")
    still.learner.online.vector.copy_(client.learner.online.vector)
    train(still, moved, num_updates=1)
    assert np.array_equal(still.learner.online.vector.numpy()[is_head], own)
    assert np.array_equal(still.learner.online.vector.numpy()[~is_head], moved.vector[~is_head])


def test_it_evaluates_with_its_own_head_on_its_own_environment() -> None:
    plan = blueprint(learning_rate=0.5)
    client, model = FederatedClient(plan, "worker-0", personal="head"), published(plan)
    train(client, model, num_updates=300)
    own = client.evaluate(30, 3, model)
    shared = FederatedClient(plan, "worker-1").evaluate(30, 3, model)
    assert len(own.episode_returns) == 30
    assert np.mean(own.episode_returns) > np.mean(shared.episode_returns)


def test_moments_are_kept_or_begin_anew() -> None:
    plan = blueprint(optimizer="adam", learning_rate=0.01)
    model = published(plan)
    for keep, num_steps in ((True, 8.0), (False, 4.0)):
        client = FederatedClient(plan, "worker-0", keep_optimizer=keep)
        train(client, model)
        train(client, model)
        assert float(client.learner.optimizer.num_steps) == num_steps


def test_a_client_that_diverges_says_so_and_is_back_where_it_was() -> None:
    plan = blueprint(learning_rate=1e30, loss="mse")
    model = published(plan)
    client = FederatedClient(plan, "worker-0")
    receipt, sent = train(client, model, num_updates=50)
    assert np.isnan(sent.vector).all()
    assert 0 < receipt.num_updates < 50
    assert receipt.num_samples == 8 * receipt.num_updates
    assert np.array_equal(client.learner.online.vector.numpy(), model.vector)


def test_a_new_life_has_the_saved_replay_and_head_but_other_episodes(tmp_path: Path) -> None:
    plan = blueprint()
    client = FederatedClient(plan, "worker-0", personal="head")
    train(client, published(plan))
    files = client.save(str(tmp_path), "00001", []).files
    again = FederatedClient(plan, "worker-0", personal="head")
    again.revive(str(tmp_path), "00001", files, 1, 5)
    assert len(again.replay) == len(client.replay) == 16
    assert np.array_equal(again.learner.online.vector, client.learner.online.vector)
    empty = FederatedClient(plan, "worker-0")
    empty.revive(str(tmp_path), "", [], 1, 5)
    assert len(empty.replay) == 0
    # Its pace knows of 100 transitions, its replay of none: it fills a batch before it trains.
    reply = empty.train_round(Progress(), 100, 0, 1, 1, published(plan))
    assert reply.receipt.num_inserted == 8
