"""How a plan's numbers are written, in the terminal and on the page alike. Floor 7."""

from __future__ import annotations

from qfleet.planning.results import WORK, PlanResult, Row, money_text, time_text

NOTHING = "-"


def title_of(result: PlanResult) -> str:
    """What was planned, in a line."""
    what = f"to a return of {result.target:g}" if result.target is not None else f"of {WORK:,} env steps"
    return f"{result.env}: time and money {what}, simulated"


def columns_of(result: PlanResult) -> list[str]:
    """Heads of the table."""
    names = ["strategy", "workers", "updates/s", "env steps/s", "speed-up", "efficiency", "lag", "busy", "limit"]
    names += ["reached"] if result.target is not None else []
    return [*names, "time", "money", "on spot"]


def cells_of(row: Row, result: PlanResult) -> list[str]:
    """A row that was timed."""
    timing, limit, cost, learned = row.timing, row.limit, row.cost, row.learned
    assert timing is not None
    assert limit is not None
    cells = [
        row.label,
        f"{row.num_workers:,}",
        f"{timing.updates:,.0f}" if timing.updates >= 10 else f"{timing.updates:.2f}",
        f"{timing.env_steps:,.0f}",
        NOTHING if row.speedup is None else f"{row.speedup:,.1f}",
        NOTHING if row.efficiency is None else f"{row.efficiency:.0%}",
        NOTHING if timing.staleness is None else f"{timing.staleness:.1f}",
        busy(row),
        f"{limit.name} {limit.share:.0%}",
    ]
    if result.target is not None:
        cells.append(NOTHING if learned is None else f"{learned.num_reached} of {learned.num_runs}")
    time = NOTHING if cost is None else time_text(cost.seconds)
    if cost is None and learned is not None:
        time = "never"
    money = NOTHING if cost is None else money_text(cost.money)
    spot = NOTHING if cost is None or cost.spot_money is None else money_text(cost.spot_money)
    mark = " *" if row.is_on_front else ""
    return [*cells, time, money + mark, spot]


def busy(row: Row) -> str:
    """Each kind of role's part of the time at work, in a few letters."""
    assert row.timing is not None
    return " ".join(f"{kind[0]}{share.mean * 100:.0f}" for kind, share in row.timing.shares.items())
