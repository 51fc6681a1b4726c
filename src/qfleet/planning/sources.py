"""Where the costs of a plan come from: a user's file, a past run, or this machine, measured. Floor 7."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from qfleet.errors import UsageError
from qfleet.placement.cluster_file import ClusterFile, Link, read_cluster
from qfleet.planning.calibration import Cost, calibrate
from qfleet.planning.cluster import PlannedCluster, put_together
from qfleet.planning.exchange import measure_exchange
from qfleet.planning.grid import Grid, of_size
from qfleet.planning.network import Transport, measure_loopback
from qfleet.planning.past_run import costs_of_run
from qfleet.planning.processes import fit, local_cluster, measure_window, num_cores
from qfleet.plugins import load_plugin
from qfleet.policy import make_blueprint
from qfleet.run_config import change_config

Say = Callable[[str], None]
WINDOW_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Sources:
    """Where costs come from.

    Attributes:
        cluster: the user's file.
        run: a past run's directory.
        engine: on which what is missing is measured.
    """

    cluster: str | None = None
    run: Path | None = None
    engine: str = "inline"


def find_costs(grid: Grid, sources: Sources, say: Say) -> PlannedCluster:
    """The cluster to plan for. A file that has [[compute]] tables is taken at its word, else calls are measured.

    Raises:
        QfleetError: the file or the run is wrong, or nothing could be measured.
    """
    given = read_file(sources.cluster)
    if given is not None and given.compute:
        return put_together(given, sources.cluster, [], None)
    if sources.run is not None:
        return put_together(given, sources.cluster, costs_of_run(sources.run), None)
    has_processes = not getattr(load_plugin("engine", sources.engine).Engine, "is_one_process", True)
    with TemporaryDirectory(prefix="qfleet-plan-") as folder:
        if has_processes:
            costs, transport, links = _measure_processes(grid, sources.engine, Path(folder), say)
        else:
            costs, transport = _measure_roles(grid, sources.engine, Path(folder), say)
            links = ()
    return put_together(given, sources.cluster, costs, transport, links)


def read_file(path: str | None) -> ClusterFile | None:
    """The user's file.

    Raises:
        UsageError: naming the option.
    """
    if path is None:
        return None
    try:
        return read_cluster(path)
    except UsageError as error:
        raise UsageError(str(error).replace("engine.cluster = ", "--cluster ")) from None


def _measure_roles(grid: Grid, engine: str, folder: Path, say: Say) -> tuple[list[Cost], Transport]:
    """Methods alone, in this process; messages over the loopback."""
    costs: list[Cost] = []
    thinking = []
    for label, config in grid.calibrating():
        say(f"measuring {label} with 1 worker on {engine}")
        measured = calibrate(change_config(config, [("engine.name", engine)]), grid.spec, folder, label)
        costs += measured.costs
        thinking.append(measured.coordinator_seconds)
    transport = dataclasses.replace(
        measure_loopback(),
        coordinator_seconds=_rounded(statistics.median(thinking)),
        coordinator_origin=f"measured ({engine}), median of {len(thinking)} strategies",
    )
    return costs, transport


def _measure_processes(
    grid: Grid, engine: str, folder: Path, say: Say
) -> tuple[list[Cost], Transport, tuple[Link, ...]]:
    """Calls with all that the engine adds to them: see processes.py."""
    costs: list[Cost] = []
    found: list[ClusterFile] = []
    bandwidth = measure_loopback().bandwidth
    pairs = grid.calibrating()
    say(f"measuring what two processes take for a mean and for a payload on {engine}")
    first = change_config(pairs[0][1], [("engine.name", engine)])
    size = make_blueprint(first, grid.spec, "cpu").build_network(trainable=False).num_parameters
    exchange = measure_exchange(first, size, folder, num_cores())
    for label, config in pairs:
        say(f"measuring {label} with 1 worker on {engine}")
        inline = calibrate(change_config(config, [("engine.name", "inline")]), grid.spec, folder, label)
        window = measure_window(change_config(config, [("engine.name", engine)]), grid.spec, folder, WINDOW_SECONDS)
        file, _, _ = fit(
            of_size(config, 1),
            grid.spec,
            window.num_updates / window.seconds,
            # The loop binds them anew, and the fit is over by then.
            lambda latency, part, i=inline, w=window: local_cluster(i, w, latency, part, bandwidth, exchange),  # type: ignore[misc]
        )
        found.append(file)
        numbers: dict[tuple[str, str], int] = {
            (one.table.role, one.table.method): one.num_calls for one in inline.costs
        }
        origin = f"measured ({label}, {engine}, CPU seconds of its process)"
        costs += [Cost(table, numbers[table.role, table.method], origin) for table in file.compute]
    transport = Transport(
        _rounded(statistics.median(file.network.latency for file in found)),
        bandwidth,
        f"measured ({engine}; bandwidth: loopback)",
        _rounded(statistics.median(file.cluster.coordinator_seconds for file in found)),
        f"measured ({engine}), median of {len(found)} strategies",
    )
    return costs, transport, found[0].link


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")
