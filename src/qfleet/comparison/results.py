"""From cells to a comparison: each variant's numbers and curves over its seeds, with 95% bootstrap intervals.

A variant's numbers are of its finished cells only; how many these are stands beside them. Floor 7.
"""

from __future__ import annotations

import dataclasses
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from qfleet.comparison.cells import Outcome
from qfleet.comparison.measures import AXES, MEASURES, Measured, Trace, read_trace
from qfleet.comparison.plan import Plan, Variant
from qfleet.ops.bootstrap import Statistic, bootstrap_interval
from qfleet.outcome import describe_roles
from qfleet.version import __version__

FORMAT = 1
LEVEL = 0.95
NUM_POINTS = 80  # of a curve


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number over seeds.

    Attributes:
        value: mean or median; infinity where half the seeds or more never got there.
        low, high: the interval.
        seeds: each seed's own number, in the order of seeds; without those that have none.
    """

    value: float
    low: float
    high: float
    seeds: list[float]

    @property
    def num_finite(self) -> int:
        """How many seeds got there."""
        return sum(math.isfinite(value) for value in self.seeds)


@dataclass(frozen=True, slots=True)
class Curve:
    """Mean validation return over seeds, with its interval, where all seeds have values."""

    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]


@dataclass(frozen=True, slots=True)
class VariantResult:
    """One of the things compared.

    Attributes:
        label, algo, strategy, engine, roles: what it is.
        num_finished, num_cells: how many seeds the numbers are of, and how many were asked for.
        measures: by name, see measures.py; those that its cells have.
        difference: held-out return minus that of the first variant, seed by seed; None for the first one itself.
        curves: by axis.
        tallies: what its runs counted beside (restarts, pushes discarded), added up over seeds.
    """

    label: str
    algo: str
    strategy: str
    engine: str
    roles: list[str]
    num_finished: int
    num_cells: int
    measures: dict[str, Estimate]
    difference: Estimate | None
    curves: dict[str, Curve]
    tallies: dict[str, int]


@dataclass(frozen=True, slots=True)
class CellResult:
    """One run: where it is and what became of it."""

    label: str
    seed: int
    status: str
    error: str | None
    run_dir: str
    measures: dict[str, float]


@dataclass(frozen=True, slots=True)
class Comparison:
    """All of it; `to_json` is comparison.json.

    Attributes:
        env, budget, threshold, seeds: what was asked for.
        command: the command line that makes it, or goes on with it.
        machine: where it was measured.
        variants, cells: the results.
    """

    env: str
    budget: dict[str, float]
    threshold: float | None
    seeds: list[int]
    command: str
    machine: dict[str, str]
    variants: list[VariantResult]
    cells: list[CellResult]

    def count(self, status: str) -> int:
        """How many cells are "finished", "failed", "interrupted" or "missing"."""
        return sum(cell.status == status for cell in self.cells)

    def to_json(self) -> dict[str, object]:
        """JSON values; what never got there is null."""
        body = {"format": FORMAT, "qfleet_version": __version__, **dataclasses.asdict(self)}
        return {name: _finite(value) for name, value in body.items()}


def compare(plan: Plan, outcomes: Sequence[Outcome], command: str) -> Comparison:
    """Sum up a comparison, be it complete or under way.

    Args:
        plan: what was asked for.
        outcomes: of its cells, in any order; those left out count as missing.
        command: how it was asked for.
    """
    known = {(outcome.cell.variant.label, outcome.cell.seed): outcome for outcome in outcomes}
    measured: dict[tuple[str, int], Measured] = {}
    cells = []
    for cell in plan.cells():
        key = (cell.variant.label, cell.seed)
        outcome = known.get(key) or Outcome(cell, "missing")
        if outcome.summary is not None:
            measured[key] = Measured(outcome.summary, read_trace(cell.run_dir), plan.threshold)
        numbers = _numbers(measured[key]) if key in measured else {}
        cells.append(CellResult(*key, outcome.status, outcome.error, str(cell.run_dir), numbers))
    of_variant = [
        {seed: measured[variant.label, seed] for seed in plan.seeds if (variant.label, seed) in measured}
        for variant in plan.variants
    ]
    return Comparison(
        env=plan.env,
        budget={plan.budget.kind: plan.budget.amount},
        threshold=plan.threshold,
        seeds=plan.seeds,
        command=command,
        machine=describe_machine(),
        variants=[
            _sum_up(variant, runs, None if number == 0 else of_variant[0], len(plan.seeds))
            for number, (variant, runs) in enumerate(zip(plan.variants, of_variant, strict=True))
        ],
        cells=cells,
    )


def estimate(values: Sequence[float], statistic: Statistic = "mean") -> Estimate | None:
    """A number over seeds with its interval; None without values."""
    if not values:
        return None
    low, high = bootstrap_interval(values, statistic, LEVEL)
    value = np.median(values) if statistic == "median" else np.mean(values)
    return Estimate(float(value), float(low), float(high), list(values))


def mean_curve(traces: Sequence[Trace], axis: str) -> Curve:
    """The mean of several seeds' curves with its interval, each joined by straight lines between its validations.

    It goes from where the last seed was first validated to where the first seed ended: beyond that a mean would be of
    fewer seeds. Empty where the seeds have no such part in common.
    """
    found = [(trace.axes[axis], trace.returns) for trace in traces if len(trace.returns)]
    if not found or max(x[0] for x, _ in found) > min(x[-1] for x, _ in found):
        return Curve([], [], [], [])
    begin, end = max(x[0] for x, _ in found), min(x[-1] for x, _ in found)
    grid = np.linspace(begin, end, NUM_POINTS) if end > begin else np.array([begin])
    values = np.stack([np.interp(grid, x, returns) for x, returns in found])
    low, high = bootstrap_interval(values, "mean", LEVEL)
    return Curve(grid.tolist(), values.mean(axis=0).tolist(), low.tolist(), high.tolist())


def describe_machine() -> dict[str, str]:
    """What a number needs beside it to mean something."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": str(cores),
        "gpu": device,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "qfleet": __version__,
    }


