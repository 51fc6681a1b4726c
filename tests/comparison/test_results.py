"""From what runs wrote down to a comparison: every number worked out by hand from written runs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from qfleet.comparison.cells import Outcome
from qfleet.comparison.plan import Cell, Plan
from qfleet.comparison.results import Comparison, compare
from qfleet.report.measures import read_trace

MakePlan = Callable[..., Plan]
Points = list[tuple[int, float]]


def write_cell(cell: Cell, points: Points, **summary: Any) -> Outcome:
    """A finished cell with validations at (env steps, return): an update each 10 env steps, a second each 1,000."""
    cell.run_dir.mkdir(parents=True)
    lines = [
        {
            "kind": "evaluation", "num_env_steps": steps, "num_updates": steps // 10, "train_seconds": steps / 1000,
            "mean_return": value,
        }
        for steps, value in points
    ]  # fmt: skip
    decoy = {"kind": "train", "num_env_steps": 1, "num_updates": 99, "train_seconds": 99, "mean_return": 99.0}
    (cell.run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [decoy, *lines]))
    body = {"stop_reason": "max_env_steps", "num_roles": 1, "bytes_pushed": 0, "tallies": {}, "lags": {}} | summary
    return Outcome(cell, "finished", body)


@pytest.fixture
def comparison(plan: MakePlan) -> Comparison:
    """Two variants, two seeds: the first is fast, one seed of the second never gets to 2."""
    cells = list(plan().cells())
    lags = {"staleness": {"mean": 1.5, "max": 4}}
    fleet = {"num_roles": 3, "bytes_pushed": 4e6, "lags": lags, "tallies": {"bytes_pushed": 9, "restarts.killed": 1}}
    outcomes = [
        write_cell(cells[0], [(100, 0.0), (200, 4.0)], eval={"mean_return": 4.0}, num_updates=20),
        write_cell(cells[1], [(100, 0.0), (200, 1.0)], eval={"mean_return": 1.0}, num_updates=10, **fleet),
        write_cell(cells[2], [(100, 2.0), (200, 2.0)], eval={"mean_return": 6.0}, num_updates=30),
        write_cell(cells[3], [(100, 1.0), (200, 3.0)], eval={"mean_return": 2.0}, num_updates=10, **fleet),
    ]
    return compare(plan(), outcomes, "qfleet compare ...")


def test_held_out_return_is_a_mean_with_its_interval(comparison: Comparison) -> None:
    first, second = (variant.measures["held_out_return"] for variant in comparison.variants)
    assert (first.value, first.low, first.high, first.seeds) == (5.0, 4.0, 6.0, [4.0, 6.0])
    assert (second.value, second.low, second.high) == (1.5, 1.0, 2.0)


def test_difference_is_taken_seed_by_seed(comparison: Comparison) -> None:
    first, second = (variant.difference for variant in comparison.variants)
    assert first is None
    assert second is not None
    assert second.seeds == [1.0 - 4.0, 2.0 - 6.0]
    assert (second.value, second.low, second.high) == (-3.5, -4.0, -3.0)


def test_average_return_is_the_area_under_the_curve(comparison: Comparison) -> None:
    # Seed 0 rises from 0 to 4, mean 2; seed 1 stays at 2.
    assert comparison.variants[0].measures["average_return"].seeds == [2.0, 2.0]


def test_threshold_is_where_the_first_validation_is_there(comparison: Comparison) -> None:
    # 2 is the threshold: seed 0 of serial has it at 200, seed 1 at 100, on the line.
    first, second = (variant.measures for variant in comparison.variants)
    assert first["env_steps_to_threshold"].seeds == [200.0, 100.0]
    assert first["updates_to_threshold"].seeds == [20.0, 10.0]
    assert first["seconds_to_threshold"].seeds == [0.2, 0.1]
    assert first["env_steps_to_threshold"].value == 150.0
    # Half of the second's seeds never get there, so neither does its median.
    never = second["env_steps_to_threshold"]
    assert never.seeds == [math.inf, 200.0]
    assert (never.value, never.low, never.high, never.num_finite) == (math.inf, 200.0, math.inf, 1)


def test_lags_and_bytes_are_there_where_they_were_counted(comparison: Comparison) -> None:
    first, second = (variant.measures for variant in comparison.variants)
    assert "staleness" not in first
    assert second["staleness"].value == 1.5
    assert second["staleness_max"].value == 4.0
    assert first["bytes_pushed"].value == 0.0, "one role sends nothing"
    assert second["bytes_pushed"].value == 4e6
    assert comparison.variants[1].tallies == {"restarts.killed": 2}


def test_bytes_that_nobody_counted_are_unknown_not_zero(plan: MakePlan) -> None:
    made = plan("all_reduce", num_seeds=1)
    (cell,) = made.cells()
    result = compare(made, [write_cell(cell, [(100, 1.0)], num_roles=2, bytes_pushed=0)], "")
    assert "bytes_pushed" not in result.variants[0].measures


def test_validations_are_put_in_order(plan: MakePlan) -> None:
    (cell,) = plan("all_reduce", num_seeds=1).cells()
    write_cell(cell, [(300, 3.0), (100, 1.0), (200, 2.0)])
    assert read_trace(cell.run_dir).returns.tolist() == [1.0, 2.0, 3.0]


def test_cells_that_failed_or_are_missing_are_told_and_left_out_of_the_numbers(plan: MakePlan) -> None:
    made = plan()
    cells = list(made.cells())
    outcomes = [
        write_cell(cells[0], [(100, 3.0)], eval={"mean_return": 3.0}),
        Outcome(cells[1], "failed", error="it broke"),
    ]
    result = compare(made, outcomes, "")
    assert [cell.status for cell in result.cells] == ["finished", "failed", "missing", "missing"]
    assert result.cells[1].error == "it broke"
    first, second = result.variants
    assert (first.num_finished, first.num_cells, first.measures["held_out_return"].value) == (1, 2, 3.0)
    assert (second.num_finished, second.measures, second.difference) == (0, {}, None)
    assert (result.count("finished"), result.count("failed")) == (1, 1)


def test_json_holds_it_all_and_no_infinity(comparison: Comparison) -> None:
    body = json.loads(json.dumps(comparison.to_json(), allow_nan=False))
    assert body["budget"] == {"env_steps": 200}
    assert body["threshold"] == 2.0
    assert body["seeds"] == [0, 1]
    second = body["variants"][1]
    assert second["label"] == "parameter_server"
    assert second["roles"] == ["2 workers", "1 server"]
    assert second["measures"]["env_steps_to_threshold"]["seeds"] == [None, 200.0]
    assert second["curves"]["env_steps"]["mean"][-1] == 2.0
    assert body["cells"][1]["measures"]["env_steps_to_threshold"] is None
    assert {"platform", "cores", "torch", "qfleet"} <= body["machine"].keys()
