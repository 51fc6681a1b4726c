"""Rows, the Pareto front and the recommendation, by hand."""

from __future__ import annotations

import json
import math

import pytest

from qfleet.planning.learning import Learned, LearnedRun
from qfleet.planning.prices import Cost, Fleet, MachineType
from qfleet.planning.results import Row, first_limits, money_text, pareto, recommend, time_text
from qfleet.planning.saturation import Limit
from qfleet.planning.timing import Share, Timing

MACHINE = MachineType(name="m", cores=4, on_demand=1.0)
SHARES = {"worker-*": Share(1, 0.9, 0.9, 0.9), "coordinator": Share(1, 0.1, 0.1, 0.1)}


def row(label: str, size: int, seconds: float, money: float, reached: int | None = None, **changes: object) -> Row:
    values: dict[str, object] = {
        "timing": Timing(1.0, 16.0, 16.0 * size, 0.0, SHARES, 10.0),
        "limit": Limit("workers", 0.9),
        "speedup": float(size),
        "efficiency": 1.0,
        "fleet": Fleet(MACHINE, 1, 0, True),
        "cost": Cost(seconds, money, None, None),
        "learned": None if reached is None else Learned(3, reached, seconds, seconds, seconds, 100.0),
    }
    return Row(label, size, **{**values, **changes})  # type: ignore[arg-type]


def test_the_front_is_who_is_beaten_by_nobody_in_both() -> None:
    costs = [Cost(1.0, 9.0, None, None), Cost(3.0, 3.0, None, None), Cost(4.0, 3.0, None, None), None]
    # On spot the last one is cheapest of all, and slowest.
    costs.append(Cost(9.0, 9.0, 9.1, 1.0))
    assert pareto(costs) == [True, True, False, False, True]


def test_the_least_time_x_money_is_recommended_with_what_the_others_would_be() -> None:
    rows = [row("slow", 1, 100.0, 1.0), row("fast", 64, 10.0, 20.0), row("middle", 8, 20.0, 2.0)]
    found = recommend(rows, None)
    assert found is not None
    assert (found.label, found.num_workers, found.spot) == ("middle", 8, False)
    assert found.why == (
        "middle with 8 workers comes to 1,000,000 env steps in 20.0 s for $2.00, the least time x money; the fastest "
        "(fast, 64) takes 10.0 s and costs 10.0 times as much; time alone: how well it learns from a step was not "
        "looked at."
    )


def test_who_reaches_the_target_more_often_comes_first() -> None:
    found = recommend([row("lucky", 8, 1.0, 1.0, reached=2), row("sure", 8, 5.0, 5.0, reached=3)], 475.0)
    assert found is not None
    assert found.label == "sure"
    assert "a return of 475" in found.why
    assert "; lucky, 8, took 1.00 s, but only with 2 of 3 seeds" in found.why


def test_where_nothing_reaches_it_nothing_is_recommended() -> None:
    assert recommend([row("never", 8, math.inf, 1.0, reached=0, cost=None)], 475.0) is None


def test_half_of_the_seeds_is_a_median_that_is_never() -> None:
    def run(seed: int, seconds: float | None) -> LearnedRun:
        return LearnedRun("a", 8, seed, seconds, None if seconds is None else 10, 9.0, 400.0)

    half = Learned.of([run(0, 1.0), run(1, None)])
    assert (half.num_reached, half.seconds, half.least, half.most) == (1, math.inf, 1.0, 1.0)
    most = Learned.of([run(0, 1.0), run(1, 3.0), run(2, None)])
    assert (most.num_reached, most.seconds, most.env_steps) == (2, 3.0, 10.0)


def test_it_is_said_where_more_workers_stop_paying() -> None:
    busy = Limit("server compute", 0.95)
    rows = [
        row("a", 1, 1.0, 1.0),
        row("a", 2, 1.0, 1.0, efficiency=0.8, limit=busy),
        row("a", 4, 1.0, 1.0, efficiency=0.4, limit=busy),
        row("b", 4, 1.0, 1.0),
        Row("c", 4, why_not="no"),
    ]
    assert first_limits(rows) == {
        "a": "server compute at 4",
        "b": "not within the sizes planned",
        "c": "cannot be planned",
    }


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.5, "0.50 s"), (60.0, "60.0 s"), (600.0, "10.0 min"), (7200.0, "2.0 h"), (math.inf, "never")],
)
def test_time_as_it_is_read(seconds: float, text: str) -> None:
    assert time_text(seconds) == text


@pytest.mark.parametrize(
    ("money", "text"), [(12.345, "$12.35"), (0.0123, "$0.012"), (0.00012, "$0.00012"), (0.0, "$0.00")]
)
def test_money_as_it_is_read(money: float, text: str) -> None:
    assert money_text(money) == text


def test_json_has_no_infinity() -> None:
    from qfleet.planning.results import PlanResult

    one = row("a", 8, 1.0, 1.0, reached=0, learned=Learned(3, 0, math.inf, math.inf, math.inf, math.inf))
    result = PlanResult("E", "qfleet plan E", 475.0, [one], [], {}, [], {}, {}, None)
    text = json.dumps(result.to_json(), allow_nan=False)
    assert json.loads(text)["rows"][0]["learned"]["seconds"] is None
