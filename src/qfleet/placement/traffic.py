"""How much data roles get from each other: payloads that go from one to another, and what rings of them exchange.

Counted as if every role had a machine of its own: a payload goes once to each role that takes it, whatever memory they
share in fact. Requests, receipts and arguments that are no payloads are small and left out; so is evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence

from qfleet.engines.base import Future, Part
from qfleet.placement.payload_size import part_sizes

LANE = "training"


class Traffic:
    """What an engine counts.

    Attributes:
        num_bytes: since the engine was made.
    """

    def __init__(self) -> None:
        self.num_bytes = 0

    def pass_on(self, role: str, args: Sequence[object], lane: str) -> None:
        """Count the payloads among a call's arguments that its role has not had before."""
        if lane != LANE:
            return
        for argument in args:
            index, source = (argument.index, argument.future) if isinstance(argument, Part) else (-1, argument)
            if not isinstance(source, Future) or source.receipt is None or source.role.name == role:
                continue
            if source.takers is None:
                source.takers = set()
            if (role, index) not in source.takers:
                source.takers.add((role, index))
                sizes = sizes_of(source)
                self.num_bytes += sum(sizes) if index < 0 else sizes[index]

    def ring(self, num_bytes: int, num_members: int, num_counted: int = 1) -> None:
        """Count a mean of `num_bytes` over `num_members`: each of the `num_counted` sends 2 (N - 1) / N of them."""
        self.num_bytes += 2 * (num_members - 1) * num_bytes * num_counted // num_members


def sizes_of(future: Future) -> tuple[int, ...]:
    """Bytes of each part of a completed call's payload; found out once."""
    if future.sizes is None:
        future.sizes = part_sizes(future.payload, future.num_parts)
    return future.sizes
