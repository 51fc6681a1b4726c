"""Frames kept compressed: a replay of several times the size in the same memory, for time in each gather.

Beside frame_table.py, whose ring then holds only the frames that a new one is compared with. Each frame is compressed
by itself (LZ4 block format, https://lz4.org), because a batch draws frames from everywhere.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np

from qfleet.errors import MissingExtraError
from qfleet.replay.layout import WORD_BYTES, Words
from qfleet.types import Array, IntArray

EXPECTED_RATIO = 4  # for the check of memory before there is a frame; Atari's are beyond it
_OVERHEAD = 33 + 8  # of a bytes object, and of its place in the list


class CompressedFrames:
    """`capacity` frames of `num_words` words, by number; the newest overwrite the oldest.

    Args:
        capacity: frames kept.
        num_words: words of a frame.

    Attributes:
        num_bytes: what the compressed frames take now.

    Raises:
        MissingExtraError: lz4 is not installed.
    """

    def __init__(self, capacity: int, num_words: int) -> None:
        self.capacity, self.num_words = capacity, num_words
        self.num_bytes = 0
        self._lz4 = _import_lz4()
        self._frames: list[bytes | None] = [None] * capacity

    def put(self, first: int, frames: Words) -> None:
        """Keeps `frames` (uint64 [F, W]) under the numbers from `first` on."""
        compress = self._lz4.compress
        for number, frame in enumerate(frames, first):
            slot = number % self.capacity
            before = self._frames[slot]
            packed = compress(frame.data, mode="fast", acceleration=1, store_size=False)
            self._frames[slot] = packed
            self.num_bytes += len(packed) + _OVERHEAD - (0 if before is None else len(before) + _OVERHEAD)

    def take(self, numbers: IntArray) -> Words:
        """uint64 [..., W], the frames of `numbers` (int64 [...]), all here; equal ones are unpacked once."""
        different, inverse = np.unique(numbers, return_inverse=True)
        words = np.empty((len(different), self.num_words), np.uint64)
        decompress, size = self._lz4.decompress, self.num_words * WORD_BYTES
        for row, slot in enumerate((different % self.capacity).tolist()):
            packed = self._frames[slot]
            assert packed is not None, f"slot {slot} never held a frame"
            words[row] = np.frombuffer(decompress(packed, uncompressed_size=size), np.uint64)
        return words[inverse.reshape(numbers.shape)]


class CompressedColumn:
    """Compressed frames as a column of a save: slices of slots read and written as uint8 [N, H, W].

    Attributes:
        dtype, shape: those of the array that it stands for.
    """

    def __init__(self, frames: CompressedFrames, shape: tuple[int, int]) -> None:
        self.dtype = np.dtype(np.uint8)
        self.shape = (frames.capacity, *shape)
        self._frames, self._num_bytes = frames, shape[0] * shape[1]

    def __getitem__(self, slots: slice) -> Array:
        words = self._frames.take(np.arange(self.shape[0])[slots])
        pixels = words.view(np.uint8)[:, : self._num_bytes]
        return pixels.reshape(len(words), *self.shape[1:])

    def __setitem__(self, slots: slice, pixels: Array) -> None:
        padded = np.zeros((len(pixels), self._frames.num_words * WORD_BYTES), np.uint8)
        padded[:, : self._num_bytes] = pixels.reshape(len(pixels), -1)
        self._frames.put(slots.start, padded.view(np.uint64))


def _import_lz4() -> ModuleType:
    try:
        import lz4.block
    except ImportError:
        raise MissingExtraError(
            "replay.compression = 'lz4' needs the package lz4: pip install 'qfleet[compression]'"
        ) from None
    module: ModuleType = lz4.block
    return module
