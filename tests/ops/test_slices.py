"""Slices of the parameter vector by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qfleet.ops.compression import scatter, top_k
from qfleet.ops.slices import cut_indices, slice_bounds


@pytest.mark.parametrize(
    ("size", "num_slices", "expected"),
    [
        (10, 1, [(0, 10)]),
        (10, 2, [(0, 5), (5, 10)]),
        (10, 4, [(0, 3), (3, 6), (6, 8), (8, 10)]),  # 10 = 4 * 2 + 2: the first two are one longer
        (3, 3, [(0, 1), (1, 2), (2, 3)]),
    ],
)
def test_bounds_by_hand(size: int, num_slices: int, expected: list[tuple[int, int]]) -> None:
    assert slice_bounds(size, num_slices) == expected


@pytest.mark.parametrize("num_slices", [0, -1, 4])
def test_an_empty_slice_is_refused(num_slices: int) -> None:
    with pytest.raises(ValueError, match=f"cannot cut 3 entries into {num_slices} slices"):
        slice_bounds(3, num_slices)


@given(st.integers(1, 300), st.data())
def test_bounds_cover_the_vector_in_near_equal_parts(size: int, data: st.DataObject) -> None:
    bounds = slice_bounds(size, data.draw(st.integers(1, size)))
    assert [index for start, end in bounds for index in range(start, end)] == list(range(size))
    lengths = [end - start for start, end in bounds]
    assert max(lengths) - min(lengths) <= 1


def test_cut_by_hand() -> None:
    # Slices [0, 3), [3, 6), [6, 10): 0 and 2 in the first, none in the second, 6 (a start) and 9 in the third.
    cuts = cut_indices(np.array([0, 2, 6, 9], np.int32), [(0, 3), (3, 6), (6, 10)])
    assert cuts == [(0, 2), (2, 2), (2, 4)]
    assert cut_indices(np.array([], np.int32), [(0, 3), (3, 6)]) == [(0, 0), (0, 0)]


@given(st.integers(1, 40), st.data())
def test_scattering_each_slice_is_scattering_the_whole(size: int, data: st.DataObject) -> None:
    k, num_slices = data.draw(st.integers(1, size)), data.draw(st.integers(1, size))
    indices, values = top_k(np.random.default_rng(size).standard_normal(size).astype(np.float32), k)
    bounds = slice_bounds(size, num_slices)
    parts = [
        scatter(indices[first:last] - start, values[first:last], end - start)
        for (start, end), (first, last) in zip(bounds, cut_indices(indices, bounds), strict=True)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), scatter(indices, values, size))
