"""Planes of bytes to bytes side by side, and to blocks; loads numba, so it is imported where it is used. Floor 2."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(inline="always")
def _join_four(planes, begin, size, words):  # type: ignore[no-untyped-def]
    """Bytes from `begin` on of a plane, and as many of the three that follow it `size` apart, to uint32 [N].

    Inlined, for as a call it made `fold_four` 1.6 times as slow.
    """
    num = len(words)
    first = planes[begin : begin + num]
    second = planes[begin + size : begin + size + num]
    third = planes[begin + 2 * size : begin + 2 * size + num]
    fourth = planes[begin + 3 * size : begin + 3 * size + num]
    for index in range(num):
        words[index] = (
            np.uint32(first[index])
            | (np.uint32(second[index]) << np.uint32(8))
            | (np.uint32(third[index]) << np.uint32(16))
            | (np.uint32(fourth[index]) << np.uint32(24))
        )


@njit(cache=True, nogil=True)
def interleave(planes, stride, out):  # type: ignore[no-untyped-def]
    """C planes of N bytes each, rows of them `stride` apart, to uint8 [B, N, C]; four as words: twice as fast."""
    num, size, channels = out.shape
    if channels == 4:
        words = out.reshape(num, size * 4).view(np.uint32)
        for row in range(num):
            _join_four(planes, row * stride, size, words[row])
        return
    for row in range(num):
        for index in range(size):
            for channel in range(channels):
                out[row, index, channel] = planes[row * stride + channel * size + index]


@njit(cache=True, nogil=True)
def fold_four(planes, stride, height, width, out):  # type: ignore[no-untyped-def]
    """Four planes of bytes to blocks of 4 x 4 pixels, a block's 64 bytes side by side: lines, columns, channels.

    Lines and columns at the end that fill no block are left out. Numbers in place of shapes let the compiler unroll:
    half the time.

    Args:
        planes: uint8, one image's planes after the other.
        stride: bytes from an image to the next.
        height, width: pixels of a plane.
        out: uint8 [B, height // 4, width // 4, 64].
    """
    num, num_lines, num_blocks, _ = out.shape
    size, used = height * width, 4 * num_blocks
    pixels = np.empty((4, used), np.uint32)  # a line of blocks
    words = pixels.view(np.uint64)
    for row in range(num):
        blocks = out[row].reshape(-1).view(np.uint64)
        position = 0
        for block_line in range(num_lines):
            for y in range(4):
                _join_four(planes, row * stride + (4 * block_line + y) * width, size, pixels[y])
            one, two, three, four = words[0], words[1], words[2], words[3]
            for block in range(num_blocks):
                out_words = blocks[position : position + 8]
                out_words[0] = one[2 * block]
                out_words[1] = one[2 * block + 1]
                out_words[2] = two[2 * block]
                out_words[3] = two[2 * block + 1]
                out_words[4] = three[2 * block]
                out_words[5] = three[2 * block + 1]
                out_words[6] = four[2 * block]
                out_words[7] = four[2 * block + 1]
                position += 8
