"""The network of a simulated cluster: messages take a latency, and queue at the sender's and the receiver's port.

    sent -> sender's port free, bytes / bandwidth there -> latency -> receiver's port free, bytes / bandwidth there

The head of a message is under way while its tail still leaves, so that an idle port at each end costs the bytes once.
Requests and receipts are small: they take the latency and no port. A partition holds back what is sent across it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from qfleet.placement.cluster_file import ClusterFile
from qfleet.placement.traffic import Traffic

COORDINATOR = "coordinator"
At = Callable[..., None]  # at(time, function, *args)


@dataclass(slots=True)
class Port:
    """When a machine's port is free, outwards and inwards; and how many bytes have gone through it."""

    out_free: float = 0.0
    in_free: float = 0.0
    num_bytes_out: int = 0
    num_bytes_in: int = 0


@dataclass(frozen=True, slots=True)
class Partition:
    """Until `end` nothing passes between roles that match the one pattern and roles that match the other."""

    end: float
    one: str
    other: str

    def parts(self, first: str, second: str) -> bool:
        """Whether it is between these two."""
        return (fnmatchcase(first, self.one) and fnmatchcase(second, self.other)) or (
            fnmatchcase(second, self.one) and fnmatchcase(first, self.other)
        )


class VirtualNetwork:
    """Ports by role, and links between them.

    Args:
        file: the cluster's.
        at: schedules a function for a moment.
        traffic: counts what roles get from each other.

    Attributes:
        partitions: those that are on, or were.
    """

    def __init__(self, file: ClusterFile, at: At, traffic: Traffic | None = None) -> None:
        self.traffic = traffic or Traffic()
        self.file = file
        self.partitions: list[Partition] = []
        self.at = at
        self._ports: dict[str, Port] = {}
        self._links: dict[tuple[str, str], tuple[float, float]] = {}
        self._uniform = (file.network.latency, file.network.bandwidth)
        self._latency = None if file.link else file.network.latency  # where it is the same everywhere

    def link(self, first: str, second: str) -> tuple[float, float]:
        """Latency in seconds and bandwidth in bytes a second between two roles."""
        if not self.file.link:
            return self._uniform
        known = self._links.get((first, second))
        if known is None:
            known = self._links[first, second] = self._find(first, second)
        return known

    def passes_at(self, first: str, second: str, time: float) -> float:
        """When a message sent at `time` can leave: then, unless a partition holds it back."""
        if self.partitions:
            self.partitions = [one for one in self.partitions if one.end > time]
            for one in self.partitions:
                if one.parts(first, second):
                    time = max(time, one.end)
        return time

    def signal_at(self, first: str, second: str, time: float) -> float:
        """When a small message sent at `time` arrives."""
        if self._latency is not None and not self.partitions:
            return time + self._latency
        return self.passes_at(first, second, time) + self.link(first, second)[0]

    def send(
        self, time: float, source: str, target: str, num_bytes: int, deliver: Callable[..., None], *args: object
    ) -> None:
        """Send `num_bytes` at `time`; `deliver(*args)` is called when all of it has arrived."""
        latency, bandwidth = self.link(source, target)
        seconds = num_bytes / bandwidth
        port = self.port(source)
        start = max(time, port.out_free)
        port.out_free = start + seconds
        port.num_bytes_out += num_bytes
        self.port(target).num_bytes_in += num_bytes
        self.at(self.passes_at(source, target, start) + latency, self._come_in, target, seconds, deliver, args)

    def ring_seconds(self, names: Sequence[str], num_bytes: int) -> float:
        """A ring all-reduce: 2 (N - 1) steps, in each of which every member sends the N-th part to its neighbour.

        2 (N - 1) / N x bytes / bandwidth + 2 (N - 1) x latency, over the slowest link of the ring (Patarasuk and Yuan
        2009).
        """
        size = len(names)
        if size < 2:
            return 0.0
        if self.file.link:
            links = [self.link(name, names[(i + 1) % size]) for i, name in enumerate(names)]
            latency, bandwidth = max(link[0] for link in links), min(link[1] for link in links)
        else:
            latency, bandwidth = self._uniform
        return 2 * (size - 1) * (num_bytes / size / bandwidth + latency)

    def ring_passes_at(self, names: Sequence[str], time: float) -> float:
        """When a ring may begin: a partition through it holds it back."""
        if self.partitions:
            for i, name in enumerate(names):
                time = self.passes_at(name, names[(i + 1) % len(names)], time)
        return time

    def port(self, name: str) -> Port:
        """A role's port."""
        port = self._ports.get(name)
        if port is None:
            port = self._ports[name] = Port()
        return port

    def drop(self, name: str) -> None:
        """A role is gone for good."""
        self._ports.pop(name, None)

    def _come_in(
        self, time: float, target: str, seconds: float, deliver: Callable[..., None], args: tuple[object, ...]
    ) -> None:
        port = self.port(target)
        end = port.in_free = max(time, port.in_free) + seconds
        self.at(end, _deliver, deliver, args)

    def _find(self, first: str, second: str) -> tuple[float, float]:
        latency, bandwidth = self._uniform
        for link in self.file.link:
            one, other = link.between
            if Partition(0.0, one, other).parts(first, second):
                return (
                    latency if link.latency is None else link.latency,
                    bandwidth if link.bandwidth is None else link.bandwidth,
                )
        return latency, bandwidth


def _deliver(time: float, deliver: Callable[..., None], args: tuple[object, ...]) -> None:
    deliver(time, *args)
