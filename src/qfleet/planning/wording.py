"""How a plan's numbers are written, in the terminal and on the page alike. Floor 7."""

from __future__ import annotations

from qfleet.planning.results import WORK, PlanResult, Row, money_text, time_text

NOTHING = "-"
# What is shown of each row, in tables that fit into 80 columns.
SPEED = ("updates/s", "env steps/s", "speed-up", "efficiency", "lag")
LIMIT = ("limit", "at work")
MONEY = ("reached", "time", "money", "on spot", "machines")
MEANINGS = {
    "updates/s": "of parameters, per second of virtual time; an update of N synchronous workers is made of N batches",
    "env steps/s": "of all workers together",
    "speed-up": "samples trained on per second, against one worker of the same strategy (the smallest size, where one "
    "worker cannot be)",
    "efficiency": "speed-up by the number of workers",
    "lag": "versions that a push was behind when it was merged; without servers, that an actor's policy was behind",
    "limit": "what keeps it from going faster, and how busy that is; of round trips and stragglers: how workers wait",
    "at work": "each kind of role's mean share of its time at work",
    "reached": "seeds that reached the target within their budget",
    "time": "to the target, median over seeds; where none was asked for, of the work named above; * is on the front",
    "money": "of that time, on demand",
    "on spot": "the same with the workers on spot machines, the time that preemptions cost included",
    "machines": "for the coordinator, servers and learners + for workers alone",
}


def title_of(result: PlanResult) -> str:
    """What was planned, in a line."""
    what = f"to a return of {result.target:g}" if result.target is not None else f"of {WORK:,} env steps"
    return f"{result.env}: time and money {what}, simulated"


def heads(names: tuple[str, ...], result: PlanResult) -> list[str]:
    """Those of the columns that there are."""
    return [name for name in names if name != "reached" or result.target is not None]


def cell(row: Row, name: str) -> str:
    """One number of a row that was timed."""
    timing, limit, cost, learned = row.timing, row.limit, row.cost, row.learned
    assert timing is not None
    assert limit is not None
    if name == "time":
        if cost is None:
            return "never" if learned is not None else NOTHING
        return time_text(cost.seconds) + (" *" if row.is_on_front else "")
    if name in ("money", "on spot"):
        money = None if cost is None else cost.money if name == "money" else cost.spot_money
        return NOTHING if money is None else money_text(money)
    if name == "reached":
        return NOTHING if learned is None else f"{learned.num_reached} of {learned.num_runs}"
    texts = {
        "updates/s": f"{timing.updates:,.0f}" if timing.updates >= 10 else f"{timing.updates:.2f}",
        "env steps/s": f"{timing.env_steps:,.0f}",
        "speed-up": NOTHING if row.speedup is None else f"{row.speedup:,.1f}",
        "efficiency": NOTHING if row.efficiency is None else f"{row.efficiency:.0%}",
        "lag": NOTHING if timing.staleness is None else f"{timing.staleness:.1f}",
        "limit": f"{limit.name} {limit.share:.0%}",
        "at work": at_work(row),
        "machines": NOTHING if row.fleet is None else f"{row.fleet.num_head} + {row.fleet.num_worker:,}",
    }
    return texts[name]


def at_work(row: Row) -> str:
    """Each kind of role's part of the time at work."""
    assert row.timing is not None
    return ", ".join(f"{kind.removesuffix('-*')} {share.mean:.0%}" for kind, share in row.timing.shares.items())


def split_label(label: str) -> str:
    """One setting to a line leaves room for the numbers."""
    return label.replace(":", "\n:")
