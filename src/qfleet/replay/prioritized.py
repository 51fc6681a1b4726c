"""Proportional prioritized replay (Schaul et al., 2015): transitions with larger TD errors are drawn more often.

Stands between the actors' insertions, with their initial priorities (Horgan et al., 2018), and the learner, which
sends priorities back after each update. The rows are storage's, the draws are sum_tree's; this joins the two.
"""

from __future__ import annotations

import json

import numpy as np

from qfleet.errors import ConfigError
from qfleet.replay import sum_tree
from qfleet.replay.buffer import (
    PRIORITY_EPSILON,
    EmptyReplayError,
    FloatVector,
    InvalidPriorityError,
    SamplerState,
    leaf_without_priority,
)
from qfleet.replay.memory import check_memory
from qfleet.replay.packing import PackedTransitions
from qfleet.replay.storage import RingStorage, Storage, required_bytes
from qfleet.replay.uniform import check_generator_state
from qfleet.types import EnvSpec, IntArray, Sample, Transitions


class PrioritizedReplay:
    """Draws transition i with probability p_i^alpha / sum_k p_k^alpha, p = |TD error| + 1e-6. See `buffer.Replay`.

    A batch of B is stratified: one draw from each B-th part of the cumulative sum.

    Args:
        capacity: most transitions kept.
        spec: shapes and dtypes of the environment.
        generator: where the draws come from; nobody else should use it.
        alpha: 0 draws uniformly, 1 in proportion to the TD error.
        storage: an empty one to use instead of a new RingStorage of `capacity`.

    Raises:
        ConfigError: capacity or alpha is out of range, or rows and tree together do not fit into memory.
        ValueError: the storage is of another capacity.
    """

    def __init__(
        self,
        capacity: int,
        spec: EnvSpec,
        generator: np.random.Generator,
        alpha: float,
        *,
        storage: Storage | None = None,
    ) -> None:
        if not 0.0 <= alpha <= 1.0:
            raise ConfigError(f"replay.priority_exponent: {alpha} is out of range; give a number from 0 to 1")
        if storage is not None and storage.capacity != capacity:
            raise ValueError(f"the storage is one of {storage.capacity} transitions, not {capacity}")
        rows = required_bytes(capacity, spec) if storage is None else storage.nbytes
        check_memory(capacity, rows + sum_tree.tree_bytes(max(capacity, 1)))
        self.storage: Storage = RingStorage(capacity, spec) if storage is None else storage
        self.alpha = float(alpha)  # an int would make the kernels compile again
        self._tree = sum_tree.SumTree(capacity)
        self._generator = generator
        self._max_leaf = 0.0  # largest (p + epsilon)^alpha seen; 0 while none was

    @property
    def capacity(self) -> int:
        """Most transitions kept."""
        return self.storage.capacity

    @property
    def num_inserted(self) -> int:
        """Transitions inserted since the beginning, overwritten ones included."""
        return self.storage.num_inserted

    @property
    def nbytes(self) -> int:
        """Bytes when full, the tree's included."""
        return self.storage.nbytes + self._tree.nbytes

    @property
    def total(self) -> float:
        """The sum of (p + epsilon)^alpha over the rows."""
        return self._tree.total

    def __len__(self) -> int:
        return len(self.storage)

    def insert(self, transitions: Transitions | PackedTransitions, priorities: FloatVector | None = None) -> IntArray:
        """Stores N transitions and returns their keys, int64 [N].

        `priorities` (float64 [N], |TD errors|) None gives each the largest priority seen so far, 1 at the very
        beginning, so that each is likely to be learned from once.

        Raises:
            InvalidPriorityError: a priority is NaN, infinite or negative; nothing was inserted.
            ValueError: shapes or dtypes differ from the environment's, or there is not one priority a transition.
        """
        num = len(transitions)
        if priorities is None:
            leaves = np.full(num, leaf_without_priority(self._max_leaf, self.alpha))
        else:
            leaves = (_checked(priorities, num) + PRIORITY_EPSILON) ** self.alpha
        first_key, first_live = self.storage.num_inserted, self.storage.first_live_key
        keys = self.storage.insert(transitions)
        self._max_leaf = sum_tree.set_range(
            self._tree.nodes, self._tree.offsets, first_key, leaves, self._max_leaf, self.capacity
        )
        self._forget(max(first_live, self.num_inserted - self.capacity))
        return keys

    def sample(self, batch_size: int) -> Sample:
        """Draws `batch_size` transitions, one from each stratum; probabilities are p_i^alpha over the total.

        Raises:
            EmptyReplayError: nothing was inserted yet.
        """
        storage = self.storage
        if len(storage) == 0:
            raise EmptyReplayError("replay is empty: insert transitions before sampling")
        slots, keys = np.empty(batch_size, np.int64), np.empty(batch_size, np.int64)
        probabilities = np.empty(batch_size, np.float64)
        sum_tree.sample_strata(
            self._tree.nodes,
            self._tree.offsets,
            self._generator.random(batch_size),
            storage.num_inserted,
            storage.capacity,
            slots,
            keys,
            probabilities,
        )
        return Sample(keys, storage.gather(slots), probabilities, len(storage))

    def update_priorities(self, keys: IntArray, priorities: FloatVector) -> int:
        """Sets the priorities (float64 [B], |TD errors|) of `keys` (int64 [B]) whose rows are still here.

        Where a key comes twice, the last one wins.

        Returns:
            how many were applied; the others' slots were reused meanwhile.

        Raises:
            InvalidPriorityError: a priority is NaN, infinite or negative; none was applied.
            ValueError: there is not one priority a key.
        """
        checked = _checked(priorities, len(keys))
        applied, self._max_leaf = sum_tree.update_live(
            self._tree.nodes,
            self._tree.offsets,
            np.array(keys, np.int64),  # a copy: the kernel works in it, and the caller's may be read-only
            checked,
            self.storage.first_live_key,
            self.storage.num_inserted,
            self.capacity,
            self.alpha,
            PRIORITY_EPSILON,
            self._max_leaf,
        )
        return int(applied)

    def sampler_state(self) -> SamplerState:
        """The generator's state, the largest leaf seen and the live leaves in order of keys."""
        return SamplerState(
            generator=json.dumps(self._generator.bit_generator.state),
            alpha=self.alpha,
            max_leaf=self._max_leaf,
            leaves=self._tree.leaves[self._live_slots()],
        )

    def check_sampler_state(self, state: SamplerState) -> None:
        """Raises ValueError if `state` is a uniform replay's, of another alpha, or holds invalid leaves."""
        if state.leaves is None or state.alpha is None or state.max_leaf is None:
            raise ValueError("it was saved by a uniform replay; this one is prioritized")
        if state.alpha != self.alpha:
            raise ValueError(f"its priorities were saved with alpha {state.alpha}; this replay has {self.alpha}")
        if len(state.leaves) and not np.all(np.isfinite(state.leaves) & (state.leaves > 0.0)):
            raise ValueError("a saved priority is not above zero and finite")
        check_generator_state(self._generator, state.generator)

    def restore_sampler(self, state: SamplerState) -> None:
        """Goes on drawing where `state` left off; of more leaves than rows the newest are taken."""
        assert state.leaves is not None
        assert state.max_leaf is not None
        slots = self._live_slots()
        self._tree.leaves[:] = 0.0
        self._tree.leaves[slots] = state.leaves[len(state.leaves) - len(slots) :]
        self._tree.rebuild()
        self._max_leaf = state.max_leaf
        self._generator.bit_generator.state = json.loads(state.generator)

    def _forget(self, first_key: int) -> None:
        """Makes undrawable what storage dropped, from `first_key` on, without writing another row over it."""
        if first_key < self.storage.first_live_key:
            dropped = self.storage.slots_of(np.arange(first_key, self.storage.first_live_key))
            self._tree.set(dropped, np.zeros(len(dropped)))

    def _live_slots(self) -> IntArray:
        return self.storage.slots_of(np.arange(self.storage.first_live_key, self.num_inserted))


def _checked(priorities: FloatVector, num: int) -> FloatVector:
    """A float64 copy [num] of valid priorities."""
    values = np.array(priorities, np.float64)
    if values.shape != (num,):
        raise ValueError(f"priorities must be float64 [{num}], one a transition, got {list(values.shape)}")
    index = sum_tree.first_invalid(values)
    if index >= 0:
        raise InvalidPriorityError(
            f"priority {values[index]} at index {index} of {num} is not a finite number of at least 0; "
            "has the loss diverged?"
        )
    return values
