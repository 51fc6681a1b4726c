"""From a request to a plan: check, calibrate, simulate, learn, price; the caller hears of each thing as it is done.

    request -> grid -> cluster (given, measured or of a past run) -> timings -> learned runs -> rows, recommendation

Floor 7.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from qfleet.errors import QfleetError, in_one_line
from qfleet.machine import describe_machine
from qfleet.placement.cluster_file import unmatched
from qfleet.placement.virtual_network import COORDINATOR
from qfleet.planning.cluster import PlannedCluster
from qfleet.planning.grid import Cell, Grid
from qfleet.planning.learning import LearnedRun, learn
from qfleet.planning.prices import Prices
from qfleet.planning.results import PlanResult, first_limits, make_rows, recommend
from qfleet.planning.timing import Timing, simulate
from qfleet.run_config import change_config

MAX_LEARNED = 16  # workers of the largest size that is learned unless asked for
EVALUATOR = "evaluator"  # of the session, so that no timing knows it
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Learning:
    """What is to be learned: the target, seeds, sizes (None: up to MAX_LEARNED) and each run's env steps."""

    target: float
    num_seeds: int = 3
    sizes: tuple[int, ...] | None = None
    max_env_steps: int | None = None

    def is_learned(self, cell: Cell) -> bool:
        """Whether a cell is."""
        if cell.config is None:
            return False
        return cell.num_workers <= MAX_LEARNED if self.sizes is None else cell.num_workers in self.sizes


@contextmanager
def on_cluster(grid: Grid, cluster: PlannedCluster) -> Iterator[list[Cell]]:
    """The grid's cells on this cluster, whose file is there for as long."""
    with cluster.on_disk() as path:
        yield [
            cell
            if cell.config is None
            else dataclasses.replace(cell, config=change_config(cell.config, [("engine.cluster", path)]))
            for cell in grid.cells
        ]


def plan(
    grid: Grid,
    cluster: PlannedCluster,
    prices: Prices,
    machine: str | None,
    learning: Learning | None,
    command: str,
    say: Say,
) -> PlanResult:
    """Simulate every cell, learn those that are to be, and sum up."""
    prices.choose(machine)
    timings: dict[tuple[str, int], Timing | str] = {}
    runs: list[LearnedRun] = []
    with on_cluster(grid, cluster) as cells:
        for cell in cells:
            if cell.config is not None:
                timings[cell.key] = _time(cell, grid)
        say(f"simulated {len(timings)} configurations")
        for line in _of_nobody(cluster, timings.values()):
            say(line)
        if learning is not None:
            chosen = [cell for cell in cells if learning.is_learned(cell) and not isinstance(timings[cell.key], str)]
            left_out = sorted({cell.num_workers for cell in cells} - {cell.num_workers for cell in chosen})
            say(f"learning {len(chosen)} configurations x {learning.num_seeds} seeds" + _left_out(left_out))
            for run in learn(chosen, learning.num_seeds, learning.target, learning.max_env_steps):
                runs.append(run)
                say(run_line(run))
    rows = make_rows(grid.cells, timings, runs, prices, machine, learning is not None)
    target = None if learning is None else learning.target
    return PlanResult(
        env=grid.env,
        command=command,
        target=target,
        rows=rows,
        runs=runs,
        saturates=first_limits(rows),
        origins=cluster.origins,
        prices=_describe_prices(prices, machine),
        machine=describe_machine(),
        recommendation=recommend(rows, target),
    )


def _describe_prices(prices: Prices, machine: str | None) -> dict[str, object]:
    """What the chosen machine costs, where, and how old and whose the numbers are."""
    chosen = prices.choose(machine)
    return {
        "date": prices.date.isoformat(),
        "source": prices.source,
        "currency": prices.currency,
        "name": chosen.name,
        "region": chosen.region or "any region",
        "cores": chosen.cores,
        "gpus": chosen.gpus,
        "on_demand": chosen.on_demand,
        "spot": chosen.spot,
        "preemptions_per_hour": chosen.preemptions_per_hour,
    }


def run_line(run: LearnedRun) -> str:
    """A learned run in a line."""
    name = f"{run.label}, {run.num_workers:,} workers, seed {run.seed}"
    if run.error is not None:
        return f"{name}: failed: {run.error}"
    if run.seconds is None:
        best = "-" if run.best_return is None else f"{run.best_return:.1f}"
        return f"{name}: not reached in {run.used_seconds:.2f} virtual s, best {best}"
    return f"{name}: {run.seconds:.2f} virtual s, {run.env_steps:,} env steps"


def _time(cell: Cell, grid: Grid) -> Timing | str:
    """A timing, or why there is none: one cell's trouble is no other's."""
    assert cell.config is not None
    try:
        return simulate(cell.config, grid.spec)
    except QfleetError as error:
        return in_one_line(error)


def _of_nobody(cluster: PlannedCluster, timings: Iterable[Timing | str]) -> list[str]:
    """Tables of the cluster's file that are of no role of this plan: a wrong name, or one for a larger size."""
    known = [timing for timing in timings if not isinstance(timing, str)]
    if not known:
        return []
    numbers = {COORDINATOR: 1, EVALUATOR: 1}
    for timing in known:
        for kind, share in timing.shares.items():
            numbers[kind] = max(share.number, numbers.get(kind, 0))
    names = {kind.replace("*", str(place)) for kind, number in numbers.items() for place in range(number)}
    roles = ", ".join(sorted(kind for kind in numbers))
    return [
        f"note: {one}: no role of this plan is called so; they are {roles}" for one in unmatched(cluster.file, names)
    ]


def _left_out(sizes: list[int]) -> str:
    if not sizes:
        return ""
    return f"; of {', '.join(f'{size:,}' for size in sizes)} workers timing only (--learn names the sizes)"
