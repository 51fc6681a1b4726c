"""The aggregator: rules on tiny vectors, refusals, the target, versions, saving and new lives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qfleet.algos.dqn import Config as DQNConfig
from qfleet.config import ReplayConfig
from qfleet.envs.config import EnvConfig
from qfleet.envs.make import probe_spec
from qfleet.errors import CheckpointError, ConfigError, DivergenceError
from qfleet.networks.torso import NetworkConfig
from qfleet.roles.aggregator import AggregationRule, Aggregator
from qfleet.roles.blueprint import Blueprint
from qfleet.roles.federation import ClientUpdate, GlobalModel, shared_parameters
from qfleet.types import Reply


def blueprint(**algo: Any) -> Blueprint:
    env = EnvConfig(id="qfleet/Identity-v0", num_envs=2)
    spec = probe_spec(env)
    return Blueprint(env, None, spec, "dqn", DQNConfig(**algo), NetworkConfig(hidden=(2,)), ReplayConfig(), seed=1)


def make(rule: AggregationRule | None = None, **algo: Any) -> Aggregator:
    return Aggregator(blueprint(**algo), "aggregator", rule or AggregationRule())


def update(of: Aggregator, value: float, num_samples: int = 1) -> ClientUpdate:
    vector = np.full(int(of.is_shared.sum()), value, np.float32)
    return ClientUpdate(vector, np.zeros(0, np.float32), num_samples, of.layout_hash)


def model(reply: Reply) -> GlobalModel:
    assert isinstance(reply.payload, GlobalModel)
    return reply.payload


# Five clients send 1, 2, 3, 4 and 90 in every entry, from 1, 1, 2, 2 and 4 samples.
SENT, WEIGHTS = (1.0, 2.0, 3.0, 4.0, 90.0), (1, 1, 2, 2, 4)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (AggregationRule("fedavg"), 37.7),  # (1 + 2 + 6 + 8 + 360) / 10
        (AggregationRule("fedprox"), 37.7),
        (AggregationRule("median"), 3.0),
        (AggregationRule("trimmed_mean", trim=1), 3.0),  # (2 + 3 + 4) / 3
        # f = 1: distances to the N - f - 2 = 2 nearest, per entry: 1: 1 + 4, 2: 1 + 1, 3: 1 + 1, 4: 1 + 4, 90: huge
        (AggregationRule("krum", num_byzantine=1), 2.0),  # 2 and 3 are even; the first wins
        (AggregationRule("multi_krum", num_byzantine=1, num_selected=2), 2.5),
        (AggregationRule("multi_krum", num_byzantine=1), 2.5),  # (1 + 2 + 3 + 4) / 4, N - f of them
    ],
    ids=lambda value: value.name if isinstance(value, AggregationRule) else "",
)
def test_rules(rule: AggregationRule, expected: float) -> None:
    aggregator = make(rule)
    reply = aggregator.aggregate(7, *(update(aggregator, *pair) for pair in zip(SENT, WEIGHTS, strict=True)))
    assert np.allclose(model(reply).vector, expected, rtol=1e-6)
    assert (reply.receipt.version, model(reply).version) == (7, 7)
    assert (reply.receipt.metrics["num_aggregated"], reply.receipt.metrics["num_refused"]) == (5.0, 0.0)


def test_fedadam_steps_towards_the_mean_and_keeps_its_moments() -> None:
    rule = AggregationRule("fedadam", server_learning_rate=0.1, beta1=0.5, beta2=0.5, tau=1.0)
    aggregator = make(rule)
    aggregator.vector = np.zeros_like(aggregator.vector)
    first = model(aggregator.aggregate(1, update(aggregator, 1.0), update(aggregator, 3.0)))
    # mean 2, pseudo-gradient -2: m = 0.5 * -2 = -1, v = 0.5 * 1 + 0.5 * 4 = 2.5; w = 0 + 0.1 * 1 / (sqrt(2.5) + 1)
    one = 0.1 / (2.5**0.5 + 1.0)
    assert np.allclose(first.vector, one, rtol=1e-6)
    # pseudo-gradient one - 2: m = (-1 + one - 2) / 2, v = (2.5 + (one - 2)^2) / 2
    second = model(aggregator.aggregate(1, update(aggregator, 2.0)))
    moment, square = (one - 3.0) / 2.0, (2.5 + (one - 2.0) ** 2) / 2.0
    assert np.allclose(second.vector, one - 0.1 * moment / (square**0.5 + 1.0), rtol=1e-6)


def test_what_is_not_finite_or_of_another_network_is_refused_and_counted() -> None:
    aggregator = make()
    broken = update(aggregator, 99.0)
    broken.vector[0] = np.inf
    foreign = ClientUpdate(broken.vector[:-1], broken.buffers, 1, aggregator.layout_hash)
    other = ClientUpdate(update(aggregator, 98.0).vector, broken.buffers, 1, "another")
    reply = aggregator.aggregate(1, update(aggregator, np.nan), update(aggregator, 2.0), broken, foreign, other)
    assert np.all(model(reply).vector == 2.0)
    assert (reply.receipt.metrics["num_aggregated"], reply.receipt.metrics["num_refused"]) == (1.0, 4.0)


def test_a_round_with_too_few_for_the_rule_is_void() -> None:
    aggregator = make(AggregationRule("krum", num_byzantine=1))
    before = aggregator.vector
    sound = [update(aggregator, value) for value in (1.0, 2.0, 3.0, 4.0)]
    reply = aggregator.aggregate(5, *sound, update(aggregator, np.nan))
    assert reply.receipt.metrics["num_aggregated"] == 0.0
    assert (reply.receipt.version, model(reply).version) == (0, 0)
    assert np.array_equal(model(reply).vector, before)


def test_a_round_of_nothing_but_nan_has_diverged() -> None:
    aggregator = make()
    with pytest.raises(DivergenceError, match="not one of 2 client updates after update 0 is finite"):
        aggregator.aggregate(1, update(aggregator, np.nan), update(aggregator, np.inf))


def test_the_hard_target_follows_where_a_round_passes_its_period() -> None:
    aggregator = make(target_update="hard", target_period_updates=10)
    start = aggregator.vector
    versions = [aggregator.aggregate(4, update(aggregator, float(value))) for value in (1, 2, 3)]
    assert [reply.receipt.metrics["target_version"] for reply in versions] == [0.0, 0.0, 12.0]
    assert [model(reply).target is None for reply in versions] == [True, True, False]
    assert np.array_equal(start, make().vector)
    assert np.all(np.asarray(model(versions[2]).target) == 3.0)


def test_the_soft_target_follows_as_often_as_there_were_updates() -> None:
    aggregator = make(target_update="soft", target_tau=0.5)
    aggregator.target = np.zeros_like(aggregator.vector)
    published = model(aggregator.aggregate(2, update(aggregator, 8.0)))
    assert np.allclose(np.asarray(published.target), 6.0)  # half of the way, twice
    assert published.target_version == 2


def test_what_is_published_is_immutable_and_stays() -> None:
    aggregator = make()
    first = model(aggregator.publish())
    before = first.vector.copy()
    aggregator.aggregate(1, update(aggregator, 5.0))
    assert np.array_equal(first.vector, before)
    with pytest.raises(ValueError, match="read-only"):
        first.vector[0] = 1.0


def test_a_personal_head_is_not_the_aggregators_business() -> None:
    aggregator = Aggregator(blueprint(), "aggregator", AggregationRule(), "head")
    before = aggregator.vector.copy()
    assert int((~aggregator.is_shared).sum()) == 2 * 4 + 4  # two features to four actions, and biases
    reply = aggregator.aggregate(1, update(aggregator, 6.0))
    assert np.all(model(reply).vector[aggregator.is_shared] == 6.0)
    assert np.array_equal(model(reply).vector[~aggregator.is_shared], before[~aggregator.is_shared])


def test_a_network_without_a_head_has_nothing_to_keep() -> None:
    import torch

    with pytest.raises(ConfigError, match=r"strategy\.personal = 'head': the network has no head"):
        shared_parameters(torch.nn.Linear(2, 2), "head")
    assert shared_parameters(torch.nn.Linear(2, 2), "none").all()


@pytest.mark.parametrize("rule", [AggregationRule(), AggregationRule("fedadam")], ids=["fedavg", "fedadam"])
def test_saved_and_loaded_goes_on_alike(tmp_path: Path, rule: AggregationRule) -> None:
    first = make(rule, target_update="soft")
    first.aggregate(3, update(first, 0.5))
    files = first.save(str(tmp_path), "00001", []).files
    second = make(rule, target_update="soft")
    second.load(str(tmp_path), "00001", files)
    for value in (0.7, 0.1):
        one, two = (model(each.aggregate(3, update(each, value))) for each in (first, second))
        assert np.array_equal(one.vector, two.vector)
        assert np.array_equal(np.asarray(one.target), np.asarray(two.target))
        assert (one.version, one.target_version) == (two.version, two.target_version)


def test_another_rules_state_is_refused(tmp_path: Path) -> None:
    files = make(AggregationRule("fedadam")).save(str(tmp_path), "00001", []).files
    with pytest.raises(CheckpointError, match="another network or rule"):
        make().load(str(tmp_path), "00001", files)


def test_a_new_life_begins_at_the_newest_version() -> None:
    aggregator = make(target_update="hard", target_period_updates=10)
    with_target = model(aggregator.aggregate(10, update(aggregator, 1.0)))
    newest = model(aggregator.aggregate(4, update(aggregator, 2.0)))
    again = make(target_update="hard", target_period_updates=10)
    reply = again.restore("", [], newest, with_target)
    assert (reply.receipt.version, reply.receipt.metrics["target_version"]) == (14, 10.0)
    assert np.all(model(reply).vector == 2.0)
    assert np.all(np.asarray(model(reply).target) == 1.0)
