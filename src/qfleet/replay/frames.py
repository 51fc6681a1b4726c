"""A ring of transitions whose frames are stored once: image replay at about an eighth of the memory.

A stack of K frames shares K - 1 of them with the stack before, and next_obs shares them with a later obs (the
preprocessing of Mnih et al., 2015). Here a row holds the numbers of its 2 K frames, and the frames lie in a ring of
their own (frame_table.py), which recognises them by content: whatever order, environments or n-step windows they
come from. What is gathered is bit for bit what `RingStorage` would give.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from qfleet.errors import ConfigError
from qfleet.replay.compressed import CompressedColumn
from qfleet.replay.frame_table import FrameRing, as_frames, as_words, find_unique, num_words, ring_bytes
from qfleet.replay.layout import (
    FRAMES,
    ROWS,
    WORD_BYTES,
    Column,
    Layout,
    Table,
    frame_layout,
    frame_row_dtype,
    is_frame_stack,
)
from qfleet.replay.memory import check_memory
from qfleet.replay.packing import PackedTransitions, all_frames
from qfleet.replay.storage import check_range, check_scalars, check_transitions
from qfleet.types import BoolArray, EnvSpec, IntArray, Transitions

_SPARE_SHARE = 128  # frames beside one a row: as many for episodes' first ones, as many for those in reach
_MIN_REACH = 1024  # 70 environments find n + K = 7 steps back, even where each frame was stored twice


class FrameStorage:
    """`RingStorage` for stacks of frames (uint8 [K, H, W]) with the same keys, rows and errors.

    A row lives while its slot is not written again and all its frames are here. There are frames for `capacity`
    rows whose episodes last 128 steps or more. Where more are needed (observations that are not stacks, or very short
    episodes) the oldest rows go early, and are counted.

    Args:
        capacity: most transitions kept, at least 1.
        spec: shapes and dtypes of the environment.
        reach: how many of the newest frames are looked through for an equal one; None takes `default_reach`.
        directory: where the frames lie in a file; None keeps them in memory.
        is_compressed: whether frames are kept compressed.

    Attributes:
        num_inserted: transitions inserted since the beginning, overwritten ones included.
        num_dropped: rows that went because of their frames, since this object was made.

    Raises:
        ConfigError: capacity is below 1, or the full rings do not fit into memory.
        ValueError: observations are not stacks of frames.
    """

    def __init__(
        self,
        capacity: int,
        spec: EnvSpec,
        reach: int | None = None,
        *,
        directory: Path | None = None,
        is_compressed: bool = False,
    ) -> None:
        if capacity < 1:
            raise ConfigError(f"replay.capacity: {capacity} is not a size; give at least 1")
        if not is_frame_stack(spec):
            raise ValueError(f"{spec.obs_dtype} {list(spec.obs_shape)} is no stack of frames, uint8 [K, H, W]")
        keeping = required_frame_bytes(capacity, spec, reach, directory=directory, is_compressed=is_compressed)
        check_memory(capacity, keeping)
        reach = default_reach(capacity) if reach is None else reach
        self.capacity, self.spec = capacity, spec
        self.num_inserted = self.num_dropped = 0
        self._num_stack, self._shape = spec.obs_shape[0], (spec.obs_shape[1], spec.obs_shape[2])
        self._records = np.zeros(capacity, frame_row_dtype(spec))
        self._ring = FrameRing(
            _num_frames(capacity, spec, reach),
            num_words(_frame_bytes(spec)),
            reach,
            directory=directory,
            window=_window(spec, reach) if is_compressed else None,
        )
        self._first_key = 0

    def __len__(self) -> int:
        return self.num_inserted - self.first_live_key

    @property
    def first_live_key(self) -> int:
        """The oldest key whose row and frames are still here; equals `num_inserted` while empty."""
        return max(self._first_key, self.num_inserted - self.capacity)

    @property
    def num_frames(self) -> int:
        """Frames stored since the beginning: how well sharing works, against `num_inserted`."""
        return self._ring.num_frames

    @property
    def nbytes(self) -> int:
        """Bytes in memory of the full rings; of compressed frames, of those that are here."""
        return self._records.nbytes + self._ring.nbytes

    @property
    def layout(self) -> Layout:
        """The columns that a save of this storage has."""
        return frame_layout(self.spec)

    def insert(self, transitions: Transitions | PackedTransitions) -> IntArray:
        """Writes N transitions over the oldest rows; see `RingStorage.insert`. Packed ones cost less.

        Returns:
            int64 [N], the keys: `num_inserted` onwards, in order.

        Raises:
            ValueError: an observation or mask has another shape or dtype than the environment's, or an index points
                outside the packed frames.
        """
        num, first = len(transitions.action), self.num_inserted
        begin = max(num - self.capacity, 0)  # of more than the ring holds, the last ones stay
        if isinstance(transitions, PackedTransitions):
            self._check_packed(transitions)
            words = as_words(transitions.frames)
            pool = words, words[:0]
            source: IntArray = np.arange(len(words))
            index = np.concatenate([transitions.obs_index[begin:], transitions.next_index[begin:]], axis=1)
        else:
            check_transitions(transitions, self.spec)
            pool = as_words(transitions.obs[begin:]), as_words(transitions.next_obs[begin:])
            index = all_frames(num - begin, self._num_stack)
            source = find_unique(pool, index)
        numbers, first_row = self._ring.store(pool, source, index, first + begin)
        slots = np.arange(first + begin, first + num) % self.capacity
        self._records["frames"][slots] = numbers
        for name in ("action", "reward", "discount"):
            self._records[name][slots] = getattr(transitions, name)[begin:]
        if transitions.next_action_mask is not None and self.spec.has_action_mask:
            self._records["next_action_mask"][slots] = transitions.next_action_mask[begin:]
        self.num_inserted = first + num
        self.num_dropped += max(first_row - self.first_live_key, 0)
        self._first_key = max(self._first_key, first_row)
        return np.arange(first, first + num)

    def gather(self, slots: IntArray) -> Transitions:
        """Copies the transitions of `slots` (int64 [B], in [0, capacity)); obs and next_obs are views of one block."""
        records = self._records.take(slots)
        words = self._ring.take(records["frames"])
        frames = as_frames(words, self._shape)
        return Transitions(
            obs=frames[:, : self._num_stack],
            action=records["action"].astype(np.int64),
            reward=records["reward"],
            discount=records["discount"],
            next_obs=frames[:, self._num_stack :],
            next_action_mask=records["next_action_mask"] if self.spec.has_action_mask else None,
        )

    def gather_packed(self, slots: IntArray) -> PackedTransitions:
        """As `gather`, each frame once: for a learner in another process."""
        records = self._records.take(slots)
        numbers, inverse = np.unique(records["frames"], return_inverse=True)
        index: npt.NDArray[np.int32] = inverse.reshape(len(slots), 2 * self._num_stack).astype(np.int32)
        words = self._ring.take(numbers)
        return PackedTransitions(
            frames=as_frames(words, self._shape),
            obs_index=index[:, : self._num_stack],
            next_index=index[:, self._num_stack :],
            action=records["action"].astype(np.int64),
            reward=records["reward"],
            discount=records["discount"],
            next_action_mask=records["next_action_mask"] if self.spec.has_action_mask else None,
        )

    def is_live(self, keys: IntArray) -> BoolArray:
        """bool [B]: whether the transition that each key (int64 [B]) names is still here."""
        live: BoolArray = (keys >= self.first_live_key) & (keys < self.num_inserted)
        return live

    def slots_of(self, keys: IntArray) -> IntArray:
        """int64 [B], the slots of `keys` (int64 [B]); meaningful for live keys only."""
        return keys % self.capacity

    def tables(self) -> dict[str, Table]:
        """The live rows, and the frames that they need or that the next rows may share."""
        first, end, ring = self.first_live_key, self.num_inserted, self._ring
        live = self._records["frames"][self.slots_of(np.arange(first, end))]
        first_frame = min(int(live.min(initial=ring.num_frames)), ring.num_frames - ring.reach)
        first_frame = max(first_frame, ring.num_frames - ring.capacity, ring.first_frame)
        rows: dict[str, Column] = {name: self._records[name] for name in self._records.dtype.names or ()}
        pixels: Column = as_frames(ring.words, self._shape)
        if ring.compressed is not None:
            pixels = CompressedColumn(ring.compressed, self._shape)
        return {
            ROWS: Table(self.capacity, first, end, rows),
            FRAMES: Table(ring.capacity, first_frame, ring.num_frames, {"pixels": pixels}),
        }

    def restore_counters(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Declares which rows and which frames are here (loading a save); rows that lack a frame are dropped.

        Args:
            ranges: [(first_key, num_inserted), (first_frame, num_frames)].

        Raises:
            ValueError: a range is not one that its ring can hold.
        """
        (first_key, num_inserted), (first_frame, num_frames) = ranges
        check_range(first_key, num_inserted, self.capacity)
        check_range(first_frame, num_frames, self._ring.capacity)
        keys = np.arange(first_key, num_inserted)
        numbers = self._records["frames"][self.slots_of(keys)]
        lacking = np.flatnonzero(numbers.min(axis=1, initial=num_frames) < first_frame)
        begin = int(lacking[-1]) + 1 if len(lacking) else 0
        self._ring.restore(first_frame, num_frames, keys[begin:], numbers[begin:])
        self._first_key, self.num_inserted = first_key + begin, num_inserted
        self.num_dropped += begin

    def check_valid(self) -> None:
        """Raises ValueError if a live row needs a frame that is not here; for tests."""
        keys = np.arange(self.first_live_key, self.num_inserted)
        numbers = self._records["frames"][self.slots_of(keys)]
        oldest = max(self._ring.first_frame, self.num_frames - self._ring.capacity)
        if numbers.size and not oldest <= numbers.min() <= numbers.max() < self.num_frames:
            raise ValueError(f"a live row needs a frame outside of {oldest} to {self.num_frames}")

    def _check_packed(self, packed: PackedTransitions) -> None:
        shape = (len(packed), self._num_stack)
        if packed.frames.shape[1:] != self._shape or packed.frames.dtype != np.uint8:
            raise ValueError(f"frames must be uint8 [F, {self._shape[0]}, {self._shape[1]}]")
        for name, index in (("obs_index", packed.obs_index), ("next_index", packed.next_index)):
            if index.shape != shape or index.dtype != np.int32:
                raise ValueError(f"{name} must be int32 {list(shape)}, got {index.dtype} {list(index.shape)}")
            if index.size and not 0 <= index.min() <= index.max() < len(packed.frames):
                raise ValueError(f"{name} points outside of the {len(packed.frames)} frames")
        check_scalars(packed, self.spec)


