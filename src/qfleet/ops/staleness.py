"""When a worker may start its next clock, how much a late update weighs, and how far a policy may lag: pure rules.

Ho et al. (2013), More Effective Distributed ML via a Stale Synchronous Parallel Parameter Server, section 3; Zhang et
al. (2016), Staleness-aware Async-SGD for Distributed Deep Learning.
"""

from __future__ import annotations

from collections.abc import Sequence


def may_start(clock: int, slowest_clock: int, bound: int | None) -> bool:
    """Whether a worker may start its next clock: while it is at most `bound` clocks ahead of the slowest live one.

    A clock is one pull, computation and push; it is finished once the server has the push, merged or waiting for the
    rest of its set. So a worker leads by `bound + 1` finished clocks at most, and there it waits; and the parameters
    that it pulls hold the first `clock - bound` pushes of every live worker, at least.

    Args:
        clock: clocks that this worker has finished.
        slowest_clock: the least number of clocks that any live worker has finished, this one included.
        bound: 0 = synchronous, all start a clock together; k = stale synchronous; None = asynchronous, always.

    Raises:
        ValueError: the bound is negative, or the worker is slower than the slowest.
    """
    if bound is not None and bound < 0:
        raise ValueError(f"the staleness bound is {bound}; it must be 0 or more, or None for no bound")
    if clock < slowest_clock:
        raise ValueError(f"a live worker at clock {clock} is behind the slowest, {slowest_clock}: count it as well")
    return bound is None or clock - slowest_clock <= bound


def staleness_scale(staleness: int) -> float:
    """1 / (1 + staleness), what a late update is multiplied by.

    Staleness is the server's version when the update arrives minus the version that it was computed from, so an update
    of the current parameters counts whole. Zhang et al. (2016) divide by the staleness itself, from 1 on.

    Raises:
        ValueError: the staleness is negative: the update claims a version that the server has not reached.
    """
    if staleness < 0:
        raise ValueError(f"staleness is {staleness}: an update of a version that is not there yet")
    return 1.0 / (1.0 + staleness)


def lag_is_bounded(versions: Sequence[int], next_version: int, batch_size: int, bound: int) -> bool:
    """Whether trajectories that these versions have acted for can all be trained on at a policy lag of `bound` at most.

    A trajectory's policy lag is the version that the learner trains on it at minus the version that acted: 0 is
    on-policy. The learner takes the oldest first, so that the j-th oldest, counted from 0, meets version
    next_version + j // batch_size; no other order keeps a bound that this one does not (earliest deadline first).

    Args:
        versions: of all trajectories that are not trained on yet, unfinished ones too; in any order.
        next_version: the one that the learner makes its next update at.
        batch_size: trajectories in one update.
        bound: 0 = all of a batch are by the very parameters that are updated with it.
    """
    return all(next_version + j // batch_size - acted <= bound for j, acted in enumerate(sorted(versions)))
