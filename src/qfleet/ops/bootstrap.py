"""How sure a mean or a median over a few seeds is: the percentile bootstrap.

Up to five values all resamples are counted, so the interval is exact and needs no random numbers; beyond that they are
drawn from a fixed seed. Efron (1979), Bootstrap Methods: Another Look at the Jackknife.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Statistic = Literal["mean", "median"]
MAX_EXACT = 5  # 5^5 = 3,125 resamples
NUM_RANDOM = 10_000
MAX_DRAWN = 1 << 22  # indices in memory at a time


def resamples(num_values: int) -> npt.NDArray[np.int64]:
    """Indices of the values in each resample, drawn with replacement: int64 [R, num_values].

    All num_values^num_values of them up to MAX_EXACT values, else NUM_RANDOM of them, the same ones at every call.
    """
    return np.concatenate(list(_resample_batches(num_values)))


def _resample_batches(num_values: int) -> Iterator[npt.NDArray[np.int64]]:
    """The rows of `resamples` in order, a few at a time where there are many values."""
    if num_values < 1:
        raise ValueError("there is nothing to resample")
    if num_values <= MAX_EXACT:
        yield np.array(list(itertools.product(range(num_values), repeat=num_values)), dtype=np.int64)
        return
    generator = np.random.default_rng(0)
    num_rows = max(1, MAX_DRAWN // num_values)
    for begin in range(0, NUM_RANDOM, num_rows):
        yield generator.integers(0, num_values, (min(num_rows, NUM_RANDOM - begin), num_values))


def bootstrap_interval(
    values_S: npt.ArrayLike, statistic: Statistic = "mean", level: float = 0.95
) -> tuple[Floats, Floats]:
    """The interval that holds the middle `level` of a statistic's values over all resamples.

    With S values the lowest resample has the probability S^-S. Three of them therefore give least to most at 95%, for
    1/27 is more than the 2.5% that may be cut off; and an interval of so few seeds is too narrow rather than too wide.

    Args:
        values_S: float [S] or [S, ...], one row a seed; each column is treated by itself, with the same resamples.
            A median may hold infinity, where a seed never came to a value.
        statistic: of the rows of a resample.
        level: between 0 and 1.

    Returns:
        lowest and highest, float64, of the shape of one row.
    """
    values = np.asarray(values_S, dtype=np.float64)
    if not 0.0 < level < 1.0:
        raise ValueError(f"level {level} is not between 0 and 1")
    of_batch = _medians if statistic == "median" else _means
    found = np.concatenate([of_batch(values, drawn) for drawn in _resample_batches(len(values))])
    # A mean of equal values is off by a rounding; no resample's statistic lies outside of the values.
    found = np.sort(np.clip(found, values.min(axis=0), values.max(axis=0)), axis=0)
    return quantile(found, (1.0 - level) / 2.0), quantile(found, (1.0 + level) / 2.0)


def _medians(values: Floats, drawn: npt.NDArray[np.int64]) -> Floats:
    return np.asarray(np.median(values[drawn], axis=1))


def _means(values: Floats, drawn: npt.NDArray[np.int64]) -> Floats:
    # How often each row is in each resample: one product with that is less memory than all the rows drawn.
    cells = drawn + len(values) * np.arange(len(drawn))[:, None]
    counts = np.bincount(cells.ravel(), minlength=drawn.size).reshape(drawn.shape)
    return np.tensordot(counts / len(values), values, axes=1)


def quantile(sorted_R: Floats, share: float) -> Floats:
    """The least value that at least `share` of the sorted values do not exceed; nothing is interpolated."""
    # Rounded, for 0.975 * 1000 must not count as a hair more than 975.
    rank = math.ceil(round(share * len(sorted_R), 9))
    return np.asarray(sorted_R[min(max(rank, 1), len(sorted_R)) - 1])
