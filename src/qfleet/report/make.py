"""From folders to a report: read, group, and see the best policy at play. Floor 7."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qfleet.errors import QfleetError, UsageError, in_one_line
from qfleet.report.groups import make_groups
from qfleet.report.measures import MEASURES
from qfleet.report.page import Report
from qfleet.report.runs import Run, find_runs, read_runs
from qfleet.report.strip import Strip, strip_of


def make_report(folders: Sequence[Path], *, has_film: bool = True, command: str = "") -> Report:
    """A report of all the runs in these folders.

    Args:
        folders: run directories, and series, which stand for their runs.
        has_film: play an episode of the best policy and keep its frames.
        command: how it was asked for.

    Raises:
        UsageError: none of them can be read; says why of the first.
    """
    runs, unreadable = read_runs(find_runs(folders))
    if not runs:
        more = f" (and {len(unreadable) - 1} more)" if len(unreadable) > 1 else ""
        raise UsageError(f"{unreadable[0].path}: {unreadable[0].why}{more}")
    best = best_run(runs) if has_film else None
    return Report(make_groups(runs), unreadable, None if best is None else _seen(best), best, command)


def best_run(runs: Sequence[Run]) -> Run | None:
    """The one with the highest held-out return, else the highest validation return; None where nothing is known."""
    (held_out,) = [measure for measure in MEASURES if measure.name == "held_out_return"]
    scored = [(value, run) for run in runs if (value := held_out.read(run.measured)) is not None]
    if not scored:
        scored = [(float(run.trace.returns.max()), run) for run in runs if len(run.trace.returns)]
    return max(scored, key=lambda one: one[0])[1] if scored else None


def _seen(run: Run) -> Strip | str:
    try:
        return strip_of(run.path)
    except QfleetError as error:
        return in_one_line(error)
