"""From cells to a comparison: each variant's numbers and curves over its seeds, with 95% bootstrap intervals.

A variant's numbers are of its finished cells only; how many these are stands beside them. Floor 7.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from qfleet.comparison.cells import Outcome
from qfleet.comparison.plan import Plan, Variant
from qfleet.machine import describe_machine
from qfleet.outcome import describe_roles
from qfleet.report.estimates import Curve, Estimate, estimate, mean_curve
from qfleet.report.measures import AXES, MEASURES, Measured, read_trace
from qfleet.version import __version__

FORMAT = 1


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
        curves={axis: mean_curve([run.trace.curve(axis) for run in runs.values()]) for axis in AXES},
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
