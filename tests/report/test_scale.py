"""Scales and their ticks, hand-worked."""

from __future__ import annotations

import pytest

from qfleet.report.palette import style_of
from qfleet.report.scale import Scale, log_ticks, tick_label, ticks, widened


def test_ticks_are_round_and_few() -> None:
    assert ticks(0.0, 20_000.0) == [0, 5_000, 10_000, 15_000, 20_000]
    assert ticks(0.0, 2.4) == [0, 0.5, 1, 1.5, 2]
    assert ticks(-0.5, 500.0) == [0, 200, 400]
    assert ticks(3.0, 3.0) == [3.0]
    assert [tick_label(value) for value in (0.0, 0.5, 20_000.0, 1.5e6)] == ["0", "0.5", "20k", "1.5M"]


def test_log_ticks_are_powers_of_ten_or_finer_or_linear() -> None:
    assert log_ticks(1.0, 20.0) == [1, 2, 5, 10, 20]
    assert log_ticks(0.1, 1_000.0) == [0.1, 1, 10, 100, 1_000]
    assert log_ticks(1.0, 1e9) == [1, 1e2, 1e4, 1e6, 1e8], "ten powers are thinned to every second one"
    assert log_ticks(1.1, 1.9) == ticks(1.1, 1.9), "no power of ten lies between"
    assert log_ticks(1.0, 4.0) == [1, 2, 3, 4], "1 and 2 alone would not tell where it ends"
    assert log_ticks(4.0, 4.0) == [4.0]


def test_a_scale_is_linear_or_by_factors() -> None:
    down = Scale(-1.0, 3.0, 100.0, 20.0)
    # A quarter of the way from 100 to 20 is 80.
    assert [down.pixel(value) for value in (-1.0, 0.0, 3.0)] == [100.0, 80.0, 20.0]
    # From 1 to 100 are two factors of ten: 10 is half of the way.
    assert Scale(1.0, 100.0, 0.0, 50.0, is_log=True).pixel(10.0) == pytest.approx(25.0)
    assert Scale(2.0, 2.0, 7.0, 9.0).pixel(2.0) == 7.0, "a span of nothing"


def test_room_above_and_below() -> None:
    assert widened(0.0, 100.0) == (-4.0, 104.0)
    assert widened(20.0, 20.0) == (18.0, 22.0)
    assert widened(0.0, 0.0) == (-0.1, 0.1)


def test_styles_differ() -> None:
    assert len({style_of(number) for number in range(28)}) == 28
