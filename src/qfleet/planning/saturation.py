"""What keeps a configuration from going faster: who is busiest, and whom the workers wait for. Floor 7."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qfleet.placement.virtual_network import COORDINATOR
from qfleet.planning.timing import Share, Timing

# Workers that are at work for so much of their time are what limits a run: more of them make it faster.
BUSY = 0.85
# A shared role that is at work for so much of its time, while workers wait, is what they wait for: between two of its
# calls lies a round trip, so that it never comes near to 1.
SHARED = 0.5
STRAGGLING = 0.75  # the least busy worker's part of the busiest one's, below which one holds up the others
WORKERS = ("worker-*", "actor-*")
NAMES = {"server-*": "server", "learner-*": "learner", "shard-*": "replay shard"}
NONE, ROUND_TRIPS, STRAGGLER = "workers", "round trips", "straggler"


@dataclass(frozen=True, slots=True)
class Limit:
    """What limits a configuration.

    Attributes:
        name: "workers" where nothing is saturated; "server compute", "server bandwidth", "learner compute",
            "coordinator", "straggler" and the like; "round trips" where all wait for messages and for each other.
        share: how much of its time it is busy, from 0 to 1; of round trips and stragglers, how much the workers wait.
    """

    name: str
    share: float


def limit_of(timing: Timing) -> Limit:
    """The first of: workers at work; the busiest of what they share; one slow worker; messages and turns."""
    workers = _workers(timing.shares)
    if workers is not None and workers.mean >= BUSY:
        return Limit(NONE, workers.mean)
    shared = [*_shared(timing.shares)]
    if workers is not None:
        shared.append(Limit("worker bandwidth", max(workers.bytes_in, workers.bytes_out)))
    busiest = max(shared, key=lambda limit: limit.share)
    if busiest.share >= SHARED:
        return busiest
    if workers is None:
        return Limit(NONE, 1.0)
    if workers.number > 1 and workers.highest >= SHARED and workers.lowest < STRAGGLING * workers.highest:
        return Limit(STRAGGLER, 1.0 - workers.mean)
    return Limit(ROUND_TRIPS, 1.0 - workers.mean)


def _workers(shares: Mapping[str, Share]) -> Share | None:
    return next((shares[kind] for kind in WORKERS if kind in shares), None)


def _shared(shares: Mapping[str, Share]) -> list[Limit]:
    found = [Limit(COORDINATOR, shares[COORDINATOR].mean)]
    for kind, share in shares.items():
        if kind in WORKERS or kind == COORDINATOR:
            continue
        name = NAMES.get(kind, kind.removesuffix("-*"))
        found.append(Limit(f"{name} compute", share.highest))
        found.append(Limit(f"{name} bandwidth", max(share.bytes_in, share.bytes_out)))
    return found
