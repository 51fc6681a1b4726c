"""What a pushed vector becomes on the wire: half the bits (bfloat16), or few of its entries (top-k), and back.

A worker compresses before it pushes, a server scatters before it merges. P parameters, K entries sent. Stich et al.
(2018), Sparsified SGD with Memory.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float32Vector = npt.NDArray[np.float32]
Bfloat16Vector = npt.NDArray[np.uint16]  # the upper half of a float32, bit for bit
Indices = npt.NDArray[np.int32]

_SIGN, _INFINITY = np.uint32(0x80000000), np.uint32(0x7F800000)
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_QUIET_NAN = np.uint16(0x7FC0)


def to_bfloat16(vector: Float32Vector) -> Bfloat16Vector:
    """Rounds to the nearest bfloat16, ties to even. float32 [P] -> uint16 [P].

    Infinities stay, finite values beyond the largest bfloat16 by half a step or more become infinite, NaN becomes the
    quiet NaN of its sign.
    """
    bits_P = _bits(vector)
    # Half a step, less one where the bit that will be the last is 0: a tie then carries only into an odd one.
    rounded_P = (bits_P + (np.uint32(0x7FFF) + ((bits_P >> 16) & 1)) >> 16).astype(np.uint16)
    nan_P = (
        bits_P & _MAGNITUDE
    ) > _INFINITY  # rounding could carry a NaN into infinity, or round the whole number over
    rounded_P[nan_P] = _QUIET_NAN | ((bits_P[nan_P] & _SIGN) >> 16).astype(np.uint16)
    return rounded_P


def from_bfloat16(bfloat16_P: Bfloat16Vector) -> Float32Vector:
    """The same numbers in float32, exactly. uint16 [P] -> float32 [P]."""
    return (bfloat16_P.astype(np.uint32) << 16).view(np.float32)


def top_k(vector: Float32Vector, k: int) -> tuple[Indices, Float32Vector]:
    """The k entries of largest magnitude; of equal ones the first. NaN counts as larger than infinity.

    Args:
        vector: float32 [P].
        k: how many to keep, from 1 to P.

    Returns:
        indices int32 [k], ascending, and values float32 [k].

    Raises:
        ValueError: k is out of range.
    """
    if not 1 <= k <= len(vector):
        raise ValueError(f"k is {k}; of {len(vector)} entries it must be from 1 to {len(vector)}")
    magnitude_P = _bits(vector) & _MAGNITUDE  # as integers, floats without a sign keep their order, and NaN has a place
    threshold = np.partition(magnitude_P, len(vector) - k)[len(vector) - k]
    kept_P = magnitude_P > threshold
    kept_P[np.flatnonzero(magnitude_P == threshold)[: k - np.count_nonzero(kept_P)]] = True
    indices_K = np.flatnonzero(kept_P).astype(np.int32)
    return indices_K, vector[indices_K]


def scatter(indices_K: Indices, values_K: Float32Vector, size: int) -> Float32Vector:
    """A vector of `size` zeros with `values` at `indices`, the inverse of `top_k`. -> float32 [size]."""
    vector = np.zeros(size, np.float32)
    vector[indices_K] = values_K
    return vector


def compress_with_feedback(
    vector: Float32Vector, residual: Float32Vector, k: int
) -> tuple[Indices, Float32Vector, Float32Vector]:
    """Top-k of vector + residual; what is not sent is the next residual (Stich et al. 2018, algorithm 1).

    scatter(indices, values, P) + new_residual == vector + residual bit for bit, in float32: nothing is ever lost.

    Args:
        vector: float32 [P], what this push would send, the learning rate already in it where that changes over time.
        residual: float32 [P], what earlier pushes held back; zeros at first.
        k: how many entries to send, from 1 to P.

    Returns:
        indices int32 [k], ascending; values float32 [k]; the new residual, float32 [P], a new array.

    Raises:
        ValueError: k is out of range.
    """
    new_residual = vector + residual
    indices_K, values_K = top_k(new_residual, k)
    new_residual[indices_K] = 0.0
    return indices_K, values_K, new_residual


def _bits(vector: Float32Vector) -> npt.NDArray[np.uint32]:
    assert vector.dtype == np.float32, f"expected float32, got {vector.dtype}"
    return np.ascontiguousarray(vector).view(np.uint32)
