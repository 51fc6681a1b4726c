"""Sum tree: draws slots in proportion to their priority, the inner part of prioritized replay (Schaul et al., 2015).

Eight float64 children share a node, which is one cache line, so two million leaves are seven levels deep. An inner
value is always recomputed from its children, left to right, never adjusted by differences: it cannot drift, and equal
leaves give equal trees. The compiled kernels of the draws live here, those of image storage in frame_table.py; nobody
else imports numba.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from qfleet.types import IntArray

FloatVector = npt.NDArray[np.float64]

FAN_OUT = 8
_CACHE_LINE = 64


class SumTree:
    """`capacity` float64 leaves, all zero at first, and the sums above them.

    Args:
        capacity: number of leaves, at least 1.

    Attributes:
        nodes: float64, all levels one after another, the root's eight children first; 64-byte aligned.
        offsets: int64 [levels], where each level begins in `nodes`; the last level holds the leaves.
    """

    def __init__(self, capacity: int) -> None:
        sizes = _level_sizes(capacity)
        self.capacity = capacity
        self.offsets: IntArray = np.array([sum(sizes[:level]) for level in range(len(sizes))], np.int64)
        self.nodes = _aligned_zeros(sum(sizes))

    @property
    def nbytes(self) -> int:
        """Bytes of the tree."""
        return self.nodes.nbytes

    @property
    def leaves(self) -> FloatVector:
        """float64 [capacity], a view; write through `set` or call `rebuild` afterwards."""
        first = int(self.offsets[-1])
        return self.nodes[first : first + self.capacity]

    @property
    def total(self) -> float:
        """The sum of all leaves."""
        return float(_total(self.nodes))

    def set(self, slots: IntArray, values: FloatVector) -> None:
        """Sets the leaves `slots` (int64 [N]) to `values` (float64 [N], finite, not negative); last one wins.

        Raises:
            IndexError: a slot lies outside [0, capacity).
            ValueError: a value is NaN, infinite or negative, or the lengths differ.
        """
        slots, values = np.array(slots, np.int64), np.array(values, np.float64)
        if slots.shape != values.shape or not np.all(np.isfinite(values) & (values >= 0.0)):
            raise ValueError(f"values must be finite, not negative and as many as the {len(slots)} slots")
        if len(slots) and not 0 <= slots.min() <= slots.max() < self.capacity:
            raise IndexError(f"a slot lies outside [0, {self.capacity})")
        _set(self.nodes, self.offsets, slots, values)

    def rebuild(self) -> None:
        """Recomputes every inner value from the leaves."""
        for level in range(len(self.offsets) - 1, 0, -1):
            children = self.nodes[self.offsets[level] :][: self._level_length(level)].reshape(-1, FAN_OUT)
            sums = children[:, 0].copy()
            for child in range(1, FAN_OUT):  # left to right, as the kernels add, so that equal leaves give equal sums
                sums += children[:, child]
            self.nodes[self.offsets[level - 1] :][: len(sums)] = sums

    def sample(self, uniforms: FloatVector) -> IntArray:
        """The slots whose stretches of the cumulative sum hold `uniforms` (float64 [B] in [0, 1)) times the total.

        Returns:
            int64 [B]; a leaf of zero is never among them.

        Raises:
            ValueError: all leaves are zero.
        """
        if self.total <= 0.0:
            raise ValueError("all leaves are zero: there is nothing to draw")
        slots = np.empty(len(uniforms), np.int64)
        _sample(self.nodes, self.offsets, np.array(uniforms, np.float64), slots)
        return slots

    def check_valid(self) -> None:
        """Raises ValueError unless every inner value is the sum of its children and padding is zero; for tests."""
        expected = SumTree(self.capacity)
        expected.leaves[:] = self.leaves
        expected.rebuild()
        if not np.array_equal(expected.nodes, self.nodes):
            raise ValueError("an inner value differs from the sum of its children, or padding is not zero")
        if not (np.all(np.isfinite(self.nodes)) and np.all(self.nodes >= 0.0)):
            raise ValueError("a value is NaN, infinite or negative")

    def _level_length(self, level: int) -> int:
        end = len(self.nodes) if level + 1 == len(self.offsets) else int(self.offsets[level + 1])
        return end - int(self.offsets[level])


def tree_bytes(capacity: int) -> int:
    """Bytes that a SumTree of `capacity` leaves takes; allocates nothing."""
    return sum(_level_sizes(capacity)) * 8


def _level_sizes(capacity: int) -> list[int]:
    """Values per level, top first, each a multiple of eight."""
    sizes = [-(-capacity // FAN_OUT) * FAN_OUT]
    while sizes[0] > FAN_OUT:
        parents = sizes[0] // FAN_OUT
        sizes.insert(0, -(-parents // FAN_OUT) * FAN_OUT)
    return sizes


def _aligned_zeros(length: int) -> FloatVector:
    raw = np.zeros(length * 8 + _CACHE_LINE, np.uint8)
    shift = -raw.ctypes.data % _CACHE_LINE
    return raw[shift : shift + length * 8].view(np.float64)


# Kernels. All of them are in this one file because numba's cache does not notice a change in a callee elsewhere.
# They release the GIL; a shard is single-threaded all the same, the engines see to that.


@njit(cache=True, nogil=True)
def _total(nodes):  # type: ignore[no-untyped-def]
    total = nodes[0]
    for child in range(1, FAN_OUT):
        total += nodes[child]
    return total


@njit(cache=True, nogil=True)
def _walk(nodes, offsets, targets, slots):  # type: ignore[no-untyped-def]
    """From the root to the leaves whose stretches of the cumulative sum hold `targets` (overwritten).

    A child is chosen where sum(before) <= target < sum(including), so its own value is above zero. Rounding can leave
    a target at or above its node's sum; then the last child above zero is taken, never an empty one behind it.

    All walks go down one level together: they do not depend on each other, so the processor waits for several cache
    lines at once. Counting children instead of stopping at the right one spares it a branch that it cannot guess.
    """
    sums = np.zeros(FAN_OUT + 1)
    slots[:] = 0
    for level in range(len(offsets)):
        for draw in range(len(targets)):
            first = offsets[level] + slots[draw] * FAN_OUT
            target = targets[draw]
            cumulative = 0.0
            child = 0
            for index in range(FAN_OUT):
                cumulative += nodes[first + index]
                sums[index + 1] = cumulative
                child += int(cumulative <= target)
            if child == FAN_OUT:
                child = FAN_OUT - 1
                while child > 0 and nodes[first + child] <= 0.0:
                    child -= 1
            targets[draw] = target - sums[child]
            slots[draw] = slots[draw] * FAN_OUT + child


@njit(cache=True, nogil=True)
def _sample(nodes, offsets, uniforms, slots):  # type: ignore[no-untyped-def]
    total = _total(nodes)
    for draw in range(len(uniforms)):
        uniforms[draw] *= total
    _walk(nodes, offsets, uniforms, slots)


@njit(cache=True, nogil=True)
def _refresh(nodes, offsets, parents, count):  # type: ignore[no-untyped-def]
    """Recomputes the ancestors of leaf slots parents[:count], level by level; overwrites `parents`.

    Neighbours under one parent are merged as they come: a stratified batch is sorted, so the upper levels, where all
    walks meet, are recomputed once each instead of once a leaf.
    """
    for level in range(len(offsets) - 1, 0, -1):
        kept = 0
        last = np.int64(-1)
        for index in range(count):
            parent = parents[index] >> 3
            if parent == last:
                continue
            last = parent
            parents[kept] = parent
            kept += 1
            first = offsets[level] + parent * FAN_OUT
            total = nodes[first]
            for child in range(1, FAN_OUT):
                total += nodes[first + child]
            nodes[offsets[level - 1] + parent] = total
        count = kept


@njit(cache=True, nogil=True)
def _set(nodes, offsets, slots, values):  # type: ignore[no-untyped-def]
    first = offsets[-1]
    for index in range(len(slots)):
        nodes[first + slots[index]] = values[index]
    _refresh(nodes, offsets, slots, len(slots))


@njit(cache=True, nogil=True)
def first_invalid(priorities):  # type: ignore[no-untyped-def]
    """Index of the first priority that is NaN, negative or above 1e100 (whose sums could overflow), or -1."""
    for index in range(len(priorities)):
        if not (0.0 <= priorities[index] <= 1e100):
            return index
    return -1


@njit(cache=True, nogil=True)
def set_range(nodes, offsets, first_key, leaf_values, max_leaf, capacity):  # type: ignore[no-untyped-def]
    """Sets the leaves of consecutive keys from `first_key` on; returns the largest leaf seen so far."""
    count = len(leaf_values)
    begin = max(count - capacity, 0)  # of more than the ring holds, the last ones stay
    slots = np.empty(count - begin, np.int64)
    slot = (first_key + begin) % capacity
    for index in range(begin, count):
        nodes[offsets[-1] + slot] = leaf_values[index]
        slots[index - begin] = slot
        slot += 1
        if slot == capacity:
            slot = 0
    for index in range(count):
        max_leaf = max(max_leaf, leaf_values[index])
    _refresh(nodes, offsets, slots, len(slots))
    return max_leaf


@njit(cache=True, nogil=True)
def update_live(nodes, offsets, keys, priorities, first_live, end, capacity, exponent, epsilon, max_leaf):  # type: ignore[no-untyped-def]
    """Sets (priority + epsilon)^exponent for the live ones of `keys` (overwritten); returns (applied, largest leaf)."""
    applied = 0
    for index in range(len(keys)):
        key = keys[index]
        if key < first_live or key >= end:
            continue
        leaf = (priorities[index] + epsilon) ** exponent
        max_leaf = max(max_leaf, leaf)
        slot = key % capacity
        nodes[offsets[-1] + slot] = leaf
        keys[applied] = slot
        applied += 1
    _refresh(nodes, offsets, keys, applied)
    return applied, max_leaf


@njit(cache=True, nogil=True)
def sample_strata(nodes, offsets, uniforms, end, capacity, slots, keys, probabilities):  # type: ignore[no-untyped-def]
    """Draws one slot from each of B equal parts of the cumulative sum.

    Args:
        nodes, offsets: the tree, with a total above zero.
        uniforms: float64 [B] in [0, 1), the place within each part; overwritten.
        end: number of insertions so far; a slot's key is the newest below it.
        capacity: of the ring.
        slots, keys, probabilities: int64 [B], int64 [B], float64 [B]; written.
    """
    total = _total(nodes)
    count = len(uniforms)
    width = total / count
    for draw in range(count):
        uniforms[draw] = (draw + uniforms[draw]) * width
    _walk(nodes, offsets, uniforms, slots)
    newest_slot = (end - 1) % capacity
    for draw in range(count):
        age = newest_slot - slots[draw]
        if age < 0:
            age += capacity
        keys[draw] = end - 1 - age
        probabilities[draw] = nodes[offsets[-1] + slots[draw]] / total
