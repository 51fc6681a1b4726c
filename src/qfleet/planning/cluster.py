"""The cluster that is planned for: a user's file, and what was measured for all that it leaves open.

The result is written in the format that `engine.cluster` reads, with each number's origin as a comment. Floor 7.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import tomli_w

from qfleet.placement.cluster_file import Cluster, ClusterFile, Compute, Link, Network
from qfleet.planning.calibration import Cost
from qfleet.planning.network import Transport


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a number came from: its name, the number as it is shown, and the source."""

    name: str
    value: str
    source: str


@dataclass(frozen=True, slots=True)
class PlannedCluster:
    """A cluster's file with the origin of each of its numbers."""

    file: ClusterFile
    origins: list[Origin]

    def to_toml(self) -> str:
        """As `--cluster` reads it."""
        head = ["# What calls and messages cost; read by --cluster and by engine.cluster (docs/simulation.md)."]
        head += [f"# {one.name}: {one.value}, {one.source}" for one in self.origins]
        values = self.file.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
        return "\n".join([*head, "", tomli_w.dumps(values)])

    @contextmanager
    def on_disk(self) -> Iterator[str]:
        """The name of its file, as engine.cluster takes it; the file is there for as long."""
        with TemporaryDirectory(prefix="qfleet-plan-") as folder:
            path = Path(folder) / "cluster.toml"
            path.write_text(self.to_toml(), "utf-8")
            yield str(path)


def put_together(
    given: ClusterFile | None,
    path: str | None,
    costs: Sequence[Cost],
    transport: Transport | None,
    links: tuple[Link, ...] = (),
) -> PlannedCluster:
    """The user's tables come first; measured ones fill in.

    Args:
        given, path: the user's file, None without one.
        costs: measured; of one role and method the first counts.
        transport: measured, or None where the file says it.
        links: measured; those of the file come before them.
    """
    origins: list[Origin] = []
    source = f"{path}"
    file = given or ClusterFile()
    origins += [Origin(f"{table.role} {table.method}", per_unit(table), source) for table in file.compute]
    found: dict[tuple[str, str], Cost] = {}
    for cost in costs:
        found.setdefault((cost.table.role, cost.table.method), cost)
    for cost in found.values():
        name = f"{cost.table.role} {cost.table.method}"
        origins.append(Origin(name, per_unit(cost.table), f"{cost.origin}, {cost.num_calls:,} calls"))
    changes: dict[str, object] = {"compute": (*file.compute, *(cost.table for cost in found.values()))}
    if links and not file.link:
        changes["link"] = links
        origins.append(Origin("mean of two ranks", f"{2e6 * (links[0].latency or 0.0):,.0f} us", "measured"))
    says_network = given is not None and "network" in given.model_fields_set
    if transport is not None and not says_network:
        changes["network"] = Network(latency=transport.latency, bandwidth=transport.bandwidth)
    network = changes.get("network", file.network)
    assert isinstance(network, Network)
    where = source if says_network else transport.origin if transport is not None else "default"
    origins.append(Origin("network latency", f"{1e6 * network.latency:,.0f} us", where))
    origins.append(Origin("network bandwidth", f"{network.bandwidth / 1e9:,.2f} GB/s", where))
    says_coordinator = given is not None and "coordinator_seconds" in given.cluster.model_fields_set
    if transport is not None and not says_coordinator:
        values = file.cluster.model_dump() | {"coordinator_seconds": transport.coordinator_seconds}
        changes["cluster"] = Cluster(**values)
    cluster = changes.get("cluster", file.cluster)
    assert isinstance(cluster, Cluster)
    where = source if says_coordinator else transport.coordinator_origin if transport is not None else "default"
    origins.append(Origin("coordinator", f"{1e6 * cluster.coordinator_seconds:,.0f} us an answer", where))
    return PlannedCluster(file.model_copy(update=changes), origins)


def per_unit(table: Compute) -> str:
    """Mean seconds of one unit of a cost, as it is shown."""
    text = f"{1e6 * mean_of(table):,.1f} us a {table.per.replace('_', ' ')}"
    if table.payload_seconds:
        text += f" + {1e6 * table.payload_seconds:,.1f} us a payload"
    return text


def mean_of(table: Compute) -> float:
    """The mean of a table's distribution, in seconds."""
    if table.distribution == "shifted_exponential":
        return (table.shift or 0.0) + (table.scale or 0.0)
    if table.distribution == "pareto":
        assert table.minimum is not None
        assert table.alpha is not None
        return table.minimum * table.alpha / (table.alpha - 1.0)
    if table.values is not None:
        return sum(table.values) / len(table.values)
    return table.seconds or 0.0