def _sum_up(
    variant: Variant, runs: dict[int, Measured], baseline: dict[int, Measured] | None, num_cells: int
) -> VariantResult:
    config = variant.config
    measures: dict[str, Estimate] = {}
    for measure in MEASURES:
        values = [value for run in runs.values() if (value := measure.read(run)) is not None]
        over_seeds = estimate(values, measure.statistic)
        if over_seeds is not None:
            measures[measure.name] = over_seeds
    tallies: dict[str, int] = {}
    for run in runs.values():
        counted = run.summary.get("tallies")
        for name, count in counted.items() if isinstance(counted, dict) else ():
            tallies[name] = tallies.get(name, 0) + int(count)
    tallies.pop("bytes_pushed", None)
    return VariantResult(
        label=variant.label,
        algo=config.algo.name,
        strategy=config.strategy.name,
        engine=config.engine.name,
        roles=describe_roles(config),
        num_finished=len(runs),
        num_cells=num_cells,
        measures=measures,
        difference=None if baseline is None else _difference(runs, baseline),
        curves={axis: mean_curve([run.trace for run in runs.values()], axis) for axis in AXES},
        tallies=tallies,
    )


def _difference(runs: dict[int, Measured], baseline: dict[int, Measured]) -> Estimate | None:
    """Held-out return minus the baseline's, over the seeds that both have finished."""
    (score,) = [measure for measure in MEASURES if measure.name == "held_out_return"]
    pairs = [(score.read(run), score.read(baseline[seed])) for seed, run in runs.items() if seed in baseline]
    return estimate([ours - theirs for ours, theirs in pairs if ours is not None and theirs is not None])


def _numbers(cell: Measured) -> dict[str, float]:
    return {measure.name: value for measure in MEASURES if (value := measure.read(cell)) is not None}


def _finite(value: object) -> object:
    """JSON has no infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list) else value
