"""Rings of a simulated cluster: when the members of an all-reduce have their next mean.

Beside virtual_network.py, which knows what a ring's messages take; here are the steps that the members make before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from qfleet.placement.in_process import Group
from qfleet.placement.virtual_calls import VirtualCall
from qfleet.placement.virtual_clock import VirtualClock
from qfleet.placement.virtual_cores import VirtualCores
from qfleet.placement.virtual_network import VirtualNetwork

# A yield of less than this share of the largest one of its method is no step of its own: only its ring is charged.
SMALL_SHARE = 0.125


Met = Callable[[float, Group, list[torch.Tensor]], None]  # met(time, group, tensors): the mean has gone round


@dataclass(slots=True, eq=False)
class Step:
    """A group's step on shared cores: what is averaged, when the last member was through so far, how many are not."""

    group: Group
    tensors: list[torch.Tensor]
    last: float
    num_missing: int


class Rings:
    """Steps of members, and the ring after the last of them.

    Args:
        clock, network: the cluster's.
        cores: those that roles share; None where each has its own.
        met: called when all members have the mean.
    """

    def __init__(self, clock: VirtualClock, network: VirtualNetwork, cores: VirtualCores | None, met: Met) -> None:
        self._clock = clock
        self._network = network
        self._cores = cores
        self._met = met
        self._largest: dict[str, int] = {}  # bytes of the largest tensor that a method's generators have yielded

    def begin(self, group: Group, tensors: list[torch.Tensor]) -> None:
        """All members have just yielded `tensors`: their steps, and then the ring."""
        last, num_bytes = self._clock.time, _num_bytes(tensors)
        calls = member_calls(group)
        method = calls[0].public.method
        is_step = num_bytes >= SMALL_SHARE * self._largest.get(method, 0)
        self._largest[method] = max(num_bytes, self._largest.get(method, 0))
        step = Step(group, tensors, last, len(calls)) if is_step and self._cores is not None else None
        time = last
        for call in calls if is_step else ():
            seconds = call.home.costs.draw(method, time) * call.home.slowness(time)
            call.busy += seconds
            if step is None or self._cores is None:
                last = max(last, call.ready + seconds)
            else:
                self._cores.work(call.ready, call.home.name, seconds, self._stepped, step)
        if step is None:
            self._go_round(group, tensors, last)

    def _stepped(self, time: float, step: Step) -> None:
        """A member is through with its step."""
        step.num_missing -= 1
        step.last = max(step.last, time)
        if not step.num_missing:
            self._go_round(step.group, step.tensors, step.last)

    def _go_round(self, group: Group, tensors: list[torch.Tensor], time: float) -> None:
        begins = self._network.ring_passes_at(group.names, time)
        self._clock.at(begins + self._network.ring_seconds(group.names, _num_bytes(tensors)), self._met, group, tensors)


def _num_bytes(tensors: list[torch.Tensor]) -> int:
    return max(tensor.nbytes for tensor in tensors)


def member_calls(group: Group) -> list[VirtualCall]:
    """The calls of those who have arrived."""
    return [call for call, _ in group.members.values() if isinstance(call, VirtualCall)]
