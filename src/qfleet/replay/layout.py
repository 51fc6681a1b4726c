"""What a transition's row holds, in memory and in a save; beside storage.py and segments.py.

A row has everything of its transition side by side, at aligned offsets, so that drawing one costs one visit to memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from qfleet.types import Array, EnvSpec

_ROW_ALIGNMENT = 8  # so that each column of a block of rows has strides that are multiples of its item size
Words = npt.NDArray[np.uint64]  # frames, padded to whole words
WORD_BYTES = 8
ROWS, FRAMES = "rows", "frames"  # tables: every storage has the first

Layout = dict[str, np.dtype[Any]]  # of a save: the columns of each table, by the table's name, rows first


class Column(Protocol):
    """What a save needs of a column [capacity, ...]: an array is one."""

    @property
    def dtype(self) -> np.dtype[Any]: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, slots: slice, /) -> Array: ...

    def __setitem__(self, slots: slice, values: Array, /) -> None: ...


@dataclass(frozen=True, slots=True)
class Table:
    """What a save holds of a storage: entries numbered for ever, number k in slot k % capacity.

    Attributes:
        capacity: entries kept.
        first, end: the numbers that a save needs, [first, end).
        columns: writable views [capacity, ...] by name, in slot order.
    """

    capacity: int
    first: int
    end: int
    columns: Mapping[str, Column]

    @property
    def entry_bytes(self) -> int:
        """Bytes of one entry."""
        return sum(column.dtype.itemsize * int(np.prod(column.shape[1:])) for column in self.columns.values())


def row_dtype(spec: EnvSpec) -> np.dtype[Any]:
    """The packed row of one transition: named fields at aligned offsets, padded to 8 bytes.

    Fields: reward and discount float32, obs and next_obs [*O] of the environment's dtype, action as the smallest
    unsigned integer that holds A - 1, next_action_mask bool [A] only where the environment has masks.
    """
    obs = np.dtype(spec.obs_dtype)
    return packed_dtype(spec, [("obs", obs, spec.obs_shape), ("next_obs", obs, spec.obs_shape)])


def packed_dtype(spec: EnvSpec, observations: list[tuple[str, Any, tuple[int, ...]]]) -> np.dtype[Any]:
    """A packed row in which `observations` (name, dtype, shape) stand for obs and next_obs; see `row_dtype`."""
    columns: list[tuple[str, Any, tuple[int, ...]]] = [
        ("reward", np.dtype(np.float32), ()),
        ("discount", np.dtype(np.float32), ()),
        *observations,
        ("action", np.min_scalar_type(max(spec.num_actions - 1, 0)), ()),
    ]
    if spec.has_action_mask:
        columns.append(("next_action_mask", np.dtype(np.bool_), (spec.num_actions,)))
    offsets, end = [], 0
    for _, dtype, shape in columns:
        offsets.append(_round_up(end, dtype.itemsize))
        end = offsets[-1] + dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    return np.dtype(
        {
            "names": [name for name, _, _ in columns],
            "formats": [(dtype, shape) for _, dtype, shape in columns],
            "offsets": offsets,
            "itemsize": _round_up(end, _ROW_ALIGNMENT),
        }
    )


def ring_layout(spec: EnvSpec) -> Layout:
    """What a save of a RingStorage holds."""
    return {ROWS: row_dtype(spec)}


def frame_row_dtype(spec: EnvSpec) -> np.dtype[Any]:
    """The packed row of one transition: as `row_dtype`, with the int64 numbers of 2 K frames for its observations."""
    return packed_dtype(spec, [("frames", np.dtype(np.int64), (2 * spec.obs_shape[0],))])


def frame_layout(spec: EnvSpec) -> Layout:
    """What a save of a FrameStorage holds."""
    return {ROWS: frame_row_dtype(spec), FRAMES: np.dtype([("pixels", np.uint8, spec.obs_shape[1:])])}


def is_frame_stack(spec: EnvSpec) -> bool:
    """Whether observations can be stacks of frames: uint8 [K, H, W] with K of at least 2."""
    return spec.obs_dtype == "uint8" and len(spec.obs_shape) == 3 and spec.obs_shape[0] >= 2


def looks_like_frames(spec: EnvSpec) -> bool:
    """Whether observations most likely are stacks of frames: K is smaller than H and W, and is not 3 colours."""
    return is_frame_stack(spec) and spec.obs_shape[0] < min(spec.obs_shape[1:]) and spec.obs_shape[0] != 3


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
