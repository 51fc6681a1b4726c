"""Cells run in turn; what is finished is not run again, what was stopped goes on, what fails stops nobody."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from qfleet.comparison.cells import Outcome, check_folder, look, run_cells
from qfleet.comparison.plan import Cell, Plan
from qfleet.comparison.report import write_json
from qfleet.comparison.results import compare
from qfleet.errors import DivergenceError, UsageError
from qfleet.experiment import Experiment
from qfleet.session import CheckpointSaved

MakePlan = Callable[..., Plan]


class Player:
    """Runs experiments and notes which; `acts` says what else to do with some of them, by (label, seed)."""

    def __init__(self, acts: Mapping[tuple[str, int], Callable[[Experiment], Any]] | None = None) -> None:
        self.acts = acts or {}
        self.played: list[tuple[str, int]] = []
        self.began_at: list[int] = []

    def __call__(self, cell: Cell, experiment: Experiment) -> Mapping[str, object]:
        key = (cell.variant.label, cell.seed)
        self.played.append(key)
        self.began_at.append(experiment._counters().num_env_steps)
        if key in self.acts:
            return dict(self.acts[key](experiment))
        return experiment.run()


def play(plan: Plan, player: Player) -> list[Outcome]:
    check_folder(plan)
    write_json(compare(plan, look(plan), ""), plan.out)  # what the command does first: the folder is ours from now on
    return list(run_cells(plan, player))


ALL = [("serial", 0), ("parameter_server", 0), ("serial", 1), ("parameter_server", 1)]


def test_cells_run_in_turn_and_finished_ones_not_again(plan: MakePlan) -> None:
    first = Player()
    outcomes = play(plan(), first)
    assert first.played == ALL
    assert [outcome.status for outcome in outcomes] == ["finished"] * 4
    assert all(outcome.is_new for outcome in outcomes)
    again = Player()
    outcomes = play(plan(), again)
    assert again.played == []
    assert [outcome.summary["num_env_steps"] for outcome in outcomes if outcome.summary] == [200] * 4
    assert not any(outcome.is_new for outcome in outcomes)


def test_more_seeds_and_strategies_run_only_the_new_cells(plan: MakePlan) -> None:
    play(plan("serial", num_seeds=1, num_workers=None), Player())
    player = Player()
    play(plan("all_reduce,serial", num_seeds=2), player)
    assert player.played == [("all_reduce", 0), ("all_reduce", 1), ("serial", 1)]


def interrupt(experiment: Experiment) -> Mapping[str, object]:
    """Ctrl-C at the first checkpoint."""
    for event in experiment.stream():
        if isinstance(event, CheckpointSaved):
            experiment.interrupt()
    return {"stop_reason": "interrupted"}


def test_an_interrupt_ends_the_comparison_and_the_cell_goes_on_from_its_checkpoint(plan: MakePlan) -> None:
    made = plan(overrides={"checkpoint.every_env_steps": 100})
    outcomes = play(made, Player({("parameter_server", 0): interrupt}))
    assert [outcome.status for outcome in outcomes] == ["finished", "interrupted"]
    assert [outcome.status for outcome in look(made)] == ["finished", "missing", "missing", "missing"]
    player = Player()
    outcomes = play(made, player)
    assert player.played == ALL[1:]
    assert player.began_at[0] >= 100
    assert player.began_at[1:] == [0, 0]
    assert [outcome.status for outcome in outcomes] == ["finished"] * 4


def test_a_cell_that_was_killed_ends_as_if_it_had_not_been(plan: MakePlan) -> None:
    settings = {"num_seeds": 1, "overrides": {"checkpoint.every_env_steps": 100}}

    def kill(experiment: Experiment) -> Mapping[str, object]:
        events = experiment.stream()
        for event in events:
            if isinstance(event, CheckpointSaved):
                break
        next(events)
        events.close()
        raise SystemExit

    made = plan(out="killed", **settings)
    with pytest.raises(SystemExit):
        play(made, Player({("serial", 0): kill}))
    player = Player()
    resumed = play(made, player)
    assert player.began_at[0] == 100
    whole = play(plan(out="whole", **settings), Player())
    for one, other in zip(resumed, whole, strict=True):
        assert one.summary is not None
        assert other.summary is not None
        assert one.summary["parameters_sha256"] == other.summary["parameters_sha256"]


def test_a_cell_that_fails_stops_no_other_and_is_tried_again(plan: MakePlan) -> None:
    def fail(experiment: Experiment) -> Mapping[str, object]:
        raise DivergenceError("loss is nan\nat update 7")

    def break_down(experiment: Experiment) -> Mapping[str, object]:
        raise ZeroDivisionError("oh")

    player = Player({("serial", 0): fail, ("serial", 1): break_down})
    outcomes = play(plan(), player)
    assert player.played == ALL
    assert [(outcome.status, outcome.error) for outcome in outcomes] == [
        ("failed", "loss is nan at update 7"),
        ("finished", None),
        ("failed", "ZeroDivisionError: oh"),
        ("finished", None),
    ]
    player = Player()
    play(plan(), player)
    assert player.played == [("serial", 0), ("serial", 1)]


def test_a_raised_budget_goes_on_from_the_old_one_and_a_smaller_one_is_refused(plan: MakePlan) -> None:
    play(plan("serial", num_seeds=1, num_workers=None), Player())
    more = plan("serial", num_seeds=1, num_workers=None, budget="env_steps=300")
    player = Player()
    (outcome,) = play(more, player)
    assert player.began_at == [200]
    assert outcome.summary is not None
    assert outcome.summary["num_env_steps"] == 300
    for budget, was in [("env_steps=250", "env_steps=300"), ("updates=50", "env_steps=300")]:
        with pytest.raises(UsageError, match=was):
            check_folder(plan("serial", num_seeds=1, num_workers=None, budget=budget))


def test_cells_of_other_settings_are_refused_by_name(plan: MakePlan) -> None:
    play(plan("serial", num_seeds=1, num_workers=None), Player())
    other = plan("serial", num_seeds=1, num_workers=None, overrides={"algo.batch_size": 8})
    with pytest.raises(UsageError, match=r"c/runs/serial/seed-0.*algo\.batch_size = 16, now it is 8"):
        check_folder(other)
    # What decides nothing about learning may change.
    check_folder(plan("serial", num_seeds=1, num_workers=None, overrides={"checkpoint.keep": 1}))


def test_a_folder_that_holds_something_else_is_refused(plan: MakePlan, tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    check_folder(plan())
    (tmp_path / "c" / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="holds no comparison"):
        check_folder(plan())
