"""Both replays against plain Python lists, the odds of their draws, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qfleet.errors import ConfigError, QfleetError
from qfleet.replay import memory
from qfleet.replay.buffer import EmptyReplayError, InvalidPriorityError, Replay
from qfleet.replay.prioritized import PrioritizedReplay
from qfleet.replay.uniform import UniformReplay

EPSILON = 1e-6


class NaiveReplay:
    """(key, leaf) pairs in a list; draws by adding up leaves in the order of slots."""

    def __init__(self, capacity: int, alpha: float) -> None:
        self.capacity, self.alpha = capacity, alpha
        self.num_inserted, self.max_leaf = 0, 0.0
        self.leaf_by_key: dict[int, float] = {}

    def insert(self, num: int, priorities: list[float] | None) -> list[int]:
        default = self.max_leaf or (1.0 + EPSILON) ** self.alpha
        keys = list(range(self.num_inserted, self.num_inserted + num))
        for position, key in enumerate(keys):
            leaf = default if priorities is None else (priorities[position] + EPSILON) ** self.alpha
            self.leaf_by_key[key] = leaf
            self.max_leaf = max(self.max_leaf, leaf)
            self.leaf_by_key.pop(key - self.capacity, None)
        self.num_inserted += num
        return keys

    def update(self, keys: list[int], priorities: list[float]) -> int:
        applied = 0
        for key, priority in zip(keys, priorities, strict=True):
            if key in self.leaf_by_key:
                self.leaf_by_key[key] = (priority + EPSILON) ** self.alpha
                self.max_leaf = max(self.max_leaf, self.leaf_by_key[key])
                applied += 1
        return applied

    def stretch(self, key: int) -> tuple[float, float]:
        """Where `key` begins and ends in the cumulative sum over slots."""
        before = sum(leaf for other, leaf in self.leaf_by_key.items() if other % self.capacity < key % self.capacity)
        return before, before + self.leaf_by_key[key]


PRIORITY = st.one_of(st.floats(0, 1e6), st.just(0.0))
INSERT = st.tuples(st.just("insert"), st.integers(0, 12), st.booleans())
UPDATE = st.tuples(st.just("update"), st.lists(st.tuples(st.integers(-2, 40), PRIORITY), max_size=10), st.none())
SAMPLE = st.tuples(st.just("sample"), st.integers(1, 9), st.none())


@settings(deadline=None)  # the first example compiles
@given(
    capacity=st.integers(1, 20),
    alpha=st.sampled_from([0.0, 0.6, 1.0]),
    operations=st.lists(st.one_of(INSERT, UPDATE, SAMPLE), max_size=15),
    seed=st.integers(0, 99),
)
def test_prioritized_equals_the_naive_twin(vector_spec, numbered, assert_equal, capacity, alpha, operations, seed):
    replay = PrioritizedReplay(capacity, vector_spec, np.random.default_rng(seed), alpha)
    naive, uniforms, scripted = NaiveReplay(capacity, alpha), np.random.default_rng(seed), np.random.default_rng(1)
    for name, argument, with_priorities in operations:
        if name == "insert":
            priorities = scripted.random(argument) * 5 if with_priorities else None
            transitions = numbered(vector_spec, range(naive.num_inserted, naive.num_inserted + argument))
            keys = replay.insert(transitions, priorities)
            assert keys.tolist() == naive.insert(argument, None if priorities is None else priorities.tolist())
        elif name == "update":
            keys = np.array([key for key, _ in argument], np.int64)
            values = [value for _, value in argument]
            assert replay.update_priorities(keys, np.array(values)) == naive.update(keys.tolist(), values)
        elif naive.leaf_by_key:
            check_sample(replay, naive, argument, uniforms, numbered, assert_equal)
        assert len(replay) == len(naive.leaf_by_key)
        assert replay.num_inserted == naive.num_inserted


def check_sample(replay, naive, batch_size, uniforms, numbered, assert_equal):
    sample = replay.sample(batch_size)
    assert sample.num_transitions == len(naive.leaf_by_key)
    assert_equal(sample.transitions, numbered(replay.storage.spec, sample.keys))
    total = sum(naive.leaf_by_key.values())
    for stratum, uniform in enumerate(uniforms.random(batch_size)):
        key = int(sample.keys[stratum])
        target = (stratum + uniform) / batch_size * total
        before, after = naive.stretch(key)
        assert before - 1e-9 * total <= target <= after + 1e-9 * total
        assert sample.probabilities[stratum] == pytest.approx(naive.leaf_by_key[key] / total, rel=1e-9)


@given(capacity=st.integers(1, 20), sizes=st.lists(st.integers(0, 30), max_size=6), seed=st.integers(0, 9))
def test_uniform_draws_only_live_keys_with_their_rows(vector_spec, numbered, assert_equal, capacity, sizes, seed):
    replay = UniformReplay(capacity, vector_spec, np.random.default_rng(seed))
    inserted = 0
    for size in sizes:
        replay.insert(numbered(vector_spec, range(inserted, inserted + size)))
        inserted += size
        if inserted:
            sample = replay.sample(16)
            live = min(inserted, capacity)
            assert sample.num_transitions == len(replay) == live
            assert np.all((sample.keys >= inserted - live) & (sample.keys < inserted))
            np.testing.assert_array_equal(sample.probabilities, np.full(16, 1 / live))
            assert_equal(sample.transitions, numbered(vector_spec, sample.keys))


def test_uniform_draws_each_transition_equally_often(vector_spec, numbered):
    replay = UniformReplay(8, vector_spec, np.random.default_rng(3))
    replay.insert(numbered(vector_spec, range(13)))
    counts = np.bincount(replay.sample(80_000).keys, minlength=13)
    assert counts[:5].tolist() == [0] * 5
    # 10 000 expected each; a standard deviation is sqrt(80000 x 1/8 x 7/8) = 94
    assert np.all(np.abs(counts[5:] - 10_000) < 5 * 94)


def test_prioritized_frequencies_follow_the_priorities_stratum_by_stratum(vector_spec, numbered):
    priorities = np.array([1.0, 2.0, 4.0, 8.0, 0.0, 16.0])
    replay = PrioritizedReplay(6, vector_spec, np.random.default_rng(3), alpha=0.5)
    replay.insert(numbered(vector_spec, range(6)), priorities)
    expected = (priorities + EPSILON) ** 0.5
    expected /= expected.sum()
    counts = np.zeros(6)
    for _ in range(2000):
        sample = replay.sample(50)
        np.testing.assert_allclose(sample.probabilities, expected[sample.keys])
        drawn = np.bincount(sample.keys, minlength=6)
        # A stretch of 50 p strata touches fewer than 50 p + 2 and fills more than 50 p - 2: plain draws stray further.
        assert np.all(np.abs(drawn - 50 * expected) < 2)
        counts += drawn
    np.testing.assert_allclose(counts / 100_000, expected, atol=0.003)


def test_new_transitions_get_the_largest_priority_seen(vector_spec, numbered):
    replay = PrioritizedReplay(3, vector_spec, np.random.default_rng(0), alpha=1.0)
    replay.insert(numbered(vector_spec, range(1)))  # nothing seen yet: 1
    replay.insert(numbered(vector_spec, range(1, 2)), np.array([7.0]))
    replay.insert(numbered(vector_spec, range(2, 3)))
    probability = dict(zip(*(lambda s: (s.keys.tolist(), s.probabilities.tolist()))(replay.sample(60)), strict=True))
    total = 1.0 + 7.0 + 7.0 + 3 * EPSILON
    assert probability == {
        0: pytest.approx((1 + EPSILON) / total),
        1: pytest.approx((7 + EPSILON) / total),
        2: pytest.approx((7 + EPSILON) / total),
    }


def test_a_late_priority_never_hits_a_reused_slot(vector_spec, numbered):
    replay = PrioritizedReplay(4, vector_spec, np.random.default_rng(0), alpha=1.0)
    old = replay.insert(numbered(vector_spec, range(4)), np.ones(4))
    replay.insert(numbered(vector_spec, range(4, 6)), np.ones(2))  # overwrites keys 0 and 1
    assert replay.update_priorities(old, np.array([99.0, 98.0, 3.0, 1.0])) == 2
    sample = replay.sample(600)
    probability = dict(zip(sample.keys.tolist(), sample.probabilities.tolist(), strict=True))
    assert sorted(probability) == [2, 3, 4, 5]
    assert probability[2] == pytest.approx(3 / 6, rel=1e-5)
    assert probability[4] == pytest.approx(1 / 6, rel=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -0.5])
def test_invalid_priorities_change_nothing(vector_spec, numbered, bad):
    replay = PrioritizedReplay(4, vector_spec, np.random.default_rng(0), alpha=0.6)
    keys = replay.insert(numbered(vector_spec, range(2)), np.array([1.0, 1.0]))
    with pytest.raises(InvalidPriorityError, match="at index 1 of 2"):
        replay.update_priorities(keys, np.array([50.0, bad]))
    with pytest.raises(InvalidPriorityError, match="at index 0 of 1"):
        replay.insert(numbered(vector_spec, range(1)), np.array([bad]))
    assert replay.num_inserted == 2
    assert replay.sample(4).probabilities.tolist() == [0.5] * 4


def test_priorities_must_be_one_a_transition(vector_spec, numbered):
    replay = PrioritizedReplay(4, vector_spec, np.random.default_rng(0), alpha=0.6)
    with pytest.raises(ValueError, match="one a transition"):
        replay.insert(numbered(vector_spec, range(3)), np.ones(2))
    assert replay.num_inserted == 0


def test_read_only_and_float32_arguments_are_taken_and_left_alone(vector_spec, numbered):
    replay = PrioritizedReplay(4, vector_spec, np.random.default_rng(0), alpha=1.0)
    keys, priorities = replay.insert(numbered(vector_spec, range(4))), np.array([1, 2, 3, 4], np.float32)
    keys.flags.writeable = priorities.flags.writeable = False
    assert replay.update_priorities(keys, priorities) == 4
    assert keys.tolist() == [0, 1, 2, 3]
    assert dict(zip(*_keys_and_odds(replay), strict=True))[3] == pytest.approx(0.4, rel=1e-5)


def _keys_and_odds(replay):
    sample = replay.sample(100)
    return sample.keys.tolist(), sample.probabilities.tolist()


@pytest.mark.parametrize("kind", ["uniform", "prioritized"])
def test_both_kinds_are_a_replay(vector_spec, numbered, kind):
    generator = np.random.default_rng(0)
    replay: Replay = (
        UniformReplay(5, vector_spec, generator)
        if kind == "uniform"
        else PrioritizedReplay(5, vector_spec, generator, 0.6)
    )
    assert (replay.capacity, len(replay), replay.num_inserted) == (5, 0, 0)
    with pytest.raises(EmptyReplayError, match="empty"):
        replay.sample(1)
    assert issubclass(EmptyReplayError, QfleetError)
    keys = replay.insert(numbered(vector_spec, range(2)), np.ones(2))
    assert replay.update_priorities(keys, np.ones(2)) == (0 if kind == "uniform" else 2)
    assert replay.sample(3).keys.shape == (3,)
    assert replay.nbytes >= replay.storage.nbytes == 5 * replay.storage.row_bytes


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_alpha_out_of_range_is_refused(vector_spec, alpha):
    with pytest.raises(ConfigError, match=r"replay\.priority_exponent"):
        PrioritizedReplay(4, vector_spec, np.random.default_rng(0), alpha)


def test_the_tree_counts_towards_the_memory_that_is_asked_for(vector_spec, monkeypatch):
    # 1000 rows of 40 bytes; the tree adds 8 bytes a leaf and a seventh of that above: rows alone would fit
    monkeypatch.setattr(memory, "available_memory", lambda: 45_000)
    UniformReplay(1000, vector_spec, np.random.default_rng(0))
    with pytest.raises(ConfigError, match=r"replay\.capacity: 1000 transitions"):
        PrioritizedReplay(1000, vector_spec, np.random.default_rng(0), 0.6)
