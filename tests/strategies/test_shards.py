"""Draws over shards follow the distribution of one big replay: exactly on a small case, by chi-square on a larger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from qfleet.algos.dqn import Config as AlgoConfig
from qfleet.config import ReplayConfig
from qfleet.engines.inline import Config as EngineConfig
from qfleet.engines.inline import Engine
from qfleet.envs.config import EnvConfig
from qfleet.networks.torso import NetworkConfig
from qfleet.ops.importance import importance_weights
from qfleet.replay.buffer import PRIORITY_EPSILON
from qfleet.roles.blueprint import Blueprint
from qfleet.roles.replay_shard import Insertion
from qfleet.roles.sample_learner import join_draws
from qfleet.strategies.base import Control, RoleRestarted
from qfleet.strategies.base.config import FleetConfig
from qfleet.strategies.base.shards import Collected, Order, ShardGroup
from qfleet.strategies.base.supervisor import Supervisor
from qfleet.types import EnvSpec, Receipt, Reply, Sample, Transitions

ALPHA = 0.6


def blueprint(capacity: int) -> Blueprint:
    return Blueprint(
        env=EnvConfig(id="none"),
        env_factory=None,
        spec=EnvSpec("none", (1,), "float32", 2),
        algo_name="dqn",
        algo=AlgoConfig(),
        network=NetworkConfig(),
        replay=ReplayConfig(capacity=capacity, min_transitions=1, sampler="prioritized", priority_exponent=ALPHA),
        seed=0,
    )


def rows(first: int, num: int) -> Transitions:
    """Transition k says its number in its reward."""
    number = np.arange(first, first + num, dtype=np.float32)
    obs = number[:, None]
    return Transitions(obs, np.zeros(num, np.int64), number, np.ones(num, np.float32), obs)


class Maker:
    def make(self, insertion: Insertion) -> Reply:
        return Reply(Receipt(), insertion)


class Rig:
    """A shard group on inline, filled by hand."""

    def __init__(self, plan: Blueprint, num_shards: int) -> None:
        self.engine = Engine(EngineConfig(), 0)
        self.control = Control("nowhere")
        supervisor = Supervisor(self.engine, FleetConfig(name="test"), self.control)
        self.group = ShardGroup(self.engine, supervisor, plan, self.control, num_shards)
        self.maker = self.engine.spawn("maker", Maker)

    def insert(self, transitions: Transitions, priorities: np.ndarray) -> None:
        made = self.engine.submit(self.maker, "make", Insertion(transitions, priorities, 0))
        assert self.engine.wait() is made
        self.group.insert(Collected("maker", made, Receipt(), len(transitions)))
        assert all(isinstance(outcome, Collected) for outcome in self.run())

    def run(self) -> Iterator[Any]:
        while (future := self.engine.wait()) is not None:
            yield from self.group.receive(future)

    def samples(self, num_batches: int, batch_size: int) -> Iterator[Sample]:
        for _ in range(num_batches):
            (order,) = self.order(batch_size)
            draws = [self.engine.payload(future) for future in order.draws[0]]
            yield join_draws(draws, order.shares[0], 0, order.num_transitions)  # type: ignore[arg-type]

    def order(self, batch_size: int) -> list[Order]:
        self.group.order(1, 1, batch_size, 0)
        return list(self.run())


def test_five_transitions_in_two_shards_exactly() -> None:
    rig = Rig(blueprint(10), 2)
    priorities = np.array([0.5, 2.0, 0.0, 7.0, 1.0])
    rig.insert(rows(0, 2), priorities[:2])  # shards take turns: 0 and 1 here,
    rig.insert(rows(2, 3), priorities[2:])  # 2, 3 and 4 there
    leaves = (priorities + PRIORITY_EPSILON) ** ALPHA
    expected = leaves / leaves.sum()
    one_big = blueprint(10).build_replay("big")
    one_big.insert(rows(0, 5), priorities)
    seen = set()
    for sample in rig.samples(400, 3):
        numbers = sample.transitions.reward.astype(int)
        seen.update(numbers.tolist())
        np.testing.assert_allclose(sample.probabilities, expected[numbers], rtol=1e-12)
        assert sample.num_transitions == 5
        # So are the importance weights those of the one big replay.
        np.testing.assert_allclose(
            importance_weights(sample.probabilities, sample.num_transitions, 0.7),
            (5 * expected[numbers]) ** -0.7 / ((5 * expected[numbers]) ** -0.7).max(),
            rtol=1e-6,
        )
    assert {0, 1, 3, 4} <= seen
    big = one_big.sample(64)
    np.testing.assert_allclose(big.probabilities, expected[big.transitions.reward.astype(int)], rtol=1e-12)


def test_probabilities_follow_priorities_and_insertions() -> None:
    rig = Rig(blueprint(8), 2)
    for first in range(0, 16, 2):  # each shard of 4 turns over once
        rig.insert(rows(first, 2), np.array([1.0 + first, 2.0 + first]))
    assert rig.group.num_transitions == 8
    leaves = (np.arange(9, 17, dtype=float) + PRIORITY_EPSILON) ** ALPHA
    for sample in rig.samples(20, 4):
        numbers = sample.transitions.reward.astype(int)
        assert numbers.min() >= 8, "the older ones are overwritten"
        np.testing.assert_allclose(sample.probabilities, leaves[numbers - 8] / leaves.sum(), rtol=1e-12)


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


def test_many_draws_are_distributed_as_those_of_one_big_replay() -> None:
    num, batch_size, num_batches = 40, 20, 1000
    rig, generator = Rig(blueprint(num), 4), np.random.default_rng(7)
    # The shards weigh very unequally: the last one's priorities are the largest.
    priorities = np.concatenate([generator.uniform(0.1, 1.0, 10) * scale for scale in (1.0, 3.0, 10.0, 30.0)])
    for first in range(0, num, 10):
        rig.insert(rows(first, 10), priorities[first : first + 10])
    one_big = blueprint(num).build_replay("big")
    one_big.insert(rows(0, num), priorities)
    leaves = (priorities + PRIORITY_EPSILON) ** ALPHA
    expected = leaves / leaves.sum() * num_batches * batch_size
    assert expected.min() > 50
    sharded: Counter[int] = Counter()
    for sample in rig.samples(num_batches, batch_size):
        sharded.update(sample.transitions.reward.astype(int).tolist())
    whole: Counter[int] = Counter()
    for _ in range(num_batches):
        whole.update(one_big.sample(batch_size).transitions.reward.astype(int).tolist())
    # 39 degrees of freedom: above 72.1 once in a thousand. A batch is stratified, which only lowers the value.
    for counter in (sharded, whole):
        assert chi_square(np.array([counter[k] for k in range(num)]), expected) < 72.1
    # Decoy: drawing from each shard alike is far off.
    alike = np.concatenate([part / part.sum() for part in leaves.reshape(4, 10)]) / 4 * num_batches * batch_size
    assert chi_square(np.array([sharded[k] for k in range(num)]), alike) > 1000


def test_an_insertion_goes_to_the_next_living_shard() -> None:
    rig = Rig(blueprint(100), 3)
    rig.insert(rows(0, 1), np.ones(1))
    assert rig.group.sizes.tolist() == [1, 0, 0]
    rig.engine.kill(rig.group.refs[1])
    made = rig.engine.submit(rig.maker, "make", Insertion(rows(1, 1), np.ones(1), 0))
    assert rig.engine.wait() is made
    collected = Collected("maker", made, Receipt(), 1)
    rig.group.insert(collected)
    outcomes = list(rig.run())
    assert outcomes.count(collected) == 1
    assert rig.group.sizes.sum() == 2, "it is in, though the shard it was sent to had died"
    assert rig.control.tallies == {"restarts.killed": 1, "transitions_lost": 0}


def test_an_acknowledgement_that_comes_after_the_news_of_a_death_is_worth_nothing() -> None:
    # A shard stored four, then died; the news of the death, by a later call, came before the answer. The four counted
    # as inserted, and were neither in a replay nor counted as lost.
    rig = Rig(blueprint(100), 1)
    sent = []
    for first, num in ((0, 4), (4, 3)):
        made = rig.engine.submit(rig.maker, "make", Insertion(rows(first, num), np.ones(num), 0))
        assert rig.engine.wait() is made
        sent.append(Collected("maker", made, Receipt(), num))
    rig.group.insert(sent[0])
    late = rig.engine.wait()
    assert late is not None
    assert rig.engine.result(late).num_inserted == 4
    rig.group.insert(sent[1])
    rig.engine.kill(rig.group.refs[0])
    news = rig.engine.wait()
    assert news is not None
    assert [type(outcome) for outcome in rig.group.receive(news)] == [RoleRestarted]
    assert list(rig.group.receive(late)) == []
    assert not rig.group.is_idle, "they are on their way again"
    assert list(rig.run()) == sent, "once each, in their order"
    assert [collected.receipt.num_inserted for collected in sent] == [4, 3]
    assert rig.group.sizes.tolist() == [7]
    assert rig.control.tallies == {"restarts.killed": 1, "transitions_lost": 0}
    (sample,) = rig.samples(1, 64)
    assert set(sample.transitions.reward.astype(int)) == set(range(7))  # 64 draws, stratified over 7 alike
    # All seven are this life's to lose.
    rig.engine.kill(rig.group.refs[0])
    rig.order(1)
    assert rig.control.tallies["transitions_lost"] == 7


@pytest.mark.parametrize("is_late", [False, True])
def test_an_order_is_lost_with_a_shard_and_draws_go_on_over_the_others(is_late: bool) -> None:
    rig = Rig(blueprint(100), 2)
    rig.insert(rows(0, 4), np.ones(4))
    rig.insert(rows(4, 4), np.ones(4))
    if not is_late:
        rig.engine.kill(rig.group.refs[1])
    rig.group.order(1, 1, 16, 0)
    if is_late:
        rig.engine.kill(rig.group.refs[1])
    (order,) = [outcome for outcome in rig.run() if isinstance(outcome, Order)]
    assert order.is_lost
    assert rig.group.sizes.tolist() == [4, 0]
    assert rig.control.tallies["transitions_lost"] == 4
    (sample,) = rig.samples(1, 16)
    assert sample.transitions.reward.max() < 4
    np.testing.assert_allclose(sample.probabilities, 0.25)
