"""Where a run's time goes, and what to scale next: shares of the roles' capacity, from the seconds in their receipts.

    capacity = elapsed seconds x roles that reported        share of waiting = 1 - (all busy seconds) / capacity

Where calls run one at a time (inline) the capacity is that of one role and the rest is the coordinator's. Floor 6.
"""

from __future__ import annotations

from collections.abc import Mapping

WAITING, COORDINATOR = "waiting", "coordinator"
ADVICE = {
    "environment": "scale environments next: more workers, or a higher env.num_envs",
    "inference": "scale acting next: more workers, or a higher env.num_envs for larger batches",
    "replay": "scale replay next: more shards or workers that share it",
    "learner": "scale learning next: more workers or learners that share it, or a GPU",
    "server": "scale the servers next: a higher strategy.num_servers, or compressed pushes",
    WAITING: "use fewer roles, or rules that wait less",
    COORDINATOR: "give each call more to do: a higher env.num_envs, or larger batches",
}


def time_shares(seconds: Mapping[str, float], elapsed: float, num_roles: int, is_concurrent: bool) -> dict[str, float]:
    """Share of the capacity that each activity took, and the rest; they add up to 1, empty where nothing is known.

    Args:
        seconds: busy seconds by activity, over all roles.
        elapsed: seconds of training.
        num_roles: how many roles reported.
        is_concurrent: whether they could be busy at once; the rest is then "waiting", else "coordinator".
    """
    busy = sum(seconds.values())
    # Clocks of several machines and calls still under way may add up to a little more than there is.
    capacity = max(elapsed * (num_roles if is_concurrent else 1), busy)
    if capacity <= 0.0:
        return {}
    return {
        **{name: value / capacity for name, value in seconds.items()},
        (WAITING if is_concurrent else COORDINATOR): 1.0 - busy / capacity,
    }


def bottleneck(shares: Mapping[str, float]) -> str | None:
    """One sentence: what takes most of the time, and what to scale next; None where nothing is known.

    The rest is what to look at only where it is more than half: else what the busy do is what the others wait for.
    """
    if not shares:
        return None
    rest = WAITING if WAITING in shares else COORDINATOR
    worst = max((name for name in shares if name != rest), key=lambda name: shares[name], default=rest)
    if shares.get(rest, 0.0) > 0.5:
        worst = rest
    advice = ADVICE.get(worst, f"give {worst} more roles, or less to do")
    return f"{worst} takes {shares[worst]:.0%} of the time; {advice}"
