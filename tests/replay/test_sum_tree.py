"""The sum tree against Python lists: same draws, exact sums, and never a leaf of zero."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qfleet.replay.sum_tree import SumTree, tree_bytes

ALMOST_ONE = float(np.nextafter(1.0, 0.0))


class NaiveSumTree:
    """Draws by adding up a list from the left."""

    def __init__(self, capacity: int) -> None:
        self.leaves = [0.0] * capacity

    def set(self, slots: list[int], values: list[float]) -> None:
        for slot, value in zip(slots, values, strict=True):
            self.leaves[slot] = value

    def sample(self, uniform: float) -> int:
        target, cumulative = uniform * sum(self.leaves), 0.0
        for slot, leaf in enumerate(self.leaves):
            cumulative += leaf
            if target < cumulative:
                return slot
        return max(slot for slot, leaf in enumerate(self.leaves) if leaf > 0)


@st.composite
def operations(draw):
    capacity = draw(st.one_of(st.integers(1, 20), st.sampled_from([63, 64, 65, 512, 513, 600])))
    batch = st.lists(st.tuples(st.integers(0, capacity - 1), st.integers(0, 5)), max_size=20)
    return capacity, draw(st.lists(batch, max_size=8))


@settings(deadline=None)  # the first example compiles
@given(operations(), st.lists(st.floats(0, 1, exclude_max=True), max_size=8))
def test_equals_the_naive_tree_for_whole_numbers(program, uniforms):
    capacity, batches = program  # whole numbers: every order of adding gives the same sum, so draws must be the same
    tree, naive = SumTree(capacity), NaiveSumTree(capacity)
    for batch in batches:
        slots, values = [slot for slot, _ in batch], [float(value) for _, value in batch]
        tree.set(np.array(slots, np.int64), np.array(values))
        naive.set(slots, values)
        tree.check_valid()
        assert tree.leaves.tolist() == naive.leaves
        assert tree.total == sum(naive.leaves)
        if tree.total > 0:
            drawn = tree.sample(np.array(uniforms))
            assert drawn.tolist() == [naive.sample(uniform) for uniform in uniforms]


@settings(deadline=None)
@given(
    leaves=st.lists(st.one_of(st.just(0.0), st.floats(0, 1e30)), min_size=1, max_size=80),
    uniforms=st.lists(st.floats(0, 1, exclude_max=True), max_size=8),
)
@example(leaves=[1e16, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0], uniforms=[ALMOST_ONE])
@example(leaves=[0.1] * 70 + [0.0] * 10, uniforms=[ALMOST_ONE])
@example(leaves=[0.0] * 9 + [5e-324] + [0.0] * 30, uniforms=[0.0, 0.5, ALMOST_ONE])
def test_zero_leaves_are_never_drawn(leaves, uniforms):
    tree = SumTree(len(leaves))
    tree.set(np.arange(len(leaves)), np.array(leaves))
    if tree.total == 0:
        with pytest.raises(ValueError, match="nothing to draw"):
            tree.sample(np.array(uniforms))
        return
    drawn = tree.sample(np.array([0.0, ALMOST_ONE, *uniforms]))
    assert np.all(np.array(leaves)[drawn] > 0)


def test_rounding_past_a_node_takes_its_last_leaf_above_zero():
    # The sum 1.5 + (2**53 - 2) rounds up to 2**53, so the largest draw is 2**53 - 1. Less the 1.5 before it, that
    # rounds to 2**53 - 2, which is all that the second node holds: the walk would step past leaf 8 onto zeros.
    tree = SumTree(64)
    tree.set(np.array([0, 8]), np.array([1.5, 2.0**53 - 2]))
    assert tree.total == 2.0**53
    assert tree.sample(np.array([ALMOST_ONE])).tolist() == [8]


def test_no_drift_after_many_updates():
    generator = np.random.default_rng(0)
    tree = SumTree(1000)
    for _ in range(300):
        tree.set(generator.integers(0, 1000, 50), generator.random(50) * 10.0 ** generator.integers(-12, 12))
    fresh = SumTree(1000)
    fresh.set(np.arange(1000), tree.leaves.copy())
    np.testing.assert_array_equal(tree.nodes, fresh.nodes)  # bit for bit: only the leaves decide
    rebuilt = SumTree(1000)
    rebuilt.leaves[:] = tree.leaves
    rebuilt.rebuild()
    np.testing.assert_array_equal(tree.nodes, rebuilt.nodes)


def test_check_valid_sees_a_wrong_inner_value():
    tree = SumTree(100)
    tree.set(np.array([40]), np.array([2.0]))
    tree.nodes[0] += 1.0
    with pytest.raises(ValueError, match="sum of its children"):
        tree.check_valid()


def test_duplicates_in_a_batch_the_last_one_wins():
    tree = SumTree(10)
    tree.set(np.array([3, 3, 4, 3]), np.array([9.0, 8.0, 1.0, 2.0]))
    assert tree.leaves.tolist() == [0, 0, 0, 2.0, 1.0, 0, 0, 0, 0, 0]
    assert tree.total == 3.0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_invalid_values_are_refused(value):
    tree = SumTree(4)
    with pytest.raises(ValueError, match="finite, not negative"):
        tree.set(np.array([0, 1]), np.array([1.0, value]))
    assert tree.total == 0.0


@pytest.mark.parametrize("slot", [-1, 4])
def test_slots_outside_are_refused(slot):
    with pytest.raises(IndexError):
        SumTree(4).set(np.array([slot]), np.array([1.0]))


def test_two_million_leaves_are_seven_levels_of_cache_lines():
    tree = SumTree(8**7)
    assert len(tree.offsets) == 7
    assert tree.nodes.ctypes.data % 64 == 0
    assert tree.nbytes == tree_bytes(8**7) == 8 * sum(8**level for level in range(1, 8))
