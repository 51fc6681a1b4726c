"""Numbers and curves over seeds, worked out by hand."""

from __future__ import annotations

import numpy as np

from qfleet.report.estimates import estimate, mean_curve
from qfleet.report.measures import Trace

Points = list[tuple[int, float]]


def trace(points: Points) -> Trace:
    x = np.array([float(step) for step, _ in points])
    return Trace({"env_steps": x, "updates": x / 10, "seconds": x / 1000}, np.array([y for _, y in points]))


def test_curve_is_the_mean_where_all_seeds_have_values() -> None:
    # One seed from 100 to 300, the other from 200 to 600: in common 200 to 300.
    seeds = [trace([(100, 0.0), (300, 20.0)]), trace([(200, 40.0), (600, 0.0)])]
    curve = mean_curve([seed.curve("env_steps") for seed in seeds])
    assert (curve.x[0], curve.x[-1]) == (200.0, 300.0)
    # At 200: 10 by the first line, 40 by the second. At 300: 20 and 30.
    assert (curve.mean[0], curve.low[0], curve.high[0]) == (25.0, 10.0, 40.0)
    assert (curve.mean[-1], curve.low[-1], curve.high[-1]) == (25.0, 20.0, 30.0)
    assert mean_curve([seed.curve("updates") for seed in seeds]).x[0] == 20.0


def test_curve_of_single_validations_is_a_point_and_of_none_is_empty() -> None:
    def curve(*seeds: Points) -> list[float]:
        return mean_curve([trace(points).curve("env_steps") for points in seeds]).mean

    assert curve([(100, 2.0)], [(100, 4.0)]) == [3.0]
    assert curve([(100, 2.0)], [(200, 4.0)]) == []
    assert curve([]) == []


def test_average_is_the_area_under_the_curve_over_its_width() -> None:
    # From 100 to 300 at 2 on average, from 300 to 400 at 8: (400 + 800) / 300.
    assert trace([(100, 0.0), (300, 4.0), (400, 12.0)]).average() == 4.0
    assert trace([(100, 7.0)]).average() == 7.0
    assert trace([]).average() is None


def test_estimate_of_nothing_is_nothing() -> None:
    assert estimate([]) is None
