"""Runs the cells of a comparison in turn. What is finished is not run again, what was interrupted goes on.

    runs/<variant>/seed-<k>/     an ordinary run directory; its summary.json says that the cell is finished

A cell that fails is told, and the next one runs. Floor 7.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qfleet.comparison.plan import BUDGETS, Cell, Plan
from qfleet.config import StopConfig
from qfleet.errors import QfleetError, UsageError, in_one_line
from qfleet.experiment import Experiment
from qfleet.recipe import read_config
from qfleet.run_config import RunConfig

COMPARISON_NAME = "comparison.json"
Summary = Mapping[str, object]
Play = Callable[[Cell, Experiment], Summary]
Status = Literal["finished", "failed", "interrupted", "missing"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a cell.

    Attributes:
        cell: which one.
        status: "missing" has not been run yet.
        summary: of a finished one.
        error: of a failed one, in one line.
        is_new: whether it was run now.
    """

    cell: Cell
    status: Status
    summary: Summary | None = None
    error: str | None = None
    is_new: bool = False


def check_folder(plan: Plan) -> None:
    """Refuse a folder that holds something else, or cells of other settings.

    Raises:
        UsageError: naming the folder and the first field that differs.
    """
    if plan.out.exists() and not (plan.out / COMPARISON_NAME).is_file() and any(plan.out.iterdir()):
        raise UsageError(f"{plan.out}: this directory is not empty and holds no comparison; choose another --out")
    for cell in plan.cells():
        path = cell.run_dir / "config.toml"
        if path.is_file():
            _refuse_other(cell.run_dir, read_config(path), cell.config)


def run_cells(plan: Plan, play: Play) -> Iterator[Outcome]:
    """Each cell's outcome, as it comes; the iterator ends early where a run was interrupted.

    Args:
        plan: of a folder that `check_folder` has passed.
        play: runs an experiment and returns its summary; it is not asked for cells that are finished.
    """
    for cell in plan.cells():
        try:
            experiment = _prepare(cell, plan.recipe)
            if experiment is None:
                yield Outcome(cell, "finished", _read_summary(cell.run_dir))
                continue
            summary = play(cell, experiment)
        except Exception as error:  # whatever befell one cell, the others are still worth running
            yield Outcome(cell, "failed", error=_told(error), is_new=True)
            continue
        if summary["stop_reason"] == "interrupted":
            yield Outcome(cell, "interrupted", is_new=True)
            return
        yield Outcome(cell, "finished", summary, is_new=True)


def look(plan: Plan) -> list[Outcome]:
    """What is there already: finished cells with their summaries, the others as missing."""
    return [
        Outcome(cell, "finished", _read_summary(cell.run_dir)) if is_finished(cell) else Outcome(cell, "missing")
        for cell in plan.cells()
    ]


def is_finished(cell: Cell) -> bool:
    """Whether a cell has been run to the end of this very budget."""
    if not (cell.run_dir / "summary.json").is_file():
        return False
    return read_config(cell.run_dir / "config.toml").stop == cell.config.stop


def _prepare(cell: Cell, recipe: str) -> Experiment | None:
    """The cell's run, new or resumed; None where it is finished."""
    if is_finished(cell):
        return None
    if not (cell.run_dir / "config.toml").is_file():
        experiment = Experiment(cell.config, cell.run_dir)
        experiment.recipe = recipe
        return experiment
    before, stop = read_config(cell.run_dir / "config.toml").stop, cell.config.stop
    names = [name for name in StopConfig.model_fields if getattr(before, name) != getattr(stop, name)]
    experiment = Experiment.resume(cell.run_dir, {f"stop.{name}": _value(getattr(stop, name)) for name in names})
    return None if experiment.why_complete() is not None else experiment


def _value(setting: object) -> object:
    return "none" if setting is None else setting


def _refuse_other(run_dir: Path, before: RunConfig, now: RunConfig) -> None:
    """A cell that is there must be of the same settings, and of the same budget or a smaller one of its kind."""
    ignored = {"stop", "checkpoint", "logging", "device", "num_threads"}
    theirs, ours = (_flat(config.model_dump(mode="json", by_alias=True, exclude=ignored)) for config in (before, now))
    for name in [*ours, *theirs]:
        if theirs.get(name) != ours.get(name):
            raise UsageError(
                f"{run_dir}: this cell was run with {name} = {theirs.get(name)!r}, now it is {ours.get(name)!r}; "
                "choose another --out"
            )
    for kind, name in BUDGETS.items():
        old, new = getattr(before.stop, name), getattr(now.stop, name)
        if (old is None) != (new is None) or (old is not None and old > new):
            was = f"{kind}={old:g}" if old is not None else f"no budget of {kind}"
            raise UsageError(f"{run_dir}: this cell was run with {was}; a budget can only be raised, else choose --out")


def _flat(table: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in table.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def _read_summary(run_dir: Path) -> Summary:
    summary: Summary = json.loads((run_dir / "summary.json").read_bytes())
    return summary


def _told(error: Exception) -> str:
    text = in_one_line(error)
    return text if isinstance(error, QfleetError) else f"{type(error).__name__}: {text}"
