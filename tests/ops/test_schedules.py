"""Schedules at their ends, in the middle and beyond, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from qfleet.ops.schedules import apex_epsilons, cosine, linear


@pytest.mark.parametrize(("count", "expected"), [(0, 1.0), (25, 0.8), (50, 0.6), (100, 0.2), (101, 0.2), (10**9, 0.2)])
def test_linear_goes_down_a_line_and_stays(count: int, expected: float) -> None:
    # 1 - 0.8 * count / 100
    assert linear(1.0, 0.2, 100, count) == pytest.approx(expected)


def test_linear_goes_up_too() -> None:
    assert linear(0.4, 1.0, 10, 5) == pytest.approx(0.7)


@pytest.mark.parametrize(("count", "expected"), [(0, 3.0), (20, 2.5), (30, 2.0), (60, 1.0), (99, 1.0)])
def test_cosine_by_hand(count: int, expected: float) -> None:
    # 1 + 2 * (1 + cos(pi count / 60)) / 2: cos 60 degrees is 1/2, cos 90 degrees is 0.
    assert cosine(3.0, 1.0, 60, count) == pytest.approx(expected)


def test_apex_epsilons_by_hand() -> None:
    # base^(1 + alpha i / 2) with base 1/2 and alpha 4: exponents 1, 3, 5.
    np.testing.assert_allclose(apex_epsilons(0.5, 4.0, 3), [1 / 2, 1 / 8, 1 / 32])
    np.testing.assert_array_equal(apex_epsilons(0.4, 7.0, 1), [0.4])
