"""Lines, histograms and shares as SVG: drawn to scale, told in words."""

from __future__ import annotations

import math
from typing import Any
from xml.etree import ElementTree

import pytest

from qfleet.report.bar_chart import BarChart, Bars, bar_chart, share_bar, share_key
from qfleet.report.line_chart import Line, LineChart, line_chart


def drawn(**changes: Any) -> ElementTree.Element:
    asked: dict[str, Any] = {"name": "n", "title": "y against <x>", "x_title": "x & more", "words": "it <rises>"}
    return ElementTree.fromstring(line_chart(LineChart(**asked | changes)))


def points(element: ElementTree.Element | None) -> list[list[float]]:
    assert element is not None
    return [[float(part) for part in point.split(",")] for point in str(element.get("points")).split()]


def test_lines_are_drawn_to_scale_with_band_and_level() -> None:
    root = drawn(lines=[Line("a", [100, 200], [0, 10], [0, 5], [0, 15]), Line("b", [], [])], level=20.0)
    assert root.findtext("title") == "y against <x>"
    assert root.findtext("desc") == "it <rises>"
    assert [group.get("class") for group in root.iter("g")] == ["series-0"], "a line without points is left out"
    # x from 0 to 200 lies between 52 and 348 pixels; y from 0 to 20 with 4% of room between 228 and 10.
    low, height = -0.8, 21.6
    y_of = {value: 228 - (value - low) / height * 218 for value in (0, 5, 10, 15, 20)}
    line, band, level = root.find("g/polyline"), root.find("g/polygon"), root.find("line[@class='threshold']")
    assert points(line) == [pytest.approx([200, y_of[0]], abs=0.06), pytest.approx([348, y_of[10]], abs=0.06)]
    edge = [[200, y_of[0]], [348, y_of[15]], [348, y_of[5]], [200, y_of[0]]]
    assert points(band) == [pytest.approx(corner, abs=0.06) for corner in edge]
    assert level is not None
    assert float(str(level.get("y1"))) == pytest.approx(y_of[20], abs=0.06)


def test_a_logarithmic_axis_and_dots() -> None:
    root = drawn(lines=[Line("a", [1, 10, 100], [1, 1, 1], number=3, has_dots=True)], is_log_x=True)
    group = root.find("g")
    assert group is not None
    assert group.get("class") == "series-3"
    # Two factors of ten over 296 pixels: 10 is in the middle.
    assert [float(str(dot.get("cx"))) for dot in root.iter("circle")] == [52, 200, 348]
    with pytest.raises(ValueError, match="chart n: a logarithmic axis has no place for 0"):
        drawn(lines=[Line("a", [0, 1], [1, 1])], is_log_x=True)


def test_a_single_point_is_a_dot_and_infinity_is_left_out() -> None:
    root = drawn(lines=[Line("a", [5], [7])])
    assert len(list(root.iter("circle"))) == 1
    assert root.find("g/polyline") is None
    assert line_chart(LineChart("n", "t", "x", [Line("a", [], [])])) == ""


def test_x_may_begin_with_the_first_point() -> None:
    line = drawn(lines=[Line("a", [10, 20], [0, 1])], from_zero=False).find("g/polyline")
    assert [x for x, _ in points(line)] == [52, 348]


def test_histograms_stand_side_by_side() -> None:
    chart = BarChart("h", "lags", "versions", ["0", "1 .. 3"], [Bars("a", [4, 0]), Bars("b", [1, 2], 5)], "words")
    root = ElementTree.fromstring(bar_chart(chart))
    # Two labels share 296 pixels: slots of 148, of which two series take 42% each, from 8% on. y: 4.16 is the top.
    first = [[float(str(bar.get(key))) for key in ("x", "width", "height")] for bar in root.findall("g[1]/rect")]
    assert first == [pytest.approx([52 + 0.08 * 148, 0.42 * 148, 4 / 4.16 * 218], abs=0.06)]
    second = [float(str(bar.get("x"))) for bar in root.findall("g[2]/rect")]
    assert second == pytest.approx([52 + 0.5 * 148, 52 + 1.5 * 148], abs=0.06)
    assert [group.get("class") for group in root.iter("g")] == ["series-0", "series-5"]
    assert {"0", "1 .. 3", "versions"} <= {text.text for text in root.iter("text")}
    assert bar_chart(BarChart("h", "t", "x", ["0"], [Bars("a", [0.0])])) == ""


def test_many_labels_are_thinned() -> None:
    labels = [f"l{number}" for number in range(30)]
    root = ElementTree.fromstring(bar_chart(BarChart("h", "t", "x", labels, [Bars("a", [1.0] * 30)])))
    shown = [text.text for text in root.iter("text") if str(text.text).startswith("l")]
    assert shown == [f"l{number}" for number in range(0, 30, 3)]


def test_shares_fill_a_bar() -> None:
    root = ElementTree.fromstring(share_bar("a<b", {"learner": 0.5, "waiting": 0.25}, ["waiting", "learner", "other"]))
    assert root.get("aria-label") == "a<b: learner 50%, waiting 25%"
    bars = [[float(str(bar.get(key))) for key in ("x", "width")] for bar in root.iter("rect")]
    assert bars == [[0, 150], [150, 300]]
    assert [bar.get("fill") for bar in root.iter("rect")] == ["var(--part-0)", "var(--part-1)"]
    key = ElementTree.fromstring("".join(share_key(["waiting", "a<b"])))
    assert "".join(key.itertext()).split() == ["waiting", "a<b"]
    assert math.isclose(sum(width for _, width in bars), 450)
