"""Which stretch of the parameter vector each server holds, and which of a push's entries belong to it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Bounds = tuple[int, int]  # start and end, as in range


def slice_bounds(size: int, num_slices: int) -> list[Bounds]:
    """Cuts range(size) into `num_slices` stretches, in order and as equal as can be: the first ones are one longer.

    Raises:
        ValueError: there is no slice, or more slices than entries, which would leave some empty.
    """
    if not 1 <= num_slices <= size:
        raise ValueError(f"cannot cut {size} entries into {num_slices} slices: it takes from 1 to {size}")
    length, num_longer = divmod(size, num_slices)
    starts = [index * length + min(index, num_longer) for index in range(num_slices + 1)]
    return list(pairwise(starts))


def cut_indices(indices_K: npt.NDArray[np.int32], bounds: Sequence[Bounds]) -> list[Bounds]:
    """Which of the ascending `indices` (int32 [K]) fall into each slice, as a stretch of [0, K).

    For slice (start, end) and its stretch (first, last), `indices[first:last] - start` are the positions within the
    slice and `values[first:last]` what belongs there; first == last where nothing does.
    """
    cuts = np.searchsorted(indices_K, np.array(bounds, np.int32).reshape(-1, 2))
    return [(int(first), int(last)) for first, last in cuts]
