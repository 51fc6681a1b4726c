"""A pushed vector on the wire: whole, as bfloat16, or its largest entries with what was left out kept for next time.

Between a worker's gradient and a parameter server's slice. One push is cut into as many pieces as there are servers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from qfleet.ops.compression import compress_with_feedback, from_bfloat16, scatter, to_bfloat16
from qfleet.ops.slices import cut_indices
from qfleet.types import Array, FloatArray

Compression = Literal["none", "bf16", "top_k"]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Push:
    """One server's piece of a pushed vector of p numbers, as it travels.

    Attributes:
        size: p.
        values: float32 [p], uint16 [p] (bfloat16) or float32 [k].
        indices: [k], where in the piece the values belong; None if all are there.
        buffers: float32 [F], the worker's float buffers, with the first piece only.
    """

    size: int
    values: Array
    indices: Array | None = None
    buffers: FloatArray | None = None

    @property
    def num_bytes(self) -> int:
        """What travels."""
        return sum(part.nbytes for part in (self.values, self.indices, self.buffers) if part is not None)

    def decode(self) -> Float32:
        """float32 [p]; read-only where it is the pushed array itself."""
        if self.indices is not None:
            return scatter(self.indices, self.values, self.size)
        return from_bfloat16(self.values) if self.values.dtype == np.uint16 else self.values


class Encoder:
    """Turns a worker's vectors into pushes.

    Args:
        compression: "none", "bf16" (rounded to nearest), or "top_k" with error feedback (Stich et al. 2018).
        fraction: k over the vector's length, for "top_k".
        bounds: [first, end) of each server's slice.

    Attributes:
        residual: float32 [P], what "top_k" has not sent yet.
    """

    def __init__(self, compression: Compression, fraction: float, bounds: list[tuple[int, int]]) -> None:
        self.compression = compression
        self.bounds = bounds
        size = bounds[-1][1]
        self.num_kept = max(1, round(fraction * size))
        self.residual: Float32 = np.zeros(size if compression == "top_k" else 0, np.float32)

    def encode(self, vector: Float32, buffers: FloatArray) -> list[Push]:
        """The pieces of a vector, float32 [P], which is copied."""
        own = buffers.copy() if len(buffers) else None
        extras = [own] + [None] * (len(self.bounds) - 1)
        if self.compression == "top_k":
            indices, values, self.residual = compress_with_feedback(vector, self.residual, self.num_kept)
            cuts = cut_indices(indices, self.bounds)
            return [
                Push(end - first, values[low:high], indices[low:high] - first, extra)
                for (first, end), (low, high), extra in zip(self.bounds, cuts, extras, strict=True)
            ]
        encoded = to_bfloat16(vector) if self.compression == "bf16" else vector.copy()
        return [
            Push(end - first, encoded[first:end], None, extra)
            for (first, end), extra in zip(self.bounds, extras, strict=True)
        ]
