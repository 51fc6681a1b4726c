"""A plan's results: a row for each strategy and size, what pays, and the one configuration that is recommended.

    speed-up of n workers   = samples trained on per second by n / by 1 of the same strategy
    efficiency              = speed-up / n
    on the Pareto front     nobody else is both faster and cheaper
    recommended             the least time x money on the front: neither is bought with more than as much of the other

Where 1 worker cannot be, the smallest size that can stands for as many as it has. Floor 7.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qfleet.errors import UsageError
from qfleet.planning.cluster import Origin
from qfleet.planning.grid import Cell
from qfleet.planning.learning import Learned, LearnedRun
from qfleet.planning.prices import Cost, Fleet, MachineType, Needs, Prices, cost_of, fleet_of
from qfleet.planning.saturation import NONE, WORKERS, Limit, limit_of
from qfleet.planning.timing import Timing
from qfleet.run_config import RunConfig
from qfleet.version import __version__

FORMAT = 1
WORK = 1_000_000  # env steps that time and money are told of, where no target is asked for
# Strategies in which the loss of a worker holds up nobody else.
FREE_RUNNING = ("distributed_replay", "actor_learner")


@dataclass(frozen=True, slots=True)
class Row:
    """A strategy at a size.

    Attributes:
        label, num_workers: which one.
        why_not: why it cannot be; all else is then None.
        timing, limit: of the simulation.
        speedup, efficiency: against one worker of it.
        fleet: its machines.
        learned: to the target, where that was asked for and this size was learned.
        cost: to the target; where none is asked for, of WORK env steps.
        is_on_front: of time and money.
    """

    label: str
    num_workers: int
    why_not: str | None = None
    timing: Timing | None = None
    limit: Limit | None = None
    speedup: float | None = None
    efficiency: float | None = None
    fleet: Fleet | None = None
    learned: Learned | None = None
    cost: Cost | None = None
    is_on_front: bool = False


@dataclass(frozen=True, slots=True)
class Recommendation:
    """One configuration, with one sentence why; `spot` says whether its workers are best put on spot machines."""

    label: str
    num_workers: int
    spot: bool
    why: str


@dataclass(frozen=True, slots=True)
class PlanResult:
    """All of it; `to_json` is what --json prints.

    Attributes:
        env, command: what was asked for.
        target: the return to reach, None without one.
        rows: strategy by strategy, sizes growing.
        runs: the learned ones, seed by seed.
        saturates: by strategy, at which size it first wins less than half of what workers are added, and why.
        origins: where each number of the cluster is from.
        prices: date and source of the prices, and the machine.
        machine: where it was measured.
        recommendation: None where nothing can be.
    """

    env: str
    command: str
    target: float | None
    rows: list[Row]
    runs: list[LearnedRun]
    saturates: dict[str, str]
    origins: list[Origin]
    prices: dict[str, object]
    machine: dict[str, str]
    recommendation: Recommendation | None

    def to_json(self) -> dict[str, object]:
        """JSON values; what is infinite or not a number is null."""
        body = {"format": FORMAT, "qfleet_version": __version__, **dataclasses.asdict(self)}
        return {name: _finite(value) for name, value in body.items()}

    def strategies(self) -> list[str]:
        """Labels, in their order."""
        return list(dict.fromkeys(row.label for row in self.rows))

    def refused(self) -> list[tuple[str, str]]:
        """What cannot be and why, the sizes of a strategy that share a reason together."""
        sizes: dict[tuple[str, str], list[str]] = {}
        for row in self.rows:
            if row.why_not is not None:
                sizes.setdefault((row.label, row.why_not), []).append(f"{row.num_workers:,}")
        of_label = Counter(row.label for row in self.rows)
        return [
            (label if len(own) == of_label[label] else f"{label}, {', '.join(own)}", why)
            for (label, why), own in sizes.items()
        ]


def make_rows(
    cells: Sequence[Cell],
    timings: Mapping[tuple[str, int], Timing | str],
    runs: Sequence[LearnedRun],
    prices: Prices,
    machine: str | None,
    has_target: bool,
) -> list[Row]:
    """Rows from what was simulated; a string among `timings` is why it could not be."""
    rows: list[Row] = []
    base: dict[str, float] = {}
    for cell in cells:
        timing = timings.get(cell.key, cell.why_not or "not simulated")
        if isinstance(timing, str) or cell.config is None:
            rows.append(Row(*cell.key, why_not=cell.why_not or str(timing)))
            continue
        try:
            fleet = fleet_for(cell.config, timing, prices, machine)
        except UsageError as error:
            rows.append(Row(*cell.key, why_not=str(error)))
            continue
        alone = base.setdefault(cell.label, timing.samples / cell.num_workers)
        speedup = timing.samples / alone
        own = [run for run in runs if run.key == cell.key]
        learned = Learned.of(own) if own else None
        seconds = WORK / timing.env_steps
        if has_target:
            seconds = learned.seconds if learned is not None else math.inf
        cost = cost_of(fleet, seconds, prices.restart_seconds) if math.isfinite(seconds) else None
        efficiency = speedup / cell.num_workers
        rows.append(Row(*cell.key, None, timing, limit_of(timing), speedup, efficiency, fleet, learned, cost))
    front = pareto([row.cost for row in rows])
    return [dataclasses.replace(row, is_on_front=is_on) for row, is_on in zip(rows, front, strict=True)]


def fleet_for(config: RunConfig, timing: Timing, prices: Prices, machine: str | None) -> Fleet:
    """The machines of a configuration: the coordinator and whoever is no worker, then the workers.

    Raises:
        UsageError: a role does not fit on a machine.
    """
    strategy = config.strategy

    def number(name: str, default: float) -> float:
        return float(getattr(strategy, name, default))

    needs = Needs(
        num_workers=sum(share.number for kind, share in timing.shares.items() if kind in WORKERS),
        num_others=sum(share.number for kind, share in timing.shares.items() if kind not in WORKERS),
        worker_cpus=number("worker_cpus", 1.0),
        worker_gpus=number("worker_gpus", 0.0),
        other_gpus=number("learner_gpus", 0.0) * number("num_learners", 1.0),
        waits=waits_for_all(config),
    )
    return fleet_of(prices.choose(machine, needs.has_gpus), needs)


def waits_for_all(config: RunConfig) -> bool:
    """Whether the loss of one worker holds up all: by the wait rule, or because all average together."""
    if config.strategy.name in FREE_RUNNING:
        return False
    return str(getattr(config.strategy, "wait", "sync")) != "async"


def pareto(costs: Sequence[Cost | None]) -> list[bool]:
    """Who is on the front: nobody else is at least as fast and as cheap, and better in one of the two."""

    def beats(one: Cost, other: Cost) -> bool:
        is_no_worse = one.seconds <= other.seconds and one.least <= other.least
        return is_no_worse and (one.seconds < other.seconds or one.least < other.least)

    there = [cost for cost in costs if cost is not None]
    return [cost is not None and not any(beats(one, cost) for one in there) for cost in costs]


def first_limits(rows: Sequence[Row]) -> dict[str, str]:
    """By strategy: the first size of which twice as many workers are worth less than 1.5 times as much, and why."""
    found: dict[str, str] = {}
    for label in dict.fromkeys(row.label for row in rows):
        timed = [row for row in rows if row.label == label and row.timing is not None]
        found[label] = "not within the sizes planned"
        if not timed:
            found[label] = "cannot be planned"
        for row in timed:
            assert row.limit is not None
            if row.limit.name != NONE and (row.efficiency or 0.0) < 0.5:
                found[label] = f"{row.limit.name} at {row.num_workers:,}"
                break
    return found


def recommend(rows: Sequence[Row], target: float | None) -> Recommendation | None:
    """The configuration on the front with the least time x money.

    With a target, only those whose seeds have reached it most often; the one that would have been taken without that is
    named beside it.
    """
    everybody = able = [row for row in rows if row.cost is not None]
    if not able:
        return None
    if target is not None:
        most = max(_reached(row) for row in able)
        able = [row for row in able if _reached(row) == most]
    best = min(able, key=lambda row: _product(row.cost))
    assert best.cost is not None
    cost = best.cost
    is_spot = cost.spot_money is not None and cost.spot_money < cost.money
    fastest, cheapest = (
        min(able, key=lambda row: row.cost.seconds if row.cost else math.inf),
        min(able, key=lambda row: row.cost.least if row.cost else math.inf),
    )
    what = f"a return of {target:g}" if target is not None else f"{WORK:,} env steps"
    name = f"{best.label} with {best.num_workers:,} worker{'s' if best.num_workers != 1 else ''}"
    why = f"{name} comes to {what} in {time_text(cost.seconds)} for {money_text(cost.least)}, the least time x money"
    if fastest is not best and fastest.cost is not None:
        why += f"; the fastest ({fastest.label}, {fastest.num_workers:,}) takes {time_text(fastest.cost.seconds)} "
        why += f"and costs {fastest.cost.least / cost.least:.1f} times as much"
    elif cheapest is not best and cheapest.cost is not None:
        why += f"; the cheapest ({cheapest.label}, {cheapest.num_workers:,}) takes "
        why += f"{cheapest.cost.seconds / cost.seconds:.1f} times as long"
    tempting = min(everybody, key=lambda row: _product(row.cost))
    if tempting not in able and tempting.learned is not None and tempting.cost is not None:
        why += f"; {tempting.label}, {tempting.num_workers:,}, took {time_text(tempting.cost.seconds)}, but only with "
        why += f"{tempting.learned.num_reached} of {tempting.learned.num_runs} seeds"
    if target is None:
        why += "; time alone: how well it learns from a step was not looked at"
    return Recommendation(best.label, best.num_workers, is_spot, f"{why}.")


def time_text(seconds: float) -> str:
    """Seconds as they are read."""
    if not math.isfinite(seconds):
        return "never"
    if seconds < 120:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def money_text(money: float, currency: str = "$") -> str:
    """Money with two digits that count."""
    digits = 2 if money >= 1 else max(2, 1 - math.floor(math.log10(money)) if money > 0 else 2)
    return f"{currency}{money:,.{digits}f}"


def _reached(row: Row) -> float:
    return 0.0 if row.learned is None else row.learned.num_reached / row.learned.num_runs


def _product(cost: Cost | None) -> float:
    return math.inf if cost is None else cost.seconds * cost.least


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, MachineType):
        return _finite(value.model_dump())
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value
