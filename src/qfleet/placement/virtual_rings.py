"""Rings of a simulated cluster: when the members of an all-reduce have their next mean.

Beside virtual_network.py, which knows what a ring's messages take; here are the steps that the members make before.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from qfleet.placement.in_process import Group
from qfleet.placement.virtual_calls import VirtualCall
from qfleet.placement.virtual_clock import VirtualClock
from qfleet.placement.virtual_network import VirtualNetwork

# A yield of less than this share of the largest one of its method is no step of its own: only its ring is charged.
SMALL_SHARE = 0.125


class Rings:
    """Steps of members, and the ring after the last of them.

    Args:
        clock, network: the cluster's.
    """

    def __init__(self, clock: VirtualClock, network: VirtualNetwork) -> None:
        self._clock = clock
        self._network = network
        self._largest: dict[str, int] = {}  # bytes of the largest tensor that a method's generators have yielded

    def end(self, group: Group, tensors: Sequence[torch.Tensor]) -> float:
        """When all members, which have just yielded `tensors`, have made their steps and the mean has gone round."""
        time, num_bytes = self._clock.time, max(tensor.nbytes for tensor in tensors)
        calls = member_calls(group)
        method = calls[0].public.method
        is_step = num_bytes >= SMALL_SHARE * self._largest.get(method, 0)
        self._largest[method] = max(num_bytes, self._largest.get(method, 0))
        last = time
        for call in calls if is_step else ():
            seconds = call.home.costs.draw(method, time) * call.home.slowness(time)
            call.busy += seconds
            last = max(last, call.ready + seconds)
        begins = self._network.ring_passes_at(group.names, last)
        return begins + self._network.ring_seconds(group.names, num_bytes)


def member_calls(group: Group) -> list[VirtualCall]:
    """The calls of those who have arrived."""
    return [call for call, _ in group.members.values() if isinstance(call, VirtualCall)]
