"""What Ray alone leaves of two workers' computing when each of their steps sends 280 KB to a third process and back.

The pattern of an asynchronous parameter server without qfleet: two actors multiply matrices for some milliseconds and
return a gradient's worth of floats, a third adds it to its own and returns that, the driver passes references on. What
it reaches, of the same two actors left alone, bounds what any strategy reaches that makes two Ray calls per update.

    python benchmarks/bare_ray.py --repeats 3
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import time
from typing import Any

import numpy as np
import ray
import torch

from harness import hardware_line, versions_line

NUM_WORKERS = 2
NUM_PARAMETERS = 70_000
INLINE_BYTES = 4_000_000  # above it a value goes through the object store; Ray's own limit is 100 KB


class Worker:
    """Computes and returns a vector."""

    def __init__(self, num_products: int) -> None:
        torch.set_num_threads(1)
        self.left, self.right = torch.randn(1024, 256), torch.randn(256, 256)
        self.gradient = np.ones(NUM_PARAMETERS, np.float32)
        self.num_products = num_products

    def step(self, parameters: np.ndarray | None = None) -> tuple[np.ndarray, int]:
        """One gradient's worth of work, the vector, and a receipt."""
        for _ in range(self.num_products):
            torch.mm(self.left, self.right)
        return self.gradient.copy(), 1

    def alone(self, seconds: float) -> float:
        """Steps per second without anybody else."""
        started, count = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            self.step()
            count += 1
        return count / (time.perf_counter() - started)


class Server:
    """Adds what it is given."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.parameters = np.zeros(NUM_PARAMETERS, np.float32)

    def apply(self, gradient: np.ndarray) -> tuple[np.ndarray, int]:
        """The new vector and a receipt."""
        self.parameters += gradient
        return self.parameters.copy(), 1


def updates_per_second(workers: list[Any], server: Any, in_flight: int, seconds: float) -> float:
    """Push and pull for ever, `in_flight` steps under way at each worker."""
    waiting: dict[Any, tuple[str, Any, Any]] = {}

    def step(worker: Any, *parameters: Any) -> None:
        value, receipt = worker.step.options(num_returns=2).remote(*parameters)
        waiting[receipt] = ("step", worker, value)

    for worker in workers * in_flight:
        step(worker)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        (receipt,), _ = ray.wait(list(waiting), num_returns=1, fetch_local=False)
        kind, worker, value = waiting.pop(receipt)
        if kind == "step":
            parameters, applied = server.apply.options(num_returns=2).remote(value)
            waiting[applied] = ("apply", worker, parameters)
        else:
            count += 1
            step(worker, value)
    rate = count / (time.perf_counter() - started)
    ray.wait(list(waiting), num_returns=len(waiting), fetch_local=False)
    return rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--products", type=int, default=8, help="matrix products per step; 8 take about 12 ms")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found: dict[str, list[float]] = {}
    for inline in (False, True):
        ray.init(
            address="local",
            include_dashboard=False,
            num_cpus=NUM_WORKERS + 1,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _system_config={"max_direct_call_object_size": INLINE_BYTES} if inline else None,
        )
        workers = [ray.remote(Worker).remote(args.products) for _ in range(NUM_WORKERS)]
        server = ray.remote(Server).remote()
        updates_per_second(workers, server, 1, 2.0)  # warm
        for _ in range(args.repeats):
            alone = sum(ray.get([worker.alone.remote(args.seconds) for worker in workers]))
            for in_flight in (1, 2):
                rate = updates_per_second(workers, server, in_flight, args.seconds)
                way = "inside Ray's messages" if inline else "through the object store"
                found.setdefault(f"{way}, {in_flight} in flight", []).append(rate / alone)
        ray.shutdown()
    if args.json:
        print(json.dumps({"machine": hardware_line(), "of_two_alone": found}))
        return
    print(f"{hardware_line()} {versions_line(sys.executable, ['ray', 'torch', 'numpy'])}\n")
    print("| values travel | of two workers alone, min / median / max |\n|---|---|")
    for name, ratios in found.items():
        print(f"| {name} | {min(ratios):.2f} / {statistics.median(ratios):.2f} / {max(ratios):.2f} |")


if __name__ == "__main__":
    main()
