"""Frames, each stored once: a ring of them, and a table that finds a frame again by its content.

Below frames.py, which puts transitions together from them. A frame is found by a 64-bit hash and then compared byte
by byte, so that a collision costs time and never gives a wrong frame; where the table has forgotten one, it is stored
a second time. A frame is a row of uint64 words, padded with zeros. Kernels have their callees in this one file, for
numba's cache does not notice a change elsewhere.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from numba import njit

from qfleet.replay import disk
from qfleet.replay.compressed import EXPECTED_RATIO, CompressedFrames
from qfleet.replay.layout import WORD_BYTES, Words
from qfleet.types import Array, IntArray

FrameIndex = npt.NDArray[np.int32]

_WAYS = 4  # frames that share a bucket; the youngest stay
_PRIME = np.uint64(0x9E3779B97F4A7C15)
_HALF = np.uint64(32)


class FrameRing:
    """`capacity` frames of `num_words` words; the newest overwrite the oldest.

    Frames are numbered as they are stored, and number f lies in slot f % capacity. The ring knows for each frame the
    last row that needs it, so that storing a frame tells at once up to which key rows have lost one of theirs.

    Args:
        capacity: frames kept; at least as many as are in reach, and those of one row.
        num_words: words of a frame.
        reach: how many of the newest frames are looked through for an equal one.
        directory: where the frames lie in a file; None keeps them in memory.
        window: None keeps frames as they are; else they are kept compressed, and as they are only the newest `window`,
            at least `reach` and the frames of one row.

    Attributes:
        words: uint64 [capacity, num_words]; of compressed frames [window, num_words].
        compressed: all frames, where they are kept so.
        num_frames: frames stored since the beginning.
        first_frame: the oldest number that was ever here; above 0 only after loading a save.
    """

    def __init__(
        self, capacity: int, num_words: int, reach: int, *, directory: Path | None = None, window: int | None = None
    ) -> None:
        self.capacity, self.reach = capacity, reach
        self.words: Words = disk.zeros((window or capacity, num_words), np.dtype(np.uint64), directory)
        self.compressed = None if window is None else CompressedFrames(capacity, num_words)
        self._is_in_memory = directory is None
        self.num_frames = self.first_frame = 0
        self._hashes: Words = np.zeros(capacity, np.uint64)
        self._users: IntArray = np.full(capacity, -1, np.int64)
        self._table: IntArray = np.full((_num_buckets(reach), _WAYS), -1, np.int64)

    @property
    def nbytes(self) -> int:
        """Bytes in memory: of the full ring and its table; of compressed frames, of those that are here."""
        frames = self.words.nbytes if self._is_in_memory else 0
        frames += 0 if self.compressed is None else self.compressed.num_bytes
        return frames + self._hashes.nbytes + self._users.nbytes + self._table.nbytes

    def take(self, numbers: IntArray) -> Words:
        """Copies the frames of `numbers` (int64 [...], all here): uint64 [..., W]."""
        if self.compressed is not None:
            return self.compressed.take(numbers)
        return self.words.take(numbers % self.capacity, axis=0)

    def store(
        self, pool: tuple[Words, Words], source: IntArray, index: FrameIndex, first_row: int
    ) -> tuple[IntArray, int]:
        """Makes sure that every frame that N rows need is here.

        Args:
            pool: uint64 [P0, W] and [P1, W], the frames one after the other.
            source: int64 [F], where in the pool the different frames are.
            index: int32 [N, R] into `source`, what each row needs.
            first_row: key of the first row; the others follow.

        Returns:
            (int64 [N, R], the numbers of the frames; the oldest key whose frames are all here still).

        Raises:
            ValueError: the ring is too small: storing a row's frames could overwrite others of the same row.
        """
        if self.reach + index.shape[1] > len(self.words):
            raise ValueError(
                f"{len(self.words)} frames are too few for {self.reach} in reach and rows of {index.shape[1]}"
            )
        numbers = np.empty(index.shape, np.int64)
        hashes = np.empty(len(source), np.uint64)
        stored = np.empty(index.size, np.int64)  # where in the pool the new frames are
        _hash_all(pool[0], pool[1], source, hashes)
        first = self.num_frames
        self.num_frames, first_row = _store(
            *(*pool, source, hashes, index, numbers, first_row),
            *(self.words, self._hashes, self._users, self._table),
            *(self.num_frames, self.first_frame, self.reach, stored),
        )
        if self.compressed is not None:
            positions = stored[: self.num_frames - first]
            for number, position in enumerate(positions.tolist(), first):
                is_second = position >= len(pool[0])
                self.compressed.put(number, pool[is_second][position - is_second * len(pool[0])][None])
        return numbers, first_row

    def restore(self, first_frame: int, num_frames: int, keys: IntArray, numbers: IntArray) -> None:
        """Declares that frames `first_frame` to `num_frames` - 1 are here, and that rows `keys` need `numbers`.

        Args:
            keys: int64 [N], rising.
            numbers: int64 [N, R], all in the range.
        """
        self.first_frame, self.num_frames = first_frame, num_frames
        self._users[:] = -1
        np.maximum.at(self._users, numbers % self.capacity, keys[:, None])
        self._table[:] = -1
        found = np.arange(max(first_frame, num_frames - self.reach), num_frames)
        if self.compressed is not None:
            self.words[found % len(self.words)] = self.compressed.take(found)
        hashes = np.empty(len(found), np.uint64)
        _hash_all(self.words, self.words[:0], found % len(self.words), hashes)
        self._hashes[found % self.capacity] = hashes
        _enter_all(self._table, found, hashes)


def as_words(frames: Array) -> Words:
    """uint8 [..., H, W] as uint64 [prod(...), W'], a view where 8 divides H x W and the array is in one piece."""
    num_bytes = frames.shape[-2] * frames.shape[-1]
    flat = np.ascontiguousarray(frames).reshape(-1, num_bytes)
    if num_bytes % WORD_BYTES:
        padded = np.zeros((len(flat), num_words(num_bytes) * WORD_BYTES), np.uint8)
        padded[:, :num_bytes] = flat
        flat = padded
    words: Words = flat.view(np.uint64)
    return words


def as_frames(words: Words, shape: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """uint64 [..., W'] as uint8 [..., H, W], a view."""
    frames: npt.NDArray[np.uint8] = words.view(np.uint8)[..., : shape[0] * shape[1]]
    return frames.reshape(*words.shape[:-1], *shape)


def num_words(num_bytes: int) -> int:
    """Words that hold so many bytes."""
    return -(-num_bytes // WORD_BYTES)


def ring_bytes(
    capacity: int, frame_bytes: int, reach: int, *, directory: Path | None = None, window: int | None = None
) -> int:
    """Bytes in memory of a FrameRing; allocates nothing. Of compressed frames it is an expectation."""
    frames = capacity * num_words(frame_bytes) * WORD_BYTES
    if directory is not None:
        frames = 0
    elif window is not None:
        frames = frames // EXPECTED_RATIO + window * num_words(frame_bytes) * WORD_BYTES
    return frames + (2 * capacity + _num_buckets(reach) * _WAYS) * WORD_BYTES


def find_unique(pool: tuple[Words, Words], index: FrameIndex) -> IntArray:
    """Where in the pool the frames that differ come first, int64 [F], in the order in which rows need them.

    Args:
        pool: uint64 [P0, W] and [P1, W], one after the other.
        index: int32 [N, R] into the pool; overwritten by an index into the result.
    """
    source = np.empty(index.size, np.int64)
    count = _find_unique(*pool, index, source)
    return source[:count].copy()


def _num_buckets(reach: int) -> int:
    """A power of two: twice as many places as frames are looked through."""
    return int(1 << max(2 * reach // _WAYS, 1).bit_length())


@njit(cache=True, nogil=True)
def _frame(first, second, position):  # type: ignore[no-untyped-def]
    if position < len(first):
        return first[position]
    return second[position - len(first)]


@njit(cache=True, nogil=True)
def _hash(words):  # type: ignore[no-untyped-def]
    """Four lanes, because one would wait for its own multiplication; each step folds the high half back."""
    a, b, c, d = _PRIME, _PRIME + _HALF, _PRIME - _HALF, ~_PRIME
    whole = len(words) - len(words) % 4
    for index in range(0, whole, 4):
        a = (a ^ words[index]) * _PRIME
        b = (b ^ words[index + 1]) * _PRIME
        c = (c ^ words[index + 2]) * _PRIME
        d = (d ^ words[index + 3]) * _PRIME
        a ^= a >> _HALF
        b ^= b >> _HALF
        c ^= c >> _HALF
        d ^= d >> _HALF
    for index in range(whole, len(words)):
        a = (a ^ words[index]) * _PRIME
        a ^= a >> _HALF
    for lane in (b, c, d):
        a = (a ^ lane) * _PRIME
        a ^= a >> _HALF
    return a


@njit(cache=True, nogil=True)
def _same(left, right):  # type: ignore[no-untyped-def]
    for begin in range(0, len(left), 64):  # without a branch a word, and still early out
        difference = np.uint64(0)
        for index in range(begin, min(begin + 64, len(left))):
            difference |= left[index] ^ right[index]
        if difference != np.uint64(0):
            return False
    return True


@njit(cache=True, nogil=True)
def _hash_all(first, second, source, hashes):  # type: ignore[no-untyped-def]
    for index in range(len(source)):
        hashes[index] = _hash(_frame(first, second, source[index]))


@njit(cache=True, nogil=True)
def _find_unique(first, second, index, source):  # type: ignore[no-untyped-def]
    size = 4
    while size < 2 * index.size:
        size *= 2
    mask = np.uint64(size - 1)
    table = np.full(size, -1, np.int32)
    hashes = np.empty(index.size, np.uint64)
    known = np.full(len(first) + len(second), -1, np.int32)  # by place in the pool: each is hashed once
    count = 0
    for row in range(index.shape[0]):
        for place in range(index.shape[1]):
            position = index[row, place]
            if known[position] < 0:
                words = _frame(first, second, position)
                key = _hash(words)
                slot = key & mask
                found = table[slot]
                while found >= 0 and not (hashes[found] == key and _same(words, _frame(first, second, source[found]))):
                    slot = (slot + np.uint64(1)) & mask
                    found = table[slot]
                if found < 0:
                    found = count
                    table[slot], hashes[count], source[count] = count, key, position
                    count += 1
                known[position] = found
            index[row, place] = known[position]
    return count


@njit(cache=True, nogil=True)
def _enter(table, number, key):  # type: ignore[no-untyped-def]
    """Puts a frame in place of the oldest in its bucket, so that a bucket always holds its youngest four."""
    bucket = table[key & np.uint64(len(table) - 1)]
    oldest = 0
    for way in range(1, _WAYS):
        if bucket[way] < bucket[oldest]:
            oldest = way
    bucket[oldest] = number


@njit(cache=True, nogil=True)
def _enter_all(table, numbers, keys):  # type: ignore[no-untyped-def]
    for index in range(len(numbers)):
        _enter(table, numbers[index], keys[index])


@njit(cache=True, nogil=True)
def _find(table, ring, hashes, words, key, oldest):  # type: ignore[no-untyped-def]
    """The youngest frame not older than `oldest` that equals `words`, or -1."""
    bucket = table[key & np.uint64(len(table) - 1)]
    best = np.int64(-1)
    for way in range(_WAYS):
        number = bucket[way]
        if (
            number >= oldest
            and number > best
            and hashes[number % len(hashes)] == key
            and _same(ring[number % len(ring)], words)
        ):
            best = number
    return best


@njit(cache=True, nogil=True)
def _store(  # type: ignore[no-untyped-def]
    first,
    second,
    source,
    keys,
    index,
    numbers,
    row_key,
    ring,
    hashes,
    users,
    table,
    num_frames,
    first_frame,
    reach,
    stored,
):
    first_number, capacity, num_rows, width = num_frames, len(users), index.shape[0], index.shape[1]
    resolved = np.full(len(source), -1, np.int64)
    first_row = np.int64(0)
    for row in range(num_rows):
        # Sharing an older frame, a row would die too early; those in reach outlive all that the row may have to store.
        oldest = max(num_frames - reach, first_frame, 0)
        for place in range(width):
            wanted = index[row, place]
            number = resolved[wanted]
            if number < oldest:
                words = _frame(first, second, source[wanted])
                number = _find(table, ring, hashes, words, keys[wanted], oldest)
                if number < 0:
                    number = num_frames
                    num_frames += 1
                    stored[number - first_number] = source[wanted]
                    slot = number % capacity
                    first_row = max(first_row, users[slot] + 1)
                    ring[number % len(ring)] = words
                    hashes[slot] = keys[wanted]
                    _enter(table, number, keys[wanted])
                resolved[wanted] = number
            users[number % capacity] = row_key + row
            numbers[row, place] = number
    return num_frames, first_row
