"""What a simulated cluster costs: memory and wall clock a call, at 10 to 10,000 workers, with gradients and without.

    python benchmarks/simulated_cluster.py                        # 10, 100, 1000 and 10,000 workers, each in a process
    python benchmarks/simulated_cluster.py --workers 1000 --compute real

An asynchronous parameter server on CartPole-v1: 64-64 network, batches of 32, one environment a worker. Calls are those
of workers and servers alike; the warm-up, in which replays fill, is not timed.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from qfleet.envs.make import probe_spec
from qfleet.experiment import load_engine
from qfleet.plugins import load_plugin
from qfleet.policy import make_blueprint
from qfleet.recipe import find_recipe
from qfleet.run_config import build_config
from qfleet.strategies.base import Control

SIZES = {"real": (10, 100, 1000, 10_000), "none": (10, 100, 1000, 10_000, 30_000)}
SETTINGS: dict[str, Any] = {
    "device": "cpu",
    "strategy": "parameter_server",
    "strategy.wait": "async",
    "engine": "sim",
    "env.num_envs": 1,
    "network.hidden": [64, 64],
    "algo.batch_size": 32,
    "replay.sampler": "uniform",
    "replay.samples_per_insert": 32.0,
}


def measure(num_workers: int, compute: str, num_calls: int, repeats: int) -> dict[str, Any]:
    """One size, in this process."""
    torch.set_num_threads(1)
    changes = {
        **SETTINGS,
        "env.id": "CartPole-v1",
        "strategy.num_workers": num_workers,
        "engine.compute": compute,
        "replay.capacity": 128 * num_workers,
        "replay.min_transitions": 32 * num_workers,
    }
    config = build_config(find_recipe("vector").values, list(changes.items()))
    engine: Any = load_engine(config, Path())
    blueprint = make_blueprint(config, probe_spec(config.env, None), "cpu")
    control = Control("unused")
    before = memory()
    started = time.perf_counter()
    events = load_plugin("strategy", "parameter_server").run(engine, blueprint, config.strategy, control)
    next(events)
    spawned = time.perf_counter() - started
    while control.counters.num_updates < num_workers // 10 + 1:
        next(events)
    rates = []
    for _ in range(repeats):
        first, started = engine.num_calls, time.perf_counter()
        while engine.num_calls - first < num_calls:
            next(events)
        rates.append((engine.num_calls - first) / (time.perf_counter() - started))
    engine.close()
    return {
        "workers": num_workers,
        "compute": compute,
        "calls_per_second": statistics.median(rates),
        "lowest": min(rates),
        "highest": max(rates),
        "spawn_seconds": spawned,
        "gib": memory(),
        "kib_per_worker": (memory() - before) * 2**20 / num_workers,
    }


def memory() -> float:
    """GiB of this process at its largest."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--compute", choices=["real", "none"])
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.json:
        print(json.dumps(measure(args.workers, args.compute, args.calls, args.repeats)))
        return
    print(
        f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}"
    )
    print("command: " + " ".join(sys.argv))
    print("| compute | workers | calls/s (lowest to highest) | us a call | GiB | KiB a worker | seconds to build |")
    print("|---|---|---|---|---|---|---|")
    for compute in [args.compute] if args.compute else ["real", "none"]:
        for workers in [args.workers] if args.workers else SIZES[compute]:
            own = [__file__, "--json", "--workers", str(workers), "--compute", compute]
            own += ["--calls", str(args.calls), "--repeats", str(args.repeats)]
            output = subprocess.run([sys.executable, *own], check=True, capture_output=True, text=True).stdout
            row = json.loads(output)
            rate = row["calls_per_second"]
            print(
                f"| {compute} | {workers:,} | {rate:,.0f} ({row['lowest']:,.0f} to {row['highest']:,.0f}) "
                f"| {1e6 / rate:,.0f} | {row['gib']:.2f} | {row['kib_per_worker']:,.0f} | {row['spawn_seconds']:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
