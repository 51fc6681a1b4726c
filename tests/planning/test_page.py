"""A plan's page and picture: what they show, and that the page is strict XML that fetches nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from xml.etree import ElementTree

import pytest

from qfleet.errors import QfleetError
from qfleet.planning.cluster import Origin
from qfleet.planning.curves import costs, front, ideal, speedups
from qfleet.planning.learning import Learned, LearnedRun
from qfleet.planning.page import page
from qfleet.planning.picture import draw_picture
from qfleet.planning.prices import Cost, Fleet, MachineType
from qfleet.planning.results import PlanResult, Recommendation, Row
from qfleet.planning.saturation import Limit
from qfleet.planning.timing import Share, Timing

MACHINE = MachineType(name="m", region="r", cores=4, on_demand=1.0, spot=0.5, preemptions_per_hour=0.25)
SHARES = {"worker-*": Share(1, 0.9, 0.9, 0.9), "coordinator": Share(1, 0.1, 0.1, 0.1)}


def row(label: str, size: int, speedup: float, cost: Cost | None, is_on_front: bool) -> Row:
    return Row(
        label,
        size,
        timing=Timing(7.0, 16.0, 16.0 * size, 3.5, SHARES, 10.0),
        limit=Limit("server compute", 0.75),
        speedup=speedup,
        efficiency=speedup / size,
        fleet=Fleet(MACHINE, 1, size // 4, True),
        learned=Learned(3, 2, 5.0, 4.0, 6.0, 900.0),
        cost=cost,
        is_on_front=is_on_front,
    )


@pytest.fixture
def result() -> PlanResult:
    rows = [
        row("a<b", 1, 1.0, Cost(9.0, 0.5, None, None), True),
        row("a<b", 8, 6.5, Cost(2.0, 0.75, 2.5, 0.625), True),
        row("c", 1, 1.0, Cost(10.0, 9.0, None, None), False),
        Row("d", 1, why_not="it & others cannot"),
    ]
    return PlanResult(
        "Env-v0",
        "qfleet plan Env-v0",
        475.0,
        rows,
        [LearnedRun("a<b", 8, 4, None, None, 1.0, 123.5), LearnedRun("a<b", 8, 5, 2.0, 900, 1.0, 480.0)],
        {"a<b": "server compute at 8", "c": "not within the sizes planned"},
        [Origin("worker-* gradient", "5 us a call", "measured")],
        {"date": "2025-01-02", "source": "mine", "currency": "USD", **MACHINE.model_dump()},
        {"cores": "2"},
        Recommendation("a<b", 8, True, "because"),
    )


def test_the_page_is_whole_and_fetches_nothing(result: PlanResult) -> None:
    text = page(result)
    root = ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>\n"))
    shown = " ".join(root.itertext())
    for part in [
        "Recommended: because",
        "a<b, 8",
        "server compute 75%",
        "2 of 3",
        "2.00 s *",
        "$0.75",
        "it & others cannot",
        "not reached",
        "123.5",
        "5 us a call",
        "Prices of 2025-01-02: m (r), 4 cores",
        "qfleet plan Env-v0",
    ]:
        assert part in shown
    # A box for each strategy that was timed, the ideal line and the front; the two points of the front have rings.
    assert text.count('type="checkbox"') == 4
    assert text.count('r="8" fill="none"') == 2
    assert '<td class="text">server compute 75%</td>' in text, "words are read from the left"
    assert "src=" not in text
    assert "href=" not in text
    assert "default-src 'none'" in text


def test_the_curves_are_the_rows(result: PlanResult) -> None:
    assert [(one.label, one.x, one.y) for one in speedups(result)] == [
        ("a<b", [1.0, 8.0], [1.0, 6.5]),
        ("c", [1.0], [1.0]),
    ], "d cannot be, and has no line and no box"
    assert ideal(result).x == ideal(result).y == [1.0, 8.0]
    assert (front(result).x, front(result).y) == ([0.5, 0.625], [9.0, 2.0])
    assert [one.x for one in costs(result)] == [[0.5, 0.625], [9.0]]


def test_sizes_that_cannot_be_for_one_reason_are_one_line(result: PlanResult) -> None:
    more = [Row("d", 2, why_not="it & others cannot"), Row("c", 2, why_not="no"), Row("c", 1024, why_not="no")]
    assert dataclasses.replace(result, rows=[*result.rows, *more]).refused() == [
        ("d", "it & others cannot"),
        ("c, 2, 1,024", "no"),
    ]


def test_the_picture_is_drawn(result: PlanResult, tmp_path: Path) -> None:
    draw_picture(result, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_where_nothing_could_be_planned_there_is_no_picture(result: PlanResult, tmp_path: Path) -> None:
    nothing = dataclasses.replace(result, rows=[row for row in result.rows if row.why_not], runs=[])
    assert "it &amp; others cannot" in page(nothing)
    with pytest.raises(QfleetError, match="nothing to draw"):
        draw_picture(nothing, tmp_path / "p.png")
