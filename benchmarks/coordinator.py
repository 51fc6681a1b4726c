"""What a coordinator costs per event, with roles that do nothing, from 10 roles to 1,000.

    python benchmarks/coordinator.py

On the inline engine all but the roles' empty methods is coordination: engine queue, strategy, receipts, counters.
An event is one completed call. Asked: under 50 microseconds, and no more at 1,000 roles than at 10. Microseconds also
hold what a larger working set costs the processor's caches; function calls per event say whether more is done.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

from harness import Spread, markdown_page, markdown_table, write_page
from qfleet.algos.dqn import Config as AlgoConfig
from qfleet.config import ReplayConfig
from qfleet.engines.inline import Config as EngineConfig
from qfleet.engines.inline import Engine
from qfleet.envs.config import EnvConfig
from qfleet.networks.torso import NetworkConfig
from qfleet.roles.blueprint import Blueprint
from qfleet.strategies import parameter_server, sync_groups
from qfleet.strategies.base import Control
from qfleet.types import EnvSpec, Receipt, Reply

RULES: dict[str, tuple[Any, dict[str, Any]]] = {
    "parameter_server, sync": (parameter_server, {"wait": "sync"}),
    "parameter_server, async": (parameter_server, {"wait": "async"}),
    "parameter_server, ssp (bound 2)": (parameter_server, {"wait": "ssp", "bound": 2}),
    "sync_groups (5 groups)": (sync_groups, {"num_groups": 5}),
}


class EmptyWorker:
    def __init__(self, *args: object) -> None:
        self.collected = Receipt(num_env_steps=4, num_inserted=4)
        self.pushed = Reply(Receipt(num_samples=4), None)

    def collect_with(self, *args: object) -> Receipt:
        return Receipt(num_env_steps=4, num_inserted=4)

    def gradient(self, *args: object) -> Reply:
        return self.pushed


class EmptyServer:
    def __init__(self, *args: object) -> None:
        self.version = 0

    def publish(self) -> Reply:
        return Reply(Receipt(version=self.version, metrics={"target_version": 0.0}), None)

    def update(self, *args: object) -> Reply:
        self.version += 1
        return self.publish()


def blueprint(num_workers: int) -> Blueprint:
    return Blueprint(
        env=EnvConfig(id="none"),
        env_factory=None,
        spec=EnvSpec("none", (2,), "float32", 2),
        algo_name="dqn",
        algo=AlgoConfig(batch_size=4),
        network=NetworkConfig(),
        replay=ReplayConfig(capacity=10**6, min_transitions=num_workers, samples_per_insert=1.0),
        seed=0,
    )


def run_events(
    name: str, num_workers: int, seed: int, num_events: int, watch: Callable[[], Callable[[], float]]
) -> float:
    """What `watch` measures from the fourth turn of each worker on, per completed call."""
    module, fields = RULES[name]
    engine = Engine(EngineConfig(), seed)
    control = Control(checkpoint_folder="unused")
    config = module.Config(num_workers=num_workers, **fields)
    events = module.run(engine, blueprint(num_workers), config, control)
    while engine.now() < 4 * num_workers:  # spawning, and a first turn for everybody
        next(events)
    before, measured = engine.now(), watch()
    while engine.now() - before < num_events:
        next(events)
    total = measured()
    completed = engine.now() - before
    events.close()
    return total / completed


def microseconds() -> Callable[[], float]:
    """A stopwatch."""
    started = time.perf_counter()
    return lambda: (time.perf_counter() - started) * 1e6


def function_calls() -> Callable[[], float]:
    """A counter of calls of Python and C functions."""
    count = 0

    def profile(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    def stop() -> float:
        sys.setprofile(None)
        return float(count)

    sys.setprofile(profile)
    return stop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--roles", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--events", type=int, default=30_000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    roster, servers = "qfleet.strategies.base.roster.GradientWorker", "qfleet.strategies.base.servers.ParameterServer"
    rows = []
    with mock.patch(roster, EmptyWorker), mock.patch(servers, EmptyServer):
        for name in RULES:
            cells = []
            for num_roles in options.roles:
                values = [
                    run_events(name, num_roles, seed, options.events, microseconds) for seed in range(options.seeds)
                ]
                spread = Spread.of(values)
                assert spread is not None
                cells.append((statistics.median(values), spread.text()))
            calls = [run_events(name, num_roles, 0, options.events, function_calls) for num_roles in options.roles]
            growth = f"{cells[-1][0] / cells[0][0]:.2f}"
            rows.append([name, *(text for _, text in cells), growth, " / ".join(f"{value:.1f}" for value in calls)])
    heads = ["microseconds per event, min / median / max", *(f"{count:,} workers" for count in options.roles), "growth"]
    heads.append("function calls per event")
    notes = [
        f"{options.seeds} seeds of {options.events:,} completed calls each; the roles do nothing.",
        "Growth: most workers' median over the fewest'. Function calls: of Python and C, one seed, for each column.",
    ]
    write_page(markdown_page("Coordinator", sys.executable, markdown_table(heads, rows), notes), options.out)


if __name__ == "__main__":
    main()
