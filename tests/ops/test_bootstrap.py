"""The bootstrap against resamples counted by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qfleet.ops.bootstrap import MAX_EXACT, bootstrap_interval, quantile, resamples


def test_all_resamples_of_a_few_values_are_counted_once() -> None:
    assert resamples(2).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert resamples(MAX_EXACT).shape == (5**5, 5)
    assert len({tuple(row) for row in resamples(3).tolist()}) == 27


def test_resamples_of_many_values_are_drawn_from_a_fixed_seed() -> None:
    drawn = resamples(6)
    assert drawn.shape == (10_000, 6)
    assert set(np.unique(drawn)) == set(range(6))
    assert (drawn == resamples(6)).all()
    assert any(len(set(row)) < 6 for row in drawn.tolist()), "with replacement"


def test_equal_values_have_an_interval_of_no_width() -> None:
    for num in (3, 37):  # 1/37 is no sum of powers of two
        low, high = bootstrap_interval(np.full(num, 500.0))
        assert (float(low), float(high)) == (500.0, 500.0)


def test_many_values_are_resampled_in_parts_that_are_the_same_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.arange(9.0) ** 2
    whole, interval = resamples(9), bootstrap_interval(values)
    monkeypatch.setattr("qfleet.ops.bootstrap.MAX_DRAWN", 9 * 777)
    assert (resamples(9) == whole).all()
    assert bootstrap_interval(values) == interval


def test_three_seeds_give_least_to_most_at_95_percent() -> None:
    # The lowest resample (1, 1, 1) has probability 1/27 = 3.7%, more than the 2.5% that is cut off below.
    low, high = bootstrap_interval([1.0, 4.0, 10.0])
    assert (low, high) == (1.0, 10.0)


def test_interval_of_a_mean_by_hand() -> None:
    # Two values: the means of the four resamples are 0, 1, 1, 2. At 40% the middle lies from 30% to 70%: the sorted
    # means reach 30% at the second and 70% at the third.
    assert bootstrap_interval([0.0, 2.0], level=0.4) == (1.0, 1.0)
    # At 60% from 20% (the first of four) to 80% (the fourth).
    assert bootstrap_interval([0.0, 2.0], level=0.6) == (0.0, 2.0)


def test_four_seeds_cut_off_the_lowest_resample() -> None:
    # Values 0, 1, 2, 3 of which 256 resamples are drawn. 2.5% of 256 is 6.4, so the seventh lowest mean counts. Sums:
    # 0 once, 1 in 4 orders, 2 in 4 (a two) + 6 (two ones) = 10: the seventh is of sum 2, mean 2/4. The top is mirrored.
    assert bootstrap_interval([0.0, 1.0, 2.0, 3.0]) == (0.5, 2.5)


def test_each_column_is_treated_by_itself() -> None:
    low, high = bootstrap_interval([[0.0, 99.0], [2.0, 98.0]], level=0.6)
    assert low.tolist() == [0.0, 98.0]
    assert high.tolist() == [2.0, 99.0]


def test_median_with_a_seed_that_never_got_there() -> None:
    # Of 27 resamples of (10, 20, inf) the median is inf where at least two of three draws are inf: 1 + 3 * 2 = 7.
    drawn = np.median(np.array([10.0, 20.0, math.inf])[resamples(3)], axis=1)
    assert np.isinf(drawn).sum() == 7
    # The same count, 7, has 10 as its median; 13 have 20. Cut off a third below: the ninth of 27 is 20.
    assert bootstrap_interval([10.0, 20.0, math.inf], "median") == (10.0, math.inf)
    assert bootstrap_interval([10.0, 20.0, math.inf], "median", level=1 / 3) == (20.0, 20.0)


def test_one_value_is_its_own_interval() -> None:
    assert bootstrap_interval([7.0]) == (7.0, 7.0)


def test_large_samples_agree_with_the_normal_interval() -> None:
    # 400 values of 0 and 400 of 1: the mean's standard error is 0.5 / sqrt(800) = 0.01768, so 0.5 +- 1.96 of them.
    low, high = bootstrap_interval(np.repeat([0.0, 1.0], 400))
    assert low == pytest.approx(0.5 - 1.96 * 0.01768, abs=0.0015)
    assert high == pytest.approx(0.5 + 1.96 * 0.01768, abs=0.0015)


def test_quantile_takes_the_least_value_that_covers_the_share() -> None:
    values = np.arange(1.0, 41.0)
    assert quantile(values, 0.025) == 1.0
    assert quantile(values, 0.975) == 39.0
    assert quantile(np.arange(1.0, 1001.0), 0.975) == 975.0
    assert quantile(values, 1.0) == 40.0


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to resample"):
        bootstrap_interval([])
    with pytest.raises(ValueError, match="level 95"):
        bootstrap_interval([1.0], level=95)
