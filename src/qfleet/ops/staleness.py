"""When a worker may start its next clock, and how much a late update weighs: pure rules of the parameter server.

Ho et al. (2013), More Effective Distributed ML via a Stale Synchronous Parallel Parameter Server, section 3; Zhang et
al. (2016), Staleness-aware Async-SGD for Distributed Deep Learning.
"""

from __future__ import annotations


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
