"""Where a run's time goes, and what to scale next: shares of the roles' capacity, from the seconds in their receipts.

    capacity = elapsed seconds x roles that reported        share of waiting = 1 - (all busy seconds) / capacity

Where calls run one at a time (inline) the capacity is that of one role. Floor 6.
"""

from __future__ import annotations

from collections.abc import Mapping

WAITING = "waiting"
ADVICE = {
    "environment": "scale the environments next: more workers, or a higher env.num_envs",
    "inference": "scale acting next: a higher env.num_envs makes larger batches, more workers share them",
    "replay": "scale the replay next: more shards where the strategy has any, or a smaller algo.batch_size",
    "learner": "scale learning next: more workers or learners to share it, a GPU, or a lower replay.samples_per_insert",
    "server": "scale the parameter servers next: a higher strategy.num_servers, or compressed pushes",
    WAITING: "roles mostly wait for each other: use fewer of them, or rules that wait less",
}


def time_shares(seconds: Mapping[str, float], elapsed: float, num_roles: int) -> dict[str, float]:
    """Share of the capacity that each activity took, and "waiting"; they add up to 1, empty where nothing is known.

    Args:
        seconds: busy seconds by activity, over all roles.
        elapsed: seconds of training.
        num_roles: how many roles could be busy at once.
    """
    busy = sum(seconds.values())
    # Clocks of several machines and calls still under way may add up to a little more than there is.
    capacity = max(elapsed * num_roles, busy)
    if capacity <= 0.0:
        return {}
    return {**{name: value / capacity for name, value in seconds.items()}, WAITING: 1.0 - busy / capacity}


def bottleneck(shares: Mapping[str, float]) -> str | None:
    """One sentence: what takes most of the time, and what to scale next; None where nothing is known.

    Waiting is what to look at only where it is more than half: what the busy half does is what the others wait for.
    """
    if not shares:
        return None
    worst = max((name for name in shares if name != WAITING), key=lambda name: shares[name], default=WAITING)
    if shares.get(WAITING, 0.0) > 0.5:
        worst = WAITING
    advice = ADVICE.get(worst, f"make {worst} faster, or give it more roles")
    return f"{worst} takes {shares[worst]:.0%} of the time; {advice}"