def default_reach(capacity: int) -> int:
    """Frames that are looked through for an equal one."""
    return max(capacity // _SPARE_SHARE, min(capacity, _MIN_REACH))


def required_frame_bytes(
    capacity: int,
    spec: EnvSpec,
    reach: int | None = None,
    *,
    directory: Path | None = None,
    is_compressed: bool = False,
) -> int:
    """Bytes of memory that a FrameStorage takes when full, expected ones of compressed frames; allocates nothing."""
    reach = default_reach(capacity) if reach is None else reach
    rows = capacity * frame_row_dtype(spec).itemsize
    window = _window(spec, reach) if is_compressed else None
    num_frames = _num_frames(capacity, spec, reach)
    return rows + ring_bytes(num_frames, _frame_bytes(spec), reach, directory=directory, window=window)


def disk_frame_bytes(capacity: int, spec: EnvSpec) -> int:
    """Bytes of the file in which a FrameStorage keeps its frames, where it has a directory."""
    return _num_frames(capacity, spec, default_reach(capacity)) * num_words(_frame_bytes(spec)) * WORD_BYTES


def _num_frames(capacity: int, spec: EnvSpec, reach: int) -> int:
    """A frame a row, one more an episode, and so many that frames within reach never cost a live row.

    The oldest row needs frames that were at most `reach` old when it came.
    """
    return capacity + capacity // _SPARE_SHARE + reach + 4 * spec.obs_shape[0]


def _window(spec: EnvSpec, reach: int) -> int:
    """Frames that have to be at hand as they are: those in reach, and those of the row that is being stored."""
    return reach + 2 * spec.obs_shape[0]


def _frame_bytes(spec: EnvSpec) -> int:
    return spec.obs_shape[1] * spec.obs_shape[2]
