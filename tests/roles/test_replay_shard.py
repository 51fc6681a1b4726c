"""A shard says what it weighs, and refuses priorities of a life that is over."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qfleet.algos.dqn import Config as AlgoConfig
from qfleet.config import ReplayConfig
from qfleet.envs.config import EnvConfig
from qfleet.networks.torso import NetworkConfig
from qfleet.replay.buffer import PRIORITY_EPSILON
from qfleet.roles.blueprint import Blueprint
from qfleet.roles.replay_shard import Draw, Insertion, NewPriorities, ReplayShard
from qfleet.types import EnvSpec, Transitions

ALPHA = 0.5
BLUEPRINT = Blueprint(
    env=EnvConfig(id="none"),
    env_factory=None,
    spec=EnvSpec("none", (1,), "float32", 2),
    algo_name="dqn",
    algo=AlgoConfig(),
    network=NetworkConfig(),
    replay=ReplayConfig(capacity=4, min_transitions=1, sampler="prioritized", priority_exponent=ALPHA),
    seed=0,
)


def rows(*rewards: float) -> Transitions:
    num = len(rewards)
    obs = np.array(rewards, np.float32)[:, None]
    return Transitions(
        obs, np.zeros(num, np.int64), np.array(rewards, np.float32), np.full(num, 0.9, np.float32), obs + 1
    )


def insertion(rewards: list[float], priorities: list[float], version: int = 0) -> Insertion:
    return Insertion(rows(*rewards), np.array(priorities), version)


def leaf(priority: float) -> float:
    return (priority + PRIORITY_EPSILON) ** ALPHA


def test_receipts_say_how_much_the_shard_weighs() -> None:
    shard = ReplayShard(BLUEPRINT, "shard-0")
    receipt = shard.insert(insertion([1, 2, 3], [4.0, 9.0, 16.0], version=7))
    assert (receipt.version, receipt.num_inserted) == (7, 3)
    # Square roots of the priorities: 2 + 3 + 4.
    assert receipt.metrics["total_priority"] == pytest.approx(9.0, abs=1e-5)
    assert receipt.metrics["num_transitions"] == 3
    receipt = shard.insert(insertion([4, 5], [25.0, 0.0]))
    # Four fit: the first one (weight 2) is gone, 3 + 4 + 5 + (almost 0) are there.
    assert receipt.metrics["total_priority"] == pytest.approx(3 + 4 + 5 + leaf(0.0), abs=1e-5)
    assert receipt.metrics["num_transitions"] == 4
    reply = shard.sample([1])
    assert reply.receipt.metrics["total_priority"] == receipt.metrics["total_priority"]


def test_a_uniform_shard_weighs_its_transitions() -> None:
    from dataclasses import replace

    uniform = replace(BLUEPRINT, replay=BLUEPRINT.replay.model_copy(update={"sampler": "uniform"}))
    shard = ReplayShard(uniform, "shard-0")
    receipt = shard.insert(Insertion(rows(1, 2, 3), None, 0))
    assert receipt.metrics["total_priority"] == receipt.metrics["num_transitions"] == 3


def test_one_draw_is_several_batches() -> None:
    shard = ReplayShard(BLUEPRINT, "shard-3", 3)
    shard.insert(insertion([1, 2, 3], [4.0, 9.0, 16.0]))
    draw = shard.sample([2, 0, 5]).payload
    assert isinstance(draw, Draw)
    assert (draw.shard, draw.incarnation) == (3, 0)
    assert [0 if sample is None else len(sample.keys) for sample in draw.samples] == [2, 0, 5]
    by_key = np.array([2, 3, 4]) / 9
    for sample in filter(None, draw.samples):
        np.testing.assert_allclose(sample.probabilities, by_key[sample.keys], atol=1e-6)
        np.testing.assert_array_equal(sample.transitions.reward, sample.keys + 1)


def test_only_its_own_priorities_of_its_own_life_are_taken() -> None:
    shard = ReplayShard(BLUEPRINT, "shard-1", 1)
    shard.insert(insertion([1, 2], [1.0, 1.0]))
    keys = np.array([0, 1], np.int64)
    new = np.array([4.0, 9.0])
    before = shard.replay.total
    others = shard.update_priorities([NewPriorities(0, 0, keys, new), NewPriorities(2, 0, keys, new)])
    assert others.metrics["num_refused"] == 0
    assert shard.replay.total == before
    mine = shard.update_priorities([NewPriorities(0, 0, keys, 99 * new), NewPriorities(1, 0, keys, new)])
    assert mine.metrics["num_refused"] == 0
    assert mine.metrics["total_priority"] == pytest.approx(leaf(4.0) + leaf(9.0), abs=1e-9)


def test_a_late_priority_never_hits_a_reused_slot() -> None:
    shard = ReplayShard(BLUEPRINT, "shard-0")
    shard.insert(insertion([1, 2, 3, 4], [1.0] * 4))
    shard.insert(insertion([5], [1.0]))  # key 4, in the slot of key 0
    shard.update_priorities([NewPriorities(0, 0, np.array([0, 1], np.int64), np.array([99.0, 16.0]))])
    assert shard.replay.total == pytest.approx(3 * leaf(1.0) + leaf(16.0), abs=1e-9)


def test_a_new_life_takes_its_checkpoint_and_no_priority_of_the_former_one(tmp_path: Path) -> None:
    shard = ReplayShard(BLUEPRINT, "shard-0")
    shard.insert(insertion([1, 2], [1.0, 4.0]))
    saved = shard.save(str(tmp_path), "00000", [])
    shard.insert(insertion([3], [9.0]))
    late = NewPriorities(0, 0, np.array([2], np.int64), np.array([99.0]))

    again = ReplayShard(BLUEPRINT, "shard-0")
    receipt = again.restore(1, str(tmp_path), saved.files, [])
    assert receipt.metrics["num_transitions"] == 2
    again.insert(insertion([77], [1.0]))  # has key 2 now, which meant reward 3 in the former life
    refused = again.update_priorities([late])
    assert refused.metrics["num_refused"] == 1
    assert again.replay.total == pytest.approx(2 * leaf(1.0) + leaf(4.0), abs=1e-9)
    draw = again.sample([1]).payload
    assert isinstance(draw, Draw)
    assert draw.incarnation == 1


def test_a_life_without_a_checkpoint_is_empty_and_draws_anew() -> None:
    shard = ReplayShard(BLUEPRINT, "shard-0")
    shard.insert(insertion([1, 2, 3, 4], [1.0] * 4))
    first = [shard.replay.sample(1).keys[0] for _ in range(16)]
    receipt = shard.restore(1, "nowhere", [], [])
    assert (receipt.metrics["num_transitions"], receipt.metrics["total_priority"]) == (0, 0)
    shard.insert(insertion([1, 2, 3, 4], [1.0] * 4))
    second = [shard.replay.sample(1).keys[0] for _ in range(16)]
    assert second != first, "the same random numbers as in the first life"


def test_saves_are_incremental_but_only_of_its_own_rows(tmp_path: Path) -> None:
    shard = ReplayShard(BLUEPRINT, "shard-0")
    shard.insert(insertion([1, 2], [1.0, 1.0]))
    first = shard.save(str(tmp_path), "00000", []).files
    shard.insert(insertion([3], [1.0]))
    second = shard.save(str(tmp_path), "00001", first).files
    assert len(set(first) & set(second)) == 1, "the segment of the first two rows is kept"
    # Another life with other rows under the same keys must not take the segment for its own.
    shard.restore(1, str(tmp_path), [], [])
    shard.insert(insertion([50, 60, 70], [1.0] * 3))
    third = shard.save(str(tmp_path), "00002", second).files
    assert not set(second) & set(third)
    loaded = ReplayShard(BLUEPRINT, "shard-0")
    loaded.load(str(tmp_path), "00002", third)
    reward = loaded.replay.storage.gather(loaded.replay.storage.slots_of(np.arange(3))).reward
    assert reward.tolist() == [50, 60, 70]
