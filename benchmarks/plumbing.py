"""What the engine, the session and the events cost: the share of serial CartPole training spent outside the worker.

    python benchmarks/plumbing.py --seeds 5

The worker's own methods are timed from outside; all the rest of the training clock is plumbing (queueing, receipts,
events, counters, metrics, schedules). Evaluation stands outside the training clock.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import hardware_line
from qfleet.experiment import Experiment
from qfleet.roles.worker import Worker

TIMED = ("collect", "train", "snapshot", "save", "load", "__init__")


class Stopwatch:
    """Seconds spent inside the worker's methods."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            started = time.perf_counter()
            try:
                return method(*args)
            finally:
                self.seconds += time.perf_counter() - started

        return timed


def measure(seed: int, num_env_steps: int) -> tuple[float, float, int]:
    """Training seconds, seconds inside the worker, and calls' worth of updates of one run."""
    watch = Stopwatch()
    originals = {name: getattr(Worker, name) for name in TIMED}
    for name, method in originals.items():
        setattr(Worker, name, watch.around(method))
    try:
        with tempfile.TemporaryDirectory() as folder:
            overrides: dict[str, object] = {"stop.until_return": "never", "stop.max_env_steps": num_env_steps}
            run = Experiment.from_recipe("CartPole-v1", seed=seed, run_dir=Path(folder) / "run", overrides=overrides)
            summary = run.run()
    finally:
        for name, method in originals.items():
            setattr(Worker, name, method)
    return float(str(summary["train_seconds"])), watch.seconds, int(str(summary["num_updates"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--env-steps", type=int, default=20_000)
    arguments = parser.parse_args()
    print(hardware_line())
    shares = []
    for seed in range(arguments.seeds):
        train_seconds, inside, num_updates = measure(seed, arguments.env_steps)
        shares.append(1.0 - inside / train_seconds)
        per_update = 1e6 * train_seconds / num_updates
        print(
            f"seed {seed}: training {train_seconds:.2f} s, worker {inside:.2f} s, plumbing {shares[-1]:.1%}, "
            f"{per_update:.0f} us per update all in"
        )
    print(f"plumbing: median {statistics.median(shares):.1%} ({min(shares):.1%} to {max(shares):.1%})")


if __name__ == "__main__":
    main()
