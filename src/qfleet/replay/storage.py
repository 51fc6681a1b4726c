"""A ring of transitions, one packed row each: the middle of a transition's path, between actor and learner.

A row holds everything of its transition side by side, so that drawing one costs one visit to memory. Rows are named
by keys, the global numbers of their insertion; a key goes stale when its slot is written again (the ring of
Mnih et al., 2015, with generations).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from qfleet.errors import ConfigError
from qfleet.replay import disk
from qfleet.replay.layout import ROWS, Layout, Table, ring_layout, row_dtype
from qfleet.replay.memory import check_memory
from qfleet.replay.packing import PackedTransitions, pack, unpack
from qfleet.types import Array, BoolArray, EnvSpec, IntArray, Transitions


class Storage(Protocol):
    """Where a replay keeps its rows; see `RingStorage`, whose attributes and methods these are."""

    capacity: int
    spec: EnvSpec
    num_inserted: int

    def __len__(self) -> int: ...

    @property
    def first_live_key(self) -> int: ...

    @property
    def nbytes(self) -> int: ...

    @property
    def layout(self) -> Layout: ...

    def insert(self, transitions: Transitions | PackedTransitions) -> IntArray: ...

    def gather(self, slots: IntArray) -> Transitions: ...

    def gather_packed(self, slots: IntArray) -> PackedTransitions: ...

    def is_live(self, keys: IntArray) -> BoolArray: ...

    def slots_of(self, keys: IntArray) -> IntArray: ...

    def tables(self) -> dict[str, Table]: ...

    def restore_counters(self, ranges: Sequence[tuple[int, int]]) -> None: ...


def required_bytes(capacity: int, spec: EnvSpec) -> int:
    """Bytes that a full ring of `capacity` transitions of this environment takes; allocates nothing."""
    return capacity * row_dtype(spec).itemsize


class RingStorage:
    """Preallocated rows for `capacity` transitions; the newest overwrite the oldest.

    Keys are insertion numbers: `key % capacity` is the slot, and a key is live while
    `first_live_key <= key < num_inserted`.

    Args:
        capacity: most transitions kept, at least 1.
        spec: shapes and dtypes of the environment.
        directory: where the rows lie in a file; None keeps them in memory.

    Attributes:
        rows: uint8 [capacity, row_bytes].
        num_inserted: transitions inserted since the beginning, overwritten ones included.

    Raises:
        ConfigError: capacity is below 1, or the full ring does not fit into memory.
    """

    def __init__(self, capacity: int, spec: EnvSpec, directory: Path | None = None) -> None:
        if capacity < 1:
            raise ConfigError(f"replay.capacity: {capacity} is not a size; give at least 1")
        if directory is None:
            check_memory(capacity, required_bytes(capacity, spec))
        self.capacity = capacity
        self.spec = spec
        self.dtype = row_dtype(spec)
        self.rows: npt.NDArray[np.uint8] = disk.zeros((capacity, self.dtype.itemsize), np.dtype(np.uint8), directory)
        self._is_in_memory = directory is None
        self.num_inserted = 0
        self._first_key = 0  # above 0 only after loading from a smaller ring: older keys were never here
        self._records = self.rows.view(self.dtype)[:, 0]
        # Views made once: an insertion is then one slice assignment per column.
        self._obs: Array = self._records["obs"]
        self._next_obs: Array = self._records["next_obs"]
        self._action: Array = self._records["action"]
        self._reward: Array = self._records["reward"]
        self._discount: Array = self._records["discount"]
        self._mask: Array | None = self._records["next_action_mask"] if spec.has_action_mask else None

    def __len__(self) -> int:
        return self.num_inserted - self.first_live_key

    @property
    def first_live_key(self) -> int:
        """The oldest key whose row is still here; equals `num_inserted` while empty."""
        return max(self._first_key, self.num_inserted - self.capacity)

    @property
    def row_bytes(self) -> int:
        """Bytes of one packed row, a multiple of 8."""
        return self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes in memory of the full ring."""
        return self.rows.nbytes if self._is_in_memory else 0

    def insert(self, transitions: Transitions | PackedTransitions) -> IntArray:
        """Writes N transitions over the oldest rows.

        Actions must lie in [0, A): they are narrowed without a check. Of more than `capacity` transitions the last
        ones stay, and the keys of the others are stale at once.

        Returns:
            int64 [N], the keys: `num_inserted` onwards, in order.

        Raises:
            ValueError: an observation or mask has another shape or dtype than the environment's.
        """
        if isinstance(transitions, PackedTransitions):
            transitions = unpack(transitions)
        num, first = len(transitions.action), self.num_inserted
        check_transitions(transitions, self.spec)
        start = first % self.capacity
        if num <= self.capacity - start:
            self._write(slice(start, start + num), transitions, slice(0, num))
        else:
            begin = max(num - self.capacity, 0)
            while begin < num:
                start = (first + begin) % self.capacity
                end = min(num, begin + self.capacity - start)
                self._write(slice(start, start + end - begin), transitions, slice(begin, end))
                begin = end
        self.num_inserted = first + num
        return np.arange(first, first + num)

    def gather(self, slots: IntArray) -> Transitions:
        """Copies the rows of `slots` (int64 [B], in [0, capacity)) into one block and returns views of its columns.

        The columns other than `action` share that block: writable, strided, fit for `torch.from_numpy`.
        """
        return transitions_of(self._records.take(slots))

    def gather_packed(self, slots: IntArray) -> PackedTransitions:
        """As `gather`, equal frames once; for observations that are stacks of frames."""
        return pack(self.gather(slots))

    def is_live(self, keys: IntArray) -> BoolArray:
        """bool [B]: whether the row that each key (int64 [B]) names is still here."""
        live: BoolArray = (keys >= self.first_live_key) & (keys < self.num_inserted)
        return live

    def slots_of(self, keys: IntArray) -> IntArray:
        """int64 [B], the slots of `keys` (int64 [B]); meaningful for live keys only."""
        return keys % self.capacity

    @property
    def layout(self) -> Layout:
        """The columns that a save of this storage has."""
        return ring_layout(self.spec)

    def tables(self) -> dict[str, Table]:
        """The live rows, for saving and loading."""
        columns = {name: self._records[name] for name in self.dtype.names or ()}
        return {ROWS: Table(self.capacity, self.first_live_key, self.num_inserted, columns)}

    def restore_counters(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Declares that exactly the rows of keys `first_key` to `num_inserted` - 1 are here (loading a save).

        Args:
            ranges: [(first_key, num_inserted)], one for each table.

        Raises:
            ValueError: the range is not one that this ring can hold.
        """
        ((first_key, num_inserted),) = ranges
        check_range(first_key, num_inserted, self.capacity)
        self._first_key, self.num_inserted = first_key, num_inserted

    def _write(self, slots: slice, transitions: Transitions, part: slice) -> None:
        self._obs[slots] = transitions.obs[part]
        self._next_obs[slots] = transitions.next_obs[part]
        self._action[slots] = transitions.action[part]
        self._reward[slots] = transitions.reward[part]
        self._discount[slots] = transitions.discount[part]
        if self._mask is not None and transitions.next_action_mask is not None:
            self._mask[slots] = transitions.next_action_mask[part]


def transitions_of(records: Array) -> Transitions:
    """The columns of a block of rows (`row_dtype` [B]) as transitions; only `action` is copied, to int64."""
    has_mask = "next_action_mask" in (records.dtype.names or ())
    return Transitions(
        obs=records["obs"],
        action=records["action"].astype(np.int64),
        reward=records["reward"],
        discount=records["discount"],
        next_obs=records["next_obs"],
        next_action_mask=records["next_action_mask"] if has_mask else None,
    )


def check_transitions(transitions: Transitions, spec: EnvSpec) -> None:
    """Raises ValueError unless shapes and dtypes are the environment's.

    Assignment to a slice would broadcast and cast in silence, and train on nonsense.
    """
    num, dtype = len(transitions.action), np.dtype(spec.obs_dtype)
    shape = (num, *spec.obs_shape)
    for name in ("obs", "next_obs"):
        value = getattr(transitions, name)
        if value.shape != shape or value.dtype != dtype:
            raise ValueError(f"{name} must be {dtype} {list(shape)}, got {value.dtype} {list(value.shape)}")
    check_scalars(transitions, spec)


def check_scalars(transitions: Transitions | PackedTransitions, spec: EnvSpec) -> None:
    """Raises ValueError unless everything but the observations is there for each action."""
    num = len(transitions.action)
    if not len(transitions.reward) == len(transitions.discount) == num:
        raise ValueError(f"reward and discount must have {num} entries, one per action")
    mask = transitions.next_action_mask
    if spec.has_action_mask and (mask is None or mask.shape != (num, spec.num_actions)):
        raise ValueError(f"next_action_mask must be bool [{num}, {spec.num_actions}]")


def check_range(first: int, end: int, capacity: int) -> None:
    """Raises ValueError unless numbers `first` to `end` - 1 fit into a ring of `capacity`."""
    if not 0 <= first <= end or end - first > capacity:
        raise ValueError(f"keys {first} to {end} do not fit into {capacity} slots")
